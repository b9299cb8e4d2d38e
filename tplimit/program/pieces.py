"""Operations on arrays with an axis of length ``k + n``, as operations on their pieces.

An operation takes an equation of a jaxpr at one width, its operands, some of them as pieces, and
how its results are cut where the equation itself does not tell. ``beside.py`` says what this is
for.
"""

import functools
import itertools
import math
import operator
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import lax

from tplimit import _jax
from tplimit._jax import primitives as p, split_p, stack_p, unstack_p
from tplimit.program.traits import (
    Identity,
    Logarithm,
    Power,
    Product,
    Quotient,
    Relation,
    Smooth,
    kind_of,
)

#: Operations entry by entry that no kind tells.
_ENTRYWISE = frozenset(
    [
        p.abs_p, p.add_jaxvals_p, p.add_p, p.and_p, p.ceil_p, p.clamp_p, p.convert_element_type_p,
        p.floor_p, p.is_finite_p, p.max_p, p.min_p, p.neg_p, p.not_p, p.or_p, p.pow_p,
        p.reduce_precision_p, p.rem_p, p.round_p, p.select_n_p, p.sign_p, p.sub_p, p.xor_p,
    ]
)  # fmt: skip
_KINDS = (Identity, Logarithm, Power, Quotient, Relation, Smooth)


class Form(NamedTuple):
    """How an array is cut at one width: an axis, and the lengths of the pieces along it."""

    axis: int
    lengths: tuple[int, ...]

    def cut(self, length: int) -> tuple[int, ...]:
        """The same first piece and the rest of another length, at another width."""
        return self.lengths[0], length - self.lengths[0]


class Pieces(NamedTuple):
    """An array as its pieces."""

    axis: int
    arrays: tuple[Any, ...]

    @property
    def lengths(self) -> tuple[int, ...]:
        return tuple(array.shape[self.axis] for array in self.arrays)


class Refusal(Exception):
    """Why an operation on pieces is not written as others."""


#: From an equation, its operands and the forms of its results to these.
Operation = Callable[[Any, Sequence[Any], Sequence[Form | None]], list[Any]]


def joined(value: Any) -> Any:
    """The array itself."""
    if not isinstance(value, Pieces):
        return value
    return value.arrays[0] if len(value.arrays) == 1 else lax.concatenate(value.arrays, value.axis)


def cut(value: Any, axis: int, marks: Sequence[int]) -> Pieces:
    """Pieces between marks along an axis, at which it is cut besides."""
    arrays = value.arrays if isinstance(value, Pieces) else (value,)
    if isinstance(value, Pieces) and value.axis != axis:
        raise Refusal("An array with two axes of the form k + n.")
    found, start = [], 0
    for array in arrays:
        length = array.shape[axis]
        inside = [m - start for m in marks if start < m < start + length]
        ends = [0, *inside, length]
        found += [
            array if b - a == length else lax.slice_in_dim(array, a, b, axis=axis)
            for a, b in itertools.pairwise(ends)
        ]
        start += length
    return Pieces(axis, tuple(found))


def marks_of(*values: Any) -> list[int]:
    """Where some of these arrays are cut."""
    pieces = [value for value in values if isinstance(value, Pieces)]
    return sorted({m for value in pieces for m in itertools.accumulate(value.lengths)})


def _bound(equation: Any, *arrays: Any, **changed: Any) -> Any:
    return equation.primitive.bind(*arrays, **{**equation.params, **changed})


# --- operations


def _entrywise(equation: Any, operands: Sequence[Any], outs: Any) -> list[Any]:
    axis = next(value.axis for value in operands if isinstance(value, Pieces))
    marks = marks_of(*operands)
    # What has length one along the axis stands beside every piece.
    parts = [cut(v, axis, marks).arrays if _varies(v, axis) else None for v in operands]
    count = next(len(part) for part in parts if part is not None)
    arrays = [
        _bound(equation, *(v if x is None else x[i] for v, x in zip(operands, parts, strict=True)))
        for i in range(count)
    ]
    return [Pieces(axis, tuple(arrays))]


