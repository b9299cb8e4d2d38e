r"""Which limit is closest in law to the reference network: Kullback–Leibler distances of logits.

For each test point and step the logits over seeds are fitted by normal laws, of networks of the
reference width ($m_r, v_r$) and of a limit ($m, v$), and
$\tfrac12 \left( v / v_r + (m_r - m)^2 / v_r - 1 - \ln (v / v_r) \right)$ is averaged over test
points. As in the source a limit is a wide network of its scaling, of width 16384 (there 65536).
NTK and IC-MF have limits that are random, and these are evaluated too (∞ in the table). The others
are not: the distance of a deterministic limit is infinite, and that of wide networks grows with
their width like half its logarithm for MF, a quarter for the intermediate scaling. Claim: IC-MF is
closest (G-DS, abstract and experiments). The errors of the distances are jackknife errors over the
seeds of both sides.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

import tplimit as tp
from tplimit.output.figures import COLOURS, panels
from tplimit.reproduction import Result, Row, at_least, jackknife

from . import _training
from ._regions import LIMITS, REFERENCE

RATE, STEPS, QUICK_STEPS = 0.2, 100, 3
WIDE, NARROWER = 2**14, 2**11  # the second only to see the growth with the width
SEEDS, REFERENCE_SEEDS, REPLICATES, SAMPLES = 48, 256, 48, 2**12
RANDOM = ("NTK", "IC-MF")  # whose initial function does not vanish


def run(quick: bool) -> Result:
    steps, seeds = (QUICK_STEPS, 4) if quick else (STEPS, SEEDS)
    reference_seeds, replicates = (8, 4) if quick else (REFERENCE_SEEDS, REPLICATES)
    wide, narrower = (2**9, 2**8) if quick else (WIDE, NARROWER)
    names = ("MF", "IC-MF") if quick else tuple(LIMITS)
    problem = _training.digit_problem(RATE)
    test = slice(len(problem.y), None)

    def logits(name: str, n: int, count: int) -> np.ndarray:
        keys = jax.random.split(jax.random.key(n + 1), count)
        return _training.networks(LIMITS[name], problem, n, keys, steps)[:, :, test]

    reference = logits("MF", REFERENCE, reference_seeds)
    laws = {name: logits(name, wide, seeds) for name in names}
    for name in names:
        if name in RANDOM:
            laws[f"{name}, ∞"] = _limits(name, problem, replicates, steps)[:, :, test]
    distances = {name: distance(f, reference) for name, f in laws.items()}
    means = {name: float(values.mean()) for name, values in distances.items()}
    rows = _closest(means, laws, reference)
    for name in ("MF", "intermediate"):
        if name in names:
            growth = laws[name], logits(name, narrower, seeds)
            rows.append(_growth(name, growth, reference, np.log(wide / narrower)))
    setting = {
        "width": wide,
        "seeds": seeds,
        "reference": f"{reference_seeds} networks of width {REFERENCE}",
        "∞": f"{replicates} replicates",
        "points": "32 digits, 3 against 8, and 16 to test",
        "η": RATE,
        "steps": steps,
    }
    values = {"distances": distances, "means": means}
    return Result(rows, values, setting, lambda figure: draw(figure, distances, laws, reference))


def _limits(name: str, problem: Any, replicates: int, steps: int) -> np.ndarray:
    """Trajectories of the random limit, each with an initial function of its own."""
    p, (model, points, y, lr) = LIMITS[name], problem
    predict = p.predict(model)
    run = tp.train(
        p.step(model, "logistic", lr), p.theta(model), [(problem.x, jnp.asarray(y))] * steps,
        width=tp.inf, key=jax.random.key(0), samples=SAMPLES, replicates=replicates, terms=2,
        observe=lambda state: predict(state, points), progress=False,
    )  # fmt: skip
    return np.asarray(run.replicates.observations, float)


def distance(f: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """The distance of normal laws fitted to (seeds, steps + 1, points): one for each step."""
    mean, variance = f.mean(axis=0), f.var(axis=0, ddof=1)
    m_r, v_r = reference.mean(axis=0), reference.var(axis=0, ddof=1)
    ratio = variance / v_r
    return (0.5 * (ratio + (m_r - mean) ** 2 / v_r - 1 - np.log(ratio))).mean(axis=-1)


def _closest(
    means: Mapping[str, float], laws: Mapping[str, np.ndarray], reference: np.ndarray
) -> list[Row]:
    wide = {name: d for name, d in means.items() if "∞" not in name}
    listed = ", ".join(f"{name} {d:.3g}" for name, d in means.items())
    closest = min(wide, key=wide.__getitem__)
    rows = [Row("limit closest to the reference, mean over steps", "IC-MF", closest, note=listed)]
    pairs = [(name, "IC-MF") for name in wide if name != "IC-MF"]
    if "NTK, ∞" in laws:
        pairs.append(("NTK, ∞", "IC-MF, ∞"))
    for name, corrected in pairs:
        for when, chosen in _stretches(len(reference[0])).items():
            statistic = lambda both, r, chosen=chosen: float(
                distance(both[0][:, chosen], r[0][:, chosen]).mean()
                - distance(both[1][:, chosen], r[0][:, chosen]).mean()
            )
            both = (laws[name], laws[corrected])
            # A share of the reference seeds says enough about their error, at a share of the cost.
            found = jackknife(statistic, both, (reference[:64],), at=statistic(both, (reference,)))
            claim = f"KL({name}) − KL({corrected}), {when}"
            rows.append(Row(claim, at_least(0.0), found))
    return rows


def _stretches(count: int) -> dict[str, slice]:
    """Parts of the training, named by their steps."""
    last = count - 1
    if last < 20:
        return {"all steps": slice(1, None)}
    return {f"steps 1–{last // 10}": slice(1, last // 10 + 1), f"step {last}": slice(last, None)}


def _growth(
    name: str, growth: tuple[np.ndarray, np.ndarray], reference: np.ndarray, by: float
) -> Row:
    """-ln(v) / 2 grows by the exponent of the standard deviation for every unit of ln n."""
    last = slice(-1, None)
    spread = lambda f: np.log(f[0][:, last].var(axis=0, ddof=1)).mean() / 2
    slope = lambda wide, narrow: float((spread(narrow) - spread(wide)) / by)
    groups = ((growth[0],), (growth[1],))
    predicted = 0.25 if name == "intermediate" else 0.5
    claim = f"{name}: growth of the distance of networks per unit of ln(width)"
    note = "their fluctuations, of order n^-1/2, add to it" if name == "intermediate" else ""
    return Row(claim, predicted, jackknife(slope, *groups), 0.1, note)


def draw(
    figure: Figure,
    distances: Mapping[str, np.ndarray],
    laws: Mapping[str, np.ndarray],
    reference: np.ndarray,
) -> None:
    left, right = panels(figure, 2, (8.6, 3.6))
    names = [name for name in distances if "∞" not in name]
    for colour, name in zip(COLOURS, names, strict=False):
        left.plot(distances[name], color=colour, lw=1.5, label=f"{name}: width {WIDE}")
        infinite = f"{name}, ∞"
        if infinite in distances:
            left.plot(distances[infinite], "--", color=colour, lw=1.2, label=f"{name}: limit")
    left.set(xlabel="step", ylabel="KL to the reference network", yscale="log")
    steps = np.arange(reference.shape[1])
    shown = {
        "reference": reference,
        **{name: laws[name] for name in names if name != "sym-default"},
    }
    for i, (name, f) in enumerate(shown.items()):
        colour = "#000000" if i == 0 else COLOURS[names.index(name)]
        mean, spread = f[:, :, -1].mean(axis=0), f[:, :, -1].std(axis=0, ddof=1)
        right.plot(steps, mean, color=colour, lw=1.5, label=name)
        right.fill_between(steps, mean - spread, mean + spread, color=colour, alpha=0.13, lw=0)
    right.set(
        xlabel="step", ylabel="logit at a test point",
        title="mean and standard deviation over seeds",
    )  # fmt: skip
    for axes in (left, right):
        axes.title.set_fontsize(9)
    # Between the curves: that of sym-default is two orders of magnitude above the others.
    left.legend(frameon=False, fontsize=7, ncols=2, loc="center", bbox_to_anchor=(0.55, 0.67))
    right.legend(frameon=False, fontsize=7.5)
