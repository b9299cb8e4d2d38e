"""``dot_general``: where finite arrays, vectors and matrices meet."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax

from tplimit._jax import primitives as p
from tplimit.algebra import arithmetic, expansion
from tplimit.errors import NoLimitError
from tplimit.gaussian import sampling
from tplimit.interpreter.cancellation import Balance
from tplimit.interpreter.context import Context
from tplimit.interpreter.table import RULES
from tplimit.matrices import matrices, products
from tplimit.matrices.parts import Matrix
from tplimit.rules import inner
from tplimit.rules.reductions import sum_of_matrices, summed
from tplimit.rules.terms import one_term_of
from tplimit.values.exponents import NEVER, Exponents, Size
from tplimit.values.rearranging import at, gathered, permuted, rearranged
from tplimit.values.tensors import Matrices, Tensor, Value, tensor

Dimensions = tuple[tuple[tuple[int, ...], tuple[int, ...]], tuple[tuple[int, ...], tuple[int, ...]]]


@RULES(p.dot_general_p)
def dot_general(ctx: Context, a: Tensor, b: Tensor, **params: Any) -> Value:
    """Contraction: matrix-vector is a query, vector-vector over a width an average or, with
    the widths left open, a low-rank matrix."""
    dims = _dimensions(params)
    if len(ctx.equation.out_avals[0].width_axes) > 1:
        return _outer(ctx, a, b, dims)
    return _tensors(ctx, a, b, dims)


def _dimensions(params: dict[str, Any]) -> Dimensions:
    (ca, cb), (ba, bb) = params["dimension_numbers"]
    return (tuple(ca), tuple(cb)), (tuple(ba), tuple(bb))


@dot_general.several
def contraction_of_series(ctx: Context, a: Tensor, b: Tensor, **params: Any) -> Value:
    dims = _dimensions(params)
    if len(ctx.equation.out_avals[0].width_axes) > 1:
        return _outer(ctx, a, b, dims)
    product = functools.partial(one_term_of, ctx)
    if a.axis is None or a.axis not in dims[0][0]:
        return expansion.bilinear(ctx, product, a, b)
    space = ctx.spaces.unify(a.space, b.space)
    parts = []
    for x in expansion.pieces(a):
        for y in expansion.pieces(b):
            parity = expansion.parity_of_product(x, y)
            if y.exponents.levels()[0] == -np.inf:
                parts.append(expansion.unknown_sum(product(x, y), parity))
                continue
            reduce = functools.partial(_flipped, product, y)
            parts += expansion.averaged(ctx, reduce, x, parity, space)
    return summed(ctx, parts, a, b)


def _flipped(product: Callable[..., Tensor], second: Tensor, first: Tensor) -> Tensor:
    return product(first, second)


@dot_general.matrices
def contraction_with_matrices(ctx: Context, a: Value, b: Value, **params: Any) -> Value:
    """A query, a finite combination of matrices, or a product of two of them."""
    dims = _dimensions(params)
    if isinstance(a, Matrices) and isinstance(b, Matrices):
        return _matrix_matrix(ctx, a, b, dims)
    if isinstance(a, Matrices):
        assert isinstance(b, Tensor)
        return _matrix_tensor(ctx, a, b, dims)
    assert isinstance(b, Matrices)
    flipped = ((dims[0][1], dims[0][0]), (dims[1][1], dims[1][0]))
    out = _matrix_tensor(ctx, b, a, flipped)
    return _swapped(out, len(dims[1][0]), _free_count(b, dims[0][1], dims[1][1]))


def _free_count(value: Value, contracted: tuple[int, ...], batch: tuple[int, ...]) -> int:
    rank = value.ndim if isinstance(value, Matrices) else len(value.shape)
    return rank - len(contracted) - len(batch)


def _swapped(out: Value, batch: int, first: int) -> Value:
    """Exchange the free axes of the operands in a result ``(batch, first, second)``."""
    rank = out.ndim if isinstance(out, Matrices) else len(out.shape)
    order = [*range(batch), *range(batch + first, rank), *range(batch, batch + first)]
    return permuted_matrices(out, order) if isinstance(out, Matrices) else permuted(out, order)


def permuted_matrices(value: Matrices, order: Sequence[int]) -> Matrices:
    """Axes of a matrix array in a new order; the matrices are transposed if their axes cross."""
    first, second = (list(order).index(axis) for axis in value.axes)
    finite = [value.finite_axes.index(axis) for axis in order if axis not in value.axes]
    items = np.transpose(value.items, finite) if value.items.ndim else value.items
    out = Matrices(items, (min(first, second), max(first, second)))
    return out if first < second else out.map(lambda matrix: matrix.T)


def _tensors(ctx: Context, a: Tensor, b: Tensor, dims: Dimensions) -> Tensor:
    (ca, cb), (ba, bb) = dims
    out_widths = ctx.equation.out_avals[0].width_axes
    over = None if a.axis is None or a.axis not in ca else a.axis
    if over is not None and (b.axis is None or ca.index(over) != cb.index(b.axis)):
        ctx.fail("A width axis is contracted with a finite axis.", NoLimitError)
    if over is None and b.axis is not None and b.axis in cb:
        ctx.fail("A width axis is contracted with a finite axis.", NoLimitError)
    space = None
    if over is not None or (a.axis in ba and b.axis in bb):
        space = ctx.spaces.unify(a.space, b.space)
    elif a.axis is not None or b.axis is not None:
        space = a.space if a.axis is not None else b.space
    axis = out_widths[0] if out_widths else None
    pieces = [
        _uniform_product(ctx, x, y, dims, axis, space, over)
        for x in _pieces(ctx, a) for y in _pieces(ctx, b)
    ]  # fmt: skip
    total = pieces[0]
    for piece in pieces[1:]:
        total = arithmetic.add(ctx, total, piece)
    return total


def _pieces(ctx: Context, value: Tensor) -> list[Tensor]:
    """A value split into one summand per exponent, so that each scales uniformly."""
    if value.exponents.uniform and value.remainder.uniform:
        return [value]
    pieces = []
    rest = value.remainder
    for level in value.exponents.levels():
        mask = value.exponents.mask(level)
        exponents = Exponents(np.where(mask, np.array(level, dtype=object), NEVER))
        part = jnp.where(mask, value.coefficient, 0)
        stderr = None if value.stderr is None else jnp.where(mask, value.stderr, 0)
        pieces.append(tensor(part, exponents, rest, value.axis, value.space, stderr))
    return pieces


def _uniform_product(
    ctx: Context, a: Tensor, b: Tensor, dims: Dimensions, axis: int | None, space: Any, over: Any
) -> Tensor:
    """Contraction of values that each have one exponent besides exact zeros."""
    product = ctx.rebind(a.coefficient, b.coefficient)
    exponents, remainder = _contracted_exponents(a, b, dims)
    if over is None:
        stderr = arithmetic.product_stderr(
            a, b, lambda x, y: lax.dot_general(x, jnp.asarray(y), dims)
        )
        zeros = None if axis is None else _zeros(a, b, dims)
        out = tensor(product, exponents, remainder, axis, space, stderr, zeros)
        both = lambda x, y: (ctx.rebind(x, y), ctx.rebind(abs(x), abs(y)))
        balance = Balance(both, [a.coefficient, b.coefficient], [a.axis, b.axis])
        return arithmetic.less_cancelled(ctx, out, lambda: balance)
    size = ctx.equation.in_avals[0].shape[over]
    assert isinstance(size, Size)
    factor, gain = arithmetic.width_factor(ctx, size)
    product = product * (factor / a.shape[over])
    exponents, remainder = arithmetic.sum_exponents(ctx, exponents, remainder, gain)
    stderr = _sum_stderr(ctx, a, b, dims)
    if stderr is not None and (a.stderr is not None or b.stderr is not None):
        stderr = stderr + _shares(a, b, dims) * jnp.abs(product)
    return tensor(product, exponents, remainder, axis, space, stderr)


def _zeros(a: Tensor, b: Tensor, dims: Dimensions) -> Any:
    """Entries of a contraction over finite axes all of whose summands are exactly zero, or None."""
    if a.zeros is None and b.zeros is None:
        return None
    x, y = (
        jnp.ones(v.shape, jnp.float32)
        if v.zeros is None else 1 - jnp.broadcast_to(v.zeros, v.shape).astype(jnp.float32)
        for v in (a, b)
    )  # fmt: skip
    return lax.dot_general(x, y, dims) == 0


def _shares(a: Tensor, b: Tensor, dims: Dimensions) -> Any:
    """Relative errors of both operands, in the shape ``(batch, free of a, free of b)``."""
    (ca, cb), (ba, bb) = dims
    first, second = arithmetic.share(a, ca), arithmetic.share(b, cb)
    free = len(b.shape) - len(cb) - len(bb)
    left = _batch_first(first, a, ca, ba)
    right = _batch_first(second, b, cb, bb)
    if np.ndim(left):
        left = jnp.reshape(left, (*left.shape, *[1] * free))
    if np.ndim(right):
        batch, middle = right.shape[: len(bb)], len(a.shape) - len(ca) - len(ba)
        right = jnp.reshape(right, (*batch, *[1] * middle, *right.shape[len(bb) :]))
    return left + right


def _batch_first(array: Any, value: Tensor, contracted: Any, batch: Any) -> Any:
    if not np.ndim(array):
        return array
    left = [i for i in range(len(value.shape)) if i not in contracted]
    order = [*(left.index(i) for i in batch), *(k for k, i in enumerate(left) if i not in batch)]
    return jnp.transpose(array, order)


def _sum_stderr(ctx: Context, a: Tensor, b: Tensor, dims: Dimensions) -> Any:
    """Standard error of a width average of products over the particles."""
    if ctx.exact or a.axis is None or b.axis is None:
        return None
    x, y = jnp.asarray(a.coefficient), jnp.asarray(b.coefficient)
    size = ctx.equation.in_avals[0].shape[a.axis]
    assert isinstance(size, Size)
    return float(size.ratio) * sampling.error_of_product(x, y, dims, (a.axis, b.axis))


def _contracted_exponents(a: Tensor, b: Tensor, dims: Dimensions) -> tuple[Exponents, Exponents]:
    """Largest exponent over the contracted entries, entry by entry of the result."""
    arrays = (a.exponents, b.exponents, a.remainder, b.remainder)
    if all(e.uniform for e in arrays):
        return arithmetic.product_exponents(a, b)
    e, f = _expanded(a.exponents, a), _expanded(b.exponents, b)
    r, s = _expanded(a.remainder, a), _expanded(b.remainder, b)
    known = _max_plus(e, f, dims)
    rest = np.maximum(
        _max_plus(e, s, dims), np.maximum(_max_plus(r, f, dims), _max_plus(r, s, dims))
    )
    return Exponents(known), Exponents(rest)


def _expanded(exponents: Exponents, value: Tensor) -> np.ndarray:
    shape = tuple(1 if i == value.axis else d for i, d in enumerate(value.shape))
    return np.broadcast_to(exponents.array, shape)


def _max_plus(a: np.ndarray, b: np.ndarray, dims: Dimensions) -> np.ndarray:
    """Contraction in which sums are maxima and products are sums: how exponents contract."""
    (ca, cb), (ba, bb) = dims
    fa = [i for i in range(a.ndim) if i not in ca and i not in ba]
    fb = [i for i in range(b.ndim) if i not in cb and i not in bb]
    left = np.transpose(a, [*ba, *fa, *ca])
    right = np.transpose(b, [*bb, *fb, *cb])
    nb, na, nc = len(ba), len(fa), len(ca)
    left = left.reshape(
        *left.shape[:nb], *left.shape[nb : nb + na], *[1] * len(fb), *left.shape[nb + na :]
    )
    right = right.reshape(*right.shape[:nb], *[1] * na, *right.shape[nb:])
    total = np.asarray(left + right, dtype=object)
    for _ in range(nc):
        total = np.maximum.reduce(total, axis=-1)
    return np.asarray(total, dtype=object)


def _outer(ctx: Context, a: Tensor, b: Tensor, dims: Dimensions) -> Matrices:
    """Vector times vector with both widths open: matrices of rank the contracted size."""
    (ca, cb), (ba, bb) = dims
    assert a.axis is not None and b.axis is not None
    rows = ctx.equation.in_avals[0].shape[a.axis]
    columns = ctx.equation.in_avals[1].shape[b.axis]
    assert isinstance(rows, Size) and isinstance(columns, Size)
    free_a = [i for i in range(len(a.shape)) if i not in (*ca, *ba, a.axis)]
    free_b = [i for i in range(len(b.shape)) if i not in (*cb, *bb, b.axis)]
    # Result axes: batch, free of a (its width among them), free of b.
    order_a = [i for i in range(len(a.shape)) if i not in (*ca, *ba)]
    order_b = [i for i in range(len(b.shape)) if i not in (*cb, *bb)]
    first = len(ba) + order_a.index(a.axis)
    second = len(ba) + len(order_a) + order_b.index(b.axis)
    batch = tuple(a.shape[i] for i in ba)
    shape = (*batch, *(a.shape[i] for i in free_a), *(b.shape[i] for i in free_b))
    items = np.empty(shape, dtype=object)
    rank = int(np.prod([a.shape[i] for i in ca], dtype=int))
    for index in np.ndindex(shape):
        nb, na = len(ba), len(free_a)
        x = _picked(a, dict(zip([*ba, *free_a], index[: nb + na], strict=True)), ca)
        y = _picked(b, dict(zip([*bb, *free_b], (*index[:nb], *index[nb + na :]), strict=True)), cb)
        items[index] = matrices.outer(ctx, x, y, rows, columns, rank)
    return Matrices(items, (first, second))


def _picked(value: Tensor, fixed: dict[int, int], contracted: tuple[int, ...]) -> Tensor:
    """A vector at fixed finite indices, with the contracted axes in order before the width."""
    assert value.axis is not None
    left = [i for i in range(len(value.shape)) if i not in fixed]
    return permuted(_fixed(value, fixed), [left.index(i) for i in (*contracted, value.axis)])


def _fixed(value: Tensor, fixed: dict[int, int]) -> Tensor:
    """A value at fixed indices along some axes."""
    if not fixed:
        return value
    return at(value, tuple(fixed.get(i, slice(None)) for i in range(len(value.shape))))


def _matrix_tensor(ctx: Context, a: Matrices, b: Tensor, dims: Dimensions) -> Value:
    """Matrix array times finite array or vector; result axes: batch, free of a, free of b."""
    (ca, cb), (ba, bb) = dims
    touched = [axis for axis in a.axes if axis in ca or axis in ba]
    if not touched:
        return _combined(ctx, a, b, dims)
    if len(touched) > 1 or touched[0] in ba:
        ctx.fail("Both width axes of a matrix are contracted at once, or kept in step.")
    along = touched[0]
    if b.axis is None or b.axis != cb[ca.index(along)]:
        ctx.fail("A width axis of a matrix is contracted with a finite axis.", NoLimitError)
    size = _size(ctx, a, along)
    keep = a.axes[1] if along == a.axes[0] else a.axes[0]
    finite = a.finite_axes
    # b as (batch, contracted finite axes, free, width)
    inner = [(i, j) for i, j in zip(ca, cb, strict=True) if i != along]
    free_b = [i for i in range(len(b.shape)) if i not in (*cb, *bb)]
    free_a = [i for i in finite if i not in (*ca, *ba)]
    batch_shape = tuple(b.shape[i] for i in bb)
    free_shape = tuple(a.items.shape[finite.index(i)] for i in free_a)
    tail = tuple(b.shape[i] for i in free_b)
    rows = np.empty((*batch_shape, *free_shape), dtype=object)
    for index in np.ndindex(rows.shape):
        total = None
        for inside in np.ndindex(tuple(b.shape[j] for _, j in inner)):
            where_a = {
                **dict(zip(ba, index[: len(ba)], strict=True)),
                **dict(zip(free_a, index[len(ba) :], strict=True)),
                **dict(zip([i for i, _ in inner], inside, strict=True)),
            }
            where_b = {
                **dict(zip(bb, index[: len(bb)], strict=True)),
                **dict(zip([j for _, j in inner], inside, strict=True)),
            }
            matrix = a.items[tuple(where_a[i] for i in finite)]
            oriented = matrix if along == a.axes[1] else matrix.T
            image = products.apply(ctx, oriented, _fixed(b, where_b), size)
            total = image if total is None else expansion.plus(ctx, total, image)
        rows[index] = total
    images, shape = list(rows.flat), (*rows.shape, *tail, ctx.size(_size(ctx, a, keep)))
    stacked = rearranged(
        images, lambda *arrays: _stacked(arrays).reshape(shape),
        len(shape) - 1, ctx.spaces.unify(*(image.space for image in images)),
    )  # fmt: skip
    # Axes now: batch, free finite of a, free of b, width. Put the width where a had it.
    order_a = [i for i in range(a.ndim) if i not in (*ca, *ba)]
    nb, nf, nt = len(ba), len(free_a), len(tail)
    positions = {i: nb + free_a.index(i) for i in free_a} | {keep: nb + nf + nt}
    order = [*range(nb), *(positions[i] for i in order_a), *range(nb + nf, nb + nf + nt)]
    return permuted(stacked, order)


def _stacked(arrays: Sequence[Any]) -> Any:
    return jnp.asarray(arrays[0]) if len(arrays) == 1 else jnp.stack(arrays)


def _size(ctx: Context, a: Matrices, axis: int) -> Size:
    matrix: Matrix = next(iter(a.items.flat))
    return matrix.rows if axis == a.axes[0] else matrix.columns


def _combined(ctx: Context, a: Matrices, b: Tensor, dims: Dimensions) -> Matrices:
    """Finite contraction of a matrix array: linear combinations of matrices."""
    (ca, cb), (ba, bb) = dims
    if b.axis is not None:
        ctx.fail("A product of a matrix and a vector with three width axes.")
    finite = a.finite_axes
    free_a = [i for i in finite if i not in (*ca, *ba)]
    free_b = [i for i in range(len(b.shape)) if i not in (*cb, *bb)]
    shape = (
        *(b.shape[i] for i in bb), *(a.items.shape[finite.index(i)] for i in free_a),
        *(b.shape[i] for i in free_b),
    )  # fmt: skip
    items = np.empty(shape, dtype=object)
    nb, na = len(ba), len(free_a)
    for index in np.ndindex(shape):
        total: Matrix | None = None
        for inside in np.ndindex(tuple(b.shape[i] for i in cb)):
            at_a = dict(zip([*ba, *free_a, *ca], (*index[: nb + na], *inside), strict=True))
            at_b = dict(
                zip([*bb, *free_b, *cb], (*index[:nb], *index[nb + na :], *inside), strict=True)
            )
            number = at(b, tuple(at_b[i] for i in range(len(b.shape))))
            matrix = a.items[tuple(at_a[i] for i in finite)]
            part = matrices.scale(ctx, matrix, number)
            total = part if total is None else matrices.sum_of(ctx, total, part)
        items[index] = total
    order_a = [i for i in range(a.ndim) if i not in (*ca, *ba)]
    axes = tuple(nb + order_a.index(axis) for axis in a.axes)
    return Matrices(items, (axes[0], axes[1]))


def _matrix_matrix(ctx: Context, a: Matrices, b: Matrices, dims: Dimensions) -> Value:
    """Products of matrices over one width; one of them must be of low rank, or both functions of
    pairs. Over both widths, sums of their products entry by entry. Result axes: batch, free of a,
    free of b."""
    (ca, cb), (ba, bb) = dims
    widths = [(i, j) for i, j in zip(ca, cb, strict=True) if i in a.axes]
    inside = [(i, j) for i, j in zip(ca, cb, strict=True) if i not in a.axes]
    crossed = any(j not in b.axes for _, j in widths) or any(j in b.axes for _, j in inside)
    if not widths or crossed or any(i in a.axes for i in ba):
        ctx.fail("Matrices are multiplied over no width, or over one and a finite axis.")
    of_two: Any = _inner_product if len(widths) == 2 else _product
    of_two = functools.partial(of_two, ctx, a.axes, b.axes, widths)
    add: Any = expansion.plus if len(widths) == 2 else matrices.sum_of
    free_a = [i for i in a.finite_axes if i not in (*ca, *ba)]
    free_b = [i for i in b.finite_axes if i not in (*cb, *bb)]
    length = lambda value, axis: value.items.shape[value.finite_axes.index(axis)]
    left, right = [*ba, *free_a], [*bb, *free_b]
    shape = (*(length(a, i) for i in left), *(length(b, i) for i in free_b))
    items = np.empty(shape, dtype=object)
    for index in np.ndindex(shape):
        outer_a = dict(zip(left, index[: len(left)], strict=True))
        outer_b = dict(zip(right, (*index[: len(ba)], *index[len(left) :]), strict=True))
        total: Any = None
        for place in np.ndindex(tuple(length(a, i) for i, _ in inside)):
            at_a = outer_a | dict(zip([i for i, _ in inside], place, strict=True))
            at_b = outer_b | dict(zip([j for _, j in inside], place, strict=True))
            one = of_two(
                a.items[tuple(at_a[i] for i in a.finite_axes)],
                b.items[tuple(at_b[j] for j in b.finite_axes)],
            )
            total = one if total is None else add(ctx, total, one)
        items[index] = total
    if len(widths) == 2:
        return gathered(items, None, None)
    order_a = [i for i in range(a.ndim) if i not in (*ca, *ba)]
    order_b = [i for i in range(b.ndim) if i not in (*cb, *bb)]
    (row,) = (order_a.index(i) for i in a.axes if i not in ca)
    (column,) = (order_b.index(j) for j in b.axes if j not in cb)
    return Matrices(items, (len(ba) + row, len(ba) + len(order_a) + column))


def _product(ctx: Context, axes: Any, others: Any, widths: Any, a: Matrix, b: Matrix) -> Matrix:
    ((i, j),) = widths
    left, right = a if i == axes[1] else a.T, b if j == others[0] else b.T
    return products.product(ctx, left, right, left.columns)


def _inner_product(
    ctx: Context, axes: Any, others: Any, widths: Any, a: Matrix, b: Matrix
) -> Tensor:
    straight = dict(widths)[axes[0]] == others[0]
    first, second = Matrices(a, (0, 1)), Matrices(b if straight else b.T, (0, 1))
    product = matrices.multiply(ctx, first, second, low=True) or inner.product(ctx, first, second)
    assert product is not None
    total = sum_of_matrices(ctx, product, (0, 1))
    assert isinstance(total, Tensor)
    return total
