"""Trained updates of a deferred Gaussian matrix, kept as small cores in its bases."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tplimit.algebra import arithmetic
from tplimit.gaussian import noise
from tplimit.gaussian.deferred import core_product
from tplimit.interpreter.cancellation import of_summands
from tplimit.interpreter.context import Context
from tplimit.matrices import ensembles
from tplimit.matrices.parts import (
    Between,
    Image,
    Matrix,
    Part,
    Rows,
    bounded_share,
    either_mask,
    share_of_sum,
)
from tplimit.values.exponents import NEVER, Exponent
from tplimit.values.fields import ALONG, FINITE, STATIC, STORE
from tplimit.values.parity import UNKNOWN
from tplimit.values.tensors import Tensor, tensor

#: Entries below this many units of round-off of their rows and columns are none: steps leave some
#: tens of units where an entry is zero, and what is no larger is not told from that.
_ROUND_OFF = 256


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class ProjectedUpdate(Part):
    """``n^exponent P^T K Q`` in the revealed bases of a store; ``K`` ``(C, C)`` is the core.

    ``row_mask`` and ``column_mask`` tell which rows and columns may differ from 0 (None: all),
    ``share`` is the sampling error relative to the size, or None (see ``values.sampling_errors``).
    """

    core: Any = field(metadata=FINITE)
    exponent: Exponent = field(metadata=STATIC)
    store: int = field(metadata=STORE)
    transposed: bool = field(default=False, metadata=STATIC)
    row_mask: Any = field(default=None, metadata=ALONG)
    column_mask: Any = field(default=None, metadata=ALONG)
    share: Any = field(default=None, metadata=FINITE)

    place = 1
    of_pairs = True

    @property
    def T(self) -> "ProjectedUpdate":
        return replace(
            self,
            transposed=not self.transposed,
            row_mask=self.column_mask,
            column_mask=self.row_mask,
        )

    @property
    def level(self) -> Exponent:
        return self.exponent

    @property
    def home(self) -> tuple[int, bool]:
        return self.store, self.transposed

    @property
    def kernel(self) -> Any:
        return self.core.T if self.transposed else self.core

    @property
    def key(self) -> tuple[int, bool, Exponent]:
        return self.store, self.transposed, self.exponent

    def plus(self, ctx: Context, other: "ProjectedUpdate") -> "ProjectedUpdate":
        if self.level == NEVER:
            return other
        gone = ctx.cancelling(lambda: of_summands((self.core, other.core)), None)
        if gone is not None and gone.all():
            return replace(self, exponent=NEVER)
        core = self.core + other.core
        return replace(
            self,
            core=core,
            share=share_of_sum((self.share, other.share), (self.core, other.core), core),
            row_mask=either_mask(self.row_mask, other.row_mask),
            column_mask=either_mask(self.column_mask, other.column_mask),
        )

    def scaled(self, ctx: Context, factor: Tensor) -> tuple["ProjectedUpdate", Exponent]:
        core, level = self.core * factor.coefficient, self.exponent + factor.exponents.value
        own = bounded_share(factor.stderr, jnp.abs(factor.coefficient))
        share = arithmetic.combined_stderr(self.share, own)
        out = replace(self, core=core, exponent=level, share=share)
        return out, self.exponent + factor.remainder.max()

    def image(self, ctx: Context, rows: Rows) -> Image:
        factor, gain = arithmetic.width_factor(ctx, rows.size)
        met = rows.met.get(id(self)) or self._image(ctx, rows.block)
        mean, change = (self._chosen(factor, array) for array in met)
        one = tensor(np.ones((), rows.block.dtype))
        unknown = [UNKNOWN] * len(rows.parities)
        stderr = None if self.share is None else self.share * jnp.abs(mean)
        return Image(mean, change, one, self.exponent + gain, unknown, self.row_mask, stderr)

    def _chosen(self, factor: float, array: Any) -> Any:
        """Images with exact zeros where there is nothing but round-off."""
        if array is None:
            return None
        array = factor * array
        return array if self.row_mask is None else jnp.where(self.row_mask, array, 0)

    def _image(self, ctx: Context, rows: Any) -> tuple[Any, Any]:
        """Images of rows, and their change at finite width where several terms are kept."""
        assert ctx.bank is not None
        view = ctx.bank.view(self.store, self.transposed)
        image = core_product(
            self.kernel, view, rows, ctx.ledger.recall(self.store, self.transposed, rows)
        )
        if ctx.terms == 1:
            return image, None
        spaces = ctx.bank.store_spaces[self.store]
        weights = ctx.ledger.multipliers(spaces[0] if self.transposed else spaces[1], rows.shape[1])
        met = noise.inner(rows * weights, view.X) * view.directions * ctx.root_n
        return image, core_product(self.kernel, view, rows, met)

    def entries_of(self, ctx: Context, rows: slice, columns: slice) -> Any:
        assert ctx.bank is not None
        view = ctx.bank.view(self.store, self.transposed)
        right = self.kernel @ (view.X[:, columns] * view.directions[:, None])
        masks = self.row_mask, self.column_mask
        return without_round_off(view.Y[:, rows], right, *masks, rows, columns)

    def between(self, ctx: Context) -> Between:
        """Off by shares of its rows and columns: what has been revealed last may be far smaller
        than what came first, and is known as well."""
        sides = not self.transposed, self.transposed
        rows, columns = (ctx.ledger.basis(self.store, side) for side in sides)
        shapes = (len(rows), 1), (1, len(columns))
        off = [
            ensembles.factors(ctx, self.share, [self.share], shape, rows.dtype) - 1
            for shape in shapes
        ]
        return Between((rows,), (columns,), self.kernel * (1 + (off[0] + off[1]) / 2**0.5))

    def fitted(self, capacity: int) -> "ProjectedUpdate":
        extra = capacity - self.core.shape[-1]
        if extra <= 0:
            return self
        room = [(0, 0)] * (self.core.ndim - 2) + [(0, extra)] * 2
        return replace(self, core=jnp.pad(self.core, room))


def without_round_off(
    left: Any, right: Any, row_mask: Any, column_mask: Any, rows: slice, columns: slice
) -> Any:
    """``left^T right`` at these places, with exact zeros where there is nothing.

    Of entries that vanish, such as those of units that are never alive at one point, bases leave
    round-off, which a quotient or a sign would take for a value.
    """
    array = left.T @ right
    sizes = jnp.sqrt(jnp.sum(left**2, 0))[:, None] * jnp.sqrt(jnp.sum(right**2, 0))
    least = _ROUND_OFF * jnp.finfo(array.dtype).eps * sizes
    array = jnp.where(jnp.abs(array) > least, array, 0)
    if row_mask is not None:
        array = jnp.where(row_mask[rows, None], array, 0)
    return array if column_mask is None else jnp.where(column_mask[columns], array, 0)


def home_of(
    ctx: Context, matrix: Matrix, rows: Sequence[Any], columns: Sequence[Any]
) -> tuple[int, bool] | None:
    """The store of the matrix itself, else one that has been asked for some of these vectors."""
    for part in matrix.parts:
        if part.home is not None:
            return part.home
    recall = ctx.ledger.recall
    for index in range(0 if ctx.bank is None else len(ctx.bank.stores)):
        for side in (False, True):
            if not _lies_in(ctx, matrix, index, side):
                continue
            if any(recall(index, side, block) is not None for block in columns):
                return index, side
            if any(recall(index, not side, block) is not None for block in rows):
                return index, side
    return None


def _lies_in(ctx: Context, matrix: Matrix, index: int, transposed: bool) -> bool:
    """Whether the widths are those of a store: ``X X^T`` has one of them twice."""
    assert ctx.bank is not None
    own = [matrix.row_space, matrix.column_space]
    other = ctx.bank.store_spaces[index][:: -1 if transposed else 1]
    same = lambda x, y: x is None or ctx.spaces.find(x) == ctx.spaces.find(y)
    return all(map(same, own, other))
