"""Fluctuations of one-hidden-layer networks around their mean-field limit, by particles.

    f = (1/N) sum_i a_i tanh(w_i x),    theta_i -= eta mean_b (f(x_b) - y_b) grad phi(theta_i; x_b)

Source: the linear system that follows from Pham and Nguyen, *Limiting fluctuation and trajectorial
stability of multilayer neural networks with mean field training* (arXiv 2110.15954), for two layers
in discrete time: with `g = lim sqrt(N) (f_N - f)`,

    g^k(x) + (eta / n) sum_{j<k, b} M^{k,j}(x, x_b) g^j(x_b) = G^k(x)
    Cov(G^k(x), G^j(x')) = Cov(phi(theta^k; x), phi(theta^j; x'))
    M^{k,j}(x, x_b) = E[grad phi(theta^k; x) P grad phi(theta^j; x_b)]

where `P` is the product over the steps between of `1 - eta mean_b (f - y) Hess phi(.; x_b)`.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import stats

Array = NDArray[np.float64]


class Covariance(NamedTuple):
    """`lim N Cov(f_N)` of all steps and points, steps first: both (k, k)."""

    full: Array
    without_interaction: Array
    """The same with M = 0, as if the units did not act on each other: wrong on purpose."""


def tanh_covariance(
    points: Array, targets: Array, eta: float, steps: int, samples: int = 2**16, seed: int = 0
) -> Covariance:
    """Law of the outputs at `points` (the first are trained on) before each step and at the end.

    All parameters are N(0, 1). The initial particles are Sobol' points, which makes the error that
    of a quadrature: it is far below that of independent particles (`seed` scrambles them).
    """
    x, (count, dimension), trained = np.asarray(points, float), np.shape(points), len(targets)
    sobol = stats.qmc.Sobol(dimension + 1, seed=seed).random(samples)
    w, a = np.split(stats.norm.ppf(sobol).T, [dimension])
    a = a[0]
    values, gradients, curvatures = [], [], []
    for _ in range(steps + 1):
        s = np.tanh(x @ w)
        d = 1 - s * s
        values.append(a * s)
        gradients.append(np.concatenate([s[:, None], a * d[:, None] * x[:, :, None]], axis=1))
        chi = (s[:trained] @ a / samples - targets) / trained
        # The Hessian of a tanh(w x) in (a, w), averaged with the slopes of the loss.
        cross = np.einsum("b,bm,bi->im", chi, d[:trained], x[:trained])
        inner = np.einsum(
            "b,bm,bi,bj->ijm", chi, -2 * a * (s * d)[:trained], x[:trained], x[:trained]
        )
        curvatures.append((cross, inner))
        move = np.tensordot(chi, gradients[-1][:trained], 1)
        a, w = a - eta * move[0], w - eta * move[1:]
    system = np.eye((steps + 1) * count)
    for j in range(steps):
        carried = gradients[j][:trained]
        for k in range(j + 1, steps + 1):
            if k > j + 1:
                cross, inner = curvatures[k - 1]
                first = np.einsum("im,bim->bm", cross, carried[:, 1:])
                others = cross * carried[:, :1] + np.einsum("ijm,bjm->bim", inner, carried[:, 1:])
                carried = carried - eta * np.concatenate([first[:, None], others], axis=1)
            m = np.einsum("apm,bpm->ab", gradients[k], carried) / samples
            system[k * count : (k + 1) * count, j * count : j * count + trained] += (
                eta / trained * m
            )
    free = np.cov(np.concatenate(values))
    inverse = np.linalg.inv(system)
    return Covariance(inverse @ free @ inverse.T, free)
