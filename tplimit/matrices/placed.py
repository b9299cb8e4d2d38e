"""Parts of matrices at other rows and columns: shares along a width, and matrices side by side.

A share of the columns of a matrix is ``W S``, with the coordinates of the share put among zeros by
``S``; matrices side by side are ``sum_k W_k S_k^T``. Both, along rows or columns, are parts of the
form ``R P C^T`` with two spans (``values/spans.py``). So products, sums and updates need nothing
new: the image of ``x`` is the image of ``C^T x`` under ``P``, put at its place.

Along a width there is no order, but the shares of a width may be told apart: they are as many
widths, each with coordinates that are alike.
"""

import functools
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import Any

import jax
import jax.numpy as jnp

from tplimit.interpreter.context import Context
from tplimit.matrices import matrices
from tplimit.matrices.pairs import EVERY
from tplimit.matrices.parts import Image, Matrix, Part, Rows
from tplimit.values.exponents import NEVER, Exponent, Size
from tplimit.values.fields import NESTED, STATIC
from tplimit.values.spans import Span
from tplimit.values.tensors import Matrices, MatrixRemainder, Tensor


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Placed(Part):
    """``R P C^T``: a part ``P`` of which ``rows`` and ``columns`` tell where they stand."""

    part: Part = field(metadata=NESTED)
    rows: Span = field(metadata=STATIC)
    columns: Span = field(metadata=STATIC)

    @property
    def T(self) -> "Placed":
        return Placed(self.part.T, self.columns, self.rows)

    @property
    def gain(self) -> Fraction:  # type: ignore[override]
        return self.part.gain

    @property
    def yields(self) -> bool:  # type: ignore[override]
        return self.part.yields

    @property
    def place(self) -> int:  # type: ignore[override]
        return self.part.place

    @property
    def of_pairs(self) -> bool:  # type: ignore[override]
        return self.part.of_pairs

    @property
    def share(self) -> Any:
        return self.part.share

    @property
    def level(self) -> Exponent:
        return self.part.level

    @property
    def unknown(self) -> Exponent:
        return self.part.unknown

    @property
    def random(self) -> Tensor | None:
        return self.part.random

    def remainder(self, bound: Exponent) -> MatrixRemainder:
        return MatrixRemainder(self.part.remainder(bound).bound)

    @property
    def key(self) -> Hashable:
        own = self.part.key
        return None if own is None else (type(self.part), own, self.rows, self.columns)

    def plus(self, ctx: Context, other: "Placed") -> "Placed":
        return replace(self, part=self.part.plus(ctx, other.part))

    def scaled(self, ctx: Context, factor: Tensor) -> tuple["Placed", Exponent]:
        part, unknown = self.part.scaled(ctx, factor)
        return replace(self, part=part), unknown

    def placed(self, ctx: Context, rows: Span, columns: Span) -> "Placed | None":
        first, second = self.rows.then(rows), self.columns.then(columns)
        assert first is not None and second is not None
        return replace(self, rows=first, columns=second)

    def fitted(self, capacity: int) -> "Placed":
        return replace(self, part=self.part.fitted(capacity))

    def image(self, ctx: Context, rows: Rows) -> Image:
        if ctx.terms > 1 and not self.columns.is_whole:
            ctx.fail(
                "A share of a random matrix along the width that is summed over, in several terms: "
                "fluctuations of a share are not known.",
                advice="Declare the shares as matrices of their own, or use terms=1.",
            )
        image = self.part.image(ctx, self._inner(ctx, rows))
        move = lambda array: None if array is None else ctx.ledger.moved(array, self.rows)
        mask, parity = image.mask, list(image.parity)
        if self.rows.length < self.rows.target:
            mask = jnp.ones(image.mean.shape[-1], bool) if mask is None else mask
            parity = [replace(one, fresh=False) for one in parity]
        moved = map(move, (image.mean, image.change, mask, image.stderr))
        mean, change, mask, stderr = moved
        return Image(mean, change, image.scale, image.lift, parity, mask, stderr)

    def _inner(self, ctx: Context, rows: Rows) -> Rows:
        """What the part itself is applied to, with all parts that stand where it does."""
        pieces = [ctx.ledger.moved(piece, self.columns.T) for piece in rows.pieces]
        block = pieces[0] if len(pieces) == 1 else ctx.ledger.moved(rows.block, self.columns.T)
        beside = [
            part.part
            for part in rows.parts
            if isinstance(part, Placed) and (part.rows, part.columns) == (self.rows, self.columns)
        ]
        size = Size(self.columns.source)
        space = rows.space if self.columns.is_whole else None
        return Rows(block, pieces, rows.parities, size, space, beside, rows.met)

    def entries_of(self, ctx: Context, rows: slice, columns: slice) -> Any:
        entries = self.part.entries_of(ctx, EVERY, EVERY)
        across = ctx.ledger.moved(entries, self.columns)
        return ctx.ledger.moved(across.T, self.rows).T[rows, columns]


