"""Arithmetic of matrices with two width axes: sums, scales, products with vectors, absorption."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NoReturn

import jax.numpy as jnp
import numpy as np

from tplimit import algebra, expansion, patches
from tplimit.interpret import Context
from tplimit.parity import EVEN
from tplimit.rearranging import at
from tplimit.values import (
    Block,
    Core,
    Gaussian,
    LowRank,
    Matrices,
    Matrix,
    Tensor,
    Value,
    demoted,
    map_items,
    tensor,
    with_parity,
)  # fmt: skip
from tplimit.widths import NEVER, NONE, Exponent, Exponents, Size


def unsupported(ctx: Context, what: str) -> NoReturn:
    ctx.fail(
        f"tplimit does not support {what} of a matrix with two width axes.",
        advice="Sums, finite factors and products with vectors are supported: gradient descent, "
        "momentum and weight decay are, Adam, sign descent and clipping are not yet.",
    )


def zero(rows: Size, columns: Size) -> Matrix:
    return Matrix(rows, columns, None, None)


def constant(ctx: Context, rows: Size, columns: Size, value: Tensor) -> Matrix:
    """A matrix all of whose entries are one finite number: rank one."""
    if value.vanishes:
        return zero(rows, columns)
    dtype = jnp.result_type(float) if value.dtype.kind != "f" else value.dtype
    left = jnp.ones((1, ctx.size(rows)), dtype)
    right = jnp.ones((1, ctx.size(columns)), dtype)
    return Matrix(rows, columns, None, None, low_rank=(LowRank(left, right, value, EVEN, EVEN),))


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
    row_space = ctx.unify(a.row_space, b.row_space)
    column_space = ctx.unify(a.column_space, b.column_space)
    gaussians = _merged_gaussians(ctx, [*a.gaussians, *b.gaussians])
    remainder = max(a.remainder, b.remainder)
    cores, lost = _leading(ctx, [*a.cores, *b.cores], [*a.low_rank, *b.low_rank])
    parts = [*a.low_rank, *b.low_rank]
    low_rank = tuple(part for part in parts if level_of(part) not in lost | {NEVER})
    remainder, blocks = _unknown_scales(parts, max([remainder, *lost]), [*a.blocks, *b.blocks])
    return Matrix(
        a.rows, a.columns, row_space, column_space, gaussians, cores, low_rank, remainder,
        patches.joined_blocks(blocks),
    )  # fmt: skip


def _unknown_scales(
    parts: Sequence[LowRank], remainder: Exponent, blocks: list[Block]
) -> tuple[Exponent, list[Block]]:
    """What is unknown of a matrix, and in places, with that of the scales of its parts."""
    for part in parts:
        lost = part.scale.remainder.max()
        if lost != NEVER:
            block = Block(lost, rows=part.row_mask, columns=part.column_mask)
            remainder, blocks = _placed(block, remainder, blocks)
    return remainder, blocks


def level_of(part: LowRank) -> Exponent:
    return part.scale.exponents.max()


def _leading(
    ctx: Context, cores: Sequence[Core], low: Sequence[LowRank]
) -> tuple[tuple[Core, ...], set[Exponent]]:
    """Cores summed by store and order; of parts of different order only the largest are kept."""
    levels = {core.exponent for core in cores} | {level_of(part) for part in low}
    levels.discard(NEVER)
    kept = set(sorted(levels, reverse=True)[: ctx.terms])
    summed: dict[tuple[int, bool, Exponent], Core] = {}
    for core in cores:
        if core.exponent not in kept:
            continue
        key = (core.store, core.transposed, core.exponent)
        found = summed.get(key)
        if found is not None:
            core = replace(
                found,
                core=found.core + core.core,
                row_mask=_either(found.row_mask, core.row_mask),
                column_mask=_either(found.column_mask, core.column_mask),
            )
        summed[key] = core
    return tuple(summed.values()), levels - kept


def _either(a: Any, b: Any) -> Any:
    """Mask of a sum; None is everywhere."""
    return None if a is None or b is None else a | b


def _merged_gaussians(ctx: Context, parts: Sequence[Gaussian]) -> tuple[Gaussian, ...]:
    merged: dict[tuple[int, bool], Gaussian] = {}
    for part in parts:
        key = (part.store, part.transposed)
        found = merged.get(key)
        if found is None:
            merged[key] = part
            continue
        scale = algebra.add(ctx, found.scale, part.scale)
        merged[key] = replace(part, scale=scale)
    return tuple(part for part in merged.values() if part.scale.exponents.max() != NEVER)


def negative(ctx: Context, value: Value) -> Value:
    """Minus a value of any kind."""
    if isinstance(value, Tensor):
        return expansion.negative(value)
    return scaled(ctx, value, tensor(np.float32(-1)))


def scaled(ctx: Context, value: Matrices, factor: Tensor) -> Matrices:
    """A matrix array times a finite number."""
    return value.map(lambda matrix: scale(ctx, matrix, factor))


def scale(ctx: Context, matrix: Matrix, factor: Tensor) -> Matrix:
    """A matrix times a finite scalar."""
    if factor.vanishes:
        return zero(matrix.rows, matrix.columns)
    if not factor.exponents.uniform:
        factor = demoted(factor)
    level = factor.exponents.value
    gaussians = tuple(
        replace(g, scale=algebra.multiply(ctx, g.scale, factor)) for g in matrix.gaussians
    )
    cores = tuple(
        replace(c, core=c.core * factor.coefficient, exponent=c.exponent + level)
        for c in matrix.cores
    )
    low_rank = tuple(
        replace(part, scale=algebra.multiply(ctx, part.scale, factor)) for part in matrix.low_rank
    )
    lost = factor.remainder.max()
    remainder = matrix.remainder + max(level, lost)
    blocks = [block + max(level, lost) for block in matrix.blocks]
    for core in matrix.cores if lost != NEVER else ():
        block = Block(core.exponent + lost, rows=core.row_mask, columns=core.column_mask)
        remainder, blocks = _placed(block, remainder, blocks)
    return Matrix(
        matrix.rows, matrix.columns, matrix.row_space, matrix.column_space,
        gaussians, cores, low_rank, remainder, patches.joined_blocks(blocks),
    )  # fmt: skip


def _placed(block: Block, remainder: Exponent, blocks: list[Block]) -> tuple[Exponent, list[Block]]:
    """What is unknown of a matrix, and in places, with this in addition."""
    if block.rows is None and block.columns is None and block.average == block.bound:
        return max(remainder, block.bound), blocks
    return remainder, [*blocks, block]


def multiply(ctx: Context, a: Value, b: Value) -> Matrices:
    """Product entry by entry of a matrix array and a finite array constant along both widths."""
    if isinstance(a, Matrices) and isinstance(b, Matrices):
        for first, second in ((a, b), (b, a)):
            numbers = _rank_one_constants(second)
            if numbers is not None:
                x, y = np.broadcast_arrays(first.items, numbers)
                return Matrices(map_items(lambda m, f: scale(ctx, m, f), x, y), a.axes)
        x, y = np.broadcast_arrays(a.items, b.items)
        return Matrices(map_items(lambda m, f: _hadamard(ctx, m, f), x, y), a.axes)
    matrix, factor = (a, b) if isinstance(a, Matrices) else (b, a)
    assert isinstance(matrix, Matrices)
    assert isinstance(factor, Tensor)
    if not factor.shape:
        return scaled(ctx, matrix, factor)
    if factor.axis is not None or len(factor.shape) != matrix.ndim:
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
    assert ctx.equation is not None
    rows, columns = ctx.equation.out_avals[0].shape
    assert isinstance(rows, Size)
    assert isinstance(columns, Size)
    return Matrices(outer(ctx, first, second, rows, columns, 1), (0, 1))


def settled(matrix: Matrix) -> Matrix:
    """The same matrix, what is unknown in some rows or columns being moved to the remainder."""
    remainder = max([matrix.remainder, *(block.average for block in matrix.blocks)])
    return replace(matrix, remainder=remainder, blocks=())


def _hadamard(ctx: Context, a: Matrix, b: Matrix) -> Matrix:
    """Product entry by entry of two low-rank matrices: the ranks multiply."""
    a, b = settled(a), settled(b)
    if a.gaussians or a.cores or b.gaussians or b.cores:
        unsupported(ctx, "the product, entry by entry, with another matrix")
    parts = []
    for x in a.low_rank:
        for y in b.low_rank:
            rows = (x.rows[:, None] * y.rows[None]).reshape(-1, x.rows.shape[1])
            columns = (x.columns[:, None] * y.columns[None]).reshape(-1, x.columns.shape[1])
            parts.append(LowRank(rows, columns, algebra.multiply(ctx, x.scale, y.scale)))
    lost = [a.remainder + b.remainder]
    lost += [a.remainder + level_of(y) for y in b.low_rank]
    lost += [b.remainder + level_of(x) for x in a.low_rank]
    out = zero(a.rows, a.columns)
    for part in parts:
        out = sum_of(ctx, out, replace(zero(a.rows, a.columns), low_rank=(part,)))
    row_space = ctx.unify(a.row_space, b.row_space)
    column_space = ctx.unify(a.column_space, b.column_space)
    return replace(
        out,
        row_space=row_space,
        column_space=column_space,
        remainder=max(out.remainder, *lost),
    )


def _rank_one_constants(value: Matrices) -> np.ndarray | None:
    """The number each matrix consists of, where all are constant matrices; else None."""
    for item in value.items.flat:
        constant_part = len(item.low_rank) == 1 and item.row_space is item.column_space is None
        if item.gaussians or item.cores or not (constant_part or item.vanishes):
            return None
    nothing = tensor(np.zeros((), np.float32), NONE)
    return map_items(lambda m: m.low_rank[0].scale if m.low_rank else nothing, value.items)


def select(ctx: Context, which: Tensor, cases: Sequence[Value]) -> Matrices:
    """Choice between matrices by a finite predicate."""
    if not which.finite or which.shape:
        unsupported(ctx, "a choice by a mask")
    first = next(case for case in cases if isinstance(case, Matrices))
    total: Matrices | None = None
    for number, case in enumerate(cases):
        chosen = tensor((jnp.asarray(which.coefficient) == number).astype(jnp.result_type(float)))
        part = scaled(ctx, _both(ctx, case, first)[0], chosen)
        total = part if total is None else add(ctx, total, part)
    assert total is not None
    return total


def absorbed(ctx: Context, value: Matrices) -> Matrices:
    """The same matrices with low-rank parts written as cores, so that their size stays bounded."""
    return value.map(lambda matrix: _absorb(ctx, matrix))


def _absorb(ctx: Context, matrix: Matrix) -> Matrix:
    kept, cores = [], list(matrix.cores)
    for part in matrix.low_rank:
        home = _home(ctx, matrix, part)
        if home is None:
            kept.append(part)
            continue
        store, transposed = home
        left = ctx.coordinates(store, not transposed, part.rows)
        right = ctx.coordinates(store, transposed, part.columns)
        kernel = (left.T @ right) * part.scale.coefficient
        kernel = kernel.T if transposed else kernel
        masks = part.row_mask, part.column_mask
        cores.append(Core(kernel, level_of(part), store, transposed, *masks))
    if not matrix.low_rank:
        return matrix
    summed, lost = _leading(ctx, cores, kept)
    remainder, blocks = _unknown_scales(
        matrix.low_rank, max([matrix.remainder, *lost]), [*matrix.blocks]
    )
    kept = [part for part in kept if level_of(part) not in lost]
    return replace(
        matrix, cores=summed, low_rank=tuple(kept), remainder=remainder,
        blocks=patches.joined_blocks(blocks),
    )  # fmt: skip


def _home(ctx: Context, matrix: Matrix, part: LowRank) -> tuple[int, bool] | None:
    """Store in whose bases a low-rank part is written: the matrix's own, or one that knows it."""
    if matrix.gaussians:
        return matrix.gaussians[0].store, matrix.gaussians[0].transposed
    if matrix.cores:
        return matrix.cores[0].store, matrix.cores[0].transposed
    if ctx.bank is None:
        return None
    for index in range(len(ctx.bank.stores)):
        for transposed in (False, True):
            if ctx.recall(index, transposed, part.columns) is not None:
                return index, transposed
            if ctx.recall(index, not transposed, part.rows) is not None:
                return index, transposed
    return None


