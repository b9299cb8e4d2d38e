"""How many coordinates of vectors are near 0: the laws of their values there.

Of a Gaussian vector a share ``eps`` of the coordinates is below ``eps``, of its square a share
``eps^(1/2)``: the density of ``v^2`` at 0 is infinite. The *order* is the power, 2 for a square or
for a product of two (where the share is ``eps log(1/eps)``). What a next term of relative size
``n^-b`` decides otherwise is a share ``n^(-b/order)`` of the coordinates.

Coordinates that are exactly 0, *atoms* such as dead units, do not count: their sign is told by the
next term or is not known. Where all others are away from 0, as of a constant, a step or a mask, the
order is 0, and next terms decide otherwise with a probability below every power of the width.

All this holds where the next terms have all moments. Of quotients by vectors that come near 0, and
of exponential functions of what is not Gaussian, that is not known: they have *heavy* tails.

The law of each term follows from those of the operands. A sum has the least order: what is added to
a square, but for a constant, smears its zeros out; but for its atoms where others have zeros.
"""

import functools
import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import replace
from fractions import Fraction
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tplimit._jax import primitives as p
from tplimit.program.equations import Equation
from tplimit.program.traits import (
    Control,
    Kind,
    Linear,
    Logarithm,
    Origin,
    Power,
    Product,
    Quotient,
    Smooth,
)
from tplimit.values.exponents import EXACT_ZERO, NEGLIGIBLE, SLOWLY, Exponent
from tplimit.values.parity import CONSTANT, Marginal, marginal_of_sum
from tplimit.values.tensors import Tensor, Term, Value, knowing

#: An order from which on it is not known: a share of the coordinates that vanishes, no more.
UNKNOWN_ORDER = 8

#: Functions with values apart from each other, and choices, which may be of a number.
_STEPS = (p.sign_p, p.floor_p, p.ceil_p, p.round_p)
_CHOICES = (p.max_p, p.min_p, p.clamp_p, p.select_n_p)

#: Sums, which are of one sign where the summands are.
_SUMS = (
    p.add_p, p.add_jaxvals_p, p.convert_element_type_p, p.reduce_precision_p, p.reduce_sum_p,
    p.cumsum_p,
)  # fmt: skip

#: Products of entries along finite axes.
_PRODUCTS = (p.reduce_prod_p, p.cumprod_p)

#: Functions that are infinite somewhere.
_POLES = (p.tan_p, p.digamma_p)

#: Whether a function rises or falls everywhere is looked at in this range.
_RANGE = np.linspace(-8, 8, 129)

#: Whether a function grows like a polynomial is looked at here.
_FAR = 1e4


def marginal_of_product(marginals: Iterable[Marginal]) -> Marginal:
    """The law of a product of independent factors, or of any others at most."""
    every = list(marginals)
    order = min(sum(one.order for one in every), UNKNOWN_ORDER)
    return Marginal(order, any(one.atoms for one in every), any(one.heavy for one in every))


def marginal_of_pairs(row: Marginal, column: Marginal, rank: int) -> Marginal:
    """The law of the entries of a matrix of low rank: several rows smear the zeros out, but for
    those of units that are dead in others."""
    one = marginal_of_product([row, column])
    return one if rank == 1 or one.atoms else one._replace(order=min(one.order, 1))


def order(values: Sequence[Value]) -> int:
    """The order of the zeros of the leading term of a sum, or difference, of values."""
    summands = [v for v in values if isinstance(v, Tensor) and v.dtype.kind == "f"]
    if any(term.parity.marginal.heavy for vector in _vectors(values) for term in vector.terms):
        return UNKNOWN_ORDER
    top = max((value.exponents.max() for value in summands), default=None)
    leading = [v.terms[0] for v in _vectors(summands) if v.exponents.max() == top]
    return marginal_of_sum(term.parity.marginal for term in leading).order


def share_below(size: Exponent, order: int) -> Exponent:
    """Exponent of the share of coordinates that are below ``n^size`` and not 0."""
    if order == 0:
        return NEGLIGIBLE
    return min(size / order, SLOWLY) if order < UNKNOWN_ORDER else SLOWLY


def with_marginals(equation: Equation, kind: Kind, values: Sequence[Value], out: Value) -> Value:
    """The result of an operation with the laws of its terms."""
    if isinstance(kind, (Control, Origin)) or not isinstance(out, Tensor) or out.dtype.kind != "f":
        return out
    if not all(isinstance(value, Tensor) for value in values):
        return out  # images of matrices know their own
    operands = [value for value in values if isinstance(value, Tensor)]
    if out.finite:
        return _with_sides(equation, kind, operands, out)
    heavy = _heavy(equation, kind, operands)
    positive, away = _sides(equation, kind, operands, out.terms[0])
    first, *others = (_marginal(equation, kind, operands, term) for term in out.terms)
    laws = [first._replace(positive=positive, away=away), *others]
    mixed = _mixed(kind, operands)
    laws = [law._replace(heavy=heavy, mixed=mixed) for law in laws]
    terms = tuple(_with(t, law) for t, law in zip(out.terms, laws, strict=True))
    return knowing(replace(out, terms=terms), **out.facts._asdict())


