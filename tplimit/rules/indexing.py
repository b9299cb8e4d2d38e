"""Parts of arrays: slices, concatenation, padding, gather and scatter along finite axes."""

import itertools
from dataclasses import replace
from typing import Any, NoReturn

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from tplimit._jax import primitives as p, split_p, stack_p, tile_p, unstack_p
from tplimit.algebra import expansion
from tplimit.algebra.arithmetic import common_axis
from tplimit.errors import NoLimitError
from tplimit.interpreter.context import Context
from tplimit.interpreter.table import RULES
from tplimit.matrices import matrices
from tplimit.program.scatters import meeting
from tplimit.rules import shares
from tplimit.rules.layout import NO_ORDER, divided, finite_only, moved
from tplimit.rules.terms import unsupported
from tplimit.values import patches
from tplimit.values.exponents import EXACT_ZERO, Exponents, Size
from tplimit.values.rearranging import (
    at,
    have_common_exponents,
    have_equal_exponents,
    with_common_exponents,
)
from tplimit.values.tensors import Matrices, Tensor, Term, Value, map_items


@RULES(p.slice_p)
def slice_(ctx: Context, value: Value, **params: Any) -> Value:
    """A part along finite axes, or a share of a width such as one gate of (3n)."""
    starts, limits, strides = (
        params["start_indices"], params["limit_indices"], params["strides"]
    )  # fmt: skip
    shape = ctx.equation.in_avals[0].shape
    for axis, dim in enumerate(shape):
        if isinstance(dim, Size) and (starts[axis] != 0 or limits[axis] != dim):
            _check_share(ctx, starts[axis], limits[axis])
        if isinstance(dim, Size) and strides is not None and strides[axis] != 1:
            ctx.fail(f"A strided slice along a width. {NO_ORDER}", NoLimitError)
    if isinstance(value, Matrices):
        index = tuple(
            slice(starts[a], limits[a], 1 if strides is None else strides[a])
            for a in value.finite_axes
        )
        spans = [shares.between(shape[axis], starts[axis], limits[axis]) for axis in value.axes]
        return shares.placed(ctx, Matrices(value.items[index], value.axes), *spans)
    return moved(ctx, value)


def _check_share(ctx: Context, start: Any, limit: Any) -> None:
    if (start == 0 or isinstance(start, Size)) and isinstance(limit, Size):
        return
    ctx.fail(
        f"Single coordinates of a width are taken (from {start} to {limit}). {NO_ORDER}",
        NoLimitError,
        "Average over the width, or keep this part in a separate parameter of finite size.",
    )


@RULES(split_p)
def split(ctx: Context, value: Value, sizes: tuple[Any, ...], axis: int) -> list[Value]:
    """Parts along a finite axis, or shares of a width such as the gates of (3n)."""
    whole = ctx.equation.in_avals[0].shape[axis]
    if isinstance(whole, Size) and not all(isinstance(size, Size) for size in sizes):
        _check_share(ctx, 1, 1)
    if isinstance(value, Matrices):
        if axis in value.axes:
            return shares.split(ctx, value, axis, sizes)
        place = value.finite_axes.index(axis)
        ends = list(np.cumsum(sizes)[:-1])
        return [Matrices(part, value.axes) for part in np.split(value.items, ends, axis=place)]
    marks = np.cumsum([0, *(ctx.size(size) for size in sizes)])
    parts: list[Value] = []
    for start, end in itertools.pairwise(marks):
        index = tuple(
            slice(int(start), int(end)) if i == axis else slice(None)
            for i in range(len(value.shape))
        )
        parts.append(at(value, index))
    divided(ctx, value.space)
    return parts


@RULES(p.concatenate_p)
def concatenate(ctx: Context, *values: Value, dimension: int) -> Value:
    """Arrays put side by side; each keeps its exponents. Widths side by side make (k n)."""
    if any(isinstance(value, Matrices) for value in values):
        return _concatenate_matrices(ctx, values, dimension)
    tensors = [value for value in values if isinstance(value, Tensor)]
    if not any(value.axis == dimension for value in tensors):
        common_axis(ctx, *tensors)
    elif not have_equal_exponents(tensors):
        tensors = with_common_exponents(tensors, ctx.terms)
    return moved(ctx, *tensors, places=range(len(tensors)))


