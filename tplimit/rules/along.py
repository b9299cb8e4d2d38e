"""Values along a finite axis, joined one after the other or two halves at a time."""

from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp

from tplimit.values.rearranging import at, rearranged
from tplimit.values.tensors import Tensor

Group = tuple[Tensor, ...]


def parts(values: Group, axis: int, place: slice | int) -> Group:
    """Entries along an axis, of several values."""
    before: tuple[slice, ...] = (slice(None),) * axis
    return tuple(at(value, (*before, place)) for value in values)


def joined(values: Group, axis: int, join: Callable[[Any, Any], Any]) -> Any:
    """Entries along a finite axis joined to one: two halves at a time, each entry once."""
    left: list[Group] = []
    while (length := values[0].shape[axis]) > 1:
        half = length // 2
        if length % 2:
            left.append(parts(values, axis, slice(length - 1, length)))
        first, second = slice(half), slice(half, 2 * half)
        values = join(parts(values, axis, first), parts(values, axis, second))
    for other in reversed(left):
        values = join(values, other)
    return parts(values, axis, 0)


def accumulated(
    value: Tensor, axis: int, reverse: bool, join: Callable[[Tensor, Tensor], Tensor]
) -> Tensor:
    """Every entry along a finite axis joined with all before it."""
    order = list(range(value.shape[axis]))[:: -1 if reverse else 1]
    found: dict[int, Tensor] = {}
    for before, place in zip([None, *order], order, strict=False):
        (entry,) = parts((value,), axis, slice(place, place + 1))
        found[place] = entry if before is None else join(found[before], entry)
    return side_by_side([found[place] for place in sorted(found)], axis)


def side_by_side(values: Sequence[Tensor], axis: int) -> Tensor:
    """Values one after the other along a finite axis."""
    space = next((value.space for value in values if value.space is not None), None)
    return rearranged(values, lambda *arrays: jnp.concatenate(arrays, axis), values[0].axis, space)
