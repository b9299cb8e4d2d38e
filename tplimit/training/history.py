"""What a training run has recorded so far, replicates trained together at a time."""

import operator
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any, TypedDict

import jax
import numpy as np

from tplimit.training.evaluation import largest
from tplimit.training.records import Records

__all__ = ["History", "Packed"]


class Packed(TypedDict):
    """A history as few arrays, whatever the number of steps."""

    pieces: list[Records]
    steps: int
    outputs: object
    observations: object
    largest: dict[str, object]
    random: bool


@dataclass
class History:
    """Records so far; how far a run has come can be read off it.

    Attributes:
        pieces: records of each part that is done; a part is replicates trained together.
        outputs: of the part under way, one tree per step, leaves with the leading axis replicate.
        observations: the same, of the state before each step.
        largest: exponents of the records, largest over all so far; empty where none are noted.
        random: whether the limit depends on the draw of the initial function.
        origin: where the records have been read, or empty.
    """

    pieces: list[Records] = field(default_factory=list)
    outputs: list[Any] = field(default_factory=list)
    observations: list[Any] = field(default_factory=list)
    largest: dict[str, Any] = field(default_factory=dict)
    random: bool = False
    origin: str = ""

    @property
    def empty(self) -> bool:
        """Whether nothing has been recorded yet."""
        return not self.pieces and not self.outputs

    def note(self, which: str, record: Any, exponents: Any) -> None:
        """Note one record, and its exponents; `which` is "outputs" or "observations"."""
        getattr(self, which).append(record)
        with self._same_shapes():
            if which in self.largest:
                trees = [jax.tree.structure(tree) for tree in (self.largest[which], exponents)]
                if trees[1:] != trees[:1]:
                    raise ValueError(f"{which}: {trees[0]}, then {trees[1]}")
                exponents = jax.tree.map(largest, self.largest[which], exponents)
            self.largest[which] = exponents

    def finish_part(self) -> None:
        """Stack the records of the part under way: its last state has been observed."""
        with self._same_shapes():
            self.pieces.append(
                Records(_stacked(self.outputs, axis=1), _stacked(self.observations, axis=1))
            )
        self.outputs, self.observations = [], []

    def records(self) -> Records:
        """All records, once every part is done."""
        with self._same_shapes():
            return Records.zip(_concatenated, *self.pieces)

    def exponents(self) -> Records:
        return Records(self.largest["outputs"], self.largest["observations"])

    def packed(self) -> Packed:
        """`unpacked` is the inverse."""
        steps = len(self.outputs)
        with self._same_shapes():
            return {
                "pieces": self.pieces,
                "steps": steps,
                "outputs": _stacked(self.outputs, axis=0) if steps else None,
                "observations": _stacked(self.observations, axis=0) if steps else None,
                "largest": self.largest,
                "random": self.random,
            }

    @classmethod
    def unpacked(cls, packed: Packed, parts: Sequence[int], steps: int, origin: str) -> "History":
        """The history of a run over so many steps, in parts of so many replicates.

        Raises:
            ValueError: no such run has recorded it.
        """
        pieces, made = packed["pieces"], packed["steps"]
        left = parts[len(pieces) :]
        _check(len(pieces) <= len(parts) and 0 <= made <= (steps if left else 0))
        for piece, replicates in zip(pieces, parts, strict=False):
            _check_axes(piece.outputs, (replicates, steps))
            _check_axes(piece.observations, (replicates, steps + 1))
        for part in ("outputs", "observations"):
            _check_axes(packed[part], (made, left[0]) if made else ())
        largest = packed["largest"]
        _check(set(largest) in (set(), {"outputs", "observations"}))
        for leaf in jax.tree.leaves(largest):
            _check(isinstance(leaf, (Fraction, float, np.ndarray)))

        def listed(records: Any) -> list[Any]:
            return [jax.tree.map(operator.itemgetter(step), records) for step in range(made)]

        under_way = listed(packed["outputs"]), listed(packed["observations"])
        return cls(pieces, *under_way, largest, packed["random"], origin)

    @contextmanager
    def _same_shapes(self) -> Iterator[None]:
        try:
            yield
        except ValueError as error:
            reason = "is the last batch smaller than the others?"
            if self.origin:
                reason = (
                    f"the first ones are from {self.origin}: are step and observe those of the "
                    "earlier call? If not, give this run a folder of its own"
                )
            raise ValueError(
                "step and observe have to return the same tree of shapes at every step; "
                f"{reason} ({error})"
            ) from error


def _check(holds: object) -> None:
    if not holds:
        raise ValueError("its records do not fit together")


def _check_axes(records: Any, axes: tuple[int, ...]) -> None:
    """Whether all are arrays with these leading axes; without axes there may be none."""
    for leaf in jax.tree.leaves(records):
        _check(axes and isinstance(leaf, np.ndarray) and leaf.shape[: len(axes)] == axes)


def _stacked(records: list[Any], axis: int) -> Any:
    return jax.tree.map(lambda *leaves: np.stack(leaves, axis=axis), *records)


def _concatenated(*leaves: np.ndarray) -> np.ndarray:
    return np.concatenate(leaves, axis=0)
