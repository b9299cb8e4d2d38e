"""Optimizers in function space: those that commute with linear maps of the gradient.

With a frozen kernel the parameters move by combinations of the gradients of the outputs at the
training points, theta_t - theta_0 = sum_a J(x_a)^T beta_a. An optimizer whose updates are linear in
the gradients, with the same coefficients for every parameter, does to the coefficients beta what it
does to the parameters: it commutes with the linear map beta -> sum_a J(x_a)^T beta_a.
"""

from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from tplimit.caching.store import compiled
from tplimit.errors import UnsupportedOperationError

if TYPE_CHECKING:
    import optax

__all__ = ["check_linear", "move"]

# Sizes of the gradients tried: optimizers with thresholds act differently on large and small ones.
_SIZES = (1e-6, 1e-3, 1.0, 1e3, 1e6)
_SHAPE, _IMAGE = (5, 4), (3, 2)
_MOST_STEPS = 20_000
_TOLERANCE = {4: 1e-3, 8: 1e-6}


def move(
    optimizer: "optax.GradientTransformation | None", lr: Any, gradient: Any, memory: Any, beta: Any
) -> tuple[Any, Any]:
    """One step of the coefficients: beta + lr * update. Returns (beta, memory).

    As in `tplimit.Parameterization.step`: no optimizer is gradient descent, others come with the
    learning rate 1 and are multiplied by lr. Weight decay pulls towards the initial function.
    """
    if optimizer is None:
        return beta - lr * gradient, memory
    updates, memory = optimizer.update(gradient, memory, beta)
    return beta + lr * updates, memory


def check_linear(
    optimizer: "optax.GradientTransformation", lr: float, steps: int, dtype: Any
) -> None:
    """Try an optimizer on random gradients g_t and on linear images A g_t B, at several sizes.

    The parameters q_t found from A g_t B have to be A p_t B at every step (of the first 20 000).
    This is additivity and homogeneity (A a row), and equality of all parameters (A a rotation):
    what function space needs, whatever the optimizer's name. JAX has to be in the precision of
    `dtype`.

    Raises:
        UnsupportedOperationError: they differ, or the optimizer does not run on an array alone.
    """
    draw = np.random.default_rng(0).standard_normal
    left, right = draw((_IMAGE[0], _SHAPE[0])), draw((_SHAPE[1], _IMAGE[1]))
    given = [jnp.asarray(a, dtype) for a in (draw((2, *_SHAPE)), left, right, _SIZES)]
    try:
        errors = np.asarray(_errors(optimizer, lr, min(steps, _MOST_STEPS), *given))
    except (TypeError, ValueError, AttributeError) as error:
        raise UnsupportedOperationError(
            f"The optimizer cannot be run in function space: {error}",
            advice="It is called as optimizer.update(gradient, state, coefficients) on one array.",
        ) from error
    # A comparison with NaN is false.
    wrong = ~(errors <= _TOLERANCE[np.dtype(dtype).itemsize])
    if np.any(wrong):
        worst = np.nan_to_num(errors, nan=np.inf)
        size, step = np.unravel_index(worst.argmax(), worst.shape)
        raise UnsupportedOperationError(
            "The optimizer is not linear in the gradients, with the same coefficients for all "
            f"parameters: for gradients of size {_SIZES[size]:g}, its updates of linear images "
            "are not the images of its updates (relative difference "
            f"{errors[size, step]:.2g} at step {step + 1}).",
            advice="Training in function space follows the parameters only along the gradients of "
            "the outputs, which Adam, sign descent, clipping and noise leave. Use SGD, momentum, "
            "Nesterov's method, weight decay, schedules, or chains of these.",
        )


def _errors(
    optimizer: "optax.GradientTransformation",
    lr: float,
    steps: int,
    gradients: jax.Array,
    left: jax.Array,
    right: jax.Array,
    sizes: jax.Array,
) -> jax.Array:
    """Relative difference of A p_t B and q_t, by size and step; two gradients take turns."""

    def one(size: jax.Array) -> jax.Array:
        def step(carry: Any, t: jax.Array) -> tuple[Any, jax.Array]:
            p, memory, q, other = carry
            g = size * gradients[t % 2]
            p, memory = move(optimizer, lr, g, memory, p)
            q, other = move(optimizer, lr, left @ g @ right, other, q)
            scale = jnp.linalg.norm(left) * jnp.linalg.norm(p) * jnp.linalg.norm(right)
            error = jnp.linalg.norm(q - left @ p @ right)
            # Where nothing has moved yet, nothing of the image may have.
            error = jnp.where(scale == 0, jnp.where(error == 0, 0.0, jnp.inf), error / scale)
            return (p, memory, q, other), error

        p = jnp.zeros_like(gradients[0])
        q = jnp.zeros(_IMAGE, p.dtype)
        return jax.lax.scan(step, (p, optimizer.init(p), q, optimizer.init(q)), jnp.arange(steps))[
            1
        ]

    return compiled(jax.vmap(one))(sizes)