def placed(ctx: Context, matrix: Matrix, rows: Span, columns: Span) -> Matrix:
    """A matrix with its rows and columns at other places, zero elsewhere."""
    sides = (rows, matrix.rows, matrix.row_space), (columns, matrix.columns, matrix.column_space)
    row_size, column_size = (s if span.is_whole else Size(span.target) for span, s, _ in sides)
    row_space, column_space = (space if span.is_whole else None for span, _, space in sides)
    parts = [_placed_part(ctx, part, rows, columns) for part in matrix.parts]
    blocks = [
        replace(
            block,
            rows=None if block.rows is None else ctx.ledger.moved(block.rows, rows),
            columns=None if block.columns is None else ctx.ledger.moved(block.columns, columns),
        )
        for block in matrix.blocks
    ]
    left = tuple(part for part in parts if part is not None)
    return Matrix(
        row_size, column_size, row_space, column_space, left, matrix.remainder, tuple(blocks)
    )


def _placed_part(ctx: Context, part: Part, rows: Span, columns: Span) -> Part | None:
    """A part at other places; None where nothing is left of it."""
    if isinstance(part, Placed) and None in (part.rows.then(rows), part.columns.then(columns)):
        return None
    found = part.placed(ctx, rows, columns) or Placed(part, rows, columns)
    if isinstance(found, Placed) and found.rows.is_whole and found.columns.is_whole:
        return found.part
    return found


def side_by_side(ctx: Context, parts: Sequence[Matrix], along_rows: bool) -> Matrix:
    """Matrices one after the other: with all their rows, or all their columns."""
    sizes = [matrix.rows if along_rows else matrix.columns for matrix in parts]
    target = sum((size.ratio for size in sizes), Fraction(0))
    place, total = Fraction(0), None
    for matrix, size in zip(parts, sizes, strict=True):
        along = Span.put(size, place, target)
        across = Span.whole(matrix.columns if along_rows else matrix.rows)
        spans = (along, across) if along_rows else (across, along)
        one = placed(ctx, matrix, *spans)
        total = one if total is None else matrices.sum_of(ctx, total, one)
        place += size.ratio
    assert total is not None
    return total


# --- bounded size


def absorbed(ctx: Context, value: Matrices) -> Matrices:
    """The same matrices with parts of low rank written as cores, so that their size stays bounded:
    in matrices that are shares of deferred ones, share by share."""
    return matrices.absorbed(ctx, value.map(lambda matrix: _by_shares(ctx, matrix)))


def _by_shares(ctx: Context, matrix: Matrix) -> Matrix:
    shares = _tiles(matrix)
    low = [part for part in matrix.parts if part.factors is not None and part.number is None]
    if not shares or not low or ctx.terms > 1:
        return matrix
    kept = tuple(part for part in matrix.parts if all(part is not one for one in low))
    alone = replace(matrix, parts=(), remainder=NEVER, blocks=())
    written = [
        replace(alone, parts=(_written(ctx, one, share),)) for one in low for share in shares
    ]
    return functools.reduce(
        functools.partial(matrices.sum_of, ctx), written, replace(matrix, parts=kept)
    )


def _written(ctx: Context, low: Part, share: Placed) -> Placed:
    """What of a part stands in a share, in the bases of the matrix that it is a share of."""
    own = low.placed(ctx, share.rows.T, share.columns.T)
    assert own is not None
    sizes = Size(share.rows.source), Size(share.columns.source)
    home = Matrix(*sizes, None, None, (share.part,))
    return replace(share, part=own.absorbed(ctx, home))


def _tiles(matrix: Matrix) -> list[Placed]:
    """Shares of deferred matrices that cover a matrix, each place once; none if they do not."""
    found: list[Placed] = []
    for part in matrix.parts:
        free = isinstance(part, Placed) and not any(_meet(part, other) for other in found)
        if isinstance(part, Placed) and free and part.part.home is not None:
            found.append(part)
    covered = sum(part.rows.length * part.columns.length for part in found)
    return found if covered == matrix.rows.ratio * matrix.columns.ratio else []


def _meet(a: Placed, b: Placed) -> bool:
    """Whether two shares have a place in common."""
    pairs = (a.rows, b.rows), (a.columns, b.columns)
    return all(x.place < y.place + y.length and y.place < x.place + x.length for x, y in pairs)


__all__ = ["Placed", "absorbed", "placed", "side_by_side"]
