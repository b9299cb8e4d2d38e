"""Products of matrices of low rank, and sums of them: small cores between the vectors they share.

A polynomial of ``X = R^T K C``, with rows ``R`` and columns ``C``, stands between the same vectors:
``X X^T X`` is ``R^T (K <C, C> K^T <R, R> K) C``, up to powers of the width. So an iteration such as
Newton and Schulz's, of which the optimizer Muon makes its steps, is one of cores, and no larger a
matrix than the first.

That iteration enlarges what is small of ``X`` up to hundreds of times and leaves alone what is of
order one, by terms that cancel: cores are ensembles (``ensembles.py``).
"""

import functools
import operator
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from tplimit.algebra import arithmetic
from tplimit.errors import CancellationError
from tplimit.gaussian import noise
from tplimit.interpreter.cancellation import of_summands
from tplimit.interpreter.context import Context
from tplimit.matrices import ensembles
from tplimit.matrices.parts import Between, Image, Matrix, Part, Rows, bounded_share, either_mask
from tplimit.matrices.projected_update import ProjectedUpdate, home_of, without_round_off
from tplimit.values.exponents import NEVER, Exponent
from tplimit.values.fields import ALONG, FINITE, STATIC
from tplimit.values.parity import UNKNOWN
from tplimit.values.tensors import Tensor, tensor

#: Relative error from which something is zero within it: errors are bounded below that, or all.
_HIDDEN = 0.5
#: Error, relative to the largest direction, from which what is hidden has become as large. Half of
#: an ensemble has nothing of it, and singular values of Muon's are 0.7 to 1.2.
_LARGE = 1 / 3

