"""Checkpoints: what a training run that was killed needs to go on as if it had never stopped.

A file is a safetensors file. Its tensor `code` holds JSON (see `encoding.py`), the others hold the
bytes of arrays; the metadata name format, version and a checksum of all tensors.
"""

import hashlib
import json
import os
import re
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError

from tplimit import _jax, files
from tplimit.encoding import OtherFields, decode, encode
from tplimit.errors import LimitWarning
from tplimit.history import History
from tplimit.leaves import aval_of, mesh_of, on_mesh

__all__ = ["Checkpoint", "Checkpoints"]

_FORMAT = "tplimit.Checkpoint"
_VERSION = 1
_SECONDS = 60.0
_KEPT = 2
_NAME = re.compile(r"checkpoint-(\d{8,})\.safetensors")


@dataclass(frozen=True)
class Checkpoint:
    """Where and how often `tplimit.train` saves.

    Args:
        folder: made if it is missing. It belongs to one run, and to one process at a time.
        every: save after every so many steps; by default when 60 seconds have passed. The end of
            each replicate (of each group of replicates trained together) is saved in any case.

    The two newest checkpoints are kept. A file is complete before it gets its name, so the process
    may be killed at any moment. If the newest is damaged, a `LimitWarning` says so and the one
    before it is used.

    Raises:
        ValueError: `every` is below 1.

    >>> import tplimit as tp
    >>> tp.Checkpoint("runs/digits", every=100).every
    100
    """

    folder: str | os.PathLike[str]
    every: int | None = None

    def __post_init__(self) -> None:
        if self.every is not None and self.every < 1:
            raise ValueError(f"every has to be at least 1 step, got {self.every}")


class Checkpoints:
    """The checkpoints of one run: gives back what an earlier process left, and saves at intervals.

    Args:
        checkpoint: where to save, or None: then there is nothing to give back, nothing is saved.
        run: what identifies the run, by name: trees of arrays, numbers and declarations.

    Call `history` once, then `restore` with the initial state of every part that is left, and
    `save` after each step and each part.
    """

    def __init__(
        self, checkpoint: str | os.PathLike[str] | Checkpoint | None, run: Mapping[str, Any]
    ) -> None:
        if checkpoint is not None and not isinstance(checkpoint, Checkpoint):
            checkpoint = Checkpoint(checkpoint)
        self._settings = checkpoint
        self._leaves: list[Any] | None = None
        self._left_structure: Any = None
        self._tree: Any = None
        self._structure: Any = None
        if checkpoint is None:
            return
        self._folder = Path(checkpoint.folder)
        self._folder.mkdir(parents=True, exist_ok=True)
        run = dict(run) | {"precision": jnp.result_type(float).name}
        self._run = {name: _digest(tree) for name, tree in run.items()}
        self._parts: list[int] = []
        self._number = 0
        self._found: Any = None
        self._steps = 0
        self._checked = False
        self._time = time.monotonic()

    def together(self) -> int | None:
        """How many replicates were trained together when the checkpoint was saved, if there is one.

        Raises: as `history`.
        """
        if self._settings is None:
            return None
        self._found = self._newest()
        return self._found["parts"][0] if self._found is not None else None

    def discard(self) -> None:
        """Delete what was saved: the run begins again in another way."""
        if self._settings is not None:
            for number in self._numbers():
                self._path(number).unlink(missing_ok=True)

    def history(self, parts: Sequence[int]) -> History:
        """The records that were saved, or none. `parts`: replicates trained together, part by part.

        Raises:
            ValueError: another run, a newer format, or only files that cannot be read.
        """
        if self._settings is None:
            return History()
        self._parts = list(parts)
        content, self._found = self._found or self._newest(), None
        if content is None:
            return History()
        # The parts come last: what the user changed is the better explanation.
        run = self._run | {"division of the replicates": self._parts}
        found = content["run"] | {"division of the replicates": content["parts"]}
        other = [name for name in run if found.get(name) != run[name]]
        if other:
            raise ValueError(
                f"the checkpoint in {self._folder} belongs to another run: {', '.join(other)} "
                "differ; give this run a folder of its own, or delete the checkpoint"
            )
        self._leaves, self._left_structure = content["leaves"], content["structure"]
        return History.unpacked(content["history"])

    def restore(self, initial: Any) -> Any:
        """The state that was saved in the part that starts from `initial`, or `initial`.

        Raises:
            ValueError: the saved state came from an initial state of another structure.
        """
        if self._settings is None:
            return initial
        self._tree = jax.tree.structure(initial)
        self._structure = _structure(initial)
        self._checked = False
        if self._leaves is None:
            return initial
        leaves, self._leaves = self._leaves, None
        if self._left_structure != self._structure:
            raise ValueError(
                f"the checkpoint in {self._folder} was made with another theta or init: it starts "
                f"from {_brief(self._left_structure)}, this run from {_brief(self._structure)}"
            )
        # Where the particles lie is no part of the run: it may go on with other devices.
        mesh = mesh_of(jax.tree.leaves(initial))
        return jax.tree.unflatten(self._tree, on_mesh(mesh, leaves))

    def save(self, state: Any, history: History) -> None:
        """Save if it is time; always at the end of a part.

        Raises:
            ValueError: the state has another structure than the initial state.
            TypeError: state or records hold something that cannot be saved.
        """
        if self._settings is None:
            return
        self._steps += 1
        ended = not history.outputs
        if not self._checked:
            # At the first step, not after a minute of training.
            self._encoded(state, history)
            self._checked = True
        if self._settings.every is None:
            due = time.monotonic() - self._time >= _SECONDS
        else:
            due = self._steps >= self._settings.every
        if not (due or ended):
            return
        self._number += 1
        _write(self._path(self._number), *self._encoded(state, history))
        for number in self._numbers():
            if number <= self._number - _KEPT:
                self._path(number).unlink(missing_ok=True)
        self._steps = 0
        self._time = time.monotonic()

    def _encoded(self, state: Any, history: History) -> tuple[Any, dict[str, np.ndarray]]:
        tree = jax.tree.structure(state)
        if tree != self._tree:
            raise ValueError(
                "a checkpoint needs a state of one structure, but step turned "
                f"{_brief(_structure_of(self._tree))} into {_brief(_structure_of(tree))}; let init "
                "return a state with all that step adds to it"
            )
        finished = len(history.pieces) == len(self._parts)
        # The state at the end of a part is of no use unless it is the last one.
        keep = finished or history.outputs
        content = {
            "run": self._run,
            "parts": self._parts,
            "structure": self._structure,
            "leaves": jax.tree.leaves(state) if keep else None,
            "history": history.packed(),
        }
        try:
            return encode(content)
        except TypeError as error:
            raise TypeError(
                f"{error}: let step and observe return dicts, lists or tuples of arrays"
            ) from error

    def _path(self, number: int) -> Path:
        return self._folder / f"checkpoint-{number:08}.safetensors"

    def _numbers(self) -> list[int]:
        """Numbers of the checkpoints in the folder, newest first."""
        matches = (_NAME.fullmatch(path.name) for path in self._folder.iterdir())
        return sorted((int(match[1]) for match in matches if match), reverse=True)

    def _newest(self) -> Any:
        """The content of the newest checkpoint that can be read; None if there is no file."""
        numbers = self._numbers()
        reasons = []
        for number in numbers:
            try:
                content = _read(self._path(number))
            except _Unreadable as reason:
                reasons.append(f"{self._path(number)} {reason}")
                continue
            if reasons:
                text = f"{'; '.join(reasons)}; going on from {self._path(number)}"
                warnings.warn(LimitWarning(text), stacklevel=5)
            self._number = number
            return content
        if numbers:
            raise ValueError(
                "no checkpoint can be read: " + "; ".join(reasons) + ". Delete them to start anew"
            )
        return None


