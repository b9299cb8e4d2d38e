"""Error bars one can trust: coverage of intervals, the check of the bias, float32, rank.

Every interval is a claim about a limit that is known: by closed form, or from runs with a hundred
times as many samples.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import golden
from test_golden import THETA, N

import tplimit as tp

STEP = golden.mup("tanh", hidden=2, eta=1.0)
BATCHES = list(zip(*golden.BATCHES, strict=True))


def observe(theta: Any) -> jax.Array:
    return STEP.predict(theta, golden.POINTS)


def trained(seed: int, *, samples: int, replicates: int, steps: int = 4, **options: Any) -> Any:
    return tp.train(
        STEP.step,
        THETA,
        BATCHES[:steps],
        width=tp.inf,
        key=jax.random.key(seed),
        samples=samples,
        replicates=replicates,
        observe=observe,
        **options,
    )


def coverage(runs: Callable[[int], Any], truth: np.ndarray, repetitions: int) -> np.ndarray:
    """Share of 95 % intervals that contain the truth, per entry."""
    hits = []
    for seed in range(repetitions):
        low, high = (end.observations[1:] for end in runs(seed).interval())
        hits.append((low < truth) & (truth < high))
    return np.mean(hits, axis=0)


@pytest.mark.slow
@pytest.mark.parametrize("noise", ["sobol", pytest.param("random", marks=pytest.mark.slow)])
def test_intervals_cover_trained_predictions(noise: str) -> None:
    """muP, tanh, two hidden layers, f_1 .. f_4 at two points: 90 to 99 % of 200 intervals each.

    4 replicates of 512 samples; the table is known to 1/40 of their standard error. The standard
    deviation of a share is 1.5 %, of the mean over the 8 entries below that.
    """
    truth = golden.table(golden.MUP_TANH_REFINED)
    shares = coverage(
        lambda seed: trained(seed, samples=512, replicates=4, noise=noise), truth, 200
    )
    assert 0.90 < shares.mean() < 0.99
    assert shares.min() > 0.88


@pytest.mark.slow
def test_intervals_cover_a_closed_form() -> None:
    """NNGP of erf networks, E erf(a) erf(b) = 2/π arcsin(...) (Williams 1996): 200 intervals."""
    x = np.array([[1.0, 0.5], [-0.3, 0.8]])

    def kernel(theta: Any) -> jax.Array:
        h = jax.scipy.special.erf(jnp.asarray(x) @ theta["U"])
        g = jax.scipy.special.erf(h @ theta["W"])
        return g @ g.T / g.shape[-1]

    def arcsine(k: np.ndarray) -> np.ndarray:
        d = 1 + 2 * np.diag(k)
        return 2 / np.pi * np.arcsin(2 * k / np.sqrt(np.outer(d, d)))

    truth = arcsine(arcsine(x @ x.T))
    theta = {"U": tp.normal((2, N)), "W": tp.normal((N, N), std=N**-0.5)}

    def step(theta: Any, _: Any) -> Any:
        return theta, None

    def run(seed: int) -> Any:
        return tp.train(
            step, theta, [None], width=tp.inf, key=jax.random.key(seed), samples=256,
            replicates=5, observe=kernel,
        )  # fmt: skip

    shares = coverage(run, truth, 200)
    assert 0.90 < shares.mean() < 0.99


@pytest.mark.slow
def test_too_few_samples_are_found_out() -> None:
    """At M = 16 with 64 replicates the O(1/M) bias exceeds the error bar: found, and warned of."""
    with pytest.warns(tp.LimitWarning, match="bias from the finite number of samples"):
        run = trained(0, samples=16, replicates=64, bias_check=True)
    assert run.bias.significant
    assert run.bias.share > 0.5


@pytest.mark.slow
def test_enough_samples_pass_the_bias_check() -> None:
    run = trained(0, samples=2**12, replicates=6, bias_check=True)
    assert not run.bias.significant


def test_bias_check_of_one_replicate_is_refused() -> None:
    with pytest.raises(ValueError, match="replicates=2"):
        trained(0, samples=64, replicates=1, steps=1, bias_check=True)


# float32 and the rank ---------------------------------------------------------------------------


def long_run(dtype: str, **options: Any) -> Any:
    """100 steps of full-batch descent on four points, 4 replicates of 1024 samples."""
    with jax.enable_x64(dtype == "float64"):
        n = tp.Width("n")
        theta = {"U": tp.normal((3, n)), "W": tp.normal((n, n), std=n**-0.5), "v": tp.normal((n,))}
        x = jnp.asarray(golden.INPUTS, dtype)
        y = jnp.asarray(golden.TARGETS, dtype)

        def predict(t: Any, x: jax.Array) -> jax.Array:
            return jnp.tanh(jnp.tanh(x @ t["U"]) @ t["W"]) @ t["v"] / t["v"].shape[0]

        def step(t: Any, _: Any) -> Any:
            n = t["v"].shape[0]
            g = jax.grad(lambda t: jnp.mean((predict(t, x) - y) ** 2) / 2)(t)
            rates = {"U": 0.5 * n, "W": 0.5, "v": 0.5 * n}
            return {name: t[name] - rates[name] * g[name] for name in t}, predict(t, x)

        return tp.train(
            step, theta, [None] * 100, width=tp.inf, key=jax.random.key(2), samples=1024,
            replicates=4, **options,
        )  # fmt: skip


@pytest.fixture(scope="module")
def single() -> Any:
    return long_run("float32")


@pytest.mark.slow
def test_float32_stays_within_the_error_of_float64(single: Any) -> None:
    """100 steps: the same Sobol' points in both precisions, so that the runs can be paired.

    They differ by round-off that training amplifies, and by directions near the rank tolerance: far
    below one standard error of either.
    """
    double = long_run("float64")
    assert single.replicates.outputs.dtype == np.float32
    assert double.replicates.outputs.dtype == np.float64
    difference = single.outputs - double.outputs
    assert np.sqrt(np.mean(difference**2)) < 0.3 * np.sqrt(np.mean(double.stderr.outputs**2))


@pytest.mark.slow
def test_rank_tolerance_bounds_time_and_memory_but_not_precision(single: Any) -> None:
    """Against round-off tolerance: fewer directions, the same predictions within the error bar.

    Runs of different rank use their noise for different directions, so that they differ like other
    samplings; the systematic part of the shift is far smaller (`docs/method.md`).
    """
    full = long_run("float32", rank_tolerance=0.0)
    coarse = long_run("float32", rank_tolerance=1e-4)
    (few,), (default,), (all_,) = (run.directions for run in (coarse, single, full))
    assert few < 0.8 * default < 0.6 * all_
    for run, share in ((single, 1.0), (coarse, 2.0)):
        moved = np.sqrt(np.mean((run.outputs - full.outputs) ** 2))
        assert moved < share * np.sqrt(np.mean(full.stderr.outputs**2))


@pytest.mark.slow
def test_sampling_error_falls_with_samples() -> None:
    """As fast as M^-1/2, within three standard deviations of a ratio of spreads."""
    errors = [
        np.sqrt(np.mean(trained(1, samples=m, replicates=24).stderr.observations[1:] ** 2))
        for m in (256, 4096)
    ]
    assert errors[1] < 0.25 * errors[0] * 1.35
