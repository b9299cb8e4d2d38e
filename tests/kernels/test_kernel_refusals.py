"""Kernels, targets and options that cannot be trained with: a named error, never a NaN."""

import jax
import numpy as np
import pytest
from oracles.function_space import (
    CLASSES,
    F0,
    LINEAR,
    PHI,
    SIGNS,
    ST,
    TRAIN,
    TT,
    K,
    Y,
    huber,
    linear_kernel,
)

import tplimit as tp
from tplimit import kernels


def changed(matrix, index, value):
    matrix = matrix.copy()
    matrix[index] = value
    return matrix


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"kernel_tt": changed(TT, (1, 2), np.nan)}, "kernel_tt has entries that are not finite"),
        ({"kernel_st": changed(ST, (1, 2), np.inf)}, "kernel_st has entries that are not finite"),
        ({"kernel_tt": TT[:, :-1]}, r"kernel_tt has shape \(12, 11\), a square matrix"),
        ({"kernel_tt": TT[0]}, r"kernel_tt has shape \(12,\), a matrix is expected"),
        ({"kernel_st": ST.T}, r"kernel_st has shape \(12, 5\): its columns are the 12 training"),
        ({"kernel_tt": changed(TT, (1, 2), 3.0)}, r"not symmetric: entries \(1, 2\) and \(2, 1\)"),
        ({"kernel_tt": TT - 0.5 * np.eye(TRAIN)}, "not positive semidefinite: .* eigenvalue -"),
        ({"kernel_tt": TT * 1j}, "dtype complex128, real numbers are expected"),
        ({"y": Y[:-1]}, r"y has shape \(11, 3\) for 12 training points"),
        ({"y": changed(Y, (0, 0), np.nan)}, "y has entries that are not finite"),
        ({"y": Y[:, 0], "loss": "logistic"}, "needs labels -1 and 1"),
        ({"y": Y[:, 0], "loss": "cross_entropy"}, "cross-entropy needs class numbers"),
        ({"y": CLASSES - 1, "loss": "cross_entropy"}, "class numbers from -1 to 1"),
        ({"loss": "hinge"}, "unknown loss 'hinge'"),
        ({"loss": lambda f, y: f - y}, "the loss has to return one number"),
        ({"lr": -0.1}, "lr=-0.1 is not positive"),
        ({"lr": np.nan}, "lr=nan is not finite"),
        ({"steps": -1}, "steps=-1 is out of range"),
        ({"f0": F0}, "f0 is a pair"),
        ({"f0": (F0[:TRAIN, 0], F0[TRAIN:])}, "f0 at the training points has shape"),
        ({"f0": (F0[:TRAIN], F0)}, "f0 at the test points has shape"),
        ({"f0": (F0[:TRAIN] * np.nan, F0[TRAIN:])}, "f0 has entries that are not finite"),
        ({"record": [3, 30]}, "record has to hold numbers of steps from 0 to 20"),
        ({"batches": 5}, "batch size of 5 does not divide 12 points"),
        ({"batches": [[0, 12]]}, "indices from 0 to 12, of 12"),
        ({"batches": [0, 1]}, r"\(number of batches, size\) is expected"),
        ({"method": "newton"}, "method='newton' is not known"),
        ({"method": "spectral", "batches": 4}, "full batches"),
        ({"method": "spectral", "loss": huber}, 'needs loss="mse"'),
        ({"kernel_tt": linear_kernel}, "kernel_tt is a function: give the points"),
        ({"kernel_tt": linear_kernel, "x": PHI[0]}, "the kernel function returned shape|points"),
        ({"kernel_st": linear_kernel}, "kernel_st is a function"),
        ({"kernel_tt": lambda a, b: np.nan * (a @ b.T), "x": PHI[:TRAIN]}, "that are not finite"),
        ({"kernel_tt": lambda a, b: a, "x": PHI[:TRAIN]}, "the kernel function returned shape"),
        ({"kernel_tt": linear_kernel, "x": np.nan * PHI[:TRAIN]}, "x has entries"),
        ({"steps": 10**10}, "choose fewer steps by record="),
    ],
)
def test_bad_input(change, text):
    arguments = {"kernel_tt": TT, "kernel_st": ST, "y": Y, "loss": "mse", "lr": 0.5, "steps": 20}
    with pytest.raises((ValueError, TypeError), match=text):
        kernels.train(**arguments | change)


@pytest.mark.parametrize("optimizer", [None, LINEAR["momentum"]])
@pytest.mark.parametrize("method", ["spectral", "iterate"])
@pytest.mark.filterwarnings("ignore:lr = ", "ignore:The loss has grown")
def test_divergence_is_an_error_and_never_a_nan(method, optimizer):
    with pytest.raises(tp.DivergenceError, match="Training diverges: outputs are not finite"):
        kernels.train(TT, ST, Y, "mse", 60.0, 5000, optimizer, method=method)


@pytest.mark.parametrize("method", ["spectral", "iterate"])
def test_rates_beyond_the_edge_warn(method):
    edge = 2 * TRAIN / np.linalg.eigvalsh(TT)[-1]
    kernels.train(TT, ST, Y, "mse", 0.99 * edge, 5, method=method)
    with pytest.warns(tp.LimitWarning, match="beyond 2 n / λ_max"):
        kernels.train(TT, ST, Y, "mse", 1.01 * edge, 5, method=method)
    with pytest.warns(tp.LimitWarning, match="The loss has grown from"):
        kernels.train(TT, ST, Y, "mse", 2.0 * edge, 20, LINEAR["momentum"], method=method)


