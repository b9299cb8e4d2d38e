"""States that a run keeps: of all replicates, at chosen steps."""

from collections.abc import Callable
from typing import Any

import jax

from tplimit.training.checkpoint import Checkpoints
from tplimit.transforms.opaque import LimitValue

__all__ = ["Keeper", "Snapshots"]

#: By step, the states of all replicates.
Snapshots = dict[int, tuple[Any, ...]]

#: States at the end are kept unasked as long as those of all replicates take at most so much.
UNASKED_BYTES = 2**30


class Keeper:
    """Keeps states while a run goes on; with a checkpoint also those of its earlier calls.

    Args:
        asked: the steps to keep, from 0 (the initial state) to the last; None for the last one, if
            its states take little memory.
        last: the number of steps.
        parts: replicates that are trained together, part by part.
        checkpoints: where states outlive the process.
    """

    def __init__(
        self,
        asked: tuple[int, ...] | None,
        last: int,
        parts: list[int],
        checkpoints: Checkpoints,
    ) -> None:
        self._steps = (last,) if asked is None else asked
        self._unasked = asked is None
        self._last, self._parts, self._checkpoints = last, parts, checkpoints
        self._kept: dict[tuple[int, int], list[Any]] = {}

    def look(self, step: int, part: int, state: Any, apart: Callable[[Any], list[Any]]) -> None:
        """Keep the states of a part at a step, if they are wanted.

        `apart` gives the states of its replicates, in memory of their own.
        """
        if step not in self._steps:
            return
        if self._unasked and _bytes(state) * sum(self._parts) > UNASKED_BYTES * self._parts[part]:
            self._steps = ()
            return
        states = self._kept[step, part] = apart(state)
        # The very last state is in the checkpoint itself.
        if (step, part) != (self._last, len(self._parts) - 1):
            self._checkpoints.keep(step, part, states)

    def snapshots(self, like: Any) -> Snapshots:
        """What was kept of all replicates; `like` is a state."""
        found: Snapshots = {}
        for step in self._steps:
            states: list[Any] = []
            for part in range(len(self._parts)):
                own = self._kept.get((step, part))
                if own is None:  # an earlier call has come by there
                    own = self._checkpoints.kept(step, part, like)
                if own is None:
                    break
                states += own
            else:
                found[step] = tuple(states)
        return found


def _bytes(state: Any) -> int:
    """Memory of the arrays in a state."""
    trees = [
        (leaf._value, leaf._revealed and leaf._revealed.bank)
        if isinstance(leaf, LimitValue) else leaf
        for leaf in jax.tree.leaves(state)
    ]  # fmt: skip
    arrays = {id(a): a for a in jax.tree.leaves(trees) if hasattr(a, "nbytes")}
    return sum(a.nbytes for a in arrays.values())
