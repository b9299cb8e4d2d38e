"""Whole networks and their first steps of training: beside networks, and beside themselves.

By turns a limit is compared with the average of many networks, a deferred network with dense ones
of its width, and a network with the same network written otherwise.
"""

import random
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

import tplimit as tp
from fuzz.programs import Program, Step, seed_of
from fuzz.verdicts import Outcome, Stopped, Verdict, watched

NAME = "networks"
WIDTH, SEEDS, KEYS = 384, 32, 10
HEAD = (
    "def f(p):",
    "n = p['v'].shape[0]",
    "x = jnp.array([[1.0, -0.5], [0.4, 1.2], [-0.7, 0.3]])",
    "y = jnp.array([1.0, -1.0, 0.5])",
    "sgd = lambda g, p, eta: jax.tree.map(lambda a, b: a - eta * b, p, jax.grad(g)(p))",
    "frozen = lambda g, p, eta: {**sgd(g, p, eta), 'W': p['W']}",
    "heavy = lambda g, p, eta: sgd(g, sgd(g, p, eta), 0.9 * eta)",
    "signs = lambda g, p, eta: {**p, 'v': p['v'] - eta * jnp.sign(jax.grad(g)(p)['v']) / n}",
)
ACTIVATIONS = ("jnp.tanh", "jax.nn.relu", "jax.nn.gelu", "jnp.sin", "jax.nn.sigmoid")

#: Ways to write one layer; `{{0}}` is the layer before.
FIRST = (
    "lambda p: {act}(x @ p['U'])",
    "lambda p: {act}(jnp.einsum('bi,ij->bj', x, p['U']))",
    "lambda p: {act}(jax.vmap(lambda z: z @ p['U'])(x))",
    "lambda p: jnp.stack([{act}(p['U'].T @ z) for z in x])",
)
HIDDEN = (
    "lambda p: {act}({{0}}(p) @ p['{w}'] * n**-0.5)",
    "lambda p: {act}((p['{w}'].T @ {{0}}(p).T).T / jnp.sqrt(n))",
    "lambda p: jax.vmap(lambda h: {act}(h @ p['{w}'] * n**-0.5))({{0}}(p))",
    "lambda p: jax.lax.map(lambda h: {act}(jnp.dot(h, p['{w}']) * n**-0.5), {{0}}(p))",
)
RESIDUAL = (
    "lambda p: {{0}}(p) + {act}({{0}}(p) @ p['{w}'] * n**-0.5)",
    "lambda p: {{0}}(p) + jax.vmap({act})(jnp.einsum('bi,ij->bj', {{0}}(p), p['{w}'] * n**-0.5))",
)
READOUT = (
    "lambda p: {{0}}(p) @ p['v'] * n**-{power}",
    "lambda p: jnp.sum({{0}}(p) * p['v'], -1) * n**-{power}",
    "lambda p: jnp.einsum('bi,i->b', {{0}}(p), p['v'] * n**-{power})",
)
LOSS = "lambda p: 0.5 * jnp.mean(({0}(p) - y)**2)"
STEPS = ("sgd", "sgd", "frozen", "heavy", "signs")

_n = tp.Width("n")
DECLARED = {
    "U": tp.normal((2, _n)),
    "W": tp.normal((_n, _n)),
    "V": tp.normal((_n, _n)),
    "v": tp.normal((_n,)),
}


def generate(draw: random.Random) -> Program:
    """A network in muP or the NTK parameterization, no to two steps, and something to look at."""
    return _written(draw, random.Random(draw.random()))


