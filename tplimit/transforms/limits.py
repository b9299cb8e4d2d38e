"""``limit`` and ``leading``: plain JAX functions evaluated at infinite width.

``tp.limit(step)(theta, batch)``: the function is read as a program, interpreted on the limit
values, and the result compiled (``compilation.py``). Exponents and classes are
part of the compilation key; arrays are not.
"""

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, NoReturn

import jax
import jax.numpy as jnp
import numpy as np

from tplimit import arguments
from tplimit._jax import is_traced
from tplimit.errors import (
    CANCELLATION_ADVICE,
    DIVERGENCE_ADVICE,
    CancellationError,
    DivergenceError,
    LimitError,
)
from tplimit.interpreter.doubts import unsure
from tplimit.transforms.compilation import Evaluator
from tplimit.transforms.effort import Calls
from tplimit.transforms.opaque import LimitValue, has_matrices, with_terms
from tplimit.values.exponents import NEGLIGIBLE, NEVER, Exponent, Exponents
from tplimit.values.tensors import Tensor, tensor


@dataclass(frozen=True)
class Leading:
    """Leading asymptotics ``coefficient * n**exponent`` of a finite output.

    Attributes:
        coefficient: array of coefficients.
        exponent: exact exponent, a ``Fraction``, or an object array of them where entries differ;
            ``-inf`` for an exact zero, and for what vanishes faster than any power.
        stderr: sampling error of the coefficient estimated from the spread over the particles,
            0 where it is exact, NaN where the coefficient is not finite. Replicates (``tp.train``)
            give a sharper and safer estimate.
        random: whether the limit is random, another number for every key (an initial function in a
            kernel regime): ``stderr`` does not include how these differ.
    """

    coefficient: jax.Array
    exponent: Any
    stderr: jax.Array
    random: bool = False

    def __repr__(self) -> str:
        drawn = ", random" if self.random else ""
        return f"Leading({self.coefficient} +- {self.stderr}, n^{self.exponent}{drawn})"


def to_limit(leaf: LimitValue, name: str = "An output") -> Any:
    """The limit of a finite output as an array; vectors and matrices stay opaque.

    `name` is what errors call it.

    Raises:
        DivergenceError: an entry grows with the width.
        CancellationError: the leading coefficient vanishes and the next term is not known.
    """
    value = leaf._value
    if not isinstance(value, Tensor) or not value.finite:
        return leaf
    if value.exponents.max() > 0:
        first = _leading_entries(value)
        if first.exponents.max() > 0:
            # Where a leading coefficient has cancelled the next one may be made of round-off.
            _raise_growing(leaf, value, name)
        value = first
    if value.remainder.max() >= 0:
        raise CancellationError(
            f"The limit of {name[0].lower() + name[1:]} is not known: the unknown part is of order "
            f"n^{value.remainder.max()}.",
            location=leaf._origin,
            advice=CANCELLATION_ADVICE,
        )
    keep = value.exponents.mask(0)
    if keep.all():
        return jnp.asarray(value.coefficient)
    return jnp.where(keep, value.coefficient, jnp.zeros((), value.dtype))


def _raise_growing(leaf: LimitValue, value: Tensor, name: str) -> NoReturn:
    top = value.exponents.max()
    grows = value.exponents.mask(top)
    hidden = unsure(value)
    zero = np.asarray(value.coefficient == 0)
    zero = zero if hidden is None else zero | np.asarray(hidden)
    if np.all(zero | ~np.broadcast_to(grows, zero.shape)):
        raise CancellationError(
            f"{name} is of order n^{top} with a coefficient that is zero within the sampling "
            "error: its true order and its limit are not known.",
            location=leaf._origin,
            advice=CANCELLATION_ADVICE,
        )
    raise DivergenceError(
        f"{name} grows like n^{top}.", location=leaf._origin, advice=DIVERGENCE_ADVICE
    )


