r"""Diverging logits: limits of the seven regions with e_K > 0, and how slowly networks get there.

Where $e_K > 0$ the logits grow, and from the second step on the loss derivative becomes that of a
step function, $-y\, 1\{y F < 0\}$ with $F = \lim f / \rho^{e_K}$. It does so only where
$|F| \rho^{e_K} \gg 1$: in the triangle $\rho^{e_K} = \rho^{1/6}$ is 3 at width 65536. Networks
that one can train are then far from their limit, which they are compared with by way of a recursion
in function space: with the true logistic loss at the networks' width it has to agree with networks,
and at widths such as $2^{160}$ with the interpreter. The interpreter sees the training program
alone. It refuses to go on (`CancellationError`) where the sign of a training logit is not certain;
the points are chosen, among 2000 random sets, so that this is rare although some point is on the
wrong side at each step. Regions whose kernel evolves are run with tanh: with the leaky ReLU the
interpreter refuses sym-def–MF in the third step, where its two terms leave the order of the logits
open. Source: G-DS, definition of its limit models; the recursions follow from it.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

import tplimit as tp
from tplimit.commands.data import random_points
from tplimit.output.figures import COLOURS, panels
from tplimit.parameterizations import golikov
from tplimit.reproduction import Result, Row, at_most, average

from . import _function_space, _regions, _training
from ._regions import REFERENCE, REGIONS

NAMES = [name for name, q in REGIONS.items() if _function_space.exponents(*q).eK > 0]
#: Training points, of which kind, with which activation, where the kernel evolves and where not.
EVOLVING = {"train": 5, "seed": 347}, "tanh"
FROZEN = {"train": 6, "seed": 393}, _regions.leaky_relu
RATE, STEPS = 0.25, 4
HUGE = 2.0**160
NETWORKS = {2**8: 16, 2**10: 16, 2**12: 12, 2**14: 12, 2**16: 12, 2**18: 8}
QUICK = {2**8: 4, 2**10: 4}
CURVE = [2.0**b for b in (8, 10, 12, 14, 16, 18, 22, 26, 32, 40, 48, 60, 80, 120, 160)]
REPLICATES, SAMPLES, QUICK_SAMPLES = 3, 2**16, 2**14


def run(quick: bool) -> Result:
    names = ["triangle"] if quick else NAMES
    widths = QUICK if quick else NETWORKS
    replicates, samples = (2, QUICK_SAMPLES) if quick else (REPLICATES, SAMPLES)
    particles = 2**10 if quick else 2**14
    rows, curves, gaps = [], {}, {}
    for name in names:
        limit = _Limit(name, particles)
        found, refused = _several(limit, replicates, samples)
        curves[name] = _curve(limit, found[0][0])
        gaps[name], predicted, apart = _networks(limit, widths)
        rows.append(_row(name, limit, found, refused))
        rows += _rows_of_networks(name, gaps[name], predicted, apart)
    setting = {
        "points": "in dimension 6, 4 to test; to train 6 where the kernel is frozen, else 5",
        "activation": f"leaky ReLU {_regions.LEAK} where the kernel is frozen, else tanh",
        "η": RATE,
        "steps": STEPS,
        "particles": [samples, f"{particles} of the recursion, {16 * particles} at width 2^160"],
        "replicates": replicates,
        "networks": {str(n): count for n, count in widths.items()},
    }
    return Result(
        rows, {"recursion": curves, "networks": gaps}, setting, lambda f: draw(f, curves, gaps)
    )


class _Limit:
    """One region: its training program, and its recursion."""

    def __init__(self, name: str, particles: int) -> None:
        self.p = golikov(*REGIONS[name])
        self.exponents = _function_space.exponents(*REGIONS[name])
        which, activation = EVOLVING if self.exponents.s == 0 else FROZEN
        data = random_points(test=4, inputs=6, **which)
        self.points = np.concatenate([data.x, data.x_test]).astype(float)
        self.y, self.particles = data.y.astype(float), particles
        model = tp.mlp(1, inputs=6, activation=activation)
        self.problem = _training.Problem(
            model, jnp.asarray(self.points, jnp.float32), jnp.asarray(data.y), RATE
        )

    def interpreted(self, seed: int, samples: int) -> np.ndarray:
        """f_0 / ρ^e0 and f_k / ρ^eK found by the interpreter: (steps + 1, points)."""
        model, points, y, lr = self.problem
        step, predict = self.p.step(model, "logistic", lr), self.p.predict(model)
        state: Any = tp.sample(
            self.p.theta(model), jax.random.key(seed), width=tp.inf, samples=samples, terms=2
        )
        found = []
        for k in range(STEPS + 1):
            exponent, coefficient = tp.series(predict)(state, points).terms[0]
            expected = self.exponents.eK if k else self.exponents.e0
            if abs(float(exponent) - expected) > 1e-9:
                raise ValueError(f"step {k} grows like n^{exponent}, not n^{expected}")
            # The interpreter has powers of the width n, the recursion of ρ.
            found.append(np.asarray(coefficient, float) * REFERENCE ** float(exponent))
            if k < STEPS:
                state, _ = tp.series(step)(state, (self.problem.x, y))
        return np.array(found)

    def recursion(self, start: np.ndarray, n: float, more: int = 1) -> np.ndarray:
        """The same by the recursion, at any width or inf; with `more` times the particles."""
        return _function_space.descend(
            self.exponents, self.points, self.y, start, RATE, STEPS, n / REFERENCE,
            more * self.particles,
        )  # fmt: skip


def _distance(f: np.ndarray, other: np.ndarray) -> float:
    """Relative distance of the logits after the last step."""
    return float(np.linalg.norm(f[-1] - other[-1]) / np.linalg.norm(other[-1]))


def _distances(f: Sequence[np.ndarray], others: Sequence[np.ndarray]) -> np.ndarray:
    """The same of pairs, relative to the size of all the others.

    Where every point starts on the right side a step function moves nothing, and one limit is 0.
    """
    ends = np.array([other[-1] for other in others])
    apart = np.array([one[-1] for one in f]) - ends
    return np.linalg.norm(apart, axis=1) / np.sqrt(np.mean(np.sum(ends**2, axis=1)))


def _worst(f: np.ndarray, other: np.ndarray) -> float:
    """Relative distance at the step where it is largest."""
    differences = np.linalg.norm(f[1:] - other[1:], axis=1)
    return float((differences / np.linalg.norm(other[1:], axis=1)).max())


def _several(limit: _Limit, replicates: int, samples: int) -> tuple[list[np.ndarray], int]:
    """Replicates of the interpreter, and how many it refused since a sign was not certain."""
    found: list[np.ndarray] = []
    refused = 0
    while len(found) < replicates:
        try:
            found.append(limit.interpreted(len(found) + refused, samples))
        except tp.CancellationError:
            refused += 1
            if refused > 2 * replicates:
                raise
    return found, refused


def _row(name: str, limit: _Limit, found: list[np.ndarray], refused: int) -> Row:
    distances = [_worst(f, limit.recursion(f[0], HUGE, more=16)) for f in found]
    claim = f"{name}: interpreter against the recursion at width 2^160, worst of {STEPS} steps"
    note = f"{refused} of {refused + len(found)} replicates refused: a sign is not certain"
    return Row(claim, at_most(0.03), average(distances), note=note if refused else "")


def _curve(limit: _Limit, start: np.ndarray) -> dict[str, float]:
    """Distance of the recursion at every width from that at infinity, after the last step."""
    end = limit.recursion(start, math.inf)
    return {f"{n:.6g}": _distance(limit.recursion(start, n), end) for n in CURVE}


def _networks(
    limit: _Limit, widths: Mapping[int, int]
) -> tuple[dict[int, np.ndarray], np.ndarray, np.ndarray]:
    """Distances of networks from their limits by width, one for each seed.

    And at the largest width: what the recursion predicts for them, and how far they are from it.
    """
    gaps, e = {}, limit.exponents
    for n, count in widths.items():
        keys = jax.random.split(jax.random.key(n), count)
        rho = n / REFERENCE
        f = _training.networks(limit.p, limit.problem, n, keys, STEPS)
        f = f / np.array([rho**e.e0, *[rho**e.eK] * STEPS])[:, None]
        ends = [limit.recursion(one[0], math.inf) for one in f]
        gaps[n] = _distances(f, ends)
    finite = [limit.recursion(one[0], n) for one in f]
    return gaps, _distances(finite, ends), _distances(f, finite)


def _rows_of_networks(
    name: str, gaps: Mapping[int, np.ndarray], predicted: np.ndarray, apart: np.ndarray
) -> list[Row]:
    n = max(gaps)
    expected = float(predicted.mean())
    return [
        Row(
            f"{name}: networks of width {n} against the recursion at that width",
            at_most(0.1), average(apart),
        ),
        Row(
            f"{name}: distance of networks of width {n} from their limit, less the predicted one",
            0.0, average(gaps[n] - predicted), 0.02 + 0.1 * expected,
            note=f"the recursion predicts {expected:.4g}",
        ),
    ]  # fmt: skip


def draw(figure: Figure, curves: Mapping[str, Any], gaps: Mapping[str, Any]) -> None:
    frozen, evolving = panels(figure, 2, (9.6, 3.9))
    for name, curve in curves.items():
        moves = _function_space.exponents(*REGIONS[name]).s == 0
        axes = evolving if moves else frozen
        colour = COLOURS[len(axes.containers)]
        n, gap = np.array([float(k) for k in curve]), np.array(list(curve.values()))
        seen = gap > 1e-5
        axes.plot(n[seen], gap[seen], ".-", color=colour, lw=1.3, ms=3)
        widths = np.array(list(gaps[name]), float)
        means = np.array([g.mean() for g in gaps[name].values()])
        errors = np.array([2 * g.std(ddof=1) / len(g) ** 0.5 for g in gaps[name].values()])
        bars = np.minimum(errors, 0.9 * means), errors
        axes.errorbar(widths, means, yerr=bars, fmt="o", ms=4, color=colour, label=name)
    frozen.set(title="frozen kernel, s < 0")
    evolving.set(title="evolving kernel, s = 0")
    for axes in (frozen, evolving):
        axes.set(
            xscale="log", yscale="log", xlabel="width", ylim=(8e-6, None),
            ylabel=f"relative distance to the limit, step {STEPS}",
        )  # fmt: skip
        axes.set_xticks([2.0**b for b in (8, 18, 40, 60, 80, 120)],
                        [f"$2^{{{b}}}$" for b in (8, 18, 40, 60, 80, 120)])  # fmt: skip
        axes.xaxis.set_minor_locator(NullLocator())
        axes.title.set_fontsize(9)
        if axes.containers:
            axes.legend(
                frameon=False, fontsize=7.5, title="circles: networks; lines: recursion",
                title_fontsize=7.5,
            )  # fmt: skip
