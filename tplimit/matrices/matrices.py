"""Arithmetic of matrices with two width axes: sums, scales, outer products, absorption.

It is arithmetic of sums of parts (``parts.py``); which kinds there are does not matter.
"""

import functools
import operator
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import replace
from fractions import Fraction
from typing import Any, NoReturn

import jax.numpy as jnp
import numpy as np

from tplimit.algebra import arithmetic, expansion
from tplimit.errors import MATRIX_ADVICE
from tplimit.interpreter.context import Context
from tplimit.matrices import composed
from tplimit.matrices.low_rank import LowRank
from tplimit.matrices.parts import Matrix, Part
from tplimit.values import patches
from tplimit.values.exponents import EXACT_ZERO, NEVER, Exponent, Exponents, Size
from tplimit.values.fields import map_arrays
from tplimit.values.parity import EVEN
from tplimit.values.rearranging import at
from tplimit.values.tensors import (
    Matrices,
    MatrixRemainder,
    Patch,
    Tensor,
    Value,
    map_items,
    tensor,
    with_one_exponent,
    with_parity,
)


def unsupported(ctx: Context, what: str) -> NoReturn:
    ctx.fail(
        f"tplimit does not support {what} of a matrix with two width axes.", advice=MATRIX_ADVICE
    )


def zero(rows: Size, columns: Size) -> Matrix:
    return Matrix(rows, columns, None, None)


def constant(ctx: Context, rows: Size, columns: Size, value: Tensor) -> Matrix:
    """A matrix all of whose entries are one finite number: of rank one for each of its terms."""
    if value.vanishes:
        return zero(rows, columns)
    dtype = jnp.result_type(float) if value.dtype.kind != "f" else value.dtype
    left = jnp.ones((1, ctx.size(rows)), dtype)
    right = jnp.ones((1, ctx.size(columns)), dtype)
    parts = [
        Matrix(rows, columns, None, None, (LowRank(left, right, piece, EVEN, EVEN, constant=True),))
        for piece in ([value] if ctx.terms == 1 else expansion.pieces(value))
    ]
    return functools.reduce(functools.partial(sum_of, ctx), parts)


def add(ctx: Context, a: Value, b: Value) -> Matrices:
    """Sum of two arrays with two width axes (or of one and a finite array)."""
    a, b = _both(ctx, a, b)
    x, y = np.broadcast_arrays(a.items, b.items)
    return Matrices(map_items(lambda x, y: sum_of(ctx, x, y), x, y), a.axes)


def _both(ctx: Context, a: Value, b: Value) -> tuple[Matrices, Matrices]:
    if isinstance(a, Tensor):
        assert isinstance(b, Matrices)
        return _like(ctx, a, b), b
    if isinstance(b, Tensor):
        return a, _like(ctx, b, a)
    if a.axes != b.axes:
        ctx.fail("Matrices with width axes in different places are combined.")
    return a, b


def _like(ctx: Context, value: Tensor, other: Matrices) -> Matrices:
    if value.axis is None and all(d == 1 for d in value.shape):
        number = at(value, (0,) * len(value.shape))
        return other.map(lambda m: constant(ctx, m.rows, m.columns, number))
    others = [d for i, d in enumerate(value.shape) if i != value.axis]
    if value.axis not in other.axes or any(d != 1 for d in others):
        ctx.fail("A matrix is added, entry by entry, to an array that is no number and no vector.")
    transposed = value.axis == other.axes[1]
    return other.map(lambda m: repeated(ctx, m.rows, m.columns, value, transposed))


def repeated(ctx: Context, rows: Size, columns: Size, value: Tensor, transposed: bool) -> Matrix:
    """A matrix all of whose columns (if ``transposed``, rows) are one vector: rank one."""
    dtype = value.dtype if value.dtype.kind == "f" else jnp.result_type(float)
    ones = jnp.ones(ctx.size(rows if transposed else columns), dtype)
    constant = with_parity(tensor(ones, axis=0), EVEN)
    left, right = (constant, value) if transposed else (value, constant)
    return outer(ctx, left, right, rows, columns, 1)


def sum_of(ctx: Context, a: Matrix, b: Matrix) -> Matrix:
    total = Matrix(
        a.rows,
        a.columns,
        ctx.spaces.unify(a.row_space, b.row_space),
        ctx.spaces.unify(a.column_space, b.column_space),
        (*a.parts, *b.parts),
        max(a.remainder, b.remainder),
        (*a.blocks, *b.blocks),
    )
    return _collected(ctx, total, total.parts)


