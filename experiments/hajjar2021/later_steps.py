"""IP-LLR has a limit at every step, and networks approach it like n^-1/2

Theorem 2.4.1: f_2 (and, by Theorem A.8.4, every later f_t) has a finite limit. The theorem is for p
≥ 2; tanh has the same exponents as p = 1 and a first pass that is linear, so that with L = 3 f_1 →
0 and the network begins to learn in its second step. Known numbers are Monte Carlo integrals of the
limit's equations with 10^6 samples, f_1 of ReLU and ReLU² the closed form. With ReLU the sign of a
vanishing preactivation decides in layer L at t ≥ 1 (see `hybrid_zero.py`), which takes two terms of
the expansion in the width.
"""

import numpy as np
from matplotlib.figure import Figure

import tplimit as tp
from tplimit.output.figures import COLOURS, panels, power_lines
from tplimit.reproduction import Result, Row, average, exponent_row

from . import _setting

STEPS = 3
KNOWN_ERROR = "the known number is rounded, and of 10^6 samples whose error is not known"
# Name: depth, activation, η, known f_1 .. f_3 at A and B, and tolerances, at least their rounding.
CASES = {
    "tanh, L = 3": (
        3, "tanh", 1.0, ((0.0, 0.0), (-0.234, -0.233), (-0.055, -0.049)), (3e-3, 3e-3, 3e-3),
    ),
    "α ReLU², L = 2": (
        2, _setting.scaled_relu2, 0.5,
        ((8.6854e-4, 1.45851e-3), (8.2e-5, 5.7e-4), (1.13e-4, 6.4e-4)), (6e-5, 1.5e-5, 1.5e-5),
    ),
    "ReLU, L = 2": (
        2, "relu", 1.0,
        ((0.17813847, 0.21403052), (-0.0369, -0.0378), (-0.0120, -0.0122)), (3e-3, 1.5e-3, 1.5e-3),
    ),
}  # fmt: skip


def run(quick: bool) -> Result:
    p = _setting.named("ip_llr")
    widths = {64: 8, 256: 8} if quick else {128: 256, 256: 192, 512: 96, 1024: 48, 2048: 16}
    samples, replicates = (2**10, 2) if quick else (2**14, 6)
    rows, curves, distances, limits, widest = [], {}, {}, {}, {}
    for name, (depth, activation, eta, known, error) in list(CASES.items())[: 1 if quick else 3]:
        model = _setting.network(depth, activation)
        golden = np.array(known)
        runs = _setting.functions(p, model, eta, STEPS, tp.inf, replicates, samples=samples)
        limit = runs[:, 1:].mean(axis=0)
        limits[name] = runs[:, 1:]
        for t in range(STEPS):
            for i, point in enumerate(_setting.NAMES):
                claim = f"{name}: f_{t + 1}({point}), tp.train"
                note = KNOWN_ERROR if t else ""
                rows.append(Row(claim, golden[t, i], average(runs[:, t + 1, i]), error[t], note))
        finite = {
            n: _setting.functions(p, model, eta, STEPS, n, seeds, seed=n)[:, 1:]
            for n, seeds in widths.items()
        }
        distances[name] = {n: _setting.distance(f, limit) for n, f in finite.items()}
        claim = f"{name}: exponent of the distance to the limit"
        rows.append(exponent_row(claim, -0.5, distances[name], 0.2))
        curves[name] = (limit, {n: f.mean(axis=0) for n, f in finite.items()})
        widest[name] = finite[max(finite)]
        size = np.abs(limit[-1]).max()
        for i, point in enumerate(_setting.NAMES):
            claim = f"{name}: f_3({point}), width {max(finite)}, less the limit"
            gap = average(widest[name][:, -1, i]) - average(runs[:, -1, i])
            rows.append(Row(claim, 0.0, gap, tolerance=0.2 * size))

    def draw(figure: Figure) -> None:
        axes = panels(figure, 1 + len(curves))
        for a, (name, (limit, finite)) in zip(axes, curves.items(), strict=False):
            for i, colour in zip(range(2), COLOURS, strict=False):
                t = np.arange(STEPS + 1)
                start = lambda f, i=i: np.concatenate([[0.0], f[:, i]])
                for n, f in finite.items():
                    shade = 0.2 + 0.5 * list(finite).index(n) / len(finite)
                    a.plot(t, start(f), color=colour, lw=1.0, alpha=shade)
                label = f"f_t({_setting.NAMES[i]}), n = ∞"
                a.plot(t, start(limit), "o-", color=colour, lw=1.6, ms=4, label=label)
            a.set(xlabel="step t", ylabel="f_t", title=name, xticks=t)
            a.legend(frameon=False, fontsize=8)
        axes[0].plot([], [], color="#888888", lw=1.0, label="n = 128 … 2048 (mean)")
        axes[0].legend(frameon=False, fontsize=8)
        power_lines(axes[-1], distances, dict.fromkeys(distances, -0.5))
        axes[-1].set(ylabel="RMS over t = 1, 2, 3 and A, B", title="distance to the limit")

    return Result(
        rows,
        {name: {"limit": limit, "finite": finite} for name, (limit, finite) in curves.items()}
        | {"distances": distances, "limits": limits, "widest": widest},
        {"widths and seeds": widths, "samples": samples, "replicates": replicates,
         "η": {name: case[2] for name, case in CASES.items()}},
        draw,
    )  # fmt: skip
