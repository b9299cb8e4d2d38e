"""f_1 of IP-LLR at infinite width in closed form (HCG Lemmas A.8.10 and A.8.11).

φ(z) = α max(z, 0)^p with p = 1 or 2. The inner layers are one-dimensional Gaussian moments, layer 1
is a one-dimensional integral: given g_0 its preactivation at the test point is Gaussian.
"""

from math import gamma, pi, sqrt

import numpy as np
from scipy.integrate import quad
from scipy.stats import norm


def first_function(
    x0: np.ndarray, y0: float, x: np.ndarray, eta: float, depth: int, p: int, alpha: float
) -> float:
    """f_1(x) after one step on (x0, y0) with the loss (f - y)²/2, whose derivative at 0 is -y0.

    λ_1 = E[φ(g_0) φ(g_x - η χ (x0·x + 1) z_1 φ'(g_0))]
    λ_l = (k λ_{l-1})^p E[φ(u_l) |φ'(u_l)|^p] E[φ(z_l)],        k = η |χ|
    f_1 = -sign(χ) { (k λ_{L-1})^p E[sign(u_L) |φ'(u_L)|^p] E[Z φ(Z)] + k λ_L }
    """
    chi = -y0
    k = eta * abs(chi)
    forward, backward = _variances(x0 @ x0 + 1, depth, p, alpha)
    values = [_first_layer(x0, x, eta * chi, backward[0], p, alpha)]
    for l in range(1, depth):
        slope = (p * alpha) ** p
        product = alpha * slope * _half_moment(p + p * (p - 1), forward[l])
        last = alpha * _half_moment(p, backward[l])
        values.append((k * values[-1]) ** p * product * last)
    sign = (p * alpha) ** p * _half_moment(p * (p - 1), forward[-1])
    output = (k * values[-2]) ** p * sign * alpha * _half_moment(p + 1, 1.0)
    return float(-np.sign(chi) * (output + k * values[-1]))


def _variances(first: float, depth: int, p: int, alpha: float) -> tuple[list[float], list[float]]:
    """Of u_l = h̃^l and z_l = dx̃^l, l = 1 .. depth."""
    forward = [first]
    for _ in range(depth - 1):
        forward.append(alpha**2 * _half_moment(2 * p, forward[-1]))
    backward = [1.0]
    for variance in forward[:0:-1]:
        backward.append(backward[-1] * (p * alpha) ** 2 * _half_moment(2 * (p - 1), variance))
    return forward, backward[::-1]


def _half_moment(k: int, variance: float) -> float:
    """E[max(N, 0)^k] for N of this variance; 1/2 for k = 0."""
    return 2 ** (k / 2 - 1) * gamma((k + 1) / 2) / sqrt(pi) * variance ** (k / 2)


def _first_layer(
    x0: np.ndarray, x: np.ndarray, rate: float, variance: float, p: int, alpha: float
) -> float:
    s00, s0x, sxx = x0 @ x0 + 1, x0 @ x + 1, x @ x + 1

    def integrand(g: float) -> float:
        slope = p * alpha * g ** (p - 1)
        mean = s0x / s00 * g
        std = np.sqrt(sxx - s0x**2 / s00 + variance * (rate * s0x * slope) ** 2)
        t = mean / std
        if p == 1:
            moment = mean * norm.cdf(t) + std * norm.pdf(t)
        else:
            moment = (mean**2 + std**2) * norm.cdf(t) + mean * std * norm.pdf(t)
        return alpha**2 * g**p * moment * norm.pdf(g, scale=np.sqrt(s00))

    return quad(integrand, 0, 12 * np.sqrt(s00), epsabs=1e-13)[0]