def test_regression_with_a_singular_kernel():
    twice = np.repeat([0, 1, 2], 2)
    k, y = K[np.ix_(twice, twice)], np.arange(6.0)
    for method in ("cholesky", "cg"):
        with pytest.raises(ValueError, match="singular within float64 precision"):
            kernels.posterior(k, k[:2], y, method=method)
    assert np.all(np.isfinite(kernels.posterior(k, k[:2], y, noise=0.1).mean))
    with pytest.raises(ValueError, match="noise is a variance"):
        kernels.posterior(k, k[:2], y, noise=-1.0)
    with pytest.raises(ValueError, match="y has shape"):
        kernels.posterior(k, k[:2], y[:3], noise=0.1)


def test_ensembles_are_told_what_is_missing():
    with pytest.raises(ValueError, match="give samples"):
        kernels.ensemble(K, K, SIGNS, "logistic", 0.5, 3)
    with pytest.raises(ValueError, match="either lr and steps, or times"):
        kernels.ensemble(K, K, Y, "mse", 0.5)
    with pytest.raises(ValueError, match="matrices of the same points"):
        kernels.ensemble(K, TT, Y, "mse", 0.5, 3)
    with pytest.raises(ValueError, match="times have to be increasing"):
        kernels.flow(TT, ST, Y, "mse", [1.0, 1.0])


# --- kernels that are none, for every function that takes one

SS = K[TRAIN:, TRAIN:]
TIMES, KEY = [0.5, 2.0], jax.random.key(0)
#: Each function with the block of the kernel that it is given, the others being right.
TAKERS = {
    "posterior, kernel_tt": lambda k: kernels.posterior(k, ST, Y, noise=0.1, kernel_ss=SS),
    "posterior, kernel_tt, cg": lambda k: kernels.posterior(k, ST, Y, noise=0.1, method="cg"),
    "posterior, kernel_ss": lambda k: kernels.posterior(TT, ST, Y, noise=0.1, kernel_ss=k),
    "ensemble, nngp": lambda k: kernels.ensemble(k, K, Y, "mse", 0.5, 3),
    "ensemble, ntk": lambda k: kernels.ensemble(K, k, Y, "mse", 0.5, 3),
    "flowing ensemble, nngp": lambda k: kernels.ensemble(k, K, Y, "mse", times=TIMES),
    "flowing ensemble, ntk": lambda k: kernels.ensemble(K, k, Y, "mse", times=TIMES),
    "sampled ensemble, nngp": lambda k: kernels.ensemble(
        k, K, SIGNS, "logistic", 0.5, 3, samples=4, key=KEY
    ),
    "sampled ensemble, ntk": lambda k: kernels.ensemble(
        K, k, SIGNS, "logistic", 0.5, 3, samples=4, key=KEY
    ),
    "train, kernel_tt": lambda k: kernels.train(k, ST, Y, "mse", 0.5, 3),
    "iterated, kernel_tt": lambda k: kernels.train(k, ST, Y, "mse", 0.5, 3, method="iterate"),
    "flow, kernel_tt": lambda k: kernels.flow(k, ST, Y, "mse", TIMES),
    "integrated flow, kernel_tt": lambda k: kernels.flow(k, ST, SIGNS, "logistic", TIMES),
}  # fmt: skip
#: What is done to a kernel, and what is then said of it.
DAMAGE = {
    "NaN": (lambda k: changed(k, (1, 1), np.nan), "has entries that are not finite"),
    "infinite": (lambda k: changed(k, (0, 2), np.inf), "has entries that are not finite"),
    "one-sided": (lambda k: changed(k, (1, 2), 3.0), "is not symmetric"),
    "last row": (lambda k: changed(k, (-1, 0), 3.0), "is not symmetric"),
    "indefinite": (lambda k: k - 2.5 * np.eye(len(k)), "is not positive semidefinite"),
    "indefinite at the end": (
        lambda k: changed(k, (-1, -1), -1.0), "is not positive semidefinite"
    ),
    "not square": (lambda k: k[:, :-1], "has shape"),
    "overflowing": (lambda k: 1e300 * k, "whose products overflow float64"),
    "overflowing in single precision": (
        lambda k: (1e30 * k).astype("f4"), "whose products overflow float32"
    ),
}  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("taker", TAKERS)
def test_every_kernel_is_checked(taker, damage):
    """By the name that it has for the caller."""
    name = taker.split(", ")[1]
    whole = {"kernel_tt": TT, "kernel_ss": SS}.get(name, K)
    damaged, text = DAMAGE[damage]
    with pytest.raises(ValueError, match=f"{name} .*{text}"):
        TAKERS[taker](damaged(whole))
    for part, found in vars(TAKERS[taker](whole)).items():
        assert part == "record" or np.all(np.isfinite(found))


@pytest.mark.parametrize(
    "function",
    [
        lambda k: kernels.posterior(TT, k, Y, noise=0.1, kernel_ss=SS),
        lambda k: kernels.train(TT, k, Y, "mse", 0.5, 3),
        lambda k: kernels.flow(TT, k, Y, "mse", TIMES),
    ],
)
def test_kernels_between_two_sets_are_checked(function):
    """They are neither square nor definite: finite, of the right shape, without overflow."""
    for damaged, text in (
        (changed(ST, (0, 0), np.nan), "kernel_st has entries that are not finite"),
        (changed(ST, (0, 0), -np.inf), "kernel_st has entries that are not finite"),
        (ST.T, "kernel_st has shape"),
        (1e300 * ST, "kernel_st has entries up to .* overflow float64"),
    ):
        with pytest.raises(ValueError, match=text):
            function(damaged)


def test_blocks_of_different_kernels_have_no_posterior():
    """A variance that the data make negative, and by much."""
    with pytest.raises(ValueError, match="not blocks of one kernel"):
        kernels.posterior(TT, 3 * ST, Y, noise=0.1, kernel_ss=SS)