def _written(draw: random.Random, hand: random.Random) -> Program:
    """The network that ``draw`` chooses, as ``hand`` writes it."""
    kernel = draw.random() < 0.4
    act = lambda: draw.choice(ACTIVATIONS)
    steps = [Step("h0", hand.choice(FIRST).format(act=act()))]
    for w in ("W", "V")[: draw.choice((1, 1, 2))]:
        forms = RESIDUAL if draw.random() < 0.2 else HIDDEN
        steps.append(Step(f"h{w}", hand.choice(forms).format(act=act(), w=w), (steps[-1].name,)))
    layer = steps[-1].name
    power = 0.5 if kernel else 1.0
    steps.append(Step("out", hand.choice(READOUT).format(power=power), (layer,)))
    steps.append(Step("loss", LOSS, ("out",)))
    steps.append(Step("p0", "p"))
    for number in range(draw.choice((0, 1, 1, 2))):
        eta = f"{draw.choice((0.3, 1.0))} * {'1.0' if kernel else 'n'}"
        rule = draw.choice(STEPS)
        steps.append(
            Step(f"p{number + 1}", rule + "({0}, {1}, " + eta + ")", ("loss", f"p{number}"))
        )
    last = steps[-1].name if steps[-1].name.startswith("p") else "p0"
    results = ["jnp.stack([*{0}({2}), jnp.mean({1}({2})**2)])"]
    if kernel and last != "p0":
        results.append("n * jnp.mean(({1}({2}) - {1}({3}))**2)")
    return Program(HEAD, (*steps, Step("", draw.choice(results), ("out", layer, last, "p0"))))


def judge(program: Program, number: int) -> Verdict:
    """By turns beside networks, deferred beside dense, and in two spellings."""
    try:
        if number % 3 == 2:
            return _spelled_twice(program, number)
        width = tp.Deferred(WIDTH) if number % 3 == 1 else tp.inf
        return _beside_networks(program.function, width, number)
    except Stopped as stopped:
        return stopped.verdict


def _limits(function: Callable[..., Any], width: Any, keys: Any, **options: Any) -> Any:
    limited = tp.limit(function)
    with watched(has_limit=True):
        rows = [limited(tp.sample(DECLARED, key, width=width, **options)) for key in keys]
    return np.stack([np.ravel(row) for row in rows]).astype(float)


def _beside_networks(function: Callable[..., Any], width: Any, number: int) -> Verdict:
    keys = jax.random.split(jax.random.key(number), KEYS + SEEDS)
    run = jax.jit(
        lambda keys: jax.lax.map(lambda k: function(tp.sample(DECLARED, k, width=WIDTH)), keys)
    )
    dense = np.asarray(run(keys[KEYS:]), float).reshape(SEEDS, -1)
    options = (
        {"samples": 512, "noise": "random" if number % 2 else "sobol"} if width is tp.inf else {}
    )
    found = _limits(function, width, keys[:KEYS], **options)
    # Means and, where the limit is random, second moments.
    for power in (1, 2):
        a, b = found**power, dense**power
        error = np.hypot(a.std(0, ddof=1) / KEYS**0.5, b.std(0, ddof=1) / SEEDS**0.5)
        bias = 0.0 if width is not tp.inf else 20 / WIDTH
        gap = np.abs(a.mean(0) - b.mean(0))
        if np.any(gap > 5.5 * error + bias * (np.abs(b.mean(0)) + b.std(0)) + 0.01):
            text = f"moment {power} at {width}: {a.mean(0)}, networks {b.mean(0)} +- {error}"
            return Verdict(Outcome.WRONG, text)
    return Verdict(Outcome.RIGHT)


def _spelled_twice(program: Program, number: int) -> Verdict:
    draw = random.Random(seed_of(NAME, number))
    draw.random()  # the hand that wrote the first one
    other = _written(draw, random.Random(number))
    keys = [jax.random.key(number)]
    # Otherwise a random initial function would be drawn anew, for it is drawn in the order of sums.
    options = {"samples": 2048, "terms": 2, "init_output": "zero"}
    a, b = (_limits(p.function, tp.inf, keys, **options) for p in (program, other))
    if a.shape != b.shape or np.any(np.abs(a - b) > 0.05 * (1 + np.abs(b))):
        return Verdict(Outcome.WRONG, f"{a} and {b}, written\n{other.source}")
    return Verdict(Outcome.RIGHT)
