"""What the variables of a program are in the limit: ``Tensor`` and ``Matrices``.

* A *finite* ``Tensor`` (``axis`` is None) denotes arrays whose entries are
  ``n^e c + O(n^rho)`` as the width ``n`` grows.
* A *vector* (``axis`` names one width axis) denotes arrays whose coordinates along the width
  become independent draws ``n^e Z + O(n^rho)``; ``Z`` is held as M particles.
* ``Matrices`` are arrays with two width axes: of a ``Matrix`` (``parts.py``) for every index along
  the finite axes.

Coefficients are arrays and may be traced; exponents ``e``, remainders ``rho`` and the axis are
static. A value is a list of terms, mostly of one, and what it leaves out is in the remainder.
Nothing here knows a primitive.
"""

import copy
import functools
import operator
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import Any, ClassVar, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from tplimit._jax import is_key
from tplimit.errors import LimitError
from tplimit.values.exponents import EXACT_ZERO, NEVER, ORDER_ONE, Exponent, Exponents
from tplimit.values.fields import ALONG, AXIS, ENTRIES, NESTED, SPACES, STATIC
from tplimit.values.parity import EVEN, UNKNOWN, Parity


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Term:
    """``n^exponents * coefficient``; entries with exponent ``NEVER`` are exactly zero.

    Attributes:
        stderr: standard error of the coefficient of a finite array from the finite number of
            particles, or None where the coefficient is exact.
        zeros: mask of the entries known to be exactly zero, or None.
        parity: the sign symmetries of a vector; finite arrays are even in all sources.
    """

    coefficient: Any = field(metadata=ENTRIES)
    exponents: Exponents = field(metadata=STATIC)
    stderr: Any = field(default=None, metadata=ENTRIES)
    zeros: Any = field(default=None, metadata=ENTRIES)
    parity: Parity = field(default=UNKNOWN, metadata=SPACES)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Patch:
    """What is unknown on some coordinates of a vector only, besides the remainder.

    Either on a vanishing share of them, near the threshold of a gate: then nobody knows where, and
    no typical coordinate changes. Or where ``mask`` holds: on the live units of a gate.

    Attributes:
        share: exponent of the share of coordinates.
        bound: exponent of the size of what is unknown there.
        mask: these coordinates ``(M,)``, or None.
    """

    share: Exponent = field(metadata=STATIC)
    bound: Exponent = field(metadata=STATIC)
    mask: Any = field(default=None, metadata=ALONG)

    def __add__(self, lift: Any) -> "Patch":
        return replace(self, bound=self.bound + lift)

    @property
    def average(self) -> Exponent:
        """Exponent of the change of an average."""
        return self.share + self.bound


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class MatrixRemainder:
    """What is unknown in some rows and some columns of a matrix only (see ``Patch``).

    Attributes:
        bound: exponent of the size of the entries.
        row_share, column_share: exponents of the shares of rows and columns.
        rows, columns: which these are, or None.
    """

    bound: Exponent = field(metadata=STATIC)
    row_share: Exponent = field(default=Fraction(0), metadata=STATIC)
    column_share: Exponent = field(default=Fraction(0), metadata=STATIC)
    rows: Any = field(default=None, metadata=ALONG)
    columns: Any = field(default=None, metadata=ALONG)

    def __add__(self, lift: Any) -> "MatrixRemainder":
        return replace(self, bound=self.bound + lift)

    @property
    def T(self) -> "MatrixRemainder":
        return MatrixRemainder(
            self.bound, self.column_share, self.row_share, self.columns, self.rows
        )

    @property
    def average(self) -> Exponent:
        """Exponent of the change of an average over all entries."""
        return self.bound + self.row_share + self.column_share


class Extremum(NamedTuple):
    """Of which values a value is the largest (side 1) or smallest (-1), see ``Facts``."""

    candidates: "tuple[Tensor, ...]"
    axes: tuple[int, ...]
    side: int


