"""Functions of pairs of coordinates: what an entrywise function of matrices of low rank is.

The entries of ``psi(sum_k r_k (x) c_k)`` are ``U[a, b] = psi(x_a; y_b)``, with ``x`` the vectors on
its rows and ``y`` those on its columns. On a vector it acts as an average over the particles of its
columns, ``(U z)_a = n^(e + 1) E_b[psi(x_a; y_b) z_b]``, without a new Gaussian part and without a
correction, since no entry depends on much of the matrix that it came from.

Source: G. Yang and E. Littwin, *Tensor Programs IVb*, arXiv 2308.01814.
"""

import functools
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from tplimit.algebra import arithmetic
from tplimit.gaussian import noise
from tplimit.gaussian.sampling import error_of_averages
from tplimit.interpreter.cancellation import of_summands
from tplimit.interpreter.context import Context
from tplimit.matrices.memory import require_room
from tplimit.matrices.parts import Image, Matrix, Part, Rows, bounded_share, share_of_sum
from tplimit.values.exponents import NEVER, Exponent, Exponents
from tplimit.values.fields import FINITE, PAIRS, STATIC
from tplimit.values.parity import UNKNOWN, Marginal, marginal_of_sum
from tplimit.values.spans import Span
from tplimit.values.tensors import Tensor, Term, tensor

EVERY = slice(None)


class Places(NamedTuple):
    """Pairs of particles at which functions of pairs are known: all, or those of few columns and
    those of few rows."""

    rows: int
    columns: int
    few_rows: int
    few_columns: int

    @classmethod
    def of(cls, ctx: Context, matrix: Matrix) -> "Places":
        sizes = matrix.rows, matrix.columns
        return cls(*(ctx.size(size) for size in sizes), *(ctx.few(size) for size in sizes))

    @property
    def slabs(self) -> list[tuple[slice, slice]]:
        """Rows and columns of the arrays ``entries`` and ``across``."""
        if self.few_rows == self.rows and self.few_columns == self.columns:
            return [(EVERY, EVERY)]
        return [(EVERY, slice(self.few_columns)), (slice(self.few_rows), EVERY)]

    def flat(self, at: Callable[[slice, slice], Any]) -> Any:
        """The entries at all places, one after the other, from those at some rows and columns."""
        arrays = [jnp.asarray(at(*slab)).reshape(-1) for slab in self.slabs]
        return arrays[0] if len(arrays) == 1 else jnp.concatenate(arrays)

    def arrays(self, flat: Any) -> tuple[Any, Any]:
        """``entries`` and ``across``."""
        if len(self.slabs) == 1:
            return flat.reshape(self.rows, self.columns), None
        first = self.rows * self.few_columns
        return flat[:first].reshape(self.rows, -1), flat[first:].reshape(-1, self.columns)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Pairs(Part):
    """``n^exponent psi(x_a; y_b)``, an array ``(M_rows, M_columns)``: ``4 M^2`` bytes.

    With ``pair_samples`` averages are over the first ``K`` particles: ``entries`` are then those at
    these columns, ``(M_rows, K_columns)``, and ``across`` those at these rows,
    ``(K_rows, M_columns)``, for the transposed matrix; together ``8 M K`` bytes.

    ``share`` is the sampling error relative to the size, or None, ``marginal`` what is known of the
    law of its entries. Where rows and columns belong to one width, the diagonal counts as a share
    ``1 / M`` of the entries, not ``1 / n``.
    """

    entries: Any = field(metadata=PAIRS)
    exponent: Exponent = field(metadata=STATIC)
    share: Any = field(default=None, metadata=FINITE)
    marginal: Marginal = field(default=Marginal(), metadata=STATIC)
    across: Any = field(default=None, metadata=PAIRS)

    of_pairs = True

    @property
    def T(self) -> "Pairs":
        if self.across is None:
            return replace(self, entries=self.entries.T)
        return replace(self, entries=self.across.T, across=self.entries.T)

    @property
    def level(self) -> Exponent:
        return self.exponent

    @property
    def key(self) -> Exponent:
        return self.exponent

    def plus(self, ctx: Context, other: "Pairs") -> "Pairs":
        if self.level == NEVER:
            return other
        arrays = self.entries.reshape(-1), other.entries.reshape(-1)
        gone = ctx.cancelling(lambda: of_summands(arrays), 0)
        if gone is not None and gone.all():
            return replace(self, exponent=NEVER)
        total = self.entries + other.entries
        across = None if self.across is None else self.across + other.across
        both = (self.share, other.share), (self.entries, other.entries)
        share = share_of_sum(*both, total)
        marginal = marginal_of_sum([self.marginal, other.marginal])
        return Pairs(total, self.exponent, share, marginal, across)

    def scaled(self, ctx: Context, factor: Tensor) -> "tuple[Pairs, Exponent]":
        level = self.exponent + factor.exponents.value
        entries, across = (
            None if array is None else array * factor.coefficient
            for array in (self.entries, self.across)
        )
        own = bounded_share(factor.stderr, jnp.abs(jnp.asarray(factor.coefficient)))
        share = arithmetic.combined_stderr(self.share, own)
        out = replace(self, entries=entries, across=across, exponent=level, share=share)
        return out, self.exponent + factor.remainder.max()

    def image(self, ctx: Context, rows: Rows) -> Image:
        factor, gain = arithmetic.width_factor(ctx, rows.size)
        few = self.entries.shape[1]
        block = rows.block[:, :few]
        image, change = factor * noise.inner(block, self.entries), None
        stderr = None if ctx.exact else abs(factor) * error_of_averages(block, self.entries)
        if self.share is not None:
            stderr = arithmetic.combined_stderr(stderr, self.share * jnp.abs(image))
        if ctx.terms > 1 and rows.space is not None:
            weights = ctx.ledger.multipliers(rows.space, few)
            change = factor * noise.inner(block * weights, self.entries) * ctx.root_n
        one = tensor(np.ones((), rows.block.dtype))
        unknown = [UNKNOWN] * len(rows.parities)
        return Image(image, change, one, self.exponent + gain, unknown, stderr=stderr)

    def placed(self, ctx: Context, rows: Span, columns: Span) -> "Pairs":
        if rows.is_whole and columns.is_whole:
            return self
        if self.across is not None:
            ctx.fail(
                "A share of a function of pairs along a width, where averages are over few of the "
                "particles.",
                advice="Leave out pair_samples.",
            )
        across = ctx.ledger.moved(self.entries, columns)
        return replace(self, entries=ctx.ledger.moved(across.T, rows).T)

    def entries_of(self, ctx: Context, rows: slice, columns: slice) -> Any:
        if self.across is None or rows == EVERY:
            return self.entries[rows, columns]
        return self.across[rows, columns]


