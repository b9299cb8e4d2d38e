"""Which sums cancel: leave exactly nothing of a term, by the mathematics and not by chance.

``h(theta_1) - h(theta_0)`` loses its leading term where the two agree in the limit. That is no
matter of sampling: it holds for whatever particles. So it is found before the run, in a rehearsal
on a few particles in double precision, where what remains of such a sum is round-off of its
summands and nothing else is (``transforms/rehearsal.py``). Exponents, and with them everything
that follows, are then those of the terms that are left.

Sums are asked about in the order of interpretation, the same in a rehearsal and in the run.

What an earlier call has returned is only numbers: a vector compared with the same one computed anew
cancels in the run alone, up to round-off. That is noticed there (``round_off``), and refused. Of a
term below others that is hidden by the round-off of a run in the rehearsal already, such as the
next term of ``g / (|g| + 1e-8)``, only the order is known.
"""

import functools
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

#: Name of a sum: its equation, and how many were asked about there before it.
Name = tuple[int, int]

#: Round-off of a run leaves less of the summands of a sum that cancels than this many units, and
#: in half precision than this share.
_UNITS, _SHARE = 4096, 0.1

#: What becomes of an entry of a sum: it cancels, or the round-off of a run hides what is left.
GONE, HIDDEN = 1, 2

#: Two ways to compute one vector differ by less than this many units on all of some coordinates; in
#: half precision by less than this share.
_ALIKE, _ALIKE_SHARE, _SOME = 16, 0.01, 256


class Question(NamedTuple):
    """A sum, the sum of the absolute values of its summands, and the axis of its width or None.

    Attributes:
        hidden_share: of the summands, below which round-off hides what is left; -1 where that is
            of no interest.
    """

    name: Name
    total: Any
    size: Any
    axis: int | None
    hidden_share: float


class Balance(NamedTuple):
    """A sum of coefficients of one order, and the sum of the absolute values of its summands.

    Attributes:
        of: both, from arrays.
        arrays: what is summed.
        axes: of each the axis of the width that the sum has, or None.
    """

    of: Callable[..., tuple[Any, Any]]
    arrays: Sequence[Any]
    axes: Sequence[int | None]

    @property
    def whole(self) -> tuple[Any, Any]:
        return self.of(*self.arrays)

    @property
    def some(self) -> tuple[Any, Any]:
        """On some of the coordinates."""
        return self.of(*map(_some, self.arrays, self.axes))


def _some(array: Any, axis: int | None) -> Any:
    if axis is None:
        return array
    return lax.slice_in_dim(array, 0, min(_SOME, array.shape[axis]), axis=axis)


def of_summands(summands: Sequence[Any], axis: int | None = None) -> Balance:
    """The balance of an explicit sum, of vectors along an axis or of numbers."""
    arrays = jnp.broadcast_arrays(*map(jnp.asarray, summands))
    return Balance(_added, arrays, [axis] * len(arrays))


def _added(*arrays: Any) -> tuple[Any, Any]:
    sizes = map(lax.abs, arrays)
    return functools.reduce(operator.add, arrays), functools.reduce(operator.add, sizes)


def round_off(balance: Balance, axis: int) -> jax.Array:
    """Whether vectors along an axis add up to round-off, though not to exact zeros."""
    total, size = balance.some
    size = size + jnp.mean(size, axis, keepdims=True)
    alike = (jnp.abs(total) <= hidden_share(total.dtype) * size) & jnp.isfinite(size)
    return jnp.any(jnp.all(alike, axis) & jnp.any(total != 0, axis))


def hidden_share(dtype: Any) -> float:
    """What is left of the summands of a sum is hidden below this share by round-off."""
    return min(_ALIKE * float(jnp.finfo(dtype).eps), _ALIKE_SHARE)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Held:
    """Whether a sum that was said to cancel does so in a run."""

    ok: Any
    name: Name = field(metadata={"static": True})


class Sums:
    """The sums of one interpretation.

    Attributes:
        cancelled: what becomes of the entries of sums of which some are `GONE` or `HIDDEN`, with
            length 1 along the width.
        questions: all that have been asked about, where a rehearsal wants them; else None.
        held: what the run has to confirm.
    """

    def __init__(self, cancelled: Mapping[Name, np.ndarray], rehearsing: bool = False) -> None:
        self.cancelled = cancelled
        self.questions: list[Question] | None = [] if rehearsing else None
        self.held: list[Held] = []
        self._asked: dict[int, int] = {}

    def left_of(
        self, equation: object, balance: Callable[[], Balance], axis: int | None, hides: bool
    ) -> np.ndarray | None:
        """What becomes of the entries of a sum; None where its summands leave what they seem to."""
        number = self._asked.get(id(equation), 0)
        self._asked[id(equation)] = number + 1
        name = (id(equation), number)
        found = self.cancelled.get(name)
        if self.questions is not None:
            total, size = balance().whole
            share = hidden_share(total.dtype) if hides else -1.0
            self.questions.append(Question(name, total, size, axis, share))
        elif found is not None and np.any(gone := found == GONE):
            self.held.append(Held(_confirmed(gone, *balance().whole, axis), name))
        return found


def _confirmed(mask: np.ndarray, total: Any, size: Any, axis: int | None) -> jax.Array:
    """Whether of the marked entries of a sum nothing is left but round-off, on no coordinate."""
    if axis is not None:
        size = size + jnp.mean(size, axis, keepdims=True)
    left = min(_UNITS * float(jnp.finfo(total.dtype).eps), _SHARE)
    return ~jnp.any(mask & (jnp.abs(total) > left * size))
