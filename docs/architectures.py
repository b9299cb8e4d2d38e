"""Writes docs/architectures.md: modules of flax, equinox and haiku, tried as they are.

Every module is read by ``tp.declare`` from its own initialiser. What is compared is the mean square
over the width of what it returns (of outputs without a width the square), in the limit and averaged
over finite networks; of some, what training makes of their outputs. ``python
docs/architectures.py`` takes some minutes; with names of modules it makes their rows alone.
"""

import functools
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import equinox as eqx
import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import optax
import tables
from flax import nnx
from sklearn.datasets import load_digits

import tplimit as tp

PAGE = Path(__file__).with_name("architectures.md")
WIDTHS, SEEDS, SAMPLES = (64, 256), 200, 2**12
DRAWS = 60
KEY = jax.random.key(0)
X = jax.random.normal(jax.random.key(1), (2, 4, 3))
TOKENS = jax.random.randint(jax.random.key(2), (2, 4), 0, 7)
IMAGES = jax.random.normal(jax.random.key(3), (2, 6, 6, 3))
WIDE = jax.random.normal(jax.random.key(4), (5, 3))
SENTENCE = jax.random.randint(jax.random.key(2), (1, 8), 0, 7)
SERIES = jax.random.normal(jax.random.key(7), (4, 5, 3))
PIXELS, LABELS = (jnp.asarray(array[:4]) for array in load_digits(return_X_y=True))
DIGITS = PIXELS.astype(float).reshape(4, 1, 8, 8) / 8 - 1

#: A module at a width as a function of its parameters, and what makes these.
Tried = tuple[Callable[[int], Any], Callable[[Any, int], Any]]

HEAD = f"""# Architectures

Modules as their libraries have them, from their own initialisers (`python docs/architectures.py`;
how a module comes in: [](modules.md)). Compared is the mean square of what a module returns at
initialisation, {SAMPLES} particles beside {SEEDS} networks of each of the widths {WIDTHS[0]} and
{WIDTHS[1]}, freed of their bias of order 1/n: the largest difference of its entries in standard
errors. Where the limit is random it is averaged over {DRAWS} draws, and its square is compared,
too. The time is that of the first answer, compilation included, on two cores.

"""


def linen(module: Callable[[int], Any], x: Any = X) -> Tried:
    return lambda n: module(n).init(KEY, x), lambda params, n: module(n).apply(params, x)


def haiku(function: Callable[[int, Any], Any], x: Any = X) -> Tried:
    net = lambda n: hk.without_apply_rng(hk.transform(lambda x: function(n, x)))
    return lambda n: net(n).init(KEY, x), lambda params, n: net(n).apply(params, x)


def equinox(module: Callable[[int], Any], call: Callable[[Any, int], Any]) -> Tried:
    def apply(leaves: Any, n: int) -> Any:
        arrays, static = eqx.partition(module(n), eqx.is_array)
        arrays = jax.tree.unflatten(jax.tree.structure(arrays), leaves)
        return call(eqx.combine(arrays, static), n)

    return lambda n: jax.tree.leaves(eqx.filter(module(n), eqx.is_array)), apply


def nnx_(module: Callable[[int], Any]) -> Tried:
    def apply(params: Any, n: int) -> Any:
        graph, _, rest = nnx.split(nnx.eval_shape(lambda: module(n)), nnx.Param, ...)
        return nnx.merge(graph, params, rest)(X)

    return lambda n: nnx.state(module(n), nnx.Param), apply


class Linen(nn.Module):
    """A function of a width and an input as a module."""

    width: int
    body: Callable[[int, Any], Any]

    @nn.compact
    def __call__(self, x: Any) -> Any:
        return self.body(self.width, x)


def by(body: Callable[[int, Any], Any], x: Any = X) -> Tried:
    return linen(lambda n: Linen(n, body), x)


def after_dense(layer: Callable[[int], Any]) -> Tried:
    return by(lambda n, x: layer(n)(nn.Dense(n)(x)))