class Doubt(NamedTuple):
    """What a finite value is for other outcomes of decisions (``interpreter/doubts.py``).

    Attributes:
        outcomes: one for each choice of those that are not sure.
        vain: whether a decision that it hangs on decides nothing: all its numbers are zero.
        error: where it hangs on one that is not.
    """

    outcomes: "tuple[Tensor, ...]"
    vain: Any
    error: LimitError


class Layer(NamedTuple):
    """What the coordinates of a vector are at two finite widths (``interpreter/layers.py``).

    Attributes:
        widths: these widths.
        share: exponent of the share of coordinates on which they are not the sum of the terms.
        thin: whether the layer is thin enough there.
        arrays: the coordinates.
    """

    widths: tuple[Any, ...]
    share: Exponent
    thin: Any
    arrays: tuple[Any, ...]


class Summand(NamedTuple):
    """A value with the sign (1 or -1) that it has in a sum."""

    sign: int
    value: "Value"


class Facts(NamedTuple):
    """What a program tells of a value beyond its terms.

    Attributes:
        zero_with: a vector where it is 0 this value is 0, too (a mask: changes).
        positive_part_of: the vector whose positive part it is (a mask: whose sign it tells).
        stacked: the values that it is a stack of, along its first axis.
        summands: the values that it is a sum of, as the program has written it.
        extremum_of: the values of which it is the larger (1) or the smaller (-1) one, entry by
            entry, or along finite axes that it has with length one.
        otherwise: what it is for other outcomes of decisions that are not sure.
        alike: whether all its coordinates along a width are the same, in the limit too.
        layer: what its coordinates are at finite widths, where they do not all saturate.
        generic: of a mask, what it is but for an accident of probability 0: an average over random
            coordinates is no given number.
        unknown: sign symmetries of what the remainder of a vector stands for, but for parts that
            are smaller by n^(-1/2).
    """

    zero_with: "Tensor | None" = None
    positive_part_of: "Tensor | None" = None
    stacked: "tuple[Value, ...] | None" = None
    summands: tuple[Summand, ...] | None = None
    extremum_of: "Extremum | None" = None
    otherwise: "Doubt | None" = None
    alike: bool = False
    layer: "Layer | None" = None
    generic: "np.ndarray | None" = None
    unknown: Parity = UNKNOWN


NO_FACTS = Facts()


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Tensor:
    """A finite array or a vector (see the module's text).

    Attributes:
        terms: the known terms; entry by entry the exponents of each are below those of the one
            before. One term, unless more are asked for (``expansion.py``).
        remainder: exponents of what is unknown (``NEVER``: nothing).
        axis: position of the width axis, or None.
        space: label of the space the width axis belongs to, or None if it belongs to no space
            yet (constants along the width).
        patches: what is unknown on some coordinates of a vector only, besides.
    """

    terms: tuple[Term, ...] = field(metadata=NESTED)
    remainder: Exponents = field(default=EXACT_ZERO, metadata=STATIC)
    axis: int | None = field(default=None, metadata=AXIS)
    space: int | None = field(default=None, metadata=SPACES)
    patches: tuple[Patch, ...] = field(default=(), metadata=NESTED)

    #: No field: known of this object alone, while a program is interpreted (see ``knowing``).
    facts: ClassVar[Facts] = NO_FACTS

    @property
    def coefficient(self) -> Any:
        """Coefficient of the leading term."""
        return self.terms[0].coefficient

    @property
    def exponents(self) -> Exponents:
        """Exponents of the leading term."""
        return self.terms[0].exponents

    @property
    def stderr(self) -> Any:
        """Standard error of the leading coefficient, or None."""
        return self.terms[0].stderr

    @property
    def zeros(self) -> Any:
        """Entries of the leading term known to be exactly zero, or None."""
        return self.terms[0].zeros

    @property
    def parity(self) -> Parity:
        """Sign symmetries of the leading term."""
        return self.terms[0].parity

    @property
    def finite(self) -> bool:
        return self.axis is None

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(np.shape(self.coefficient))

    @property
    def dtype(self) -> Any:
        # Random keys are no numbers of any kind.
        key = is_key(self.coefficient)
        return np.dtype(np.void) if key else jnp.result_type(self.coefficient)

    @property
    def exact(self) -> bool:
        """Whether nothing is unknown."""
        return self.remainder == EXACT_ZERO and not self.patches

    @property
    def vanishes(self) -> bool:
        """Whether it is exactly zero, with nothing unknown."""
        return self.exponents == EXACT_ZERO and self.exact

    @property
    def constant(self) -> np.ndarray | None:
        """The coefficient when it is known while the program is interpreted."""
        concrete = isinstance(self.coefficient, (np.ndarray, np.generic, int, float, bool))
        return np.asarray(self.coefficient) if concrete else None