@RULES(stack_p)
def stack(ctx: Context, *values: Value, axis: int) -> Value:
    """Arrays side by side along a new axis; each keeps its exponents."""
    if any(isinstance(value, Matrices) for value in values):
        return _stack_matrices(ctx, values, axis)
    common_axis(ctx, *(value for value in values if isinstance(value, Tensor)))
    return moved(ctx, *values, places=range(len(values)))


def _stack_matrices(ctx: Context, values: tuple[Value, ...], axis: int) -> Matrices:
    arrays = [value for value in values if isinstance(value, Matrices)]
    if len(arrays) < len(values):
        ctx.fail("Matrices and other arrays are stacked.")
    place = sum(1 for i in arrays[0].finite_axes if i < axis)
    axes = tuple(a + (a >= axis) for a in arrays[0].axes)
    return Matrices(np.stack([value.items for value in arrays], axis=place), (axes[0], axes[1]))


@RULES(unstack_p)
def unstack(ctx: Context, value: Value, axis: int) -> list[Value]:
    """The entries along a finite axis, one by one."""
    if isinstance(value, Matrices):
        finite_only(ctx, value, (axis,))
        place = value.finite_axes.index(axis)
        axes = tuple(a - (a > axis) for a in value.axes)
        parts = [np.take(value.items, [k], place) for k in range(value.items.shape[place])]
        return [Matrices(np.squeeze(part, place), (axes[0], axes[1])) for part in parts]
    if value.axis == axis:
        _check_share(ctx, 0, 1)
    return [at(value, (*[slice(None)] * axis, k)) for k in range(value.shape[axis])]


@RULES(tile_p)
def tile(ctx: Context, value: Value, reps: tuple[int, ...]) -> Value:
    """Repetition side by side; a repeated width is a wider one made of equal shares."""
    if not isinstance(value, Matrices):
        return moved(ctx, value)
    out = Matrices(np.tile(value.items, [reps[a] for a in value.finite_axes]), value.axes)
    for axis in value.axes:
        out = shares.joined(ctx, [out] * reps[axis], axis)
    return out


def _concatenate_matrices(ctx: Context, values: tuple[Value, ...], dimension: int) -> Matrices:
    if not all(isinstance(value, Matrices) for value in values):
        ctx.fail("Matrices and other arrays are concatenated.")
    arrays = [value for value in values if isinstance(value, Matrices)]
    if dimension in arrays[0].axes:
        return shares.joined(ctx, arrays, dimension)
    place = arrays[0].finite_axes.index(dimension)
    items = np.concatenate([value.items for value in arrays], axis=place)
    return Matrices(items, arrays[0].axes)


@RULES(p.pad_p)
def pad(ctx: Context, value: Value, filler: Value, padding_config: Any) -> Value:
    """Padding along finite axes."""
    assert isinstance(filler, Tensor)
    if isinstance(value, Matrices):
        return _pad_matrices(ctx, value, filler, padding_config)
    if value.axis is not None and not _by_shares(padding_config[value.axis]):
        ctx.fail("A width is padded: its coordinates would no longer be alike.", NoLimitError)
    if value.axis is not None and tuple(padding_config[value.axis]) != (0, 0, 0):
        return _other_shares(ctx, value, filler)
    if filler.vanishes:
        filler = _zeros_like(value, filler)
    return moved(ctx, value, filler, places=(0, 1))


def _zeros_like(value: Tensor, filler: Tensor) -> Tensor:
    """Zeros with the exponents of a value where these are alike, so that they stay so."""
    if not have_common_exponents([value]):
        return filler
    terms = tuple(
        Term(
            filler.coefficient,
            t.exponents,
            zeros=None if t.zeros is None else np.ones((), bool),
            parity=replace(t.parity, fresh=False),
        )
        for t in value.terms
    )
    return replace(filler, terms=terms, remainder=value.remainder)


def _by_shares(config: Any) -> bool:
    low, high, interior = config
    return interior == 0 and all(isinstance(k, Size) or k == 0 for k in (low, high))


def _other_shares(ctx: Context, value: Tensor, filler: Tensor) -> Tensor:
    """A share of a width put back among the others, which are zero."""
    if not filler.vanishes:
        ctx.fail("The other shares of a width are filled with something else than zeros.")
    (value,) = with_common_exponents([value], ctx.terms)
    filler = _zeros_like(value, filler)
    known = tuple(replace(term, zeros=np.ones((), bool)) for term in filler.terms)
    return moved(ctx, value, replace(filler, terms=known), places=(0, 1))