def _collected(ctx: Context, matrix: Matrix, parts: Iterable[Part]) -> Matrix:
    """A matrix that has these parts for its own: like ones added, those kept that act at the
    largest orders. What is unknown of its own parts, or dropped, counts with its remainder."""
    orders = {order_of(ctx, part) for part in parts if part.yields} - {NEVER}
    kept = sorted(orders, reverse=True)[: ctx.terms]
    summed: dict[Hashable, Part] = {}
    for number, part in enumerate(sorted(parts, key=lambda part: part.place)):
        if part.yields and order_of(ctx, part) not in kept:
            continue
        key = number if part.key is None else (type(part), part.key)
        summed[key] = summed[key].plus(ctx, part) if key in summed else part
    # As low rank, what is dropped acts at its order.
    _, gain = ctx.scale(1.0, Part.gain)
    remainder = max([matrix.remainder, *(order - gain for order in orders - {*kept})])
    left = composed.gathered(ctx, list(summed.values()))
    own = tuple(part for part in left if part.level != NEVER)
    gone = [part for part in left if part.level == NEVER]
    lost = [
        part.remainder(part.unknown) for part in (*matrix.parts, *gone) if part.unknown != NEVER
    ]
    return _with_unknown(ctx, replace(matrix, parts=own, remainder=remainder), lost)


def order_of(ctx: Context, part: Part) -> Exponent:
    """Exponent of the image of a vector of order one under a part."""
    return part.level + ctx.scale(1.0, part.gain)[1]


def _with_unknown(ctx: Context, matrix: Matrix, lost: Iterable[MatrixRemainder]) -> Matrix:
    """The same matrix, of which more is unknown: everywhere, or, where several terms are kept, in
    some rows and columns."""
    remainder, blocks = matrix.remainder, [*matrix.blocks]
    for block in lost:
        everywhere = block.rows is None and block.columns is None and block.average == block.bound
        if everywhere or ctx.terms == 1:
            remainder = max(remainder, block.bound)
        else:
            blocks.append(block)
    return replace(matrix, remainder=remainder, blocks=patches.joined_blocks(blocks))


def negative(ctx: Context, value: Value) -> Value:
    """Minus a value of any kind."""
    if isinstance(value, Tensor):
        return expansion.negative(value)
    return scaled(ctx, value, tensor(np.float32(-1)))


def scaled(ctx: Context, value: Matrices, factor: Tensor) -> Matrices:
    """A matrix array times a finite number."""
    return value.map(lambda matrix: scale(ctx, matrix, factor))


def scale(ctx: Context, matrix: Matrix, factor: Tensor) -> Matrix:
    """A matrix times a finite number, term by term."""
    pieces = expansion.pieces(factor) if factor.terms[1:] else [factor]
    scaled = [_scaled_by(ctx, matrix, piece) for piece in pieces]
    return functools.reduce(functools.partial(sum_of, ctx), scaled)


def _scaled_by(ctx: Context, matrix: Matrix, factor: Tensor) -> Matrix:
    """A matrix times a number of one term."""
    if factor.vanishes:
        return zero(matrix.rows, matrix.columns)
    if not factor.exponents.uniform:
        factor = with_one_exponent(factor)
    reach = max(factor.exponents.value, factor.remainder.max())
    scaled = [part.scaled(ctx, factor) for part in matrix.parts]
    out = replace(
        matrix,
        parts=tuple(part for part, _ in scaled),
        remainder=matrix.remainder + reach,
        blocks=tuple(block + reach for block in matrix.blocks),
    )
    return _with_unknown(
        ctx, out, [part.remainder(unknown) for part, unknown in scaled if unknown != NEVER]
    )


def multiply(ctx: Context, a: Value, b: Value, low: bool = False) -> Matrices | None:
    """Product entry by entry of a matrix array and a finite array constant along both widths, or,
    where that is wanted, of matrices of ``low`` rank; None where entries have to be multiplied."""
    if isinstance(a, Matrices) and isinstance(b, Matrices):
        for first, second in ((a, b), (b, a)):
            numbers = _numbers(ctx, second)
            if numbers is not None:
                x, y = np.broadcast_arrays(first.items, numbers)
                return Matrices(map_items(lambda m, f: scale(ctx, m, f), x, y), a.axes)
        x, y = np.broadcast_arrays(a.items, b.items)
        if not low or not all(
            _low(ctx, one, other) for one, other in zip(x.flat, y.flat, strict=True)
        ):
            return None
        return Matrices(map_items(lambda m, f: _hadamard(ctx, m, f), x, y), a.axes)
    matrix, factor = (a, b) if isinstance(a, Matrices) else (b, a)
    assert isinstance(matrix, Matrices)
    assert isinstance(factor, Tensor)
    if not factor.shape:
        return scaled(ctx, matrix, factor)
    if factor.axis is not None:
        return None
    if len(factor.shape) != matrix.ndim:
        ctx.fail("A matrix and a vector are multiplied entry by entry without being broadcast.")
    numbers = np.empty(tuple(factor.shape[i] for i in matrix.finite_axes), dtype=object)
    for index in np.ndindex(numbers.shape):
        place = dict(zip(matrix.finite_axes, index, strict=True))
        numbers[index] = at(factor, tuple(place.get(i, 0) for i in range(matrix.ndim)))
    x, y = np.broadcast_arrays(matrix.items, numbers)
    return Matrices(map_items(lambda m, f: scale(ctx, m, f), x, y), matrix.axes)


