"""Power laws of the loss: how fast kernel gradient flow learns, from the spectrum of the kernel.

A linear problem trained on the expected loss by gradient flow decouples into the eigenfunctions of
the kernel (as an integral operator with the distribution of the data), with eigenvalues λ_n:

    L(t) = ½ Σ_n e^(-2 λ_n t) |c_n|²        (c_n: coefficients of the initial error)

Both sequences are power laws for the kernels of networks with activations that have a kink.

Sources: Velikanov and Yarotsky, arXiv 2105.00507 (the statements); Birman and Solomyak, *Asymptotic
behavior of the spectrum of weakly polar integral operators* (1970).
"""

import math
from collections.abc import Callable
from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

__all__ = [
    "PowerLaw",
    "kernel_exponent",
    "loss_exponent",
    "singularity_constant",
    "spectral_loss",
    "spectrum_coefficient",
]


def spectral_loss(
    t: Any, eigenvalues: Float[np.ndarray, " modes"], coefficients: Float[np.ndarray, " modes"]
) -> np.ndarray:
    """L(t) = ½ Σ_n e^(-2 λ_n t) |c_n|², the exact sum, in float64.

    Args:
        t: times, of any shape (also of the result).

    Raises:
        ValueError: eigenvalues and coefficients differ in number, or a time is negative.

    >>> spectral_loss([0.0, 1.0], [1.0], [2.0]).round(6).tolist()
    [2.0, 0.270671]
    """
    values, c = np.asarray(eigenvalues, np.float64), np.asarray(coefficients)
    times = np.asarray(t, np.float64)
    if values.shape != c.shape or values.ndim != 1:
        raise ValueError(f"eigenvalues {values.shape} and coefficients {c.shape} are not (modes,)")
    if np.any(times < 0) or not np.all(np.isfinite(times)):
        raise ValueError("times have to be 0 or larger")
    weight = np.abs(c) ** 2
    # One time at a time: there may be millions of modes.
    found = [0.5 * float(np.exp(-2 * values * s) @ weight) for s in times.ravel()]
    return np.reshape(found, times.shape)


class PowerLaw(NamedTuple):
    """λ_n ~ scale · n^-decay and Σ_{k≥n} |c_k|² ~ tail · n^-tail_decay, for large n.

    Attributes:
        scale, decay: Λ and ν.
        tail, tail_decay: K and κ.
    """

    scale: float
    decay: float
    tail: float
    tail_decay: float

    @property
    def exponent(self) -> float:
        """ζ = κ/ν in L(t) ~ t^-ζ."""
        return self.tail_decay / self.decay

    @property
    def coefficient(self) -> float:
        """C = (K/2) Γ(ζ + 1) (2 Λ)^-ζ in L(t) ~ C t^-ζ (arXiv 2105.00507)."""
        return self.tail / 2 * math.gamma(self.exponent + 1) * (2 * self.scale) ** -self.exponent

    def loss(self, t: Any) -> np.ndarray:
        """The leading term C t^-ζ at large times.

        Raises:
            ValueError: an exponent or a constant is not positive: there is no such law.

        >>> law = PowerLaw(scale=0.3, decay=2.0, tail=0.7, tail_decay=0.5)
        >>> law.exponent, round(float(law.loss(1e5)), 6)
        (0.25, 0.02027)
        """
        if not min(self) > 0:
            raise ValueError(f"exponents and constants have to be positive: {self}")
        return self.coefficient * np.asarray(t, np.float64) ** -self.exponent


def kernel_exponent(dimension: int, singularity: float | Fraction = 1) -> Fraction:
    """ν in λ_n ~ Λ n^-ν, for a kernel with diagonal singularity |x - y|^α in d dimensions.

        ν = 1 + α/d

    The NTK of ReLU networks has α = 1, their NNGP kernel α = 3. On a sphere d is its dimension.

    Raises:
        ValueError: the dimension is not a positive integer, or α not positive, or an even integer
            (|x - y|^α is smooth).

    >>> kernel_exponent(2)
    Fraction(3, 2)
    """
    alpha = _singularity(singularity)
    if dimension != int(dimension) or dimension < 1:
        raise ValueError(f"the dimension is a positive integer, got {dimension}")
    return 1 + alpha / int(dimension)