def _varies(value: Any, axis: int) -> bool:
    return isinstance(value, Pieces) or (jnp.ndim(value) > axis and value.shape[axis] != 1)


def _first(value: Any) -> Any:
    return value.arrays[0] if isinstance(value, Pieces) else value


def _each(value: Pieces, axis: int, function: Callable[[Any], Any]) -> list[Any]:
    """A function of every piece, the pieces of the result standing along an axis."""
    return [Pieces(axis, tuple(map(function, value.arrays)))]


def _concatenate(equation: Any, operands: Sequence[Any], outs: Any) -> list[Any]:
    dimension = equation.params["dimension"]
    axes = {value.axis for value in operands if isinstance(value, Pieces)}
    if axes <= {dimension}:
        arrays = [a for v in operands for a in (v.arrays if isinstance(v, Pieces) else (v,))]
        return [Pieces(dimension, tuple(arrays))]
    (axis,) = axes
    parts = [cut(value, axis, marks_of(*operands)).arrays for value in operands]
    arrays = [lax.concatenate(those, dimension) for those in zip(*parts, strict=True)]
    return [Pieces(axis, tuple(arrays))]


def _stack(equation: Any, operands: Sequence[Any], outs: Any) -> list[Any]:
    axis = next(value.axis for value in operands if isinstance(value, Pieces))
    parts = [cut(value, axis, marks_of(*operands)).arrays for value in operands]
    stacked = [_bound(equation, *those) for those in zip(*parts, strict=True)]
    return [Pieces(axis + (equation.params["axis"] <= axis), tuple(stacked))]


def _unstack(equation: Any, operands: Sequence[Any], outs: Any) -> list[Any]:
    (value,), axis = operands, equation.params["axis"]
    if axis == value.axis:
        raise Refusal("The entries along an axis of the form k + n, one by one.")
    columns = zip(*(_bound(equation, array) for array in value.arrays), strict=True)
    return [Pieces(value.axis - (axis < value.axis), tuple(column)) for column in columns]


def _broadcast(equation: Any, operands: Sequence[Any], outs: Any) -> list[Any]:
    (value, *_), (out,) = operands, outs
    shape, where = equation.params["shape"], equation.params["broadcast_dimensions"]
    if not isinstance(value, Pieces):
        axis, lengths = out.axis, out.lengths
        if axis in where and value.shape[where.index(axis)] != 1:
            raise Refusal("An array with an axis of the form k + n that is made as a whole.")
        arrays = [value] * len(lengths)
    else:
        axis, lengths, arrays = where[value.axis], value.lengths, list(value.arrays)
    made = [
        lax.broadcast_in_dim(array, (*shape[:axis], length, *shape[axis + 1 :]), where)
        for array, length in zip(arrays, lengths, strict=True)
    ]
    return [Pieces(axis, tuple(made))]


def _transpose(equation: Any, operands: Sequence[Any], outs: Any) -> list[Any]:
    (value,), order = operands, equation.params["permutation"]
    return _each(value, order.index(value.axis), lambda a: lax.transpose(a, order))


def _reshape(equation: Any, operands: Sequence[Any], outs: Any) -> list[Any]:
    """Of the other axes, those before this one and those behind it by themselves."""
    value, shape = operands[0], equation.params["new_sizes"]
    if equation.params["dimensions"] is not None or not isinstance(value, Pieces):
        raise Refusal("An axis of the form k + n that is split or merged.")
    old, total = _first(value).shape, sum(value.lengths)
    before = math.prod(old[: value.axis])
    places = [
        axis
        for axis, length in enumerate(shape)
        if length == total and math.prod(shape[:axis]) == before
    ]
    if not places:
        raise Refusal("An axis of the form k + n that is split or merged.")
    axis = places[0]
    return _each(
        value,
        axis,
        lambda a: lax.reshape(a, (*shape[:axis], a.shape[value.axis], *shape[axis + 1 :])),
    )


def _squeeze(equation: Any, operands: Sequence[Any], outs: Any) -> list[Any]:
    (value,), gone = operands, equation.params["dimensions"]
    axis = value.axis - sum(1 for one in gone if one < value.axis)
    return _each(value, axis, lambda a: lax.squeeze(a, gone))


