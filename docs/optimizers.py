"""Writes docs/optimizer-table.md: optimizers of optax as they are, limits beside networks.

``python docs/optimizers.py`` takes an hour or two; with names of optimizers it makes their rows
alone.
"""

import functools
import time
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tables

import tplimit as tp
from tplimit.values.fields import PAIRS, map_arrays

PAGE = Path(__file__).with_name("optimizer-table.md")
#: Networks of each width: single ones are compared, and their distances scatter.
SEEDS = {256: 48, 512: 24, 1024: 12, 2048: 6}
RATE, STEPS, SAMPLES, REPLICATES = 0.1, 4, 2048, 4
X = jax.random.normal(jax.random.key(7), (4, 3))
Y = jnp.sin(2 * X[:, 0])
KEY = jax.random.key(0)

n = tp.Width("n")
#: Initial weights of muP without multipliers, and the sizes of their gradients, powers of n.
THETA = {
    "U": tp.normal((3, n)),
    "W": tp.normal((n, n), std=n**-0.5),
    "v": tp.normal((n, 1), std=n**-1),
}
GRADIENTS = {"U": -1, "W": -1, "v": 0}
#: Sizes that updates may have: those of muP.
UPDATES = {"U": 0, "W": -1, "v": -1}

HEAD = f"""# Optimizers, measured

Optimizers of optax as they are (`python docs/optimizers.py`; what to know of them:
[](optimizers.md)), on a network of two hidden layers, tanh, {len(X)} points of {X.shape[1]} inputs,
{STEPS} steps of rate {RATE}. Weights are $(3, n)$, $(n, n)$, $(n, 1)$ with the initial values of
muP and no multipliers.

- *Rates*: "muP" are powers of the width for each layer, such that what the first step adds to
  preactivations and outputs is of order one; `eps` is a thousandth of the size of gradients. With
  "constant" rates all layers have one rate; such a row has exponents alone if one is above 0.
- *Exponents*: powers of the width in what the update of the input, hidden and output matrix adds,
  in the first step, to what comes after the matrix: of the limit, and in brackets as fitted to
  networks of widths {min(SEEDS)} to {max(SEEDS)}. A dash: not known in the limit, within the
  sampling error.
- *Slope*: of the logarithm of the distance of single networks from the limit, over all steps,
  {", ".join(f"{count} networks of width {width}" for width, count in SEEDS.items())};
  theory has -1/2.
- *z*: the largest difference of the mean of networks from the limit, in standard errors of both
  (Student's, as normal deviates), of {len(X) * STEPS} numbers at width {max(SEEDS)}.
- *Pairs*: memory of functions of pairs of coordinates in the state, {SAMPLES} particles.
- *Compilation* of {STEPS} steps of the limit, {REPLICATES} replicates, on two busy cores.

"""


class Tried(NamedTuple):
    """An optimizer of a rate and the size of gradients, for each matrix, and its rates."""

    make: Callable[[Any, Any], optax.GradientTransformation]
    #: Powers of the width in the rates; None: those of ``UPDATES`` whatever the gradients are.
    powers: Mapping[str, Any] | None = None
    #: Another one for the first and the last matrix.
    others: Callable[[Any, Any], optax.GradientTransformation] | None = None


adam = lambda rate, g: optax.adam(rate, eps=1e-3 * g)
muon = optax.contrib.muon
CONSTANT = {"U": 0, "W": 0, "v": 0}
#: Muon's updates of the hidden matrix have size 1/n, those of a column n^(-1/2).
MUON = {"U": 0, "W": 0, "v": -0.5}

TABLE: dict[tuple[str, str], Tried] = {
    ("sgd", "muP"): Tried(lambda rate, g: optax.sgd(8 * rate / g, momentum=0.5)),
    ("adam", "muP"): Tried(adam),
    ("adamw", "muP"): Tried(lambda rate, g: optax.adamw(rate, eps=1e-3 * g, weight_decay=0.3)),
    ("lion", "muP"): Tried(lambda rate, g: optax.lion(rate)),
    ("rmsprop", "muP"): Tried(
        lambda rate, g: optax.rmsprop(rate, eps=1e-4 * g**2, initial_scale=0.0)
    ),
    ("adafactor, no scale", "muP"): Tried(
        lambda rate, g: optax.adafactor(rate, multiply_by_parameter_scale=False, eps=1e-6 * g**2)
    ),
    ("adafactor", "muP"): Tried(
        lambda rate, g: optax.adafactor(rate, eps=1e-6 * g**2), {"U": 0, "W": -0.5, "v": 0}
    ),
    ("muon, hidden matrix", "muP"): Tried(lambda rate, g: muon(rate, eps=0.0), MUON, adam),
    ("muon, consistent_rms, hidden matrix", "muP"): Tried(
        lambda rate, g: muon(rate, eps=0.0, consistent_rms=1.0), {**MUON, "W": -0.5}, adam
    ),
    ("muon", "constant"): Tried(lambda rate, g: muon(rate, eps=0.0), CONSTANT),
    ("muon, consistent_rms", "constant"): Tried(
        lambda rate, g: muon(rate, eps=0.0, consistent_rms=0.2), CONSTANT
    ),
}  # fmt: skip


