"""Dual activations by one integral in mpmath: the inner one is elementary.

For a Gaussian pair ``u = σ_1 x``, ``v = σ_2 (c x + s y)`` the mean of ``φ(v)`` given ``x`` is a
function ``smoothed(m, t)`` of its mean ``m = σ_2 c x`` and deviation ``t = σ_2 s``; what is left is
integrated to 20 digits, for kinked functions too, in milliseconds.
"""

from collections.abc import Callable, Sequence
from typing import Any

import mpmath as mp

#: (φ(x), E[φ(m + t y)]), of a function or of its derivative.
Form = tuple[Callable[[Any], Any], Callable[[Any, Any], Any]]

_REACH = 16


def _power(p: int) -> Form:
    """max(x, 0)^p, by E[x₊^p] = m E[x₊^(p-1)] + (p - 1) t² E[x₊^(p-2)]."""

    def mean(m: Any, t: Any) -> Any:
        moments = [mp.ncdf(m / t), m * mp.ncdf(m / t) + t * mp.npdf(m / t)]
        for k in range(2, p + 1):
            moments.append(m * moments[k - 1] + (k - 1) * t * t * moments[k - 2])
        return moments[p]

    return (lambda x: mp.mpf(x > 0) * x**p), mean


def _sum(a: Any, f: Form, b: Any) -> Form:
    """a φ(x) + b φ(-x)."""
    return (
        lambda x: a * f[0](x) + b * f[0](-x),
        lambda m, t: a * f[1](m, t) + b * f[1](-m, t),
    )


def _scaled(a: Any, f: Form) -> Form:
    return (lambda x: a * f[0](x)), (lambda m, t: a * f[1](m, t))


def _zero() -> Form:
    return (lambda x: mp.mpf(0)), (lambda m, t: mp.mpf(0))


def _bell(degree: int) -> Form:
    """exp(-x²), and its derivative."""

    def mean(m: Any, t: Any) -> Any:
        width = 1 + 2 * t * t
        bell = mp.exp(-m * m / width) / mp.sqrt(width)
        return -2 * m / width * bell if degree else bell

    return (lambda x: mean(x, mp.mpf(0))), mean


def _gelu(degree: int) -> Form:
    def mean(m: Any, t: Any) -> Any:
        r = mp.sqrt(1 + t * t)
        density, share = mp.npdf(m / r), mp.ncdf(m / r)
        return share + m * density / r**3 if degree else m * share + t * t / r * density

    return (lambda x: mean(x, mp.mpf(0))), mean


def _polynomial(coefficients: Sequence[Any]) -> Form:
    """Σ a_n x^n, by E[x^n] = m E[x^(n-1)] + (n - 1) t² E[x^(n-2)]."""

    def mean(m: Any, t: Any) -> Any:
        moments = [mp.mpf(1), m]
        for n in range(2, len(coefficients)):
            moments.append(m * moments[n - 1] + (n - 1) * t * t * moments[n - 2])
        return mp.fsum(a * b for a, b in zip(coefficients, moments, strict=False))

    return (lambda x: mean(x, mp.mpf(0))), mean


def polynomial(coefficients: Sequence[Any]) -> tuple[Form, Form]:
    slope = [n * a for n, a in enumerate(coefficients)][1:] or [0]
    return _polynomial(coefficients), _polynomial(slope)


def hermite(coefficients: Sequence[float]) -> tuple[Form, Form]:
    """Σ a_k He_k(x) / √k!, by He_{k+1} = x He_k - k He_{k-1}."""
    series = [[mp.mpf(1)], [mp.mpf(0), mp.mpf(1)]]
    for k in range(1, len(coefficients)):
        shifted = [mp.mpf(0), *series[k]]
        for n, a in enumerate(series[k - 1]):
            shifted[n] -= k * a
        series.append(shifted)
    total = [mp.mpf(0)] * len(coefficients)
    for k, a in enumerate(coefficients):
        for n, b in enumerate(series[k]):
            total[n] += a * b / mp.sqrt(mp.factorial(k))
    return polynomial(total)


def relu_power(p: int) -> tuple[Form, Form]:
    return _power(p), _scaled(p, _power(p - 1)) if p else _zero()


def leaky_relu(slope: float) -> tuple[Form, Form]:
    return _sum(1, _power(1), -mp.mpf(slope)), _sum(1, _power(0), mp.mpf(slope))


_WAVE = mp.sin, lambda m, t: mp.exp(-t * t / 2) * mp.sin(m)
_COSINE = mp.cos, lambda m, t: mp.exp(-t * t / 2) * mp.cos(m)
_GROWTH = mp.exp, lambda m, t: mp.exp(m + t * t / 2)

#: The function and its derivative, by name.
FORMS: dict[str, tuple[Form, Form]] = {
    "abs": (_sum(1, _power(1), 1), _sum(1, _power(0), -1)),
    "cos": (_COSINE, _scaled(-1, _WAVE)),
    "erf": (
        (mp.erf, lambda m, t: mp.erf(m / mp.sqrt(1 + 2 * t * t))),
        _scaled(2 / mp.sqrt(mp.pi), _bell(0)),
    ),
    "exp": (_GROWTH, _GROWTH),
    "gaussian": (_bell(0), _bell(1)),
    "gelu": (_gelu(0), _gelu(1)),
    "identity": polynomial([0, 1]),
    "leaky_relu": leaky_relu(0.01),
    "relu": relu_power(1),
    "relu2": relu_power(2),
    "sign": (_sum(1, _power(0), -1), _zero()),
    "sin": (_WAVE, _COSINE),
    "square": polynomial([0, 0, 1]),
    "step": relu_power(0),
}


def expectation(form: Form, c: Any, var1: Any, var2: Any) -> Any:
    """``E[φ(u) φ(v)]`` at correlation ``c``, ±1 included, to 15 digits at least."""
    phi, smoothed = form
    with mp.workdps(20):
        c, s1, s2 = mp.mpf(c), mp.sqrt(mp.mpf(var1)), mp.sqrt(mp.mpf(var2))
        s = mp.sqrt((1 - c) * (1 + c))
        # The mean turns, near a kink at 0, on the scale s / c; slow functions on that of 1 / σ.
        turns = [k * s / abs(c) for k in (1, 4, 9)] if c and s < 0.3 else []
        ends = sorted({mp.mpf(0), mp.mpf(1), mp.mpf(4), mp.mpf(_REACH), *turns})
        inner = (lambda x: smoothed(s2 * c * x, s2 * s)) if s else (lambda x: phi(s2 * c * x))
        points = [-x for x in reversed(ends[1:])] + ends
        integrand = lambda x: mp.npdf(x) * phi(s1 * x) * inner(x)
        return mp.quad(integrand, points, method="gauss-legendre")


def along(form: Form, c: int, var1: Any, var2: Any) -> Any:
    """Derivative of `expectation` in ``var1`` where the correlation stays at ``c`` = ±1."""
    return mp.diff(lambda var: expectation(form, c, var, var2), var1, h=1e-6)


def mean(phi: Callable[[Any], Any], m: float, t: float) -> Any:
    """E[φ(m + t y)] by quadrature, for φ with a kink at 0."""
    return mp.quad(lambda y: mp.npdf(y) * phi(m + t * y), sorted([-12, -m / t, 0, 12]))