def _structure(state: Any) -> dict[str, Any]:
    leaves, tree = jax.tree.flatten(state)
    shapes = [str(aval_of(leaf)) for leaf in leaves]
    return _structure_of(tree) | {"shapes": shapes}


def _structure_of(tree: Any) -> dict[str, Any]:
    # Functions that a tree holds show their address, which is another one in every process.
    return {"tree": re.sub(r"0x[0-9a-f]+", "0x", str(tree)), "leaves": tree.num_leaves}


def _brief(structure: Mapping[str, Any]) -> str:
    text = structure["tree"].removeprefix("PyTreeDef")
    text = text if len(text) < 200 else text[:200] + "..."
    shapes = structure.get("shapes", [])
    shown = ", ".join(shapes[:8]) + (", ..." if len(shapes) > 8 else "")
    return f"{text} with {structure['leaves']} leaves" + (f" {shown}" if shapes else "")


def _digest(tree: Any) -> str:
    """A number for the contents of a tree; arrays of NumPy and of JAX count alike."""
    leaves, structure = jax.tree.flatten(tree)
    hashed = hashlib.sha256(_as_bytes(_structure_of(structure)).data)
    # Full-batch training passes the same arrays at every step.
    seen: dict[int, bytes] = {}
    for leaf in leaves:
        if id(leaf) not in seen:
            array = isinstance(leaf, jax.Array) and not _jax.is_key(leaf)
            code, arrays = encode(np.asarray(leaf) if array else leaf)
            seen[id(leaf)] = _checksum(_as_bytes(code), arrays).encode()
        hashed.update(seen[id(leaf)])
    return hashed.hexdigest()


# --- files


class _Unreadable(Exception):
    """A file that is no whole checkpoint; the text says why."""


def _checksum(code: np.ndarray, arrays: Mapping[str, np.ndarray]) -> str:
    hashed = hashlib.sha256(code.data)
    for name in sorted(arrays):
        hashed.update(f"{name} {arrays[name].size} ".encode())
        hashed.update(arrays[name].data)
    return hashed.hexdigest()


def _as_bytes(code: Any) -> np.ndarray:
    return np.frombuffer(json.dumps(code, allow_nan=False).encode(), np.uint8)


def _write(path: Path, code: Any, arrays: dict[str, np.ndarray]) -> None:
    text = _as_bytes(code)
    checksum = _checksum(text, arrays)
    metadata = {"format": _FORMAT, "version": str(_VERSION), "checksum": checksum}
    files.write(path, {**arrays, "code": text}, metadata)


def _read(path: Path) -> Any:
    try:
        metadata, arrays = files.read(path)
    except SafetensorError as error:
        raise _Unreadable(f"is truncated or no safetensors file ({error})") from error
    if metadata.get("format") != _FORMAT or not metadata.get("version", "").isdecimal():
        raise _Unreadable("is a safetensors file, but no checkpoint of tplimit")
    if int(metadata["version"]) > _VERSION:
        raise ValueError(
            f"{path} has format version {metadata['version']}, this tplimit reads up to "
            f"{_VERSION}: update tplimit"
        )
    code = arrays.pop("code", np.empty(0, np.uint8))
    if _checksum(code, arrays) != metadata.get("checksum"):
        raise _Unreadable("is damaged: its checksum is wrong")
    try:
        return decode(json.loads(code.tobytes()), arrays)
    except OtherFields as error:
        raise ValueError(
            f"{path} was written by another version of tplimit ({error}): go on with that version, "
            "or delete the folder to start anew"
        ) from error