@dataclass(frozen=True)
class Series:
    """All that is known of a finite output: ``sum_k n^e_k c_k + O(n^remainder)``.

    Attributes:
        terms: pairs (exponent, coefficient), the largest exponent first; arrays of exponents
            where entries differ (object arrays of ``Fraction``, ``-inf`` for an exact zero).
        remainder: exponent of what is unknown, ``-inf`` where nothing is, -1000 where it vanishes
            faster than any power of the width.
    """

    terms: tuple[tuple[Any, jax.Array], ...]
    remainder: Any

    def at(self, exponent: Any) -> jax.Array:
        """The coefficient at an exponent, 0 where no term has it.

        Raises:
            CancellationError: the unknown part is of this order or larger.
        """
        unknown = np.asarray(self.remainder, dtype=float)
        if np.any(unknown >= float(exponent)):
            raise CancellationError(
                f"The term n^{exponent} of a series is not known: its remainder is of order "
                f"n^{unknown.max()}.",
                advice="A sum over a width has two known terms: its mean and its fluctuation.",
            )
        found = [jnp.where(np.asarray(e == exponent, dtype=bool), c, 0) for e, c in self.terms]
        return jnp.asarray(sum(found[1:], found[0]))

    def __repr__(self) -> str:
        known = " + ".join(f"n^{e} {c}" for e, c in self.terms)
        return f"Series({known} + O(n^{self.remainder}))"


def to_series(leaf: LimitValue) -> Any:
    """All terms of a finite output; vectors and matrices stay opaque."""
    value = leaf._value
    if not isinstance(value, Tensor) or not value.finite:
        return leaf
    terms = tuple((_exponent(t.exponents), jnp.asarray(t.coefficient)) for t in value.terms)
    return Series(terms, _exponent(value.remainder))


def to_leading(leaf: LimitValue) -> Any:
    """Coefficient and exponent of a finite output; vectors and matrices stay opaque.

    Raises:
        CancellationError: the leading coefficient is zero within the sampling error.
    """
    value = leaf._value
    if not isinstance(value, Tensor) or not value.finite:
        return leaf
    if value.vanishes:
        zero = jnp.zeros(value.shape, value.dtype)
        return Leading(zero, NEVER, zero)
    first = _leading_entries(value)
    below = first.exponents.map(lambda e, r: r >= e and r > NEGLIGIBLE / 2, value.remainder)
    unknown = unsure(first)
    if unknown is not None and np.any(unknown):
        raise _not_known(
            leaf, np.asarray(unknown), first.exponents, "its coefficient at {} is zero within the "
            "sampling error",
        )  # fmt: skip
    if np.any(np.asarray(below.array, dtype=bool)):
        raise _not_known(
            leaf, np.asarray(below.array, dtype=bool), value.remainder, "what is known of it is "
            "zero, and of the rest only that it is of order {} at most",
        )  # fmt: skip
    coefficient = jnp.asarray(first.coefficient)
    stderr = jnp.zeros((), value.dtype) if first.stderr is None else first.stderr
    # What is no number is not known to any accuracy.
    stderr = jnp.where(jnp.isfinite(coefficient), stderr, jnp.nan)
    return Leading(coefficient, _exponent(first.exponents), stderr, _is_random(leaf, first))


def _is_random(leaf: LimitValue, first: Tensor) -> bool:
    """Whether a term that leads somewhere is another number for every draw."""
    value = leaf._value
    if not isinstance(value, Tensor) or not any(leaf._random) or is_traced(first.coefficient):
        return any(leaf._random)

    def leads(term: Any) -> bool:
        same = np.asarray(term.exponents.array == first.exponents.array, dtype=bool)
        return bool(np.any(same & (np.asarray(term.coefficient) != 0)))

    return any(drawn and leads(t) for t, drawn in zip(value.terms, leaf._random, strict=True))


def _not_known(
    leaf: LimitValue, mask: np.ndarray, exponents: Exponents, why: str
) -> CancellationError:
    """The error of an output whose leading terms are not known at some entries.

    ``why``: with a place for the orders that ``exponents`` tells.
    """
    shape = np.broadcast_shapes(mask.shape, exponents.array.shape)
    mask = np.broadcast_to(mask, shape)
    orders = sorted(set(np.broadcast_to(exponents.array, shape)[mask].flat), reverse=True)
    return CancellationError(
        f"The leading term of an output is not known{_where(mask)}: "
        f"{why.format(', '.join(f'n^{order}' for order in orders))}.",
        location=leaf._origin,
        advice=CANCELLATION_ADVICE,
    )


def _where(mask: np.ndarray) -> str:
    """Entries where a mask holds, in words, where that is not all of them."""
    if mask.all() or not mask.any():
        return ""
    first = ", ".join(str(list(map(int, index))) for index in np.argwhere(mask)[:3])
    others = int(mask.sum()) - 3
    return f" at {first}" + (f" and {others} more entries" if others > 0 else "")


