"""Compiled programs kept on the disk, for those who ask for it, and for programs of tplimit only.

JAX has a cache of its own, for all that a process compiles: its settings are those of the user, and
nothing here reads or changes them.
"""

import contextlib
import hashlib
import os
import platform
from collections.abc import Callable, Hashable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax

from tplimit import _jax

__all__ = ["cache", "compiled"]

#: The variable of the environment that names the folder.
VARIABLE = "TPLIMIT_CACHE"

#: Files that a folder may hold; then the older half goes.
_MOST = 4000

_chosen: list[Path | None] = []


def cache(folder: str | os.PathLike[str] | None) -> None:
    """Keep the compiled programs of limits in a folder, for the processes that come.

    A new process then waits for the interpretation of its programs, and not for the compiler. The
    environment variable ``TPLIMIT_CACHE`` does the same for a process in which this is not called.
    Files are found by the program, the versions of JAX and Python and the processor; what cannot be
    read is compiled and written again. They hold machine code: whoever can write in the folder
    decides what your process runs.

    Args:
        folder: made when it is needed; None: nothing is kept, whatever the environment says.

    Raises:
        TypeError: `folder` is no path.
        ValueError: it is an empty string.

    >>> import tplimit as tp
    >>> tp.cache("runs/compiled")  # nothing is written before something is compiled
    >>> tp.cache(None)
    """
    if folder is not None and not isinstance(folder, (str, os.PathLike)):
        raise TypeError(f"the cache is a folder, or None, got {folder!r}")
    if folder is not None and not os.fspath(folder):
        raise ValueError("the folder of the cache is an empty string: give it a name")
    _chosen[:] = [None if folder is None else Path(folder).expanduser()]


def _folder() -> Path | None:
    if _chosen:
        return _chosen[0]
    named = os.environ.get(VARIABLE)
    return Path(named).expanduser() if named else None


def compiled(
    function: Callable[..., Any], *, quick: bool, donate_argnums: int | tuple[int, ...] = ()
) -> Any:
    """``jax.jit``, ``quick`` or not (see ``_jax.compiled``), from the disk where it is there.

    Programs for several devices, and those inside of other programs, are not kept.
    """
    jitted = _jax.compiled(function, quick=quick, donate_argnums=donate_argnums)
    if _folder() is None:
        return jitted
    programs: dict[Hashable, Callable[..., Any]] = {}

    def call(*args: Any) -> Any:
        leaves, tree = jax.tree.flatten(args)
        folder, alone = _folder(), _alone(leaves)
        if folder is None or not alone:
            return jitted(*args)
        form = tree, _jax.form(leaves)
        if form not in programs:
            programs[form] = _kept(folder, jitted.lower(*args), quick)
        return programs[form](*args)

    return call


def _alone(leaves: list[Any]) -> bool:
    """Whether arrays are at hand, on the device that programs are compiled for."""
    devices: set[Any] = set()
    for leaf in leaves:
        if _jax.is_traced(leaf):
            return False
        if isinstance(leaf, jax.Array):
            devices |= leaf.devices()
    return devices <= {jax.devices()[0]} and jax.process_count() == 1


def _kept(folder: Path, lowered: Any, quick: bool) -> Callable[..., Any]:
    """A program from its file, or compiled and written there."""
    name = hashlib.sha256("\n".join([lowered.as_text(), str(quick), *_machine()]).encode())
    path = folder / f"{name.hexdigest()}.program"
    try:
        content = path.read_bytes()
        if hashlib.sha256(content[32:]).digest() == content[:32]:
            return _jax.loaded(content[32:], lowered)
    except Exception:  # missing, damaged, or of no use here
        pass
    program = lowered.compile()
    with contextlib.suppress(Exception):  # a full disk, or a program that cannot be written
        content = _jax.dumped(program)
        _write(path, hashlib.sha256(content).digest() + content)
    return program


def _machine() -> list[str]:
    """What a program is compiled for."""
    device = jax.devices()[0]
    parts = [jax.__version__, version("jaxlib"), platform.python_version(), platform.machine()]
    parts += [device.platform, device.device_kind, os.environ.get("XLA_FLAGS", "")]
    with contextlib.suppress(OSError):  # processors of one name may know different instructions
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        parts += [next((line for line in lines if line.startswith(("flags", "Features"))), "")]
    return parts


def _write(path: Path, content: bytes) -> None:
    """Several processes may write the same: a file gets its name when it is complete."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(f".{os.getpid()}")
    partial.write_bytes(content)
    os.replace(partial, path)
    there = list(path.parent.glob("*.program"))
    if len(there) > _MOST:
        for old in sorted(there, key=lambda file: file.stat().st_mtime)[: _MOST // 2]:
            old.unlink(missing_ok=True)
