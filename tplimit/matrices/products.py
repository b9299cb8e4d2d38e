"""Products of matrices with vectors, and with matrices of low rank."""

import functools
from dataclasses import replace
from fractions import Fraction
from typing import Any

import jax.numpy as jnp
import numpy as np

from tplimit.algebra import arithmetic, expansion
from tplimit.gaussian import noise
from tplimit.gaussian.sampling import error_of_mean, share_of_averages
from tplimit.interpreter.context import Context
from tplimit.matrices import composed, pairs
from tplimit.matrices.composed import Composed
from tplimit.matrices.low_rank import LowRank
from tplimit.matrices.matrices import bounds, order_of, relative_error, remainder_everywhere, sum_of
from tplimit.matrices.parts import Image, Matrix, Rows
from tplimit.values import patches
from tplimit.values.exponents import EXACT_ZERO, HALF, NEVER, Exponents, Size
from tplimit.values.parity import EVEN, UNKNOWN, Parity
from tplimit.values.tensors import (
    Patch,
    Tensor,
    parity_of_unknown,
    tensor,
    with_one_exponent,
    with_parity,
)


def apply(ctx: Context, matrix: Matrix, x: Tensor, size: Size) -> Tensor:
    """``A x`` over the columns of ``A``: rows ``(k, M)``, with the exponents of the finite axes.

    It is the sum of the images under the parts of ``A``. All terms of ``x`` are asked for at once.
    """
    space = ctx.spaces.unify(matrix.column_space, x.space)
    if ctx.terms > 1 and x.terms[0].exponents == EXACT_ZERO:
        return expansion.add(ctx, *_image_of_unknown(ctx, matrix, x, size))
    pieces = [p for p in expansion.pieces(x) if p.exponents != EXACT_ZERO] if ctx.terms > 1 else [x]
    rows = [ctx.ledger.rows(piece) for piece in pieces]
    block = rows[0] if len(rows) == 1 else jnp.concatenate(rows)
    parities = [piece.parity for piece in pieces]
    asked = Rows(block, rows, parities, size, space, matrix.parts, {})
    images = [part.image(ctx, asked) for part in matrix.parts]
    count = rows[0].shape[0]
    parts = []
    for number, piece in enumerate(pieces):
        place = slice(number * count, (number + 1) * count)
        here = [image.at(number, place) for image in images]
        parts += _image(ctx, matrix, piece, here, size)
    if ctx.terms > 1:
        return expansion.add(ctx, *parts, *_image_of_unknown(ctx, matrix, x, size))
    total = parts[0]
    for part in parts[1:]:
        total = arithmetic.add(ctx, total, part)
    error = arithmetic.combined_stderr(_image_stderr(ctx, x, total.coefficient), total.stderr)
    return tensor(total.coefficient, total.exponents, total.remainder, 1, matrix.row_space, error)


def _image(
    ctx: Context, matrix: Matrix, x: Tensor, images: list[Image], size: Size
) -> list[Tensor]:
    """The image of a vector of one term as a sum."""
    exponents, remainder = _row_exponents(x.exponents, x), _row_exponents(x.remainder, x)
    _, gain = arithmetic.width_factor(ctx, size)
    parts: list[Tensor] = []
    several = ctx.terms > 1
    for image in images:
        level, lost = exponents + image.lift, remainder + image.lift
        error = image.stderr
        if several:  # else that of the vector is added to the whole image, see apply
            error = arithmetic.combined_stderr(_image_stderr(ctx, x, image.mean), error)
        mean = tensor(image.mean, level, lost, 1, matrix.row_space, error)
        if not several:
            rest = _clt(ctx, level, lost)
            mean = replace(mean, remainder=rest)
            parts.append(arithmetic.multiply(ctx, mean, image.scale))
            continue
        # Without the change its order is all that is known.
        unknown = lost.maximum(level + (-HALF if image.change is None else -1))
        values = [
            _within(image.mask, with_parity(replace(mean, remainder=unknown), image.parity[0]))
        ]
        if image.change is not None:
            change = tensor(image.change, level + -HALF, EXACT_ZERO, 1, matrix.row_space)
            values.append(_within(image.mask, with_parity(change, image.change_parity)))
        for value in values:
            product = expansion.multiply(ctx, value, image.scale)
            parts.append(replace(product, space=matrix.row_space))
    if not several and matrix.remainder != NEVER:
        lift = matrix.remainder + gain
        order = (exponents + lift).maximum(remainder + lift)
        parts.append(_nothing(ctx, matrix, x, order))
    return parts or [_nothing(ctx, matrix, x)]