def _slice(equation: Any, operands: Sequence[Any], outs: Any) -> list[Any]:
    (value,), params = operands, equation.params
    _not_of_width(value)
    axis, strides = value.axis, params["strides"]
    start, limit = params["start_indices"][axis], params["limit_indices"][axis]
    if strides is not None and strides[axis] != 1:
        raise Refusal("A strided slice along an axis of the form k + n.")
    pieces = cut(value, axis, [start, limit])
    taken = [
        lax.slice(
            array,
            [0 if i == axis else s for i, s in enumerate(params["start_indices"])],
            [array.shape[axis] if i == axis else s for i, s in enumerate(params["limit_indices"])],
            strides,
        )
        for array, end in zip(pieces.arrays, itertools.accumulate(pieces.lengths), strict=True)
        if start < end <= limit
    ]
    return [Pieces(axis, tuple(taken))]


def _not_of_width(value: Any) -> None:
    if not isinstance(value, Pieces):
        raise Refusal("A share of a width and single coordinates besides are taken.")


def _split(equation: Any, operands: Sequence[Any], outs: Any) -> list[Any]:
    (value,), sizes, axis = operands, equation.params["sizes"], equation.params["axis"]
    _not_of_width(value)
    if axis != value.axis:
        columns = zip(*(_bound(equation, array) for array in value.arrays), strict=True)
        return [Pieces(value.axis, tuple(column)) for column in columns]
    ends = list(itertools.accumulate(sizes))
    pieces = cut(value, axis, ends)
    places = list(itertools.accumulate(pieces.lengths))
    return [
        Pieces(
            axis,
            tuple(a for a, at in zip(pieces.arrays, places, strict=True) if end - size < at <= end),
        )
        for size, end in zip(sizes, ends, strict=True)
    ]


def _pad(equation: Any, operands: Sequence[Any], outs: Any) -> list[Any]:
    (value, filler), (out,) = operands, outs
    config = list(equation.params["padding_config"])
    axis = value.axis if isinstance(value, Pieces) else out.axis
    low, high, interior = config[axis]
    if min(low, high) < 0 or interior:
        raise Refusal("An axis of the form k + n is cut or dilated by padding.")
    config[axis] = (0, 0, 0)
    arrays = value.arrays if isinstance(value, Pieces) else (value,)
    padded = [lax.pad(array, filler, config) for array in arrays]

    def nothing(length: int) -> list[Any]:
        shape = [length if i == axis else d for i, d in enumerate(padded[0].shape)]
        return [lax.broadcast(filler, shape)] if length else []

    return [Pieces(axis, (*nothing(low), *padded, *nothing(high)))]


def _sum(equation: Any, operands: Sequence[Any], outs: Any) -> list[Any]:
    (value,), axes = operands, equation.params["axes"]
    sums = [_bound(equation, array) for array in value.arrays]
    if value.axis in axes:
        return [functools.reduce(operator.add, sums)]
    return [Pieces(value.axis - sum(1 for one in axes if one < value.axis), tuple(sums))]


def _contraction(equation: Any, operands: Sequence[Any], outs: Any) -> list[Any]:
    """Over the axis a sum of contractions; else those of every piece side by side."""
    (ca, cb), (ba, bb) = equation.params["dimension_numbers"]
    a, b = operands
    for mine, others in ((ca, cb), (ba, bb)):
        met = [
            (i, j)
            for i, j in zip(mine, others, strict=True)
            if (isinstance(a, Pieces) and a.axis == i) or (isinstance(b, Pieces) and b.axis == j)
        ]
        if not met:
            continue
        ((i, j),) = met
        marks = marks_of(a, b)
        pairs = zip(cut(a, i, marks).arrays, cut(b, j, marks).arrays, strict=True)
        found = [_bound(equation, x, y) for x, y in pairs]
        return [
            functools.reduce(operator.add, found)
            if mine is ca
            else Pieces(tuple(mine).index(i), tuple(found))
        ]
    if isinstance(a, Pieces) and isinstance(b, Pieces):
        raise Refusal("An array with two axes of the form k + n.")
    one, contracted, batch = (a, ca, ba) if isinstance(a, Pieces) else (b, cb, bb)
    free = [i for i in range(_first(one).ndim) if i not in (*contracted, *batch)]
    before = len(batch) + (0 if one is a else _first(a).ndim - len(ca) - len(ba))
    swap = (lambda x: (x, b)) if one is a else (lambda x: (a, x))
    return _each(one, before + free.index(one.axis), lambda x: _bound(equation, *swap(x)))


