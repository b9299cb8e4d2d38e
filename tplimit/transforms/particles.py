"""``particles``: what a plain JAX function returns along its widths, as arrays of particles."""

import functools
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tplimit import arguments
from tplimit._jax import is_traced
from tplimit.errors import (
    CANCELLATION_ADVICE,
    CancellationError,
    DivergenceError,
    LimitError,
    UnsupportedOperationError,
)
from tplimit.transforms.limits import to_limit, transformed
from tplimit.transforms.opaque import LimitValue
from tplimit.values.exponents import NEGLIGIBLE, NEVER, Exponent
from tplimit.values.tensors import Tensor, Term

_MATRIX_ADVICE = (
    "It is known by what it does to vectors: return W @ x or x @ W, or numbers such as its norm."
)


def particles(function: Callable[..., Any]) -> Callable[..., Any]:
    """Like ``tp.limit``, but outputs with a width come out as arrays of particles.

    In the limit the coordinates along a width are independent draws of a random variable ``Z``. An
    output of shape ``(a, n)`` becomes an array ``(a, M)`` of ``M`` draws of it, the ``samples`` of
    ``tp.sample`` (times the ratio of the width): histograms, quantiles and densities are NumPy's.
    Averages over the particles are the limits of averages over the width, which ``tp.limit`` gives.
    At ``tp.Deferred(n)`` and at integer widths these are the ``n`` entries themselves. Outputs
    without a width are those of ``tp.limit``; dtypes are those of ``function``.

    **Joint law.** All that one call returns belongs together: particle ``i`` of two outputs is the
    same unit where the two axes are one width of the network, such as the preactivations of one
    layer for several inputs, or before and after training. Units of different layers, and of
    different widths, have no common index: particles ``i`` there are no pair, as in a network.
    Two calls, and two replicates, are apart too; what is to be compared unit by unit is returned
    by one.

    **Powers of the width.** Particles are limits, ``Z`` itself. What grows or vanishes with the
    width is no array but an error that says its power; multiply inside of ``function`` by the
    opposite one, which makes sense at every width. Exact zeros are zeros, and so are single units
    where the rest of the output is of order one (dead units, masks), as long as what is unknown
    of them vanishes.

    Args:
        function: plain JAX, from values of ``tp.sample`` (or states of ``tp.train``) and arrays.

    Returns:
        A function of the same arguments that returns the same tree, of JAX arrays.

    Raises:
        DivergenceError: an output grows with the width.
        LimitError: an output with a width vanishes as the width grows, but is not exactly 0; or
            what ``tp.limit`` refuses.
        CancellationError: an output is not known to order one, on more than a vanishing share of
            its units; more terms have been tried.
        UnsupportedOperationError: an output is a matrix between widths.

    Source: Master Theorem, G. Yang, *Tensor Programs III*, arXiv 2009.10685.

    Example:
        >>> import jax, numpy as np, tplimit as tp
        >>> n = tp.Width("n")
        >>> v = tp.sample(tp.normal((n,)), jax.random.key(0), width=tp.inf, samples=1024)
        >>> z = tp.particles(lambda v: v**2)(v)
        >>> z.shape, round(float(np.median(z)), 1)  # that of a chi-square variable is 0.455
        ((1024,), 0.5)
    """
    arguments.function("function", function, "(theta, ...) -> outputs")
    at_limit = transformed(
        function,
        lambda outputs: jax.tree_util.tree_map_with_path(to_particles, outputs),
        # Vectors have no errors of their coefficients: what seems to grow may be round-off of a
        # number that vanishes, as more terms tell.
        again=(CancellationError, DivergenceError),
    )

    @functools.wraps(function)
    def entries(*args: Any, **kwargs: Any) -> Any:
        leaves = jax.tree.leaves((args, kwargs))
        if any(isinstance(leaf, LimitValue) or _declared(leaf) for leaf in leaves):
            return at_limit(*args, **kwargs)
        found = arguments.returned(function, function(*args, **kwargs))
        return jax.tree.map(jnp.asarray, found)

    return entries


def _declared(leaf: Any) -> bool:
    return hasattr(leaf, "tplimit_parameter")


def to_particles(path: Any, leaf: LimitValue) -> jax.Array:
    """An output with a width as particles, without one as its limit; ``path`` is for errors."""
    value, name = leaf._value, f"output{jax.tree_util.keystr(path)}"
    if not leaf._aval.width_axes:
        return jnp.asarray(to_limit(leaf))
    if not isinstance(value, Tensor):
        raise UnsupportedOperationError(
            f"{name} is a matrix between widths, {leaf._aval}, which has no array of particles.",
            location=leaf._origin,
            advice=_MATRIX_ADVICE,
        )
    for term in value.terms:
        _check_bounded(leaf, value, term, name)
    typical = [patch.bound for patch in value.patches if patch.share >= 0]
    unknown = max([value.remainder.max(), *typical])
    if unknown >= 0:
        raise CancellationError(
            f"{name} is not known to order one: its unknown part is of order n^{unknown}.",
            location=leaf._origin,
            advice=CANCELLATION_ADVICE,
        )
    _check_order_one(leaf, value, typical, name)
    total = jnp.zeros(value.shape, value.dtype)
    for term in value.terms:  # entry by entry one of them is of order one
        total = jnp.where(term.exponents.mask(Fraction(0)), term.coefficient, total)
    return total.astype(leaf._aval.dtype)


def _check_bounded(leaf: LimitValue, value: Tensor, term: Term, name: str) -> None:
    """Raise if a term grows; one whose coefficients are all 0 does not."""
    power = term.exponents.max()
    if power <= 0:
        return
    growing = np.vectorize(lambda e: e > 0, otypes=[bool])(term.exponents.array)
    if not is_traced(term.coefficient) and not np.any(np.asarray(term.coefficient) * growing):
        return
    raise DivergenceError(
        f"{name} grows like n^{power}.",
        location=leaf._origin,
        advice=f"For the law of its coefficients return x / {_width_power(value, power)} instead "
        "of x, of which it is the limit then.",
    )


def _check_order_one(leaf: LimitValue, value: Tensor, typical: list[Exponent], name: str) -> None:
    """Raise if some entry of the finite axes has no part of order one, and is not exactly 0."""
    order = value.remainder.maximum(*(term.exponents for term in value.terms), *typical)
    lower = [e for e in order.levels() if NEGLIGIBLE < e < 0 and e != NEVER]
    if not lower:
        return
    where = "" if order.uniform else " at some indices of its finite axes"
    raise LimitError(
        f"{name} is of order n^{lower[0]} at most{where}: its particles would all be 0.",
        location=leaf._origin,
        advice=f"For the law of its coefficients return x * {_width_power(value, -lower[0])} "
        "instead of x, of which it is the limit then.",
    )


def _width_power(value: Tensor, power: Exponent) -> str:
    """A power of the width as code."""
    return f"x.shape[{value.axis}] ** ({power})" if power != 1 else f"x.shape[{value.axis}]"
