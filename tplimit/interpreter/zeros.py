"""Orders of the zeros of vectors: how many coordinates are near 0.

Of a Gaussian vector a share ``eps`` of the coordinates is below ``eps``, of its square a share
``eps^(1/2)``: the density of ``v^2`` at 0 is infinite. The *order* is the power, 2 for a square or
for a product of two (where the share is ``eps log(1/eps)``). What a next term of relative size
``n^-b`` decides otherwise is a share ``n^(-b/order)`` of the coordinates.

The order of each term follows from those of the operands. A sum has the least one: what is added
to a square, but for a constant, smears its zeros out.
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
from tplimit.program.tracing import Equation
from tplimit.program.traits import (
    Control,
    Kind,
    Linear,
    Logarithm,
    Power,
    Product,
    Quotient,
    Smooth,
)
from tplimit.values.exponents import Exponent
from tplimit.values.tensors import Tensor, Term, Value, knowing

#: An order from which on it is not known: a share of the coordinates that vanishes, no more, or
#: none at all where some are exactly zero.
UNKNOWN_ORDER = 8

#: Functions with values apart from each other, and choices, which may be of a number.
_STEPS = (p.sign_p, p.floor_p, p.ceil_p, p.round_p)
_CHOICES = (p.max_p, p.min_p, p.clamp_p, p.select_n_p)

#: Products of entries along finite axes.
_PRODUCTS = (p.reduce_prod_p, p.cumprod_p)

#: Whether a function rises or falls everywhere is looked at in this range.
_RANGE = np.linspace(-8, 8, 129)


def order(values: Sequence[Value]) -> int:
    """The order of the zeros of the leading term of a sum, or difference, of values."""
    vectors = _vectors(values)
    top = max((v.exponents.max() for v in vectors), default=None)
    return max(1, _of_sum([v.terms[0] for v in vectors if v.exponents.max() == top]))


def with_orders(equation: Equation, kind: Kind, values: Sequence[Value], out: Value) -> Value:
    """The result of an operation with the orders of its terms."""
    if isinstance(kind, Control) or not isinstance(out, Tensor) or not _vectors([out]):
        return out
    if not all(isinstance(value, Tensor) for value in values):
        return out  # images of matrices know their own
    operands = [value for value in values if isinstance(value, Tensor)]
    terms = tuple(_with_order(t, _order(equation, kind, operands, t)) for t in out.terms)
    return knowing(replace(out, terms=terms), **out.facts._asdict())


def _with_order(term: Term, found: int) -> Term:
    return replace(term, parity=replace(term.parity, order=min(found, UNKNOWN_ORDER)))


def _vectors(values: Iterable[Value]) -> list[Tensor]:
    return [v for v in values if isinstance(v, Tensor) and not v.finite and v.dtype.kind == "f"]


def _order(equation: Equation, kind: Kind, operands: Sequence[Tensor], out: Term) -> int:
    """The order of a term of the result."""
    if _has_atoms(equation, operands) or equation.primitive in _PRODUCTS:
        return UNKNOWN_ORDER
    if isinstance(kind, Product):
        pairs = itertools.product(*(operand.terms for operand in operands))
        return min((sum(_orders(pair)) for pair in pairs if _meet(out, pair)), default=0)
    if isinstance(kind, Quotient) and not operands[0].finite:
        operands = operands[:1]
    terms = [term for vector in _vectors(operands) for term in vector.terms]
    if isinstance(kind, Linear) and not kind.moves:
        return _of_sum([term for term in terms if _meet(out, [term])] or terms)
    most = max(_orders(terms), default=0)
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


def _power(equation: Equation, kind: Kind, operands: Sequence[Tensor]) -> Any:
    """The exponent of a power, None where it is no constant."""
    if isinstance(kind, Power):
        return equation.params["y"] if kind.exponent is None else kind.exponent
    constant = operands[1].constant
    return None if constant is None else float(np.max(constant))


def _has_atoms(equation: Equation, operands: Sequence[Tensor]) -> bool:
    """Whether a share of the coordinates may be exactly zero, or one number."""
    if equation.primitive in _STEPS:
        return True
    vectors = _vectors(operands)
    if equation.primitive in _CHOICES:
        floats = [operand for operand in operands if operand.dtype.kind == "f"]
        return len(vectors) < len(floats) or any(not _of_sum(v.terms) for v in vectors)
    return not vectors and any(not operand.finite for operand in operands)  # of a mask


def _orders(terms: Iterable[Term]) -> list[int]:
    return [term.parity.order for term in terms]


def _of_sum(terms: Iterable[Term]) -> int:
    return min((order for order in _orders(terms) if order), default=0)


def _meet(out: Term, factors: Iterable[Term]) -> bool:
    """Whether the product of factors has entries of the same exponent as a term."""
    sums: set[Exponent] = {Fraction(0)}
    for factor in factors:
        sums = {one + other for one in sums for other in factor.exponents.levels()}
    return bool(sums & set(out.exponents.levels()))


@functools.cache
def _monotone(kind: Smooth) -> bool:
    with jax.ensure_compile_time_eval():
        steps = np.diff(np.asarray(kind.function(jnp.asarray(_RANGE)), float))
    steps = steps[np.isfinite(steps)]
    return bool(np.all(steps >= 0) or np.all(steps <= 0))
