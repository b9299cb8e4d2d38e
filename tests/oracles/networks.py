"""Networks in plain JAX for the numerical tests, in muP (mean-field at one hidden layer)::

    h_1 = x U / sqrt(d) + b_1,   h_l = phi(h_{l-1}) W_l + b_l,   f = phi(h_L) v / n

`U`, `v` have standard deviation 1, `W_l` standard deviation n^-1/2; the learning rate of `U`,
`b_l`, `v` is `eta n`, that of `W_l` is `eta`. Widths are read from shapes.
"""

import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import tplimit as tp
from oracles import dense

Array = np.ndarray
Data = tuple[Array, Array]

ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "tanh": jnp.tanh,
    "relu": jax.nn.relu,
    "gelu": jax.nn.gelu,
}


class Network(NamedTuple):
    """Declared parameters, `predict(theta, x)` and `step(theta, (x, y)) -> (theta, loss)`."""

    theta: dict[str, Any]
    predict: Callable[[Any, jax.Array], jax.Array]
    step: Callable[[Any, Any], tuple[Any, jax.Array]]


def squared_error(f: jax.Array, y: jax.Array) -> jax.Array:
    return 0.5 * jnp.mean((f - y) ** 2)


def cross_entropy(f: jax.Array, labels: jax.Array) -> jax.Array:
    """Of the softmax, with integer labels."""
    logits = jax.nn.log_softmax(f, axis=-1)
    return -jnp.mean(jnp.take_along_axis(logits, labels[:, None], axis=-1))


def mup(
    activation: str = "tanh",
    hidden: int = 2,
    *,
    inputs: int = 3,
    outputs: int | None = None,
    eta: float = 1.0,
    biases: tuple[float, ...] | None = None,
    ratios: tuple[int, ...] | None = None,
    loss: Callable[[jax.Array, jax.Array], jax.Array] = squared_error,
) -> Network:
    """The network of the module's docstring.

    Args:
        biases: standard deviation of the initial biases of each layer; None: no biases.
        ratios: the width of each layer in units of n.
    """
    phi = ACTIVATIONS[activation]
    ratios = ratios or (1,) * hidden
    widths = [tp.Width("n") if r == 1 else tp.Width(f"n{r}", ratio=r) for r in ratios]
    theta: dict[str, Any] = {
        "U": tp.normal((inputs, widths[0])),
        "W": [tp.normal((a, b), std=a**-0.5) for a, b in itertools.pairwise(widths)],
        "v": tp.normal((widths[-1],) if outputs is None else (widths[-1], outputs)),
    }
    if biases is not None:
        theta["b"] = [
            tp.normal((n,), std=std) if std else tp.full((n,), 0.0)
            for n, std in zip(widths, biases, strict=True)
        ]

    def predict(theta: Any, x: jax.Array) -> jax.Array:
        b = theta.get("b", [0.0] * hidden)
        h = phi(x @ theta["U"] / jnp.sqrt(x.shape[-1]) + b[0])
        for W, offset in zip(theta["W"], b[1:], strict=True):
            h = phi(h @ W + offset)
        return h @ theta["v"] / theta["v"].shape[0]

    def step(theta: Any, batch: Any) -> tuple[Any, jax.Array]:
        x, y = batch
        value, g = jax.value_and_grad(lambda t: loss(predict(t, x), y))(theta)
        n = theta["v"].shape[0]
        rates = {"U": eta * n, "b": eta * n, "W": eta, "v": eta * n}
        new = {
            name: jax.tree.map(lambda p, d, r=rates[name]: p - r * d, theta[name], g[name])
            for name in theta
        }
        return new, value

    return Network(theta, predict, step)


def regression(steps: int = 4, batch: int = 4, inputs: int = 3, seed: int = 3) -> Data:
    """Minibatches that differ from step to step: steps on axis 0."""
    random = np.random.default_rng(seed)
    x = random.standard_normal((steps, batch, inputs))
    return x.astype(np.float32), np.sign(x[..., 0] * x[..., 1]).astype(np.float32)