def tensor(
    coefficient: Any,
    exponents: Exponents = ORDER_ONE,
    remainder: Exponents = EXACT_ZERO,
    axis: int | None = None,
    space: int | None = None,
    stderr: Any = None,
    zeros: Any = None,
) -> Tensor:
    """A ``Tensor`` with one term; finite arrays, such as sums over a width, have no space."""
    parity = EVEN if axis is None else UNKNOWN
    space = None if axis is None else space
    return Tensor((Term(coefficient, exponents, stderr, zeros, parity),), remainder, axis, space)


_V = TypeVar("_V", Tensor, "Matrices")


def knowing(value: _V, **facts: Any) -> _V:
    """The same value, of which these ``Facts`` are known besides."""
    out = copy.copy(value)
    object.__setattr__(out, "facts", value.facts._replace(**facts))
    return out


def parity_of_unknown(value: Tensor) -> Parity:
    """Sign symmetries of what is unknown of a value; numbers have no other."""
    return EVEN if value.axis is None else value.facts.unknown


def generic(value: Tensor) -> np.ndarray | None:
    """A constant, or what a mask is but for an accident, else None."""
    return value.facts.generic if value.constant is None else value.constant


def with_coefficient(value: Tensor, coefficient: Any) -> Tensor:
    """A value of one term with another coefficient."""
    return replace(value, terms=(replace(value.terms[0], coefficient=coefficient),))


def with_stderr(value: Tensor, stderr: Any) -> Tensor:
    """A value with another error of its leading term."""
    first, *others = value.terms
    return replace(value, terms=(replace(first, stderr=stderr), *others))


def exactly(array: Any) -> Tensor:
    """An ordinary finite array as a value; constants that are 0 get exponent ``NEVER``."""
    if isinstance(array, (np.ndarray, np.generic)) and array.dtype.kind in "fiu":
        flags = np.where(np.asarray(array) == 0, NEVER, 0.0)
        if array.size <= 4096 or not np.any(array):
            return tensor(array, Exponents(flags))
    return tensor(array)


def masked(value: Tensor, level: Exponent) -> Any:
    """Coefficient with zeros where the exponent is not ``level``."""
    if value.exponents.uniform:
        same = value.exponents.value == level
        return value.coefficient if same else jnp.zeros_like(value.coefficient)
    return jnp.where(value.exponents.mask(level), value.coefficient, 0)


def leading_term(value: Tensor) -> Tensor:
    """The leading term alone, all else being moved to the remainder."""
    if not value.terms[1:] and not value.patches:
        return value
    first, *others = value.terms
    lost = value.remainder.maximum(
        *(term.exponents for term in others), *(patch.average for patch in value.patches)
    )
    first = replace(first, zeros=zeros_of(value))
    return Tensor((first,), lost, value.axis, value.space)