def _pad_matrices(ctx: Context, value: Matrices, filler: Tensor, config: Any) -> Matrices:
    if not filler.vanishes:
        ctx.fail("A matrix is padded with something else than zeros.")
    if not all(_by_shares(config[axis]) for axis in value.axes):
        ctx.fail("A width is padded: its coordinates would no longer be alike.", NoLimitError)
    sizes = ctx.equation.in_avals[0].shape
    spans = [shares.among_zeros(sizes[axis], *config[axis][:2]) for axis in value.axes]
    value = shares.placed(ctx, value, *spans)
    out = ctx.equation.out_avals[0]
    shape = tuple(int(d) for d in out.shape if not isinstance(d, Size))
    matrix = next(iter(value.items.flat))
    items = np.empty(shape, dtype=object)
    for index in np.ndindex(shape):
        items[index] = matrices.zero(matrix.rows, matrix.columns)
    for index in np.ndindex(value.items.shape):
        target = tuple(
            int(config[axis][0]) + i * (1 + int(config[axis][2]))
            for axis, i in zip(value.finite_axes, index, strict=True)
        )
        items[target] = value.items[index]
    return Matrices(items, value.axes)


def _index_number(ctx: Context, value: Value) -> int | None:
    assert isinstance(value, Tensor)
    constant = value.constant
    return None if constant is None else int(constant)


@RULES(p.dynamic_slice_p)
def dynamic_slice(ctx: Context, value: Value, *starts: Value, slice_sizes: Any) -> Value:
    """A part along finite axes, at a position computed by the program."""
    shape = ctx.equation.in_avals[0].shape
    for dim, size in zip(shape, slice_sizes, strict=True):
        if isinstance(dim, Size) and size != dim:
            _check_share(ctx, "a computed place", size)
    if isinstance(value, Matrices):
        numbers = [_index_number(ctx, starts[axis]) for axis in value.finite_axes]
        if any(number is None for number in numbers):
            ctx.fail("A stack of matrices is indexed by a number that is not known before the run.")
        index = tuple(
            slice(k, k + int(slice_sizes[axis]))
            for axis, k in zip(
                value.finite_axes, _clamped(value, numbers, slice_sizes), strict=True
            )
        )
        return Matrices(value.items[index], value.axes)
    return moved(ctx, value, *starts)


def _clamped(value: Matrices, numbers: list[int | None], sizes: Any) -> list[int]:
    lengths = value.items.shape
    return [
        min(max(int(k or 0), 0), length - int(sizes[axis]))
        for k, length, axis in zip(numbers, lengths, value.finite_axes, strict=True)
    ]


@RULES(p.dynamic_update_slice_p)
def dynamic_update_slice(ctx: Context, value: Value, update: Value, *starts: Value) -> Value:
    """Replacement of a part along finite axes."""
    shape, part = ctx.equation.in_avals[0].shape, ctx.equation.in_avals[1].shape
    if any(isinstance(d, Size) and d != e for d, e in zip(shape, part, strict=True)):
        ctx.fail(f"A part of a width is replaced. {NO_ORDER}", NoLimitError)
    if isinstance(value, Matrices):
        numbers = [_index_number(ctx, starts[axis]) for axis in value.finite_axes]
        if not isinstance(update, Matrices) or any(number is None for number in numbers):
            ctx.fail("A stack of matrices is indexed by a number that is not known before the run.")
        items = value.items.copy()
        at = _clamped(value, numbers, {a: part[a] for a in value.finite_axes})
        index = tuple(slice(k, k + s) for k, s in zip(at, update.items.shape, strict=True))
        items[index] = update.items
        return Matrices(items, value.axes)
    assert isinstance(update, Tensor)
    return moved(ctx, value, update, *starts, places=(0, 1))