def attention(n: int, x: Any) -> Any:
    h = nn.Dense(n)(x)
    return nn.MultiHeadDotProductAttention(num_heads=4)(h, h)


def by_halves(n: int, x: Any) -> Any:
    """Causal attention of two heads, of queries and keys whose halves are rotated."""
    h = nn.Dense(n)(x)
    q, k, v = (nn.Dense(n, use_bias=False)(h).reshape(2, 4, 2, n // 2) for _ in range(3))
    q, k = rotated(q), rotated(k)
    return nn.Dense(n)(jax.nn.dot_product_attention(q, k, v, is_causal=True).reshape(2, 4, n))


def rotated(x: Any) -> Any:
    """Halves of the last axis rotated by an angle for each position."""
    first, second = jnp.split(x, 2, -1)
    angles = jnp.arange(4.0)[:, None, None]
    cos, sin = jnp.cos(angles), jnp.sin(angles)
    return jnp.concatenate([cos * first - sin * second, sin * first + cos * second], -1)


def transformer(n: int, x: Any) -> Any:
    """Two blocks, and an output with a readout of the usual scale."""
    h, mask = nn.Dense(n)(x), nn.make_causal_mask(jnp.ones((2, 4)))
    for _ in range(2):
        h = h + nn.MultiHeadDotProductAttention(num_heads=2)(nn.LayerNorm()(h), mask=mask)
        h = h + nn.Dense(n)(nn.gelu(nn.Dense(2 * n)(nn.LayerNorm()(h))))
    return nn.Dense(1)(h)


def attention_equinox(made: Any, n: int) -> Any:
    def one(x: Any) -> Any:
        h = jax.vmap(made[0])(x)
        return made[1](h, h, h)

    return jax.vmap(one)(X)


def attention_haiku(n: int, x: Any) -> Any:
    h = hk.Linear(n)(x)
    return hk.MultiHeadAttention(4, n // 4, w_init=hk.initializers.VarianceScaling())(h, h, h)


def attention_by_width(n: int, x: Any) -> Any:
    """Logits divided by d: muP."""
    h = nn.Dense(n)(x)
    q, k, v = (nn.Dense(n, use_bias=False)(h).reshape(2, 4, 4, n // 4) for _ in range(3))
    weights = nn.softmax(jnp.einsum("bqhd,bkhd->bhqk", q, k) / (n // 4))
    return nn.Dense(n)(jnp.einsum("bhqk,bkhd->bqhd", weights, v).reshape(2, 4, n))


def gated(n: int, x: Any) -> Any:
    first, second = jnp.split(nn.Dense(2 * n)(nn.Dense(n)(x)), 2, -1)
    return nn.Dense(n)(nn.silu(first) * second)


def experts(n: int, x: Any) -> Any:
    h = nn.relu(nn.Dense(n)(x))
    gate = nn.softmax(nn.Dense(3, kernel_init=nn.initializers.normal(1 / n))(h))
    return (gate[..., None] * jnp.stack([nn.Dense(n)(h) for _ in range(3)], -2)).sum(-2)


class Residual(nn.Module):
    width: int

    @nn.compact
    def __call__(self, h: Any, _: Any) -> Any:
        return h + nn.relu(nn.Dense(self.width)(h)), None


def scanned(n: int, x: Any) -> Any:
    layers = nn.scan(
        nn.remat(Residual), variable_axes={"params": 0}, split_rngs={"params": True}, length=3
    )
    return layers(n)(nn.Dense(n)(x), None)[0]


def convolutions(n: int, x: Any) -> Any:
    h = nn.max_pool(nn.relu(nn.Conv(n, (3, 3))(x)), (2, 2), (2, 2))
    return nn.relu(nn.Conv(n, (3, 3))(h)).mean((1, 2))


def unrolled(cell: Callable[[int], Any]) -> Tried:
    return haiku(lambda n, x: hk.dynamic_unroll(cell(n), x, cell(n).initial_state(4))[0])


def over_time(cell: Any, start: Callable[[int], Any], output: Callable[[Any], Any]) -> Tried:
    def call(made: Any, n: int) -> Any:
        def turn(state: Any, x: Any) -> Any:
            state = made(x, state)
            return state, output(state)

        return jax.vmap(lambda x: jax.lax.scan(turn, start(n), x)[1])(X)

    return equinox(lambda n: cell(3, n, key=KEY), call)


class Attending(nnx.Module):
    def __init__(self, n: int) -> None:
        self.dense = nnx.Linear(3, n, rngs=nnx.Rngs(0))
        self.attention = nnx.MultiHeadAttention(4, n, decode=False, rngs=nnx.Rngs(1))

    def __call__(self, x: Any) -> Any:
        return self.attention(self.dense(x))


class Normalised(nnx.Module):
    def __init__(self, n: int) -> None:
        self.first = nnx.Linear(3, n, rngs=nnx.Rngs(0))
        self.norm = nnx.LayerNorm(n, rngs=nnx.Rngs(1))
        self.second = nnx.Linear(n, n, rngs=nnx.Rngs(2))

    def __call__(self, x: Any) -> Any:
        return self.second(nnx.gelu(self.norm(self.first(x))))


DENSE = lambda n: eqx.nn.Linear(3, n, key=KEY)
TABLE: dict[tuple[str, str], Tried] = {
    ("perceptron", "linen"): by(lambda n, x: nn.relu(nn.Dense(n)(nn.relu(nn.Dense(n)(x))))),
    ("perceptron", "equinox"): equinox(
        lambda n: eqx.nn.MLP(3, n, n, 2, key=KEY), lambda net, n: jax.vmap(net)(WIDE)
    ),
    ("perceptron", "haiku"): haiku(lambda n, x: hk.nets.MLP([n, n])(x)),
    ("LayerNorm", "linen"): after_dense(lambda n: nn.LayerNorm()),
    ("LayerNorm", "nnx"): nnx_(Normalised),
    ("LayerNorm", "equinox"): equinox(
        lambda n: (DENSE(n), eqx.nn.LayerNorm(n)),
        lambda net, n: jax.vmap(lambda x: net[1](net[0](x)))(WIDE),
    ),
    ("LayerNorm", "haiku"): haiku(lambda n, x: hk.LayerNorm(-1, True, True)(hk.Linear(n)(x))),
    ("RMSNorm", "linen"): after_dense(lambda n: nn.RMSNorm()),
    ("GroupNorm, 4 groups", "linen"): after_dense(lambda n: nn.GroupNorm(4)),
    ("InstanceNorm", "linen"): after_dense(lambda n: nn.InstanceNorm()),
    ("BatchNorm, stored averages", "linen"): after_dense(
        lambda n: nn.BatchNorm(use_running_average=True)
    ),
    ("embedding", "haiku"): haiku(lambda n, x: hk.Embed(7, n)(x), TOKENS),
    ("SwiGLU", "linen"): by(gated),
    ("mixture of 3 experts", "linen"): by(experts),
    ("scan of remat blocks", "linen"): by(scanned),
    ("convolutions, max pooling", "linen"): by(convolutions, IMAGES),
    ("convolution", "equinox"): equinox(
        lambda n: eqx.nn.Conv2d(3, n, 3, key=KEY),
        lambda net, n: jax.vmap(lambda x: net(x.transpose(2, 0, 1)).mean((1, 2)))(IMAGES),
    ),
    ("convolution", "haiku"): haiku(lambda n, x: hk.Conv2D(n, 3)(x).mean((1, 2)), IMAGES),
    ("simple RNN", "linen"): by(lambda n, x: nn.RNN(nn.SimpleCell(n))(x)),
    ("simple RNN", "haiku"): unrolled(hk.VanillaRNN),
    ("GRU", "linen"): by(lambda n, x: nn.RNN(nn.GRUCell(n))(x)),
    ("GRU", "haiku"): unrolled(hk.GRU),
    ("LSTM", "linen"): by(lambda n, x: nn.RNN(nn.LSTMCell(n))(x)),
    ("LSTM, matrices side by side", "linen"): by(lambda n, x: nn.RNN(nn.OptimizedLSTMCell(n))(x)),
    ("LSTM", "haiku"): unrolled(hk.LSTM),
    ("GRU", "equinox"): over_time(eqx.nn.GRUCell, jnp.zeros, lambda h: h * h.shape[0] ** 0.5),
    ("LSTM", "equinox"): over_time(
        eqx.nn.LSTMCell, lambda n: (jnp.zeros(n),) * 2, lambda h: h[0] * h[0].shape[0] ** 0.5
    ),
    ("attention, 4 heads, logits by d", "linen"): by(attention_by_width),
    ("attention, 4 heads, logits by sqrt(d)", "linen"): by(attention),
    ("attention, 4 heads, logits by sqrt(d)", "nnx"): nnx_(Attending),
    ("attention, 4 heads, logits by sqrt(d)", "equinox"): equinox(
        lambda n: (DENSE(n), eqx.nn.MultiheadAttention(4, n, key=KEY)), attention_equinox
    ),
    ("attention, 4 heads, logits by sqrt(d)", "haiku"): haiku(attention_haiku),
    ("causal attention, 2 heads, rotated halves", "jax.nn"): by(by_halves),
    ("transformer, 2 blocks of causal attention", "linen"): by(transformer),
    ("maxout, 3 pieces, as (n, 3)", "linen"): by(
        lambda n, x: nn.Dense(3 * n)(x).reshape(2, 4, n, 3).max(-1)
    ),
    ("maxout, 3 pieces, as (3, n)", "linen"): by(
        lambda n, x: nn.Dense(3 * n)(x).reshape(2, 4, 3, n).max(-2)
    ),
}


def width_of(declared: Any) -> Callable[[Any], int]:
    """The width of parameters, from an axis of a leaf that is a multiple of it."""
    leaves = jax.tree.leaves(declared, is_leaf=lambda leaf: hasattr(leaf, "law"))
    leaf, axis, multiple = next(
        (i, axis, (1 * dim).coefficient)
        for i, leaf in enumerate(leaves) if hasattr(leaf, "law")
        for axis, dim in enumerate(leaf.shape) if not isinstance(dim, int)
    )  # fmt: skip
    return lambda params: round(jax.tree.leaves(params)[leaf].shape[axis] / multiple)


def tried(make: Callable[[int], Any], apply: Callable[[Any, int], Any]) -> tuple[str, str]:
    """What came of a module, and how long the first answer took."""
    start = time.perf_counter()
    try:
        declared = tp.declare(make)
        width = width_of(declared)

        def squares(params: Any) -> Any:
            return jnp.mean(apply(params, width(params)) ** 2, axis=-1)

        drawn = functools.partial(tp.sample, declared, width=tp.inf, samples=SAMPLES)
        limit = tp.leading(squares)(drawn(jax.random.key(5)))
    except tp.LimitError as error:
        return tables.refused(error), f"{time.perf_counter() - start:.0f} s"
    seconds = time.perf_counter() - start
    power = float(np.max(np.asarray(limit.exponent, float)))
    order = f", of order n^{power:g}" if power else ""
    average, stderr, moments = limit.coefficient, limit.stderr, 1
    if limit.random:
        leading = tp.leading(squares)
        thetas = (drawn(k, terms=2) for k in jax.random.split(KEY, DRAWS))
        draws = np.stack([leading(theta).coefficient for theta in thetas])
        draws, moments = np.stack([draws, draws**2], 1), 2
        average, stderr = draws.mean(0), draws.std(0, ddof=1) / DRAWS**0.5
    keys = jax.random.split(jax.random.key(6), SEEDS)
    narrow, wide = (
        n**-power
        * np.asarray(jax.lax.map(lambda k, n=n: squares(tp.sample(declared, k, width=n)), keys))
        for n in WIDTHS
    )
    # f + b/n from two widths of which one is four times the other.
    found = [(4 * wide**k - narrow**k) / 3 for k in range(1, moments + 1)]
    networks = np.stack(found, 1) if limit.random else found[0]
    error = np.hypot(stderr, networks.std(0, ddof=1) / SEEDS**0.5)
    z = np.max(np.abs(networks.mean(0) - average) / error)
    verdict = "agrees" if z < 4.5 else "**differs**"
    return f"{verdict}, z = {z:.1f}{order}", f"{seconds:.0f} s"


#: Networks of each width that are trained: single ones are compared, and their distances scatter.
TRAINED_SEEDS = {128: 48, 256: 32, 512: 16, 1024: 8}
REPLICATES = 4

TRAINING = f"""## Training

The same modules and others from the initialisers of their libraries, trained in muP with optax: a
readout of the usual scale is divided by $n^{{1/2}}$ or starts at zero, and every leaf has a
power of the width as its rate. The limit is that of {REPLICATES} replicates.

- *Slope*: of the logarithm of the distance of single networks from the limit, over all steps,
  {", ".join(f"{count} networks of width {width}" for width, count in TRAINED_SEEDS.items())};
  theory has -1/2.
- *z*: the largest difference of the mean of networks from the limit, in standard errors of both
  (Student's, as normal deviates), of all outputs after each step, at the largest width.
- *Seconds*: of the limit, and of all networks, compilation included, on two busy cores.

"""


class Trained(NamedTuple):
    """A module with a readout, a loss of its outputs, and an optimizer at a width for every kind
    of leaf."""

    tried: Tried
    loss: Callable[[Any], Any]
    kind: Callable[[str, Any], str]
    optimizers: Callable[[int], dict[str, optax.GradientTransformation]]
    steps: int = 3
    samples: int = 2**11


def descent(rate: float) -> Callable[[int], dict[str, optax.GradientTransformation]]:
    """Gradient descent in muP: vectors along a width, and what sums over one."""
    return lambda n: {"vector": optax.sgd(rate * n), "sum": optax.sgd(rate)}


def recurrent(n: int, x: Any) -> Any:
    cell = hk.LSTM(n)
    series = hk.Linear(n)(x.swapaxes(0, 1))
    states, _ = hk.dynamic_unroll(cell, series, cell.initial_state(len(x)))
    return hk.Linear(1, with_bias=False)(states[-1])[:, 0] / n**0.5


def classifier(n: int) -> Any:
    keys = jax.random.split(KEY, 3)
    return eqx.nn.Sequential([
        eqx.nn.Conv2d(1, n, 3, stride=2, padding=1, key=keys[0]),
        eqx.nn.Lambda(jax.nn.relu),
        eqx.nn.Conv2d(n, n, 3, stride=2, padding=1, key=keys[1]),
        eqx.nn.Lambda(jax.nn.relu),
        eqx.nn.Lambda(lambda h: h.mean((1, 2))),
        eqx.nn.Linear(n, 10, use_bias=False, key=keys[2]),
    ])  # fmt: skip


def by_width(query: Any, key: Any, value: Any, **options: Any) -> Any:
    """Logits divided by d, not by its root: muP."""
    return nn.dot_product_attention(query / query.shape[-1] ** 0.5, key, value, **options)


def predicted(n: int, tokens: Any) -> Any:
    """Two blocks of causal attention before an MLP, as logits of next tokens."""
    places = nn.Embed(8, n, embedding_init=nn.initializers.normal(1), name="places")
    h = nn.Embed(7, n, embedding_init=nn.initializers.normal(1), name="tokens")(tokens)
    h = h + places(jnp.arange(8))
    mask = nn.make_causal_mask(tokens)
    for _ in range(2):
        attention = nn.MultiHeadDotProductAttention(4, use_bias=False, attention_fn=by_width)
        h = h + attention(nn.LayerNorm()(h), mask=mask)
        h = h + nn.Dense(n)(nn.gelu(nn.Dense(4 * n)(nn.LayerNorm()(h))))
    return nn.Dense(7, use_bias=False, kernel_init=nn.initializers.zeros)(nn.LayerNorm()(h))


def adam(rate: float) -> Callable[[int], dict[str, optax.GradientTransformation]]:
    """Adam in muP, ``eps`` beside gradients of order 1/n."""
    of = lambda rate, n: optax.adam(rate, eps=1e-3 / n)
    return lambda n: {"vector": of(rate, n), "sum": of(rate / n, n)}


def entropy(labels: Any) -> Callable[[Any], Any]:
    return lambda f: optax.softmax_cross_entropy_with_integer_labels(f, labels).mean()


TO_TRAIN: dict[tuple[str, str, str], Trained] = {
    ("LSTM on short series", "haiku", "SGD, 3 steps"): Trained(
        haiku(recurrent, SERIES),
        lambda f: jnp.mean((f - jnp.sin(SERIES[..., 0].sum(1))) ** 2),
        lambda path, leaf: "vector" if leaf.ndim == 1 or leaf.shape[0] == 3 else "sum",
        descent(0.5),
    ),
    ("convolutions on digits", "equinox", "SGD, 3 steps"): Trained(
        equinox(classifier, lambda net, n: jax.vmap(net)(DIGITS) / n**0.5),
        entropy(LABELS),
        lambda path, leaf: "vector" if leaf.ndim > 2 and leaf.shape[1] == 1 else "sum",
        descent(1.0),
    ),
    ("transformer, 2 blocks, 4 heads, logits by d", "linen", "Adam, 2 steps"): Trained(
        by(predicted, SENTENCE),
        entropy(jnp.roll(SENTENCE, -1, 1)),
        lambda path, leaf: "vector" if leaf.ndim == 1 or "embedding" in path else "sum",
        adam(0.05),
        steps=2,
        samples=2**9,
    ),
}  # fmt: skip


def trained(one: Trained) -> list[str]:
    """The cells of a row of training."""
    make, apply = one.tried
    declared = tp.declare(make)
    width = width_of(declared)

    def predict(params: Any) -> Any:
        return apply(params, width(params))

    def optimizer(params: Any) -> optax.GradientTransformation:
        kinds = jax.tree_util.tree_map_with_path(
            lambda path, leaf: one.kind(jax.tree_util.keystr(path), leaf), params
        )
        return optax.partition(one.optimizers(width(params)), kinds)

    def step(state: Any, _: Any) -> tuple[Any, Any]:
        params, inner = state
        loss, grads = jax.value_and_grad(lambda params: one.loss(predict(params)))(params)
        updates, inner = optimizer(params).update(grads, inner, params)
        return (optax.apply_updates(params, updates), inner), loss

    def run(width: Any, **options: Any) -> tp.Trajectory:
        return tp.train(
            step, declared, [None] * one.steps, width=width, key=KEY, progress=False,
            init=lambda params: (params, optimizer(params).init(params)),
            observe=lambda state: predict(state[0]), **options,
        )  # fmt: skip

    widths = f"{min(TRAINED_SEEDS)} to {max(TRAINED_SEEDS)}"
    try:
        found = tables.beside(run, TRAINED_SEEDS, samples=one.samples, replicates=REPLICATES)
    except tp.LimitError as error:
        return [f"{one.samples}", widths, tables.refused(error), "", ""]
    limit, networks = found.seconds
    return [f"{one.samples}", widths, found.slope, found.z, f"{limit:.0f}, {networks:.0f}"]


def main() -> None:
    """Try modules, and write the page."""
    warnings.simplefilter("ignore")
    columns = ["module", "library", "limit beside networks", "first answer"]
    trials = {name: functools.partial(tried, *one) for name, one in TABLE.items()}
    names = ["module", "library", "optimizer", "particles", "widths", "slope", "z", "seconds"]
    runs = {name: functools.partial(trained, one) for name, one in TO_TRAIN.items()}
    tables.made(PAGE, tables.Table(HEAD, columns, trials), tables.Table(TRAINING, names, runs))


if __name__ == "__main__":
    main()
