"""Without the initial hidden weights: the same limit for p ≥ 2, another one for ReLU

Theorem 2.4.2: HPZ removes the initial weights of layers 2 .. L after the first step of muP. For
p ≥ 2 its limit is that of IP-LLR at every step. ReLU lies outside the theorem, and there it fails:
on the units whose first preactivation was negative, h^L_1 vanishes in the limit, so that at finite
width the sign of the vanishing term n^-1/2 W x of the initial weights decides whether the unit
passes a gradient. Half of them do in IP-LLR and none in HPZ. With L = 2 and η = 1 the limits are
f_2 = (-0.0369, -0.0378) against (0, 0), although f_1 is the same.
"""

import numpy as np
from matplotlib.figure import Figure

import tplimit as tp
from tplimit.output.figures import COLOURS, panels
from tplimit.reproduction import Result, Row, at_least, average

from . import _setting

STEPS = 3
RELU = np.array([[0.17813847, 0.21403052], [-0.0369, -0.0378]])
NAMES = {"ip_llr": "IP-LLR", "hpz": "HPZ"}


def run(quick: bool) -> Result:
    samples, replicates = (2**11 if quick else 2**13), 4
    widths = {64: 8, 256: 8} if quick else {256: 64, 512: 48, 1024: 24, 2048: 12, 4096: 6}
    model = _setting.network(2, _setting.scaled_relu2)
    rows = []
    # The same particles in both. What is left is the Monte Carlo error of f_0 in muP, an average of
    # particles there and exactly 0 in IP-LLR: given the same χ_0, all f_t agree to round-off.
    first, second = (
        _setting.functions(
            _setting.named(name), model, 0.5, STEPS, tp.inf, replicates, samples=samples
        )
        for name in NAMES
    )
    size = np.abs(first).max()
    for t in range(1, STEPS + 1):
        claim = f"α ReLU²: f_{t} of HPZ and IP-LLR, n = ∞, relative difference"
        apart = _setting.largest((first[:, t] - second[:, t]) / size)
        rows.append(Row(claim, 0, apart, tolerance=2e-3))

    model, finite = _setting.network(2, "relu"), {}
    for name, title in NAMES.items():
        p = _setting.named(name)
        finite[title] = {
            n: _setting.functions(p, model, 1.0, 2, n, seeds, seed=n)[:, 1:]
            for n, seeds in widths.items()
        }
    n = max(widths)
    for t in (1, 2):
        # Both start from the same normals.
        llr, hybrid = (f[n][:, t - 1].mean(axis=1) for f in finite.values())
        claim = f"ReLU: |f_{t}(HPZ) - f_{t}(IP-LLR)|, mean over A and B, width {n}"
        apart = abs(average(hybrid - llr))
        if t == 1:
            rows.append(Row(claim, 0, apart, tolerance=0.02, note=f"times √n, {by_width(finite)}"))
        else:
            rows.append(Row(claim, at_least(0.02), apart, note="outside Thm 2.4.2"))
    for name, known in (("IP-LLR", RELU[1]), ("HPZ", np.zeros(2))):
        wide = finite[name][n][:, 1]
        for i, point in enumerate(_setting.NAMES):
            claim = f"ReLU: f_2({point}) of {name}, width {n}"
            rows.append(Row(claim, known[i], average(wide[:, i]), tolerance=6e-3))

    def draw(figure: Figure) -> None:
        for axes, t in zip(panels(figure, 2), (1, 2), strict=True):
            for colour, (name, runs) in zip(COLOURS, finite.items(), strict=False):
                known = RELU[t - 1] if t == 1 or name == "IP-LLR" else np.zeros(2)
                for i, marker in enumerate("os"):
                    x = np.array(list(runs), float)
                    values = [f[:, t - 1, i] for f in runs.values()]
                    bars = [2 * v.std(ddof=1) / len(v) ** 0.5 for v in values]
                    label = f"{name}, f_{t}({_setting.NAMES[i]})"
                    shift = 1.03 if name == "HPZ" else 1.0
                    axes.errorbar(
                        x * shift, [v.mean() for v in values], bars, fmt=marker, ms=4.5,
                        color=colour, label=label,
                    )  # fmt: skip
                    axes.axhline(known[i], color=colour, lw=1.0, ls=(0, (4, 3)))
            axes.set(xscale="log", xlabel="width n", ylabel=f"f_{t}", title=f"ReLU, L = 2, t = {t}")
            axes.set_xticks(list(widths), [str(k) for k in widths])
            axes.minorticks_off()
            axes.legend(frameon=False, fontsize=8)

    return Result(
        rows,
        {"α ReLU², n = ∞": {"IP-LLR": first, "HPZ": second}, "ReLU": finite},
        {"L": 2, "η": "1 (ReLU), 0.5 (α ReLU²)", "widths and seeds": widths, "samples": samples,
         "replicates": replicates},
        draw,
    )  # fmt: skip


def by_width(finite: dict[str, dict[int, np.ndarray]]) -> str:
    """√n times the mean difference of f_1 at every width: one number if it falls like n^-1/2."""
    found = []
    for n, llr in finite["IP-LLR"].items():
        gap = n**0.5 * (finite["HPZ"][n] - llr)[:, 0].mean(axis=1)
        found.append(f"n = {n}: {gap.mean():.2g} ± {_setting.standard_error(gap):.1g}")
    return ", ".join(found)
