"""Softmax in the user's own words where logits grow with the width: a step function of their order.

`x - max(x)` is exactly zero at the largest entry; a limit that knew this entry only to the order
of what is left out could not take its exponential.
"""

from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from oracles.helpers import fast_compilation
from test_regions_limit import POINTS, REGIONS, X, leading, reference_kernel

import tplimit as tp
from tplimit._jax import primitives as p
from tplimit.program.dependence import less_its_maximum
from tplimit.program.tracing import trace

CLASSES = 3
LABELS = jnp.asarray([0, 1, 2, 1])
#: The first point once more, with another label: one of the two is always on the wrong side.
TRAINING = np.concatenate([np.arange(4), [0]])
ALL_LABELS = jnp.concatenate([LABELS, jnp.asarray([1])])


def by_hand(f, y):
    z = f - jnp.max(f, axis=1)[:, None]
    e = jnp.exp(z)
    return jnp.mean(jnp.log(jnp.sum(e, axis=1)) - z[jnp.arange(len(y)), y])


def one_hot(y):
    return jax.nn.one_hot(y, CLASSES)


WRITTEN = {
    "optax, integers": lambda f, y: jnp.mean(optax.softmax_cross_entropy_with_integer_labels(f, y)),
    "optax, one-hot": lambda f, y: jnp.mean(optax.softmax_cross_entropy(f, one_hot(y))),
    "log_softmax": lambda f, y: (
        -jnp.mean(jnp.take_along_axis(jax.nn.log_softmax(f), y[:, None], axis=1))
    ),
    "logsumexp": lambda f, y: jnp.mean(
        jax.nn.logsumexp(f, axis=1) - jnp.sum(f * one_hot(y), axis=1)
    ),
    "example by example": lambda f, y: jnp.mean(
        jax.vmap(optax.softmax_cross_entropy_with_integer_labels)(f, y)
    ),
    "by hand": by_hand,
}


def logits(loss, region, seed=4, steps=3, rate=1.0):
    """Leading terms of the logits before every step, and those of the losses."""
    parameterization = tp.parameterizations.golikov(*REGIONS[region])
    model = tp.mlp(1, 10, outputs=CLASSES, activation="tanh")
    step, predict = parameterization.step(model, loss, rate), parameterization.predict(model)
    theta = parameterization.theta(model)
    # Two logits nearer than the sampling error would be refused, and are for some keys.
    state = tp.sample(theta, jax.random.key(seed), width=tp.inf, samples=2**14, terms=2)
    found, losses = [], []
    for _ in range(steps):
        found.append(leading(tp.series(predict)(state, POINTS)))
        state, value = tp.series(step)(state, (POINTS[TRAINING], ALL_LABELS))
        losses.append(leading(value))
    return [*found, leading(tp.series(predict)(state, POINTS))], losses


@pytest.fixture(scope="module")
def library():
    with fast_compilation():
        return logits("cross_entropy", "sym-default")


QUICK = {"optax, integers"}
NAMES = [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in WRITTEN]


@pytest.mark.parametrize("name", NAMES)
def test_every_way_to_write_it_is_the_same(name, library):
    """Logits and losses, which are of the order of the logits while a point is on the wrong side.

    Round-off apart (1e-7 of the largest entry), whatever the order of operations.
    """
    with fast_compilation():
        found = logits(WRITTEN[name], "sym-default")
    assert [e for e, _ in found[0]] == [0, *[Fraction(1, 2)] * 3]
    assert [e for e, _ in found[1]] == [0, *[Fraction(1, 2)] * 2]
    for mine, others in zip(found, library, strict=True):
        for (_, a), (_, b) in zip(mine, others, strict=True):
            np.testing.assert_allclose(a, b, atol=3e-6 * np.abs(b).max())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sym-default", "pre-NTK", "triangle", "NTK", "MF"])
