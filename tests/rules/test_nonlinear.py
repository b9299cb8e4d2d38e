"""Nonlinear networks against their finite selves, and against an independent Monte Carlo.

For each network the same plain JAX is trained at finite widths over many seeds and at infinite
width over replicates; `f` is the output at three points after each of four steps. Then

* the RMS of `f_n - f` over seeds, steps and points falls as `n^-1/2`: the slope of its logarithm
  is -1/2 to 0.1, with a standard error (bootstrap over seeds) below 0.03;
* at the largest width the means agree in units of their error (Welch);
* the fit `f_n = f + b/n` over all widths gives the limit, in units of its error.

Each of the last two compares 12 numbers (36 with three outputs) with a false alarm of 1e-3 per
test function (`statistics.threshold`): |z| < 3.9 in the fit, a little more at the largest width,
where few seeds make it Student's t.
"""

import jax
import numpy as np
import pytest
from oracles import dmft, statistics
from oracles.networks import (
    POINTS,
    Network,
    Runs,
    classification,
    cross_entropy,
    dense_runs,
    limit_runs,
    mup,
    regression,
)

import tplimit as tp

Array = np.ndarray


def assert_fit(limit: Array, finite: dict[int, Array]) -> None:
    """The intercept of `f + b/n` is the limit."""
    f, error = statistics.extrapolate(finite)
    z = (f - limit.mean(axis=0)) / np.hypot(error, statistics.standard_error(limit))
    assert np.abs(z).max() < statistics.threshold(z.size, degrees=len(limit) - 1)


def assert_means(limit: Array, finite: dict[int, Array]) -> None:
    """The largest width is where the limit is."""
    largest = finite[max(finite)]
    z = statistics.z_score(largest, limit)
    degrees = min(len(largest), len(limit)) - 1
    assert np.abs(z).max() < statistics.threshold(z.size, degrees=degrees)


def assert_slope(limit: Array, finite: dict[int, Array]) -> None:
    differences = {n: f - limit.mean(axis=0) for n, f in finite.items()}
    slope, error = statistics.log_log_slope(differences)
    assert error < 0.03
    assert abs(slope + 0.5) < 0.1


def outputs(runs: dict[int, Runs]) -> dict[int, Array]:
    return {n: run.f for n, run in runs.items()}


# Fast: one program with everything ----------------------------------------------------------------


def classifier() -> Network:
    return mup("gelu", 2, outputs=3, biases=(0.0, 0.5), ratios=(1, 2), loss=cross_entropy, eta=1.0)


@pytest.mark.slow
def test_classifier_with_biases_and_two_widths() -> None:
    """gelu, layers of width n and 2n, softmax cross-entropy, minibatches, trained biases.

    The first layer's biases start at zero, the second's are Gaussian. The losses of four steps
    (the first is log(3)) at width 512: 3 comparisons of 64 seeds with 16 replicates, |z| < 4.8.
    """
    network, data = classifier(), classification(steps=4)
    limit = limit_runs(network, data, replicates=16, observe=False).losses
    finite = dense_runs(network, data, {512: 64})[512].losses
    assert np.abs(limit[:, 0] - np.log(3)).max() < 1e-2
    assert limit.mean(axis=0).min() < 0.95 * np.log(3)
    assert_means(limit[:, 1:], {512: finite[:, 1:]})


def mean_field(activation: str, eta: float) -> Network:
    """One hidden layer from the package's own pieces."""
    model = tp.mlp(1, 3, activation=activation)
    scaling = tp.parameterizations.mean_field
    return Network(scaling.theta(model), scaling.predict(model), scaling.step(model, "mse", eta))


@pytest.mark.slow
def test_mean_field_is_mup_with_one_hidden_layer() -> None:
    """Same particles, same numbers; and both agree with networks of width 1024, 24 comparisons."""
    data = regression()
    one, other = mean_field("relu", 1.0), mup("relu", 1)
    limit = limit_runs(one, data, replicates=16)
    same = limit_runs(other, data, replicates=1)
    np.testing.assert_allclose(limit.f[0], same.f[0], rtol=0, atol=2e-5)
    finite = outputs(dense_runs(one, data, {256: 256, 1024: 64}))
    assert_means(limit.f, finite)
    assert_fit(limit.f, finite)