def outer(ctx: Context, a: Tensor, b: Tensor, rows: Size, columns: Size, rank: int) -> Matrix:
    """``sum_k a_k (x) b_k`` of two vectors with ``rank`` rows each: a low-rank matrix."""
    if ctx.terms == 1:
        return _outer(ctx, demoted(a), demoted(b), rows, columns, rank)
    total = zero(rows, columns)
    for x in expansion.pieces(replace(a, remainder=NONE)):
        for y in expansion.pieces(replace(b, remainder=NONE)):
            total = sum_of(ctx, total, _outer(ctx, x, y, rows, columns, rank))
    remainder = max(total.remainder, a.remainder.max() + b.remainder.max())
    blocks: list[Block] = []
    for block in _unknown_rows(a, b) + [block.T for block in _unknown_rows(b, a)]:
        remainder, blocks = _placed(block, remainder, blocks)
    return replace(total, remainder=remainder, blocks=patches.joined_blocks(blocks))


def _unknown_rows(a: Tensor, b: Tensor) -> list[Block]:
    """What is unknown of an outer product for what is unknown of its first factor."""
    size, mask = patches.bound_of(b), patches.reach(b)
    known = mask if b.remainder == NONE else None
    found = [Block(p.bound + size, p.share, rows=p.mask, columns=known) for p in a.patches]
    if a.remainder != NONE:
        found.append(Block(a.remainder.max() + size, columns=mask))
    return found


def _outer(ctx: Context, a: Tensor, b: Tensor, rows: Size, columns: Size, rank: int) -> Matrix:
    if a.vanishes or b.vanishes:
        return zero(rows, columns)
    _, rest = algebra.product_exponents(a, b)
    level = a.exponents.max() + b.exponents.max()
    if level == NEVER:
        return replace(zero(rows, columns), remainder=rest.max())
    dtype = jnp.result_type(a.coefficient, b.coefficient)
    one = tensor(np.ones((), dtype), Exponents(level), Exponents(rest.max()))
    left, right = ctx.rows(a), ctx.rows(b)
    if left.shape[0] != rank or right.shape[0] != rank:
        ctx.fail("An outer product with finite axes left over.")
    masks = (None, None) if ctx.terms == 1 else (patches.reach(a), patches.reach(b))
    part = LowRank(left, right, one, a.parity, b.parity, *masks)
    return Matrix(rows, columns, a.space, b.space, low_rank=(part,))


__all__ = [
    "absorbed",
    "add",
    "constant",
    "crossed",
    "multiply",
    "negative",
    "outer",
    "repeated",
    "scale",
    "scaled",
    "select",
    "sum_of",
    "unsupported",
    "zero",
]