def test_exponents_are_those_of_the_classification(name):
    """Three outputs as one; their sum does not move, for the gradients of softmax sum to zero."""
    parameterization = tp.parameterizations.golikov(*REGIONS[name])
    exponents = tp.classify(parameterization, tp.mlp(1, 10, activation="tanh")).exponents
    found, _ = logits("cross_entropy", name)
    assert found[0][0] == exponents["e0"]
    assert {exponent for exponent, _ in found[1:]} == {max(exponents["e0"], exponents["eK"])}
    _, start = found[0]
    for exponent, values in found[1:]:
        moved = np.asarray(values) - (np.asarray(start) if exponent == exponents["e0"] else 0)
        assert np.abs(moved.sum(axis=1)).max() < 0.02 * np.abs(moved).max()


@pytest.mark.slow
def test_gradients_are_one_hot_where_logits_grow():
    """Frozen kernel, logits of order n^(1/2) from the start: `F_{k+1} = F_k - mean Theta (1[k is
    the largest of F_k] - y)`, the first point being in the batch with two labels.

    2^14 particles; the kernel is exact, the increments are right to 2 % of the largest.
    """
    rate = 0.02
    found, _ = logits("cross_entropy", "pre-NTK", rate=rate)
    values = [np.asarray(c, float) * 128.0 ** float(e) for e, c in found]
    assert {e for e, _ in found} == {Fraction(1, 2)}
    theta = rate * reference_kernel()[:, TRAINING] / len(TRAINING)
    expected, wrong = values[0], 0
    for value in values[1:]:
        shares = np.eye(CLASSES)[np.argmax(expected[TRAINING], axis=1)]
        errors = shares - np.asarray(one_hot(ALL_LABELS))
        wrong += int(np.any(errors[:4] != 0, axis=1).sum())
        expected = expected - theta @ errors
        np.testing.assert_allclose(value, expected, atol=0.02 * np.abs(expected).max())
    assert wrong > 1
    assert len(X) > len(LABELS)  # points outside of the batch are predicted too


def test_rows_that_grow_beside_rows_that_do_not():
    """Softmax row by row, and the maxima, where only some logits grow with the width."""
    theta = {"v": tp.normal((tp.Width("n"),))}
    state = tp.sample(theta, jax.random.key(0), width=tp.inf, samples=2**8, terms=2)
    x = jnp.asarray(X[:4, :CLASSES], jnp.float32)

    def mixed(t, x):
        return jnp.concatenate([x[:2] * t["v"].shape[0] ** 0.5, x[2:]])

    found = tp.limit(lambda t, x: jax.nn.softmax(mixed(t, x)))(state, x)
    expected = [*np.eye(CLASSES)[np.argmax(x[:2], axis=1)], *jax.nn.softmax(x[2:])]
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    largest = tp.limit(lambda t, x: jnp.max(mixed(t, x), axis=1)[2:])(state, x)
    np.testing.assert_array_equal(largest, np.max(x[2:], axis=1))


def test_a_logarithm_of_what_vanishes_is_refused():
    """`log(softmax(f))` is `log 0` at all but the largest logit; its gradient was 0 / 0."""

    def loss(f, y):
        return -jnp.mean(jnp.sum(one_hot(y) * jnp.log(jax.nn.softmax(f)), axis=1))  # here

    with fast_compilation(), pytest.raises(tp.CancellationError) as caught:
        logits(loss, "sym-default", steps=2)
    text = str(caught.value)
    assert "vanishes faster than any power of the width" in text
    assert "jax.nn.log_softmax" in text
    assert "test_softmax.py" in text


def test_nothing_is_divided_by_an_exponentially_small_number():
    """1 / exp(-n^(1/2) |x|) diverges: neither infinity nor, times another, a zero."""
    theta = {"v": tp.normal((tp.Width("n"),))}
    state = tp.sample(theta, jax.random.key(0), width=tp.inf, samples=256)

    def fn(t, x):
        return x / jnp.exp(-jnp.abs(x) * t["v"].shape[0] ** 0.5)

    with pytest.raises(tp.CancellationError, match="faster than any power"):
        tp.limit(fn)(state, jnp.asarray([1.0, -2.0]))


