"""Products of matrices with vectors, and with matrices of low rank."""

from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from tplimit import algebra, expansion, patches
from tplimit.gaussian import noise
from tplimit.gaussian.deferred import core_product
from tplimit.interpret import Context
from tplimit.matrices import level_of, settled
from tplimit.parity import EVEN, UNKNOWN, Parity
from tplimit.values import (
    Core,
    Gaussian,
    LowRank,
    Matrix,
    Patch,
    Tensor,
    demoted,
    tensor,
    with_parity,
)
from tplimit.widths import HALF, NEVER, NONE, Exponent, Exponents, Size


def apply(ctx: Context, matrix: Matrix, x: Tensor, size: Size) -> Tensor:
    """``A x`` over the columns of ``A``: rows ``(k, M)``, with the exponents of the finite axes.

    A Gaussian part is a query of its store (``Z-hat + Z-dot``, Yang, TP III, definition of
    NetsorT moments); a low-rank part is an average over the width times its rows. All terms of
    ``x`` are queried at once.
    """
    space = ctx.unify(matrix.column_space, x.space)
    if ctx.terms > 1 and x.terms[0].exponents == NONE:
        return expansion.add(ctx, *_image_of_unknown(ctx, matrix, x, size))
    pieces = [p for p in expansion.pieces(x) if p.exponents != NONE] if ctx.terms > 1 else [x]
    rows = [ctx.rows(piece) for piece in pieces]
    block = rows[0] if len(rows) == 1 else jnp.concatenate(rows)
    images = _images(ctx, matrix, block, [piece.parity for piece in pieces], rows, size, space)
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
        total = algebra.add(ctx, total, part)
    error = _image_noise(ctx, x, total.coefficient)
    return tensor(total.coefficient, total.exponents, total.remainder, 1, matrix.row_space, error)


class _Image(NamedTuple):
    """Images of all rows under one part of a matrix.

    Attributes:
        mean: in the limit.
        change: at finite width, over ``n^(-1/2)``, or None.
        scale: number by which both are multiplied.
        lift: exponent added to that of the rows.
        parity: of the mean, per piece of the vector.
        mask: coordinates that may differ from 0, or None for all.
    """

    mean: Any
    change: Any
    scale: Tensor
    lift: Exponent
    parity: Sequence[Parity]
    mask: Any = None

    def at(self, number: int, place: slice) -> "_Image":
        """Images of one piece of the vector, the rows at this place."""
        change = None if self.change is None else self.change[place]
        return self._replace(mean=self.mean[place], change=change, parity=[self.parity[number]])


