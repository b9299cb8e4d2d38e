"""Where a function, its slope or its curvature jumps; found from values, not from code."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from tplimit.caching.store import compiled
from tplimit.errors import ActivationError

Function = Callable[[Any], Any]
Reals = NDArray[np.float64]

#: Functions are looked at on ±RANGE; kinks farther out hardly matter to variances below 20.
RANGE = 40.0
_CELLS = 2**14
#: Cells of each derivative that are looked into, and the most kinks that quadrature bears.
_CANDIDATES = 64
_MOST = 12
#: The function and its first derivatives, which may jump.
_DERIVATIVES = 4


@dataclass(frozen=True)
class Kinks:
    """Points where the function or one of its first three derivatives jumps.

    Attributes:
        points: in ascending order.
        order: the lowest derivative that jumps: 0 the function, 1 its slope, and so on; 4
            where none of them does.
    """

    points: tuple[float, ...]
    order: int


def derivative(function: Function, order: int) -> Function:
    """The derivative of a function that acts elementwise."""
    for _ in range(order):
        function = _slope(function)
    return function


def _slope(function: Function) -> Function:
    def slope(x: Any) -> Any:
        return jax.jvp(function, (x,), (jnp.ones_like(x),))[1]

    return slope


def find(name: str, function: Function) -> Kinks:
    """The kinks of a function, to round-off.

    In every cell of a grid the difference of the values at its ends is compared with that of the
    trapezoidal rule for the derivative. The cells where they differ most are halved down to
    round-off: what is then left of the difference is a jump.

    Raises:
        ActivationError: the function is no real function that acts elementwise; is not finite
            somewhere; grows so fast that its second moment is infinite; has an unbounded slope;
            or has too many kinks.
    """
    # Cells of irrational ends: 0 and other round numbers are inside of a cell.
    ends = np.linspace(-RANGE, RANGE, _CELLS + 1) + 1e-3 / np.pi
    with jax.enable_x64(True):
        run = compiled(lambda x: [derivative(function, k)(x) for k in range(_DERIVATIVES + 1)])
        values = _values(name, run, ends)
        # Order and company of an element do not matter.
        third = len(ends) // 3
        some = _values(name, run, ends[:third][::-1])[0][::-1]
        if not np.allclose(some, values[0][:third], equal_nan=True):
            raise _not_elementwise(name)
        _check_growth(name, values[0], ends)
        found: list[tuple[float, int]] = []
        for order in range(_DERIVATIVES):
            found += [(x, order) for x in _jumps(name, run, ends, values, order)]
    # The same point is found in several derivatives.
    points: list[float] = []
    for x in sorted(x for x, _ in found):
        if not points or x - points[-1] > 1e-9:
            points.append(x)
    if len(points) > _MOST:
        raise ActivationError(
            f"the activation has {len(points)} or more kinks or jumps between ±{RANGE:g}, "
            f"quadrature bears {_MOST}",
            operation=f"activation {name}",
            advice="Take a function with fewer, or estimate its kernels from particles.",
        )
    return Kinks(tuple(points), min((order for _, order in found), default=_DERIVATIVES))


def _values(name: str, run: Callable[[Any], Any], x: Reals) -> list[Reals]:
    """The function and its derivatives at ``x``."""
    try:
        values = [np.asarray(v) for v in run(x)]
    except (TypeError, ValueError) as error:
        raise ActivationError(
            f"the activation is no function of one real array that JAX can differentiate: {error}",
            operation=f"activation {name}",
        ) from error
    if any(v.shape != x.shape or np.iscomplexobj(v) for v in values):
        raise _not_elementwise(name)
    return [v.astype(np.float64) for v in values]


def _not_elementwise(name: str) -> ActivationError:
    return ActivationError(
        "the activation does not act elementwise on real numbers", operation=f"activation {name}"
    )


def _check_growth(name: str, values: Reals, x: Reals) -> None:
    bad = ~np.isfinite(values)
    if bad.any():
        raise ActivationError(
            f"the activation is not finite at {x[bad][np.argmin(np.abs(x[bad]))]:.3g}, "
            "so its second moment is not",
            operation=f"activation {name}",
        )
    with np.errstate(divide="ignore"):
        exponent = 2 * np.log(np.abs(values)) - x**2 / 2
    if max(exponent[0], exponent[-1]) > -np.log(1e12):
        raise ActivationError(
            "the activation grows too fast: its second moment under N(0, 1) is infinite",
            operation=f"activation {name}",
        )


def _jumps(
    name: str, run: Callable[[Any], Any], ends: Reals, values: list[Reals], order: int
) -> list[float]:
    f, slope = values[order], values[order + 1]
    step = ends[1] - ends[0]
    defect = np.abs(f[1:] - f[:-1] - step / 2 * (slope[1:] + slope[:-1]))
    # Derivatives may be infinite or NaN in single points: they show as kinks of the one before.
    defect = np.where(np.isfinite(defect), defect, 0)
    cells = np.argsort(defect)[-_CANDIDATES:]
    a, b = ends[cells], ends[cells + 1]
    widths = []
    for halving in range(45):
        middle = (a + b) / 2
        at = _values(name, run, np.concatenate([a, middle, b]))
        (fa, fm, fb), (ga, gm, gb) = (np.split(at[order + k], 3) for k in range(2))
        half = (b - a) / 4
        with np.errstate(invalid="ignore"):
            left = np.abs(fm - fa - half * (gm + ga))
            right = np.abs(fb - fm - half * (gb + gm))
        if halving in (25, 35):
            widths.append(np.abs(fb - fa))
        go_left = left > right
        a, b = np.where(go_left, a, middle), np.where(go_left, middle, b)
    # Differences at two widths, 1e3 apart: a jump keeps its size, what is continuous shrinks.
    before, after = widths
    size = 1e-7 * (np.abs(fa) + np.abs(fb)) + 1e-9
    if order < 2 and (after > 8 * np.maximum(before, size)).any():
        where = float(a[np.argmax(after / np.maximum(before, size))])
        raise ActivationError(
            f"the activation or its slope is unbounded near {where:.3g}",
            operation=f"activation {name}",
            advice="Its tangent kernel need not exist, and quadrature would not see it.",
        )
    jumps = (after > size) & (after > before / 2)
    return [_rounded(x) for x in np.unique((a + b)[jumps] / 2)]


def _rounded(x: float) -> float:
    """0 and short decimals exactly, where bisection ends beside them."""
    near = round(float(x), 9)
    return near + 0.0 if abs(near - x) < 1e-11 else float(x)  # no -0.0
