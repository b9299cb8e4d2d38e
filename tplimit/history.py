"""What a training run has recorded so far, replicates trained together at a time."""

import functools
import operator
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np

from tplimit.trajectory import Records

__all__ = ["History"]


@dataclass
class History:
    """Records so far; how far a run has come can be read off it.

    Attributes:
        pieces: records of each part that is done; a part is replicates trained together.
        outputs: of the part under way, one tree per step, leaves with the leading axis replicate.
        observations: the same, of the state before each step.
        largest: exponents of the records, largest over all so far; None where none are noted.
    """

    pieces: list[Records] = field(default_factory=list)
    outputs: list[Any] = field(default_factory=list)
    observations: list[Any] = field(default_factory=list)
    largest: dict[str, Any] = field(default_factory=dict)

    def raise_exponents(self, part: str, exponents: Any) -> None:
        """Note the exponents of one record; `part` is "outputs" or "observations"."""
        with _same_shapes():
            if part in self.largest:
                exponents = jax.tree.map(_largest, self.largest[part], exponents)
            self.largest[part] = exponents

    def finish_part(self) -> None:
        """Stack the records of the part under way: its last state has been observed."""
        self.pieces.append(
            Records(_stacked(self.outputs, axis=1), _stacked(self.observations, axis=1))
        )
        self.outputs, self.observations = [], []

    def records(self) -> Records:
        """All records, once every part is done."""
        return Records(
            jax.tree.map(_concatenated, *[p.outputs for p in self.pieces]),
            jax.tree.map(_concatenated, *[p.observations for p in self.pieces]),
        )

    def exponents(self) -> Records:
        return Records(self.largest["outputs"], self.largest["observations"])

    def packed(self) -> dict[str, Any]:
        """A tree of few arrays, whatever the number of steps; `unpacked` is the inverse."""
        steps = len(self.outputs)
        return {
            "pieces": self.pieces,
            "steps": steps,
            "outputs": _stacked(self.outputs, axis=0) if steps else None,
            "observations": _stacked(self.observations, axis=0) if steps else None,
            "largest": self.largest,
        }

    @classmethod
    def unpacked(cls, content: Mapping[str, Any]) -> "History":
        def listed(part: str) -> list[Any]:
            return [
                jax.tree.map(operator.itemgetter(step), content[part])
                for step in range(content["steps"])
            ]

        outputs, observations = listed("outputs"), listed("observations")
        return cls(content["pieces"], outputs, observations, content["largest"])


def _largest(*exponents: Any) -> Any:
    largest = functools.reduce(np.maximum, [np.asarray(e, dtype=object) for e in exponents])
    return largest if np.ndim(largest) else np.asarray(largest, dtype=object).item()


def _stacked(records: list[Any], axis: int) -> Any:
    with _same_shapes():
        return jax.tree.map(lambda *leaves: np.stack(leaves, axis=axis), *records)


def _concatenated(*leaves: np.ndarray) -> np.ndarray:
    return np.concatenate(leaves, axis=0)


@contextmanager
def _same_shapes() -> Iterator[None]:
    try:
        yield
    except ValueError as error:
        raise ValueError(
            "step and observe have to return the same tree of shapes at every step; is the last "
            f"batch smaller than the others? ({error})"
        ) from error