def shifted(fn, shape=(3, 3)):
    """The axis along which what `fn` exponentiates last is known to be less its maximum."""
    program, _ = trace(fn, lambda n: [jax.ShapeDtypeStruct(shape, jnp.float32)])
    taken = [e for e in program.equations if e.primitive is p.exp_p]
    return less_its_maximum(program, taken[-1].inputs[0])


KNOWN = {
    "softmax": (jax.nn.softmax, 1),
    "softmax along the first axis": (lambda x: jax.nn.softmax(x, axis=0), 0),
    "logsumexp": (lambda x: jax.nn.logsumexp(x, axis=0), 0),
    "log_softmax": (jax.nn.log_softmax, 1),
    "rows": (lambda x: jnp.exp(x - jnp.max(x, axis=1, keepdims=True)), 1),
    "mapped": (jax.vmap(lambda r: jnp.exp(r - r.max())), 1),
    "columns against rows": (lambda x: jnp.exp(x - jnp.max(x, axis=1)), None),
    "rows against columns": (lambda x: jnp.exp(x - jnp.max(x, axis=0)[:, None]), None),
    "of another": (lambda x: jnp.exp(x - jnp.max(x + 1, axis=1, keepdims=True)), None),
    "over all": (lambda x: jnp.exp(x - jnp.max(x)), None),
    "minimum": (lambda x: jnp.exp(x - jnp.min(x, axis=1, keepdims=True)), None),
    "bounded": (lambda x: jnp.exp(x - jnp.maximum(x.max(1, keepdims=True), 0.0)), None),
    "shifted": (lambda x: jnp.exp(x - (x.max(1, keepdims=True) + 1)), None),
    "rolled": (lambda x: jnp.exp(x - jnp.roll(x.max(1, keepdims=True), 1, 0)), None),
}


@pytest.mark.parametrize("name", KNOWN)
def test_which_differences_are_from_a_maximum(name):
    """Of the very same array, each row its own: square arrays, where a mistake has a shape too."""
    fn, axis = KNOWN[name]
    assert shifted(fn) == axis


@pytest.mark.slow
def test_a_maximum_of_two_multiples_is_a_leaky_rectifier():
    """NTK, three steps with two terms: the maximum along an axis is that of two arrays."""
    x, y = jnp.asarray(X[:3], jnp.float32), jnp.asarray([1.0, -1.0, 0.5])
    outputs = []
    for activation in (
        lambda h: jnp.maximum(h, 0.5 * h),
        lambda h: jnp.max(jnp.stack([h, 0.5 * h]), axis=0),
    ):
        model = tp.mlp(1, 10, activation=activation)
        step = tp.parameterizations.ntk.step(model, "mse", 1.0)
        predict = tp.parameterizations.ntk.predict(model)
        theta = tp.parameterizations.ntk.theta(model)
        with fast_compilation():
            run = tp.train(
                step, theta, [(x, y)] * 3, width=tp.inf, key=jax.random.key(0), samples=2**10,
                replicates=2, observe=lambda t, predict=predict: predict(t, x),
            )  # fmt: skip
        outputs.append(run.observations)
    assert np.abs(outputs[0][-1] - outputs[0][0]).max() > 0.05
    np.testing.assert_allclose(*outputs, atol=1e-6)


def test_a_tie_within_the_sampling_error_asks_for_more_samples():
    """Two outputs with the same target differ by the particles' error alone."""
    theta = {"v": tp.normal((tp.Width("n"), 2))}
    state = tp.sample(theta, jax.random.key(0), width=tp.inf, samples=2**8, terms=2)

    def shares(t):
        mean = jnp.mean(jnp.tanh(t["v"]) ** 2, axis=0)
        return jax.nn.softmax(mean[None] * t["v"].shape[0] ** 0.5)  # here

    with pytest.raises(tp.CancellationError, match="Raise samples=") as caught:
        tp.series(shares)(state)
    assert "test_softmax.py" in str(caught.value)