# --- matrices as arrays of their entries


def known(matrix: Matrix) -> bool:
    """Whether all entries are functions of pairs: no Gaussian part is among them."""
    return all(part.of_pairs for part in matrix.parts)


def has_pairs(matrix: Matrix) -> bool:
    """Whether a part is a function of pairs of no low rank."""
    return any(isinstance(part, Pairs) for part in matrix.parts)


def entries_of(ctx: Context, matrix: Matrix) -> tuple[Tensor, Any]:
    """The entries at all pairs of particles (see ``Places``), as a vector.

    Its terms are the parts by their orders.

    Returns besides: its sampling error relative to its size, that of all entries together; None if
    it has none.
    """
    require_room(ctx, matrix)
    ctx.ledger.asked.pairs += 1
    levels = sorted({part.level for part in matrix.parts} - {NEVER}, reverse=True)
    remainder = max(
        [matrix.remainder, *(block.bound for block in matrix.blocks)]
        + [part.unknown for part in matrix.parts]
        + levels[ctx.terms :]
    )
    places = Places.of(ctx, matrix)
    terms, share = [], None
    for level in levels[: ctx.terms]:
        parts = [part for part in matrix.parts if part.level == level]
        arrays = [
            places.flat(lambda *slab, part=part: part.entries_of(ctx, *slab)) for part in parts
        ]
        total = functools.reduce(operator.add, arrays)
        parity = replace(UNKNOWN, marginal=marginal_of_sum([part.marginal for part in parts]))
        # What is unknown everywhere, or has been dropped, may be where this part is zero.
        alone = matrix.remainder == NEVER and not matrix.blocks and len(levels) == 1
        zeros = _zeros(ctx, places, parts) if alone else None
        terms.append(Term(total, Exponents(level), zeros=zeros, parity=parity))
        if level == levels[0]:
            share = share_of_sum(
                [part.share for part in parts], [array[None] for array in arrays], total[None]
            )
    if not terms:
        nothing = np.broadcast_to(
            np.zeros((), jnp.result_type(float)), (places.rows, places.columns)
        )
        terms = [Term(places.flat(lambda *slab: nothing[slab]), Exponents(NEVER))]
    return Tensor(tuple(terms), Exponents(remainder), 0, None), share


def _zeros(ctx: Context, places: Places, parts: Sequence[Part]) -> Any:
    """Which entries are exactly zero in all of these parts, at all places; None if none may be."""
    if any(part.zeros_of(ctx, *places.slabs[0]) is None for part in parts):
        return None

    def of_all(rows: slice, columns: slice) -> Any:
        known = [part.zeros_of(ctx, rows, columns) for part in parts]
        every = functools.reduce(operator.and_, known)
        shape = len(range(places.rows)[rows]), len(range(places.columns)[columns])
        return jnp.broadcast_to(every, shape)

    return places.flat(of_all)


def from_entries(ctx: Context, like: Matrix, entries: Tensor, share: Any) -> Matrix:
    """A matrix with the rows and columns of another one, from its entries."""
    # A row is an average over pairs, of which a few may be unknown.
    unknown = [entries.remainder.max(), *(patch.average for patch in entries.patches)]
    places = Places.of(ctx, like)
    parts = []
    for term in entries.terms:
        level = term.exponents.value
        if level != NEVER:
            # Of a vector along its width there is one exponent.
            arrays = places.arrays(jnp.asarray(term.coefficient))
            parts.append(Pairs(arrays[0], level, share, term.parity.marginal, arrays[1]))
    return replace(like, parts=tuple(parts), remainder=max(unknown), blocks=())
