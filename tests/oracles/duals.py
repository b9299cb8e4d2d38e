"""Expectations over a Gaussian pair: by mpmath, adaptively, and quickly by NumPy on a fine grid."""

from collections.abc import Callable, Sequence
from typing import Any

import mpmath as mp
import numpy as np

Function = Callable[[Any], Any]

#: Activations and their derivatives in mpmath, and where these are cut.
FUNCTIONS: dict[str, tuple[Function, Function, Sequence[float]]] = {
    "abs": (abs, mp.sign, (0,)),
    "cos": (mp.cos, lambda x: -mp.sin(x), ()),
    "elu": (lambda x: x if x > 0 else mp.expm1(x), lambda x: 1 if x > 0 else mp.exp(x), (0,)),
    "erf": (mp.erf, lambda x: 2 / mp.sqrt(mp.pi) * mp.exp(-x * x), ()),
    "exp": (mp.exp, mp.exp, ()),
    "gaussian": (lambda x: mp.exp(-x * x), lambda x: -2 * x * mp.exp(-x * x), ()),
    "gelu": (lambda x: x * mp.ncdf(x), lambda x: mp.ncdf(x) + x * mp.npdf(x), ()),
    "hard_tanh": (lambda x: min(max(x, -1), 1), lambda x: int(abs(x) < 1), (-1, 1)),
    "identity": (lambda x: x, lambda x: mp.mpf(1), ()),
    "leaky_relu": (
        lambda x: x if x > 0 else mp.mpf("0.01") * x,
        lambda x: 1 if x > 0 else mp.mpf("0.01"),
        (0,),
    ),
    "relu": (lambda x: max(x, 0), lambda x: int(x > 0), (0,)),
    "relu2": (lambda x: max(x, 0) ** 2, lambda x: 2 * max(x, 0), (0,)),
    "sigmoid": (lambda x: 1 / (1 + mp.exp(-x)), lambda x: mp.sech(x / 2) ** 2 / 4, ()),
    "sign": (mp.sign, lambda x: 0, (0,)),
    "sin": (mp.sin, mp.cos, ()),
    "square": (lambda x: x * x, lambda x: 2 * x, ()),
    "step": (lambda x: int(x > 0), lambda x: 0, (0,)),
    "tanh": (mp.tanh, lambda x: mp.sech(x) ** 2, ()),
}
_REACH = 9


def expectation(name: str, cov: float, var1: float, var2: float, order: int = 0) -> float:
    """``E[φ(u) φ(v)]``, or of the derivatives for ``order`` 1."""
    f, cuts = FUNCTIONS[name][order], FUNCTIONS[name][2]
    s1, s2 = mp.sqrt(var1), mp.sqrt(var2)
    c = mp.mpf(cov) / (s1 * s2)
    s = mp.sqrt(1 - c * c)

    def panels(points: Sequence[Any]) -> list[Any]:
        inside = sorted({min(max(p, -_REACH), _REACH) for p in points})
        return [-_REACH, *(p for p in inside if abs(p) < _REACH), _REACH]

    def integral(g: Function, points: Sequence[Any]) -> Any:
        return mp.quad(lambda z: mp.npdf(z) * g(z), panels(points), method="gauss-legendre")

    def inner(x: Any) -> Any:
        if s == 0:
            return f(s2 * c * x)
        return integral(
            lambda y: f(s2 * (c * x + s * y)), [0, *((t / s2 - c * x) / s for t in cuts)]
        )

    layers = [(t / s2 + k * s) / c for t in cuts for k in (-6, -2, 0, 2, 6)] if c else []
    return float(integral(lambda x: f(s1 * x) * inner(x), [0, *(t / s1 for t in cuts), *layers]))


def on_a_grid(
    f: Callable[[Any], Any],
    cuts: Sequence[float],
    cov: float,
    var1: float,
    var2: float,
    nodes: int = 60,
) -> float:
    """``E[f(u) f(v)]`` by Gauss-Legendre rules between the lines where u or v meets a cut."""
    s1, s2 = np.sqrt([var1, var2])
    c = cov / (s1 * s2)
    s = np.sqrt(1 - c * c)
    x0, w0 = np.polynomial.legendre.leggauss(nodes)

    def rule(points: Sequence[Any]) -> tuple[Any, Any]:
        ends = np.sort(np.clip(np.array([-_REACH, 0, _REACH, *points]), -_REACH, _REACH))
        half = np.diff(ends)[:, None] / 2
        z = (ends[:-1, None] + half * (1 + x0)).ravel()
        return z, (half * w0).ravel() * np.exp(-z * z / 2) / np.sqrt(2 * np.pi)

    layers = [(t / s2 + k * s) / c for t in cuts for k in (-9, -4, -1, 1, 4, 9)]
    x, wx = rule([*(t / s1 for t in cuts), *layers])
    rules = [rule([(t / s2 - c * a) / s for t in cuts]) for a in x]
    y, wy = (np.array(a) for a in zip(*rules, strict=True))
    inner = np.sum(wy * np.asarray(f(s2 * (c * x[:, None] + s * y))), axis=1)
    return float(np.sum(wx * np.asarray(f(s1 * x)) * inner))
