"""Checkpoints: what a training run that was killed needs to go on as if it had never stopped.

A file is a safetensors file with a checksum (`files.py`). Its tensor `code` holds JSON (see
`encoding.py`), the others hold the bytes of arrays.
"""

import hashlib
import json
import os
import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

import jax
import jax.numpy as jnp
import numpy as np

from tplimit import _jax
from tplimit.errors import LimitWarning, warn
from tplimit.output.files import Format, OtherVersion, Unreadable, checksum, locked
from tplimit.training.encoding import OtherFields, conforms, decode, encode
from tplimit.training.history import History, Packed
from tplimit.transforms.opaque import LimitValue, aval_of, mesh_of, on_mesh, sound

__all__ = ["Checkpoint", "Checkpoints"]

_FORMAT = Format("tplimit.Checkpoint", version=2, oldest=2)
_STATES = Format("tplimit.States")
_SECONDS = 60.0
_KEPT = 2
_NAME = re.compile(r"checkpoint-(\d{8}|[1-9]\d{8,})\.safetensors")
_LOCK = "lock"
#: A folder beside the checkpoints with the states that a run keeps.
_KEPT_STATES = "states"


@dataclass(frozen=True)
class Checkpoint:
    """Where and how often `tplimit.train` saves.

    Args:
        folder: made if it is missing. It belongs to one run, and to one call at a time.
        every: save after every so many steps; by default when 60 seconds have passed. The end of
            each replicate (of each group of replicates trained together) is saved in any case.

    The two newest checkpoints are kept. A file is complete before it gets its name, so the process
    may be killed at any moment. If the newest is damaged, a `LimitWarning` says so and the one
    before it is used.

    Raises:
        TypeError: `folder` is no path.
        ValueError: `folder` is empty, or `every` is below 1.

    >>> import tplimit as tp
    >>> tp.Checkpoint("runs/digits", every=100).every
    100
    """

    folder: str | os.PathLike[str]
    every: int | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.folder, (str, os.PathLike)):
            raise TypeError(
                f"a checkpoint is a folder, or tp.Checkpoint(folder), got {self.folder!r}"
            )
        if not os.fspath(self.folder):
            raise ValueError("the folder of a checkpoint is an empty string: give it a name")
        if self.every is not None and self.every < 1:
            raise ValueError(f"every has to be at least 1 step, got {self.every}")