def crossed(ctx: Context, a: Tensor, b: Tensor) -> Matrices:
    """``a[:, None] * b[None, :]``: a matrix of rank one."""
    if len(a.shape) != 2:
        ctx.fail("Vectors with different width axes are multiplied entry by entry.")
    first, second = (a, b) if a.axis == 0 else (b, a)
    if first.shape[1] != 1 or second.shape[0] != 1:
        ctx.fail("Vectors with different width axes are multiplied entry by entry.")
    rows, columns = ctx.equation.out_avals[0].shape
    assert isinstance(rows, Size)
    assert isinstance(columns, Size)
    return Matrices(outer(ctx, first, second, rows, columns, 1), (0, 1))


def crossed_sum(ctx: Context, a: Tensor, b: Tensor) -> Matrices:
    """``a[:, None] + b[None, :]``: a matrix of rank two."""
    ones = [
        with_parity(tensor(np.ones(x.shape, x.dtype), axis=x.axis, space=x.space), EVEN)
        for x in (a, b)
    ]
    return add(ctx, crossed(ctx, a, ones[1]), crossed(ctx, ones[0], b))


def remainder_everywhere(matrix: Matrix) -> Matrix:
    """The same matrix, what is unknown in some rows or columns being moved to the remainder."""
    remainder = max([matrix.remainder, *(block.average for block in matrix.blocks)])
    return replace(matrix, remainder=remainder, blocks=())


def _hadamard(ctx: Context, a: Matrix, b: Matrix) -> Matrix:
    """Product entry by entry of matrices whose parts know it."""
    a, b = remainder_everywhere(a), remainder_everywhere(b)
    parts = [_product_of_parts(ctx, x, y) for x in a.parts for y in b.parts]
    (known, unknown), (other, hidden) = bounds(a), bounds(b)
    out = Matrix(
        a.rows,
        a.columns,
        ctx.spaces.unify(a.row_space, b.row_space),
        ctx.spaces.unify(a.column_space, b.column_space),
        tuple(parts),
        max(known + hidden, unknown + other, unknown + hidden),
    )
    return _collected(ctx, out, parts)


def bounds(matrix: Matrix) -> tuple[Exponent, Exponent]:
    """Exponents of the largest entries that are known, and of what is unknown."""
    known = max((part.level for part in matrix.parts), default=NEVER)
    return known, max([matrix.remainder, *(part.unknown for part in matrix.parts)])


def _product_of_parts(ctx: Context, a: Part, b: Part) -> Part:
    product = a.times(ctx, b) or b.times(ctx, a)
    assert product is not None
    return product


def _low(ctx: Context, a: Matrix, b: Matrix) -> bool:
    """Whether the product, entry by entry, is smaller as a matrix of low rank."""
    if a.rows.power != 1 or any(part.factors is None for part in (*a.parts, *b.parts)):
        return False
    ranks = [sum(len(part.factors[0]) for part in m.parts if part.factors) for m in (a, b)]
    return 2 * ranks[0] * ranks[1] < min(ctx.size(a.rows), ctx.size(a.columns))


def _numbers(ctx: Context, value: Matrices) -> np.ndarray | None:
    """The number each matrix consists of, where all are constant matrices; else None."""
    numbers = [_number(ctx, matrix) for matrix in value.items.flat]
    if any(number is None for number in numbers):
        return None
    out = np.empty(value.items.shape, dtype=object)
    for index, number in zip(np.ndindex(out.shape), numbers, strict=True):
        out[index] = number
    return out


def number_of(ctx: Context, value: Matrices) -> Tensor | None:
    """The number that all entries of a matrix array are, if it is one matrix, and they are."""
    return None if value.items.ndim else _number(ctx, value.items.item())


def _number(ctx: Context, matrix: Matrix) -> Tensor | None:
    if matrix.vanishes:
        return tensor(np.zeros((), np.float32), EXACT_ZERO)
    numbers = [part.number for part in matrix.parts if part.number is not None]
    if not numbers or matrix.blocks or len(numbers) < len(matrix.parts):
        return None
    total = functools.reduce(functools.partial(expansion.plus, ctx), numbers)
    return replace(total, remainder=total.remainder.maximum(Exponents(matrix.remainder)))


