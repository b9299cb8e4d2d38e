"""Files: whole or absent, with a checksum, open to whom the umask says; no pickle."""

import errno
import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from safetensors import safe_open
from safetensors.numpy import save

from tplimit.errors import LimitWarning, warn
from tplimit.output.provenance import provenance

fcntl: Any
msvcrt: Any
try:
    import fcntl
except ImportError:  # Windows
    fcntl = None
    import msvcrt

__all__ = [
    "Format",
    "OtherVersion",
    "Unreadable",
    "checksum",
    "existing",
    "locked",
    "replacing",
    "warn_of_suffix",
    "write_text",
]


class Unreadable(ValueError):
    """A file that is none of those that were written; the text names it and says why."""


class OtherVersion(ValueError):
    """A file that another version of tplimit has written, and this one does not read."""


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A file to be written that takes its name once it is complete, and else leaves no trace.

    Whenever the process or the machine stops, the old file or the new one is there. Missing
    folders are made.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    try:
        with open(partial, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    if os.name == "posix":  # elsewhere a folder cannot be opened
        descriptor = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def existing(path: str | os.PathLike[str]) -> Path:
    """The path of a file.

    Raises:
        FileNotFoundError: there is nothing.
    """
    if not Path(path).exists():
        raise FileNotFoundError(f"there is no file {path}")
    return Path(path)


def warn_of_suffix(path: Path, suffix: str, otherwise: str) -> None:
    """Warn where the name of a file promises another kind of file; one without suffix does not.

    `otherwise` says how such a file is made.
    """
    if path.suffix not in ("", suffix):
        kind = suffix.removeprefix(".")
        warn(
            LimitWarning(
                f"{path} is written as a {kind} file, whatever its suffix {path.suffix!r} says.",
                advice=f"Name it {path.with_suffix(suffix).name}; {otherwise}.",
            )
        )


def write_text(path: Path, text: str) -> None:
    """Write a text file, as `replacing` does."""
    with replacing(path) as file:
        file.write(text.encode())


@dataclass(frozen=True)
class Format:
    """A kind of safetensors file, with its name, version and checksum in the metadata, and with
    what it was made by (`provenance`) as `made`.

    Attributes:
        name: "tplimit." and the name of what it holds.
        version: that is written.
        oldest: version that can be read.
        unchecked: the last version that had no checksum.
    """

    name: str
    version: int = 1
    oldest: int = 1
    unchecked: int = 0

    def write(
        self,
        path: Path,
        arrays: Mapping[str, np.ndarray],
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        """Write named arrays.

        Raises:
            OSError: the file cannot be written; then what was there before is unchanged.
        """
        # safetensors writes the buffer as it lies in memory, whatever the strides say.
        arrays = {name: np.asarray(array, order="C") for name, array in arrays.items()}
        made = {"made": json.dumps(provenance())}
        metadata = {**(metadata or {}), **made, "format": self.name, "version": str(self.version)}
        content = save(arrays, metadata | {"checksum": checksum(metadata, arrays)})
        with replacing(path) as file:
            file.write(content)

    def read(self, path: Path) -> tuple[dict[str, str], dict[str, np.ndarray]]:
        """Metadata and arrays of a file.

        Raises:
            Unreadable: no such file, or one that is truncated, damaged, or something else.
            OtherVersion: written by another version of tplimit.

        Warns:
            LimitWarning: it is from a version that wrote no checksum.
        """
        try:
            with safe_open(path, framework="numpy") as file:
                metadata = dict(file.metadata() or {})
                arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except OSError as error:
            raise Unreadable(f"{path} cannot be read ({error.strerror or error})") from error
        except Exception as error:  # NumPy knows fewer dtypes than safetensors, for instance
            reason = "is truncated or no safetensors file"
            raise Unreadable(f"{path} {reason} ({error})") from error
        version = metadata.get("version", "")
        if metadata.get("format") != self.name or not (version.isascii() and version.isdecimal()):
            kind = self.name.removeprefix("tplimit.")
            raise Unreadable(f"{path} is a safetensors file, but no {kind} of tplimit")
        self._check_version(path, int(version))
        written = metadata.pop("checksum", None)
        if written is None and int(version) <= self.unchecked:
            warn(
                LimitWarning(
                    f"{path} was written by a version of tplimit that knew no checksum: damage "
                    "cannot be noticed. Save it again."
                )
            )
        elif written != checksum(metadata, arrays):
            raise Unreadable(f"{path} is damaged: its checksum is wrong")
        return metadata, arrays

    def _check_version(self, path: Path, version: int) -> None:
        if version > self.version:
            raise OtherVersion(
                f"{path} has format version {version}, this tplimit reads up to {self.version}: "
                "update tplimit"
            )
        if version < self.oldest:
            raise OtherVersion(
                f"{path} has format version {version}, this tplimit reads from {self.oldest} on: "
                "use the version of tplimit that wrote it, or delete it"
            )


def checksum(metadata: Mapping[str, str], arrays: Mapping[str, np.ndarray]) -> str:
    """A digest of texts and arrays by name."""
    hashed = hashlib.sha256(repr(sorted(metadata.items())).encode())
    for name, array in sorted(arrays.items()):
        hashed.update(repr((name, array.dtype.name, array.shape)).encode())
        hashed.update(np.asarray(array, order="C").reshape(-1).view(np.uint8).data)
    return hashed.hexdigest()


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock of a file, which the system takes back when the process ends in any way.

    Where a system has no locks, libraries turn to marker files, and these outlive a process that
    is killed: there nothing is locked. Nor is it in a folder where nothing can be written.

    Raises:
        BlockingIOError: it is held already, by another process or in this one.
    """
    try:
        file = open(path, "ab")  # noqa: SIM115
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise
        yield
        return
    with file:
        _lock(file)
        yield


def _lock(file: BinaryIO) -> None:
    if fcntl is None:
        try:
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        except OSError as error:
            raise BlockingIOError(*error.args) from error
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP):
            raise
