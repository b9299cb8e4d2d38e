"""Finite arrays whose entries carry different powers of the width.

Nothing is random in them, so that the program itself at widths up to 10^8 says what is right: in
double precision, where what has not come to its limit gets nearer from one width to the next.
"""

import itertools
import random
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import tplimit as tp
from fuzz.programs import Program, Step, choose
from fuzz.verdicts import Outcome, Stopped, Verdict, watched

NAME = "arrays"
WIDTHS = (10**4, 10**6, 10**8)

#: Near the largest one: what oscillates with the width is another number there.
NEARBY = 101_234_567

#: Round-off of double precision in a few operations, relative to the largest number among them.
ROUND_OFF = 1e-14

#: The same of single precision, for numbers of order 1.
SINGLE = 1e-6
POWERS = ("n**-1.0", "n**-0.5", "1.0", "1.0", "n**0.5", "n")
HEAD = ("def f(v, x, y):", "n = v.shape[0]")
X, Y = (0.8, -1.3, 0.45), (1.1, 0.35, -0.6)
MIXED = "jnp.stack([x[0] * {}, y[1] * {}, 0.9 * {}])"
CHOSEN = "jnp.array([True, False, True])"

ONE = (
    "jnp.tanh({0})", "jnp.exp(-jnp.abs({0}))", "jnp.sqrt(jnp.abs({0}))", "jnp.abs({0})",
    "{0}**2", "{0}**3", "jnp.sin({0})", "jax.nn.sigmoid({0})", "jnp.sign({0})", "jnp.cumsum({0})",
    "{0}[::-1]", "jnp.roll({0}, 1)", f"jnp.where({CHOSEN}, {{0}}, -2 * {{0}})",
    "jnp.maximum({0}, 0.7)", "jnp.minimum({0}, 1.3)", "jnp.clip({0}, -1, 1)",
    "jax.nn.softmax({0})", "jax.nn.relu({0})", "{0} / (1 + {0}**2)", "1 / (1 + jnp.abs({0}))",
    "{0} * jnp.sum({0})", "{0} - jnp.mean({0})", "jnp.max({0}) * jnp.ones(3)",
    "jnp.where({0} > 0.5, {0}, 1.0)", "jnp.concatenate([{0}[:1], {0}[1:] * 2])",
    "jnp.pad({0}, (1, 0))[:3]", "jnp.zeros(3).at[jnp.array([0, 2, 2])].add({0})",
    "{0}.at[1].set(0.4)", "jnp.stack([{0}[2], {0}[0], {0}[1]])", "jax.nn.softplus({0})",
    "jnp.log1p(jnp.abs({0}))", "jnp.expm1(-jnp.abs({0}))", "jnp.arctan({0})",
    "jnp.cosh(jnp.tanh({0})) - 1", "1 - jnp.cos({0})", "jnp.power(jnp.abs({0}), 1.5)",
    "jnp.cbrt({0})", "{0} / jnp.sqrt(jnp.sum({0}**2))", "jnp.linalg.norm({0}) * jnp.ones(3)",
    "jax.lax.rsqrt(0.1 + {0}**2)", "jnp.prod(jnp.tanh({0})) * jnp.ones(3)",
    "jax.lax.fori_loop(0, 8, lambda i, z: 0.5 * z + {0}, {0})", "jnp.linspace(0.5, 1.5, 3) * {0}",
    "jax.lax.dynamic_slice(jnp.concatenate([{0}, {0}]), (2,), (3,))", "jnp.outer({0}, {0}).sum(0)",
    "jnp.einsum('i,j->i', {0}, {0})", "jnp.diag({0}) @ jnp.ones(3)", "{0} > 0.5",
    "jnp.argmax({0}) * jnp.ones(3)", "jnp.sort({0})", "jnp.log(1 + {0}**2)", "jax.nn.gelu({0})",
    "jax.nn.logsumexp({0}) * jnp.ones(3)", "jax.grad(lambda z: jnp.sum(jnp.tanh(z)**2))({0})",
    "jax.jvp(jnp.sin, ({0},), ({0},))[1]", "jnp.round({0} * 1.37)", "jnp.floor({0} + 0.23)",
    "jnp.mod({0}, 0.7)", "jnp.nan_to_num({0})", "jax.lax.map(lambda z: z * jnp.abs(z), {0})",
    "jax.lax.scan(lambda c, z: (0.5 * c + z, c * z), 0.3, {0})[1]", "jnp.var({0}) * jnp.ones(3)",
    "jnp.tril(jnp.outer({0}, jnp.ones(3))) @ jnp.array([1., 2., 3.])",
    "jnp.triu(jnp.ones((3, 3))) @ {0}", "jnp.take({0}, jnp.array([1, 1, 0]))",
    "{0} / 3 - {0} / 7", "jnp.sin(jnp.tanh({0}))**2 + jnp.cos(jnp.tanh({0}))**2 - 1",
)  # fmt: skip
TWO = (
    "{0} + {1}", "{0} - {1}", "{0} * {1}", "{0} / (1 + jnp.abs({1}))", "jnp.maximum({0}, {1})",
    "jnp.minimum({0}, {1})", "jnp.where({0} > {1}, {0}, {1})", "jnp.where({0} > 0, {1}, {0})",
    "jnp.stack([{0}[0], {1}[1], {0}[2]])", "jnp.dot({0}, {1}) * jnp.ones(3)",
    "jnp.concatenate([{0}[:1], {1}[:2]])", "{0}.at[0].add({1}[1])", "jnp.outer({0}, {1})[1]",
    "jnp.hypot({0}, {1})", "jnp.logaddexp({0}, {1})", "jnp.einsum('i,j->j', {0}, {1})",
    "jax.lax.cond({0}[0] > {1}[0], lambda: {0}, lambda: {0} + 1)", "{0}.at[:2].set({1}[1:])",
    f"jax.lax.select({CHOSEN}, {{0}}, {{1}})", "({0} + {1}) - {1}",
    "jnp.tanh({0} + {1}) - jnp.tanh({1})",
)  # fmt: skip


