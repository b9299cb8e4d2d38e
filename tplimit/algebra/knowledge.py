"""What is known of a value: whether its leading coefficient may lead, divide or decide.

Three kinds of ignorance hide a coefficient: the sampling error of averages over particles, the
remainder of which only the order is known, and round-off where coefficients are equal by accident.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tplimit.errors import NEXT_TERM_ADVICE, CancellationError, LimitError
from tplimit.interpreter.context import Context
from tplimit.values.exponents import NEGLIGIBLE, NEVER
from tplimit.values.sampling_errors import ORDINARY_SIGMAS
from tplimit.values.tensors import Tensor

#: A mean of particles counts as zero when it is below this many of its standard errors. Errors are
#: carried to first order and combined pessimistically; where a value is merely divided by or
#: compared, and does not grow with the width, less is asked.
ZERO_SIGMAS = 5.0
SYMMETRIC_SHARE = 1e-5


def known(ctx: Context, value: Tensor, what: str) -> None:
    """Require the leading term to be known: the remainder is smaller everywhere."""
    hidden = value.exponents.map(lambda e, r: r >= e and r != NEVER, value.remainder)
    if np.any(np.asarray(hidden.array, dtype=bool)):
        ctx.fail(
            f"{what} needs the leading term of a value of which only the order is known.",
            CancellationError,
            "Leading terms have cancelled; the next term decides, and this version keeps one.",
        )


def not_zero(ctx: Context, value: Tensor, what: str) -> None:
    """Check, when the run is over, that leading coefficients do not vanish, save exact zeros."""
    if value.exact and value.stderr is None:
        return
    reason, advice = "whose leading coefficient is zero within the sampling error", NEXT_TERM_ADVICE
    if NEVER < value.remainder.max() < NEGLIGIBLE / 2:
        reason = "that vanishes faster than any power of the width"
        advice = "Let one function compute both: jax.nn.log_softmax, jax.nn.log_sigmoid."
    error = ctx.error(f"{what} a value {reason}.", CancellationError, advice)
    zero = jnp.asarray(value.coefficient == 0)
    if value.zeros is not None:
        zero = zero & ~value.zeros
    ctx.check(significant(value, decisive(value)) & ~jnp.any(zero), error)


def decided(value: Tensor) -> jax.Array:
    """Whether the sign of a value decides something.

    Of a finite array some entry differs from 0 for sure, and none is so near that it vanishes by
    symmetry (moment matching leaves round-off). Of a vector most coordinates do, for every index
    of its finite axes.
    """
    if value.stderr is None:
        return jnp.asarray(True)
    if value.axis is not None:
        sure = jnp.abs(value.coefficient) > decisive(value) * value.stderr
        # Coordinates that are 0 without an error, on dead units, say nothing.
        silent = (value.coefficient == 0) & (value.stderr == 0)
        return jnp.all(jnp.sum(sure, value.axis) >= jnp.sum(~sure & ~silent, value.axis))
    symmetric = jnp.abs(value.coefficient) <= SYMMETRIC_SHARE * value.stderr
    return significant(value, decisive(value)) & ~jnp.any(symmetric & (value.stderr > 0))


def undecided(ctx: Context, what: str, tied: bool = False) -> LimitError:
    """The error of a choice that hangs on a coefficient that vanishes: within its error, or (where
    coefficients are ``tied``) exactly."""
    how = "equal, and the next terms are not known" if tied else "equal within the sampling error"
    return ctx.error(
        f"{what} is decided by terms that vanish: the leading coefficients are {how}.",
        CancellationError,
        NEXT_TERM_ADVICE,
    )


def decisive(value: Tensor) -> float:
    """Standard errors above which a value may decide something: many for one that grows."""
    return ZERO_SIGMAS if value.exponents.max() > 0 else ORDINARY_SIGMAS


def signs_known(ctx: Context, value: Tensor, what: str) -> None:
    """Check, when the run is over, that the signs of the leading coefficient are known."""
    error = ctx.error(
        f"{what}: its leading coefficient is zero within the sampling error.",
        CancellationError,
        NEXT_TERM_ADVICE,
    )
    if value.stderr is not None and value.finite:
        ctx.check(jnp.all(jnp.abs(value.coefficient) > ZERO_SIGMAS * value.stderr), error)
    ctx.check(significant(value) & decided(value), error)
    if value.axis is not None and not value.exact:
        zero = value.coefficient == 0
        if value.zeros is not None:
            zero = zero & ~value.zeros
        ctx.check(~beyond_accident(zero, value), error)


def significant(value: Tensor, sigmas: float = ZERO_SIGMAS) -> jax.Array:
    """Whether some entry differs from 0 by more than ``sigmas`` standard errors, or is NaN."""
    if value.stderr is None:
        return jnp.asarray(True)
    nonzero = jnp.abs(value.coefficient) > sigmas * value.stderr
    return jnp.any(nonzero | jnp.isnan(value.coefficient))


def beyond_accident(ties: Any, value: Tensor) -> jax.Array:
    """Whether more entries of a value are tied than rounding makes by accident.

    A continuous variable rounds to an exact 0 with a probability of a few units of round-off. One
    entry among thousands, or a few among millions, weigh less than the sampling error; among
    numbers every one counts.
    """
    if value.finite:
        return jnp.any(jnp.asarray(ties))
    dtype = value.dtype
    size = np.size(ties) if isinstance(ties, np.ndarray) else ties.size
    eps = float(jnp.finfo(dtype).eps) if jnp.issubdtype(dtype, jnp.floating) else 0.0
    allowed = 1 + 16 * eps * size if size >= 1024 else 0
    return jnp.sum(jnp.asarray(ties)) > allowed