def _with_sides(equation: Equation, kind: Kind, operands: Sequence[Tensor], out: Tensor) -> Tensor:
    """Numbers, of which only the sign is asked for, where their sampling error could hide it."""
    if all(term.stderr is None for term in out.terms):
        return out
    first, *others = out.terms
    positive, away = _sides(equation, kind, operands, first)
    law = CONSTANT._replace(positive=positive, away=away)
    first = replace(first, parity=replace(first.parity, marginal=law))
    return knowing(replace(out, terms=(first, *others)), **out.facts._asdict())


def _with(term: Term, one: Marginal) -> Term:
    one = one._replace(order=min(one.order, UNKNOWN_ORDER))
    return replace(term, parity=replace(term.parity, marginal=one))


def _vectors(values: Iterable[Value]) -> list[Tensor]:
    return [v for v in values if isinstance(v, Tensor) and not v.finite and v.dtype.kind == "f"]


def _marginal(equation: Equation, kind: Kind, operands: Sequence[Tensor], out: Term) -> Marginal:
    """The law of a term of the result near 0."""
    vectors = _vectors(operands)
    if equation.primitive in _STEPS or (not vectors and any(not v.finite for v in operands)):
        return Marginal(order=0, atoms=True)  # of a mask, too
    if isinstance(kind, Product):
        pairs = itertools.product(*(operand.terms for operand in operands))
        found = [marginal_of_product(_marginals(pair)) for pair in pairs if _meet(out, pair)]
        least = min((one.order for one in found), default=UNKNOWN_ORDER)
        return Marginal(least, any(one.atoms for one in found))
    if isinstance(kind, Quotient) and not operands[0].finite:
        vectors = vectors[:1]
    terms = [term for vector in vectors for term in vector.terms]
    if isinstance(kind, Linear) and not kind.moves:
        known = [term for term in terms if _meet(out, [term])]
        numbers = any(v.finite and _meet(out, [term]) for v in operands for term in v.terms)
        return marginal_of_sum(_marginals(known if known or numbers else terms))
    marginals = _marginals(terms)
    atoms = any(one.atoms for one in marginals) or _makes_atoms(equation, kind, operands, out)
    most = max((one.order for one in marginals), default=0)
    return Marginal(_order(equation, kind, operands, most), atoms)


def _sides(
    equation: Equation, kind: Kind, operands: Sequence[Tensor], out: Term
) -> tuple[bool, bool]:
    """Whether the leading term of a result is never negative, and away from 0."""
    floats = [operand for operand in operands if operand.dtype.kind == "f"]
    every = [_side(operand) for operand in floats]
    positive = bool(every) and all(one for one, _ in every)
    away = bool(every) and all(other for _, other in every)
    if equation.primitive is p.abs_p:
        return True, away
    if equation.primitive is p.max_p:
        return any(one for one, _ in every), any(one and other for one, other in every)
    if isinstance(kind, Power):
        power = Fraction(_power(equation, kind, operands))
        even = power.denominator == 1 and power.numerator % 2 == 0
        return even or positive, away and power > 0
    if isinstance(kind, Smooth):
        grows = any(operand.exponents.max() > 0 for operand in operands)
        return kind.positive, kind.positive and not grows
    if isinstance(kind, Product):
        square = len(operands) == 2 and operands[0] is operands[1]
        return square or positive, away
    if equation.primitive in _SUMS:
        leading = [v.exponents == out.exponents for v in floats]
        apart = (lead and other for lead, (_, other) in zip(leading, every, strict=True))
        return positive, positive and (away or any(apart))
    if isinstance(kind, Quotient):
        return positive, False
    return (positive, away) if _chooses(equation, kind) else (False, False)


def _side(value: Tensor) -> tuple[bool, bool]:
    """Whether the leading term of a value is never negative, and away from 0."""
    constant = value.constant
    if not value.finite or constant is None:
        marginal = value.terms[0].parity.marginal
        return marginal.positive, marginal.away
    return bool(np.all(constant >= 0)), bool(np.all(constant > 0))


def _chooses(equation: Equation, kind: Kind) -> bool:
    """Whether entries of a result are entries of the operands."""
    moves = isinstance(kind, Linear) and kind.moves
    return moves or equation.primitive in (*_CHOICES, p.reduce_max_p, p.reduce_min_p)