class Checkpoints:
    """The checkpoints of one run: gives back what an earlier process left, and saves at intervals.

    Args:
        checkpoint: where to save, or None: then there is nothing to give back, nothing is saved.
        run: what identifies the run, by name: trees of arrays, numbers and declarations.

    Enter it, call `decided` and `history`, then `restore` with the initial state of every part
    that is left, and `save` after each step and each part.
    """

    def __init__(
        self, checkpoint: str | os.PathLike[str] | Checkpoint | None, run: Mapping[str, Any]
    ) -> None:
        if checkpoint is not None and not isinstance(checkpoint, Checkpoint):
            checkpoint = Checkpoint(checkpoint)
        self._settings = checkpoint
        self._lock = ExitStack()
        self._leaves: list[Any] | None = None
        self._left_structure: Any = None
        self._tree: Any = None
        self._structure: Any = None
        if checkpoint is None:
            return
        self._folder = Path(checkpoint.folder)
        self._folder.mkdir(parents=True, exist_ok=True)
        run = dict(run) | {"precision": jnp.result_type(float).name}
        self._length = len(run.get("batches", ()))
        self._run = {name: _digest(tree) for name, tree in run.items()}
        self._decided: dict[str, int] = {}
        self._parts: list[int] = []
        self._good: list[int] = []
        self._found: Any = None
        self._steps = 0
        self._checked = False
        self._time = time.monotonic()

    def __enter__(self) -> None:
        """Keep others out of the folder, and look for what was saved there.

        Raises:
            ValueError: the folder is in use, holds what another version wrote, or only files that
                cannot be read.
        """
        if self._settings is None:
            return
        try:
            self._lock.enter_context(locked(self._folder / _LOCK))
        except BlockingIOError as error:
            raise ValueError(
                f"another run is using the checkpoint folder {self._folder} at this moment: wait "
                "until it has ended, or give this run a folder of its own"
            ) from error
        with self._lock.pop_all() as lock:
            self._found = self._newest()
            self._lock = lock.pop_all()

    def __exit__(self, *error: object) -> None:
        self._lock.close()

    def decided(self, otherwise: dict[str, int]) -> dict[str, int]:
        """What the run had found out about itself when it was saved, or `otherwise`."""
        if self._settings is None:
            return otherwise
        found = {} if self._found is None else self._found["decided"]
        # A run at another kind of width decides other things; `history` refuses it.
        self._decided = found if found.keys() == otherwise.keys() else otherwise
        return self._decided

    def begin_again(self, decided: dict[str, int]) -> dict[str, int]:
        """Delete what was saved, since the run begins again in another way."""
        if self._settings is not None:
            self._remove(self._numbers())
            self._found, self._good, self._decided = None, [], decided
        return decided

    def history(self, parts: Sequence[int]) -> History:
        """The records that were saved, or none. `parts`: replicates trained together, part by part.

        Raises:
            ValueError: another run.
        """
        if self._settings is None:
            return History()
        self._parts = list(parts)
        content, self._found = self._found, None
        if content is None:
            return History()
        # The parts come last: what the user changed is the better explanation.
        run: dict[str, Any] = self._run | {"number of steps": self._length}
        run |= {"division of the replicates": self._parts}
        found = content["run"] | {"number of steps": content["steps"]}
        found |= {"division of the replicates": content["parts"]}
        other = [name for name in run if found.get(name) != run[name]]
        if other:
            raise ValueError(
                f"the checkpoint in {self._folder} belongs to another run: {', '.join(other)} "
                "differ; give this run a folder of its own, or delete the checkpoint"
            )
        self._leaves, self._left_structure = content["leaves"], content["structure"]
        return content["history"]

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
        # Numbers only grow: whatever else lies in the folder is not written over.
        number = max(self._numbers(), default=0) + 1
        self._write(self._path(number), self._encoded(state, history))
        self._good = [number, *self._good][:_KEPT]
        self._remove(n for n in self._numbers() if n not in self._good)
        self._steps = 0
        self._time = time.monotonic()

    def keep(self, step: int, part: int, states: list[Any]) -> None:
        """Save the states of a part at a step, once and for all: `kept` gives them back."""
        if self._settings is None:
            return
        leaves = [jax.tree.leaves(state) for state in states]
        code, arrays = encode({"run": self._identity(), "states": leaves})
        _STATES.write(self._states(step, part), {**arrays, "code": _as_bytes(code)})

    def kept(self, step: int, part: int, like: Any) -> list[Any] | None:
        """The states of a part at a step that an earlier call of this run has saved, or None.

        `like` is a state of the same structure.

        Warns:
            LimitWarning: the file cannot be read.
        """
        if self._settings is None or not self._states(step, part).exists():
            return None
        try:
            found = _read_states(self._states(step, part))
        except (Unreadable, OtherVersion) as reason:
            warn(LimitWarning(f"{reason}; the states at step {step} are lost"))
            return None
        if found["run"] != self._identity():
            return None
        mesh, tree = mesh_of(jax.tree.leaves(like)), jax.tree.structure(like)
        return [jax.tree.unflatten(tree, on_mesh(mesh, leaves)) for leaves in found["states"]]

    def _states(self, step: int, part: int) -> Path:
        return self._folder / _KEPT_STATES / f"step-{step:08}-part-{part:04}.safetensors"

    def _identity(self) -> dict[str, str]:
        """Of which run states are, and of which attempt: what was kept before it began again, in
        another way, is of no use."""
        return self._run | {"decided": json.dumps(self._decided, sort_keys=True)}

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
            "steps": self._length,
            "decided": self._decided,
            "structure": self._structure,
            "leaves": jax.tree.leaves(state) if keep else None,
            "shapes": _structure(state)["shapes"] if keep else None,
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
        reasons = []
        for number in self._numbers():
            try:
                content = _read(self._path(number))
            except Unreadable as reason:
                reasons.append(str(reason))
                continue
            if reasons:
                text = f"{'; '.join(reasons)}; going on from {self._path(number)}"
                warn(LimitWarning(text))
            self._good = [number]
            return content
        if reasons:
            raise ValueError(
                "no checkpoint can be read: " + "; ".join(reasons) + ". Delete them to start anew"
            )
        return None

    def _remove(self, numbers: Iterable[int]) -> None:
        for path in map(self._path, numbers):
            if not path.is_dir():  # a folder is nothing that was written here
                path.unlink(missing_ok=True)

    def _write(self, path: Path, encoded: tuple[Any, dict[str, np.ndarray]]) -> None:
        try:
            _write(path, *encoded)
        except OSError as error:
            good = (
                f"goes on from its last good file, {self._path(self._good[0])}"
                if self._good
                else "begins anew: there is no good file of it yet"
            )
            raise OSError(
                error.errno,
                f"the checkpoint {path} cannot be written ({error.strerror or error}). Once it can "
                f"be, the same call {good}",
            ) from error


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
    hashed = hashlib.sha256(json.dumps(_structure_of(structure)).encode())
    # Full-batch training passes the same arrays at every step.
    seen: dict[int, bytes] = {}
    for leaf in leaves:
        if id(leaf) not in seen:
            array = isinstance(leaf, jax.Array) and not _jax.is_key(leaf)
            code, arrays = encode(np.asarray(leaf) if array else leaf)
            seen[id(leaf)] = checksum({"code": json.dumps(code)}, arrays).encode()
        hashed.update(seen[id(leaf)])
    return hashed.hexdigest()