def loss_exponent(
    dimension: int, singularity: float | Fraction = 1, target: float | Fraction | str = "indicator"
) -> Fraction:
    """ζ in L(t) ~ t^-ζ, for a kernel with diagonal singularity |x - y|^α in d dimensions.

        indicator of a smooth domain                      κ = 1/d,   ζ = 1/(d + α)
        Gaussian process with singularity |x - y|^β       κ = β/d,   ζ = β/(d + α)

    Source: Velikanov and Yarotsky, arXiv 2105.00507. A target that is a wide random ReLU network
    has β = 3.

    Args:
        target: "indicator", or the number β.

    Raises:
        ValueError: as `kernel_exponent`, or the target is neither.

    >>> loss_exponent(2), loss_exponent(1, target=3)
    (Fraction(1, 3), Fraction(3, 2))
    """
    decay = kernel_exponent(dimension, singularity)
    if isinstance(target, str) and target != "indicator":
        raise ValueError(f'the target is "indicator" or the number β, got {target!r}')
    smooth = Fraction(1) if isinstance(target, str) else _singularity(target)
    return smooth / int(dimension) / decay


def singularity_constant(dimension: int, singularity: float) -> float:
    """The constant of the Fourier transform of |x|^α: c |k|^-(d + α) for k ≠ 0.

        c = 2^(d+α) π^(d/2) Γ((d+α)/2) / Γ(-α/2)

    >>> round(singularity_constant(1, 1), 12)
    -2.0
    """
    alpha = float(_singularity(singularity))
    d = int(dimension)
    ratio = math.gamma((d + alpha) / 2) / math.gamma(-alpha / 2)
    return float(2 ** (d + alpha) * np.pi ** (d / 2) * ratio)


def spectrum_coefficient(
    psi: float | Callable[..., float],
    dimension: int,
    singularity: float = 1,
    *,
    density: Callable[..., float] | None = None,
    domain: Any = None,
    volume: float | None = None,
) -> float:
    """Λ in λ_n ~ Λ n^-ν, for a kernel that behaves like ψ(x) |x - y|^α near the diagonal.

        Λ = [ (2π)^-d ω_d ∫ (μ(x) |ψ(x) c|)^(d/(d+α)) dx ]^((d+α)/d)

    with ω_d the volume of the unit ball, μ the density of the data and c of
    `singularity_constant`. It holds on a smooth manifold of dimension d as well.

    Source: Birman and Solomyak (1970), for weakly polar kernels.

    Args:
        psi: ψ, a number or a function of the d coordinates.
        density: μ, a function of the coordinates; default: uniform.
        domain: pairs of ends, one per coordinate, to integrate over (by `scipy.integrate.nquad`).
        volume: instead of the domain, for constant ψ and uniform density: its volume.

    Raises:
        ValueError: as `kernel_exponent`, or there is no domain.

    >>> bool(np.isclose(spectrum_coefficient(-1.0, 1, domain=[(0, 1)]), 2 / np.pi**2))
    True
    """
    decay = float(kernel_exponent(dimension, singularity))
    d = int(dimension)
    ball = np.exp(d / 2 * np.log(np.pi) - math.lgamma(d / 2 + 1))
    c = singularity_constant(d, singularity)
    if volume is None:
        if domain is None or len(domain) != d:
            raise ValueError(f"give the domain, {d} pairs of ends, or for constant ψ its volume")
        volume = float(np.prod([high - low for low, high in domain]))
    if not callable(psi) and density is None:
        integral = volume * (abs(psi * c) / volume) ** (1 / decay)
        return float(((2 * np.pi) ** -d * ball * integral) ** decay)
    if domain is None:
        raise ValueError("a function ψ or a density needs a domain to integrate over")

    from scipy.integrate import nquad  # slow to import

    def integrand(*x: float) -> float:
        weight = 1 / volume if density is None else density(*x)
        strength = psi(*x) if callable(psi) else psi
        return (weight * abs(strength * c)) ** (1 / decay)

    integral, _ = nquad(integrand, domain)
    return float(((2 * np.pi) ** -d * ball * integral) ** decay)


def _singularity(value: float | Fraction) -> Fraction:
    exact = Fraction(value).limit_denominator(10**6)
    if exact <= 0 or (exact.denominator == 1 and exact.numerator % 2 == 0):
        raise ValueError(
            f"the exponent of a singularity is positive and no even integer, got {value}"
        )
    return exact
