"""The large initial learning rates explode if they are kept

Section 2.4: the exponents γ(p) serve the first step only. Kept at the second one they amplify the
updates by a power of the width that compounds from layer to layer: n^1, n^3/2, n^2, n^3 for the
four layers with L = 3 and ReLU, while the rates of IP-LLR give n^0 in both steps. The sizes are
products of averages, so that their logarithms scatter, less and less with the width (by 1.05 at 512
and 0.31 at 4096 in layer 4): the root mean square over networks is moved up by tails where networks
are narrow, and its exponent is too small. The geometric mean has the exponents that are claimed.
"""

import jax.numpy as jnp
from matplotlib.figure import Figure

import tplimit as tp
from tplimit.output.figures import panels, power_lines
from tplimit.parameterizations import large_first_rates
from tplimit.reproduction import Result, Row, exponent_row

from . import _setting

DEPTH, ETA = 3, 2.0
KEPT = (1, 1.5, 2, 3)


def run(quick: bool) -> Result:
    # Products of averages have heavy tails at small widths: small widths bend the slopes.
    widths = {64: 4, 128: 4} if quick else {512: 192, 1024: 96, 2048: 48, 4096: 12}
    model = _setting.network(DEPTH, _setting.root_2_relu)
    llr = _setting.named("ip_llr")
    cases = {"kept": llr(c=large_first_rates, first=None), "IP-LLR": llr}
    expected = {"kept": KEPT, "IP-LLR": (0, 0, 0, 0)}
    rows, sizes = [], {}
    for name, p in cases.items():
        regime = tp.classify(p, model)
        known = "unstable" if name == "kept" else "stable"
        rows.append(
            Row(f"{name}: regime by counting", known, "stable" if regime.stable else "unstable")
        )
        first, second = _setting.contributions(p, model, ETA, 2, widths)
        sizes[name] = second
        for l, exponent in enumerate(expected[name], start=1):
            claim = f"{name}: exponent of the second contribution, layer {l}"
            rows.append(Row(f"{claim}, counted", exponent, float(regime.exponents[f"update_{l}"])))
            rows.append(exponent_row(claim, exponent, second[f"layer {l}"], 0.25))
            if name == "IP-LLR":
                firsts = first
                claim = f"{name}: exponent of the first contribution, layer {l}"
                rows.append(exponent_row(claim, 0, first[f"layer {l}"], 0.25))
    refused = refusal(cases["kept"], model)
    rows.append(Row("kept: the limit after two steps", "DivergenceError", refused))

    def draw(figure: Figure) -> None:
        for axes, (name, by_layer) in zip(panels(figure, 2), sizes.items(), strict=True):
            power_lines(axes, by_layer, dict(zip(by_layer, expected[name], strict=True)))
            title = "γ kept" if name == "kept" else name
            axes.set(ylabel="RMS of ΔW x, second step", title=title)

    return Result(
        rows,
        {"first contributions, IP-LLR": firsts, "second contributions": sizes},
        {"L": DEPTH, "activation": "√2 ReLU", "η": ETA, "widths and seeds": widths},
        draw,
    )


def refusal(p: tp.Parameterization, model: tp.Model) -> str:
    """The error that the infinite width ends in.

    The derivative of the loss is -1 in both steps. With the squared loss it changes its sign, and
    E[x_1 x_2] of the last layer, the coefficient of n^3, is 0 for ReLU.
    """
    try:
        loss = lambda f, y: -jnp.sum(f)
        _setting.functions(p, model, ETA, 2, tp.inf, 1, samples=2**9, loss=loss)
    except tp.LimitError as error:
        return type(error).__name__
    return "evaluated"
