"""The programs that `compile.py` waits for: plain JAX, made anew at every call.

Every function that makes a case gives closures with the same text and data with the same shapes;
`eta` is a number that they close over, a factor of all learning rates.
Cases of other people's modules need flax.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

import tplimit as tp

Tree = Any
Predict = Callable[[Tree, Any], Any]

INPUTS = 5


@dataclass(frozen=True)
class Case:
    """One training run, or a single step by `tplimit.limit` where `steps` is 0."""

    theta: Tree
    step: Callable[[Tree, Any], tuple[Tree, Any]]
    batch: Any
    observe: Callable[[Tree], Any] | None
    steps: int
    replicates: int = 1


def _case(
    theta: Tree,
    predict: Predict,
    rates: Callable[[Tree], Tree],
    batch: Any,
    eta: float,
    steps: int,
    replicates: int = 1,
) -> Case:
    """Gradient descent on half the mean squared error; predictions are observed."""
    x = batch[0]

    def step(theta: Tree, batch: Any) -> tuple[Tree, Any]:
        x, y = batch
        loss = lambda t: 0.5 * jnp.mean((predict(t, x) - y) ** 2)
        value, g = jax.value_and_grad(loss)(theta)
        return jax.tree.map(lambda p, r, d: p - eta * r * d, theta, rates(theta), g), value

    return Case(theta, step, batch, lambda theta: predict(theta, x), steps, replicates)


def _data(*shape: int) -> tuple[Any, Any]:
    x = jax.random.normal(jax.random.key(1), shape)
    return x, jnp.sign(x.reshape(len(x), -1)[:, 0])


def deep(eta: float, depth: int, steps: int, replicates: int = 1) -> Case:
    """The README's network with `depth` hidden layers."""
    n = tp.Width("n")
    hidden = {f"W{i}": tp.normal((n, n), std=n**-0.5) for i in range(1, depth)}
    theta = {"U": tp.normal((INPUTS, n)), **hidden, "v": tp.normal((n,))}

    def predict(theta: Tree, x: Any) -> Any:
        h = jnp.tanh(x @ theta["U"] / jnp.sqrt(x.shape[-1]))
        for i in range(1, depth):
            h = jnp.tanh(h @ theta[f"W{i}"])
        return h @ theta["v"] / theta["v"].shape[0]

    def rates(theta: Tree) -> Tree:
        n = theta["v"].shape[0]
        return {name: 0.5 if name.startswith("W") else 0.5 * n for name in theta}

    return _case(theta, predict, rates, _data(8, INPUTS), eta, steps, replicates)


def parameterized(eta: float, name: str, activation: str) -> Case:
    p = getattr(tp.parameterizations, name)
    network = tp.mlp(2, inputs=INPUTS, activation=activation)
    predict, batch = p.predict(network), _data(8, INPUTS)
    step = p.step(network, "mse", 0.5 * eta)
    return Case(p.theta(network), step, batch, lambda theta: predict(theta, batch[0]), 4)


def recurrent(eta: float, steps: int) -> Case:
    """One matrix, used at eight times."""
    n, times = tp.Width("n"), 8
    theta = {"U": tp.normal((3, n)), "W": tp.normal((n, n), std=n**-0.5), "v": tp.normal((n,))}

    def predict(theta: Tree, x: Any) -> Any:
        h = jnp.tanh(x[:, 0] @ theta["U"])
        for t in range(1, times):
            h = jnp.tanh(h @ theta["W"] + x[:, t] @ theta["U"])
        return h @ theta["v"] / theta["v"].shape[0]

    def rates(theta: Tree) -> Tree:
        n = theta["v"].shape[0]
        return {"U": 0.1 * n, "W": 0.1, "v": 0.1 * n}

    return _case(theta, predict, rates, _data(4, times, 3), eta, steps)


def attention(eta: float, steps: int) -> Case:
    """A head of attention over four tokens, with a residual connection."""
    n = tp.Width("n")
    matrices = {name: tp.normal((n, n), std=n**-0.5) for name in ("Q", "K", "V")}
    theta = {"E": tp.normal((3, n)), **matrices, "v": tp.normal((n,))}

    def predict(theta: Tree, x: Any) -> Any:
        h = x @ theta["E"]
        q, k, v = (h @ theta[name] for name in ("Q", "K", "V"))
        share = jax.nn.softmax(jnp.einsum("bqn,bkn->bqk", q, k) / h.shape[-1], -1)
        h = jnp.tanh(h + jnp.einsum("bqk,bkn->bqn", share, v))
        return h.mean(1) @ theta["v"] / theta["v"].shape[0]

    def rates(theta: Tree) -> Tree:
        n = theta["v"].shape[0]
        return {"E": 0.1 * n, "Q": 0.1, "K": 0.1, "V": 0.1, "v": 0.1 * n}

    return _case(theta, predict, rates, _data(2, 4, 3), eta, steps)