def predict(theta: Any) -> Any:
    return jnp.tanh(jnp.tanh(X @ theta["U"]) @ theta["W"]) @ theta["v"]


def optimizer(one: Tried, theta: Any) -> optax.GradientTransformation:
    size = theta["W"].shape[0]

    def of(name: str) -> optax.GradientTransformation:
        own = one.others is None or name == "W"
        make, powers = (one.make, one.powers) if own else (one.others, None)
        assert make is not None
        rate = RATE * size ** float((powers or UPDATES)[name])
        return make(rate, size ** float(GRADIENTS[name]))

    return optax.partition({name: of(name) for name in THETA}, {name: name for name in THETA})


def updated(one: Tried, theta: Any, inner: Any) -> tuple[Any, Any, Any]:
    loss = lambda t: jnp.mean((predict(t)[:, 0] - Y) ** 2)
    value, gradient = jax.value_and_grad(loss)(theta)
    return value, *optimizer(one, theta).update(gradient, inner, theta)


def started(one: Tried, theta: Any) -> Any:
    return theta, optimizer(one, theta).init(theta)


def step(one: Tried, state: Any, _: Any) -> tuple[Any, Any]:
    theta, inner = state
    value, updates, inner = updated(one, theta, inner)
    return (optax.apply_updates(theta, updates), inner), value


def added(one: Tried, name: str, theta: Any) -> Any:
    """Mean square of what the first update of a matrix adds."""
    _, updates, _ = updated(one, *started(one, theta))
    first = jnp.tanh(X @ theta["U"])
    before = {"U": X, "W": first, "v": jnp.tanh(first @ theta["W"])}
    return jnp.mean((before[name] @ updates[name]) ** 2)


def exponents(one: Tried) -> tuple[str, float]:
    """Powers of the width in what updates add; the largest of the limit."""
    known: list[str] = []
    largest = -np.inf
    for name in THETA:
        theta = tp.sample(THETA, KEY, width=tp.inf, samples=512)
        try:
            power = float(tp.leading(functools.partial(added, one, name))(theta).exponent) / 2
        except tp.LimitError:
            known.append("–")
            continue
        known.append(f"{power:g}")
        largest = max(largest, power)
    sizes = []
    for width in SEEDS:
        of_one = lambda key, width=width: [
            added(one, name, tp.sample(THETA, key, width=width)) for name in THETA
        ]
        squares = jax.lax.map(of_one, jax.random.split(KEY, 4))
        sizes.append([float(jnp.mean(x)) for x in squares])
    slopes = np.polyfit(np.log([*SEEDS]), np.log(sizes) / 2, 1)[0]
    return f"{', '.join(known)} ({', '.join(f'{x:+.2f}' for x in slopes)})", largest


def run(one: Tried, width: Any, **options: Any) -> tp.Trajectory:
    return tp.train(
        functools.partial(step, one), THETA, jnp.zeros(STEPS),
        init=functools.partial(started, one), observe=lambda state: predict(state[0])[:, 0],
        width=width, key=KEY, progress=False, **options,
    )  # fmt: skip


def pair_memory(state: Any) -> str:
    """Bytes of functions of pairs in a state."""
    sizes: list[int] = []

    def note(array: Any, _: Any, role: str) -> Any:
        if role == PAIRS["role"]:
            sizes.append(array.nbytes)
        return array

    for leaf in jax.tree.leaves(state, is_leaf=lambda leaf: hasattr(leaf, "_value")):
        map_arrays(note, getattr(leaf, "_value", None))
    return f"{sum(sizes) / 2**20:.0f} MiB" if sizes else "none"


def tried(one: Tried) -> list[str]:
    """The cells of a row."""
    powers, largest = exponents(one)
    if largest > 0:
        return [powers, "", "", "", ""]
    train = functools.partial(run, one)
    try:
        found = tables.beside(train, SEEDS, samples=SAMPLES, replicates=REPLICATES)
    except tp.LimitError as error:
        return [powers, tables.refused(error), "", "", ""]
    start = time.perf_counter()
    train(tp.inf, samples=SAMPLES, replicates=REPLICATES)
    again = time.perf_counter() - start
    compilation = f"{found.seconds[0] - again:.0f} s"
    return [powers, found.slope, found.z, pair_memory(found.limit.state), compilation]


def main() -> None:
    """Try optimizers, and write the page."""
    warnings.simplefilter("ignore")
    columns = ["optimizer", "rates", "exponents", "slope", "z", "pairs", "compilation"]
    trials = {name: functools.partial(tried, one) for name, one in TABLE.items()}
    tables.made(PAGE, tables.Table(HEAD, columns, trials))


if __name__ == "__main__":
    main()
