"""A matrix with two width axes as a sum of parts, and what a part has to know.

``Part`` is the protocol: a kind of matrix is one class in one file, and neither ``Matrix`` nor its
arithmetic knows which kinds there are.
"""

import functools
import operator
from abc import ABC, abstractmethod
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from tplimit.values.exponents import NEVER, Exponent, Size
from tplimit.values.fields import NESTED, SPACES, STATIC
from tplimit.values.parity import UNKNOWN, Marginal, Parity
from tplimit.values.sampling_errors import bounded
from tplimit.values.spans import Span
from tplimit.values.tensors import MatrixRemainder, Tensor


class Rows(NamedTuple):
    """Rows ``(k, M)`` that a matrix is applied to.

    Attributes:
        block: all rows, those of the pieces one after the other.
        pieces: the rows of each term of a vector, equally many.
        parities: of each piece.
        size, space: of the width that is summed over.
        parts: all parts of the matrix.
        met: images and changes (see ``Image``) found in passing, by the identity of the part.
    """

    block: Any
    pieces: Sequence[Any]
    parities: Sequence[Parity]
    size: Size
    space: int | None
    parts: "Sequence[Part]"
    met: dict[int, tuple[Any, Any]]

    def each(self, facts: Sequence[bool]) -> np.ndarray:
        """A fact of each piece as one of each row."""
        return np.repeat(facts, self.block.shape[0] // len(self.pieces))


class Image(NamedTuple):
    """Images of all rows under one part of a matrix.

    Attributes:
        mean: in the limit.
        change: at finite width, over ``n^(-1/2)``, or None.
        scale: number by which both are multiplied.
        lift: exponent added to that of the rows.
        parity: of the mean, per piece of the vector.
        mask: coordinates that may differ from 0, or None for all.
        stderr: sampling error of the mean, or None.
        change_parity: of the change, for all pieces.
    """

    mean: Any
    change: Any
    scale: Tensor
    lift: Exponent
    parity: Sequence[Parity]
    mask: Any = None
    stderr: Any = None
    change_parity: Parity = UNKNOWN

    def at(self, number: int, place: slice) -> "Image":
        """Images of one piece of the vector, the rows at this place."""
        change, stderr = (a if a is None else a[place] for a in (self.change, self.stderr))
        parity = [self.parity[number]]
        return self._replace(mean=self.mean[place], change=change, parity=parity, stderr=stderr)


class Between(NamedTuple):
    """A matrix ``n^level R^T K C`` of low rank: blocks of rows ``(k, M)`` on either side, and the
    ensemble of the core ``(1 + D, r, c)`` between them (``ensembles.py``)."""

    rows: tuple[Any, ...]
    columns: tuple[Any, ...]
    core: Any


class Part(ABC):
    """A summand of a ``Matrix``. A kind of matrix is one class in one file.

    Its fields are arrays, values and static facts; ``ctx`` is the interpreter's context. What is
    abstract here has to be said of every kind; the rest is as it stands here unless said
    otherwise.
    """

    #: Exponent by which the action on a vector exceeds the entries: 1 for sums over the width.
    gain: ClassVar[Fraction] = Fraction(1)
    #: Whether it gives way to parts of the same matrix that act at a larger order.
    yields: ClassVar[bool] = True
    #: Parts of a matrix, and with them their images, stand in this order.
    place: ClassVar[int] = 2
    #: Rows ``(M_rows,)`` and columns that may differ from 0 (None: all).
    row_mask: Any = None
    column_mask: Any = None
    #: Whether its entries are functions of pairs of coordinates: no Gaussian ones.
    of_pairs: ClassVar[bool] = False
    #: Sampling error relative to the size, or None.
    share: Any = None
    #: Of its entries: rows and columns are independent.
    marginal: Marginal = Marginal()

    @property
    @abstractmethod
    def T(self) -> "Part":
        """The transposed part."""

    @property
    @abstractmethod
    def level(self) -> Exponent:
        """Exponent of the entries."""

    @abstractmethod
    def scaled(self, ctx: Any, factor: Tensor) -> "tuple[Part, Exponent]":
        """The part times a finite number of one exponent.

        Returns besides: the exponent of what is unknown of its entries, as far as the part cannot
        hold it itself (see ``unknown``).
        """

    @abstractmethod
    def image(self, ctx: Any, rows: Rows) -> Image:
        """Images of rows over the columns."""

    def symmetry(self, ctx: Any, parity: Parity) -> Parity:
        """Of the image of a vector with this parity, but for parts smaller by n^(-1/2)."""
        return UNKNOWN

    @property
    def unknown(self) -> Exponent:
        """Exponent of what is unknown of the entries and counts with the matrix's remainder."""
        return NEVER

    def remainder(self, bound: Exponent) -> "MatrixRemainder":
        """What is unknown of the matrix if entries of this part are, up to this exponent."""
        return MatrixRemainder(bound, rows=self.row_mask, columns=self.column_mask)

    @property
    def key(self) -> Hashable:
        """Parts of one class and key are added to one another; None: they stand side by side."""
        return None

    def plus(self, ctx: Any, other: Any) -> "Part":
        """Sum with a part of the same key."""
        raise NotImplementedError

    def times(self, ctx: Any, other: "Part") -> "Part | None":
        """Product entry by entry with another part, if this kind knows it."""
        return None

    @property
    def number(self) -> Tensor | None:
        """The number that all entries are, if they are one."""
        return None

    @property
    def factors(self) -> tuple[Any, Any, Tensor] | None:
        """``rows``, ``columns`` and ``scale`` of a part that is ``scale * rows^T columns``."""
        return None

    def between(self, ctx: Any) -> Between | None:
        """Where it is a matrix of low rank, the vectors that span it, and what is between them."""
        return None

    def entries_of(self, ctx: Any, rows: slice, columns: slice) -> Any:
        """Entries at these rows and columns, where it is ``of_pairs``."""
        ctx.fail("The entries of a matrix of which only sums, or images of vectors, are known.")

    def zeros_of(self, ctx: Any, rows: slice, columns: slice) -> Any:
        """Which of these entries are exactly zero, to be broadcast; None: none is known to be."""
        outside = [
            ~mask
            for mask in (
                None if self.row_mask is None else self.row_mask[rows, None],
                None if self.column_mask is None else self.column_mask[columns],
            )
            if mask is not None
        ]
        return functools.reduce(operator.or_, outside) if outside else None

    def placed(self, ctx: Any, rows: Span, columns: Span) -> "Part | None":
        """The part with its rows and columns at other places (see ``placed.py``), where that is one
        of its own kind; None where it is not."""
        return None

    @property
    def random(self) -> Tensor | None:
        """Scale of the deferred Gaussian matrix that it is, or is a share of, else None."""
        return None

    @property
    def home(self) -> tuple[int, bool] | None:
        """Store in whose bases it stands, and whether that is of the transposed matrix."""
        return None

    @property
    def kernel(self) -> Any:
        """``K`` of a part ``P^T K Q`` in these bases, else None."""
        return None

    def fitted(self, capacity: int) -> "Part":
        """With room for this many pairs of rows in its store."""
        return self

    def absorbed(self, ctx: Any, matrix: "Matrix") -> "Part":
        """The form in which it leaves a call as a part of this matrix: of bounded size."""
        return self


def share_of_sum(shares: Sequence[Any], arrays: Sequence[Any], total: Any) -> Any:
    """Sampling error of a sum relative to its size, from those of its summands."""
    errors = [
        share * _size(array)
        for share, array in zip(shares, arrays, strict=True)
        if share is not None
    ]
    return bounded_share(functools.reduce(jnp.hypot, errors), _size(total)) if errors else None


def _size(array: Any) -> Any:
    return jnp.sqrt(jnp.mean(jnp.square(array), axis=(-2, -1)))


def either_mask(a: Any, b: Any) -> Any:
    """Where a sum may differ from 0, of masks of its summands; None is everywhere."""
    return None if a is None or b is None else a | b


def bounded_share(error: Any, size: Any) -> Any:
    """A bounded error relative to the size; None if there is none."""
    if error is None:
        return None
    return bounded(error, size) / jnp.where(size > 0, size, 1)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Matrix:
    """An ``n_rows x n_columns`` matrix: a sum of parts.

    A part counts by its action on a vector, ``n^(level + gain)``. ``remainder`` is the exponent of
    the entries of what is unknown, taken as low rank; ``blocks`` are what is unknown in some rows
    or columns only.
    """

    rows: Size = field(metadata=STATIC)
    columns: Size = field(metadata=STATIC)
    row_space: int | None = field(metadata=SPACES)
    column_space: int | None = field(metadata=SPACES)
    parts: tuple[Part, ...] = field(default=(), metadata=NESTED)
    remainder: Exponent = field(default=NEVER, metadata=STATIC)
    blocks: tuple[MatrixRemainder, ...] = field(default=(), metadata=NESTED)

    @property
    def T(self) -> "Matrix":
        return Matrix(
            self.columns,
            self.rows,
            self.column_space,
            self.row_space,
            tuple(part.T for part in self.parts),
            self.remainder,
            tuple(block.T for block in self.blocks),
        )

    @property
    def vanishes(self) -> bool:
        return not self.parts and not self.blocks and self.remainder == NEVER
