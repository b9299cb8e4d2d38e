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


def summed_axes(dimension_numbers: Any, updates: int) -> tuple[int, ...]:
    """Axes of the updates along which they meet in common entries: those of the indices, but for
    those that have an operand for each of their places."""
    windows = set(dimension_numbers.update_window_dims)
    over = [axis for axis in range(updates) if axis not in windows]
    # They are in the order of the axes of the indices, whose last one holds the components.
    each_its_own = set(dimension_numbers.scatter_indices_batching_dims)
    return tuple(axis for place, axis in enumerate(over) if place not in each_its_own)


def into_bins(equation: Any, widths: Sequence[Mapping[int, int]]) -> Callable[..., Any] | None:
    """``scatter_add`` whose updates are summed over a width, by masks; None for others."""
    operand, _, updates = (var.aval for var in equation.invars)
    numbers = equation.params["dimension_numbers"]
    over = summed_axes(numbers, updates.ndim)
    bins = numbers.scatter_dims_to_operand_dims
    plain = set(numbers.inserted_window_dims) == set(bins) and not numbers.operand_batching_dims
    if not any(axis in widths[2] for axis in over) or any(axis in widths[0] for axis in bins):
        return None
    if not plain:  # windows of several bins at once
        return None
    lengths = [operand.shape[axis] for axis in bins]
    clip = equation.params["mode"] is lax.GatherScatterMode.CLIP
    return functools.partial(_into_bins, numbers, over, lengths, clip)


def _into_bins(
    numbers: Any, over: tuple[int, ...], lengths: Sequence[int], clip: bool, *operands: Any
) -> Any:
    operand, index, updates = operands
    kept = [axis for axis in range(operand.ndim) if axis not in numbers.inserted_window_dims]
    # Axes: those of the indices, then the bins, then what is left of the operand.
    windows = numbers.update_window_dims
    summands = lax.transpose(updates, (*over, *windows))
    bins = range(len(over), len(over) + len(lengths))
    shape = (*summands.shape[: len(over)], *lengths, *summands.shape[len(over) :])
    marks = []
    for place, (axis, length) in enumerate(zip(bins, lengths, strict=True)):
        component = lax.index_in_dim(index, place, index.ndim - 1, keepdims=False)
        component = jnp.clip(component, 0, length - 1) if clip else component
        at = lax.broadcast_in_dim(component, shape, range(len(over)))
        names = lax.broadcast_in_dim(np.arange(length, dtype=index.dtype), shape, (axis,))
        marks.append(at == names)
    there = functools.reduce(operator.and_, marks)
    values = lax.broadcast_in_dim(
        summands, shape, (*range(len(over)), *range(bins.stop, len(shape)))
    )
    found = lax.select(there, values, lax.full_like(values, 0))
    total = lax.reduce(found, np.zeros((), found.dtype), lax.add, range(len(over)))
    order = np.argsort([*numbers.scatter_dims_to_operand_dims, *kept])
    return operand + lax.transpose(total, order)


__all__ = ["into_bins", "summed_axes"]
