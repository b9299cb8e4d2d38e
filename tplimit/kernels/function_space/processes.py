"""Gaussian processes: regression with a kernel, and networks over their initial functions."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from tplimit.kernels.function_space.flows import flow
from tplimit.kernels.function_space.grams import (
    BLOCK,
    MEMORY,
    Evaluated,
    Held,
    KernelLike,
    as_matrix,
    check_kernel,
)
from tplimit.kernels.function_space.runs import Ensemble, KernelRun, Saved, recorded
from tplimit.kernels.function_space.training import train
from tplimit.networks import losses
from tplimit.networks.losses import Loss
from tplimit.output.progress import STEP, bar

if TYPE_CHECKING:
    import optax

__all__ = ["Posterior", "ensemble", "posterior"]

# The factor is a second matrix in memory, and takes n^3 / 3 multiplications: a minute or two.
_CHOLESKY = 24_000
#: Largest relative residual of a solution, by bytes of the kernel's numbers.
_RESIDUAL = {4: 1e-3, 8: 1e-6}


@dataclass(frozen=True, eq=False, repr=False)
class Posterior(Saved):
    """Gaussian process regression at test points.

    Attributes:
        mean: (test points,) or (test points, outputs).
        covariance: (test points, test points), the same for every output; (0, 0) if not asked for.
    """

    mean: np.ndarray
    covariance: np.ndarray

    def __repr__(self) -> str:
        return f"Posterior(points={len(self.mean)}, covariance={self.covariance.size > 0})"


def posterior(
    kernel_tt: KernelLike,
    kernel_st: KernelLike,
    y: Any,
    *,
    noise: float = 0.0,
    kernel_ss: KernelLike | None = None,
    method: str = "auto",
    x: Any = None,
    x_test: Any = None,
    which: str = "nngp",
    dtype: Any = None,
    block: int = BLOCK,
    memory: int = MEMORY,
    tolerance: float = 1e-6,
    progress: bool = True,
) -> Posterior:
    """Gaussian process regression: the wide network of which only the readout is trained.

        mean = K_st (K_tt + noise 1)⁻¹ y,     covariance = K_ss - K_st (K_tt + noise 1)⁻¹ K_ts

    With the NNGP kernel this is the Bayesian posterior of an infinitely wide network (Neal, 1996;
    Lee et al., arXiv 1711.00165).

    Args:
        kernel_tt, kernel_st, x, x_test, which, dtype, block, memory, progress: as for
            `tplimit.kernels.train`; the attribute is "nngp" by default.
        y: targets, (n,) or (n, outputs).
        noise: variance of the noise of the targets.
        kernel_ss: kernel of the test points, if the covariance is wanted.
        method: "cholesky" (n³/3 multiplications and a second matrix in memory), "cg" (conjugate
            gradients, one solution per output and, for the covariance, per test point), or "auto":
            the first for matrices that fit into memory, up to 24 000 points.
        tolerance: relative residual that conjugate gradients stop at.

    Raises:
        ValueError: shapes do not fit, an entry is not finite, a kernel is no kernel, with this
            noise it is singular within its precision, or the three are not of one kernel.

    >>> import numpy as np
    >>> posterior(np.eye(2), np.array([[0.5, 0.0]]), np.array([2.0, 3.0]), noise=1.0).mean.round(
    ...     9
    ... ).tolist()
    [0.5]
    """
    how = {"which": which, "dtype": dtype, "block": block, "memory": memory, "progress": progress}
    kernel = as_matrix("kernel_tt", kernel_tt, x, **how)
    if callable(kernel_st) and (x is None or x_test is None):
        raise ValueError("kernel_st is a function: give the points, x= and x_test=")
    test = as_matrix("kernel_st", kernel_st, x_test, x, **how)
    check_kernel("kernel_tt", kernel)
    targets = np.asarray(y, kernel.dtype)
    _check_regression(kernel, test, targets, noise)
    if method not in ("auto", "cholesky", "cg"):
        raise ValueError(f"unknown method {method!r}: use auto, cholesky or cg")
    if method == "auto":
        fits = isinstance(kernel, Held) and kernel.shape[0] <= _CHOLESKY
        method = "cholesky" if fits else "cg"
    right = targets.reshape(len(targets), -1)
    cross = None
    if kernel_ss is not None:
        own = as_matrix("kernel_ss", kernel_ss, x_test, **how)
        if own.shape != (test.shape[0], test.shape[0]) or not isinstance(own, Held):
            raise ValueError(f"kernel_ss has shape {own.shape} for {test.shape[0]} test points")
        check_kernel("kernel_ss", own)
        prior = own.matrix
        cross = test.matrix if isinstance(test, Held) else test.matrix(progress)
        right = np.concatenate([right, cross.T.astype(kernel.dtype)], axis=1)
    if method == "cholesky":
        weights = _by_cholesky(kernel, noise, right)
    else:
        weights = _by_gradients(kernel, noise, right, tolerance, progress)
    outputs = right.shape[1] if cross is None else right.shape[1] - len(cross)
    mean = test.times(weights[:, :outputs]).reshape(test.shape[0], *targets.shape[1:])
    covariance = np.zeros((0, 0), kernel.dtype)
    if cross is not None:
        covariance = prior - cross @ weights[:, outputs:]
        covariance = (covariance + covariance.T) / 2
        _check_variances(covariance, prior)
    return Posterior(mean, covariance)


def _check_regression(
    kernel: Held | Evaluated, test: Held | Evaluated, targets: np.ndarray, noise: float
) -> None:
    if targets.ndim not in (1, 2) or len(targets) != kernel.shape[0]:
        raise ValueError(f"y has shape {targets.shape} for {kernel.shape[0]} training points")
    if not np.all(np.isfinite(targets)):
        raise ValueError("y has entries that are not finite")
    if test.shape[1] != kernel.shape[0]:
        raise ValueError(
            f"kernel_st has shape {test.shape}: its columns are the {kernel.shape[0]} training "
            "points, its rows the test points"
        )
    if not (np.isfinite(noise) and noise >= 0):
        raise ValueError(f"noise is a variance, 0 or larger, got {noise}")


def _check_variances(covariance: np.ndarray, prior: np.ndarray) -> None:
    """Data cannot make a variance negative, if the three matrices are blocks of one kernel."""
    smallest, scale = np.diag(covariance).min(), np.diag(prior).max()
    if not smallest >= -_RESIDUAL[covariance.dtype.itemsize] * scale:
        raise ValueError(
            f"the posterior has a variance of {smallest:.3g}: kernel_tt, kernel_st and kernel_ss "
            "are not blocks of one kernel, or the noise is too small for their precision"
        )


def _by_cholesky(kernel: Held | Evaluated, noise: float, right: np.ndarray) -> np.ndarray:
    from scipy.linalg import cho_factor, cho_solve  # slow to import

    matrix = kernel.matrix if isinstance(kernel, Held) else kernel.matrix()
    shifted = matrix.copy()
    shifted[np.diag_indices(len(shifted))] += np.asarray(noise, matrix.dtype)
    try:
        weights = cho_solve(cho_factor(shifted, overwrite_a=True, check_finite=False), right)
    except np.linalg.LinAlgError as error:
        raise _singular(kernel) from error
    return _checked(kernel, noise, right, weights)


def _by_gradients(
    kernel: Held | Evaluated, noise: float, right: np.ndarray, tolerance: float, progress: bool
) -> np.ndarray:
    from scipy.sparse.linalg import LinearOperator, cg  # slow to import

    n = kernel.shape[0]
    operator = LinearOperator(
        (n, n), lambda v: kernel.times(v.astype(kernel.dtype)) + noise * v, dtype=np.float64
    )
    weights = np.zeros(right.shape)
    # A singular kernel divides by zero; its solution is checked below.
    with bar(right.shape[1], "conjugate gradients", progress) as shown, np.errstate(all="ignore"):
        for i in range(right.shape[1]):
            weights[:, i], _ = cg(operator, right[:, i].astype(np.float64), rtol=tolerance)
            shown(STEP)
    return _checked(kernel, noise, right, weights.astype(kernel.dtype))


def _checked(
    kernel: Held | Evaluated, noise: float, right: np.ndarray, weights: np.ndarray
) -> np.ndarray:
    residual = kernel.times(weights) + noise * weights - right
    size = np.linalg.norm(residual, axis=0)
    allowed = _RESIDUAL[kernel.dtype.itemsize] * np.linalg.norm(right, axis=0)
    if not np.all(size <= allowed):
        raise _singular(kernel)
    return weights


def _singular(kernel: Held | Evaluated) -> ValueError:
    return ValueError(
        f"kernel_tt + noise is singular within {kernel.dtype} precision: raise the noise, compute "
        "in float64, or remove training points that coincide"
    )


# --- networks over their initial functions


def ensemble(
    nngp: Any,
    ntk: Any,
    y: Any,
    loss: Loss,
    lr: float | None = None,
    steps: int | None = None,
    optimizer: "optax.GradientTransformation | None" = None,
    *,
    times: Any = None,
    samples: int | None = None,
    key: jax.Array | None = None,
    **options: Any,
) -> Ensemble:
    """Mean and covariance of trained networks over their initialisation, f_0 ~ GP(0, NNGP).

    The squared error is linear in the initial function, f_t = m_t + S_t f_0, so the ensemble is
    the Gaussian process N(m_t, S_t K S_tᵀ): exact, at the cost of training one function per point.
    Other losses are trained from `samples` initial functions; then the mean has a standard error.

    Args:
        nngp, ntk: kernels of all points, (N, N), the n = len(y) training points first.
        y, loss, lr, steps, optimizer: as for `tplimit.kernels.train`.
        times: instead of lr and steps, times of `tplimit.kernels.flow`.
        samples: number of initial functions; needed for other losses than the squared error.
        key: of these.
        options: keyword arguments of `train` or `flow`.

    Raises:
        ValueError: shapes do not fit, a matrix is no kernel, or samples and key are missing.

    >>> import numpy as np
    >>> k = np.array([[2.0, 1.0], [1.0, 2.0]])
    >>> last = ensemble(k, k, np.array([1.0]), "mse", lr=0.5, steps=200, record=[200])
    >>> last.mean.round(6).tolist(), last.covariance.round(6).tolist()
    ([[1.0, 0.5]], [[[0.0, 0.0], [0.0, 1.5]]])
    """
    prior, tangent = (
        as_matrix(name, matrix, which=name) for name, matrix in (("nngp", nngp), ("ntk", ntk))
    )
    check_kernel("nngp", prior)
    check_kernel("ntk", tangent)
    assert isinstance(prior, Held) and isinstance(tangent, Held)
    total, n = prior.shape[0], len(np.atleast_1d(np.asarray(y)))
    if tangent.shape != (total, total) or n > total:
        raise ValueError(
            f"nngp {prior.shape} and ntk {tangent.shape} are matrices of the same points, the "
            f"{n} training points first"
        )
    if (times is None) == (lr is None or steps is None):
        raise ValueError("give either lr and steps, or times")
    rate, count = lr or 0.0, steps or 0
    blocks = tangent.matrix[:n, :n], tangent.matrix[n:, :n]

    def run(targets: Any, f0: Any) -> KernelRun:
        if times is not None:
            return flow(*blocks, targets, loss, times, f0=f0, **options)
        return train(*blocks, targets, loss, rate, count, optimizer, f0=f0, **options)

    if samples is None and losses.resolve(loss) is losses.mse:
        return _exact(run, prior.matrix, np.asarray(y), n)
    if samples is None or samples < 2 or key is None:
        raise ValueError("this ensemble is sampled: give samples (2 or more) and a key")
    return _sampled(run, prior.matrix, np.asarray(y), n, samples, key)


def _all(run: KernelRun, axis: int) -> np.ndarray:
    return np.concatenate([run.train, run.test], axis=axis)


def _exact(run: Any, prior: np.ndarray, y: np.ndarray, n: int) -> Ensemble:
    start = run(y, None)
    mean = _all(start, 1)
    units = np.eye(len(prior), dtype=mean.dtype)
    # Trained towards 0 from a unit vector at one point: a row of the transposed response.
    response = _all(run(np.zeros(n), (units[:, :n], units[:, n:])), 2)
    covariance = np.swapaxes(response, 1, 2) @ prior.astype(mean.dtype) @ response
    if y.ndim == 2:
        covariance = np.repeat(covariance[:, None], y.shape[1], axis=1)
    return Ensemble(
        start.steps,
        mean,
        covariance,
        np.zeros_like(mean),
        np.asarray(n),
        record=recorded(mean.dtype),
    )


def _sampled(
    run: Any,
    prior: np.ndarray,
    y: np.ndarray,
    n: int,
    samples: int,
    key: jax.Array,
) -> Ensemble:
    shape = run(y, None).train.shape[2:]
    values, vectors = np.linalg.eigh(prior.astype(np.float64))
    root = vectors * np.sqrt(np.maximum(values, 0.0))
    white = np.asarray(jax.random.normal(key, (samples, *shape, len(prior))), np.float64)
    f0 = np.moveaxis(white @ root.T, -1, 1)
    last = run(y, (f0[:, :n], f0[:, n:]))
    f = _all(last, 2).astype(np.float64)  # records, samples, points, outputs
    mean, std = f.mean(axis=1), f.std(axis=1, ddof=1)
    centred = f - mean[:, None]
    points = "rsi,rsj->rij" if f.ndim == 3 else "rsik,rsjk->rkij"
    covariance = np.einsum(points, centred, centred, optimize=True) / (samples - 1)
    return Ensemble(
        last.steps, mean, covariance, std / samples**0.5, np.asarray(n), record=recorded(mean.dtype)
    )
