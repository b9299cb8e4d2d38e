"""Naive integrable parameterizations are trivial with three or more hidden layers

Proposition 2.3.1: with weights of size 1/n, learning rates of the mean-field order n, n², n and
φ(0) = 0, f_t → 0 for every t as soon as L ≥ 3. With L = 1 the parameterization is muP, and with L =
2 it learns. Counted (`tp.classify`), evaluated at infinite width, and measured: |f_t - f_0| falls
as a power of the width for L ≥ 3, and the first updates contribute n^-1, n^-1/2, n^-1, n^-2 to the
four layers of a network with L = 3 (the exponents that `tp.leading` finds).
"""

import numpy as np
from matplotlib.figure import Figure

import tplimit as tp
from tplimit.output.figures import panels, power_lines
from tplimit.reproduction import Result, Row, at_least, exponent_row

from . import _setting

DEPTHS = (1, 2, 3, 4)
STEPS, ETA = 3, 0.5


def run(quick: bool) -> Result:
    p, mup = _setting.named("naive_ip"), _setting.named("mup")
    depths = DEPTHS[1:3] if quick else DEPTHS
    widths = {64: 8, 128: 8, 256: 8} if quick else {128: 32, 256: 32, 512: 16, 1024: 12, 2048: 8}
    rows, moved, slopes = [], {}, {}
    for depth in depths:
        regime = tp.classify(p, _setting.network(depth, "tanh"))
        known = "trivial" if depth >= 3 else "not trivial"
        counted = "trivial" if regime.trivial else "not trivial"
        rows.append(Row(f"L = {depth}: regime by counting powers", known, counted))
        key = f"L = {depth}"
        moved[key] = {n: changes(p, depth, n, seeds) for n, seeds in widths.items()}
        slopes[key] = float(regime.exponents["df"])
        claim = f"L = {depth}: exponent of |f_t - f_0|"
        rows.append(exponent_row(claim, slopes[key], moved[key], 0.15))
    rows += limits(quick)
    rows.append(Row("L = 1: largest difference to muP, n = 256", 0.0, shallow(p, mup)))

    model = _setting.network(3, "relu")
    sizes = _setting.contributions(p, model, ETA, 1, widths)[0]
    found = _setting.leading_contributions(p, model, ETA)
    source = (-1, -0.5, -1, -2)
    for (name, by_width), leading, known in zip(sizes.items(), found, source, strict=True):
        claim = f"L = 3, ReLU: exponent of the first contribution, {name}"
        rows.append(Row(f"{claim}, tp.leading", known, float(leading.exponent) / 2))
        rows.append(exponent_row(claim, known, by_width, 0.1))

    def draw(figure: Figure) -> None:
        left, right = panels(figure, 2)
        power_lines(left, moved, slopes)
        left.set(ylabel="|f_t − f_0|, RMS", title="tanh, 3 steps")
        power_lines(right, sizes, dict(zip(sizes, source, strict=True)))
        right.set(ylabel="RMS of ΔW x", title="first step, ReLU, L = 3")

    return Result(
        rows,
        {"moved": moved, "contributions": sizes},
        {"widths and seeds": widths, "η": ETA, "steps": STEPS, "activation": "tanh unless said"},
        draw,
    )


def changes(p: tp.Parameterization, depth: int, n: int, seeds: int) -> np.ndarray:
    """RMS over steps and points of f_t - f_0, per seed. The derivative of the loss is constant."""
    model = _setting.network(depth, "tanh")
    f = _setting.functions(p, model, ETA, STEPS, n, seeds, loss=_setting.linear)
    return _setting.distance(f[:, 1:], f[:, :1])


def limits(quick: bool) -> list[Row]:
    p, rows = _setting.named("naive_ip"), []
    for depth in (3,) if quick else (2, 3, 4):
        model, steps = _setting.network(depth, "tanh"), 1 if quick else 2
        trivial = depth >= 3
        f = _setting.functions(p, model, ETA, steps, tp.inf, 1 if trivial else 4)
        claim = f"L = {depth}: largest |f_t| at infinite width, t ≤ {steps}"
        if trivial:  # 0 without any sampling
            rows.append(Row(claim, 0.0, np.abs(f).max()))
        else:
            rows.append(Row(claim, at_least(1e-3), _setting.largest(f)))
    return rows


def shallow(p: tp.Parameterization, mup: tp.Parameterization) -> float:
    """Largest difference of f_t between two parameterizations with one hidden layer."""
    model = _setting.network(1, "tanh")
    first, second = (_setting.functions(q, model, ETA, STEPS, 256, 4) for q in (p, mup))
    return float(np.abs(first - second).max())
