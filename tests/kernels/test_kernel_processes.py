"""Gaussian processes, ensembles of networks over their initial functions, and their files."""

import jax
import numpy as np
import pytest
from oracles.function_space import (
    CLASSES,
    FEATURES,
    LINEAR,
    PHI,
    ST,
    TEST,
    TRAIN,
    TT,
    K,
    Y,
    linear_kernel,
)
from scipy import stats

from tplimit import kernels


def test_regression_is_conditioning():
    noise = 0.3
    a = np.linalg.inv(TT + noise * np.eye(TRAIN))
    for method in ("cholesky", "cg"):
        found = kernels.posterior(
            TT, ST, Y, noise=noise, kernel_ss=K[TRAIN:, TRAIN:], method=method, tolerance=1e-12
        )
        np.testing.assert_allclose(found.mean, ST @ a @ Y, atol=1e-10)
        np.testing.assert_allclose(found.covariance, K[TRAIN:, TRAIN:] - ST @ a @ ST.T, atol=1e-10)
    free = kernels.posterior(
        linear_kernel, linear_kernel, Y, noise=noise, kernel_ss=linear_kernel, memory=10**3,
        x=PHI[:TRAIN], x_test=PHI[TRAIN:], block=5, tolerance=1e-12,
    )  # fmt: skip
    np.testing.assert_allclose(free.mean, found.mean, atol=1e-10)
    np.testing.assert_allclose(free.covariance, found.covariance, atol=1e-10)


def test_trained_to_the_end_with_its_own_covariance_the_ensemble_is_the_posterior():
    """Training only the readout samples the posterior (Lee et al., arXiv 1902.06720)."""
    posterior = kernels.posterior(TT, ST, Y, kernel_ss=K[TRAIN:, TRAIN:])
    discrete = kernels.ensemble(K, K, Y, "mse", 1.0, 10**9, record=[10**9])
    continuous = kernels.ensemble(K, K, Y, "mse", times=[1e9])
    for found in (discrete, continuous):
        np.testing.assert_allclose(found.mean[0, TRAIN:], posterior.mean, atol=1e-9)
        for k in range(3):
            np.testing.assert_allclose(
                found.covariance[0, k, TRAIN:, TRAIN:], posterior.covariance, atol=1e-9
            )
        np.testing.assert_allclose(found.std[0, :TRAIN], 0, atol=1e-6)


@pytest.mark.parametrize("batches", [4, pytest.param(None, marks=pytest.mark.slow)])
def test_exact_and_sampled_ensembles_agree(batches):
    """Mean and covariance in standard errors; largest of all entries, a false alarm in 1e4 runs."""
    other = PHI @ np.diag(np.linspace(0.3, 2, FEATURES)) @ PHI.T
    how = {"record": [0, 7], "batches": batches}
    case = (other, K, Y[:, 0], "mse", 0.7, 7, LINEAR["Nesterov"])
    exact = kernels.ensemble(*case, **how)
    assert not np.any(exact.stderr)
    np.testing.assert_allclose(exact.covariance[0], other, atol=1e-12)
    samples = 1000
    found = kernels.ensemble(*case, samples=samples, key=jax.random.key(1), **how)
    z = (found.mean - exact.mean) / found.stderr
    assert np.abs(z).max() < stats.norm.isf(0.5e-4 / z.size)
    variance = exact.std**2
    scale = np.sqrt((exact.covariance**2 + variance[:, :, None] * variance[:, None]) / samples)
    z = (found.covariance - exact.covariance) / scale
    assert np.abs(z).max() < stats.norm.isf(0.5e-4 / z.size)


def test_sampled_ensembles_of_several_outputs():
    found = kernels.ensemble(
        K, K, CLASSES, "cross_entropy", 0.7, 5, samples=500, key=jax.random.key(1), record=[0, 5]
    )
    assert found.mean.shape == (2, TRAIN + TEST, 3)
    assert found.covariance.shape == (2, 3, TRAIN + TEST, TRAIN + TEST)
    variance = np.diag(K)[:, None]
    z = (found.std[0] ** 2 / variance - 1) / (2 / 499) ** 0.5
    assert np.abs(z).max() < stats.norm.isf(0.5e-4 / z.size)


# --- files


def test_files(tmp_path):
    run = kernels.train(TT, ST, CLASSES, "cross_entropy", 1.0, 5)
    loaded = kernels.KernelRun.load(run.save(tmp_path / "a" / "run.safetensors"))
    for name in ("steps", "train", "test", "loss", "coefficients"):
        np.testing.assert_array_equal(getattr(loaded, name), getattr(run, name))
    ensemble = kernels.ensemble(K, K, Y, "mse", 0.5, 3)
    saved = ensemble.save(tmp_path / "ensemble.safetensors")
    np.testing.assert_array_equal(kernels.Ensemble.load(saved).std, ensemble.std)
    for made in (run, ensemble):
        assert made.plot(tmp_path / "figure.png").stat().st_size > 10_000
    with pytest.raises(ValueError, match="no KernelRun of tplimit"):
        kernels.KernelRun.load(saved)
    with pytest.raises(FileNotFoundError):
        kernels.KernelRun.load(tmp_path / "none")
    (tmp_path / "broken").write_bytes(saved.read_bytes()[:100])
    with pytest.raises(ValueError, match="truncated"):
        kernels.KernelRun.load(tmp_path / "broken")