@RULES(p.gather_p)
def gather(ctx: Context, value: Value, index: Value, **params: Any) -> Value:
    """Entries along finite axes at computed indices (embedding, minibatch)."""
    assert isinstance(index, Tensor)
    shape, sizes = ctx.equation.in_avals[0].shape, params["slice_sizes"]
    each_its_own = params["dimension_numbers"].operand_batching_dims
    for axis, (dim, size) in enumerate(zip(shape, sizes, strict=True)):
        if isinstance(dim, Size) and size != dim and axis not in each_its_own:
            _check_share(ctx, "a computed place", size)
    if isinstance(value, Matrices):
        return _gather_matrices(ctx, value, index, params)
    return _at_places(moved(ctx, value, index), index)


def _at_places(out: Value, index: Tensor) -> Value:
    """Where an index of every coordinate is another one on a share of them, so is what is there."""
    unsure = patches.remainder_everywhere(index).remainder
    if not isinstance(out, Tensor) or index.finite or unsure == EXACT_ZERO:
        return out
    lost = Exponents(out.exponents.max() + unsure.max())
    return replace(out, remainder=out.remainder.maximum(lost))


def _gather_matrices(ctx: Context, value: Matrices, index: Tensor, params: Any) -> Matrices:
    constant = index.constant
    if constant is None:
        ctx.fail("A stack of matrices is indexed by numbers that are not known before the run.")
    codes = np.arange(value.items.size).reshape(value.items.shape)
    for axis in sorted(value.axes):
        codes = np.expand_dims(codes, axis)
    numbers = dict(params)
    numbers["slice_sizes"] = tuple(
        1 if a in value.axes else s for a, s in enumerate(params["slice_sizes"])
    )
    with jax.ensure_compile_time_eval():
        out = np.asarray(
            ctx.equation.primitive.bind(jnp.asarray(codes), jnp.asarray(constant), **numbers)
        )
    axes = ctx.equation.out_avals[0].width_axes
    out = np.squeeze(out, axes)
    flat = value.items.reshape(-1)
    return Matrices(map_items(lambda k: flat[int(k)], out.astype(object)), (axes[0], axes[1]))


@RULES(p.scatter_add_p, p.scatter_p)
def scatter(ctx: Context, value: Value, index: Value, update: Value, **params: Any) -> Value:
    """Entries added to (or put at) computed indices along finite axes."""
    if isinstance(value, Matrices) or isinstance(update, Matrices):
        return unsupported(ctx, value, update)
    assert isinstance(index, Tensor)
    shape = ctx.equation.in_avals[0].shape
    scattered = params["dimension_numbers"].scatter_dims_to_operand_dims
    if any(isinstance(shape[axis], Size) for axis in scattered):
        full = [d for d in ctx.equation.in_avals[2].shape if isinstance(d, Size)]
        if full != [shape[a] for a in scattered if isinstance(shape[a], Size)]:
            ctx.fail(f"Single coordinates of a width are set. {NO_ORDER}", NoLimitError)
    updates = ctx.equation.in_avals[2]
    met = meeting(params["dimension_numbers"], len(updates.shape))
    if any(axis in updates.width_axes for axis in met):
        _meet(ctx)
    if ctx.equation.primitive is p.scatter_p:
        return _at_places(moved(ctx, value, index, update, places=(0, 2)), index)
    # Sums may be of several entries: of one exponent, and not all of them zero.
    (update,) = with_common_exponents([update], ctx.terms)
    update = replace(update, terms=tuple(replace(term, zeros=None) for term in update.terms))
    nothing = expansion.zero(value)
    if have_common_exponents([value, update]):
        nothing = _zeros_like(value, nothing)
    options = {k: params[k] for k in ("indices_are_sorted", "unique_indices", "mode")}

    def bind(*arrays: Any) -> Any:
        x, at, y = map(jnp.asarray, arrays)
        return lax.scatter_add(x, at, y, params["dimension_numbers"], **options)

    total = _at_places(moved(ctx, nothing, index, update, places=(0, 2), bind=bind), index)
    assert isinstance(total, Tensor)
    return expansion.plus(ctx, total, value)


def _meet(ctx: Context) -> NoReturn:
    """Coordinates of a width at common entries (sums of them into bins are written as sums)."""
    if ctx.equation.primitive is p.scatter_p:
        ctx.fail(
            f"Coordinates of a width are put at common entries, and the last one stays. {NO_ORDER}",
            NoLimitError,
            "Add them up: x.at[index].add(...), jnp.histogram, jax.ops.segment_sum.",
        )
    ctx.fail("Coordinates of a width are added to several entries at once, or to those of a width.")