def _scan(equation: Any, operands: Sequence[Any], outs: Any) -> list[Any]:
    """A loop over the pieces: inside they are put together, and taken apart at the end."""
    params = equation.params
    constants, carried = _jax.scan_layout(params)
    body = _jax.jaxpr_as_fun(params["jaxpr"])
    fixed, start, along = (
        list(operands[:constants]),
        list(operands[constants : constants + carried]),
        list(operands[constants + carried :]),
    )
    if any(isinstance(value, Pieces) and value.axis == 0 for value in along):
        raise Refusal("A loop along an axis of the form k + n.")
    turned = [_one_turn(value) for value in along]

    def turn(state: Any, entries: Any) -> Any:
        values = [*fixed, *state, *entries]
        results = body(*(joined(_restored(v)) for v in values))
        after = [_like(r, v) for r, v in zip(results[:carried], start, strict=True)]
        rows = [
            r if out is None else _arrays(r, out.axis - 1, out.lengths)
            for r, out in zip(results[carried:], outs[carried:], strict=True)
        ]
        return after, rows

    end, rows = lax.scan(
        turn, list(map(_bare, start)), turned, length=params["length"],
        reverse=params["reverse"], unroll=params["unroll"],
    )  # fmt: skip
    ended = [
        Pieces(v.axis, tuple(r.arrays)) if isinstance(v, Pieces) else r
        for r, v in zip(map(_restored, end), start, strict=True)
    ]
    stacked = [
        r if out is None else Pieces(out.axis, tuple(_restored(r).arrays))
        for r, out in zip(rows, outs[carried:], strict=True)
    ]
    return [*ended, *stacked]


def _bare(value: Any) -> Any:
    """Pieces as a tree whose leaves are arrays."""
    return {value.axis: list(value.arrays)} if isinstance(value, Pieces) else value


def _restored(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    ((axis, arrays),) = value.items()
    return Pieces(axis, tuple(arrays))


def _one_turn(value: Any) -> Any:
    """The same for what a loop takes an entry of at every turn."""
    return {value.axis - 1: list(value.arrays)} if isinstance(value, Pieces) else value


def _arrays(array: Any, axis: int, lengths: Sequence[int]) -> Any:
    return _bare(cut(array, axis, list(itertools.accumulate(lengths))))


def _like(result: Any, value: Any) -> Any:
    return _arrays(result, value.axis, value.lengths) if isinstance(value, Pieces) else result


_OPERATIONS: dict[Any, Operation] = {
    p.broadcast_in_dim_p: _broadcast,
    p.concatenate_p: _concatenate,
    p.dot_general_p: _contraction,
    p.pad_p: _pad,
    p.reduce_sum_p: _sum,
    p.reshape_p: _reshape,
    p.scan_p: _scan,
    p.slice_p: _slice,
    p.squeeze_p: _squeeze,
    p.transpose_p: _transpose,
    split_p: _split,
    stack_p: _stack,
    unstack_p: _unstack,
}


def _is_entrywise(primitive: Any) -> bool:
    kind = kind_of(primitive)
    product = isinstance(kind, Product) and kind.entrywise
    return primitive in _ENTRYWISE or isinstance(kind, _KINDS) or product


def operation(primitive: Any) -> Operation | None:
    """What a primitive does to pieces, if that is known."""
    return _OPERATIONS.get(primitive) or (_entrywise if _is_entrywise(primitive) else None)


__all__ = ["Form", "Operation", "Pieces", "Refusal", "joined", "operation"]
