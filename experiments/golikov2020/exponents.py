r"""Exponents of the thirteen regions: counted, found by the interpreter, and measured.

The exponents of the initial logits $f_0$ ($e_0$), of the first increments $\Delta f_1$ and the
tangent kernel $K_0$ ($e_K$), and of the relative change of the kernel in the first step ($2s$), at
one point of each region. `tp.classify` counts them; `tp.leading` of the first training step finds
them in the program, where $2s$ is that of the squared relative increments of the output weights;
finite networks are fitted. The rows of $f_0$ are not independent: all regions have the same
draws of the weights, in units of the reference network. Source: G-DS, its conditions of dynamical
stability; the test points are those of its public implementation, but for the triangle, which is
at $q_\sigma = -2/3$ in place of $-0.66$.
"""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

import tplimit as tp
from tplimit.commands.data import random_points
from tplimit.output.figures import COLOURS, panels
from tplimit.parameterizations import golikov
from tplimit.reproduction import Result, Row, exponent_row

from . import _regions
from ._regions import REGIONS

RATE = 0.5  # large, so that the change of the kernel stands out against its fluctuations
SEEDS = {2**12: 1024, 2**14: 512, 2**16: 256}
QUICK = {2**8: 64, 2**10: 32}
SAMPLES = 2**14  # of fewer it is not certain that the first increments do not vanish
#: Quantity: what it is called, its exponent in `tp.classify` and a factor, tolerance.
QUANTITIES = {
    "f_0": ("initial logits", "e0", 1, 0.05),
    "df_1": ("first increments of the logits", "eK", 1, 0.05),
    "K_0": ("initial kernel", "eK", 1, 0.05),
    "dK": ("relative change of the kernel", "s", 2, 0.15),
}
GUIDE = "#8a8a8a"
#: Where the names of crowded points go in the picture: offset and alignment.
LABELS = {
    "post-NTK": ((-5, -3), "right"),
    "post-MF–NTK": ((-5, -3), "right"),
    "MF–NTK": ((-4, 5), "right"),
    "triangle": ((1, -10), "left"),
    "NTK–sym-def": ((-4, -9), "right"),
    "NTK": ((-5, -9), "right"),
}
OUTSIDE = {"diverging": (1, 1), "stagnating": (-1, -1)}


def run(quick: bool) -> Result:
    seeds = QUICK if quick else SEEDS
    names = ("NTK", "triangle") if quick else tuple(REGIONS)
    data = random_points(24, 16, inputs=10)
    x, y, z = (jnp.asarray(a) for a in (data.x, data.y, data.x_test))
    model = _regions.network(10)
    rows, fits, points, counted = [], {}, {}, {}
    for name in names:
        p = golikov(*REGIONS[name])
        regime = tp.classify(p, model)
        rows.append(Row(f"{name}: region, by counting", name, regime.name))
        counted[name] = {k: k_factor(regime.exponents, k) for k in QUANTITIES}
        found = _regions.exponents_at_infinity(p, model, (x[:4], y[:4], z[:4]), RATE, SAMPLES)
        rows.append(
            Row(
                f"{name}: exponents of f_0, Δf_1, K_0, (δa/a)²",
                ", ".join(str(k_factor(regime.exponents, k)) for k in QUANTITIES),
                ", ".join(str(found[k]) for k in ("f_0", "df_1", "K_0", "speed")),
                note="counted, and found by the interpreter",
            )
        )
        sizes = _regions.sizes_by_width(p, model, (x, y, z), RATE, seeds)
        fits[name], points[name] = _regions.fitted(sizes)
        for k, (what, _, _, tolerance) in QUANTITIES.items():
            known = float(counted[name][k])
            rows.append(exponent_row(f"{name}: {what}", known, sizes[k], tolerance))
    for name, point in OUTSIDE.items():
        rows.append(Row(f"{point}: region", name, tp.classify(golikov(*point), model).name))
    more, points["default"] = _default(model, (x, y, z), seeds)
    rows += more
    setting = {
        "widths": list(seeds),
        "seeds": list(seeds.values()),
        "points": "24 random ones in dimension 10 with random labels, 16 to observe",
        "activation": f"leaky ReLU {_regions.LEAK}",
        "η": RATE,
        "step": "0 to 1",
    }
    values = {"points": points, "counted": {n: _floats(c) for n, c in counted.items()}}
    return Result(rows, values, setting, lambda figure: draw(figure, fits, counted))


