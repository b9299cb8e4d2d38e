r"""Trajectories of the limits against networks of growing width and the reference network.

For every network the limit is evaluated from that network's own initial function (from 0 where the
initial function vanishes as the width grows), so that both are trajectories and not only laws. The
distance of seed r is $\lVert f - f^{\infty} \rVert / \lVert f^{\infty} \rVert$ over all points
and all steps after the first. It falls like $d^{-1/2}$; for the intermediate scaling like
$d^{-1/4}$, the order of the initial function that its limit lacks. At width $d^* = 128$ all
scalings are the same network, the reference, and the distance says how well each limit describes
it. Sources: the limits and their dynamics, G-DS and G-GT; that the corrected mean-field limit
(IC-MF) describes the reference best, G-DS, abstract and experiments. The limit of sym-default,
whose logits diverge, is under *Diverging logits*.

The slopes are not only those of networks. Limits are evaluated with particles, and have a relative
error of 0.0030 for MF and 0.0031 for IC-MF, found from six of one initial function. With its square
subtracted the exponents would be -0.460 ± 0.012 and -0.465 ± 0.013; what is left of the difference
from -1/2 is not explained. For the intermediate scaling the slope falls from width to
width, from -0.37 over -0.34 to -0.24: fluctuations of order $d^{-1/2}$ add to the term of order
$d^{-1/4}$ where networks are narrow.
"""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from matplotlib.figure import Figure
from scipy import stats

import tplimit as tp
from tplimit.output.figures import COLOURS, panels, power_lines
from tplimit.reproduction import Result, Row, at_most, average, exponent_row

from . import _training
from ._regions import LIMITS, REFERENCE

MODELS = {name: p for name, p in LIMITS.items() if name != "sym-default"}
SEEDS = {REFERENCE: 12, 2**10: 8, 2**13: 8, 2**16: 12}
QUICK = {REFERENCE: 2, 2**10: 2}
SAMPLES, QUICK_SAMPLES = 2**15, 2**11
RATE = 0.2
STEPS, QUICK_STEPS = 30, 3
FALSE_ALARM = 1e-3


def run(quick: bool) -> Result:
    seeds, steps = (QUICK, QUICK_STEPS) if quick else (SEEDS, STEPS)
    samples = QUICK_SAMPLES if quick else SAMPLES
    problem = _training.digit_problem(RATE)
    rows, distances, pairs = [], {}, {}
    for name, p in MODELS.items():
        pairs[name] = _pairs(p, problem, seeds, steps, samples)
        distances[name] = {n: _distance(*both) for n, both in pairs[name].items()}
        rows += _rows(name, p, problem, distances[name], pairs[name])
    rows += _reference(problem, {name: sizes[REFERENCE] for name, sizes in distances.items()})
    setting = {
        "widths": list(seeds),
        "seeds": list(seeds.values()),
        "particles": samples,
        "points": "32 digits, 3 against 8, and 16 to test",
        "η": RATE,
        "steps": steps,
    }
    curves = _curves(pairs, len(problem.y))
    values = {"distances": distances, "curves": curves}
    return Result(rows, values, setting, lambda figure: draw(figure, distances, curves))


def _pairs(
    p: Any, problem: Any, seeds: Mapping[int, int], steps: int, samples: int
) -> dict[int, tuple[np.ndarray, np.ndarray]]:
    """By width, networks and their limits: two arrays (seeds, steps + 1, points)."""
    pairs, zero = {}, _training.starts_at_zero(p, problem.model)
    common = None
    if zero:
        count = max(seeds.values())
        initial = np.zeros((count, len(problem.points)))
        common = _training.limits_given(p, problem, initial, steps, samples)
    for n, count in seeds.items():
        keys = jax.random.split(jax.random.key(n), count)
        f = _training.networks(p, problem, n, keys, steps)
        limits = (
            _training.limits_given(p, problem, f[:, 0], steps, samples, seed=n)
            if common is None
            else common[:count]
        )
        pairs[n] = f, limits
    return pairs


def _distance(f: np.ndarray, limits: np.ndarray) -> np.ndarray:
    """Relative distance of every network to its limit."""
    norm = lambda a: np.sqrt(np.mean(a[:, 1:] ** 2, axis=(1, 2)))
    return norm(f - limits) / norm(limits)


