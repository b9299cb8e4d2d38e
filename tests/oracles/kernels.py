"""Networks in the neural tangent parameterization: kernels, and training in function space.

    h_1 = x U / sqrt(d),    h_l = phi(h_{l-1}) W_l / sqrt(n),    f = phi(h_L) v / sqrt(n)

Source: Jacot, Gabriel and Hongler (arXiv 1806.07572); the arc-cosine kernels are those of Cho and
Saul, *Kernel Methods for Deep Learning* (2009).
"""

from collections.abc import Callable

import numpy as np
from numpy.polynomial.hermite_e import hermegauss
from numpy.typing import NDArray

Array = NDArray[np.float64]

#: Smooth activations with their derivatives.
SMOOTH: dict[str, tuple[Callable[[Array], Array], Callable[[Array], Array]]] = {
    "tanh": (np.tanh, lambda h: 1 / np.cosh(h) ** 2),
}


def expectation(fn: Callable[[Array], Array], covariance: Array, nodes: int = 80) -> Array:
    """``E[fn(u) fn(v)]`` for all pairs of entries of a Gaussian vector."""
    z, w = hermegauss(nodes)
    w = w / w.sum()
    scale = np.sqrt(np.diag(covariance))
    out = np.empty_like(covariance)
    for i, j in np.ndindex(covariance.shape):
        c = np.clip(covariance[i, j] / (scale[i] * scale[j]), -1, 1)
        u = scale[i] * z[:, None]
        v = scale[j] * (c * z[:, None] + np.sqrt(1 - c * c) * z[None, :])
        out[i, j] = np.einsum("i,j,ij", w, w, fn(u) * fn(v))
    return out


def layer(activation: str, covariance: Array) -> tuple[Array, Array]:
    """``E[phi phi]`` and ``E[phi' phi']``."""
    if activation in SMOOTH:
        fn, slope = SMOOTH[activation]
        return expectation(fn, covariance), expectation(slope, covariance)
    leak = {"relu": 0.0, "leaky_relu": 0.01}[activation]
    scale = np.sqrt(np.diag(covariance))
    sizes = np.outer(scale, scale)
    c = np.clip(covariance / sizes, -1, 1)
    angle = np.arccos(c)
    relu = sizes * (np.sqrt(1 - c * c) + (np.pi - angle) * c) / (2 * np.pi)
    step = (np.pi - angle) / (2 * np.pi)
    # phi = leak h + (1 - leak) relu(h), and E[h relu(h')] is half the covariance.
    mixed = leak * (1 - leak)
    value = leak**2 * covariance + (1 - leak) ** 2 * relu + mixed * covariance
    return value, leak**2 + (1 - leak) ** 2 * step + mixed


def kernels(x: Array, depth: int, activation: str) -> tuple[Array, Array]:
    """Covariance of the initial function and tangent kernel of the points ``x``."""
    covariance = x @ x.T / x.shape[1]
    tangent = covariance
    for _ in range(depth):
        value, slope = layer(activation, covariance)
        covariance, tangent = value, value + tangent * slope
    return covariance, tangent


def descent(
    tangent: Array, start: Array, slope: Callable[[Array], Array], rate: float, steps: int
) -> Array:
    """``f_t`` at all points, the first of which are trained: ``(..., steps + 1, points)``.

    ``slope(f)`` are the derivatives of the loss in the outputs of the trained points.
    """
    f, found = np.asarray(start, np.float64), []
    for _ in range(steps):
        found.append(f)
        g = slope(f)
        f = f - rate * g @ tangent[:, : g.shape[-1]].T
    return np.stack([*found, f], axis=-2)