def _order(equation: Equation, kind: Kind, operands: Sequence[Tensor], most: int) -> int:
    """The order of zeros of a function of vectors with at most this order."""
    if equation.primitive in _PRODUCTS:
        return UNKNOWN_ORDER
    if isinstance(kind, Power) or equation.primitive is p.pow_p:
        power = _power(equation, kind, operands)
        if power is None:
            return UNKNOWN_ORDER
        # Far from 0, where 1 / x has simple zeros if any, with a number added.
        return math.ceil(most * power) if power > 0 else min(most, 1)
    if isinstance(kind, Quotient) and operands[0].finite:
        return min(most, 1)
    folds = isinstance(kind, Smooth) and not _monotone(kind)
    known = (Linear, Quotient, Smooth, Logarithm)
    return most if type(kind) is Kind or (isinstance(kind, known) and not folds) else 2 * most


def _makes_atoms(equation: Equation, kind: Kind, operands: Sequence[Tensor], out: Term) -> bool:
    """Whether a share of the coordinates of a result may become one number."""
    if isinstance(kind, Smooth):
        return any(operand.exponents.max() > 0 for operand in operands)
    if not _chooses(equation, kind):
        return False
    # Where a number, or what is of another order, is chosen. Rows that are zero are known as such.
    floats = [operand for operand in operands if operand.dtype.kind == "f"]
    if isinstance(kind, Linear):
        floats = [operand for operand in floats if operand.exponents != EXACT_ZERO]
    meeting = [v for v in _vectors(operands) if any(_meet(out, [term]) for term in v.terms)]
    along = len(operands) == 1 and equation.primitive in (p.reduce_max_p, p.reduce_min_p)
    return len(meeting) < len(floats) or (along and len(operands[0].exponents.levels()) > 1)


def _power(equation: Equation, kind: Kind, operands: Sequence[Tensor]) -> Any:
    """The exponent of a power, None where it is no constant."""
    if isinstance(kind, Power):
        return equation.params["y"] if kind.exponent is None else kind.exponent
    constant = operands[1].constant
    return None if constant is None else float(np.max(constant))


def _heavy(equation: Equation, kind: Kind, operands: Sequence[Tensor]) -> bool:
    """Whether it is not known that all moments of a result are finite."""
    vectors = _vectors(operands)
    if any(term.parity.marginal.heavy for vector in vectors for term in vector.terms):
        return True
    if isinstance(kind, Quotient):
        near = operands[1].terms[0].parity.marginal
        return not operands[1].finite and near.order > 0 and not near.away
    if isinstance(kind, Power) or equation.primitive is p.pow_p:
        power = _power(equation, kind, operands)
        away = all(vector.parity.marginal.away for vector in vectors)
        return bool(vectors) and (power is None or (power < 0 and not away))
    if equation.primitive in _POLES:
        return True
    if isinstance(kind, Smooth) and not _polynomial(kind):
        return not all(vector.parity.fresh for vector in vectors)
    return False


def _mixed(kind: Kind, operands: Sequence[Tensor]) -> bool:
    """Whether a result is more than a function of one vector."""
    vectors = [v for v in operands if not v.finite]
    several = any(v is not vectors[0] for v in vectors) and not isinstance(kind, Linear)
    return several or any(term.parity.marginal.mixed for v in vectors for term in v.terms)


def _marginals(terms: Iterable[Term]) -> list[Marginal]:
    return [term.parity.marginal for term in terms]


def _meet(out: Term, factors: Iterable[Term]) -> bool:
    """Whether the product of factors has entries of the same exponent as a term."""
    sums: set[Exponent] = {Fraction(0)}
    for factor in factors:
        sums = {one + other for one in sums for other in factor.exponents.levels()}
    return bool(sums & set(out.exponents.levels()))


@functools.cache
def _values(kind: Smooth) -> np.ndarray:
    """A function at ``-_FAR``, in ``_RANGE``, and at ``_FAR``."""
    with jax.ensure_compile_time_eval():
        at = np.asarray([-_FAR, *_RANGE, _FAR], np.float32)
        return np.asarray(kind.function(jnp.asarray(at)), float)


@functools.cache
def _polynomial(kind: Smooth) -> bool:
    """Whether a function grows no faster than a polynomial."""
    far = _values(kind)[[0, -1]]
    return bool(np.all(np.abs(far) < _FAR**4))


@functools.cache
def _monotone(kind: Smooth) -> bool:
    steps = np.diff(_values(kind)[1:-1])
    steps = steps[np.isfinite(steps)]
    return bool(np.all(steps >= 0) or np.all(steps <= 0))
