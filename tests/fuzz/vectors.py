"""Vectors with powers of the width, without matrices: beside wide samples.

Leading coefficients of two keys are compared with outputs at 10^4 and 10^6, three samples each,
scaled by the exponent that was found. What is off by less than the spread of either, or than the
error that is printed, passes. What is refused is tried with more particles. A sum whose samples
differ by more than their size has no leading coefficient, and may be refused; so may one that is 0
in all samples, whose leading power cannot be seen.
"""

import random
from typing import Any

import jax
import numpy as np

import tplimit as tp
from fuzz.programs import Program, Step, choose
from fuzz.verdicts import Outcome, Stopped, Verdict, watched

NAME = "vectors"
WIDTHS = (10**4, 10**6)
SAMPLES = (2**12, 2**16)
POWERS = ("n**-0.5", "1.0", "1.0", "n**0.5")
HEAD = ("def f(p):", "v, w = p['v'], p['w']", "n = v.shape[0]")

ONE = (
    "jnp.tanh({0})", "jax.nn.relu({0})", "jnp.abs({0})", "{0}**2", "jnp.sign({0})",
    "jnp.maximum({0}, 0.7)", "jnp.clip({0}, -1, 1)", "{0} * jnp.mean({0}**2)",
    "{0} - jnp.mean({0})", "({0} > 0.3)", "jnp.where({0} > 0, {0}, 0.2 * {0})",
    "jnp.sqrt(1 + {0}**2)", "{0} / jnp.sqrt(jnp.mean({0}**2))", "jnp.exp(-{0}**2)",
    "jax.nn.sigmoid({0})", "jnp.sin(jnp.tanh({0}))", "jnp.cbrt({0})", "{0} * jnp.linalg.norm({0})",
    "jnp.concatenate([{0}[:n // 2], 2 * {0}[n // 2:]])", "jnp.tile({0}, 2)[:n]",
    "jax.grad(lambda z: jnp.sum(jnp.tanh(z) * v))({0})",
    "jax.grad(lambda z: jnp.mean(jax.nn.relu(z) ** 2))({0}) * n",
    "jnp.sum(jnp.stack([{0}, v, w]), 0)", "jnp.max(jnp.stack([{0}, v, w]), 0)",
    "jnp.prod(jnp.stack([{0}, v]), 0)", "jnp.cumsum(jnp.stack([{0}, v, w]), 0)[1]",
    "jnp.stack([{0}, v]).at[0].add(w)[0]",
    "jnp.einsum('i,ij->j', jnp.array([1., -2.]), jnp.stack([{0}, w]))",
    "jnp.where(jnp.array([True, False])[:, None], {0}, v).sum(0)",
    "jax.nn.softmax(jnp.stack([{0}, v]), 0)[0]",
    "jax.lax.fori_loop(0, 8, lambda i, z: 0.5 * z + {0}, {0})",
    "jax.lax.scan(lambda c, z: (0.5 * c + z, c * z), v, jnp.stack([{0}, w, v]))[1][2]",
    "jnp.argmax(jnp.stack([{0}, v, w]), 0)", "1 / (1 + jnp.abs({0}))", "jax.nn.gelu({0})",
    "jnp.floor({0} + 0.23)", "jnp.tanh({0} + v * n**-0.5) - jnp.tanh({0})",
    "({0} + v) / 3 - {0} / 3 - v / 3 + w * n**-0.5",
)  # fmt: skip
TWO = (
    "{0} + {1}", "{0} - {1}", "{0} * {1}", "jnp.maximum({0}, {1})",
    "jnp.where({0} > {1}, {0}, {1})", "jnp.where({0} > 0, {1}, {0})", "{0} * jnp.mean({1} * {0})",
    "{0} * jnp.sum({1}**2)", "jnp.stack([{0}, {1}])[1] + {0}", "jnp.minimum({0}, {1})",
    "{0} / (1 + {1}**2)", "jnp.where({0} * {1} > 0, 1.0, {1})", "({0} + {1}) - {1}",
)  # fmt: skip
RESULTS = (
    "jnp.mean({0}**2)", "jnp.mean({0})", "jnp.mean({0} * {1})", "jnp.sum({0} * v)",
    "jnp.stack([jnp.mean(jnp.abs({0})), jnp.mean({0} * {1} * {1}), jnp.mean({0} * {1})])",
)  # fmt: skip
DECLARED = {
    "v": tp.normal((tp.Width("n"),)),
    "w": tp.normal((tp.Width("n"),), std=0.8, mean=0.3),
}


