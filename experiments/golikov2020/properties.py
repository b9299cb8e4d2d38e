"""Which properties of finite networks each limit keeps, derived from its exponents.

A network of finite width has (1) initial logits that are finite and not zero, (2) a finite tangent
kernel, (3) a kernel that is not stationary, (4) initial logits comparable with the kernel, and so
with the later logits. In a limit these are (1) exponent 0 of $f_0$, (2) of $K_0$, (3) of the
relative change of the kernel, and (4) equal exponents of $f_0$ and $K_0$. Claims: MF, NTK and
sym-default keep more of them than the other ten regions, none keeps all, the corrected mean-field
limit does (G-DS, abstract). The exponents are fitted to networks; one counts as 0, or as not 0,
where its 95 % interval lies within, or outside of, half of the smallest predicted one of its kind
that is not 0. Whether sym-default keeps (4) is not stated in the source; it does not.
"""

from collections.abc import Mapping

import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

from tplimit.commands.data import random_points
from tplimit.output.figures import panels
from tplimit.parameterizations import golikov, ic_mean_field
from tplimit.reproduction import Measurement, Result, Row

from . import _regions
from ._regions import REGIONS

RATE = 0.5
SEEDS = {2**12: 512, 2**16: 128}
QUICK = {2**8: 256, 2**11: 64}
#: Half of the smallest exponents that are not 0: of f_0, K_0, the change of K, and f_0 / K_0.
HALF_STEPS = {"f_0": 1 / 12, "K_0": 1 / 12, "dK": 1 / 6, "ratio": 1 / 8}
STATED = {  # the source's
    "MF": "no, yes, yes, no",
    "NTK": "yes, yes, no, yes",
    "sym-default": "yes, no, yes",
    "IC-MF": "yes, yes, yes, yes",
}


def run(quick: bool) -> Result:
    seeds = QUICK if quick else SEEDS
    regions = ("MF",) if quick else tuple(REGIONS)
    data = random_points(24, 16, inputs=10)
    points = tuple(jnp.asarray(a) for a in (data.x, data.y, data.x_test))
    model = _regions.network(10)
    scalings = {name: golikov(*REGIONS[name]) for name in regions} | {"IC-MF": ic_mean_field}
    fits, fitted_to, kept = {}, {}, {}
    for name, p in scalings.items():
        sizes = _regions.sizes_by_width(p, model, points, RATE, seeds)
        fits[name], fitted_to[name] = _regions.fitted(sizes)
        kept[name] = properties(fits[name])
    rows = [
        Row(f"{name}: keeps (1), (2), ..", text, ", ".join(kept[name][: text.count(",") + 1]))
        for name, text in STATED.items()
        if name in kept
    ]
    if not quick:
        rows += _rows(kept, fits)
    setting = {
        "widths": list(seeds),
        "seeds": list(seeds.values()),
        "points": "24 random ones in dimension 10 with random labels, 16 to observe",
        "η": RATE,
        "step": "0 to 1",
    }
    values = {"points": fitted_to, "kept": kept}
    return Result(rows, values, setting, lambda figure: draw(figure, fits, kept))


def is_zero(kind: str, exponent: Measurement) -> str:
    """Whether an exponent is 0: "yes", "no", or "?" where its interval does not tell."""
    (low, high), half = exponent.interval(), HALF_STEPS[kind]
    if -half < low and high < half:
        return "yes"
    return "no" if high < -half or half < low else "?"


def properties(fit: Mapping[str, Measurement]) -> list[str]:
    """The four answers."""
    single = [is_zero(kind, fit[kind]) for kind in ("f_0", "K_0", "dK")]
    return [*single, is_zero("ratio", fit["f_0"] - fit["K_0"])]


def signature(fit: Mapping[str, Measurement]) -> tuple[str, ...]:
    """Signs of the exponents of f_0 and K_0, and whether 2s is 0, -1 or between."""
    name = {"yes": "0", "?": "?"}
    signs = [name.get(is_zero(k, fit[k]), f"{np.sign(fit[k].value):+.0f}") for k in ("f_0", "K_0")]
    nearest = min((0.0, -0.4, -1.0), key=lambda value: abs(fit["dK"].value - value))
    return (*signs, f"{nearest:g}")


def _rows(
    kept: Mapping[str, list[str]], fits: Mapping[str, Mapping[str, Measurement]]
) -> list[Row]:
    regions = [name for name in kept if name != "IC-MF"]
    count = lambda name, of: kept[name][:of].count("yes")
    named = lambda chosen: ", ".join(chosen) or "none"
    unknown = [name for name in kept if "?" in kept[name]]
    return [
        Row("exponents that leave a property open", "none", named(unknown)),
        Row("regions that keep all four", "none", named(n for n in regions if count(n, 4) == 4)),
        Row(
            "regions that keep two of (1), (2), (3) or more",
            "MF, sym-default, NTK",
            named(n for n in regions if count(n, 3) >= 2),
        ),
        Row(
            "regions with different signs of e_0, e_K and orders of 2s",
            13,
            len({signature(fits[n]) for n in regions}),
            note="each limit model corresponds to one combination of properties",
        ),
    ]


def draw(
    figure: Figure, fits: Mapping[str, Mapping[str, Measurement]], kept: Mapping[str, list[str]]
) -> None:
    (axes,) = panels(figure, 1, (6.4, 4.6))
    names = list(kept)
    value = {"yes": 1.0, "no": 0.0, "?": 0.5}
    cells = np.array([[value[a] for a in kept[name]] for name in names])
    axes.imshow(cells, cmap="Blues", vmin=-0.15, vmax=1.9, aspect="auto")
    for i, name in enumerate(names):
        fit = {k: m.value for k, m in fits[name].items()}
        shown = [fit["f_0"], fit["K_0"], fit["dK"], fit["f_0"] - fit["K_0"]]
        for j, (number, answer) in enumerate(zip(shown, kept[name], strict=True)):
            weight = "bold" if answer == "yes" else "normal"
            axes.text(j, i, f"{number:+.2f}", ha="center", va="center", fontsize=8, weight=weight)
    titles = (
        "(1) $f_0$\nfinite, not 0", "(2) $K_0$\nfinite", "(3) kernel\nevolves",
        "(4) $f_0$ and $K_0$\ncomparable",
    )  # fmt: skip
    axes.set_xticks(range(4), titles, fontsize=8)
    axes.set_yticks(range(len(names)), names, fontsize=8)
    axes.xaxis.tick_top()
    axes.grid(False)
    axes.set_xlabel("fitted exponent that has to be 0; dark: kept", fontsize=8)