def _within(mask: Any, value: Tensor) -> Tensor:
    """An image that is exactly zero but on these coordinates."""
    if mask is None:
        return value
    term = replace(value.terms[0], zeros=jnp.broadcast_to(~mask, value.shape))
    out = replace(value, terms=(term,), remainder=EXACT_ZERO)
    if value.remainder == EXACT_ZERO:
        return out
    return patches.with_patches(out, Patch(Fraction(0), value.remainder.max(), mask))


def _image_of_unknown(ctx: Context, matrix: Matrix, x: Tensor, size: Size) -> list[Tensor]:
    """The image of what is unknown of a vector, and under what is unknown of the matrix."""
    unknown = _row_exponents(patches.remainder_everywhere(x).remainder, x)
    bound = patches.bound_of(x)
    _, gain = arithmetic.width_factor(ctx, size)
    parity = parity_of_unknown(x) if not x.patches else UNKNOWN
    rest, whole = matrix.remainder + gain, _row_exponents(x.exponents, x)
    found: list[tuple[Exponents, Any, Parity]] = [(unknown + rest, None, UNKNOWN)]
    found.append((whole + rest, None, UNKNOWN))
    for part in matrix.parts:
        order = unknown + order_of(ctx, part)
        found.append((order, part.row_mask, part.symmetry(ctx, parity)))
    nothing = _nothing(ctx, matrix, x)
    values = [
        _within(mask, expansion.symmetric(replace(nothing, remainder=order), symmetry))
        for order, mask, symmetry in found
    ]
    for block in matrix.blocks:
        patch = Patch(block.row_share, block.bound + block.column_share + gain + bound, block.rows)
        if block.rows is None and block.row_share == 0:
            values.append(replace(nothing, remainder=Exponents(patch.bound)))
        else:
            values.append(patches.with_patches(nothing, patch))
    return values


def _nothing(ctx: Context, matrix: Matrix, x: Tensor, unknown: Exponents = EXACT_ZERO) -> Tensor:
    shape = (ctx.ledger.rows(x).shape[0], ctx.size(matrix.rows))
    zeros = np.broadcast_to(np.zeros((), x.dtype), shape)
    return with_parity(tensor(zeros, EXACT_ZERO, unknown, 1, matrix.row_space), EVEN)


def _image_stderr(ctx: Context, x: Tensor, image: Any) -> Any:
    """Standard error of an image from that of the vector: the same share of each row.

    A matrix acts on a row as a whole, so only the size of the error counts, not its place. The size
    of the image is that of the row, an average over particles. Its error is no larger than what the
    spread of the image shows where moments are matched, but not of products of vectors, or where
    particles are drawn inside of the program or are a share of those of a width.
    """
    shared = x.space is not None and ctx.spaces.unit(x.space) is not None
    apart = ctx.spaces.has_draws or x.space is None or shared
    apart = apart or any(term.parity.marginal.mixed for term in x.terms)
    unmatched = apart and not ctx.exact
    if x.stderr is None and not unmatched:
        return None
    rows = ctx.ledger.rows(x)
    squares = rows * rows
    size = jnp.mean(squares, axis=1, keepdims=True)
    size = jnp.where(size > 0, size, 1)
    share = error_of_mean(squares, 1)[:, None] / (2 * size) if unmatched else 0
    if x.stderr is not None:
        errors = ctx.ledger.rows(tensor(jnp.broadcast_to(x.stderr, x.shape), axis=x.axis))
        share = share + jnp.sqrt(jnp.mean(errors * errors, axis=1, keepdims=True) / size)
    return share * jnp.abs(image)


def _clt(ctx: Context, exponents: Exponents, remainder: Exponents) -> Exponents:
    """Remainder of a width average: what was unknown, and the fluctuation at half an order less."""
    return remainder if ctx.exact else remainder.maximum(exponents + -HALF)


def _row_exponents(exponents: Exponents, x: Tensor) -> Exponents:
    if exponents.uniform:
        return exponents
    assert x.axis is not None
    return Exponents(np.moveaxis(exponents.array, x.axis, -1).reshape(-1, 1))


