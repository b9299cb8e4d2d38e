"""With φ(0) ≠ 0 naive integrable networks move, but do not ignore their input

After Proposition 2.3.1 the source remarks that with φ(0) ≠ 0, as for the sigmoid, the limit is
degenerate: the last two layers are updated, independently of the input. This is so in the first
step, for L = 3: f_1 is one number for all inputs. It does not stay so: every step moves one more
layer, and once layer 2 moves, along E[x^1_s x^1_t], the output depends on the input, from f_2 on
for L = 3 and from f_3 on for L = 4. Measured with a large learning rate, where the effect is
visible.
"""

import numpy as np
from matplotlib.figure import Figure

import tplimit as tp
from tplimit.output.figures import COLOURS, panels
from tplimit.reproduction import Result, Row, at_least, average

from . import _setting

ETA, STEPS = 10.0, 3


def run(quick: bool) -> Result:
    p = _setting.named("naive_ip")
    samples, replicates = (2**9, 2) if quick else (2**12, 4)
    widths = {128: 4} if quick else {256: 48, 1024: 24, 2048: 12}
    depths, steps = ((3,), 2) if quick else ((3, 4), STEPS)
    rows, apart, limits, finite = [], {}, {}, {}
    for depth in depths:
        model = _setting.network(depth, "sigmoid")
        f = _setting.functions(p, model, ETA, steps, tp.inf, replicates, samples=samples)
        difference = f[..., 0] - f[..., 1]
        # Layer 2 moves for the first time in step L - 1.
        for t in range(steps + 1):
            apart_at = abs(average(difference[:, t]))
            claim = f"L = {depth}: |f_{t}(A) - f_{t}(B)|, n = ∞"
            note = "the source: 0" if t >= depth - 1 else ""
            predicted = at_least(1e-6) if t >= depth - 1 else 0
            rows.append(Row(claim, predicted, apart_at, 0 if note else 1e-7, note))
        first = abs(average(f[:, 1].mean(axis=1)))
        rows.append(Row(f"L = {depth}: |f_1|, n = ∞", at_least(0.01), first))
        last = f"L = {depth}: independent of the input, t = {steps}"
        # More than five standard errors from 0, in the limit.
        error = _setting.standard_error(difference[:, -1])
        seen = abs(difference[:, -1].mean()) > 5 * error
        rows.append(Row(last, "yes", "no" if seen else "yes", note="claim of the source"))
        apart[depth], limits[depth] = difference, f
        finite[depth] = {}
        for n, seeds in widths.items():
            g = _setting.functions(p, model, ETA, steps, n, seeds, seed=n)
            finite[depth][n] = g[..., 0] - g[..., 1]
        n = max(widths)
        claim = f"L = {depth}: f_{steps}(A) - f_{steps}(B), width {n}, less the limit"
        known = average(difference[:, -1])
        gap = average(finite[depth][n][:, -1]) - known
        rows.append(Row(claim, 0.0, gap, 0.25 * abs(known.value)))

    def draw(figure: Figure) -> None:
        for axes, depth in zip(panels(figure, len(apart)), apart, strict=True):
            t = np.arange(steps + 1)
            axes.plot(t, apart[depth].mean(axis=0), "k-o", ms=4, lw=1.5, label="n = ∞")
            for i, (colour, (n, values)) in enumerate(
                zip(COLOURS, finite[depth].items(), strict=False)
            ):
                axes.errorbar(
                    t + 0.05 * (i + 1), values.mean(axis=0), 2 * _setting.standard_error(values),
                    fmt="s", ms=4, color=colour, label=f"n = {n}",
                )  # fmt: skip
            axes.set(xlabel="step t", ylabel="f_t(A) − f_t(B)", xticks=t)
            axes.set_title(f"sigmoid, L = {depth}: dependence on the input")
            axes.legend(frameon=False, fontsize=8)

    return Result(
        rows,
        {"n = ∞": limits, "finite": finite},
        {"η": ETA, "widths and seeds": widths, "samples": samples, "replicates": replicates},
        draw,
    )
