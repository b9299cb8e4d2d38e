"""Operations that move entries without changing them: along finite axes they pass through."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from tplimit._jax import primitives as p
from tplimit.errors import NoLimitError
from tplimit.interpreter.context import Context
from tplimit.interpreter.table import RULES
from tplimit.matrices import matrices
from tplimit.rules.contraction import permuted_matrices
from tplimit.values.exponents import EXACT_ZERO, Size
from tplimit.values.parity import EVEN
from tplimit.values.rearranging import at, have_common_exponents, rearranged, with_common_exponents
from tplimit.values.tensors import Matrices, Tensor, Value, knowing, tensor, with_parity

NO_ORDER = "The coordinates along a width are exchangeable: they have no order and no first one."


def moved(
    ctx: Context,
    *operands: Value,
    places: Sequence[int] = (0,),
    bind: Callable[..., Any] | None = None,
) -> Tensor:
    """The current primitive, which moves the entries of the operands at ``places``.

    The other operands are indices. Exponents that differ can only follow indices that are known
    before the run. ``bind`` evaluates the primitive where it is not for arrays of any type.
    """
    found = [value for value in operands if isinstance(value, Tensor)]
    values = [found[place] for place in places]
    arguments = [value.coefficient for value in found]
    if not have_common_exponents(values):
        known = _known(ctx, found, places)
        if known is None:
            values = with_common_exponents(values, ctx.terms)
        arguments = known or arguments

    def move(*arrays: Any) -> Any:
        for place, array in zip(places, arrays, strict=True):
            arguments[place] = array
        return (bind or ctx.rebind)(*arguments)

    axes = ctx.equation.out_avals[0].width_axes
    space = ctx.spaces.unify(*(value.space for value in found if value.axis is not None))
    divided(ctx, space)
    return rearranged(values, move, axes[0] if axes else None, space if axes else None)


def divided(ctx: Context, space: int | None) -> None:
    """Note where the current equation divides a width into shares, or joins them."""
    equation = ctx.equation
    avals = (*equation.in_avals, *equation.out_avals)
    lengths = {d.ratio for aval in avals for d in aval.shape if isinstance(d, Size)}
    if space is not None and len(lengths) > 1:
        # Shares may begin anywhere.
        places = (v for v in jax.tree.leaves(equation.params) if isinstance(v, Size))
        ctx.spaces.divide(space, [*lengths, *(place.ratio for place in places)])


def _known(ctx: Context, operands: list[Tensor], places: Sequence[int]) -> list[Any] | None:
    """Arguments of the primitive with the indices that are known before the run, or None."""
    arguments = []
    for place, (value, slot) in enumerate(zip(operands, ctx.equation.inputs, strict=True)):
        known = value.constant
        if place not in places and known is None:
            known = ctx.decided(slot)
            if known is None:
                return None
        arguments.append(known)
    return arguments


@RULES(p.broadcast_in_dim_p)
def broadcast(ctx: Context, value: Value, *dynamic: Value, **params: Any) -> Value:
    """Repetition along new axes. A finite number along a width is a constant vector."""
    aval = ctx.equation.out_avals[0]
    if isinstance(value, Matrices):
        return _broadcast_matrices(ctx, value)
    if len(aval.width_axes) > 2:
        ctx.fail("An array with three width axes.")
    if len(aval.width_axes) == 2:
        return _broadcast_to_matrix(ctx, value)
    if value.vanishes:
        return _zeros(ctx, value)
    return _with_axes_of_length_one(value, moved(ctx, value))


def _with_axes_of_length_one(value: Tensor, out: Tensor) -> Tensor:
    """A result with the same entries: it may be the extremum of an array along such axes."""
    if value.facts.extremum_of is None or np.prod(value.shape) != np.prod(out.shape):
        return out
    return knowing(out, extremum_of=value.facts.extremum_of)


def _zeros(ctx: Context, value: Tensor) -> Tensor:
    aval = ctx.equation.out_avals[0]
    axis = aval.width_axes[0] if aval.width_axes else None
    zeros = np.broadcast_to(np.zeros((), value.dtype), ctx.shape(aval.shape))
    return with_parity(tensor(zeros, EXACT_ZERO, EXACT_ZERO, axis, value.space), EVEN)


def _broadcast_to_matrix(ctx: Context, value: Tensor) -> Matrices:
    aval, source = ctx.equation.out_avals[0], ctx.equation.params["broadcast_dimensions"]
    first, second = aval.width_axes
    rows, columns = aval.shape[first], aval.shape[second]
    assert isinstance(rows, Size) and isinstance(columns, Size)
    finite = [i for i, d in enumerate(aval.shape) if not isinstance(d, Size)]
    items: Any = np.empty([d for d in aval.shape if not isinstance(d, Size)], dtype=object)
    for index in np.ndindex(items.shape):
        place = dict(zip(finite, index, strict=True))
        # Of length one are axes along which it is repeated.
        where: list[Any] = [
            0 if length == 1 else place[axis]
            for axis, length in zip(source, value.shape, strict=True)
            if axis in place or length == 1
        ]
        if value.axis is None:
            items[index] = matrices.constant(ctx, rows, columns, at(value, tuple(where)))
            continue
        where.insert(value.axis, slice(None))
        vector, along = at(value, tuple(where)), source[value.axis]
        items[index] = matrices.repeated(ctx, rows, columns, vector, along == second)
    return Matrices(items, (first, second))


def _broadcast_matrices(ctx: Context, value: Matrices) -> Matrices:
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
    if isinstance(value, Matrices):
        return permuted_matrices(value, permutation)
    return moved(ctx, value)


@RULES(p.reshape_p)
def reshape(ctx: Context, value: Value, *dynamic: Value, **params: Any) -> Value:
    """Merging and splitting of axes. A width may be split into (finite, width), as in heads,
    or merged from it; its coordinates may not be put in another order."""
    old, new = ctx.equation.in_avals[0].shape, ctx.equation.out_avals[0].shape
    _check_reshape(ctx, old, new)
    if isinstance(value, Matrices):
        return _reshape_matrices(ctx, value)
    if value.axis is not None and value.axis > 0 and len(new) < len(value.shape):
        # Exponents may differ along finite axes only, also after a merge with a width.
        (value,) = with_common_exponents([value], ctx.terms)
    return _with_axes_of_length_one(value, moved(ctx, value))


def _check_reshape(ctx: Context, old: tuple[Any, ...], new: tuple[Any, ...]) -> None:
    widths = [d for d in old if isinstance(d, Size)], [d for d in new if isinstance(d, Size)]
    advice = "Put the finite axis before the width: reshape(b, heads, n // heads)."
    if any(d.power != 1 for side in widths for d in side) or len(widths[0]) != len(widths[1]):
        ctx.fail("A width is reshaped into something else than a width.", NoLimitError, advice)
    before, after = ([_tail(shape, k) for k in range(len(widths[0]))] for shape in (old, new))
    if before != after:
        ctx.fail(
            f"The coordinates of a width are dealt out to an axis behind it. {NO_ORDER}",
            NoLimitError,
            "Only (finite, width) groups may be merged or split: reshape(b, heads, n // heads). "
            "For x.reshape(n, 3).max(-1) of 3 n coordinates that are alike write "
            "x.reshape(3, n).max(0), which has the same law.",
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
    aval = ctx.equation.out_avals[0]
    if params["dimension"] in aval.width_axes:
        ctx.fail(f"Coordinates of a width are numbered. {NO_ORDER}", NoLimitError)
    if len(aval.width_axes) > 1:
        ctx.fail("Numbers along a finite axis of an array of matrices.")
    with jax.ensure_compile_time_eval():
        numbers = np.asarray(p.iota_p.bind(**ctx.resolve(params)))
    if not aval.width_axes:
        return tensor(numbers)
    return with_parity(tensor(numbers, axis=aval.width_axes[0]), EVEN)
