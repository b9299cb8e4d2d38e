"""Shares of matrices along their widths: taken, put among zeros, and side by side."""

from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import numpy as np

from tplimit.interpreter.context import Context
from tplimit.matrices import placed as at_places
from tplimit.values.exponents import Size
from tplimit.values.spans import Span, shares
from tplimit.values.tensors import Matrices, map_items


def between(size: Any, start: Any, limit: Any) -> Span:
    """The share of a width between two marks, each 0 or a multiple of the common width."""
    return Span.taken(size, _ratio(start), _ratio(limit) - _ratio(start))


def among_zeros(size: Any, low: Any, high: Any) -> Span:
    """A width with so much before and after it."""
    return Span.put(size, _ratio(low), _ratio(low) + size.ratio + _ratio(high))


def _ratio(mark: Any) -> Fraction:
    return mark.ratio if isinstance(mark, Size) else Fraction(mark)


def placed(ctx: Context, value: Matrices, rows: Span, columns: Span) -> Matrices:
    """Matrices with their rows and columns at other places."""
    if rows.is_whole and columns.is_whole:
        return value
    return value.map(lambda matrix: at_places.placed(ctx, matrix, rows, columns))


def split(ctx: Context, value: Matrices, axis: int, sizes: Sequence[Size]) -> list[Any]:
    """Shares along a width axis, one after the other."""
    shape: Any = ctx.equation.in_avals[0].shape
    rows, columns = (Span.whole(shape[a]) for a in value.axes)
    along_rows = axis == value.axes[0]
    return [
        placed(ctx, value, *((span, columns) if along_rows else (rows, span)))
        for span in shares(shape[axis], sizes)
    ]


def joined(ctx: Context, values: Sequence[Matrices], axis: int) -> Matrices:
    """Matrices side by side along a width axis."""
    if len(values) == 1:
        return values[0]
    along_rows = axis == values[0].axes[0]

    def of_items(*matrices: Any) -> Any:
        return at_places.side_by_side(ctx, matrices, along_rows)

    arrays = np.broadcast_arrays(*(value.items for value in values))
    return Matrices(map_items(of_items, *arrays), values[0].axes)
