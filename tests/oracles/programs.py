"""Plain JAX programs that people write, for ``test_programs.py`` and ``test_properties.py``.

Nothing of tplimit is inside the functions. Names that begin with ``W`` are matrices between
widths: muP gives them the rate ``eta`` and all other parameters ``eta * n``.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

import tplimit as tp
from oracles.helpers import program

Theta = dict[str, Any]
Loss = Callable[[Theta], jax.Array]

n = tp.Width("n")
m = tp.Width("m", ratio=2)

INPUTS = 3
X = jnp.asarray(np.random.RandomState(0).randn(4, INPUTS), jnp.float32)
Y = jnp.asarray([1.0, -1.0, 0.5, 0.2])
LABELS = jnp.asarray([0, 2, 1, 1])

MLP = {
    "U": tp.normal((INPUTS, n)),
    "b": tp.normal((n,)),
    "W": tp.normal((n, n), std=n**-0.5),
    "c": tp.full((n,), 0.0),
    "v": tp.normal((n,)),
}
CLASSIFIER = MLP | {"v": tp.normal((n, 3))}


def predict(t: Theta, x: jax.Array) -> jax.Array:
    h = jnp.tanh(x @ t["U"] / np.sqrt(INPUTS) + t["b"])
    h = jnp.tanh(h @ t["W"] + t["c"])
    return h @ t["v"] / t["v"].shape[0]


def rates(t: Theta, eta: float = 0.5) -> Theta:
    width = t["v"].shape[0]
    return {name: eta if name.startswith("W") else eta * width for name in t}


def squared(f: Callable[[Theta, jax.Array], jax.Array], x: Any = X, y: Any = Y) -> Loss:
    return lambda t: 0.5 * jnp.mean((f(t, x) - y) ** 2)


def descend(loss: Loss, t: Theta, eta: float = 0.5) -> Theta:
    g = jax.grad(loss)(t)
    return jax.tree.map(lambda p, r, d: p - r * d, t, rates(t, eta), g)


# Activations -----------------------------------------------------------------------------------

ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "relu": jax.nn.relu,
    "maximum": lambda x: jnp.maximum(x, 0),
    "where": lambda x: jnp.where(x > 0, x, 0.0),
    "leaky_relu": jax.nn.leaky_relu,
    "tanh": jnp.tanh,
    "erf": jax.scipy.special.erf,
    "gelu_exact": lambda x: jax.nn.gelu(x, approximate=False),
    "gelu_tanh": jax.nn.gelu,
    "silu": jax.nn.silu,
    "elu": jax.nn.elu,
    "selu": jax.nn.selu,
    "celu": jax.nn.celu,
    "softplus": jax.nn.softplus,
    "sin": jnp.sin,
    "abs": jnp.abs,
    "cubic": lambda x: x - 0.1 * x**3 + 0.2 * x**2,
    "hard_tanh": jax.nn.hard_tanh,
    "softsign": jax.nn.soft_sign,
    "swish_beta": lambda x: x * jax.nn.sigmoid(1.7 * x),
    "log_sigmoid": jax.nn.log_sigmoid,
    "mish": lambda x: x * jnp.tanh(jax.nn.softplus(x)),
    "relu6": jax.nn.relu6,
    "sigmoid": jax.nn.sigmoid,
    "gaussian": lambda x: jnp.exp(-x * x / 2),
    "clip": lambda x: jnp.clip(x, -1.0, 0.5),
    "isru": lambda x: x / jnp.sqrt(1 + x**2),
    "logcosh": lambda x: jnp.logaddexp(x, -x),
    "squareplus": jax.nn.squareplus,
}


def two_activations(first: str, second: str) -> Callable[[Theta], Any]:
    """A training step of a network with two hidden layers of different activations."""
    phi, psi = ACTIVATIONS[first], ACTIVATIONS[second]

    def f(t: Theta, x: jax.Array) -> jax.Array:
        h = phi(x @ t["U"] / np.sqrt(INPUTS) + t["b"])
        return psi(h @ t["W"] + t["c"]) @ t["v"] / t["v"].shape[0]

    def run(t: Theta) -> Any:
        return f(descend(squared(f), t), X)

    return run


# Losses, outputs, derivatives ------------------------------------------------------------------


@program(CLASSIFIER, deferred=True, slow=True)
def softmax_of_integer_labels(t: Theta) -> Any:
    def loss(t: Theta) -> jax.Array:
        logs = jax.nn.log_softmax(3 * predict(t, X))
        return -jnp.mean(jnp.take_along_axis(logs, LABELS[:, None], 1))

    return loss(t), loss(descend(loss, t, 2.0))


@program(CLASSIFIER, slow=True)
def cross_entropies_of_optax(t: Theta) -> Any:
    def loss(t: Theta) -> jax.Array:
        logits = 3 * predict(t, X)
        hot = optax.softmax_cross_entropy(logits, jax.nn.one_hot(LABELS, 3))
        whole = optax.softmax_cross_entropy_with_integer_labels(logits, LABELS)
        return hot.mean() + whole.mean()

    t = descend(loss, t, 2.0)
    right = jnp.argmax(predict(t, X), -1) == LABELS
    return predict(t, X), right.mean()


@program(MLP)
def sigmoid_cross_entropy(t: Theta) -> Any:
    def loss(t: Theta) -> jax.Array:
        return optax.sigmoid_binary_cross_entropy(predict(t, X), (Y > 0).astype(float)).mean()

    value, g = jax.value_and_grad(loss)(t)
    t = jax.tree.map(lambda p, r, d: p - r * d, t, rates(t, 4.0), g)
    return value, predict(t, X)


@program(MLP)
def per_sample_gradients(t: Theta) -> Any:
    def loss(t: Theta, x: jax.Array, y: jax.Array) -> jax.Array:
        return 0.5 * (predict(t, x) - y) ** 2

    g = jax.vmap(jax.grad(loss), (None, 0, 0))(t, X, Y)
    t = jax.tree.map(lambda p, r, d: p - r * d.mean(0), t, rates(t), g)
    return predict(t, X)


@program(MLP, slow=True)
def nested_jit_and_checkpoint(t: Theta) -> Any:
    f = jax.checkpoint(predict)
    t = jax.jit(lambda t: descend(squared(f), t))(t)
    return jax.jit(predict)(t, X)


@program(MLP, slow=True)
def hessian_vector_product(t: Theta) -> Any:
    gradient = jax.grad(squared(predict))
    direction = jax.tree.map(lambda r, g: r * g, rates(t), gradient(t))
    _, product = jax.jvp(gradient, (t,), (direction,))
    moved = jax.tree.map(lambda p, r, h: p - r * h, t, rates(t), product)
    return predict(moved, X), jax.jvp(lambda t: predict(t, X), (t,), (direction,))[1]


@program(MLP, slow=True)
def derivatives_by_inputs(t: Theta) -> Any:
    t = descend(squared(predict), t)
    gradient = jax.vmap(jax.grad(lambda x: predict(t, x)))(X)
    return gradient, jax.hessian(lambda x: predict(t, x))(X[0])


@program(MLP, slow=True)
def sweep_of_rates(t: Theta) -> Any:
    def train(eta: jax.Array) -> jax.Array:
        return predict(descend(squared(predict), t, eta), X)

    return jax.vmap(train)(jnp.asarray([0.5, 1.0]))


@program(
    {"U": tp.normal((INPUTS, n)), "W": tp.normal((n, n), std=n**-0.5), "v": tp.normal((n,))},
    slow=True,
)
def backpropagation_by_hand(t: Theta) -> Any:
    width = t["v"].shape[0]
    for x, y in zip(X[:2], Y[:2], strict=True):
        h1 = jnp.tanh(x @ t["U"])
        h2 = jnp.tanh(h1 @ t["W"])
        error = h2 @ t["v"] / width - y
        d2 = error * t["v"] * (1 - h2**2)
        d1 = (t["W"] @ d2) * (1 - h1**2)
        t = {
            "U": t["U"] - 0.5 * jnp.outer(x, d1),
            "W": t["W"] - 0.5 * jnp.outer(h1, d2) / width,
            "v": t["v"] - 0.5 * error * h2,
        }
    return jnp.tanh(jnp.tanh(X @ t["U"]) @ t["W"]) @ t["v"] / width


# Optimizers and state --------------------------------------------------------------------------


@program(MLP)
def momentum_and_decay_of_optax(t: Theta) -> Any:
    optimizer = optax.chain(
        optax.add_decayed_weights(0.05), optax.sgd(1.0, momentum=0.9, nesterov=True)
    )
    state = optimizer.init(t)
    for _ in range(2):
        g = jax.tree.map(lambda r, g: r * g, rates(t), jax.grad(squared(predict))(t))
        updates, state = optimizer.update(g, state, t)
        t = optax.apply_updates(t, updates)
    return predict(t, X)


@program(MLP, slow=True)
def weight_decay_and_averaging(t: Theta) -> Any:
    mean = t
    for _ in range(3):
        t = jax.tree.map(lambda p: 0.9 * p, descend(squared(predict), t))
        mean = jax.tree.map(lambda a, b: 0.5 * a + 0.5 * b, mean, t)
    return predict(t, X), predict(mean, X)


@program(MLP)
def norms(t: Theta) -> Any:
    t = descend(squared(predict), t)
    root = np.sqrt(t["v"].shape[0])
    return (
        jnp.linalg.norm(t["v"]) / root,
        jnp.linalg.norm(t["U"], axis=1) / root,
        jnp.vdot(t["U"], t["U"]) / t["v"].shape[0],
        jnp.var(t["b"]) + jnp.std(t["c"]),
    )


# Loops and branches ----------------------------------------------------------------------------


def _sgd(t: Theta, batch: tuple[jax.Array, jax.Array]) -> tuple[Theta, jax.Array]:
    return descend(squared(predict, *batch), t), predict(t, X)


@program(MLP, slow=True)
def scan_over_steps(t: Theta) -> Any:
    t, outputs = lax.scan(_sgd, t, (X[:2, None], Y[:2, None]))
    return outputs, predict(t, X)


@program(MLP, deferred=True, slow=True)
def long_scan_over_steps(t: Theta) -> Any:
    batches = jnp.tile(X, (5, 1))[:, None], jnp.tile(Y, 5)[:, None]
    t, outputs = lax.scan(_sgd, t, batches)
    return outputs[::5], predict(t, X)


@program(MLP, slow=True)
def long_fori_loop_over_minibatches(t: Theta) -> Any:
    def body(i: jax.Array, t: Theta) -> Theta:
        index = (2 * i + jnp.arange(2)) % 4
        return _sgd(t, (X[index], Y[index]))[0]

    return predict(lax.fori_loop(0, 18, body, t), X)


@program(MLP, slow=True)
def cond_on_the_loss(t: Theta) -> Any:
    def step(t: Theta) -> Theta:
        return descend(squared(predict), t)

    loss = squared(predict)
    t = lax.cond(loss(t) > 0.1, step, lambda t: t, t)
    return predict(lax.cond(loss(t) > 10.0, step, lambda t: t, t), X)


STACKED = {
    "U": tp.normal((INPUTS, n)),
    "Ws": tp.normal((3, n, n), std=n**-0.5),
    "bs": tp.full((3, n), 0.0),
    "v": tp.normal((n,)),
}


@program(STACKED, slow=True)
def scan_over_layers(t: Theta) -> Any:
    def layer(h: jax.Array, parameters: Any) -> tuple[jax.Array, None]:
        weight, bias = parameters
        return jnp.tanh(h) @ weight + bias, None

    def f(t: Theta, x: jax.Array) -> jax.Array:
        h, _ = lax.scan(layer, x @ t["U"] / np.sqrt(INPUTS), (t["Ws"], t["bs"]))
        return jnp.tanh(h) @ t["v"] / t["v"].shape[0]

    return f(descend(squared(f), t), X)


RECURRENT = {
    "U": tp.normal((1, n)),
    "W": tp.normal((n, n), std=0.7 * n**-0.5),
    "h": tp.normal((n,)),
    "v": tp.normal((n,)),
}


@program(RECURRENT, deferred=True, slow=True)
def recurrent_network_by_scan(t: Theta) -> Any:
    def f(t: Theta, x: jax.Array) -> jax.Array:
        def cell(h: jax.Array, step: jax.Array) -> tuple[jax.Array, None]:
            return jnp.tanh(h @ t["W"] + step[None] @ t["U"]), None

        h, _ = lax.scan(cell, t["h"], x)
        return h @ t["v"] / t["v"].shape[0]

    batched = jax.vmap(f, (None, 0))
    return batched(descend(squared(batched), t), X)


# Architectures ---------------------------------------------------------------------------------


@program(
    RECURRENT | {"U": tp.normal((1, 3 * n)), "W": tp.normal((n, 3 * n), std=n**-0.5)}, slow=True
)
def gated_recurrent_unit(t: Theta) -> Any:
    def cell(t: Theta, h: jax.Array, x: jax.Array) -> jax.Array:
        r, z, c = jnp.split(x[:, None] @ t["U"], 3, -1)
        hr, hz, hc = jnp.split(h @ t["W"], 3, -1)
        z = jax.nn.sigmoid(z + hz)
        return (1 - z) * h + z * jnp.tanh(c + jax.nn.sigmoid(r + hr) * hc)

    def f(t: Theta, x: jax.Array) -> jax.Array:
        h = cell(t, jnp.broadcast_to(t["h"], (4, *t["h"].shape)), x[:, 0])
        return cell(t, h, x[:, 1]) @ t["v"] / t["v"].shape[0]

    return f(descend(squared(f), t), X)


@program(
    RECURRENT | {"U": tp.normal((1, 4 * n)), "W": tp.normal((n, 4 * n), std=n**-0.5)}, slow=True
)
def gates_by_slices(t: Theta) -> Any:
    width = t["v"].shape[0]

    def f(t: Theta, x: jax.Array) -> jax.Array:
        h = t["h"] + jnp.zeros((4, 1))
        c = jnp.zeros_like(h)
        for i in range(2):
            g = x[:, i, None] @ t["U"] + h @ t["W"]
            keep, write, read = (
                jax.nn.sigmoid(g[:, k * width : (k + 1) * width]) for k in (0, 1, 2)
            )
            c = keep * c + write * jnp.tanh(g[:, 3 * width :])
            h = read * jnp.tanh(c)
        return h @ t["v"] / width

    return f(descend(squared(f), t), X)


TOKENS = jnp.asarray([[0, 1, 2], [3, 3, 4]])
ATTENTION = {
    "E": tp.normal((5, n)),
    "Wq": tp.normal((n, n), std=n**-0.5),
    "Wk": tp.normal((n, n), std=n**-0.5),
    "Wv": tp.normal((n, n), std=n**-0.5),
    "v": tp.normal((n,)),
}


@program(ATTENTION, slow=True)
def attention_of_embedded_tokens(t: Theta) -> Any:
    heads = 4

    def f(t: Theta, tokens: jax.Array) -> jax.Array:
        x = t["E"][tokens]
        b, s, width = x.shape
        q, k, v = ((x @ t[w]).reshape(b, s, heads, width // heads) for w in ("Wq", "Wk", "Wv"))
        logits = jnp.einsum("bqhd,bkhd->bhqk", q, k) * heads / width
        mixed = jnp.einsum("bhqk,bkhd->bqhd", jax.nn.softmax(logits, -1), v)
        x = x + mixed.reshape(b, s, width)
        return jnp.tanh(x).mean(1) @ t["v"] / width

    return f(descend(squared(f, TOKENS, Y[:2]), t), TOKENS)


@program(
    {"U": MLP["U"], "W1": MLP["W"], "W2": MLP["W"], "g": tp.full((n,), 1.0), "v": MLP["v"]},
    slow=True,
)
def residual_blocks_with_layer_norm(t: Theta) -> Any:
    def norm(h: jax.Array) -> jax.Array:
        centred = h - h.mean(-1, keepdims=True)
        return centred * lax.rsqrt(h.var(-1, keepdims=True) + 1e-5)

    def f(t: Theta, x: jax.Array) -> jax.Array:
        h = x @ t["U"]
        for name in ("W1", "W2"):
            h = h + jax.nn.relu(norm(h) * t["g"]) @ t[name]
        return norm(h) @ t["v"] / t["v"].shape[0]

    return f(descend(squared(f), t), X)


@program(
    {
        "U": tp.normal((INPUTS, n)),
        "W": tp.normal((n, m), std=n**-0.5),
        "W2": tp.normal((m, n), std=m**-0.5),
        "v": tp.normal((n,)),
    },
    deferred=True,
    slow=True,
)
def two_widths(t: Theta) -> Any:
    def f(t: Theta, x: jax.Array) -> jax.Array:
        h = jnp.tanh(jnp.tanh(x @ t["U"]) @ t["W"])
        return jnp.tanh(h @ t["W2"]) @ t["v"] / t["v"].shape[0]

    t = descend(squared(f), t)
    return f(t, X), jnp.mean((jnp.tanh(X @ t["U"]) @ t["W"]) ** 2)


@program(
    {"U": MLP["U"], "W": tp.normal((2 * n, n), std=n**-0.5), "v": tp.normal((2 * n,))}, slow=True
)
def concatenation_of_features(t: Theta) -> Any:
    def f(t: Theta, x: jax.Array) -> jax.Array:
        h = x @ t["U"]
        h = jnp.tanh(jnp.concatenate([jnp.tanh(h), jnp.sin(h)], -1) @ t["W"])
        return jnp.concatenate([h, jnp.abs(h)], -1) @ t["v"] / t["v"].shape[0]

    return f(descend(squared(f), t), X)


@program({"U": MLP["U"], "W": MLP["W"], "v": MLP["v"]}, slow=True)
def tied_weights_both_ways(t: Theta) -> Any:
    def f(t: Theta, x: jax.Array) -> jax.Array:
        h = jnp.tanh(jnp.tanh(x @ t["U"]) @ t["W"])
        return jnp.tanh(h @ t["W"].T) @ t["v"] / t["v"].shape[0]

    return f(descend(squared(f), t), X)


@program(
    {
        "U": MLP["U"],
        "s": tp.uniform((n,), 2.0),
        "W": tp.normal((n, n), std=n**-0.5, mean=2 / n),
        "r": tp.rademacher((n,), 0.5),
        "v": tp.normal((n,), mean=0.5),
    },
    bias=8.0,
    slow=True,
)
def laws_that_are_not_centred(t: Theta) -> Any:
    h = jax.nn.relu(X @ t["U"] + t["s"])
    h = jax.nn.relu(h @ t["W"] + t["r"])
    f = h @ t["v"] / t["v"].shape[0]
    column = t["W"].sum(0)
    return f, column.mean(), (column**2).mean(), (t["W"].sum(1) * t["v"]).mean()


@program(
    {"U": MLP["U"], "W": tp.normal((n, 4, n / 4), std=n**-0.5), "v": tp.normal((4, n / 4))},
    slow=True,
)
def one_matrix_per_head(t: Theta) -> Any:
    def f(t: Theta, x: jax.Array) -> jax.Array:
        z = jnp.tanh(jnp.einsum("bi,ihd->bhd", jnp.tanh(x @ t["U"]), t["W"]))
        return jnp.einsum("bhd,hd->b", z, t["v"]) / t["v"].size

    width = t["U"].shape[1]
    g = jax.grad(squared(f))(t)
    t = {name: t[name] - (0.5 if name == "W" else 0.5 * width) * g[name] for name in t}
    return f(t, X)


@program(
    {"E": tp.normal((5, n)), "W": tp.normal((3, n, n), std=n**-0.5), "v": tp.normal((n,))},
    slow=True,
)
def convolution_by_shifts(t: Theta) -> Any:
    tokens = jnp.asarray([[0, 1, 2, 3], [4, 3, 0, 0]])

    def f(t: Theta, tokens: jax.Array) -> jax.Array:
        x = jnp.pad(t["E"][tokens], ((0, 0), (1, 1), (0, 0)))
        shifted = jnp.stack([x[:, k : k + 4] for k in range(3)])
        h = jnp.tanh(jnp.einsum("kbti,kij->btj", shifted, t["W"]))
        return h.mean(1) @ t["v"] / t["v"].shape[0]

    return f(descend(squared(f, tokens, Y[:2]), t), tokens)


@program(MLP, slow=True)
def normalisation_over_the_batch(t: Theta) -> Any:
    def f(t: Theta, x: jax.Array) -> jax.Array:
        h = x @ t["U"]
        h = jnp.tanh((h - h.mean(0)) / jnp.sqrt(h.var(0) + 0.1))
        h = jnp.tanh(h @ t["W"]) * jnp.asarray([1.0, 0.5, 1.0, 2.0])[:, None]
        return jnp.tile(h, (2, 1))[:4] @ t["v"] / t["v"].shape[0]

    return f(descend(squared(f), t), X)
