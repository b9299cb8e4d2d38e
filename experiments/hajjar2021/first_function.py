"""The function after one step of IP-LLR has a closed form

Theorem 2.4.1 and Lemmas A.8.10, A.8.11: with large initial learning rates f_0 → 0, and f_1 tends to
a number that is neither 0 nor infinite. It is a one-dimensional integral (`_closed_form.py`, by
adaptive quadrature). Compared: the limit by `tp.train`, from particles, and finite networks, whose
mean approaches it with a bias of order n^-1/2, which the fit f + b n^-1/2 extrapolates; f_1 of
ReLU² at width 256 is more than twice its limit, so that there the fit has a term in n^-1 too.
"""

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

import tplimit as tp
from tplimit.output.figures import COLOURS, panels
from tplimit.reproduction import Measurement, Result, Row, average, combination

from . import _setting
from ._closed_form import first_function

# Depth, activation, η, p, α, powers of the fit, tolerance of its intercept.
CASES = {
    "ReLU, L = 2": (2, "relu", 1.0, 1, 1.0, (0, 0.5), 0.1),
    "ReLU, L = 3": (3, "relu", 2.0, 1, 1.0, (0, 0.5), 0.1),
    "α ReLU², L = 2": (
        2,
        _setting.scaled_relu2,
        0.5,
        2,
        (2 / 3) ** 0.5 / 2,
        (0, 0.5, 1),
        0.4,
    ),
}
WIDTHS = {256: 512, 512: 384, 1024: 160, 2048: 64}
MORE = {256: 2048, 512: 1024, 1024: 384, 2048: 96}
# Averages of squares over particles are skewed: many replicates, or their mean is low by chance.
REPLICATES, MORE_REPLICATES = 8, 32


def run(quick: bool) -> Result:
    p = _setting.named("ip_llr")
    samples = 2**11 if quick else 2**15
    rows, finite, exact, limits = [], {}, {}, {}
    for name, case in list(CASES.items())[: 1 if quick else 3]:
        depth, activation, eta, degree, alpha, powers, near = case
        widths = {64: 16, 256: 16} if quick else WIDTHS if degree == 1 else MORE
        replicates = 4 if quick else REPLICATES if degree == 1 else MORE_REPLICATES
        model = _setting.network(depth, activation)
        start = (_setting.INPUTS[0], _setting.TARGETS[0])
        known = [first_function(*start, x, eta, depth, degree, alpha) for x in _setting.POINTS]
        runs = _setting.functions(p, model, eta, 1, tp.inf, replicates, samples=samples)[:, 1]
        wide = {
            n: _setting.functions(p, model, eta, 1, n, seeds, seed=n)[:, 1]
            for n, seeds in widths.items()
        }
        mean, stderr = runs.mean(axis=0), _setting.standard_error(runs)
        for i, point in enumerate(_setting.NAMES):
            claim = f"{name}: f_1({point})"
            value = known[i]
            found = average(runs[:, i])
            rows.append(Row(f"{claim}, tp.train", value, found, 0.02 * value))
            found = extrapolate({n: average(f[:, i]) for n, f in wide.items()}, powers)
            rows.append(Row(f"{claim}, networks, n → ∞", value, found, near * value))
        finite[name], exact[name], limits[name] = wide, known, (mean, stderr)

    def draw(figure: Figure) -> None:
        for axes, name in zip(panels(figure, len(finite)), finite, strict=True):
            for i, colour in zip(range(2), COLOURS, strict=False):
                x = np.array(list(finite[name]), float) ** -0.5
                values = [runs[:, i] for runs in finite[name].values()]
                bars = [2 * v.std(ddof=1) / len(v) ** 0.5 for v in values]
                label = f"f_1({_setting.NAMES[i]})"
                axes.errorbar(
                    x, [v.mean() for v in values], bars, fmt="o", ms=4.5, color=colour, label=label
                )
                mean, stderr = limits[name]
                axes.errorbar([0], mean[i], 2 * stderr[i], fmt="D", ms=6, mfc="w", color=colour)
                axes.axhline(exact[name][i], color=colour, lw=1.1, ls=(0, (4, 3)))
            axes.plot([], [], "D", mfc="w", color="#222222", label="tp.train, n = ∞")
            axes.plot([], [], color="#222222", lw=1.1, ls=(0, (4, 3)), label="closed form")
            axes.set(xlabel="$n^{-1/2}$", ylabel="$f_1$", title=name)
            axes.set_xlim(left=-0.002)
            axes.legend(frameon=False, fontsize=8)

    return Result(
        rows,
        {"closed form": exact,
            "tp.train": limits,
            "networks": {k: summary(v) for k, v in finite.items()},
        },
        {"widths and seeds": WIDTHS, "for ReLU²": MORE, "samples": samples,
         "replicates": "4" if quick else f"{REPLICATES}, for ReLU² {MORE_REPLICATES}",
         "η": {name: case[2] for name, case in CASES.items()}},
        draw,
    )  # fmt: skip


def summary(runs: dict[int, np.ndarray]) -> dict[int, dict[str, np.ndarray]]:
    return {
        n: {"mean": r.mean(axis=0), "stderr": _setting.standard_error(r)} for n, r in runs.items()
    }


def extrapolate(means: dict[int, Measurement], powers: Sequence[float]) -> Measurement:
    """Intercept of a fit of terms n^-power over all widths.

    The fit takes variances to fall as 1/n, whatever they are: weights from the data would favour
    the means that lie low, for the distribution is skewed.
    """
    n = np.array(list(means), float)
    precision = n * np.array([m.degrees + 1 for m in means.values()])
    design = np.stack([n**-power for power in powers], axis=1)
    weights = np.linalg.solve(design.T @ (precision[:, None] * design), design.T * precision)[0]
    return combination(weights, list(means.values()))
