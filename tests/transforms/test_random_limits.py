"""A limit that is random, another number for every key, says so; others do not."""

from typing import Any

import jax
import jax.numpy as jnp
import pytest

import tplimit as tp

N = tp.Width("n")
DECLARED = {"U": tp.normal((2, N)), "W": tp.normal((N, N)), "v": tp.normal((N,))}
X = jnp.asarray([[1.0, -0.5], [0.4, 1.2]])
Y = jnp.asarray([1.0, -1.0])


def features(p: Any) -> Any:
    return jnp.tanh(jnp.tanh(X @ p["U"]) @ p["W"] / jnp.sqrt(p["v"].shape[0]))


def network(power: float) -> tuple[Any, Any]:
    """Outputs, and a step of gradient descent at the learning rate that goes with them."""
    output = lambda p: features(p) @ p["v"] * p["v"].shape[0] ** -power
    loss = lambda p: 0.5 * jnp.mean((output(p) - Y) ** 2)

    def step(p: Any) -> Any:
        eta = p["v"].shape[0] ** (2 * power - 1)
        return jax.tree.map(lambda a, g: a - eta * g, p, jax.grad(loss)(p))

    return output, step


def sampled(**options: Any) -> Any:
    return tp.sample(DECLARED, jax.random.key(0), width=tp.inf, samples=2048, **options)


@pytest.mark.parametrize(
    ("power", "options", "random"),
    [(0.5, {"terms": 2}, True), (0.5, {"terms": 2, "init_output": "zero"}, False), (1, {}, False)],
    ids=["NTK", "NTK from zero", "muP"],
)
def test_outputs_after_a_step(power: float, options: Any, random: bool):
    """The random initial function moves outputs as long as they move; features it does not."""
    output, step = network(power)
    theta = tp.limit(step)(sampled(**options))
    assert tp.leading(output)(theta).random is random
    assert not tp.leading(lambda p: jnp.mean(features(p) ** 2))(theta).random


def test_initial_outputs():
    """Random in both, and where they vanish their leading coefficient is."""
    for power, exponent in ((0.5, 0), (1.0, -0.5)):
        found = tp.leading(network(power)[0])(sampled(terms=2))
        assert found.random and found.exponent == exponent
        assert repr(found).endswith("random)")


def test_what_only_passes_by_something_random_is_not():
    """A term of lower order is random, and so is what cancels."""
    output, _ = network(0.5)
    for program in (
        lambda p: jnp.mean(features(p) ** 2) + output(p)[0] / p["v"].shape[0],
        lambda p: jnp.mean(p["v"] ** 2) + 0 * output(p)[0],
    ):
        assert not tp.leading(program)(sampled(terms=2)).random