def select(ctx: Context, which: Tensor, cases: Sequence[Value]) -> Matrices:
    """Choice between matrices by a finite predicate."""
    if not which.finite or which.shape:
        unsupported(ctx, "a choice by a mask")
    first = next(case for case in cases if isinstance(case, Matrices))
    total: Matrices | None = None
    for number, case in enumerate(cases):
        taken = jnp.asarray(which.coefficient) == number
        chosen = tensor(taken.astype(jnp.result_type(float)))
        part = scaled(ctx, _where(taken, _both(ctx, case, first)[0]), chosen)
        total = part if total is None else add(ctx, total, part)
    assert total is not None
    return total


def _where(taken: Any, value: Matrices) -> Matrices:
    """The same matrices, all 0 where they are not taken: infinity times 0 would be NaN."""

    def cleared(array: Any, _: int | None, role: str) -> Any:
        floating = jnp.issubdtype(jnp.result_type(array), jnp.floating)
        return jnp.where(taken, array, 0) if floating else array

    cleared_value: Matrices = map_arrays(cleared, value)
    return cleared_value


def absorbed(ctx: Context, value: Matrices) -> Matrices:
    """The same matrices with low-rank parts written as cores, so that their size stays bounded."""
    return value.map(lambda matrix: _absorb(ctx, matrix))


def _absorb(ctx: Context, matrix: Matrix) -> Matrix:
    return _collected(ctx, matrix, [part.absorbed(ctx, matrix) for part in matrix.parts])


def outer(ctx: Context, a: Tensor, b: Tensor, rows: Size, columns: Size, rank: int) -> Matrix:
    """``sum_k a_k (x) b_k`` of two vectors with ``rank`` rows each: a low-rank matrix."""
    if ctx.terms == 1:
        return _outer(ctx, with_one_exponent(a), with_one_exponent(b), rows, columns, rank)
    total = zero(rows, columns)
    for x in expansion.pieces(replace(a, remainder=EXACT_ZERO)):
        for y in expansion.pieces(replace(b, remainder=EXACT_ZERO)):
            total = sum_of(ctx, total, _outer(ctx, x, y, rows, columns, rank))
    remainder = max(total.remainder, a.remainder.max() + b.remainder.max())
    lost = _unknown_rows(a, b) + [block.T for block in _unknown_rows(b, a)]
    return _with_unknown(ctx, replace(total, remainder=remainder), lost)


def _unknown_rows(a: Tensor, b: Tensor) -> list[MatrixRemainder]:
    """What is unknown of an outer product for what is unknown of its first factor."""
    known = expansion.pieces(replace(b, remainder=EXACT_ZERO, patches=()))
    sizes = [Patch(Fraction(0), patches.bound_of(one), patches.reach(one)) for one in known]
    if b.remainder != EXACT_ZERO:
        sizes.append(Patch(Fraction(0), b.remainder.max()))
    unknown = list(a.patches)
    if a.remainder != EXACT_ZERO:
        unknown.append(Patch(Fraction(0), a.remainder.max()))
    return [
        MatrixRemainder(p.bound + q.bound, p.share, q.share, p.mask, q.mask)
        for p in unknown
        for q in (*sizes, *b.patches)
    ]


def _outer(ctx: Context, a: Tensor, b: Tensor, rows: Size, columns: Size, rank: int) -> Matrix:
    if a.vanishes or b.vanishes:
        return zero(rows, columns)
    _, rest = arithmetic.product_exponents(a, b)
    level = a.exponents.max() + b.exponents.max()
    if level == NEVER:
        return replace(zero(rows, columns), remainder=rest.max())
    dtype = jnp.result_type(a.coefficient, b.coefficient)
    one = tensor(
        np.ones((), dtype), Exponents(level), Exponents(rest.max()), stderr=relative_error(a, b)
    )
    left, right = ctx.ledger.rows(a), ctx.ledger.rows(b)
    if left.shape[0] != rank or right.shape[0] != rank:
        ctx.fail("An outer product with finite axes left over.")
    reach = [patches.reach_of_rows(x) for x in (a, b)]
    part = LowRank(left, right, one, a.parity, b.parity, *reach)
    return Matrix(rows, columns, a.space, b.space, (part,))


def relative_error(*factors: Tensor) -> Any:
    """Sampling error of a product of vectors, relative to its size; None if there is none."""
    shares = [
        arithmetic.share(factor, tuple(range(len(factor.shape))))
        for factor in factors
        if factor.stderr is not None
    ]
    return functools.reduce(operator.add, shares) if shares else None


__all__ = [
    "absorbed",
    "add",
    "bounds",
    "constant",
    "crossed",
    "multiply",
    "negative",
    "number_of",
    "order_of",
    "outer",
    "relative_error",
    "remainder_everywhere",
    "repeated",
    "scale",
    "scaled",
    "select",
    "sum_of",
    "unsupported",
    "zero",
]
