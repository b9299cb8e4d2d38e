"""Random numbers that a program draws along a width: dropout, noise, bits of every kind."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import random

import tplimit as tp
from tplimit.errors import LimitError, NoLimitError, UnsupportedOperationError

WIDTH = tp.Width("n")
THETA = {
    "U": tp.normal((5, WIDTH)),
    "W": tp.normal((WIDTH, WIDTH), std=WIDTH**-0.5),
    "v": tp.normal((WIDTH,)),
    "w": tp.normal((WIDTH,), std=1 / WIDTH),
}
X = random.normal(random.key(5), (3, 5))
KEY = random.key(11)
M = 2**12


def mean_square(x):
    return jnp.mean(x**2, axis=-1)


def dropped(h, key, keep=0.8):
    return jnp.where(random.bernoulli(key, keep, h.shape), h / keep, 0.0)


def recurrence(t, key):
    def turn(h, k):
        return jnp.tanh(t["W"] @ dropped(h, k) + random.normal(k, h.shape)), mean_square(h)

    return jax.lax.scan(turn, t["v"], random.split(key, 3))[1]


def in_a_loop(t, key):
    def turn(i, h):
        return h + 0.3 * dropped(jnp.tanh(h), random.fold_in(key, i))

    return mean_square(jax.lax.fori_loop(0, 3, turn, t["v"]))


def in_a_branch(t, key):
    drawn = lambda h: dropped(h, key)
    return mean_square(jax.lax.cond(jnp.mean(t["v"] ** 2) > 0.5, drawn, jnp.tanh, t["v"]))


def of_each(t, key):
    return jnp.mean(jax.vmap(lambda k: dropped(t["v"] ** 2, k))(random.split(key, 3)), axis=1)


def image(t, key):
    """One mask before the matrix and after it."""
    mask = random.bernoulli(key, 0.5, t["v"].shape)
    return mean_square(mask * (t["W"] @ (mask * t["v"])))


PROGRAMS = {
    "mask": lambda t, k: jnp.mean(random.bernoulli(k, 0.3, t["v"].shape)),
    "a probability that is computed": lambda t, k: jnp.mean(
        random.bernoulli(k, jax.nn.sigmoid(mean_square(t["v"])), t["v"].shape)
    ),
    "a probability of each": lambda t, k: jnp.mean(
        random.bernoulli(k, jax.nn.sigmoid(t["v"])) * t["v"]
    ),
    "noise": lambda t, k: mean_square(jnp.tanh(t["v"] + random.normal(k, t["v"].shape))),
    "one draw twice": lambda t, k: jnp.mean(
        jnp.tanh(t["v"] + random.normal(k, t["v"].shape)) * random.normal(k, t["v"].shape)
    ),
    "rows": lambda t, k: mean_square(X @ t["U"] + random.normal(k, (3, t["v"].shape[0]))),
    "uniform": lambda t, k: mean_square(random.uniform(k, t["v"].shape, minval=-1.0, maxval=3.0)),
    "exponential": lambda t, k: jnp.mean(jnp.tanh(random.exponential(k, t["v"].shape))),
    "gumbel": lambda t, k: mean_square(random.gumbel(k, t["v"].shape)),
    "laplace": lambda t, k: jnp.mean(jnp.abs(random.laplace(k, t["v"].shape))),
    "heavy tails": lambda t, k: mean_square(jnp.tanh(random.cauchy(k, t["v"].shape))),
    "truncated": lambda t, k: mean_square(random.truncated_normal(k, -1.0, 1.0, t["v"].shape)),
    "signs": lambda t, k: jnp.mean(jnp.abs(t["v"] + random.rademacher(k, t["v"].shape))),
    "integers": lambda t, k: jnp.mean(random.randint(k, t["v"].shape, 0, 5).astype(float)),
    "classes": lambda t, k: jnp.mean(random.categorical(k, jnp.zeros((t["v"].shape[0], 3))) == 1),
    "in a scan": recurrence,
    "in a loop": in_a_loop,
    "in a branch": in_a_branch,
    "a key for each": of_each,
    "before and after a matrix": image,
    "sign": lambda t, k: jnp.mean(jnp.sign(t["v"] + random.normal(k, t["v"].shape)) * t["v"]),
    "large noise": lambda t, k: jnp.mean(
        jnp.exp(jnp.sign(t["v"] + random.normal(k, t["v"].shape) * t["v"].shape[0] ** 0.5))
    ),
}  # fmt: skip


def networks(program, n, count=24):
    keys = random.split(random.key(7), count)

    def network(key):
        return program(tp.sample(THETA, key, width=n), random.fold_in(key, 1))

    values = np.asarray(jax.lax.map(network, keys), np.float64)
    return values.mean(0), values.std(0, ddof=1) / count**0.5


@pytest.mark.parametrize("name", PROGRAMS)
def test_beside_networks(name):
    """Within 5 standard errors of both, and a bias of 1/n: a false alarm in 10^6 numbers."""
    found = tp.leading(PROGRAMS[name])(
        tp.sample(THETA, random.key(0), width=tp.inf, samples=M), KEY
    )
    n = 2**9 if name in ("in a scan", "before and after a matrix") else 2**14
    mean, error = networks(PROGRAMS[name], n)
    shift = 3 / n if name != "large noise" else 3 * n**-0.5
    assert np.all(np.asarray(found.exponent) == 0)
    gap = np.abs(found.coefficient - mean)
    assert np.all(gap < 5 * np.hypot(found.stderr, error) + shift), (found, mean, error)


@pytest.mark.parametrize("name", ["mask", "uniform", "integers", "truncated"])
def test_a_deferred_network_draws_what_a_network_draws(name):
    """Programs of draws alone: the same bits of the same key."""
    deferred = tp.sample(THETA, random.key(0), width=tp.Deferred(300))
    dense = tp.sample(THETA, random.key(0), width=300)
    expected = PROGRAMS[name](dense, KEY)
    np.testing.assert_allclose(tp.limit(PROGRAMS[name])(deferred, KEY), expected, rtol=1e-6)


def both(t, first, second):
    masks = [random.bernoulli(key, 0.5, t["v"].shape) for key in (first, second)]
    return jnp.mean(masks[0] * masks[1])


def test_equal_keys_are_equal_draws():
    """Across arguments, and across calls; other keys are independent of them."""
    theta = tp.sample(THETA, random.key(0), width=tp.inf, samples=M)
    same, other = (tp.limit(both)(theta, KEY, key) for key in (KEY, random.key(12)))
    assert abs(same - 0.5) < 5 * (0.25 / M) ** 0.5
    assert abs(other - 0.25) < 5 * (0.1875 / M) ** 0.5
    mask = lambda t, key: random.bernoulli(key, 0.5, t["v"].shape) * jnp.ones_like(t["v"])
    kept = tp.limit(mask)(theta, KEY)
    again = tp.limit(lambda t, kept, key: jnp.mean((mask(t, key) - kept) ** 2))
    assert again(theta, kept, KEY) == 0
    assert abs(again(theta, kept, random.key(12)) - 0.5) < 5 * (0.25 / M) ** 0.5


def loss(t, key):
    first, second = random.split(key)
    h = dropped(jax.nn.relu(X @ t["U"]), first)
    h = dropped(jax.nn.relu(h @ t["W"]), second, 0.5)
    return jnp.mean((h @ t["w"] - 1) ** 2)


def step(t, key):
    n = t["v"].shape[0]
    rates = {"U": n, "W": 1, "v": 0, "w": 1 / n}
    value, grads = jax.value_and_grad(loss)(t, key)
    return {name: t[name] - 0.1 * rates[name] * grads[name] for name in t}, value


KEYS = random.split(random.key(3), 4)


def test_training_with_dropout():
    """In muP, beside networks; every replicate has draws of its own, so that bars are honest: the
    spread over keys of the same is within a factor of 2.2 of them (15 values, 8 replicates)."""
    options = {"width": tp.inf, "samples": 2**9, "replicates": 8}
    runs = [tp.train(step, THETA, KEYS, key=random.key(k), **options) for k in range(4)]
    limit, error = (
        np.mean([run.outputs for run in runs], 0),
        np.mean([run.stderr.outputs for run in runs], 0),
    )
    spread = np.std([run.outputs for run in runs], axis=0, ddof=1)
    assert 1 / 2.2 < np.sqrt(np.mean(spread[1:] ** 2) / np.mean(error[1:] ** 2)) < 2.2
    finite = tp.train(step, THETA, KEYS, width=1024, key=random.key(9), replicates=16)
    bias = 2**-9
    assert np.all(
        np.abs(finite.outputs - limit) < 5 * np.hypot(error, finite.stderr.outputs) + bias
    )
    assert limit[-1] < 0.7 * limit[0]


def test_distance_of_networks_with_dropout():
    comparison = tp.compare(
        step, THETA, KEYS, widths=[256, 512, 1024, 2048], key=random.key(4), samples=2**12,
        replicates=8, seeds=24,
    )  # fmt: skip
    assert abs(comparison.slope + 0.5) < 0.15


def ntk_parameterization(t, x):
    h = jax.nn.relu(x @ t["U"] / 5**0.5)
    h = dropped(h, random.key(2), 0.5)
    return h @ t["v"] / t["v"].shape[0] ** 0.5


def test_a_kernel_by_particles():
    """A mask of each point: on the diagonal E relu^2 / keep, beside it that without dropout."""
    theta = {"U": THETA["U"], "v": THETA["v"]}
    plain = lambda t, x: jax.nn.relu(x @ t["U"] / 5**0.5) @ t["v"] / t["v"].shape[0] ** 0.5
    found, exact = tp.nngp(ntk_parameterization, theta, X), tp.nngp(plain, theta, X)
    expected = exact.value * (1 + np.eye(3))
    assert np.all(np.abs(found.value - expected) < 5 * found.stderr)


REFUSED = {
    "a matrix": (
        lambda t, k: mean_square(random.normal(k, t["W"].shape) @ t["v"]),
        UnsupportedOperationError, "make random matrices parameters",
    ),
    "a mask of a matrix": (
        lambda t, k: mean_square((t["W"] * random.bernoulli(k, 0.5, t["W"].shape)) @ t["v"]),
        UnsupportedOperationError, "make random matrices parameters",
    ),
    "a permutation": (
        lambda t, k: jnp.mean(random.permutation(k, t["v"]) * t["v"]),
        UnsupportedOperationError, "permutation",
    ),
    "a permutation of places": (
        lambda t, k: jnp.mean(t["v"][random.permutation(k, t["v"].shape[0])]),
        UnsupportedOperationError, "permutation",
    ),
    "a choice": (
        lambda t, k: jnp.mean(random.choice(k, t["v"], t["v"].shape)),
        UnsupportedOperationError, "choice",
    ),
    "one coordinate": (
        lambda t, k: t["v"][random.randint(k, (), 0, t["v"].shape[0])],
        UnsupportedOperationError, "choice",
    ),
    "places": (
        lambda t, k: jnp.mean(jnp.arange(5.0)[random.randint(k, t["v"].shape, 0, 5)]),
        NoLimitError, "Random integers along a width",
    ),
    "a key that knows the width": (
        lambda t, k: jnp.mean(dropped(t["v"], random.fold_in(k, t["v"].shape[0]))),
        NoLimitError, "key",
    ),
    "rejection": (
        lambda t, k: jnp.mean(random.gamma(k, 2.0, t["v"].shape)),
        NoLimitError, "key",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_refused_with_the_line(name):
    program, kind, text = REFUSED[name]
    theta = tp.sample(THETA, random.key(0), width=tp.inf, samples=64)
    with pytest.raises(kind, match=text) as found:
        tp.limit(program)(theta, KEY)
    line = inspect.getsourcelines(program)[1]
    assert found.value.location is not None
    assert found.value.location.file == __file__
    assert abs(found.value.location.line - line) <= 1


def test_rare_coordinates_have_no_number():
    """``Binomial(n, 20/n)`` is random in the limit: its share of coordinates vanishes."""
    theta = tp.sample(THETA, random.key(0), width=tp.inf, samples=64)
    rare = lambda t, k: jnp.sum(random.bernoulli(k, 20 / t["v"].shape[0], t["v"].shape))
    with pytest.raises(LimitError):
        tp.limit(rare)(theta, KEY)


def apart(t, first, second):
    n = t["v"].shape[0]
    masks = [random.bernoulli(key, 0.3, (n,)) for key in (first, second)]
    return n**0.5 * (jnp.mean(masks[0]) - jnp.mean(masks[1]))


def test_equal_draws_fluctuate_together():
    """That two keys are equal is seen in the run: then the difference is no random number."""
    theta = tp.sample({"v": THETA["v"]}, random.key(0), width=tp.inf, samples=256, terms=2)
    with pytest.raises(LimitError):
        tp.leading(apart)(theta, KEY, KEY)


def averages(t, key):
    mask = random.bernoulli(key, 0.3, t["v"].shape)
    return jnp.stack([jnp.mean(mask), *(jnp.mean(mask * t[name] ** 2) for name in "vu")])


def test_fluctuations():
    """Covariance of the second terms over 300 samples beside 4000 networks: entries within 5
    standard errors (Wick). One mask joins two vectors, which stay independent of each other."""
    theta = {"v": THETA["v"], "u": tp.normal((WIDTH,))}

    def second(number):
        sampled = tp.sample(theta, random.key(number), width=tp.inf, samples=256, terms=2)
        return tp.series(averages)(sampled, random.key(1000 + number)).terms[1][1]

    def network(key):
        return averages(tp.sample(theta, key, width=256), random.fold_in(key, 1))

    found = np.cov(np.asarray([second(number) for number in range(300)], np.float64).T)
    finite = np.asarray(jax.vmap(network)(random.split(random.key(7), 4000)), np.float64)
    finite = 256 * np.cov(finite.T)
    size = np.sqrt((np.outer(np.diag(finite), np.diag(finite)) + finite**2) / 300)
    assert np.all(np.abs(found - finite) < 5 * size)


def test_the_size_of_a_mask():
    theta = tp.sample({"v": THETA["v"]}, random.key(0), width=tp.inf, samples=M)
    found = tp.leading(lambda t, k: jnp.sum(random.bernoulli(k, 0.3, t["v"].shape)))(theta, KEY)
    assert found.exponent == 1
    assert abs(found.coefficient - 0.3) < 5 * found.stderr


SMALL = {
    # what is drawn, the power of the share of coordinates below n^(-1/2), which decides
    "uniform": (lambda k, shape: random.uniform(k, shape, minval=1.0, maxval=2.0) - 1.5, 1 / 2),
    "square": (lambda k, shape: random.normal(k, shape) ** 2, 1 / 4),
    "cube": (lambda k, shape: jnp.abs(random.normal(k, shape)) ** 3, 1 / 6),
    "cosine": (lambda k, shape: 1 + jnp.cos(jnp.pi * random.uniform(k, shape)), 1 / 4),
}


@pytest.mark.parametrize("declared", [False, True])
@pytest.mark.parametrize("name", SMALL)
def test_orders_of_zeros(name, declared):
    """``n^p mean(sign(x + v / sqrt(n)) - sign(x))`` is of order 1: refused, never 0."""
    draw, power = SMALL[name]
    laws = tp.declare(lambda n: {"x": draw(KEY, (n,)), "v": random.normal(random.key(1), (n,))})
    theta = tp.sample(laws, random.key(0), width=tp.inf, samples=M)

    def moved(t, key):
        x = t["x"] if declared else draw(key, t["v"].shape)
        n = t["v"].shape[0]
        return n**power * jnp.mean(jnp.abs(jnp.sign(x + t["v"] / n**0.5) - jnp.sign(x)))

    network = lambda k: moved(tp.sample(laws, k, width=2**14), random.fold_in(k, 1))
    values = [network(key) for key in random.split(random.key(2), 8)]
    assert np.mean(values) > 0.1
    with pytest.raises(LimitError, match="not known"):
        tp.limit(moved)(theta, KEY)


def test_laws_that_are_never_negative_stay_so():
    laws = tp.declare(lambda n: {"x": jnp.abs(random.normal(KEY, (n,))) ** 3})
    for width in (tp.inf, 2**16):
        theta = tp.sample(laws, random.key(0), width=width)
        assert tp.limit(lambda t: jnp.mean(jnp.sign(t["x"])))(theta) == 1
        mean = tp.limit(lambda t: jnp.mean(t["x"]))(theta)
        assert abs(mean - 2 * (2 / np.pi) ** 0.5) < 5 * (15 / 2**14) ** 0.5


def test_bars_of_what_is_drawn_between_matrices():
    """The size of an image is an average over particles: its error, a spread of 24 samples, is
    within the bar. Bounds 1/1.5 and 5, and 40 % for the spread (3 sigma)."""
    names = "W", "v"
    theta = {name: THETA[name] for name in names}

    def size(t, key):
        mask = random.bernoulli(key, 0.5, t["v"].shape)
        return mean_square(t["W"].T @ (mask * (t["W"] @ t["v"])))

    for noise in ("sobol", "random"):
        found = [
            tp.leading(size)(
                tp.sample(theta, random.key(i), width=tp.inf, samples=512, noise=noise), KEY
            )
            for i in range(24)
        ]
        spread = np.std([one.coefficient for one in found], ddof=1)
        bar = np.mean([one.stderr**2 for one in found]) ** 0.5
        assert 1 / 1.5 / 1.4 < bar / spread < 5 * 1.4
