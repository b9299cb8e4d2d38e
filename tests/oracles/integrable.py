"""Integrable networks (Naive-IP) of three hidden tanh layers: trivial, with known decay.

The program is `golden.naive_ip("tanh", hidden=3, eta)`: hidden matrices of effective standard
deviation 1/n and effective rates as in muP (Hajjar, Chizat & Giraud, arXiv 2110.15596, Prop. 2.3.1:
the limit is `f_t = 0`). For t >= 1 `f_t = c_t / n + o(1/n)`, and `leading_coefficients` computes
`c_t` to round-off.

Derivation. With `Wt_l` of standard deviation n^-1/2, `W_l(0) = n^-1/2 Wt_l`. To leading order layer
1 does not move, and layers 2 and 3 are small, hence linear (tanh'(0) = 1):

    x_1  = tanh(Z^{U x + b})                 k(x, x') = E[x_1(x) x_1(x')]
    h_2  = n^-1/2 a_t,   a_t = Wt_2 x_1(x_t) - eta sum_{s<t} chi_s k(x_s, x_t) e_s
    h_3  = n^-1   c_t,   c_t = Wt_3 a_t      - eta sum_{s<t} chi_s <a_s, a_t> v
    g_3  = v             (v moves at order 1/n only)
    g_2  = n^-1/2 e_t,   e_t = Wt_3^T v      - eta sum_{s<t} chi_s a_s       (<v, v> = 1)
    n f_t = <v, c_t>,    chi_s = -y_s        (f_s -> 0)

with g_l = n df/dh_l. These are linear combinations of Gaussian sources: the algebra of `linear`.
`Wt_3 Wt_3^T v` has the part `v` (the correction Zdot), so c_1 = 2 eta y_0 k(x_0, x).
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from . import golden
from .dense import train_dense
from .linear import GaussianMatrix, Space

Array = NDArray[np.float64]


KNOWN: Array = np.array(
    [
        [0.5125736678, 0.7142347096],
        [-0.1910605969, 0.2494458317],
        [0.0164511785, 0.3912529355],
        [0.4141232693, 1.0569893826],
    ]
)
"""`leading_coefficients(eta=1)`; rows t = 1 .. 4, columns A, B."""


def tanh_kernel(x: Array, spacing: float = 0.1) -> Array:
    """E[tanh(u) tanh(u')] for (u, u') Gaussian of covariance `x.x' + 1`.

    Trapezoidal rule: for these analytic functions its error is exp(-const / spacing), far below
    round-off, whereas Gauss-Hermite rules converge slowly because of the poles of tanh.
    """
    nodes = np.arange(-12.0, 12.0 + spacing / 2, spacing)
    weights = np.exp(-(nodes**2) / 2)
    weights = weights / weights.sum()
    covariance = x @ x.T + 1
    kernel = np.empty_like(covariance)
    for i, j in np.ndindex(kernel.shape):
        a = np.sqrt(covariance[i, i])
        b = covariance[i, j] / a
        rest = np.sqrt(np.maximum(covariance[j, j] - b**2, 0.0))
        other = np.tanh(b * nodes[:, None] + rest * nodes) @ weights
        kernel[i, j] = weights @ (np.tanh(a * nodes) * other)
    return kernel


def leading_coefficients(eta: float = 1.0, correction: bool = True) -> Array:
    """`c_t = lim n f_t` at the points A, B for t = 1 .. 4 on the golden data: (4, 2).

    `correction=False` drops Zdot: wrong on purpose (c_1 is halved).
    """
    steps = len(golden.INPUTS)
    data = np.vstack([golden.INPUTS, golden.POINTS])
    chi = -golden.TARGETS
    kernel = tanh_kernel(data)
    values, vectors = np.linalg.eigh(kernel)
    features = vectors * np.sqrt(np.maximum(values, 0))  # rows with <x_1, x_1'> = k
    first, second, third = Space(), Space(), Space()
    first.draw(len(data))
    v = third.draw(1)
    matrix_2 = GaussianMatrix(first, second)
    matrix_3 = GaussianMatrix(second, third)
    a: list[Array] = []
    e: list[Array] = []  # of the training samples: rows (1, sources)

    def layer_2(point: int) -> Array:
        row = matrix_2.forward(features[point : point + 1])
        for s, e_s in enumerate(e):
            row = second.pad(row) - eta * chi[s] * kernel[s, point] * second.pad(e_s)
        return row

    def output(point: int) -> float:
        a_t = layer_2(point)
        c_t = third.pad(matrix_3.forward(a_t, correction))
        for s, a_s in enumerate(a):
            product = (second.pad(a_s) @ second.pad(a_t).T).item()
            c_t = c_t - eta * chi[s] * product * third.pad(v)
        return (third.pad(v) @ c_t.T).item()

    coefficients = []
    for t in range(steps):
        a_t = layer_2(t)
        matrix_3.forward(a_t, correction)  # the forward pass comes first
        e_t = matrix_3.transposed(third.pad(v), correction)
        for s, a_s in enumerate(a):
            e_t = second.pad(e_t) - eta * chi[s] * second.pad(a_s)
        a.append(a_t)
        e.append(e_t)
        coefficients.append([output(steps + p) for p in range(len(golden.POINTS))])
    return np.array(coefficients)


class Measured(NamedTuple):
    """n f_t at A, B for t = 1 .. 4: mean and standard error over seeds, (4, 2) each."""

    mean: Array
    stderr: Array
    runs: Array


def measure_ip(
    widths: Sequence[int] = (4096,), seeds: int = 16, eta: float = 1.0, key: int = 0
) -> dict[int, Measured]:
    """`n f_t` of finite networks, in float64 (f_t is a sum of cancelling terms)."""
    program = golden.naive_ip("tanh", hidden=3, eta=eta)
    results = {}
    for width, run in train_dense(
        program.predict,
        program.sampler,
        program.step,
        golden.BATCHES,
        golden.POINTS,
        widths=widths,
        seeds=seeds,
        key=key,
        x64=True,
    ).items():
        scaled = width * run.f[:, 1:]
        results[width] = Measured(
            scaled.mean(0), scaled.std(0, ddof=1) / np.sqrt(len(scaled)), scaled
        )
    return results
