"""Inner products of matrices: sums of products, entry by entry, over both widths.

``<A, B> = sum_ab A_ab B_ab``, for norms of weights and gradients. Of a matrix of low rank it is
``sum_k <r_k, B c_k>``, of two functions of pairs the average over pairs. The square of a Gaussian
matrix is the sum of its variances, ``n_rows n_columns scale^2``, up to a share ``1 / n``; what a
trained update adds to its product with the initial matrix is as small, and of known order only.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import NoReturn

import jax
import jax.numpy as jnp
import numpy as np

from tplimit._jax import primitives as p
from tplimit.algebra import arithmetic, expansion
from tplimit.gaussian.sampling import error_of_averages
from tplimit.interpreter.context import Context
from tplimit.matrices import composed, products
from tplimit.matrices.composed import Composed
from tplimit.matrices.low_rank import LowRank
from tplimit.matrices.pairs import EVERY
from tplimit.matrices.parts import Image, Matrix, Part, Rows
from tplimit.matrices.scaled_gaussian import ScaledGaussian
from tplimit.program.equations import Equation, Program, Slot
from tplimit.program.traits import is_rounding
from tplimit.values.exponents import EXACT_ZERO, HALF, NEVER, Exponent, Exponents, Size
from tplimit.values.fields import NESTED
from tplimit.values.tensors import Matrices, Tensor, map_items, tensor, with_parity, with_stderr


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Total(Part):
    """A product of matrices, entry by entry, of which only the sum of all entries is asked."""

    total: Tensor = field(metadata=NESTED)

    @property
    def T(self) -> "Total":
        return self

    @property
    def level(self) -> Exponent:
        return self.total.exponents.max() - 2

    def scaled(self, ctx: Context, factor: Tensor) -> "tuple[Total, Exponent]":
        return Total(expansion.times(ctx, self.total, factor)), NEVER

    def image(self, ctx: Context, rows: Rows) -> Image:
        ctx.fail("Of this product, entry by entry, only the sum of all entries is known.")


#: Operations through which a sum of all entries goes.
_LINEAR = (p.add_p, p.sub_p, p.neg_p, p.mul_p, p.div_p, p.convert_element_type_p, p.copy_p)


def summed_whole(ctx: Context) -> bool:
    """Whether of the result of the current equation only the sum over both widths is used."""
    widths = set(ctx.equation.out_avals[0].width_axes)

    def whole(use: Equation) -> bool:
        return use.primitive is p.reduce_sum_p and widths <= set(use.params["axes"])

    return _goes_into(ctx.program, ctx.equation, whole)


def summed(ctx: Context) -> bool:
    """Whether the result of the current equation is only summed, or applied to vectors.

    A function of it would see round-off of the terms of a product of low rank: a square of nothing
    is below 0.
    """
    ends = (p.reduce_sum_p, p.dot_general_p)
    return _goes_into(ctx.program, ctx.equation, lambda use: use.primitive in ends)


def _goes_into(program: Program, equation: Equation, end: Callable[[Equation], bool]) -> bool:
    """Whether all that is made of a result are such ends, but for linear operations between."""
    (slot,) = equation.outputs
    uses = [use for use in program.equations if slot in use.inputs]
    return (
        bool(uses)
        and slot not in program.outputs
        and all(
            end(use) or (_is_linear(use, slot) and _goes_into(program, use, end)) for use in uses
        )
    )


def _is_linear(use: Equation, slot: Slot) -> bool:
    """Whether an equation is linear in this operand, the others being numbers where they are
    factors."""
    if use.primitive not in _LINEAR or is_rounding(use):
        return False
    others = [
        aval for place, aval in zip(use.inputs, use.in_avals, strict=True) if place is not slot
    ]
    factors = use.primitive in (p.mul_p, p.div_p)
    divisor = use.primitive is p.div_p and use.inputs[0] is not slot
    return not divisor and not (factors and (not others or any(a.width_axes for a in others)))


def without_totals(ctx: Context, matrix: Matrix) -> tuple[Matrix, Tensor | None]:
    """A matrix but for what of it only the sum over both widths is known, and that sum."""
    totals = [part.total for part in matrix.parts if isinstance(part, Total)]
    if not totals:
        return matrix, None
    left = tuple(part for part in matrix.parts if not isinstance(part, Total))
    total = functools.reduce(functools.partial(expansion.plus, ctx), totals)
    return replace(matrix, parts=left), total


def product(ctx: Context, a: Matrices, b: Matrices) -> Matrices | None:
    """A product, entry by entry, that is only summed; None where the widths lie otherwise."""
    if a.axes != b.axes:
        return None
    x, y = np.broadcast_arrays(a.items, b.items)
    return Matrices(map_items(functools.partial(_product, ctx), x, y), a.axes)


def _product(ctx: Context, a: Matrix, b: Matrix) -> Matrix:
    return Matrix(
        a.rows,
        a.columns,
        ctx.spaces.unify(a.row_space, b.row_space),
        ctx.spaces.unify(a.column_space, b.column_space),
        (Total(inner(ctx, a, b)),),
    )


def inner(ctx: Context, a: Matrix, b: Matrix) -> Tensor:
    """``<A, B>``."""
    parts = [_inner(ctx, a, x, b, y) for x in a.parts for y in b.parts]
    lost = [_unknown(a, b), _unknown(b, a)]
    nothing = tensor(np.zeros((), jnp.result_type(float)), EXACT_ZERO, Exponents(max(lost)))
    return functools.reduce(functools.partial(expansion.plus, ctx), parts, nothing)


def _unknown(a: Matrix, b: Matrix) -> Exponent:
    """Order of what is unknown of the first factor, in the inner product with the second."""
    bounds = [a.remainder, *(block.average for block in a.blocks)]
    bounds += [part.unknown for part in a.parts]
    # A Gaussian matrix meets what has been computed from it, or nothing.
    others = [b.remainder, *(part.level + part.gain - 1 for part in b.parts)]
    return max(bounds) + max(others) + 2


def _inner(ctx: Context, a: Matrix, x: Part, b: Matrix, y: Part) -> Tensor:
    if not isinstance(x, LowRank):
        a, x, b, y = b, y, a, x
    if isinstance(x, LowRank):
        return _with_low_rank(ctx, a, x, b, y)
    gaussians = [part for part in (x, y) if isinstance(part, ScaledGaussian)]
    if gaussians and ctx.exact:
        _not_exact(ctx)
    if len(gaussians) == 2:
        return _of_gaussians(ctx, a, *gaussians)
    if gaussians:
        # Of the conditional mean of the initial matrix, given what is revealed.
        return _nothing(x.level + y.level + 1 + HALF)
    both = [composed.between(ctx, replace(m, parts=(part,))) for m, part in ((a, x), (b, y))]
    if both[0] and both[1]:
        return _composed(ctx, a, both[0][0], both[1][0])
    return _of_entries(ctx, a, x, y)


def _with_low_rank(ctx: Context, a: Matrix, x: LowRank, b: Matrix, y: Part) -> Tensor:
    """``sum_k <r_k, B c_k>``."""
    right = with_parity(tensor(x.columns, axis=1, space=a.column_space), x.column_parity)
    alone = Matrix(b.rows, b.columns, b.row_space, b.column_space, (y,))
    image = products.apply(ctx, alone, right, b.columns)
    left = with_parity(tensor(x.rows, axis=1, space=a.row_space), x.row_parity)
    met = expansion.times(ctx, left, image)
    parts = [
        over_width(ctx, _over_ranks(piece), a.rows)
        for piece in (expansion.pieces(met) if ctx.terms > 1 else [met])
    ]
    total = functools.reduce(functools.partial(expansion.plus, ctx), parts)
    return expansion.times(ctx, total, x.scale)


def _over_ranks(value: Tensor) -> Tensor:
    """Sum of rows ``(k, M)``."""
    (term,) = value.terms
    stderr = None if term.stderr is None else jnp.sum(jnp.broadcast_to(term.stderr, value.shape), 0)
    levels = Exponents(value.exponents.max()), Exponents(value.remainder.max())
    out = tensor(jnp.sum(jnp.asarray(term.coefficient), 0), *levels, 0, value.space, stderr)
    return with_parity(out, value.parity)


def over_width(ctx: Context, vector: Tensor, size: Size) -> Tensor:
    """Sum of the coordinates of a vector."""
    if ctx.terms == 1:
        return arithmetic.width_sum(ctx, vector, size)
    parts: list[Tensor] = []
    for piece in expansion.pieces(vector):
        reduce = lambda x: arithmetic.width_sum(ctx, x, size)
        parts += expansion.averaged(ctx, reduce, piece, piece.parity, vector.space)
    unknown = tensor(parts[0].coefficient * 0, EXACT_ZERO, vector.remainder + 1)
    return expansion.total(ctx, [*parts, unknown])


def _composed(ctx: Context, a: Matrix, x: Composed, y: Composed) -> Tensor:
    """By the vectors that span them."""
    rows, columns = (arithmetic.width_factor(ctx, size) for size in (a.rows, a.columns))
    factor, level = rows[0] * columns[0], x.level + y.level + rows[1] + columns[1]
    total, error = composed.inner(ctx, x, y)
    error = None if error is None else abs(factor) * error
    unknown = EXACT_ZERO if ctx.exact else Exponents(level - HALF)
    return tensor(factor * total, Exponents(level), unknown, stderr=error)


def _of_entries(ctx: Context, a: Matrix, x: Part, y: Part) -> Tensor:
    """The average over pairs."""
    slab = EVERY, slice(ctx.few(a.columns))
    entries = x.entries_of(ctx, *slab) * y.entries_of(ctx, *slab)
    factor, gain = arithmetic.width_factor(ctx, a.columns)
    level = Exponents(x.level + y.level + gain)
    unknown = EXACT_ZERO if ctx.exact else level + -HALF
    ones = jnp.ones((1, entries.shape[1]), entries.dtype)
    error = None if ctx.exact else factor * error_of_averages(ones, entries)[0]
    rows = tensor(factor * jnp.mean(entries, axis=1), level, unknown, 0, a.row_space, error)
    total = over_width(ctx, rows, a.rows)
    shares = [part.share for part in (x, y) if part.share is not None]
    size = jnp.abs(jnp.asarray(total.coefficient))
    errors = [total.stderr, *(share * size for share in shares)]
    return with_stderr(total, arithmetic.combined_stderr(*errors))


def _of_gaussians(ctx: Context, a: Matrix, x: ScaledGaussian, y: ScaledGaussian) -> Tensor:
    level = x.level + y.level + 1
    if (x.store, x.transposed) != (y.store, y.transposed):
        return _nothing(level)
    ratio = float(a.rows.ratio) * float(a.columns.ratio)
    count = tensor(np.asarray(ratio, jnp.result_type(float)), Exponents(2), Exponents(1))
    return expansion.times(ctx, expansion.times(ctx, x.scale, y.scale), count)


def _nothing(unknown: Exponent) -> Tensor:
    return tensor(np.zeros((), jnp.result_type(float)), EXACT_ZERO, Exponents(unknown))


def _not_exact(ctx: Context) -> NoReturn:
    ctx.fail(
        "The norm of a deferred Gaussian matrix at a finite width, or its inner product with a "
        "trained update, is not known exactly.",
        advice="Use a dense network (an integer width) or the limit (tp.inf).",
    )


__all__ = ["inner", "over_width", "product", "summed", "summed_whole", "without_totals"]