def stack(eta: float, steps: int) -> Case:
    """32 equal residual layers, written as a Python loop."""
    n, depth = tp.Width("n"), 32
    hidden = {f"W{i:02}": tp.normal((n, n), std=n**-0.5) for i in range(depth)}
    theta = {"U": tp.normal((INPUTS, n)), **hidden, "v": tp.normal((n,))}

    def predict(theta: Tree, x: Any) -> Any:
        h = x @ theta["U"] / jnp.sqrt(x.shape[-1])
        for i in range(depth):
            h = h + jnp.tanh(h @ theta[f"W{i:02}"]) / depth
        return h @ theta["v"] / theta["v"].shape[0]

    def rates(theta: Tree) -> Tree:
        n = theta["v"].shape[0]
        return {name: 0.5 if name.startswith("W") else 0.5 * n for name in theta}

    return _case(theta, predict, rates, _data(4, INPUTS), eta, steps)


# --- modules of flax


def _linen(
    eta: float, module: Callable[[int], Any], x: Any, declared: Callable[[Any], Tree]
) -> Case:
    """A module of width `n` between linear maps of our own; its weights by gradient descent."""
    n = tp.Width("n")
    theta = {"U": tp.normal((x.shape[-1], n)), "v": tp.normal((n,)), "module": declared(n)}

    def predict(theta: Tree, x: Any) -> Any:
        n = theta["v"].shape[0]
        h = module(n).apply({"params": theta["module"]}, x @ theta["U"])
        h = h.reshape(len(x), -1, n).mean(1)
        return jnp.tanh(h) @ theta["v"] / n

    def rates(theta: Tree) -> Tree:
        n = theta["v"].shape[0]

        def rate(leaf: Any) -> Any:
            return 0.1 if sum(length >= n / 8 for length in leaf.shape) > 1 else 0.1 * n

        return jax.tree.map(rate, theta)

    return _case(theta, predict, rates, (x, jnp.sign(x.reshape(len(x), -1)[:, 0])), eta, 0)


def linen_mlp(eta: float) -> Case:
    from flax import linen as nn

    class Net(nn.Module):
        width: int

        @nn.compact
        def __call__(self, h: Any) -> Any:
            return nn.Dense(self.width)(nn.tanh(nn.Dense(self.width)(nn.tanh(h))))

    def declared(n: Any) -> Tree:
        layer = {"kernel": tp.normal((n, n), std=n**-0.5), "bias": tp.full((n,), 0.0)}
        return {"Dense_0": layer, "Dense_1": layer}

    return _linen(eta, Net, _data(8, INPUTS)[0], declared)


def linen_attention(eta: float) -> Case:
    from flax import linen as nn

    heads = 4

    def attention(query: Any, *others: Any, **options: Any) -> Any:
        return nn.dot_product_attention(query / query.shape[-1] ** 0.5, *others, **options)

    def module(width: int) -> Any:
        return nn.MultiHeadDotProductAttention(heads, use_bias=False, attention_fn=attention)

    def declared(n: Any) -> Tree:
        into = {"kernel": tp.normal((n, heads, n / heads), std=n**-0.5)}
        out = {"kernel": tp.normal((heads, n / heads, n), std=n**-0.5)}
        return {"query": into, "key": into, "value": into, "out": out}

    return _linen(eta, module, _data(2, 4, 3)[0], declared)


def linen_gru(eta: float) -> Case:
    from flax import linen as nn

    class Net(nn.Module):
        width: int

        @nn.compact
        def __call__(self, x: Any) -> Any:
            cell, h = nn.GRUCell(self.width), jnp.zeros((len(x), self.width))
            for t in range(x.shape[1]):
                h, _ = cell(h, x[:, t])
            return h

    def declared(n: Any) -> Tree:
        matrix, bias = tp.normal((n, n), std=n**-0.5), tp.full((n,), 0.0)
        cell: Tree = {name: {"kernel": matrix, "bias": bias} for name in ("ir", "iz", "in", "hn")}
        cell |= {name: {"kernel": matrix} for name in ("hr", "hz")}
        return {"GRUCell_0": cell}

    return _linen(eta, Net, _data(2, 8, 3)[0], declared)


#: From a factor of the learning rates to the case.
CASES: dict[str, Callable[[float], Case]] = {
    "README limit": lambda eta: deep(eta, 2, 0),
    "README train": lambda eta: deep(eta, 2, 10, replicates=4),
    "3 hidden": lambda eta: deep(eta, 3, 10),
    "6 hidden": lambda eta: deep(eta, 6, 4),
    "NTK": lambda eta: parameterized(eta, "ntk", "tanh"),
    "IP-LLR": lambda eta: parameterized(eta, "ip_llr", "relu"),
    "RNN": lambda eta: recurrent(eta, 4),
    "attention": lambda eta: attention(eta, 4),
    "linen MLP": linen_mlp,
    "linen attention": linen_attention,
    "linen GRU": linen_gru,
    "32 layers": lambda eta: stack(eta, 0),
}