def _leading_entries(value: Tensor) -> Tensor:
    """Entry by entry the first term that is not 0; nothing where there is none.

    Numbers that JAX is tracing cannot be looked at: there it is the first term.
    """
    if any(map(is_traced, jax.tree.leaves(value))):
        return value
    shape = value.shape
    exponents = np.full(shape, NEVER, dtype=object)
    coefficient, stderr = np.zeros(shape, value.dtype), np.zeros(shape, value.dtype)
    for term in reversed(value.terms):
        c = np.broadcast_to(np.asarray(term.coefficient), shape)
        error = np.broadcast_to(np.asarray(0 if term.stderr is None else term.stderr), shape)
        there = ((c != 0) | (error != 0)) & ~np.broadcast_to(term.exponents.mask(NEVER), shape)
        coefficient, stderr = np.where(there, c, coefficient), np.where(there, error, stderr)
        exponents = np.where(there, np.broadcast_to(term.exponents.array, shape), exponents)
    known = None if all(term.stderr is None for term in value.terms) else stderr
    out = tensor(coefficient, Exponents(exponents), value.remainder, stderr=known)
    return replace(out, terms=(replace(out.terms[0], parity=value.parity),))


def exponent_of(leaf: LimitValue) -> Any:
    """Exponent of a value: a ``Fraction``, ``-inf`` for zero, or an object array of them."""
    if not isinstance(leaf._value, Tensor):
        raise LimitError("A matrix has no single exponent.")
    return _exponent(leaf._value.exponents)


def _exponent(exponents: Exponents) -> Exponent | np.ndarray:
    return exponents.value if exponents.uniform else exponents.array


#: Terms that are kept where one is not enough, and where two are not: only of vectors and numbers,
#: since with every matrix the terms to compute multiply.
MORE_TERMS, MOST_TERMS = 2, 4


def transformed(
    function: Callable[..., Any],
    convert: Callable[[Any], Any],
    least: int = 1,
    again: tuple[type[LimitError], ...] = (CancellationError,),
) -> Any:
    """``function`` evaluated on limit values, and a tree of ``LimitValue`` converted to outputs.

    With at least so many terms; with more after an error of the kinds ``again``.
    """
    evaluator = Evaluator(arguments.function("function", function, "(theta, ...) -> outputs"))

    def evaluated(given: Any) -> Any:
        return convert(evaluator(*given))

    @functools.wraps(function)
    def limited(*args: Any, **kwargs: Any) -> Any:
        given = (args, kwargs)
        if least > 1:
            given = with_terms(given, least) or given
        failure: LimitError | None = None
        for attempt in _attempts(given):
            try:
                return evaluated(attempt)
            except again as error:
                failure = error
        assert failure is not None
        raise failure

    return limited


def leafwise(convert: Callable[[LimitValue], Any]) -> Callable[[Any], Any]:
    """The conversion of a tree, from that of its leaves."""
    return functools.partial(jax.tree.map, convert)


def _attempts(given: Any) -> Iterator[Any]:
    """Arguments as they are; where their leading terms vanish, with more terms if they allow it."""
    yield given
    for terms in (MORE_TERMS, MOST_TERMS):
        more = with_terms(given, terms) if terms == MORE_TERMS or not has_matrices(given) else None
        if more is not None:
            yield more


