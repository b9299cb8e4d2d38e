"""What is known of a value: whether its leading coefficient may lead, divide or decide.

Three kinds of ignorance hide a coefficient: the sampling error of averages over particles, the
remainder of which only the order is known, and round-off where coefficients are equal by accident.
Of a finite array this is asked entry by entry. For decisions see ``interpreter/doubts.py``.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tplimit.errors import NEXT_TERM_ADVICE, CancellationError
from tplimit.interpreter.context import Context
from tplimit.interpreter.doubts import decides, mostly_known, undecided, unsure
from tplimit.values.exponents import NEGLIGIBLE, NEVER
from tplimit.values.tensors import Tensor


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
    ctx.check(significant(value) & ~jnp.any(zero), error)


def sign_known(ctx: Context, value: Tensor, what: str, advice: str = NEXT_TERM_ADVICE) -> None:
    """The sign of the leading coefficient alone decides: there are no zeros but exact ones."""
    decides(ctx, value, what)
    if not value.exact:
        zero = value.coefficient == 0
        if value.zeros is not None:
            zero = zero & ~value.zeros
        ctx.check(~beyond_accident(zero, value), undecided(ctx, what, tied=True, advice=advice))


def not_negative(ctx: Context, value: Tensor, what: str) -> None:
    """A number that is 0 within its sampling error may be negative, where a root is no number."""
    unknown = unsure(value)
    if unknown is None or value.parity.marginal.positive:
        return
    reason = f"{what} is zero within the sampling error."
    ctx.check(~jnp.any(unknown), ctx.error(reason, CancellationError, NEXT_TERM_ADVICE))


def significant(value: Tensor) -> jax.Array:
    """Whether a value is known not to vanish: each number, and most coordinates of each vector.

    What is exactly zero, or NaN, is known.
    """
    if value.stderr is None:
        return jnp.asarray(True)
    if value.axis is not None:
        return mostly_known(value)
    unknown = unsure(value)
    return jnp.asarray(True) if unknown is None else ~jnp.any(unknown)


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
