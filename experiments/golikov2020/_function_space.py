"""Limits written down in function space, without the library: what the interpreter is checked by.

With ρ = d / d*, the exponents e0, eK, s of a region, and the Gaussian initial function G,

    f_0 = ρ^e0 G,    f_k = ρ^e0 G + ρ^eK D_k  (s < 0),    f_k = ρ^eK D_k  (s = 0, k > 0)

where the corrections are as small as ρ^s or ρ^-1/2. For s < 0 the kernel stays what it is at
initialisation and D is a recursion for the values at the points. For s = 0 the law of the weights
moves: D = d* E[A φ(w·x)] over particles that come in pairs ±A, so that D_0 = 0. The former is for
the leaky ReLU, the latter for tanh. Either is driven by the loss derivatives at f_k, at a finite ρ,
or at ρ = inf by -y/2, the derivatives at f_k itself or those of a step function, as f_k vanishes,
stays or grows.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from ._regions import LEAK, REFERENCE

Array = np.ndarray


class Exponents(NamedTuple):
    """Of the initial logits, of the kernel and the increments, and of the weights' increments."""

    e0: float
    eK: float
    s: float


def exponents(q_sigma: float, q_tilde: float) -> Exponents:
    """The source's formulas."""
    e0, s = float(q_sigma) + 0.5, float(q_sigma + q_tilde)
    return Exponents(e0, e0 + s + 0.5, s)


def covariances(x: Array) -> tuple[Array, Array]:
    """E[φ φ] and E[φ' φ'] at w ~ N(0, 1 / inputs) for the leaky ReLU (arc-cosine kernels)."""
    gram = x @ x.T / x.shape[1]
    norms = np.sqrt(np.diag(gram))
    sizes = np.outer(norms, norms)
    cosine = np.clip(gram / sizes, -1, 1)
    angle = np.arccos(cosine)
    # φ(h) = LEAK h + (1 - LEAK) relu(h), and E[h relu(h')] is half the covariance.
    share = (np.pi - angle) / (2 * np.pi)
    relu = sizes * (np.sqrt(1 - cosine**2) / (2 * np.pi) + share * cosine)
    mixed = LEAK * (1 - LEAK)
    value = (LEAK**2 + mixed) * gram + (1 - LEAK) ** 2 * relu
    return value, LEAK**2 + mixed + (1 - LEAK) ** 2 * share


def initial_function(x: Array, seed: int) -> Array:
    """One draw of G, of covariance E[φ φ] as d* E[A²] = 1."""
    value, _ = covariances(x)
    root = np.linalg.cholesky(value + 1e-10 * np.eye(len(x)))
    return root @ np.random.default_rng(seed).standard_normal(len(x))


def derivative(terms: list[tuple[float, Array]], y: Array, rho: float) -> Array:
    """ℓ'(f) of f = Σ ρ^exponent · value, the logistic loss with labels ±1; ρ may be inf."""
    if rho < math.inf:
        f = sum(rho**exponent * value for exponent, value in terms)
        return -y / (1 + np.exp(np.clip(y * f, -700, 700)))
    top = max(exponent for exponent, _ in terms)
    f = sum(value for exponent, value in terms if exponent == top)
    if top < 0:
        return -y / 2
    return -y * (y * f < 0) if top > 0 else -y / (1 + np.exp(y * f))


def descend(
    e: Exponents, x: Array, y: Array, start: Array, lr: float, steps: int, rho: float,
    particles: int = 2**15,
) -> Array:  # fmt: skip
    """Logits at all points, the first of which are trained, in units of their largest power of ρ.

    f_0 / ρ^e0 first, then f_k / ρ^eK: (steps + 1, points). `start` is G, for one network.
    """
    train = len(y)
    update = _evolving(x, train, lr, particles) if e.s == 0 else _frozen(x, train, lr)
    moved, found = np.zeros(len(x)), [start]
    for k in range(steps):
        terms = [(e.e0, start[:train])] if k == 0 or e.s < 0 else []
        terms += [(e.eK, moved[:train])] if k else []
        moved = update(derivative(terms, y, rho) / train)
        found.append(moved + _initial_part(e, start, rho))
    return np.array(found)


def _initial_part(e: Exponents, start: Array, rho: float) -> Array:
    """ρ^e0 G in units of ρ^eK, for s < 0."""
    if e.s == 0 or (rho == math.inf and e.e0 < e.eK):
        return np.zeros_like(start)
    return start * (1.0 if e.e0 == e.eK else rho ** (e.e0 - e.eK))


def _frozen(x: Array, train: int, lr: float) -> Callable[[Array], Array]:
    value, slope = covariances(x)
    kernel = lr * (REFERENCE * value + slope * (x @ x.T))[:, :train]
    moved = np.zeros(len(x))

    def update(chi: Array) -> Array:
        nonlocal moved
        moved = moved - kernel @ chi
        return moved

    return update


def _evolving(x: Array, train: int, lr: float, particles: int) -> Callable[[Array], Array]:
    """With φ = tanh."""
    draw, (_, inputs) = np.random.default_rng(0), x.shape
    half = particles // 2
    A = draw.standard_normal(half) / REFERENCE**0.5
    w = draw.standard_normal((half, inputs)) / inputs**0.5
    A, w = np.concatenate([A, -A]), np.concatenate([w, w])

    def update(chi: Array) -> Array:
        nonlocal A, w
        phi = np.tanh(w @ x[:train].T)
        A, w = A - lr * phi @ chi, w - lr * A[:, None] * (((1 - phi**2) * chi) @ x[:train])
        return REFERENCE * (A @ np.tanh(w @ x.T)) / len(A)

    return update