def generate(draw: random.Random) -> Program:
    """A program of a few steps on three vectors, and averages of the last."""
    steps = [
        Step("t0", f"v * {draw.choice(POWERS)}"),
        Step("t1", f"w * {draw.choice(POWERS)}"),
        Step("t2", f"(0.7 + v * w) * {draw.choice(POWERS)}"),
    ]
    for _ in range(draw.choice((1, 2, 3, 3))):
        step = choose(draw, [s.name for s in steps], ONE, TWO)
        steps.append(Step(step.name, f"({step.template}).astype(float)", step.operands))
    *before, last = (step.name for step in steps)
    return Program(HEAD, (*steps, Step("", draw.choice(RESULTS), (last, draw.choice(before)))))


def judge(program: Program, number: int) -> Verdict:
    """Leading terms of two keys beside networks; one to three terms, either noise, by turns."""
    function = program.function
    noise = "sobol" if number % 2 else "random"
    options: dict[str, Any] = {"noise": noise, "terms": (None, 2, 3)[number % 3]}
    options = {name: value for name, value in options.items() if value is not None}
    keys = [jax.random.key(number), jax.random.key(number + 1)]
    with jax.enable_x64(True):  # what vanishes with the width is below round-off soon
        run = jax.jit(function)
        finite = {
            n: np.stack(
                [
                    np.ravel(run(tp.sample(DECLARED, jax.random.key(s), width=n))).astype(float)
                    for s in range(3)
                ]
            )
            for n in WIDTHS
        }
    if not all(np.all(np.isfinite(value)) for value in finite.values()):
        return Verdict(Outcome.SKIPPED, "not finite")
    verdict = Verdict(Outcome.SKIPPED)
    for samples in SAMPLES:
        theta = [tp.sample(DECLARED, k, width=tp.inf, samples=samples, **options) for k in keys]
        try:
            with watched(has_limit=_determined(finite)):
                found = [tp.leading(function)(one) for one in theta]
            return _compared(found, finite)
        except Stopped as stopped:
            verdict = stopped.verdict
            if verdict.outcome is not Outcome.REFUSED:
                break
    return verdict


def _determined(finite: dict[int, Any]) -> bool:
    """Whether every output is the same for all samples of a width, as far as one sees."""
    return all(
        np.all((rows.std(0, ddof=1) <= 0.3 * np.abs(rows.mean(0)) + 1e-30) & np.any(rows, 0))
        for rows in finite.values()
    )


def _compared(found: list[Any], finite: dict[int, Any]) -> Verdict:
    shape = finite[10**4].shape[1:]
    c = np.stack([np.ravel(np.asarray(one.coefficient, float)) for one in found])
    errors = np.ravel(np.asarray(found[0].stderr, float)) * np.ones(shape)
    exponents = [np.vectorize(float)(np.asarray(one.exponent, dtype=object)) for one in found]
    if np.any(exponents[0] != exponents[1]):
        return Verdict(Outcome.WRONG, f"two keys give {found[0]} and {found[1]}")
    orders = np.ravel(exponents[0]) * np.ones(shape)
    for i, order in enumerate(orders):
        values = {n: rows[:, i] for n, rows in finite.items()}
        if not np.isfinite(order):
            if np.any(np.abs(values[10**6]) > 1e-5):
                return Verdict(Outcome.WRONG, f"output {i} is not 0 but {values[10**6]}")
            continue
        scaled = {n: v / float(n) ** order for n, v in values.items()}
        mean, spread = scaled[10**6].mean(), scaled[10**6].std(ddof=1) / 3**0.5
        gap = abs(mean - c[:, i].mean())
        allowed = 8 * spread + 4 * abs(c[0, i] - c[1, i]) + 4 * errors[i] + 0.02 * abs(mean) + 1e-6
        if gap > allowed and gap > 0.3 * abs(scaled[10**4].mean() - c[:, i].mean()):
            text = f"output {i}: {c[:, i]} n^{order:g}, networks {scaled[10**4].mean()}, {mean}"
            return Verdict(Outcome.WRONG, text)
    return Verdict(Outcome.RIGHT)
