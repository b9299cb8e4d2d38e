"""Deferred Gaussian matrices as parts of a matrix."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import jax

from tplimit.algebra import expansion
from tplimit.interpreter.context import Context
from tplimit.matrices.parts import Image, Part, Rows
from tplimit.values.exponents import HALF, NEVER, Exponent
from tplimit.values.fields import NESTED, STATIC, STORE
from tplimit.values.parity import UNKNOWN, Parity
from tplimit.values.tensors import MatrixRemainder, Tensor


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class ScaledGaussian(Part):
    """``scale * G``: a deferred Gaussian matrix; ``store`` is its index in the bank.

    Its images are queries of the store (``Z-hat + Z-dot``, Yang, TP III, definition of NetsorT
    moments). It is kept whatever the order of the updates beside it.
    """

    scale: Tensor = field(metadata=NESTED)
    store: int = field(metadata=STORE)
    transposed: bool = field(default=False, metadata=STATIC)

    gain = HALF
    yields = False
    place = 0

    @property
    def T(self) -> "ScaledGaussian":
        return replace(self, transposed=not self.transposed)

    @property
    def level(self) -> Exponent:
        return self.scale.exponents.max()

    @property
    def unknown(self) -> Exponent:
        """As long as the part is there its scale tells; that of ``W - W`` must not be forgotten."""
        return self.scale.remainder.max() if self.level == NEVER else NEVER

    def remainder(self, bound: Exponent) -> MatrixRemainder:
        """Taken as low rank, smaller entries act as much."""
        return MatrixRemainder(bound + (self.gain - Part.gain))

    @property
    def random(self) -> Tensor:
        return self.scale

    @property
    def home(self) -> tuple[int, bool]:
        return self.store, self.transposed

    @property
    def key(self) -> tuple[int, bool]:
        return self.home

    def plus(self, ctx: Context, other: "ScaledGaussian") -> "ScaledGaussian":
        return replace(other, scale=expansion.plus(ctx, self.scale, other.scale))

    def scaled(self, ctx: Context, factor: Tensor) -> tuple["ScaledGaussian", Exponent]:
        return replace(self, scale=expansion.times(ctx, self.scale, factor)), NEVER

    def image(self, ctx: Context, rows: Rows) -> Image:
        updates = [p for p in rows.parts if p.home == self.home and p.kernel is not None]
        root, half = ctx.scale(float(rows.size.ratio) ** 0.5, HALF)
        fresh, unmet = self._symmetry(ctx, rows.parities)
        flags = rows.each(unmet) if ctx.terms > 1 else None
        # Where nothing has been given by the transposed matrix all is made of fresh rows.
        first = (self.store, not self.transposed) not in ctx.ledger.sides
        images, changes = ctx.ledger.query(
            self.store, self.transposed, rows.block, [p.kernel for p in updates], flags
        )
        self._remember_pieces(ctx, rows)
        changes = changes or [None] * len(images)
        for part, *both in zip(updates, images[1:], changes[1:], strict=True):
            rows.met[id(part)] = both[0], both[1]
        change = None if changes[0] is None else root * changes[0]
        parity = [fresh if free else UNKNOWN for free in unmet]
        made = replace(fresh, fresh=False) if first else UNKNOWN
        return Image(root * images[0], change, self.scale, half, parity, change_parity=made)

    def symmetry(self, ctx: Context, parity: Parity) -> Parity:
        fresh, (free,) = self._symmetry(ctx, [parity])
        return replace(fresh, fresh=False) if free else UNKNOWN

    def _symmetry(self, ctx: Context, parities: Sequence[Parity]) -> tuple[Parity, list[bool]]:
        """Parity of fresh images; which vectors are orthogonal by symmetry to what the transposed
        matrix has given."""
        assert ctx.bank is not None
        out, into = ctx.bank.store_sources[self.store]
        if self.transposed:
            out, into = into, out
        given = Parity(odd=into)
        return Parity(odd=out, fresh=True), [(given * parity).vanishes for parity in parities]

    def _remember_pieces(self, ctx: Context, rows: Rows) -> None:
        """Coordinates of the pieces, which updates of the weights are made of."""
        if len(rows.pieces) < 2:
            return
        coordinates: Any = ctx.ledger.coordinates(self.store, self.transposed, rows.block)
        count = rows.pieces[0].shape[0]
        for number, piece in enumerate(rows.pieces):
            place = slice(number * count, (number + 1) * count)
            ctx.ledger.remember(self.store, self.transposed, piece, coordinates[place])