#: Rows and columns at which it is asked whether a sum cancels.
_SOME = 64


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Composed(Part):
    """``n^exponent R^T K C``: blocks of rows ``(k, M)`` on either side, a core between them.

    ``core`` is an ensemble ``(1 + D, r, c)``: the core itself, and others that are off by their
    errors. Parts with the same vectors, as objects, add up to one. ``hidden`` tells whether some of
    what it is made of is zero within its error.
    """

    rows: tuple[Array, ...] = field(metadata=ALONG)
    columns: tuple[Array, ...] = field(metadata=ALONG)
    core: Any = field(metadata=FINITE)
    exponent: Exponent = field(metadata=STATIC)
    hidden: Any = field(metadata=FINITE)
    row_mask: Any = field(default=None, metadata=ALONG)
    column_mask: Any = field(default=None, metadata=ALONG)

    of_pairs = True

    @property
    def T(self) -> "Composed":
        return Composed(
            self.columns, self.rows, jnp.swapaxes(self.core, 1, 2), self.exponent, self.hidden,
            self.column_mask, self.row_mask,
        )  # fmt: skip

    @property
    def level(self) -> Exponent:
        return self.exponent

    @property
    def key(self) -> tuple[Any, ...]:
        return self.exponent, *(tuple(map(id, side)) for side in (self.rows, self.columns))

    @property
    def share(self) -> Any:
        """That of the images of all vectors: by the direction that is known worst."""
        if len(self.core) == 1:
            return None
        error, size = (_largest(stack, *self._grams) for stack in (self._errors, self.core[:1]))
        return bounded_share(error, size)

    @property
    def _errors(self) -> Any:
        return self.core[1:] - self.core[:1]

    @property
    def _grams(self) -> tuple[Any, Any]:
        left, right = jnp.concatenate(self.rows), jnp.concatenate(self.columns)
        return noise.inner(left, left), noise.inner(right, right)

    def plus(self, ctx: Context, other: "Composed") -> "Composed":
        if self.level == NEVER:
            return other
        cores = self.core[0], other.core[0]
        gone = ctx.cancelling(lambda: of_summands(cores), None)
        if gone is not None and gone.all():
            return replace(self, exponent=NEVER)
        return replace(
            self,
            core=self.core + other.core,
            hidden=self.hidden | other.hidden,
            row_mask=either_mask(self.row_mask, other.row_mask),
            column_mask=either_mask(self.column_mask, other.column_mask),
        )

    def scaled(self, ctx: Context, factor: Tensor) -> tuple["Composed", Exponent]:
        core, level = self.core * factor.coefficient, self.exponent + factor.exponents.value
        share = bounded_share(factor.stderr, jnp.abs(jnp.asarray(factor.coefficient)))
        core = core * ensembles.factors(ctx, share, [factor.stderr], (1, 1), core.dtype)
        return replace(self, core=core, exponent=level), self.exponent + factor.remainder.max()

    def image(self, ctx: Context, rows: Rows) -> Image:
        factor, gain = arithmetic.width_factor(ctx, rows.size)
        left, right = jnp.concatenate(self.rows), jnp.concatenate(self.columns)
        met = ensembles.averages(ctx, (rows.block,), self.columns) @ jnp.swapaxes(self.core, 1, 2)
        image, change, error = factor * self._chosen(met[0] @ left), None, None
        if len(met) > 1:
            size, off = (
                jnp.sqrt(jnp.mean(jnp.sum((x @ noise.inner(left, left)) * x, -1), 0))
                for x in (met[:1], met[1:] - met[:1])
            )
            error = (off / jnp.where(size > 0, size, 1))[:, None] * jnp.abs(image)
        if ctx.terms > 1 and rows.space is not None:
            weights = ctx.ledger.multipliers(rows.space, rows.block.shape[1])
            met = noise.inner(rows.block * weights, right) * ctx.root_n
            change = factor * self._chosen(met @ self.core[0].T @ left)
        one = tensor(jnp.ones((), image.dtype))
        unknown = [UNKNOWN] * len(rows.parities)
        return Image(image, change, one, self.exponent + gain, unknown, self.row_mask, error)

    def _chosen(self, array: Any) -> Any:
        return array if self.row_mask is None else jnp.where(self.row_mask, array, 0)

    def entries_of(self, ctx: Context, rows: slice, columns: slice) -> Any:
        left = jnp.concatenate([block[:, rows] for block in self.rows])
        right = self.core[0] @ jnp.concatenate([block[:, columns] for block in self.columns])
        return without_round_off(left, right, self.row_mask, self.column_mask, rows, columns)

    def between(self, ctx: Context) -> Between:
        return Between(self.rows, self.columns, self.core)

    def absorbed(self, ctx: Context, matrix: Matrix) -> Part:
        """A core in the bases of a store, whose rank does not grow with every update.

        Raises (when the run is over):
            CancellationError: a direction that is hidden in its error is as large as others.
        """
        self._require_known(ctx)
        home = home_of(ctx, matrix, self.rows, self.columns)
        if home is None:
            return self
        store, transposed = home
        left, right = (
            jnp.concatenate([ctx.ledger.coordinates(store, side, block) for block in blocks])
            for side, blocks in ((not transposed, self.rows), (transposed, self.columns))
        )
        core = left.T @ self.core[0] @ right
        core = core.T if transposed else core
        masks = self.row_mask, self.column_mask
        return ProjectedUpdate(core, self.level, store, transposed, *masks, self.share)

    def _require_known(self, ctx: Context) -> None:
        if len(self.core) == 1:
            return
        error, size = (_mean_square(stack, *self._grams) for stack in (self._errors, self.core[:1]))
        refused = ctx.error(
            "A product of matrices has directions that are zero within the sampling error, and no "
            "smaller than those that are not.",
            CancellationError,
            "More samples tell more directions. Newton and Schulz's iteration, of Muon, enlarges "
            "all that is not exactly zero to order one; an eps of the size of what shall count, or "
            "fewer ns_steps, keep small what is small.",
        )
        large = _spectral(error) >= _LARGE**2 * _spectral(size)
        ctx.check(~(self.hidden & large), refused)


def _mean_square(
    cores: Float[Array, "d r c"], left: Float[Array, "r r"], right: Float[Array, "c c"]
) -> Float[Array, "c c"]:
    """``mean_d X_d^T X_d`` of ``X_d = R^T K_d C``, as it acts on coefficients of ``C``."""
    return jnp.mean(jnp.swapaxes(cores, 1, 2) @ left @ cores, 0) @ right


def _spectral(square: Float[Array, "c c"]) -> Float[Array, ""]:
    """The largest eigenvalue, too large by at most an eighth root of the rank."""
    size = jnp.trace(square)
    power = square / jnp.where(size > 0, size, 1)
    for _ in range(2):
        power = power @ power
    return size * jnp.sum(power * power.T) ** 0.125


def _largest(cores: Any, left: Any, right: Any) -> Float[Array, ""]:
    """Largest image of a vector, root mean square over cores, relative to the vector."""
    return jnp.sqrt(jnp.maximum(_spectral(_mean_square(cores, left, right)), 0))


