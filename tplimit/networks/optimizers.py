"""What an optimizer makes of the size and of the number of gradients, found by trying it."""

from fractions import Fraction
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np

from tplimit.networks.models import Model

if TYPE_CHECKING:
    import optax

__all__ = ["degree", "intensive"]

Arrays = dict[str, jax.Array]

_MODEL = Model(2, inputs=3)
_WIDTH = 8
# The decay of small parameters does not show, while a norm of theirs is not 0.
_SMALL = 1e-6
# Adagrad's initial accumulator is 4 % of its first update, clipping among the entries 20 %.
_TOLERANCE = 0.1


#: A step after which optimizers do what they do later.
_LATER = 10


# Both are numbers, also where a step is made inside of a function that is traced.
@jax.ensure_compile_time_eval()
def degree(optimizer: "optax.GradientTransformation", model: Model = _MODEL) -> Fraction | None:
    """The degree k, 0 or 1, of an optimizer's update u as a function of the gradients g.

        u(2 g) = 2^k u(g)

    It is 1 for gradient descent and momentum, 0 for Adam and sign descent. Gradients are of order
    one, and it has to fit to some per cent, so that constants such as `eps` do not matter. None:
    neither fits, as for clipping at a bound between the entries, or nothing moves, or the first
    update has another degree than the tenth (RAdam).

    Args:
        optimizer: an optax transformation.
        model: parameters have its names and shapes, for optimizers that tell them apart.

    >>> import optax
    >>> optimizers = optax.sgd(1.0, momentum=0.9), optax.adam(1.0), optax.clip(1.0)
    >>> [str(degree(optimizer)) for optimizer in optimizers]
    ['1', '0', 'None']
    """
    g = _gradients(model)
    degrees = set()
    for steps in (1, _LATER):
        one, two = (_update(optimizer, {k: c * a for k, a in g.items()}, steps) for c in (1, 2))
        if not any(np.any(u) for u in one.values()):
            return None
        fit = (k for k in (0, 1) if _close(two, {name: 2**k * u for name, u in one.items()}))
        degrees.add(next(map(Fraction, fit), None))
    return degrees.pop() if len(degrees) == 1 else None


@jax.ensure_compile_time_eval()
def intensive(optimizer: "optax.GradientTransformation", model: Model = _MODEL) -> bool:
    """Whether entries of the first update have the size of some entries of the gradients.

    Then a network in which every unit is there twice has the same updates, twice, and the size of
    its parameters does not matter. Not so where norms are sums over all entries (clipping by the
    global norm, orthogonal updates), nor with trust ratios.

    >>> import optax
    >>> intensive(optax.adam(1.0)), intensive(optax.clip_by_global_norm(1.0))
    (True, False)
    """
    g = _gradients(model)
    updates = _update(optimizer, g)
    wide = _update(optimizer, _twice(g, model))
    larger = _update(optimizer, g, size=2 * _SMALL)
    return _close(wide, _twice(updates, model)) and _close(larger, updates)


def _gradients(model: Model) -> Arrays:
    """Entries of both signs and of sizes between 1/2 and 4."""
    rng = np.random.default_rng(0)
    return {
        name: jnp.asarray(rng.choice((-1.0, 1.0), shape) * 2 ** rng.uniform(-1, 2, shape))
        for name, shape in model.shapes(_WIDTH).items()
    }


def _twice(arrays: Arrays, model: Model) -> Arrays:
    """Arrays of twice the width, with the same entries."""
    shapes = model.shapes(2 * _WIDTH)
    return {
        name: jnp.tile(a, [wide // now for wide, now in zip(shapes[name], a.shape, strict=True)])
        for name, a in arrays.items()
    }


def _update(
    optimizer: "optax.GradientTransformation",
    gradients: Arrays,
    steps: int = 1,
    size: float = _SMALL,
) -> Arrays:
    """The last of some updates by the same gradients, where all parameters are `size`."""
    theta = {name: jnp.full_like(g, size) for name, g in gradients.items()}
    state, updates = optimizer.init(theta), gradients
    for _ in range(steps):
        updates, state = optimizer.update(gradients, state, theta)
    return updates


def _close(updates: Arrays, expected: Arrays) -> bool:
    return all(
        jnp.linalg.norm(u - expected[name]) <= _TOLERANCE * jnp.linalg.norm(expected[name])
        for name, u in updates.items()
    )