def _rows(name: str, p: Any, problem: Any, distances: Any, pairs: Any) -> list[Row]:
    e_0 = float(tp.classify(p, problem.model).exponents["f_0"])
    predicted = max(-0.5, e_0) if e_0 < 0 else -0.5
    widest = max(pairs)
    worst, comparisons = _largest_deviate(pairs[widest][0] - pairs[widest][1])
    bound = float(stats.norm.isf(FALSE_ALARM / comparisons / 2))
    return [
        exponent_row(f"{name}: exponent of the distance", predicted, distances, 0.1),
        Row(
            f"{name}: relative distance at width {widest}",
            at_most(0.05),
            average(distances[widest]),
        ),
        Row(
            f"{name}: largest mean difference there, in standard errors",
            at_most(bound),
            worst,
            note=f"of {comparisons}; {FALSE_ALARM:g} exceed it by chance",
        ),
    ]


def _largest_deviate(differences: np.ndarray) -> tuple[float, int]:
    """Student's t of the mean over seeds, as the normal deviate of the same probability."""
    some = differences[:, 1 :: max(1, differences.shape[1] // 6)]
    error = some.std(axis=0, ddof=1) / len(some) ** 0.5
    t = np.abs(some.mean(axis=0)) / error
    return float(stats.norm.isf(stats.t.sf(t.max(), len(some) - 1))), t.size


def _reference(problem: Any, distances: Mapping[str, np.ndarray]) -> list[Row]:
    """The limits against the network of width d*, the same for all scalings."""
    keys = jax.random.split(jax.random.key(REFERENCE), 2)
    same = [_training.networks(p, problem, REFERENCE, keys, 3) for p in MODELS.values()]
    rows = [
        Row(
            f"all scalings are one network at width {REFERENCE}: largest difference",
            0.0,
            float(max(np.abs(f - same[0]).max() for f in same)),
        )
    ]
    means = {name: float(np.mean(d)) for name, d in distances.items()}
    rows.append(
        Row(
            "limit closest to the reference network",
            "IC-MF",
            min(means, key=means.__getitem__),
            note=", ".join(f"{name} {d:.3f}" for name, d in means.items()),
        )
    )
    for name in distances:
        if name != "IC-MF":
            log_ratio = np.log(distances["IC-MF"] / distances[name])
            claim = f"log (distance of IC-MF / distance of {name}) to the reference"
            rows.append(Row(claim, at_most(0.0), average(log_ratio)))
    return rows


def _curves(pairs: Mapping[str, Any], train: int) -> dict[str, Any]:
    """For the picture, logits at the test point where those of the first network start largest."""
    point = train + int(np.argmax(np.abs(pairs["IC-MF"][REFERENCE][0][0, 0, train:])))
    return {
        name: {
            f"{what}, {n}": values[0, :, point]
            for n in (min(both), max(both))
            for what, values in zip(("network", "limit"), both[n], strict=True)
        }
        for name, both in pairs.items()
    }


def draw(figure: Figure, distances: Mapping[str, Any], curves: Mapping[str, Any]) -> None:
    one, wide, by_width = panels(figure, 3, (10.2, 3.3))
    first, last = (f(next(iter(distances.values()))) for f in (min, max))
    network = curves["IC-MF"][f"network, {first}"]
    one.plot(network, "ko", ms=3, label=f"network, d* = {first}")
    for colour, (name, curve) in zip(COLOURS, curves.items(), strict=False):
        one.plot(curve[f"limit, {first}"], color=colour, lw=1.4, label=f"limit: {name}")
        wide.plot(curve[f"limit, {last}"], color=colour, lw=1.4, label=name)
        wide.plot(curve[f"network, {last}"], "o", color=colour, ms=3, mfc="none")
    one.set(xlabel="step", ylabel="logit at a test point", title="reference network, one seed")
    wide.set(xlabel="step", title=f"networks of width {last} (circles), limits")
    power_lines(by_width, distances, {n: -0.25 if n == "intermediate" else -0.5 for n in distances})
    by_width.set(ylabel="relative distance to the limit", title="bars: 2 standard errors")
    for axes in (one, wide, by_width):
        axes.title.set_fontsize(9)
        axes.legend(frameon=False, fontsize=7)