def between(ctx: Context, matrix: Matrix) -> list[Composed] | None:
    """A matrix of low rank as one part for each order; None if it has parts of other kinds."""
    parts = []
    for part in matrix.parts:
        found = _as_composed(ctx, part)
        if found is None:
            return None
        parts.append(found)
    levels = sorted({part.level for part in parts}, reverse=True)
    return [_joined(ctx, [part for part in parts if part.level == level]) for level in levels]


def gathered(ctx: Context, parts: Sequence[Part]) -> list[Part]:
    """Parts of which those between vectors that another one has join it.

    Of the sum ``3 X - 2 X X^T X`` the error is that of all of it: summands know only their own.
    """
    left = list(parts)
    for one in [part for part in parts if isinstance(part, Composed)]:
        others = {id(part): part for part in left if part is not one and part.level == one.level}
        within = [
            (part, found)
            for part in others.values()
            if (found := _as_composed(ctx, part)) is not None
            and _ids(found.rows) <= _ids(one.rows)
            and _ids(found.columns) <= _ids(one.columns)
        ]
        if within and any(part is one for part in left):
            gone = {id(part) for part, _ in within} | {id(one)}
            left = [part for part in left if id(part) not in gone]
            left.append(_joined(ctx, [one, *(found for _, found in within)]))
    return left


def _ids(blocks: Sequence[Any]) -> set[int]:
    return {id(block) for block in blocks}


def _as_composed(ctx: Context, part: Part) -> Composed | None:
    found = part.between(ctx)
    if found is None:
        return None
    if isinstance(part, Composed):
        return part
    hidden = jnp.asarray(False if part.share is None else part.share >= _HIDDEN)
    masks = part.row_mask, part.column_mask
    return Composed(found.rows, found.columns, found.core, part.level, hidden, *masks)


def _joined(ctx: Context, parts: Sequence[Composed]) -> Composed:
    """A sum of parts of one order between the vectors of all of them."""
    if len(parts) == 1:
        return parts[0]
    sides = [_union([p.rows for p in parts]), _union([p.columns for p in parts])]
    core = sum(_spread(_spread(p.core, 1, p.rows, sides[0]), 2, p.columns, sides[1]) for p in parts)
    few = slice(_SOME)
    entries = [part.entries_of(ctx, few, few) for part in parts]
    gone = ctx.cancelling(lambda: of_summands(entries), None)
    level = NEVER if gone is not None and gone.all() else parts[0].level
    masks = parts[0].row_mask, parts[0].column_mask
    for part in parts[1:]:
        masks = either_mask(masks[0], part.row_mask), either_mask(masks[1], part.column_mask)
    hidden = functools.reduce(operator.or_, [part.hidden for part in parts])
    return Composed(sides[0], sides[1], core, level, hidden, *masks)


def _union(sides: Sequence[tuple[Any, ...]]) -> tuple[Any, ...]:
    return tuple({id(block): block for side in sides for block in side}.values())


def _spread(core: Any, axis: int, own: Sequence[Any], blocks: Sequence[Any]) -> Any:
    """A core with room for more blocks along an axis."""
    places, start = {}, 0
    for block in own:
        places[id(block)] = jax.lax.slice_in_dim(core, start, start + len(block), axis=axis)
        start += len(block)
    shape = list(core.shape)
    pieces = []
    for block in blocks:
        shape[axis] = len(block)
        pieces.append(places.get(id(block), jnp.zeros(shape, core.dtype)))
    return jnp.concatenate(pieces, axis)


def product(ctx: Context, a: Composed, b: Composed, factor: float, gain: Any) -> Composed:
    """``A B`` over a width: a sum over it is ``factor n^gain`` times the average."""
    core = factor * (a.core @ ensembles.averages(ctx, a.columns, b.rows) @ b.core)
    level = a.level + b.level + gain
    hidden = a.hidden | b.hidden
    return Composed(a.rows, b.columns, core, level, hidden, a.row_mask, b.column_mask)


def inner(ctx: Context, a: Composed, b: Composed) -> tuple[Any, Any]:
    """``<A, B>`` over both widths' numbers of coordinates, and its standard error or None."""
    middle = ensembles.averages(ctx, a.columns, b.columns) @ jnp.swapaxes(b.core, 1, 2)
    cores = a.core @ middle @ ensembles.averages(ctx, b.rows, a.rows)
    totals = jnp.trace(cores, axis1=1, axis2=2)
    return totals[0], ensembles.error(totals)