# --- files


def _as_bytes(code: Any) -> np.ndarray:
    return np.frombuffer(json.dumps(code, allow_nan=False).encode(), np.uint8)


def _write(path: Path, code: Any, arrays: dict[str, np.ndarray]) -> None:
    _FORMAT.write(path, {**arrays, "code": _as_bytes(code)})


def _read(path: Path) -> dict[str, Any]:
    """The content of a checkpoint, its history unpacked; raises as `_decoded`."""
    return _decoded(_FORMAT, path, lambda content: _checked(content, path))


def _read_states(path: Path) -> dict[str, Any]:
    """The states that were kept in a file; raises as `_decoded`."""
    return _decoded(_STATES, path, _checked_states)


def _decoded(kind: Format, path: Path, check: Callable[[Any], dict[str, Any]]) -> dict[str, Any]:
    """The content of a file.

    Raises:
        Unreadable: it is none, or holds what no run has saved.
        OtherVersion: another version of tplimit wrote it.
    """
    _, arrays = kind.read(path)
    try:
        code = json.loads(arrays.pop("code", np.empty(0, np.uint8)).tobytes())
        return check(decode(code, arrays))
    except OtherFields as error:
        raise OtherVersion(
            f"{path} was written by another version of tplimit ({error}): go on with that version, "
            "or delete the folder to start anew"
        ) from error
    except Exception as error:  # whatever nonsense leads to
        raise Unreadable(f"{path} is damaged: no run has saved this ({error})") from error


_Leaf = LimitValue | jax.Array | np.ndarray | np.generic | int | float | complex | bool


class _Structure(TypedDict):
    tree: str
    leaves: int
    shapes: list[str]


class _Content(TypedDict):
    run: dict[str, str]
    parts: list[int]
    steps: int
    decided: dict[str, int]
    structure: _Structure
    leaves: list[_Leaf] | None
    shapes: list[str] | None
    history: Packed


class _States(TypedDict):
    run: dict[str, str]
    states: list[list[_Leaf]]


def _checked_states(content: Any) -> dict[str, Any]:
    if not conforms(content, _States):
        raise ValueError("its entries are others")
    for leaf in (leaf for state in content["states"] for leaf in state):
        if isinstance(leaf, LimitValue) and not sound(leaf, 1):
            raise ValueError("the parts of its states do not fit together")
    return dict(content)


def _checked(content: Any, path: Path) -> dict[str, Any]:
    """The content with its history unpacked, if its parts fit together."""
    if not conforms(content, _Content):
        raise ValueError("its entries are others")
    parts, leaves = content["parts"], content["leaves"]
    history = History.unpacked(content["history"], parts, content["steps"], str(path.parent))
    needed = len(history.pieces) == len(parts) or bool(history.outputs)
    if needed != (leaves is not None) or min(parts, default=0) < 1:
        raise ValueError("its state and its records do not fit together")
    decided = content["decided"]
    if decided.get("together", parts[0]) != parts[0] or not 1 <= decided.get("terms", 1) <= 3:
        raise ValueError("what it has decided is impossible")
    many = parts[min(len(history.pieces), len(parts) - 1)]
    if leaves is not None and (
        len(leaves) != content["structure"]["leaves"]
        or [str(aval_of(leaf)) for leaf in leaves] != content["shapes"]
        or not all(sound(leaf, many) for leaf in leaves if isinstance(leaf, LimitValue))
    ):
        raise ValueError("the parts of its state do not fit together")
    return content | {"history": history}
