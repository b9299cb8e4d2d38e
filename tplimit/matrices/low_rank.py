"""Matrices of low rank: outer products of vectors, and constant matrices."""

from dataclasses import dataclass, field, replace
from typing import Any

import jax
import jax.numpy as jnp

from tplimit.algebra import arithmetic
from tplimit.gaussian import noise
from tplimit.gaussian.sampling import error_of_inner
from tplimit.interpreter import zeros
from tplimit.interpreter.context import Context
from tplimit.matrices import ensembles
from tplimit.matrices.parts import Between, Image, Matrix, Part, Rows, bounded_share
from tplimit.matrices.projected_update import ProjectedUpdate, home_of
from tplimit.values.exponents import NEVER, Exponent
from tplimit.values.fields import ALONG, NESTED, SPACES, STATIC
from tplimit.values.parity import UNKNOWN, Marginal, Parity
from tplimit.values.spans import Span
from tplimit.values.tensors import Tensor, with_stderr


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class LowRank(Part):
    """``scale * sum_k rows[k] (x) columns[k]``, arrays ``(k, M_rows)`` and ``(k, M_columns)``.

    ``row_parity`` and ``column_parity`` are the sign symmetries of the two, ``row_reach`` and
    ``column_reach`` the coordinates that may differ from 0 (None: all). Where ``constant``, both
    are ones and all entries equal the scale. Images are averages over the width times the rows.
    """

    rows: Any = field(metadata=ALONG)
    columns: Any = field(metadata=ALONG)
    scale: Tensor = field(metadata=NESTED)
    row_parity: Parity = field(default=UNKNOWN, metadata=SPACES)
    column_parity: Parity = field(default=UNKNOWN, metadata=SPACES)
    row_reach: Any = field(default=None, metadata=ALONG)
    column_reach: Any = field(default=None, metadata=ALONG)
    constant: bool = field(default=False, metadata=STATIC)

    of_pairs = True

    @property
    def T(self) -> "LowRank":
        return LowRank(
            self.columns, self.rows, self.scale, self.column_parity, self.row_parity,
            self.column_reach, self.row_reach, self.constant,
        )  # fmt: skip

    @property
    def row_mask(self) -> Any:
        return None if self.row_reach is None else jnp.any(self.row_reach, 0)

    @property
    def column_mask(self) -> Any:
        return None if self.column_reach is None else jnp.any(self.column_reach, 0)

    @property
    def level(self) -> Exponent:
        return self.scale.exponents.max()

    @property
    def unknown(self) -> Exponent:
        return self.scale.remainder.max()

    @property
    def number(self) -> Tensor | None:
        return self.scale if self.constant else None

    @property
    def factors(self) -> tuple[Any, Any, Tensor]:
        return self.rows, self.columns, self.scale

    def scaled(self, ctx: Context, factor: Tensor) -> tuple["LowRank", Exponent]:
        return replace(self, scale=arithmetic.multiply(ctx, self.scale, factor)), NEVER

    def times(self, ctx: Context, other: Part) -> "LowRank | None":
        """The ranks multiply."""
        if other.factors is None:
            return None
        more_rows, more_columns, scale = other.factors
        rows = (self.rows[:, None] * more_rows[None]).reshape(-1, self.rows.shape[1])
        columns = (self.columns[:, None] * more_columns[None]).reshape(-1, self.columns.shape[1])
        scale = arithmetic.multiply(ctx, self.scale, scale)
        # Of products errors are bounded factor by factor, as those of vectors are.
        error = arithmetic.combined_stderr(self.share, other.share)
        error = None if error is None else error * jnp.abs(jnp.asarray(scale.coefficient))
        return LowRank(rows, columns, with_stderr(scale, error))

    @property
    def share(self) -> Any:
        return bounded_share(self.scale.stderr, jnp.abs(jnp.asarray(self.scale.coefficient)))

    @property
    def marginal(self) -> Marginal:  # type: ignore[override]
        return zeros.marginal_of_pairs(
            self.row_parity.marginal, self.column_parity.marginal, len(self.rows)
        )

    def between(self, ctx: Context) -> Between:
        """Each of its terms is off by its share."""
        (rank, _), vectors = self.rows.shape, [self.rows, self.columns]
        off = ensembles.factors(ctx, self.share, vectors, (rank, 1), self.rows.dtype)
        core = self.scale.coefficient * off * jnp.eye(rank, dtype=self.rows.dtype)
        return Between((self.rows,), (self.columns,), core)

    def entries_of(self, ctx: Context, rows: slice, columns: slice) -> Any:
        return (self.rows[:, rows].T * self.scale.coefficient) @ self.columns[:, columns]

    def zeros_of(self, ctx: Context, rows: slice, columns: slice) -> Any:
        """Of a gradient over several points those of units that no point finds both alive."""
        if self.row_reach is None or self.column_reach is None:
            return super().zeros_of(ctx, rows, columns)
        left = self.row_reach[:, rows].astype(jnp.float32)
        right = self.column_reach[:, columns].astype(jnp.float32)
        return left.T @ right == 0

    def image(self, ctx: Context, rows: Rows) -> Image:
        factor, gain = arithmetic.width_factor(ctx, rows.size)
        several = ctx.terms > 1
        met = factor * noise.inner(rows.block, self.columns)
        error = None if ctx.exact else abs(factor) * error_of_inner(rows.block, self.columns)
        symmetric = [(self.column_parity * parity).vanishes for parity in rows.parities]
        if several and any(symmetric):
            never = rows.each(symmetric)[:, None]
            met = jnp.where(never, 0, met)
            error = None if error is None else jnp.where(never, 0, error)
        image, change = met @ self.rows, None
        stderr = None if error is None else error @ jnp.abs(self.rows)
        if several and rows.space is not None:
            weights = ctx.ledger.multipliers(rows.space, rows.block.shape[1])
            met = noise.inner(rows.block * weights, self.columns) * ctx.root_n
            change = factor * (met @ self.rows)
        parity = [self.row_parity] * len(rows.parities)
        return Image(image, change, self.scale, gain, parity, self.row_mask, stderr)

    def symmetry(self, ctx: Context, parity: Parity) -> Parity:
        return self.row_parity

    def placed(self, ctx: Context, rows: Span, columns: Span) -> "LowRank":
        if rows.is_whole and columns.is_whole:
            return self
        row_side, column_side = (
            _placed_side(ctx, *side)
            for side in (
                (self.rows, self.row_parity, self.row_reach, rows),
                (self.columns, self.column_parity, self.column_reach, columns),
            )
        )
        fills = all(span.length == span.target for span in (rows, columns))
        return LowRank(
            row_side[0], column_side[0], self.scale, row_side[1], column_side[1],
            row_side[2], column_side[2], self.constant and fills,
        )  # fmt: skip

    def absorbed(self, ctx: Context, matrix: Matrix) -> Part:
        """Written in the bases of a store, whose rank does not grow with every update."""
        home = home_of(ctx, matrix, (self.rows,), (self.columns,))
        if home is None:
            return self
        store, transposed = home
        left = ctx.ledger.coordinates(store, not transposed, self.rows)
        right = ctx.ledger.coordinates(store, transposed, self.columns)
        core = (left.T @ right) * self.scale.coefficient
        core = core.T if transposed else core
        masks = self.row_mask, self.column_mask
        return ProjectedUpdate(core, self.level, store, transposed, *masks, self.share)


def _placed_side(
    ctx: Context, rows: Any, parity: Parity, reach: Any, span: Span
) -> tuple[Any, Parity, Any]:
    """Vectors on one side, their symmetries and where they may differ from 0, at other places."""
    moved = ctx.ledger.moved(rows, span)
    if span.length < span.target:
        # Zeros are odd and even in everything, but not fresh.
        parity = replace(parity, fresh=False)
        reach = jnp.ones(rows.shape, bool) if reach is None else reach
    return moved, parity, None if reach is None else ctx.ledger.moved(reach, span)
