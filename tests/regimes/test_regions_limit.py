"""Every scaling of one-hidden-layer classifiers at infinite width: exponents and first values.

The interpreter knows nothing of regions; what it finds is compared with `tp.classify`, which counts
powers, and with recursions in function space.
"""

from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import kernels
from oracles.helpers import fast_compilation
from test_regimes import TEST_POINTS

import tplimit as tp

RNG = np.random.default_rng(7)
X = RNG.normal(size=(8, 10))
Y = np.array([1.0, -1, -1, 1, 1, -1])
POINTS = jnp.asarray(X, jnp.float32)
#: Labels that some points have the wrong sign for after each step, wherever logits grow.
MIXED = np.array([1.0, -1, 1, -1, 1, -1])
#: The interpreter's exponents have small denominators: the triangle at -2/3 rather than -0.66.
REGIONS = {
    name: (Fraction(q).limit_denominator(3), Fraction(qt).limit_denominator(4))
    for name, q, qt, *_ in TEST_POINTS
    if name not in ("diverging", "stagnating")
}
REGIONS |= {
    name: (Fraction(q), Fraction(qt))
    for name, q, qt, *_ in TEST_POINTS
    if name in REGIONS and name != "triangle"
}


def logits(parameterization, labels=Y, steps=3, samples=2**11, rate=1.0):
    """Series of the logits before each of the first steps, and after the last."""
    model, batch = tp.mlp(1, 10, activation="tanh"), (POINTS[: len(Y)], jnp.asarray(labels, float))
    step = parameterization.step(model, "logistic", rate)
    predict = parameterization.predict(model)
    key = jax.random.key(0)
    state = tp.sample(parameterization.theta(model), key, width=tp.inf, samples=samples, terms=2)
    found = []
    for _ in range(steps):
        found.append(tp.series(predict)(state, POINTS))
        state, _ = tp.series(step)(state, batch)
    return [*found, tp.series(predict)(state, POINTS)]


def leading(one):
    return one.terms[0]


QUICK = {"NTK", "sym-default"}
NAMES = [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in REGIONS]


@pytest.mark.parametrize("name", NAMES)
def test_exponents_are_those_of_the_classification(name):
    q, q_tilde = REGIONS[name]
    parameterization = tp.parameterizations.golikov(q, q_tilde)
    exponents = tp.classify(parameterization, tp.mlp(1, 10, activation="tanh")).exponents
    # Where logits grow the sign of each has to be known beyond the sampling error.
    samples = 2**14 if exponents["eK"] > 0 else 2**10
    with fast_compilation():
        f = logits(parameterization, samples=samples)
    assert leading(f[0])[0] == exponents["e0"]
    # The logits that were there at initialization are larger than the increments in some regions.
    later = max(exponents["e0"], exponents["eK"]) if exponents["s"] == -Fraction(1, 2) else None
    assert {leading(one)[0] for one in f[1:]} == {later or exponents["eK"]}
    assert all(np.all(np.asarray(one.remainder, float) < float(leading(one)[0])) for one in f)


def reference_kernel(parameterization_reference=128):
    """`d* (E[phi phi] + E[A^2] E[phi' phi'] x x')` of the default initialisation (C.3)."""
    gram = X @ X.T / X.shape[1]
    value, slope = kernels.layer("tanh", gram)
    d = parameterization_reference
    return d * (value + slope / d * (X @ X.T))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["MF–NTK", "triangle", "NTK–sym-def", "post-MF–NTK", "pre-NTK"])
def test_frozen_kernels(name):
    """`F_{k+1} = F_k - mean(l' Theta)`, l' by the order of the logits: -y/2, the true one, or
    Heaviside (C.2). Where it is Heaviside some points are right and some are wrong, so that taking
    either for the other moves `F` by far more than the tolerance."""
    q, q_tilde = REGIONS[name]
    parameterization = tp.parameterizations.golikov(q, q_tilde)
    rate = 0.02
    e0, exponent, s = q + Fraction(1, 2), q_tilde + 2 * q + 1, q + q_tilde
    f = logits(parameterization, MIXED, steps=3, samples=2**14, rate=rate)
    # In units of rho = n / 128 rather than of n.
    values = [np.asarray(leading(one)[1], float) * 128.0 ** float(leading(one)[0]) for one in f]
    theta = rate * reference_kernel()[:, : len(MIXED)] / len(MIXED)
    expected = values[0] if s == -Fraction(1, 2) else np.zeros(len(X))
    for k, found in enumerate(values[1:]):
        order, seen = (e0, values[0]) if k == 0 else (exponent, expected)
        margins, others = MIXED * seen[: len(MIXED)], []
        if order < 0:
            slope = -MIXED / 2
        elif order > 0:
            wrong = margins < 0
            slope, others = -MIXED * wrong, [0 * MIXED, -MIXED, -MIXED * ~wrong]
        else:
            slope = -MIXED / (1 + np.exp(margins))
        tolerance = 0.02 * np.abs(expected - theta @ slope).max()
        for other in others if k > 0 else []:
            assert np.abs(theta @ (other - slope)).max() > 5 * tolerance
        expected = expected - theta @ slope
        np.testing.assert_allclose(found, expected, atol=tolerance)
