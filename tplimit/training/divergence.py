"""Runs that blow up: the first step at which a record is not finite, or grows without return."""

import itertools
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tplimit.errors import DivergenceError, LimitError, LimitWarning, warn
from tplimit.training.history import History
from tplimit.training.trajectory import Records

__all__ = ["Watch", "growth_began"]

# A record diverges when it has grown by so many powers of ten. In a catapult, which comes back, the
# loss grows by a factor of the order of the width.
_ORDERS = 6.0
_NAMED = 8
_DIVERGES = "Training diverges: lower the learning rate."


class Watch:
    """Looks at the records of a run as they come, and warns once: at the first that blows up.

    That is the first with an entry that is NaN or infinite, or the first whose size (the largest
    modulus of an entry) diverges, as `growth_began` tells. Whole numbers are not looked at.

    Args:
        label: what is run, such as "width 64".
        fluctuations: records are pairs, the second of a pair is the fluctuation of the first.
    """

    def __init__(self, label: str, fluctuations: bool = False) -> None:
        self.warned = False
        self._label = label
        self._kinds = ("", "fluctuations.") if fluctuations else ("",)
        self._begin(None)

    def look(self, history: History) -> None:
        """Look at what has been recorded since the last call; a new history is looked at whole.

        Warns:
            LimitWarning: a record blows up; which one, the width, the step, the replicates.
        """
        if history is not self._history:
            self._begin(history)
        for piece in history.pieces[self._parts :]:
            steps, replicates = _lengths(piece)
            outputs, seen = (
                [_at(records, t) for t in range(length)]
                for records, length in ((piece.outputs, steps), (piece.observations, steps + 1))
            )
            self._look(outputs, seen)
            self._begin_part(self._parts + 1, self._replicates + replicates)
        self._look(history.outputs, history.observations)

    def explain(self, error: LimitError) -> None:
        """Called where a step fails; what comes of numbers that blew up is no fault of the program.

        Raises:
            DivergenceError: the run has blown up before.
        """
        if self.warned:
            raise DivergenceError(
                f"Training has diverged, as was warned of, and then: {error.reason}",
                operation=error.operation,
                location=error.location,
                advice="Lower the learning rate.",
            ) from error

    def _begin(self, history: History | None) -> None:
        self._history = history
        self._begin_part(0, 0)

    def _begin_part(self, parts: int, replicates: int) -> None:
        """`parts` are done, of so many `replicates`."""
        self._parts, self._replicates = parts, replicates
        self._looked = 0
        # By record, for each step: its largest size so far in each replicate, 1 at least.
        self._largest: dict[tuple[str, Any], list[np.ndarray]] = {}

    def _look(self, outputs: list[Any], observations: list[Any]) -> None:
        for part, step, record in itertools.islice(
            _in_order(outputs, observations), self._looked, None
        ):
            self._looked += 1
            trees = record if len(self._kinds) > 1 and record is not None else (record,)
            for kind, tree in zip(self._kinds, trees, strict=False):
                for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
                    if not self.warned and jnp.issubdtype(leaf.dtype, jnp.inexact):
                        self._check((kind + part, path), step, leaf)

    def _check(self, record: tuple[str, Any], step: int, leaf: np.ndarray) -> None:
        size = _size(leaf)
        past = self._largest.setdefault(record, [])
        lost = ~np.isfinite(size)
        if lost.any():
            entries = leaf[lost].ravel()
            value = entries[~np.isfinite(entries)][0]
            what = f"is {value} from the beginning: is something in batches or theta without value?"
            if past:
                what = f"is {value}, after at most {np.max(past[-1][lost]):.3g}. {_DIVERGES}"
            self._warn(record, step, np.flatnonzero(lost), what)
            return
        past.append(np.maximum(size, past[-1] if past else 1.0))
        began = {
            int(r): start
            for r in np.flatnonzero(size >= 10**_ORDERS * past[0])
            if (start := growth_began(np.array([row[r] for row in past]))) is not None
        }
        for r, start in itertools.islice(began.items(), 1):
            what = f"has grown to {size[r]:.3g}, from at most {past[start][r]:.3g} at step {start}"
            self._warn(record, step, list(began), f"{what}, and goes on growing. {_DIVERGES}")

    def _warn(self, record: tuple[str, Any], step: int, replicates: Any, what: str) -> None:
        self.warned = True
        named = [str(self._replicates + int(r)) for r in replicates[:_NAMED]]
        named += ["..."] * (len(replicates) > _NAMED)
        name = record[0] + jax.tree_util.keystr(record[1])
        where = f"step {step} (replicate {', '.join(named)})"
        warn(LimitWarning(f"{self._label}: at {where} {name} {what}"))


def growth_began(largest: np.ndarray) -> int | None:
    """Where a divergence began, as far as the largest size so far tells, step by step.

    Training does not come back from exponential or faster growth over many orders. So: the last
    step is larger than all before, by 10^6 or more than the step where growth began; in the first
    half of the steps between (two at least) it grew tenfold, in the second by a third of all orders
    of magnitude. A jump to another scale is in one half, a power law slows down, a catapult does
    not grow so far. None where nothing of this kind is found.

    >>> growth_began(np.array([1.0, 1.0, 1e2, 1e4, 1e6, 1e8]))
    2
    >>> growth_began(np.array([1.0, 1e8, 2e8, 3e8]))
    """
    orders = np.log10(largest)
    last = len(orders) - 1
    small = np.flatnonzero(orders <= orders[-1] - _ORDERS)
    if not small.size or last < 2 or orders[-1] == orders[-2]:
        return None
    start = min(int(small[-1]), last - 2)
    middle = orders[(start + last) // 2]
    first, second = middle - orders[start], orders[-1] - middle
    return start if first >= 1 and second >= (first + second) / 3 else None


def _size(leaf: np.ndarray) -> np.ndarray:
    """The largest modulus of each replicate; not finite where an entry is not."""
    with np.errstate(over="ignore", invalid="ignore"):
        moduli = np.abs(leaf.reshape(len(leaf), -1)).astype(np.float64)
    return np.max(moduli, axis=1, initial=0.0)


def _in_order(outputs: list[Any], observations: list[Any]) -> Iterator[tuple[str, int, Any]]:
    """Name of the part, step, record; what is observed at a step comes before what it returns."""
    for step, (seen, output) in enumerate(itertools.zip_longest(observations, outputs)):
        yield "observations", step, seen
        yield "outputs", step, output


def _lengths(piece: Records) -> tuple[int, int]:
    """Steps and replicates of a part that is done."""
    for records, more in ((piece.outputs, 0), (piece.observations, 1)):
        for leaf in jax.tree.leaves(records):
            return leaf.shape[1] - more, leaf.shape[0]
    return 0, 0


def _at(records: Any, step: int) -> Any:
    return jax.tree.map(lambda leaf: leaf[:, step], records)
