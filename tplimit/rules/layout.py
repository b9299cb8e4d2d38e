"""Operations that move entries without changing them: along finite axes they pass through."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tplimit import matrices
from tplimit._jax import primitives as p
from tplimit.errors import NoLimitError
from tplimit.interpret import RULES, Context
from tplimit.rules.contraction import permuted
from tplimit.values import Matrices, Tensor, Value, demoted, tensor
from tplimit.widths import NONE, Exponents, Size

NO_ORDER = "The coordinates along a width are exchangeable: they have no order and no first one."


def moved(ctx: Context, value: Tensor, *indices: Any, filler: Tensor | None = None) -> Tensor:
    """The current primitive on coefficient, exponents and masks alike.

    ``filler`` is its last operand where entries are put beside those of ``value``.
    """
    assert ctx.equation is not None
    axes = ctx.equation.out_avals[0].width_axes
    axis = axes[0] if axes else None

    def move(array: Any, fill: Any) -> Any:
        if array is None:
            return None
        filling = () if filler is None else (jnp.asarray(fill, array.dtype),)
        return ctx.rebind(array, *indices, *filling)

    value, known = _movable(ctx, value, indices)
    beside = tensor(np.zeros((), value.dtype), NONE) if filler is None else filler
    coefficient = move(value.coefficient, beside.coefficient)
    noise, zeros = value.noise, value.zeros
    if noise is not None:
        fill_noise = 0 if beside.noise is None else beside.noise
        noise = move(jnp.broadcast_to(noise, value.shape), fill_noise)
    if axis is None or p.scatter_add_p is ctx.equation.primitive:
        zeros = None
    exponents, remainder = (
        _moved_exponents(ctx, own, value, axis, known, None if filler is None else fill)
        for own, fill in (
            (value.exponents, beside.exponents),
            (value.remainder, beside.remainder),
        )
    )
    zeros = move(zeros, beside.vanishes)
    space = value.space if axis is not None and _same_width(ctx, axis) else None
    return tensor(coefficient, exponents, remainder, axis, space, noise, zeros)


def _movable(ctx: Context, value: Tensor, indices: Any) -> tuple[Tensor, Any]:
    """Exponents that differ per entry can only follow indices known before the run."""
    if value.exponents.uniform and value.remainder.uniform:
        return value, indices
    assert ctx.equation is not None
    found = [
        index if isinstance(index, (np.ndarray, np.generic)) else ctx.decided(operand)
        for index, operand in zip(indices, ctx.equation.inputs[1:], strict=False)
    ]
    if all(index is not None for index in found):
        return value, found
    return demoted(value), indices


def _same_width(ctx: Context, axis: int) -> bool:
    assert ctx.equation is not None
    out = ctx.equation.out_avals[0].shape[axis]
    return any(out in aval.shape for aval in ctx.equation.in_avals[:1])


def _moved_exponents(
    ctx: Context,
    exponents: Exponents,
    value: Tensor,
    axis: int | None,
    indices: Any,
    fill: Exponents | None,
) -> Exponents:
    # What is exactly zero has any exponent.
    if exponents.uniform and fill in (None, NONE, exponents):
        return exponents
    levels = sorted({*exponents.array.flat, *(() if fill is None else fill.levels())})
    code = {level: number for number, level in enumerate(levels)}
    codes = np.broadcast_to(
        np.vectorize(code.__getitem__, otypes=[np.int32])(exponents.array), value.shape
    )
    assert ctx.equation is not None
    params = ctx.resolve(ctx.equation.params)
    operands = [codes, *indices, *(() if fill is None else [np.int32(code[fill.value])])]
    with jax.ensure_compile_time_eval():
        out = np.asarray(ctx.equation.primitive.bind(*map(jnp.asarray, operands), **params))
    if axis is not None:
        out = np.take(out, [0], axis=axis)
    return Exponents(np.array(levels, dtype=object)[out])


@RULES(p.broadcast_in_dim_p)
def broadcast(ctx: Context, value: Value, *dynamic: Value, **params: Any) -> Value:
    """Repetition along new axes. A finite number along a width is a constant vector."""
    assert ctx.equation is not None
    aval = ctx.equation.out_avals[0]
    if isinstance(value, Matrices):
        return _broadcast_matrices(ctx, value)
    if len(aval.width_axes) > 2:
        ctx.fail("An array with three width axes.")
    if len(aval.width_axes) == 2:
        return _broadcast_to_matrix(ctx, value)
    if value.vanishes:
        return _zeros(ctx, value)
    return moved(ctx, value)


def _zeros(ctx: Context, value: Tensor) -> Tensor:
    assert ctx.equation is not None
    aval = ctx.equation.out_avals[0]
    axis = aval.width_axes[0] if aval.width_axes else None
    zeros = np.broadcast_to(np.zeros((), value.dtype), ctx.shape(aval.shape))
    return tensor(zeros, NONE, NONE, axis, value.space)


def _broadcast_to_matrix(ctx: Context, value: Tensor) -> Matrices:
    assert ctx.equation is not None
    aval, source = ctx.equation.out_avals[0], ctx.equation.params["broadcast_dimensions"]
    first, second = aval.width_axes
    rows, columns = aval.shape[first], aval.shape[second]
    assert isinstance(rows, Size) and isinstance(columns, Size)
    shape = tuple(int(d) for d in aval.shape if not isinstance(d, Size))
    items = np.empty(shape, dtype=object)
    if not value.shape:
        for index in np.ndindex(shape):
            items[index] = matrices.constant(ctx, rows, columns, value)
        return Matrices(items, (first, second))
    if value.axis is None or len(value.shape) > 1 or shape:
        ctx.fail("This array is broadcast along two width axes.")
    items[()] = matrices.repeated(ctx, rows, columns, value, source[value.axis] == second)
    return Matrices(items, (first, second))


def _broadcast_matrices(ctx: Context, value: Matrices) -> Matrices:
    assert ctx.equation is not None
    params = ctx.equation.params
    target, source = params["shape"], params["broadcast_dimensions"]
    axes = (source[value.axes[0]], source[value.axes[1]])
    finite_out = [i for i in range(len(target)) if i not in axes]
    at = {source[axis]: i for i, axis in enumerate(value.finite_axes)}
    view = value.items.reshape([value.items.shape[at[i]] if i in at else 1 for i in finite_out])
    shape = [int(target[i]) for i in finite_out]
    return Matrices(np.broadcast_to(view, shape).copy(), axes)


@RULES(p.transpose_p)
def transpose(ctx: Context, value: Value, permutation: tuple[int, ...]) -> Value:
    """Axes in a new order."""
    return permuted(value, list(permutation))


@RULES(p.reshape_p)
def reshape(ctx: Context, value: Value, *dynamic: Value, **params: Any) -> Value:
    """Merging and splitting of axes. A width may be split into (finite, width), as in heads,
    or merged from it; its coordinates may not be put in another order."""
    assert ctx.equation is not None
    old, new = ctx.equation.in_avals[0].shape, ctx.equation.out_avals[0].shape
    _check_reshape(ctx, old, new)
    if isinstance(value, Matrices):
        return _reshape_matrices(ctx, value)
    return moved(ctx, _merged_levels(value, new))


def _merged_levels(value: Tensor, new: tuple[Any, ...]) -> Tensor:
    """Exponents may differ along finite axes only, also after a merge with a width."""
    merged = value.axis is not None and value.axis > 0 and len(new) < len(value.shape)
    return demoted(value) if merged and not value.exponents.uniform else value


def _check_reshape(ctx: Context, old: tuple[Any, ...], new: tuple[Any, ...]) -> None:
    widths = [d for d in old if isinstance(d, Size)], [d for d in new if isinstance(d, Size)]
    bad = any(d.power != 1 for side in widths for d in side) or len(widths[0]) != len(widths[1])
    if not bad:
        bad = [_tail(old, k) for k in range(len(widths[0]))] != [
            _tail(new, k) for k in range(len(widths[1]))
        ]
    if bad:
        ctx.fail(
            "A width is reshaped into something else than a width.",
            NoLimitError,
            "Only (finite, width) groups may be merged or split: reshape(b, heads, n // heads).",
        )


def _tail(shape: tuple[Any, ...], number: int) -> int:
    """Product of the finite lengths between a width axis and the next one (or the end)."""
    positions = [i for i, d in enumerate(shape) if isinstance(d, Size)]
    end = len(shape)
    if number + 1 < len(positions):
        end = positions[number + 1]
        return 0 if end - positions[number] > 1 else 1
    return int(np.prod(shape[positions[number] + 1 : end], dtype=int))


def _reshape_matrices(ctx: Context, value: Matrices) -> Matrices:
    assert ctx.equation is not None
    new = ctx.equation.out_avals[0]
    axes = new.width_axes
    old_sizes = [ctx.equation.in_avals[0].shape[i] for i in value.axes]
    if [new.shape[i] for i in axes] != old_sizes:
        ctx.fail("A width axis of a matrix is split or merged.")
    shape = tuple(int(d) for d in new.shape if not isinstance(d, Size))
    return Matrices(value.items.reshape(shape), (axes[0], axes[1]))


@RULES(p.squeeze_p)
def squeeze(ctx: Context, value: Value, dimensions: tuple[int, ...]) -> Value:
    """Removal of axes of length one."""
    if not isinstance(value, Matrices):
        return moved(ctx, value)
    left = [axis for axis in range(value.ndim) if axis not in dimensions]
    gone = tuple(i for i, axis in enumerate(value.finite_axes) if axis in dimensions)
    axes = (left.index(value.axes[0]), left.index(value.axes[1]))
    return Matrices(np.squeeze(value.items, gone) if gone else value.items, axes)


@RULES(p.rev_p)
def reverse(ctx: Context, value: Value, dimensions: tuple[int, ...]) -> Value:
    """Reversal along finite axes."""
    if isinstance(value, Matrices):
        finite_only(ctx, value, dimensions)
        flips = tuple(i for i, axis in enumerate(value.finite_axes) if axis in dimensions)
        return Matrices(np.flip(value.items, flips), value.axes)
    if value.axis in dimensions:
        ctx.fail(f"A width is reversed. {NO_ORDER}", NoLimitError)
    return moved(ctx, value)


def finite_only(ctx: Context, value: Matrices, dimensions: Any) -> None:
    if any(axis in dimensions for axis in value.axes):
        ctx.fail(f"A width axis of a matrix is indexed. {NO_ORDER}", NoLimitError)


@RULES(p.iota_p)
def iota(ctx: Context, *dynamic: Value, **params: Any) -> Value:
    """Counting along a finite axis."""
    assert ctx.equation is not None
    aval = ctx.equation.out_avals[0]
    if aval.width_axes:
        ctx.fail(f"Coordinates of a width are numbered. {NO_ORDER}", NoLimitError)
    with jax.ensure_compile_time_eval():
        return tensor(np.asarray(p.iota_p.bind(**ctx.resolve(params))))