def classification(steps: int = 4, batch: int = 6, inputs: int = 3, classes: int = 3) -> Data:
    x, _ = regression(steps, batch, inputs)
    return x, np.argmax(x[..., :classes], axis=-1)


def _square(predict: Callable[[Any, jax.Array], jax.Array], eta: float, inputs: int = 3) -> Network:
    """A network with one square matrix, in muP."""
    n = tp.Width("n")
    theta = {"U": tp.normal((inputs, n)), "W": tp.normal((n, n), std=n**-0.5), "v": tp.normal((n,))}

    def step(theta: Any, batch: Any) -> tuple[Any, jax.Array]:
        x, y = batch
        value, g = jax.value_and_grad(lambda t: squared_error(predict(t, x), y))(theta)
        rate = eta * theta["v"].shape[0]
        rates = {"U": rate, "W": eta, "v": rate}
        return jax.tree.map(lambda p, d, r: p - r * d, theta, g, rates), value

    return Network(theta, predict, step)


def tied(eta: float = 1.0) -> Network:
    """One matrix forwards and backwards: `phi(phi(h W) W^T + h)`, `h = phi(x U / sqrt(d))`."""

    def predict(theta: Any, x: jax.Array) -> jax.Array:
        h = jnp.tanh(x @ theta["U"] / jnp.sqrt(x.shape[-1]))
        back = jnp.tanh(h @ theta["W"]) @ theta["W"].T
        return jnp.tanh(back + h) @ theta["v"] / theta["v"].shape[0]

    return _square(predict, eta)


def recurrent(eta: float = 1.0) -> Network:
    """One matrix at every time: `h_t = phi(h_{t-1} W + x_t U / sqrt(d))`; x is (batch, time, d)."""

    def predict(theta: Any, x: jax.Array) -> jax.Array:
        def cell(h: jax.Array, now: jax.Array) -> tuple[jax.Array, None]:
            return jnp.tanh(h @ theta["W"] + now @ theta["U"] / jnp.sqrt(now.shape[-1])), None

        start = jnp.zeros((x.shape[0], theta["v"].shape[0]), x.dtype)
        h, _ = jax.lax.scan(cell, start, jnp.swapaxes(x, 0, 1))
        return h @ theta["v"] / theta["v"].shape[0]

    return _square(predict, eta)


POINTS = np.array([[1.0, -0.5, 0.3], [-0.2, 0.8, 1.1], [0.4, 0.9, -1.3]], np.float32)


class Runs(NamedTuple):
    """`f`: (runs, times, points[, outputs]); `losses`: (runs, steps)."""

    f: Array
    losses: Array


def limit_runs(
    network: Network,
    data: Data,
    *,
    replicates: int,
    samples: int = 2**13,
    points: Array = POINTS,
    width: Any = tp.inf,
    observe: bool = True,
) -> Runs:
    """Independent runs at `width` (`tp.inf` or `tp.Deferred`), observed after each step.

    With `observe=False` only the losses are recorded, which saves a compilation.
    """
    step, predict = tp.limit(network.step), tp.limit(network.predict)
    runs, losses = [], []
    for seed in range(replicates):
        state = tp.sample(network.theta, jax.random.key(seed), width=width, samples=samples)
        f, own = [], []
        for batch in zip(*data, strict=True):
            state, loss = step(state, batch)
            own.append(loss)
            if observe:
                f.append(predict(state, points))
        runs.append(f)
        losses.append(own)
    return Runs(np.array(runs, float), np.array(losses, float))


def dense_runs(
    network: Network, data: Data, seeds: dict[int, int], points: Array = POINTS, key: int = 1
) -> dict[int, Runs]:
    """The same of ordinary networks, by width, observed after each step."""
    runs = dense.train_dense(
        network.predict,
        lambda key, n: tp.sample(network.theta, key, width=n),
        network.step,
        data,
        points,
        widths=list(seeds),
        seeds=seeds,
        key=key,
    )
    return {n: Runs(run.f[:, 1:], run.losses) for n, run in runs.items()}
