"""Where something is decided: comparisons, rounding, indices of extrema, saturation.

A leading coefficient decides where it is known not to vanish; where it is exactly equal the next
term does, and where that is not known the program is refused. Limits are exact, or compared with
one wide network.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles.helpers import assert_same_mean, dense, error_of, sampled

import tplimit as tp

Theta = dict[str, jax.Array]
n = tp.Width("n")
KEY = jax.random.key(1)
PARAMETERS = {name: tp.normal((n,)) for name in "vwu"} | {
    "x": tp.normal((n,), mean=0.3, std=0.8), "r": tp.rademacher((n,)),
}  # fmt: skip


@pytest.fixture(scope="module", params=[1, 2, 3], ids="{} terms".format)
def theta(request: pytest.FixtureRequest) -> Theta:
    return tp.sample(
        PARAMETERS, jax.random.key(0), width=tp.inf, samples=2**12, terms=request.param
    )


def N(t: Theta) -> int:
    return t["v"].shape[0]


def root(t: Theta) -> jax.Array:
    return jnp.sqrt(N(t))


def one(t: Theta) -> jax.Array:
    """A number that tends to 1."""
    return jnp.mean(t["v"] ** 2)


def share(mask: jax.Array) -> jax.Array:
    return jnp.mean(mask.astype(float))


EXACT: dict[str, tuple[Callable[[Theta], Any], Any]] = {
    # rounding of numbers at a jump
    "floor from below": (lambda t: jnp.floor(1 - one(t) / N(t)), 0),
    "floor from above": (lambda t: jnp.floor(1 + one(t) / N(t)), 1),
    "ceil from below": (lambda t: jnp.ceil(1 - one(t) / N(t)), 1),
    "ceil from above": (lambda t: jnp.ceil(1 + one(t) / N(t)), 2),
    "floor at zero": (lambda t: jnp.floor(-one(t) / N(t)), -1),
    "round half from below": (lambda t: jnp.round(2.5 - one(t) / N(t)), 2),
    "round half from above": (lambda t: jnp.round(2.5 + one(t) / N(t)), 3),
    "round away from jumps": (lambda t: jnp.round(jnp.stack([0.1 * one(t), 3.0 * one(t)])), [0, 3]),
    "integers from below": (lambda t: (2 - one(t) / N(t)).astype(int), 1),
    "integers, negative": (lambda t: (-2 + one(t) / N(t)).astype(int), -1),
    "integers near 0": (lambda t: (one(t) * jnp.array([0.3, 1 / N(t)])).astype(int), [0, 0]),
    "a third of a third": (lambda t: jnp.floor(3 * ((1 - one(t) / N(t)) / 3)), 0),
    "what grows": (lambda t: jnp.floor(N(t) * one(t)) / N(t), 1),
    "two terms that grow": (
        lambda t: (jnp.floor(N(t) + 2 * root(t) * one(t)) - N(t)) / root(t), 2,
    ),
    "some grow": (
        lambda t: jnp.floor(one(t) * jnp.array([2.5, N(t)])) / jnp.array([1, N(t)]), [2, 1],
    ),
    # remainders
    "remainder from below": (lambda t: jnp.mod(2 - one(t) / N(t), 1), 1),
    "remainder from above": (lambda t: jnp.mod(2 + one(t) / N(t), 1), 0),
    "quotient from below": (lambda t: (2 - one(t) / N(t)) // 1, 1),
    "remainder away from jumps": (lambda t: jnp.mod(2.5 * one(t), 2 + 0 * one(t)), 0.5),
    # vectors at a jump: the sign of the next term
    "floor of a vector": (lambda t: jnp.mean(jnp.floor(1 + t["v"] / root(t))), 0.5),
    "floor of a vector at zero": (lambda t: jnp.mean(jnp.floor(t["v"] / root(t))), -0.5),
    "truth values": (lambda t: share((t["v"] / root(t)).astype(bool)), 1),
    "truth of nothing": (lambda t: share((0 * t["v"]).astype(bool)), 0),
    # equality
    "equal to leading order": (lambda t: share(t["v"] == t["v"] + t["w"] / root(t)), 0),
    "unequal to leading order": (lambda t: share(t["v"] != t["v"] + t["w"] / root(t)), 1),
    "equal": (lambda t: share(t["v"] == t["v"]), 1),
    "equal to itself": (lambda t: one(t) - one(t) / N(t) == one(t) - one(t) / N(t), True),
    "no number is NaN": (lambda t: jnp.isnan(one(t) + 1 / N(t)), False),
    "softplus of numbers": (lambda t: jax.nn.softplus(one(t) - 1 + one(t) / N(t)), np.log(2)),
    "equal zeros": (lambda t: share(jax.nn.relu(t["v"]) == 0), 0.5),
    # what does not decide hides nothing
    "clipped": (lambda t: N(t) * jnp.clip(one(t) / N(t), -1, 1), 1),
    "beside others": (lambda t: jnp.clip(jnp.stack([one(t) / N(t), 3 * one(t)]), -1, 1), [0, 1]),
}  # fmt: skip


@pytest.mark.parametrize(("program", "limit"), EXACT.values(), ids=EXACT)
def test_what_a_next_term_decides(program: Any, limit: Any, theta: Theta) -> None:
    np.testing.assert_allclose(tp.limit(program)(theta), limit, atol=0.06)


WIDE: dict[str, Callable[[Theta], Any]] = {
    "index among orders": lambda t: jnp.mean(
        jnp.abs(root(t) * t["x"] * jnp.argmax(jnp.stack([root(t) * t["x"], t["v"], t["x"]]), 0))
    ) / root(t),
    "index of five": lambda t: jnp.mean(1.0 * jnp.argmax(jnp.stack(
        [t["v"], t["w"], t["u"], t["v"] * t["w"] / root(t), t["u"] - t["x"] / root(t) + t["w"]]
    ), 0)),
    "index along the second axis": lambda t: jnp.mean(
        1.0 * jnp.argmin(jnp.stack([t["v"] / root(t), t["w"] * t["u"], t["x"]], axis=1), 1)
    ),
    "rounded vectors": lambda t: jnp.mean(jnp.round(2 * t["v"]) * t["v"]),
    "remainders of vectors": lambda t: jnp.mean(jnp.mod(t["v"], 0.7) * t["v"]),
    "saturated": lambda t: jnp.mean(jnp.tanh(root(t) * t["v"]) * t["v"]),
    "saturated square": lambda t: jnp.mean(jnp.exp(-N(t) * t["v"] ** 2)),
    "signs beside ties": lambda t: jnp.mean(
        jnp.floor(t["r"] + t["v"] / root(t)) + jnp.sign(t["r"] - 1 + t["v"] / root(t)) * t["v"]
    ),
    "conversion beside ties": lambda t: jnp.mean(
        1.0 * (2 * t["r"] - t["v"] ** 2 / root(t)).astype(int)
    ),
    "largest of equals": lambda t: jnp.mean(
        jnp.max(jnp.stack([t["v"], t["w"], t["v"]]), 0)
        * jnp.argmax(jnp.stack([t["r"], -t["r"]]), 0)
    ),
}  # fmt: skip


@pytest.mark.parametrize("program", WIDE.values(), ids=WIDE)
def test_decisions_are_those_of_a_wide_network(program: Any, theta: Theta) -> None:
    """Width 2^18, one draw: both errors are below 0.01 and 0.03."""
    wide = tp.sample(PARAMETERS, jax.random.key(1), width=2**18)
    np.testing.assert_allclose(tp.limit(program)(theta), program(wide), atol=0.04)


UNKNOWN: dict[str, Callable[[Theta], Any]] = {
    "what rounding adds to a large number": lambda t: jnp.floor(N(t) * one(t)) - N(t) * one(t),
    "a jump within the error": lambda t: jnp.mod(one(t), 1),
    "a quotient within the error": lambda t: one(t) // 1,
    "an integer within the error": lambda t: one(t).astype(int),
    "a square that saturates": lambda t: root(t) * jnp.mean(jnp.exp(-N(t) * t["v"] ** 2)),
    "a product that saturates": lambda t: root(t) * jnp.mean(
        1 - jnp.tanh(root(t) * t["v"] * t["w"]) ** 2
    ),
    "indices of what cancels": lambda t: jnp.argmax(jnp.stack([one(t), one(t) + 1 / N(t)])),
}  # fmt: skip


@pytest.mark.parametrize("program", UNKNOWN.values(), ids=UNKNOWN)
def test_what_is_not_known_decides_nothing(program: Any, theta: Theta) -> None:
    error = error_of(tp.CancellationError, tp.limit(program), theta)
    assert __file__.rsplit("/", 1)[-1] in str(error)


def test_numbers_that_differ_below_what_is_known_are_not_called_equal(theta: Theta) -> None:
    """The difference 1/n is below the two terms of the numbers; three terms tell it."""
    same = tp.limit(lambda t: one(t) == one(t) + 1 / N(t))
    try:
        assert not bool(same(theta))
    except tp.CancellationError as error:
        assert "equal, and the next terms are not known" in str(error)


@pytest.mark.parametrize("terms", [2, *(pytest.param(k, marks=pytest.mark.slow) for k in (1, 3))])
def test_extrema_of_three_images(terms: int) -> None:
    """Each entry is compared once: an image is not compared with itself. Width 2048, 8 draws."""
    parameters = {"v": tp.normal((n,)), "W": tp.normal((n, n), std=n**-0.5)}

    def both(t: Theta) -> jax.Array:
        rows = jnp.stack([t["W"] @ t["v"], t["W"].T @ t["v"], t["v"]])
        return jnp.stack(
            [jnp.mean(jnp.argmax(rows, 0) * t["v"]), jnp.mean(jnp.max(rows, 0) * t["v"])]
        )

    theta = tp.sample(parameters, jax.random.key(0), width=tp.inf, samples=2**12, terms=terms)
    wide = [both(tp.sample(parameters, key, width=2048)) for key in jax.random.split(KEY, 8)]
    np.testing.assert_allclose(tp.limit(both)(theta), np.mean(wide, axis=0), atol=0.05)


@pytest.mark.parametrize("program", [
    lambda t: jnp.mod(N(t) * one(t), 0.7), lambda t: jnp.mean(jnp.fmod(root(t) * t["v"], 0.7)),
    lambda t: jnp.mod(jnp.array([2.5, N(t)]), 0.7),
])  # fmt: skip
def test_remainders_of_what_grows_have_no_limit(program: Any, theta: Theta) -> None:
    """``a - b trunc(a / b)`` is a difference of large numbers: round-off must not lead."""
    error = error_of(tp.NoLimitError, tp.leading(program), theta)
    assert "quotient grows" in str(error)


# --- leading terms


LEADING: dict[str, tuple[Callable[[Theta], Any], list[float], list[float]]] = {
    "a difference": (lambda t: (1 + one(t) / N(t)) - 1, [1], [-1]),
    "cosh": (lambda t: jnp.cosh(one(t) / N(t)) - 1, [0.5], [-2]),
    "log": (lambda t: jnp.log(1 + one(t) / N(t)), [1], [-1]),
    "clip": (lambda t: jnp.clip(one(t) / N(t), -1, 1), [1], [-1]),
    "softmax": (
        lambda t: jax.nn.softmax(jnp.stack([one(t) / N(t), 0 * one(t)])) - 0.5,
        [0.25, -0.25], [-1, -1],
    ),
    "entries of two orders": (
        lambda t: jnp.clip(jnp.stack([one(t) / N(t), 0.5 * one(t)]), -1, 1), [1, 0.5], [-1, 0],
    ),
    "floor": (lambda t: jnp.floor(jnp.stack([0.3 * one(t), 1.5 * one(t)])), [0, 1], [-np.inf, 0]),
}  # fmt: skip


@pytest.mark.parametrize(("program", "coefficient", "exponent"), LEADING.values(), ids=LEADING)
def test_leading_terms_are_not_zero(
    program: Any, coefficient: list[float], exponent: list[float], theta: Theta
) -> None:
    found = tp.leading(program)(theta)
    np.testing.assert_allclose(np.ravel(found.coefficient), coefficient, atol=0.05)
    shape = np.shape(found.coefficient)
    exponents = np.broadcast_to(np.asarray(found.exponent, dtype=float), shape)
    assert np.array_equal(np.ravel(exponents), exponent)


@pytest.mark.parametrize("given", [True, False], ids=["an argument", "a constant"])
def test_infinity_is_beyond_every_power(given: bool, theta: Theta) -> None:
    """Added to what grows, compared with it, or with it under a maximum."""
    infinite = jnp.asarray([jnp.inf, -jnp.inf, 0.0])
    grown = lambda t: jnp.asarray([0.8, -1.3, 0.45]) * jnp.stack([N(t), 1.0, root(t)])
    programs: list[tuple[Any, list[float]]] = [
        (lambda t, b: grown(t) + b, [np.inf, -np.inf, 0.45]),
        (lambda t, b: (grown(t) < b).astype(float), [1, 0, 0]),
        (lambda t, b: jnp.minimum(grown(t), -b), [-np.inf, -1.3, 0]),
    ]
    for program, expected in programs:
        if given:
            found = tp.leading(program)(theta, infinite)
        else:
            found = tp.leading(functools.partial(program, b=infinite))(theta)
        np.testing.assert_allclose(found.coefficient, expected, atol=1e-6)


# --- arguments


def test_a_zero_among_the_arguments_hides_nothing() -> None:
    """A bias of 0, as every new layer has: E tanh(h)² with h of variance 3, to the power 1/2."""
    theta = {"U": tp.normal((3, n)), "v": tp.normal((n,), std=1 / n), "b": jnp.zeros(())}
    theta = tp.sample(theta, jax.random.key(0), width=tp.inf, samples=2**10)

    def output(t: Theta) -> jax.Array:
        return jnp.tanh(jnp.ones(3) @ t["U"]) @ t["v"]

    without, added = (
        tp.leading(f)(theta) for f in (output, lambda t: output(t) + t["b"])
    )  # fmt: skip
    assert without.exponent == added.exponent == tp.leading(output)(theta).exponent == -1 / 2
    np.testing.assert_allclose(added.coefficient, without.coefficient, rtol=1e-6)
    other = tp.leading(lambda t: output(t) + t["b"])({**theta, "b": jnp.ones(())})
    assert other.exponent == 0
    np.testing.assert_allclose(other.coefficient, 1, atol=0.05)


def test_limits_can_be_transformed_in_numbers() -> None:
    """Under jit, grad and vmap numbers cannot be looked at, and a limit is a function of them."""
    theta = tp.sample({"v": tp.normal((n,))}, jax.random.key(0), width=tp.inf, samples=2**10)

    def scaled(b: jax.Array) -> Any:
        return tp.limit(lambda t, b: jnp.mean(t["v"] ** 2) * b)(theta, b)

    np.testing.assert_allclose(jax.jit(scaled)(2.0), scaled(jnp.asarray(2.0)), rtol=1e-6)
    np.testing.assert_allclose(jax.grad(scaled)(2.0), scaled(jnp.asarray(1.0)), rtol=1e-6)
    np.testing.assert_allclose(
        jax.vmap(scaled)(jnp.arange(3.0)), scaled(jnp.asarray(1.0)) * np.arange(3), rtol=1e-6
    )


def test_biases_of_zero_do_not_hide_a_regime() -> None:
    """muP with a bias that starts at 0: the initial output is of order n^-1/2."""
    model = tp.mlp(1, inputs=2)
    scaling = tp.parameterizations.mup
    theta = {**scaling.theta(model), "b": jnp.zeros(())}
    predict = scaling.predict(model)

    def step(t: dict[str, Any], batch: Any) -> Any:
        x, y = batch

        def loss(t: dict[str, Any]) -> jax.Array:
            return jnp.mean(
                (predict({k: v for k, v in t.items() if k != "b"}, x) + t["b"] - y) ** 2
            )

        g = jax.grad(loss)(t)
        return jax.tree.map(lambda p, d: p - 0.1 * d, t, g), predict(t, x) + t["b"]

    regime = tp.classify_step(step, theta, (jnp.ones((1, 2)), jnp.ones((1,))))
    assert regime.exponents["f_0"] == -1 / 2


LEAKY: dict[str, Callable[[jax.Array], jax.Array]] = {
    "a rectifier": lambda h: jax.nn.leaky_relu(h, 0.5),
    "the larger of two": lambda h: jnp.maximum(h, 0.5 * h),
    "the largest along an axis": lambda h: jnp.max(jnp.stack([h, 0.5 * h]), axis=0),
    "the smallest, negated": lambda h: -jnp.min(jnp.stack([-0.5 * h, -h], axis=-2), axis=-2),
    "a rectifier by a maximum": lambda h: 0.5 * h + 0.5 * jnp.maximum(h, 0),
}


@pytest.mark.slow
@pytest.mark.parametrize("terms", [1, 2])
def test_derivatives_of_extrema_after_a_step(terms: int):
    """A value equals the extremum where it is not less than the others, whatever is unknown of it.

    muP, so that one term is enough; the second step differentiates values of which some is unknown.
    """
    declared = {"U": tp.normal((3, n)), "W": tp.normal((n, n), std=n**-0.5), "v": tp.normal((n,))}
    x = jax.random.normal(jax.random.key(1), (2, 3))
    state = tp.sample(declared, jax.random.key(0), width=tp.inf, samples=256, terms=terms)
    found = []
    for activation in LEAKY.values():

        def loss(t, activation=activation):
            h = activation(activation(x @ t["U"]) @ t["W"]) @ t["v"] / t["v"].shape[0]
            return jnp.mean((h - jnp.asarray([1.0, -1.0])) ** 2)

        def step(t, loss=loss):
            width = t["v"].shape[0]
            scales = {"U": 0.3 * width, "W": 0.3, "v": 0.3 * width}
            return jax.tree.map(lambda p, s, g: p - s * g, t, scales, jax.grad(loss)(t)), loss(t)

        moved, losses = state, []
        for _ in range(3):
            moved, value = tp.limit(step)(moved)
            losses.append(float(value))
        found.append(losses)
    assert found[0][2] < 0.9 * found[0][0]
    # With two terms other rows are asked for, so that the noise differs: by 3e-5 at 2048 samples.
    for other in found[1:]:
        np.testing.assert_allclose(other, found[0], rtol=1e-5 if terms == 1 else 2e-3)


@pytest.mark.parametrize("terms", [1, 2])
def test_the_largest_of_outputs_after_a_step(terms: int):
    """The gradient of the largest output is that of the output it is."""
    declared = {"U": tp.normal((3, n)), "v": tp.normal((n,))}
    x = jax.random.normal(jax.random.key(1), (3, 3))
    state = tp.sample(declared, jax.random.key(0), width=tp.inf, samples=2**12, terms=terms)
    outputs = lambda t: jnp.tanh(x @ t["U"]) @ t["v"] / t["v"].shape[0]
    targets = jnp.asarray([1.0, -1.0, 0.2])

    def step(t, loss):
        return jax.tree.map(lambda p, g: p - t["v"].shape[0] * g, t, jax.grad(loss)(t))

    square = lambda t: jnp.sum((outputs(t) - targets) ** 2)
    state = tp.limit(lambda t: step(t, square))(state)
    top = int(jnp.argmax(tp.limit(outputs)(state)))
    losses = [lambda t: jnp.max(outputs(t)), lambda t: outputs(t)[top]]
    after = [tp.limit(lambda t, loss=loss: outputs(step(t, loss)))(state) for loss in losses]
    np.testing.assert_allclose(*after, rtol=1e-5, atol=1e-6)


POOLS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "the largest": lambda h: jnp.max(h, 0),
    "the smallest, negated": lambda h: -jnp.min(-h, 0),
    "a chain": lambda h: jnp.maximum(jnp.maximum(h[0], h[1]), h[2]),
    "of a stack": lambda h: jnp.max(jnp.stack([h[2], h[0], h[1]]), 0),
}


def pooled(pool: Callable[[jax.Array], jax.Array], steps: int) -> Callable[[Theta], Any]:
    """Losses of a network with a pool of rectified features, before every step of muP."""
    x = jax.random.normal(jax.random.key(3), (3, 3))
    rates = {"U": 1.0, "W": 0.0, "v": 1.0}

    def loss(t: Theta) -> jax.Array:
        features = pool(jax.nn.relu(jax.nn.relu(x @ t["U"]) @ t["W"]))
        return (features @ t["v"] / t["v"].shape[0] - 1) ** 2

    def run(t: Theta) -> jax.Array:
        losses = []
        for _ in range(steps):
            value, g = jax.value_and_grad(loss)(t)
            losses.append(value)
            t = {name: t[name] - 0.1 * (1.0 * N(t)) ** rates[name] * g[name] for name in t}
        return jnp.stack(losses)

    return run


POOLED = {"U": tp.normal((3, n)), "W": tp.normal((n, n), std=n**-0.5), "v": tp.normal((n,))}


@pytest.mark.slow
@pytest.mark.parametrize("terms", [1, 2])
def test_pools_of_dead_units(terms: int):
    """Entries that are exactly zero are as large as each other: their gates are closed."""
    theta = tp.sample(POOLED, jax.random.key(0), width=tp.inf, samples=256, terms=terms)
    kept = tp.limit(lambda t: t)(theta)  # no new parameters: as many terms stay
    first, *others = [tp.limit(pooled(pool, 2))(kept) for pool in POOLS.values()]
    assert first[1] < 0.1 * first[0]
    for other in others:
        np.testing.assert_allclose(other, first, rtol=1e-4, atol=1e-6)


@pytest.mark.slow
def test_pools_against_networks():
    run = pooled(POOLS["the largest"], 3)
    assert_same_mean(sampled(run, POOLED, tp.inf, 8), dense(run, POOLED, 480, 48), 10 / 480)