@pytest.mark.slow
def test_float32_and_float64_agree() -> None:
    """Different draws of one law (32 + 32 replicates): 12 comparisons, |z| < 4.6.

    Beyond the Monte Carlo error: nothing is lost in single precision.
    """
    network, data = mup("tanh", 1), regression()
    single = limit_runs(network, data, replicates=32, samples=2**12)
    with jax.enable_x64(True):
        double = limit_runs(network, data, replicates=32, samples=2**12)
    z = statistics.z_score(single.f, double.f)
    assert np.abs(z).max() < statistics.threshold(z.size, degrees=31)
    assert statistics.standard_error(single.f).max() < 2e-3


# Slow: rates of convergence -----------------------------------------------------------------------

TO_4096 = {256: 384, 512: 192, 1024: 96, 2048: 48, 4096: 32}
TO_2048 = {128: 512, 256: 384, 512: 192, 1024: 96, 2048: 64}
ONE_LAYER = {256: 512, 512: 512, 1024: 256, 2048: 256, 4096: 128}
CASES = [
    *((activation, 1, ONE_LAYER) for activation in ("tanh", "relu", "gelu")),
    *((activation, 2, TO_4096) for activation in ("tanh", "relu", "gelu")),
    ("tanh", 3, TO_4096),
    ("relu", 3, TO_2048),
    ("gelu", 3, TO_2048),
]


@pytest.mark.slow
@pytest.mark.parametrize(("activation", "hidden", "seeds"), CASES, ids=lambda v: str(v)[:4])
def test_finite_networks_approach_the_limit(
    activation: str, hidden: int, seeds: dict[int, int]
) -> None:
    network, data = mup(activation, hidden), regression()
    limit = limit_runs(network, data, replicates=16, samples=2**15).f
    finite = outputs(dense_runs(network, data, seeds))
    assert_means(limit, finite)
    assert_fit(limit, finite)
    assert_slope(limit, finite)


@pytest.mark.slow
@pytest.mark.parametrize("activation", ["tanh", "relu", "gelu"])
def test_mean_field_networks_approach_the_limit(activation: str) -> None:
    network, data = mean_field(activation, 1.5), regression()
    limit = limit_runs(network, data, replicates=16, samples=2**15).f
    finite = outputs(dense_runs(network, data, ONE_LAYER))
    assert_means(limit, finite)
    assert_fit(limit, finite)
    assert_slope(limit, finite)


@pytest.mark.slow
def test_classifier_approaches_the_limit() -> None:
    network, data = classifier(), classification()
    limit = limit_runs(network, data, replicates=16, samples=2**15).f
    finite = outputs(dense_runs(network, data, {128: 512, 256: 384, 512: 192, 1024: 96, 2048: 48}))
    assert_means(limit, finite)
    assert_fit(limit, finite)
    assert_slope(limit, finite)


# Slow: an independent Monte Carlo of the limit ----------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    ("activation", "hidden", "eta"), [("tanh", 2, 1.0), ("relu", 3, 0.7), ("tanh", 4, 0.7)]
)
def test_against_explicit_corrections(activation: str, hidden: int, eta: float) -> None:
    """`oracles.dmft`: the same limit with fields, covariances and expected derivatives written out.

    8 + 8 runs, 12 comparisons, |z| < 8.3 (7 degrees of freedom).
    """
    network, data = mup(activation, hidden, eta=eta), regression()
    limit = limit_runs(network, data, replicates=8, samples=2**15).f
    expected = np.stack(
        [
            dmft.mup_limit(
                data,
                POINTS.astype(float),
                hidden=hidden,
                activation=activation,
                eta=eta,
                samples=10**5,
                seed=seed,
                input_scale=3**-0.5,
                bias=False,
            ).f[1:]
            for seed in range(8)
        ]
    )
    assert statistics.standard_error(limit).max() < 3e-3
    z = statistics.z_score(limit, expected)
    assert np.abs(z).max() < statistics.threshold(z.size, degrees=7)