def limit(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function that evaluates the infinite-width limit of ``function``.

    ``function`` is plain JAX. Its arguments are values from ``tp.sample(..., width=tp.inf)`` (or
    ``tp.Deferred(n)``) and ordinary arrays, in any pytrees. Finite outputs are ordinary arrays:
    the limits, 0 where the output vanishes with the width. Outputs with a width axis are opaque
    values for further limited functions.

    The call is traced and compiled by itself. ``tp.limit(function)`` traces ``function`` at its
    first call with arguments of a form, global variables and attributes with the values that they
    have then, and keeps the trace, as ``jax.jit`` does; where these have changed, write
    ``tp.limit(function)`` again. Tracing takes about a tenth of a second, so that a loop had better
    call one limited function. Compiled programs are kept apart from functions: whatever is traced
    to the same program is not compiled again.

    Each call knows what the values it receives have revealed of the random matrices, and forgets
    what it reveals unless it returns values with a width. Where numbers are random (several terms,
    ``tp.Deferred``) those of two calls then belong to two networks; let the parameters pass, as in
    ``f, theta = tp.limit(lambda t: (predict(t, x), t))(theta)``.

    Raises:
        DivergenceError: a finite output grows with the width.
        CancellationError: terms cancel and this version does not know the next ones.
        NoLimitError, UnsupportedOperationError, WidthError: with the line of the operation.

    Source: Master Theorem, G. Yang, *Tensor Programs III*, arXiv 2009.10685.

    Example:
        >>> import jax, tplimit as tp
        >>> n = tp.Width("n")
        >>> v = tp.sample(tp.normal((n,)), jax.random.key(0), width=tp.inf, samples=1024)
        >>> tp.limit(lambda v: (v * v).mean())(v).round(3)
        Array(1., dtype=float32)
    """
    return transformed(function, leafwise(to_limit))


def leading(function: Callable[..., Any]) -> Callable[..., Any]:
    """Like ``tp.limit``; finite outputs are ``tp.Leading(coefficient, exponent, stderr)``.

    Raises:
        CancellationError: a leading coefficient is zero within its sampling error, so that the
            true exponent is not known.

    Example:
        >>> import jax, tplimit as tp
        >>> n = tp.Width("n")
        >>> v = tp.sample(tp.normal((n,)), jax.random.key(0), width=tp.inf, samples=1024)
        >>> tp.leading(lambda v: (v * v).sum())(v).exponent
        Fraction(1, 1)
    """
    return transformed(function, leafwise(to_leading))


def series(function: Callable[..., Any]) -> Callable[..., Any]:
    """Like ``tp.limit``; finite outputs are ``tp.Series(terms, remainder)``, all terms known.

    At least two terms are kept. The term at ``n^(-1/2)`` below the limit holds the fluctuations
    of networks of finite width: over independent keys ``n^(-1/2)`` times its standard deviation
    is theirs, to leading order.

    Raises: as ``tp.limit``, but nothing for outputs that grow or vanish.

    Example:
        >>> import jax, tplimit as tp
        >>> n = tp.Width("n")
        >>> v = tp.sample(tp.normal((n,)), jax.random.key(0), width=tp.inf, samples=1024)
        >>> tp.series(lambda v: (v * v).mean())(v).remainder
        Fraction(-1, 1)
    """
    return transformed(function, leafwise(to_series), MORE_TERMS)


def align(function: Callable[..., Any], *args: Any, widths: Sequence[int]) -> None:
    """Check that ``function`` is the same program at the given widths as in the limit.

    Raises:
        NoLimitError, WidthError: naming the line where it is not, such as ``if n > 1000``.
    """
    Evaluator(function).align(args, widths)


def raw(
    function: Callable[..., Any] | Evaluator,
    replicated: bool = False,
    calls: Calls | None = None,
    on_compile: Callable[[int], None] | None = None,
) -> Callable[..., Any]:
    """Like ``tp.limit``, but every output stays a ``LimitValue`` with its exponents.

    ``replicated``: the limit values have a leading axis of independent replicates. ``calls``: how
    often the function will be called; ``on_compile`` is called with the number of a call that has
    to be compiled, before it is. An evaluator stands for its function as it was traced.
    """
    return _calling(_evaluator(function), False, replicated, calls, on_compile)


def consuming(
    function: Callable[..., Any] | Evaluator,
    calls: Calls,
    on_compile: Callable[[int], None] | None = None,
    replicated: bool = False,
) -> Callable[..., Any]:
    """Like ``raw``, for calls in a row, each of which takes over the state before it.

    The memory of the stores is reused: arguments that hold any must not be used again.
    """
    return _calling(_evaluator(function), True, replicated, calls, on_compile)


def _calling(
    evaluator: Evaluator,
    last: bool,
    replicated: bool,
    calls: Calls | None,
    on_compile: Callable[[int], None] | None,
) -> Callable[..., Any]:
    made = 0

    def limited(*args: Any, **kwargs: Any) -> Any:
        nonlocal made
        now, tell = None, None
        if calls is not None:
            now = calls.after(made)
            tell = None if on_compile is None else functools.partial(on_compile, now.done)
        made += 1
        return evaluator(args, kwargs, last=last, calls=now, on_compile=tell, replicated=replicated)

    return limited


def _evaluator(function: Callable[..., Any] | Evaluator) -> Evaluator:
    return function if isinstance(function, Evaluator) else Evaluator(function)