def _images(
    ctx: Context,
    matrix: Matrix,
    block: Any,
    parities: list[Parity],
    rows: list[Any],
    size: Size,
    space: int | None,
) -> list[_Image]:
    """Images of a block of rows, several rows for each of the given parities."""
    found: list[_Image] = []
    cores: dict[int, tuple[Any, Any]] = {}  # images, by identity
    factor, gain = algebra.width_factor(ctx, size)
    unknown = [UNKNOWN] * len(parities)
    several = ctx.terms > 1
    for part in matrix.gaussians:
        home = [c for c in matrix.cores if (c.store, c.transposed) == (part.store, part.transposed)]
        kernels = [core.core.T if core.transposed else core.core for core in home]
        root, half = ctx.scale(float(size.ratio) ** 0.5, HALF)
        fresh, unmet = _symmetry(ctx, part, parities)
        flags = np.repeat(unmet, block.shape[0] // len(parities)) if several else None
        images, changes = ctx.query(part.store, part.transposed, block, kernels, flags)
        _remember_parts(ctx, part, block, rows)
        changes = changes or [None] * len(images)
        for core, *both in zip(home, images[1:], changes[1:], strict=True):
            cores[id(core)] = both[0], both[1]
        parity = [fresh if free else UNKNOWN for free in unmet]
        found.append(_Image(root * images[0], _times(root, changes[0]), part.scale, half, parity))
    one = tensor(np.ones((), block.dtype))
    for core in matrix.cores:
        image, change = cores.get(id(core)) or _apply_core(ctx, core, block)
        lift = core.exponent + gain
        mean, change = (_chosen(core.row_mask, _times(factor, array)) for array in (image, change))
        found.append(_Image(mean, change, one, lift, unknown, core.row_mask))
    for low in matrix.low_rank:
        met = factor * noise.inner(block, low.columns)
        symmetric = [(low.column_parity * parity).vanishes for parity in parities]
        if several and any(symmetric):
            flags = np.repeat(symmetric, block.shape[0] // len(parities))
            met = jnp.where(flags[:, None], 0, met)
        image, change = met @ low.rows, None
        if several and space is not None:
            weights = ctx.multipliers(space, block.shape[1])
            met = noise.inner(block * weights, low.columns) * ctx.root_n
            change = factor * (met @ low.rows)
        parity = [low.row_parity] * len(parities)
        found.append(_Image(image, change, low.scale, gain, parity, low.row_mask))
    return found


def _chosen(mask: Any, array: Any) -> Any:
    """Images with exact zeros where there is nothing but round-off."""
    return array if mask is None or array is None else jnp.where(mask, array, 0)


def _times(factor: float, array: Any) -> Any:
    return None if array is None else factor * array


def _symmetry(
    ctx: Context, part: Gaussian, parities: Sequence[Parity]
) -> tuple[Parity, list[bool]]:
    """Parity of fresh images; which vectors are orthogonal by symmetry to what the transposed
    matrix has given."""
    assert ctx.bank is not None
    out, into = ctx.bank.store_spaces[part.store]
    if part.transposed:
        out, into = into, out
    given = Parity(odd=frozenset((into,)))
    return Parity(odd=frozenset((out,)), fresh=True), [
        (given * parity).vanishes for parity in parities
    ]


def _remember_parts(ctx: Context, part: Gaussian, block: Any, rows: list[Any]) -> None:
    """Coordinates of the pieces, which updates of the weights are made of."""
    if len(rows) < 2:
        return
    coordinates = ctx.coordinates(part.store, part.transposed, block)
    count = rows[0].shape[0]
    for number, piece in enumerate(rows):
        place = slice(number * count, (number + 1) * count)
        ctx.remember(part.store, part.transposed, piece, coordinates[place])


def _image(
    ctx: Context, matrix: Matrix, x: Tensor, images: list[_Image], size: Size
) -> list[Tensor]:
    """The image of a vector of one term as a sum."""
    exponents, remainder = _row_exponents(x.exponents, x), _row_exponents(x.remainder, x)
    _, gain = algebra.width_factor(ctx, size)
    parts: list[Tensor] = []
    several = ctx.terms > 1
    for image in images:
        level, lost = exponents + image.lift, remainder + image.lift
        mean = tensor(image.mean, level, lost, 1, matrix.row_space)
        if not several:
            rest = _clt(ctx, level, lost)
            mean = replace(mean, remainder=rest)
            parts.append(algebra.multiply(ctx, mean, image.scale))
            continue
        # Without the change its order is all that is known.
        unknown = lost.maximum(level + (-HALF if image.change is None else -1))
        values = [
            _within(image.mask, with_parity(replace(mean, remainder=unknown), image.parity[0]))
        ]
        if image.change is not None:
            change = tensor(image.change, level + -HALF, NONE, 1, matrix.row_space)
            values.append(_within(image.mask, change))
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
    out = replace(value, terms=(term,), remainder=NONE)
    if value.remainder == NONE:
        return out
    return patches.with_patches(out, Patch(Fraction(0), value.remainder.max(), mask))


def _image_of_unknown(ctx: Context, matrix: Matrix, x: Tensor, size: Size) -> list[Tensor]:
    """The image of what is unknown of a vector, and under what is unknown of the matrix."""
    unknown = _row_exponents(patches.spread(x).remainder, x)
    bound = patches.bound_of(x)
    _, gain = algebra.width_factor(ctx, size)
    _, half = ctx.scale(1.0, HALF)
    found: list[tuple[Exponents, Any]] = [(unknown + (matrix.remainder + gain), None)]
    found.append((_row_exponents(x.exponents, x) + (matrix.remainder + gain), None))
    found += [(unknown + (g.scale.exponents.max() + half), None) for g in matrix.gaussians]
    found += [(unknown + (core.exponent + gain), core.row_mask) for core in matrix.cores]
    found += [(unknown + (level_of(low) + gain), low.row_mask) for low in matrix.low_rank]
    nothing = _nothing(ctx, matrix, x)
    values = [_within(mask, replace(nothing, remainder=order)) for order, mask in found]
    for block in matrix.blocks:
        patch = Patch(block.row_share, block.bound + block.column_share + gain + bound, block.rows)
        if block.rows is None and block.row_share == 0:
            values.append(replace(nothing, remainder=Exponents(patch.bound)))
        else:
            values.append(patches.with_patches(nothing, patch))
    return values


def _nothing(ctx: Context, matrix: Matrix, x: Tensor, unknown: Exponents = NONE) -> Tensor:
    shape = (ctx.rows(x).shape[0], ctx.size(matrix.rows))
    zeros = np.broadcast_to(np.zeros((), x.dtype), shape)
    return with_parity(tensor(zeros, NONE, unknown, 1, matrix.row_space), EVEN)


def _image_noise(ctx: Context, x: Tensor, image: Any) -> Any:
    """Standard error of an image from that of the vector: the same share of each row.

    A matrix acts on a row as a whole, so only the size of the error counts, not its place.
    """
    if x.noise is None:
        return None
    errors = ctx.rows(tensor(jnp.broadcast_to(x.noise, x.shape), axis=x.axis))
    rows = ctx.rows(x)
    size = jnp.mean(rows * rows, axis=1, keepdims=True)
    share = jnp.sqrt(
        jnp.mean(errors * errors, axis=1, keepdims=True) / jnp.where(size > 0, size, 1)
    )
    return share * jnp.abs(image)


def _clt(ctx: Context, exponents: Exponents, remainder: Exponents) -> Exponents:
    """Remainder of a width average: what was unknown, and the fluctuation at half an order less."""
    return remainder if ctx.exact else remainder.maximum(exponents + -HALF)


def _row_exponents(exponents: Exponents, x: Tensor) -> Exponents:
    if exponents.uniform:
        return exponents
    assert x.axis is not None
    return Exponents(np.moveaxis(exponents.array, x.axis, -1).reshape(-1, 1))


def _apply_core(ctx: Context, core: Core, rows: Any) -> tuple[Any, Any]:
    """Image of rows under a core, and its change at finite width where several terms are kept."""
    assert ctx.bank is not None
    view = ctx.bank.view(core.store, core.transposed)
    kernel = core.core.T if core.transposed else core.core
    image = core_product(kernel, view, rows, ctx.recall(core.store, core.transposed, rows))
    if ctx.terms == 1:
        return image, None
    spaces = ctx.bank.store_spaces[core.store]
    weights = ctx.multipliers(spaces[0] if core.transposed else spaces[1], rows.shape[1])
    met = noise.inner(rows * weights, view.X) * view.forward * ctx.root_n
    return image, core_product(kernel, view, rows, met)


def product(ctx: Context, a: Matrix, b: Matrix, inner_size: Size) -> Matrix:
    """``A B``, one of the two being of low rank."""
    ctx.unify(a.column_space, b.row_space)
    if b.gaussians or b.cores:
        if a.gaussians or a.cores:
            ctx.fail(
                "The product of two Gaussian matrices is not formed.",
                advice="Multiply vectors instead: (x @ W1) @ W2 rather than x @ (W1 @ W2).",
            )
        return product(ctx, b.T, a.T, inner_size).T
    a, b = settled(a), settled(b)
    parts, remainder = [], a.remainder + b.remainder + 1
    for low in b.low_rank:
        x = tensor(low.rows, low.scale.exponents, low.scale.remainder, 1, b.row_space)
        image = apply(ctx, a, x, inner_size)
        image = demoted(image)
        one = tensor(low.scale.coefficient, image.exponents, image.remainder)
        parts.append(LowRank(image.coefficient, low.columns, one))
    return Matrix(
        a.rows, b.columns, a.row_space, b.column_space, low_rank=tuple(parts), remainder=remainder
    )