def zeros_of(value: Tensor) -> Any:
    """Entries where all terms are known to be exactly zero and nothing typical is unknown."""
    masks = [patch.mask for patch in value.patches if patch.mask is not None]
    if not value.terms[1:] and not masks:
        return value.zeros
    if value.remainder != EXACT_ZERO or any(term.zeros is None for term in value.terms):
        return None
    zeros = functools.reduce(operator.and_, [term.zeros for term in value.terms])
    for mask in masks:
        zeros = zeros & ~along(mask, value)
    return zeros


def along(mask: Any, value: Tensor) -> Any:
    """A mask of the coordinates of a vector, in a shape that goes with its entries."""
    return jnp.reshape(mask, [-1 if i == value.axis else 1 for i in range(len(value.shape))])


def with_parity(value: Tensor, parity: Parity) -> Tensor:
    """The same value of one term, with these sign symmetries (finite arrays have no others)."""
    parity = EVEN if value.axis is None else parity
    out = replace(value, terms=(replace(value.terms[0], parity=parity),))
    return knowing(out, **value.facts._asdict())


def with_one_exponent(value: Tensor) -> Tensor:
    """The same value with one common exponent, what is smaller being moved to the remainder."""
    if value.exponents.uniform and value.remainder.uniform and not value.patches:
        return value
    value = leading_term(value)
    top, *lower = value.exponents.levels()
    lost = Exponents(max([*lower, value.remainder.max()]))
    coefficient, stderr = masked(value, top), value.stderr
    if stderr is not None and lower:
        stderr = jnp.where(value.exponents.mask(top), stderr, 0)
    return tensor(coefficient, Exponents(top), lost, value.axis, value.space, stderr, value.zeros)


class Matrices:
    """An array with two width axes: an object array of ``Matrix`` over its finite axes.

    Attributes:
        items: numpy object array of ``Matrix``, its shape the finite axes in order.
        axes: positions of the two width axes; each item has its rows along the first.
    """

    items: np.ndarray
    axes: tuple[int, int]

    #: What a checkpoint keeps; facts are known of this object alone, as of a ``Tensor``.
    _fields: ClassVar[tuple[str, ...]] = ("axes", "items")
    facts: ClassVar[Facts] = NO_FACTS

    def __init__(self, items: Any, axes: tuple[int, int]) -> None:
        if not isinstance(items, np.ndarray):
            cell = np.empty((), dtype=object)
            cell[()] = items
            items = cell
        self.items = items
        self.axes = axes

    def map(self, function: Any) -> "Matrices":
        """Apply ``function`` to every matrix."""
        return Matrices(map_items(function, self.items), self.axes)

    @property
    def ndim(self) -> int:
        return int(self.items.ndim) + 2

    @property
    def finite_axes(self) -> tuple[int, ...]:
        """Positions of the finite axes."""
        return tuple(i for i in range(self.ndim) if i not in self.axes)


class MaskOfMatrices(Matrices):
    """Truth values of all entries of matrices, which are the same in the limit too."""

    facts: ClassVar[Facts] = Facts(alike=True)


def map_items(function: Any, *arrays: np.ndarray) -> np.ndarray:
    """Apply a function to object arrays of one shape, item by item."""
    out = np.empty(arrays[0].shape, dtype=object)
    for index in np.ndindex(arrays[0].shape):
        out[index] = function(*(array[index] for array in arrays))
    return out


def _register(kind: type[Matrices]) -> None:
    def restored(aux: tuple[tuple[int, ...], tuple[int, int]], leaves: Any) -> Matrices:
        shape, axes = aux
        items = np.empty(shape, dtype=object)
        for index, leaf in zip(np.ndindex(shape), leaves, strict=True):
            items[index] = leaf
        return kind(items, axes)

    jax.tree_util.register_pytree_node(
        kind, lambda m: (tuple(m.items.flat), (m.items.shape, m.axes)), restored
    )


_register(Matrices)
_register(MaskOfMatrices)

Value = Tensor | Matrices
