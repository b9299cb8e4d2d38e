"""Sums that cancel exactly: their leading term is gone, and the next one leads.

Values are exact or those of many finite networks. Everything cancels in the programs of `EXACT`
but a term of lower order, whose limit is written beside them; with one term to begin with the
limit is found all the same, since it then takes two.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles.helpers import error_of

import tplimit as tp

Theta = dict[str, jax.Array]
n = tp.Width("n")
VECTORS = {name: tp.normal((n,)) for name in "vwu"}
MATRIX = {**VECTORS, "W": tp.normal((n, n), std=n**-0.5)}
relu = jax.nn.relu


def N(t: Theta) -> int:
    return t["v"].shape[0]


def root(t: Theta) -> jax.Array:
    return jnp.sqrt(N(t))


def small(t: Theta) -> jax.Array:
    """What is left in the programs below."""
    return t["w"] / root(t)


def left(difference: Callable[[Theta], jax.Array]) -> Callable[[Theta], jax.Array]:
    """`sqrt(n) <w, d>`, which is 1 for `d = w / sqrt(n)`."""
    return lambda t: root(t) * jnp.mean(t["w"] * difference(t))


def scanned(t: Theta) -> jax.Array:
    return jax.lax.scan(lambda c, _: (c + t["v"], None), t["v"], None, length=9)[0]


EXACT: dict[str, tuple[Callable[[Theta], Any], Any]] = {
    "parts of a rectifier": (left(lambda t: relu(t["v"]) - relu(-t["v"]) - t["v"] + small(t)), 1),
    "maximum and minimum": (
        left(
            lambda t: jnp.maximum(t["v"], t["u"]) + jnp.minimum(t["v"], t["u"])
            - t["v"] - t["u"] + small(t)
        ),
        1,
    ),
    "rounding of thirds": (
        left(lambda t: (t["v"] + t["w"]) / 3 - t["v"] / 3 - t["w"] / 3 + small(t)), 1,
    ),
    "one entry of two": (
        lambda t: N(t) * jnp.mean(jnp.stack([t["v"] + small(t) - t["v"], small(t)]) ** 2, 1),
        [1, 1],
    ),
    "rows of a softmax": (
        lambda t: N(t) * jnp.mean(
            jnp.sum(jax.nn.softmax(jnp.stack([t["v"], t["u"]]), 0) * (1 + small(t) ** 2), 0) - 1
        ),
        1,
    ),
    "centred rows": (
        left(
            lambda t: (lambda h: (h - h.mean(0)).sum(0))(jnp.stack([t["v"], t["w"], t["u"]]))
            + small(t)
        ),
        1,
    ),
    "a finite matrix": (
        left(lambda t: (jnp.array([[-1.0, 1.0]]) @ jnp.stack([t["v"], t["v"] + small(t)]))[0]), 1,
    ),
    "sine and cosine": (
        lambda t: N(t) * jnp.mean(jnp.sin(t["v"]) ** 2 + jnp.cos(t["v"]) ** 2 - 1 + small(t) ** 2),
        1,
    ),
    "an inverse function": (left(lambda t: jnp.log(jnp.exp(t["v"] + small(t))) - t["v"]), 1),
    "a quotient": (
        left(
            lambda t: ((t["v"] * t["u"] + small(t)) / jnp.abs(t["u"]) - t["v"] * jnp.sign(t["u"]))
            * jnp.abs(t["u"])
        ),
        1,
    ),
    "vmap": (
        left(
            lambda t: jax.vmap(lambda a: a * t["v"] + small(t) / 2)(jnp.array([1.0, -1.0])).sum(0)
        ),
        1,
    ),
    "a compiled loop": (left(lambda t: scanned(t) - 10 * t["v"] + small(t)), 1),
    "normalised": (
        lambda t: N(t) * jnp.mean(
            (
                (t["v"] + small(t)) / jnp.sqrt(jnp.mean((t["v"] + small(t)) ** 2))
                - t["v"] / jnp.sqrt(jnp.mean(t["v"] ** 2))
            )
            ** 2
        ),
        1,
    ),
    "a rectifier of what is left": (
        left(lambda t: relu(t["v"] + small(t) - t["v"])), 0.5,
    ),
    "a sign of what is left": (
        lambda t: jnp.mean(t["w"] * jnp.sign(t["v"] / 3 + small(t) - t["v"] / 3)),
        np.sqrt(2 / np.pi),
    ),
    "a choice that is made by a finite number": (
        lambda t: jnp.mean(
            t["w"] * (jnp.where(jnp.mean(t["v"] ** 2) > 0.5, t["w"] + t["v"], t["v"]) - t["v"])
        ),
        1,
    ),
}  # fmt: skip


def slowly(value: Any) -> Any:
    return pytest.param(value, marks=pytest.mark.slow)


@pytest.mark.parametrize("terms", [None, slowly(2), slowly(3)])
@pytest.mark.parametrize("name", EXACT)
def test_the_next_term_leads(name: str, terms: int | None):
    program, exact = EXACT[name]
    options = {} if terms is None else {"terms": terms}
    theta = tp.sample(VECTORS, jax.random.key(0), width=tp.inf, samples=2**11, **options)
    np.testing.assert_allclose(tp.limit(program)(theta), exact, atol=5e-3)


def test_three_terms_where_two_cancel():
    theta = tp.sample(VECTORS, jax.random.key(0), width=tp.inf, samples=2**11, terms=3)
    square = lambda t: (t["v"] + small(t)) ** 2 - t["v"] ** 2 - 2 * t["v"] * small(t)
    assert tp.limit(lambda t: N(t) * jnp.mean(square(t)))(theta) == pytest.approx(1, abs=1e-5)


QUERIES: dict[str, Callable[[Theta], jax.Array]] = {
    "a sum of rows": left(
        lambda t: t["W"] @ (t["v"] + t["u"]) - t["W"] @ t["v"] - t["W"] @ t["u"] + small(t)
    ),
    "the same row again": left(lambda t: t["W"] @ (2 * t["v"]) - 2 * (t["W"] @ t["v"]) + small(t)),
    "an update": lambda t: jnp.mean(
        ((t["W"] + jnp.outer(t["w"], t["v"]) / N(t)) @ t["v"] - t["W"] @ t["v"]) * t["w"]
    ),
    "two matrices": left(
        lambda t: (t["W"] + small(t)[:, None] / N(t)) @ jnp.ones(N(t)) - t["W"] @ jnp.ones(N(t))
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", [next(iter(QUERIES)), *map(slowly, [*QUERIES][1:])])
def test_equal_queries_have_equal_answers(name: str):
    theta = tp.sample(MATRIX, jax.random.key(0), width=tp.inf, samples=2**11, terms=2)
    assert tp.limit(QUERIES[name])(theta) == pytest.approx(1, abs=1e-4)


def test_what_cancels_on_a_part_of_the_coordinates_does_not_cancel():
    """A few particles see no coordinate above 3.5; the run does, and plans anew."""
    theta = tp.sample(VECTORS, jax.random.key(0), width=tp.inf, samples=2**15)
    program = lambda t: jnp.mean((jnp.where(t["v"] > 3.5, t["u"] + t["v"], t["v"]) - t["v"]) ** 2)
    share = 2.33e-4
    error = np.sqrt(3 * share / 2**15)
    assert abs(tp.limit(program)(theta) - share) < 5 * error


def test_summands_that_are_small_by_chance_hide_no_cancellation():
    """v/3 is left of the first difference up to round-off of x/3, which leads where w is small."""
    left = lambda v, w: (v + w) / 3 - v / 3 - w / 3 + v * v.shape[0] ** -0.5
    found = tp.leading(lambda t: jnp.mean(left(t["v"], t["w"]) ** 2))
    declared = {"v": tp.normal((n,)), "w": tp.normal((n,))}
    for key in range(20):
        sampled = tp.sample(declared, jax.random.key(key), width=tp.inf, samples=256)
        assert found(sampled).exponent == -1


def test_what_is_constant_along_the_width_does_not_fluctuate():
    """The multipliers of the central-limit term add up to round-off, which led."""
    theta = tp.sample(VECTORS, jax.random.key(0), width=tp.inf, samples=2**10, terms=2)
    summed = lambda t: jnp.sum(t["v"] + t["v"].shape[0])
    assert [e for e, _ in tp.series(summed)(theta).terms] == [2]
    with pytest.raises(tp.CancellationError):
        tp.leading(lambda t: summed(t) - t["v"].shape[0] ** 2)(theta)


def test_what_cancels_for_these_data_only_is_no_rule():
    """The same compiled program with other numbers."""
    theta = tp.sample(VECTORS, jax.random.key(0), width=tp.inf, samples=2**11, terms=2)
    program = tp.limit(lambda t, a, b: jnp.mean((a * t["v"] - b * t["v"] + small(t)) * t["v"]))
    for a, b in ((1.0, 1.0), (2.0, 1.0), (1.0, 1.0), (1.0, 3.0)):
        value = program(theta, jnp.asarray(a), jnp.asarray(b))
        assert value == pytest.approx(a - b, abs=1e-5)


def test_limits_are_transformed_while_the_numbers_are_not_known():
    theta = tp.sample(VECTORS, jax.random.key(0), width=tp.inf, samples=2**11, terms=2)
    program = left(lambda t: t["v"] + t["scale"] * small(t) - t["v"])
    run = lambda scale: tp.limit(program)({**theta, "scale": scale})
    two = jnp.asarray(2.0)
    assert jax.jit(run)(two) == pytest.approx(2, abs=1e-5)
    assert jax.grad(run)(two) == pytest.approx(1, abs=1e-5)
    np.testing.assert_allclose(jax.vmap(run)(jnp.asarray([1.0, 3.0])), [1, 3], atol=1e-5)


def test_a_sum_that_is_exactly_zero_is_zero():
    theta = tp.sample(VECTORS, jax.random.key(0), width=tp.inf, samples=2**11)
    zero = lambda t: relu(t["v"]) - relu(-t["v"]) - t["v"]
    assert tp.limit(lambda t: N(t) ** 3.0 * jnp.sum(zero(t) ** 2))(theta) == 0


def test_dividing_by_what_is_not_known_is_refused():
    theta = tp.sample(VECTORS, jax.random.key(0), width=tp.inf, samples=2**11, terms=2)
    square = lambda t: (t["v"] + small(t)) ** 2 - t["v"] ** 2 - 2 * t["v"] * small(t)
    error = error_of(tp.CancellationError, tp.limit(lambda t: jnp.mean(1 / square(t))), theta)
    assert "test_cancellation.py" in str(error)


# --- what moves in kernel regimes

INPUTS = jnp.asarray([[1.0, -0.5], [0.4, 1.2]])
LABELS = jnp.asarray([1.0, -1.0])


def network(activation: Callable[[jax.Array], jax.Array]) -> tuple[Any, Any, Any, Any]:
    """Declared parameters in the NTK parameterization, hidden layer, output, gradient step."""
    theta = {"U": tp.normal((2, n)), "W": tp.normal((n, n)), "v": tp.normal((n,))}

    def hidden(t: Theta) -> jax.Array:
        return activation(INPUTS @ t["U"]) @ t["W"] / root(t)

    def predict(t: Theta) -> jax.Array:
        return activation(hidden(t)) @ t["v"] / root(t)

    def step(t: Theta) -> Theta:
        gradient = jax.grad(lambda t: 0.5 * jnp.mean((predict(t) - LABELS) ** 2))(t)
        return jax.tree.map(lambda p, g: p - g, t, gradient)

    return theta, hidden, predict, step


def movements(hidden: Any, before: Theta, after: Theta) -> jax.Array:
    """n times the inner products of what features move by, the movements of the readout and of the
    first layer."""
    moved = hidden(after) - hidden(before)
    first = jnp.tanh(INPUTS @ after["U"]) - jnp.tanh(INPUTS @ before["U"])
    gram = moved @ moved.T
    return jnp.stack(
        [
            gram[0, 0],
            gram[0, 1],
            gram[1, 1],
            jnp.sum((after["v"] - before["v"]) ** 2),
            N(before) * jnp.mean(first**2),
        ]
    )


@pytest.mark.parametrize("activation", [jnp.tanh, slowly(relu)])
def test_features_of_kernel_regimes_move_as_those_of_networks(
    activation: Callable[[jax.Array], jax.Array],
):
    """Means over random outputs at the start, in units of their standard error: one in 2000 such
    comparisons of five is off by more than 4.5."""
    theta, hidden, _, step = network(activation)
    observe = lambda t: movements(hidden, t, step(t))
    limit = tp.limit(observe)
    finite = jax.jit(observe)
    keys = jax.random.split(jax.random.key(0), 64)
    wide = [limit(tp.sample(theta, k, width=tp.inf, samples=2**9, terms=2)) for k in keys]
    dense = [finite(tp.sample(theta, k, width=256)) for k in keys]
    means = [np.mean(values, 0) for values in (wide, dense)]
    error = np.sqrt(sum(np.var(values, 0) for values in (wide, dense)) / len(keys))
    assert np.all(np.abs(means[0] - means[1]) < 4.5 * error)
    assert np.all(np.asarray(wide)[:, 0] > 0)


@pytest.mark.slow
def test_what_has_moved_is_known_across_calls():
    """One call of two steps; two calls with the first parameters in the state; with those kept."""
    theta, hidden, _, step = network(jnp.tanh)
    start = tp.sample(theta, jax.random.key(0), width=tp.inf, samples=2**9, terms=2)
    once = tp.limit(lambda t: movements(hidden, t, step(step(t))))(start)
    stepper = tp.limit(lambda state: (state[0], step(state[1])))
    moved = tp.limit(lambda state: movements(hidden, *state))
    state = stepper(stepper((start, start)))
    np.testing.assert_allclose(moved(state), once, rtol=2e-3, atol=1e-5)
    np.testing.assert_array_equal(moved((start, state[1])), moved(state))
    still = tp.limit(lambda a, b: N(a) * jnp.mean((hidden(a) - hidden(b)) ** 2))
    assert still(start, start) == 0


@pytest.mark.slow
def test_movement_is_of_order_one_over_the_width():
    theta, hidden, _, step = network(jnp.tanh)
    start = tp.sample(theta, jax.random.key(0), width=tp.inf, samples=2**9)
    lead = tp.leading(lambda t: jnp.mean((hidden(step(t)) - hidden(t)) ** 2))(start)
    assert lead.exponent == -1
    gram = tp.limit(lambda t: movements(hidden, t, step(t)))(start)
    assert lead.coefficient == pytest.approx(float(gram[0] + gram[2]) / 2, rel=1e-4)

    def cosine(t: Theta) -> jax.Array:
        moved = hidden(step(t)) - hidden(t)
        gram = moved @ moved.T
        return gram[0, 1] / jnp.sqrt(gram[0, 0] * gram[1, 1])

    expected = gram[1] / jnp.sqrt(gram[0] * gram[2])
    assert tp.limit(cosine)(start) == pytest.approx(float(expected), abs=1e-4)