def generate(draw: random.Random) -> Program:
    """A program of a few steps on three arrays of mixed orders."""
    steps = [
        Step("t0", f"x * {draw.choice(POWERS)}"),
        Step("t1", f"y * {draw.choice(POWERS)}"),
        Step("t2", MIXED.format(*draw.choices(POWERS, k=3))),
    ]
    for _ in range(draw.choice((1, 2, 2, 3, 4))):
        step = choose(draw, [s.name for s in steps], ONE, TWO)
        steps.append(Step(step.name, f"({step.template}).astype(float)", step.operands))
    return Program(HEAD, (*steps, Step("", "{0}", (steps[-1].name,))))


class _Width:
    """Stands for a vector, of which the programs only look at the length."""

    def __init__(self, n: int) -> None:
        self.shape = (n,)


def judge(program: Program, number: int) -> Verdict:
    """The leading terms and the limits beside the program at finite widths."""
    try:
        with jax.enable_x64(True):
            return _compared(program, double=number % 2 == 0)
    except Stopped as stopped:
        return stopped.verdict


def _compared(program: Program, double: bool) -> Verdict:
    function, largest = program.function, program.largest.function
    xs = jnp.asarray(X), jnp.asarray(Y)
    try:
        finite = {n: np.asarray(function(_Width(n), *xs), float) for n in (*WIDTHS, NEARBY)}
        noise = {n: ROUND_OFF * max(1.0, float(largest(_Width(n), *xs))) for n in WIDTHS}
    except Exception as error:
        return Verdict(Outcome.SKIPPED, str(error))
    if not all(np.all(np.isfinite(value)) for value in finite.values()):
        return Verdict(Outcome.SKIPPED, "not finite")
    with jax.enable_x64(double):
        vector = tp.sample(tp.normal((tp.Width("n"),)), jax.random.key(0), width=tp.inf, samples=64)
        given = [jnp.asarray(x, float) for x in (X, Y)]
        refused: Verdict | None = None
        try:
            with watched(has_limit=_leads(finite, noise)):
                lead = tp.leading(function)(vector, *given)
        except Stopped as stopped:
            refused = stopped.verdict
        else:
            wrong = _wrong_lead(lead, finite, noise)
            if wrong:
                return Verdict(Outcome.WRONG, wrong)
        try:
            limit = np.asarray(tp.limit(function)(vector, *given), float)
        except tp.LimitError as error:
            if not _settles(finite):
                return refused or Verdict(Outcome.RIGHT)
            return Verdict(Outcome.REFUSED, f"limit: {type(error).__name__}: {error.reason}")
    error = {n: np.abs(finite[n] - limit) for n in WIDTHS}
    if np.any(_far(error, noise, 1e-3 * (1 + np.abs(limit))) | ~np.isfinite(limit)):
        return Verdict(Outcome.WRONG, f"limit {limit}, at 10^4 and 10^8 {_shown(finite)}")
    return refused or Verdict(Outcome.RIGHT)


