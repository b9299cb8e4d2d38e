"""Sums into bins over a width, written as other operations: histograms, counts, sums by segments.

``scatter_add`` of updates ``u_i`` at computed indices ``k_i`` is

    out_k = x_k + sum_i 1[k_i = k] u_i,

where ``i`` runs over the axes of the indices. If one of them is a width this is a sum over it, with
all that is known of masks and of such sums. Where the width only passes through it stays.
"""

import functools
import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax


def meeting(dimension_numbers: Any, updates: int) -> tuple[int, ...]:
    """Axes of the updates along which they meet in common entries: those of the indices, but for
    those that have an operand for each of their places."""
    apart = set(dimension_numbers.scatter_indices_batching_dims)
    over = _over(dimension_numbers, updates)
    return tuple(axis for place, axis in enumerate(over) if place not in apart)


def _over(dimension_numbers: Any, updates: int) -> list[int]:
    """Axes of the updates that are axes of the indices, in their order."""
    return [axis for axis in range(updates) if axis not in dimension_numbers.update_window_dims]


def into_bins(equation: Any, widths: Sequence[Mapping[int, int]]) -> Callable[..., Any] | None:
    """``scatter_add`` whose updates are summed over a width, by masks; None for others."""
    updates = equation.invars[2].aval
    numbers = equation.params["dimension_numbers"]
    bins = numbers.scatter_dims_to_operand_dims
    over_width = any(axis in widths[2] for axis in meeting(numbers, updates.ndim))
    # Windows of several bins at once are refused, and so are bins along a width.
    one_by_one = set(numbers.inserted_window_dims) == set(bins)
    if not over_width or not one_by_one or any(axis in widths[0] for axis in bins):
        return None
    clip = equation.params["mode"] is lax.GatherScatterMode.CLIP
    return functools.partial(_into_bins, numbers, clip)


def _into_bins(numbers: Any, clip: bool, operand: Any, index: Any, updates: Any) -> Any:
    bins, apart = numbers.scatter_dims_to_operand_dims, numbers.scatter_indices_batching_dims
    over, windows = _over(numbers, updates.ndim), numbers.update_window_dims
    # Axes: those of the indices, then the bins, then what is left of the operand.
    summands = lax.transpose(updates, (*over, *windows))
    lengths = [operand.shape[axis] for axis in bins]
    shape = (*summands.shape[: len(over)], *lengths, *summands.shape[len(over) :])
    marks = []
    for component, length in enumerate(lengths):
        place = lax.index_in_dim(index, component, index.ndim - 1, keepdims=False)
        place = jnp.clip(place, 0, length - 1) if clip else place
        names = np.arange(length, dtype=index.dtype)
        at = lax.broadcast_in_dim(place, shape, range(len(over)))
        marks.append(at == lax.broadcast_in_dim(names, shape, (len(over) + component,)))
    there = functools.reduce(operator.and_, marks)
    rest = range(len(over) + len(bins), len(shape))
    values = lax.broadcast_in_dim(summands, shape, (*range(len(over)), *rest))
    found = lax.select(there, values, lax.full_like(values, 0))
    met = [place for place in range(len(over)) if place not in apart]
    total = lax.reduce(found, np.zeros((), found.dtype), lax.add, met)
    # What is left, by the axis of the operand that it is.
    own = dict(zip(apart, numbers.operand_batching_dims, strict=True))
    used = {*bins, *own.values()}
    left = [own[place] for place in sorted(own)]
    left += [*bins, *(axis for axis in range(operand.ndim) if axis not in used)]
    return operand + lax.transpose(total, np.argsort(left))


__all__ = ["into_bins", "meeting"]