def product(ctx: Context, a: Matrix, b: Matrix, inner_size: Size) -> Matrix:
    """``A B``, one of the two being of low rank, or both functions of pairs."""
    ctx.spaces.unify(a.column_space, b.row_space)
    left = composed.between(ctx, a)
    right = None if left is None else composed.between(ctx, b)
    if left is not None and right is not None:
        return _composed(ctx, a, left, b, right, inner_size)
    factors = [part.factors for part in b.parts]
    if any(factor is None for factor in factors):
        if any(part.factors is None for part in a.parts):
            if pairs.known(a) and pairs.known(b):
                return _product_of_pairs(ctx, a, b, inner_size)
            ctx.fail(
                "The product of two Gaussian matrices is not formed.",
                advice="Multiply vectors instead: (x @ W1) @ W2 rather than x @ (W1 @ W2).",
            )
        return product(ctx, b.T, a.T, inner_size).T
    a, b = remainder_everywhere(a), remainder_everywhere(b)
    parts = []
    # What is unknown of A meets what is known of B in the images.
    lost = [a.remainder + 1, *(order_of(ctx, part) for part in a.parts)]
    remainder = b.remainder + max(lost)
    for rows, columns, scale in (factor for factor in factors if factor is not None):
        x = tensor(rows, scale.exponents, scale.remainder, 1, b.row_space)
        image = with_one_exponent(apply(ctx, a, x, inner_size))
        share = relative_error(image)
        errors = [scale.stderr, None if share is None else share * jnp.abs(scale.coefficient)]
        error = arithmetic.combined_stderr(*errors)
        one = tensor(scale.coefficient, image.exponents, image.remainder, stderr=error)
        parts.append(LowRank(image.coefficient, columns, one))
    return Matrix(a.rows, b.columns, a.row_space, b.column_space, tuple(parts), remainder)


def _composed(
    ctx: Context, a: Matrix, left: list[Composed], b: Matrix, right: list[Composed], size: Size
) -> Matrix:
    """The product of two matrices of low rank."""
    factor, gain = arithmetic.width_factor(ctx, size)
    empty = Matrix(a.rows, b.columns, a.row_space, b.column_space)
    parts = [composed.product(ctx, x, y, factor, gain) for x in left for y in right]
    pieces = [replace(empty, parts=(part,)) for part in parts]
    (known, unknown), (other, hidden) = bounds(a), bounds(b)
    lost = [known + hidden, unknown + other, unknown + hidden]
    if not ctx.exact:
        lost += [x.level + y.level - HALF for x in left for y in right]
    total = functools.reduce(functools.partial(sum_of, ctx), pieces, empty)
    return replace(total, remainder=max([total.remainder, *(order + gain for order in lost)]))


def _product_of_pairs(ctx: Context, a: Matrix, b: Matrix, inner_size: Size) -> Matrix:
    """``sum_b U[a, b] V[b, c]``: averages over the particles between them."""
    (left, own), (right, other) = pairs.entries_of(ctx, a), pairs.entries_of(ctx, b)
    factor, gain = arithmetic.width_factor(ctx, inner_size)
    total = Matrix(a.rows, b.columns, a.row_space, b.column_space)
    places = pairs.Places.of(ctx, a), pairs.Places.of(ctx, b)
    for x in left.terms:
        for y in right.terms:
            first, _ = places[0].arrays(jnp.asarray(x.coefficient))
            second, across = places[1].arrays(jnp.asarray(y.coefficient))
            second = second if across is None else across
            level = x.exponents.value + y.exponents.value + gain
            error = None if ctx.exact else share_of_averages(first, second.T)
            share = arithmetic.combined_stderr(own, other, error)
            share = None if share is None else jnp.minimum(share, 1)
            arrays = [
                factor * noise.inner(first[rows], second.T[columns])
                for rows, columns in pairs.Places.of(ctx, total).slabs
            ]
            part = pairs.Pairs(arrays[0], level, share, across=arrays[1] if arrays[1:] else None)
            unknown = NEVER if ctx.exact else level - HALF
            one = replace(total, parts=(part,), remainder=unknown)
            total = sum_of(ctx, total, one) if total.parts else one
    known = [value.exponents.value for value in (left, right)]
    hidden = [value.remainder.max() for value in (left, right)]
    lost = max(hidden[0] + max(known[1], hidden[1]), known[0] + hidden[1]) + gain
    return replace(total, remainder=max(total.remainder, lost))