def k_factor(exponents: Mapping[str, Any], quantity: str) -> Any:
    """The counted exponent of a quantity."""
    _, which, factor, _ = QUANTITIES[quantity]
    return factor * exponents[which]


def _default(model: Any, data: tuple[Any, ...], seeds: Mapping[int, int]) -> tuple[list[Row], Any]:
    """The scaling of ordinary frameworks: same learning rate for both layers, any width."""
    p = golikov(-0.5, q_a=1, q_w=0)
    sizes = _regions.sizes_by_width(p, model, data, RATE, seeds)
    _, points = _regions.fitted(sizes)
    rows = [Row("default: counted as", "unstable", tp.classify(p, model).name)]
    for k, expected in (("f_0", 0.0), ("df_1", 1.0)):
        rows.append(exponent_row(f"default: {QUANTITIES[k][0]}", expected, sizes[k], 0.05))
    return rows, points


def _floats(values: Mapping[str, Any]) -> dict[str, float]:
    return {k: float(v) for k, v in values.items()}


def draw(figure: Figure, fits: Mapping[str, Any], counted: Mapping[str, Any]) -> None:
    plane, exponents = panels(figure, 2, (8.6, 3.9))
    draw_plane(plane)
    names = list(counted)[::-1]
    exponents.plot([], [], "|", color=GUIDE, ms=8, mew=1.6, label="predicted")
    for i, (k, (what, *_)) in enumerate(QUANTITIES.items()):
        height = np.arange(len(names)) + 0.27 - 0.18 * i
        slopes = [fits[name][k].value for name in names]
        bars = np.abs(np.array([fits[name][k].interval() for name in names]).T - slopes)
        predicted = [float(counted[name][k]) for name in names]
        exponents.plot(predicted, height, "|", color=GUIDE, ms=8, mew=1.6)
        exponents.errorbar(
            slopes, height, xerr=bars, fmt="o", ms=3, color=COLOURS[i], elinewidth=1.0,
            label=what,
        )  # fmt: skip
    exponents.set_yticks(range(len(names)), names, fontsize=8)
    exponents.set(xlabel="exponent of the width (bars: 95 % intervals)")
    exponents.legend(
        frameon=False, fontsize=7, loc="lower center", bbox_to_anchor=(0.42, 1.0), ncols=2
    )


def draw_plane(axes: Axes) -> None:
    """The regions in the plane (q_σ, q̃), and the test points."""
    q = np.array([-1.75, 0.8])
    axes.fill_between(q, -q - 0.5, -q, color="#f0f0f0", zorder=0)
    lines = {"s = 0": -q, "s = −1/2": -q - 0.5, "$e_K$ = 0": -2 * q - 1}
    for (label, values), style in zip(lines.items(), ("-", "--", ":"), strict=True):
        axes.plot(q, values, style, color="#555555", lw=1.1, label=label)
    axes.axvline(-0.5, color="#555555", lw=1.1, ls="-.", label="$e_0$ = 0")
    for name, (q_sigma, q_tilde) in REGIONS.items():
        point = float(q_sigma), float(q_tilde)
        axes.plot(*point, "o", ms=4.5, color=COLOURS[name in ("MF", "NTK", "sym-default")])
        offset, side = LABELS.get(name, ((5, 4), "left"))
        axes.annotate(name, point, offset, textcoords="offset points", ha=side, fontsize=7)
    axes.set(xlim=q, ylim=(-0.9, 1.75), xlabel="$q_\\sigma$", ylabel="$\\tilde q$")
    axes.set_xticks([-1.5, -1, -0.5, 0])
    axes.set_title("shaded: dynamically stable", fontsize=8)
    axes.legend(frameon=False, fontsize=7, loc="upper right")
