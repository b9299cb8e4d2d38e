"""Functions of matrices, entry by entry: the rules of vectors, at all pairs of coordinates.

What has no Gaussian part is a function of pairs of coordinates, and so is every entrywise function
of it: whatever is known of operations on vectors is said once (``matrices/pairs.py``). Rules that
act entry by entry enter ``of_entries`` as their form for matrices.
"""

import functools
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from tplimit.errors import CancellationError
from tplimit.interpreter import zeros
from tplimit.interpreter.context import Context, Place
from tplimit.interpreter.table import RULES, Which
from tplimit.matrices import pairs
from tplimit.matrices.parts import Matrix
from tplimit.program.traits import Linear, Power, Product, Smooth
from tplimit.values.rearranging import at, rearranged
from tplimit.values.tensors import Matrices, Tensor, Value


def of_entries(ctx: Context, *values: Value, **params: Any) -> Matrices:
    """An entrywise operation of which some operands are matrices without a Gaussian part."""
    given = [value for value in values if isinstance(value, Matrices)]
    first = given[0]
    if any(value.axes != first.axes for value in given):
        ctx.fail("Matrices with width axes in different places are combined.")
    arrays = np.broadcast_arrays(*(value.items for value in given))
    out = np.empty(arrays[0].shape, dtype=object)
    for index in np.ndindex(out.shape):
        items: list[Any] = [array[index] for array in arrays]
        out[index] = _of_items(ctx, values, items, first, index, params)
    return Matrices(out, first.axes)


def _of_items(
    ctx: Context,
    values: Sequence[Value],
    items: Sequence[Matrix],
    like: Matrices,
    index: tuple[int, ...],
    params: dict[str, Any],
) -> Matrix:
    for item in items:
        _require_pairs(ctx, item)
    found = [pairs.entries_of(ctx, item) for item in items]
    entries = iter([tensor for tensor, _ in found])
    operands = [
        next(entries) if isinstance(value, Matrices) else _beside(ctx, value, items[0], like, index)
        for value in values
    ]
    share = _known_share(ctx, [share for _, share in found if share is not None])
    which: Which = "one" if ctx.terms == 1 else "several"
    form = RULES.form(which, ctx.equation.primitive, ctx.kind)
    outside, ctx.at = ctx.at, Place(ctx.program, ctx.equation, ctx.kind, operands)
    try:
        out = form(ctx, *operands, **params)
    finally:
        ctx.at = outside
    (result,) = out if isinstance(out, (list, tuple)) else [out]
    result = zeros.with_marginals(ctx.equation, ctx.kind, operands, result)
    assert isinstance(result, Tensor)
    spaces = (
        ctx.spaces.unify(*(item.row_space for item in items)),
        ctx.spaces.unify(*(item.column_space for item in items)),
    )
    target = Matrix(items[0].rows, items[0].columns, *spaces)
    return pairs.from_entries(ctx, target, result, share)


def _require_pairs(ctx: Context, matrix: Matrix) -> None:
    if not pairs.known(matrix):
        ctx.fail(
            f"{ctx.equation.primitive.name}, entry by entry, of a matrix with a Gaussian part: its "
            "entries, of order n^-1/2, are independent of all that is known of the network, and an "
            "update that is a function of them is of another law.",
            advice="Functions of gradients and of their averages are fine. Apply weight decay to "
            "the weights beside the update (optax.adamw), not to the gradient; instead of rows or "
            "columns of the matrix scale the vector that it is applied to, or its image.",
        )


def _beside(
    ctx: Context, value: Tensor, matrix: Matrix, like: Matrices, index: tuple[int, ...]
) -> Tensor:
    """A number, or a vector along the rows or columns, beside the entries of a matrix."""
    if not value.shape:
        return value
    place = dict(zip(like.finite_axes, index, strict=True))
    where: list[Any] = [
        0 if length == 1 else place.get(i, 0) for i, length in enumerate(value.shape)
    ]
    if value.axis is None:
        return at(value, tuple(where))
    if value.axis not in like.axes or any(
        value.shape[i] != 1 for i in like.axes if i != value.axis
    ):
        ctx.fail("A vector and a matrix with other width axes are combined.")
    where[value.axis] = slice(None)
    along_rows = value.axis == like.axes[0]

    def repeated(array: Any) -> Any:
        shape = (ctx.size(matrix.rows), ctx.size(matrix.columns))
        every = jnp.broadcast_to(array[:, None] if along_rows else array, shape)
        return pairs.Places.of(ctx, matrix).flat(lambda *slab: every[slab])

    return rearranged([at(value, tuple(where))], repeated, 0, None)


def _known_share(ctx: Context, shares: Sequence[Any]) -> Any:
    """The relative sampling error of the result: of what hangs on signs or sizes a matrix must be
    known to differ from 0."""
    if not shares:
        return None
    share = functools.reduce(jnp.maximum, shares)
    if not isinstance(ctx.kind, (Linear, Product, Smooth)) and not _whole_power(ctx):
        error = ctx.error(
            f"{ctx.equation.primitive.name} of a matrix that is zero within the sampling error.",
            CancellationError,
        )
        ctx.check(~jnp.any(share >= 0.5), error, doubt=True)
    return share


def _whole_power(ctx: Context) -> bool:
    kind = ctx.kind
    if not isinstance(kind, Power):
        return False
    return (ctx.equation.params["y"] if kind.exponent is None else kind.exponent) >= 1