def _settles(finite: dict[int, Any]) -> bool:
    """Whether a program has a limit as far as one sees: it comes to rest."""
    first, second, third = (finite[n] for n in WIDTHS)
    rest = 0.3 * np.abs(second - first) + 1e-9
    return all(np.all(np.abs(one - third) <= rest) for one in (second, finite[NEARBY]))


def _leads(finite: dict[int, Any], noise: dict[int, float]) -> bool:
    """Whether every output has a leading term as far as one sees: follows a power of the width.

    Of what is nothing but round-off there is none to be seen.
    """
    sizes = [finite[n] for n in (*WIDTHS, NEARBY)]
    if not np.all(np.abs(sizes[2]) > noise[10**8]) or np.any(sizes[0] * sizes[2] <= 0):
        return False
    first, second = (np.log(b / a) / np.log(100) for a, b in itertools.pairwise(sizes[:3]))
    nearby = np.log(sizes[3] / sizes[2]) / np.log(NEARBY / 10**8)
    return bool(np.all((abs(second - first) < 0.03) & (abs(nearby - second) < 0.1)))


def _far(error: dict[int, Any], noise: dict[int, float], allowed: Any) -> Any:
    """Entries whose error is larger than allowed and does not go to 0, as ``n^(-1/7)`` at least: at
    the largest width at which it is no round-off."""

    def far(n: int, share: float) -> Any:
        return (error[n] > np.maximum(allowed, noise[n])) & (error[n] > share * error[10**4])

    return far(10**8, 0.3) | far(10**6, 0.3**0.5) & (noise[10**8] > allowed)


def _wrong_lead(lead: Any, finite: dict[int, Any], noise: dict[int, float]) -> str:
    """What is wrong with leading terms, or nothing."""
    shape = finite[10**4].shape
    exponents = np.vectorize(float)(np.asarray(lead.exponent, dtype=object)) * np.ones(shape)
    c = np.broadcast_to(np.asarray(lead.coefficient, float), shape)
    known = np.isfinite(exponents)
    if np.any(known & (c == 0)):
        return f"{lead} has a coefficient that is 0"
    sizes = {n: np.where(known, c * float(n) ** np.where(known, exponents, 0), 0) for n in WIDTHS}
    # What vanishes faster than any power is small, but not to itself.
    scale = {n: np.where(known, np.abs(finite[n]) + 1e-300, 1.0) for n in WIDTHS}
    with np.errstate(all="ignore"):
        error = {n: np.abs(finite[n] - sizes[n]) / scale[n] for n in WIDTHS}
        relative = {n: noise[n] / scale[n] for n in WIDTHS}
    # Round-off of single precision leads where the program itself leaves nothing.
    seen = (np.abs(finite[10**8]) > noise[10**8]) | (np.abs(c) > SINGLE)
    # Once it is there, what it differs by at a larger width is round-off.
    there = (error[10**4] < 1e-3) & (error[10**6] < 1e-3)
    far = _far(error, relative, 1e-3) & seen & ~there
    return f"leading {lead}, at 10^4 and 10^8 {_shown(finite)}" if np.any(far) else ""


def _shown(finite: dict[int, Any]) -> str:
    return f"{finite[10**4]}, {finite[10**8]}"
