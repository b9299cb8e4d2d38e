"""Vectors of an earlier call beside the same ones computed anew: they differ by round-off alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tplimit as tp
from tplimit.errors import CancellationError

n = tp.Width("n")
DECLARED = {"U": tp.normal((2, n)), "W": tp.normal((n, n), std=n**-0.5), "v": tp.normal((n,))}
X = jnp.asarray([[1.0, -0.5], [0.4, 1.2]])


def features(t):
    return jnp.tanh(X @ t["U"])


def hidden(t):
    return features(t) @ t["W"]


VECTORS = {
    "images": hidden,
    "functions of images": lambda t: jnp.tanh(hidden(t)) ** 2,
    "sums": lambda t: hidden(t) * t["v"] + features(t),
    "images of images": lambda t: jnp.tanh(hidden(t)) @ t["W"].T,
    "one row": lambda t: hidden(t)[0] - 2 * t["v"],
}


@pytest.fixture(scope="module")
def theta():
    return tp.sample(DECLARED, jax.random.key(0), width=tp.inf, samples=1024)


@pytest.mark.parametrize("name", VECTORS)
def test_round_off_does_not_lead(name, theta):
    vector = VECTORS[name]
    stored = tp.limit(vector)(theta)
    moved = lambda t, h: t["v"].shape[0] * jnp.mean((vector(t) - h) ** 2)
    with pytest.raises(CancellationError, match="cancel but for round-off") as caught:
        tp.limit(moved)(theta, stored)
    assert "test_stored_vectors.py" in str(caught.value)
    assert "keep the parameters in the state" in str(caught.value)


DIFFERENCES = {
    "scaled": lambda t, x, h: 2 * x - 2 * h,
    "in products": lambda t, x, h: x * t["v"] - h * t["v"],
    "in quotients": lambda t, x, h: (x - h) / jnp.sqrt(1 + h**2),
    "of sums": lambda t, x, h: x + t["v"] - h - t["v"],
    "of a stack": lambda t, x, h: jnp.diff(jnp.stack([x, h]), axis=0),
    "contracted": lambda t, x, h: jnp.array([1.0, -1.0]) @ jnp.stack([x[0], h[0]]),
    "summed": lambda t, x, h: jnp.sum(jnp.stack([x, -h]), 0),
    "averaged": lambda t, x, h: jnp.mean(jnp.stack([x, -h]), 0),
}


@pytest.mark.parametrize("name", DIFFERENCES)
def test_however_they_are_compared(name, theta):
    stored, difference = tp.limit(hidden)(theta), DIFFERENCES[name]
    moved = lambda t, h: t["v"].shape[0] * jnp.mean(difference(t, hidden(t), h) ** 2)
    with pytest.raises(CancellationError, match="cancel but for round-off"):
        tp.limit(moved)(theta, stored)


def test_vectors_with_a_sampling_error(theta):
    """There the error may hide what is left."""
    vector = lambda t: jnp.tanh((features(t) * t["v"]) @ t["W"])
    stored = tp.limit(vector)(theta)
    moved = lambda t, h: t["v"].shape[0] * jnp.mean((vector(t) - h) ** 2)
    with pytest.raises(CancellationError, match=r"round-off|zero within the sampling error"):
        tp.limit(moved)(theta, stored)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_half_precision_tells_apart_what_it_can(dtype, theta):
    """States that differ by a twentieth: ``E (tanh(v) / 20)^2``."""
    start = tp.limit(lambda v: v.astype(dtype))(theta["v"])
    end = tp.limit(lambda v: v + dtype(0.05) * jnp.tanh(v))(start)
    moved = lambda s, t: jnp.mean((s - t).astype(jnp.float32) ** 2)
    assert tp.limit(moved)(end, start) == pytest.approx(0.05**2 * 0.3943, rel=0.1)


def test_one_row_of_several(theta):
    """A row that cancels is refused beside others that do not."""
    stored = tp.limit(hidden)(theta)
    shift = jnp.asarray([[0.0], [1.0]])
    with pytest.raises(CancellationError, match="cancel but for round-off"):
        tp.limit(lambda t, h: jnp.mean((hidden(t) + shift - h) ** 2, 1))(theta, stored)


def test_other_vectors_are_compared(theta):
    """What has moved is told: ``W (x + x') - W x = W x'``."""
    stored = tp.limit(hidden)(theta)
    more = lambda t, h: jnp.mean(((features(t) + 0.1 * t["v"]) @ t["W"] - h) ** 2, 1)
    np.testing.assert_allclose(tp.limit(more)(theta, stored), 0.01, rtol=1e-3)


def test_exact_vectors_are_seen_in_two_terms(theta):
    """What no matrix has multiplied is the same in another call: the next term decides, and the
    error of one term does not hide it. ``E[u sign(u)] = sqrt(2 / pi)``."""
    stored = tp.limit(features)(theta)

    def sign(t, h):
        small = t["v"] / t["v"].shape[0] ** 0.5
        return jnp.mean(jnp.sign(features(t) - h + small) * t["v"], 1)

    found = tp.leading(sign)(theta, stored)
    assert np.all(np.abs(found.coefficient - (2 / np.pi) ** 0.5) < 5 * found.stderr)


def test_training_that_has_converged_goes_on(theta):
    """Updates below round-off are no vectors that cancel."""

    def step(t):
        loss = lambda t: jnp.mean((jnp.tanh(X @ t["U"]) @ t["v"] / t["v"].shape[0] - 0.3) ** 2)
        value, g = jax.value_and_grad(loss)(t)
        rate = {"U": t["v"].shape[0], "W": 0.0, "v": t["v"].shape[0]}
        return jax.tree.map(lambda p, r, d: p - r * d, t, rate, g), value

    train, state = tp.limit(step), theta
    for _ in range(60):
        state, value = train(state)
    assert value < 1e-10


def test_what_round_off_hides_below_a_leading_term_is_unknown():
    """The next term of g / (|g| + 1e-8) is 1e-8 / |g| of what round-off leaves of it: that is no
    reason to refuse, nor is it a number. So Adam has two terms with the `eps` that optax has."""
    vectors = {"v": tp.normal((n,)), "w": tp.normal((n,))}
    theta = tp.sample(vectors, jax.random.key(0), width=tp.inf, terms=2)

    def ratio(t, eps):
        g = 1 + t["v"] ** 2 + t["w"] / t["v"].shape[0] ** 0.5
        return g / (jnp.abs(g) + eps)

    def next_term(t, eps):
        g = 1 + t["v"] ** 2
        return t["v"].shape[0] ** 0.5 * jnp.mean((ratio(t, eps) - g / (g + eps)) * t["w"])

    mean = tp.limit(lambda t: jnp.mean(ratio(t, 1e-8)))(theta)
    np.testing.assert_allclose(mean, 1, atol=1e-6)
    with pytest.raises(CancellationError):
        tp.limit(lambda t: next_term(t, 1e-8))(theta)
    x, step = np.linspace(-12, 12, 200_001, retstep=True)
    density = np.exp(-(x**2) / 2) / np.sqrt(2 * np.pi)
    known = step * np.sum(0.1 / (1.1 + x**2) ** 2 * density)
    np.testing.assert_allclose(tp.limit(lambda t: next_term(t, 0.1))(theta), known, rtol=0.02)
