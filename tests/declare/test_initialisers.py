"""Declarations from initialisers: declared laws are those of what is made."""

import equinox as eqx
import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.nn import initializers
from scipy import stats

import tplimit as tp
from tplimit.declare.parameters import Parameter

KEY = jax.random.key(0)
WIDTH = 240


def declared(leaf):
    return isinstance(leaf, Parameter)


def pairs(make, theta, *sizes):
    """Every declaration beside the array that is made."""
    sizes = sizes or (WIDTH,)
    made = [leaf for leaf in jax.tree.leaves(make(*sizes)) if hasattr(leaf, "shape")]
    leaves = [leaf for leaf in jax.tree.leaves(theta, is_leaf=declared) if not callable(leaf)]
    leaves = [leaf for leaf in leaves if declared(leaf) or hasattr(leaf, "shape")]
    assert len(made) == len(leaves)
    return [
        (one, np.asarray(x, float)) for one, x in zip(leaves, made, strict=True) if declared(one)
    ]


def check_law(one, array, sizes):
    """Shape, mean and variance, within five standard errors: false alarms below 1e-6 each."""
    at = lambda scale: scale.at(sizes) if hasattr(scale, "at") else float(scale)
    widths = [
        dim if isinstance(dim, int) else round(float((1 * dim).at(sizes))) for dim in one.shape
    ]
    assert tuple(widths) == array.shape
    mean, std = at(one.mean), at(one.std)
    if std == 0:
        np.testing.assert_allclose(array, mean, rtol=1e-6)
        return
    x = array.ravel()
    assert abs(x.mean() - mean) < 5 * std / x.size**0.5
    # Scales such as (2 / (5 + n))**0.5 are their leading powers: 1 per cent here.
    kurtosis = np.mean((x - x.mean()) ** 4) / x.var() ** 2
    spread = std**2 * (max(kurtosis - 1, 0.5) / x.size) ** 0.5
    assert abs(np.mean((x - mean) ** 2) - std**2) < 5 * spread + 0.025 * std**2


def sparse(key, shape, dtype=float):
    first, second = jax.random.split(key)
    return jax.random.bernoulli(first, 0.2, shape) * jax.random.normal(second, shape)


INITIALISERS = {
    # name: (initialiser, law of an (n, n) array, its standard deviation as c n^p)
    "lecun normal": (initializers.lecun_normal(), "truncated normal", (1, -1 / 2)),
    "lecun uniform": (initializers.lecun_uniform(), "uniform", (1, -1 / 2)),
    "he normal": (initializers.he_normal(), "truncated normal", (2**0.5, -1 / 2)),
    "he uniform": (initializers.he_uniform(), "uniform", (2**0.5, -1 / 2)),
    "glorot normal": (initializers.glorot_normal(), "truncated normal", (1, -1 / 2)),
    "glorot uniform": (initializers.glorot_uniform(), "uniform", (1, -1 / 2)),
    "normal": (initializers.normal(0.02), "normal", (0.02, 0)),
    "orthogonal": (initializers.orthogonal(2.0), "orthogonal", (2, -1 / 2)),
    "uniform": (initializers.uniform(0.3), "uniform", (0.3 / 12**0.5, 0)),
    "truncated normal": (
        initializers.truncated_normal(0.5), "truncated normal", (0.5 * 0.8796256610342398, 0),
    ),
    "variance scaling": (
        initializers.variance_scaling(3.0, "fan_out", "normal"), "normal", (3**0.5, -1 / 2),
    ),
    "constant": (initializers.constant(0.3), "full", (0, 0)),
    "ones": (initializers.ones, "full", (0, 0)),
    "rademacher": (
        lambda key, shape: 2.0 * jax.random.rademacher(key, shape), "rademacher", (2, 0),
    ),
    "laplace": (jax.random.laplace, "other", (2**0.5, 0)),
    "exponential": (jax.random.exponential, "other", (1, 0)),
    "sparse": (sparse, "other", (0.2**0.5, 0)),
    "by hand": (
        lambda key, shape: -jax.random.normal(key, shape) / np.sqrt(shape[0]) + 0.1, "normal",
        (1, -1 / 2),
    ),
    "scaled and transposed": (
        lambda key, shape: 3 * jax.random.normal(key, shape[::-1]).T / shape[0], "normal", (3, -1),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", INITIALISERS)
def test_initialiser(name):
    initialiser, law, (c, p) = INITIALISERS[name]

    def make(n):
        keys = jax.random.split(KEY, 3)
        shapes = (n, n), (5, n), (n, 3)
        return [initialiser(key, shape) for key, shape in zip(keys, shapes, strict=True)]

    theta = tp.declare(make)
    assert theta[0].law == law
    coefficient, power = theta[0].std.as_power_of_n()
    assert (coefficient, float(power)) == (pytest.approx(c, rel=2e-3), p if c else 0)
    for one, array in pairs(make, theta):
        check_law(one, array, {"n": WIDTH})
    # The whole law, of the longest array, by Kolmogorov and Smirnov.
    drawn = tp.sample(theta, jax.random.key(9), width=WIDTH)
    if c:
        same = stats.ks_2samp(np.ravel(make(WIDTH)[0]), np.ravel(drawn[0]))
        assert same.pvalue > 1e-4


class Linen(nn.Module):
    n: int

    @nn.compact
    def __call__(self, x):
        x = nn.LayerNorm()(nn.gelu(nn.Dense(self.n)(x)))
        return nn.Dense(3)(nn.RMSNorm()(nn.gelu(nn.Dense(self.n)(x))))


class Block(nn.Module):
    @nn.compact
    def __call__(self, x, _):
        return x + nn.Dense(x.shape[-1])(nn.LayerNorm()(x)), None


class Deep(nn.Module):
    n: int

    @nn.compact
    def __call__(self, x):
        split = {"variable_axes": {"params": 0}, "split_rngs": {"params": True}}
        x, _ = nn.scan(Block, length=6, **split)()(nn.Dense(self.n)(x), None)
        return nn.Dense(1)(x)


class Transformer(nn.Module):
    n: int

    @nn.compact
    def __call__(self, tokens):
        x = nn.Embed(20, self.n)(tokens)
        for _ in range(2):
            x = x + nn.MultiHeadDotProductAttention(num_heads=4)(nn.LayerNorm()(x))
            x = x + nn.Dense(self.n)(nn.gelu(nn.Dense(4 * self.n)(nn.LayerNorm()(x))))
        return nn.Dense(20)(nn.LayerNorm()(x))


X = jnp.ones((2, 5))


def linen(module, x=X):
    return lambda n: module(n).init(KEY, x)


def of_haiku(function, x):
    return lambda n: hk.transform(lambda y: function(n)(y)).init(KEY, x(n))


MODULES = {
    "linen.Dense, norms": linen(Linen),
    "linen.scan": linen(Deep),
    "linen transformer": linen(Transformer, jnp.ones((1, 8), int)),
    "linen.Embed": lambda n: nn.Embed(20, n).init(KEY, jnp.ones((3,), int)),
    "linen.Conv": lambda n: nn.Conv(n, (3, 3)).init(KEY, jnp.ones((1, 8, 8, 3))),
    "linen.MultiHeadDotProductAttention": lambda n: nn.MultiHeadDotProductAttention(
        num_heads=4, qkv_features=n, out_features=n
    ).init(KEY, jnp.ones((2, 8, n))),
    "linen.GRUCell, normal": lambda n: nn.GRUCell(
        n, recurrent_kernel_init=initializers.lecun_normal()
    ).init(KEY, jnp.ones((1, n)), jnp.ones((1, 5))),
    "nnx.Linear": lambda n: nnx.state(
        nnx.Sequential(
            nnx.Linear(5, n, rngs=nnx.Rngs(0)),
            nnx.Linear(n, n, rngs=nnx.Rngs(1)),
            nnx.Linear(n, 3, rngs=nnx.Rngs(2)),
        ),
        nnx.Param,
    ),
    "nnx.MultiHeadAttention": lambda n: nnx.state(
        nnx.MultiHeadAttention(num_heads=4, in_features=n, decode=False, rngs=nnx.Rngs(0)),
        nnx.Param,
    ),
    "nnx.Conv": lambda n: nnx.state(nnx.Conv(3, n, (3, 3), rngs=nnx.Rngs(0)), nnx.Param),
    "equinox.nn.MLP": lambda n: eqx.nn.MLP(5, 3, n, 2, key=KEY),
    "equinox.nn.GRUCell": lambda n: eqx.nn.GRUCell(5, n, key=KEY),
    "equinox.nn.LSTMCell": lambda n: eqx.nn.LSTMCell(5, n, key=KEY),
    "equinox.nn.Conv2d": lambda n: eqx.nn.Conv2d(3, n, 3, key=KEY),
    "equinox.nn.MultiheadAttention": lambda n: eqx.nn.MultiheadAttention(4, n, key=KEY),
    "equinox.nn.Embedding": lambda n: eqx.nn.Embedding(20, n, key=KEY),
    "equinox.nn.LayerNorm": lambda n: eqx.nn.LayerNorm(n),
    "haiku.nets.MLP": of_haiku(lambda n: hk.nets.MLP([n, n, 3]), lambda n: X),
    "haiku.Conv2D": of_haiku(lambda n: hk.Conv2D(n, 3), lambda n: jnp.ones((1, 8, 8, 3))),
    "haiku.Embed": of_haiku(lambda n: hk.Embed(20, n), lambda n: jnp.ones((3,), int)),
    "haiku.MultiHeadAttention": lambda n: hk.transform(
        lambda y: hk.MultiHeadAttention(4, n // 4, w_init=hk.initializers.VarianceScaling())(
            y, y, y
        )
    ).init(KEY, jnp.ones((8, n))),
    "haiku.LayerNorm": of_haiku(lambda n: hk.LayerNorm(-1, True, True), lambda n: jnp.ones((2, n))),
}


@pytest.mark.parametrize("name", MODULES)
def test_module(name):
    """Modules of the libraries as they are, from their own initialisers."""
    make = MODULES[name]
    found = pairs(make, tp.declare(make))
    assert found
    for one, array in found:
        check_law(one, array, {"n": WIDTH})


# --- several widths, ties, other leaves


def test_two_widths():
    first, second = jax.random.split(KEY)

    def make(n, m):
        lecun = initializers.lecun_normal()
        return {"a": lecun(first, (n, m)), "b": lecun(second, (m, 3)), "c": jnp.zeros((2 * m, n))}

    n, m = tp.Width("n"), tp.Width("m", ratio=2)
    theta = tp.declare(make, n, m)
    assert theta["a"].shape == (n, m)
    assert (str(theta["a"].std), str(theta["b"].std)) == ("n**-1/2", "m**-1/2")
    for one, array in pairs(make, theta, 100, 300):
        check_law(one, array, {"n": 100, "m": 300})


def test_ties_and_parts():
    """One draw in two places is one array; parts of a draw are independent."""

    def make(n):
        first, second = jax.random.split(KEY)
        embedding = jax.random.normal(first, (7, n))
        query, value = jnp.split(jax.random.normal(second, (n, 6)), 2, axis=1)
        return {"in": embedding, "out": embedding, "query": query, "value": value}

    theta = tp.declare(make)
    assert theta["query"].tied is None
    for width in (64, tp.inf, tp.Deferred(64)):
        drawn = tp.sample(theta, KEY, width=width)
        gap = lambda t: jnp.mean((t["in"] - t["out"]) ** 2)
        assert tp.limit(gap)(drawn) == 0
        product = tp.limit(lambda t: jnp.mean(t["query"] * t["value"]))(drawn)
        assert abs(float(product)) < 0.5
        assert tp.limit(lambda t: jnp.mean(t["in"] ** 2))(drawn) == pytest.approx(1, abs=0.3)


def test_other_leaves_stay():
    def make(n):
        weights = jax.random.normal(KEY, (n, n))
        return {"w": weights, "count": jnp.zeros((), int), "table": jnp.arange(3.0), "f": jnp.tanh}

    theta = tp.declare(make)
    assert theta["f"] is jnp.tanh
    np.testing.assert_array_equal(theta["table"], [0, 1, 2])
    assert jnp.issubdtype(theta["count"].dtype, jnp.integer)


# --- the limit


LAWS = {
    # name: (draw, fourth moment of the standardised law, mean)
    "truncated normal": (
        lambda key, n: jax.random.truncated_normal(key, -2.0, 2.0, (n,)),
        stats.truncnorm.moment(4, -2, 2),
    ),
    "uniform": (lambda key, n: jax.random.uniform(key, (n,), minval=-1.0), 1 / 5),
    "laplace": (lambda key, n: jax.random.laplace(key, (n,)), 24.0),
    "exponential": (lambda key, n: jax.random.exponential(key, (n,)), 24.0),
    "sparse": (lambda key, n: sparse(key, (n,)), 0.6),
    "two values": (lambda key, n: 1.0 * jax.random.bernoulli(key, 0.3, (n,)), 0.3),
}


@pytest.mark.parametrize("name", LAWS)
def test_particles_have_the_law(name):
    """Fourth moments, to 3 per cent: quantiles of laws without a name are a table."""
    draw, fourth = LAWS[name]
    theta = tp.sample(tp.declare(lambda n: draw(KEY, n)), KEY, width=tp.inf, samples=2**14)
    assert tp.limit(lambda v: jnp.mean(v**4))(theta) == pytest.approx(fourth, rel=0.03)


def test_single_values_are_exact():
    """Rounded entries are equal to numbers with a probability, in the limit as in networks."""

    def make(n):
        first, second = jax.random.split(KEY)
        rounded = jnp.round(2 * jax.random.normal(first, (n,))) / 2
        dropped = jax.random.bernoulli(second, 0.8, (n,)) / 0.8
        return {"rounded": rounded, "dropped": dropped}

    def shares(t):
        return jnp.stack([jnp.mean(t["rounded"] == 0.5), jnp.mean(t["dropped"] == 0)])

    exact = [stats.norm.cdf(0.75) - stats.norm.cdf(0.25), 0.2]
    limit = tp.limit(shares)(tp.sample(make, KEY, width=tp.inf, samples=2**12))
    np.testing.assert_allclose(limit, exact, atol=2e-3)
    networks = [shares(tp.sample(make, jax.random.key(k), width=2**12)) for k in range(16)]
    np.testing.assert_allclose(np.mean(networks, 0), exact, atol=1e-2)


def test_odd_averages_vanish_for_symmetric_laws_only():
    for name, symmetric in {
        "laplace": True,
        "truncated normal": True,
        "exponential": False,
    }.items():
        draw, _ = LAWS[name]
        theta = tp.sample(tp.declare(lambda n, d=draw: d(KEY, n)), KEY, width=tp.inf, terms=2)
        cube = tp.leading(lambda v: jnp.mean((v - jnp.mean(v)) ** 3))(theta)
        assert (float(cube.exponent) < 0) == symmetric


def width_of(params):
    return params["params"]["Dense_0"]["bias"].shape[0]


def loss(params):
    """Mean-field output of a module that is built at the width of its parameters."""
    n = width_of(params)
    outputs = Linen(n).apply(params, jnp.sin(jnp.arange(20.0).reshape(4, 5))) / n**0.5
    return jnp.mean((outputs - 1) ** 2)


def step(params, _):
    n = width_of(params)
    value, grads = jax.value_and_grad(loss)(params)
    # muP: vectors and input weights move by n times their gradients, the readout's by it.
    rates = jax.tree_util.tree_map_with_path(
        lambda path, g: 0.1 * (n if g.shape[-1] != 3 and (g.ndim == 1 or g.shape[0] == 5) else 1),
        grads,
    )
    return jax.tree.map(lambda w, r, g: w - r * g, params, rates, grads), value


def test_a_module_trains_from_its_own_initialiser():
    """Networks of four widths against the limit over three steps: slope -1/2, z at the largest."""
    result = tp.compare(
        step, linen(Linen), [None] * 3, widths=[64, 128, 256, 512], seeds=16, samples=2**12,
        replicates=4, key=KEY, progress=False,
    )  # fmt: skip
    assert result.slope == pytest.approx(-0.5, abs=max(0.15, 3 * result.slope_stderr))
    assert np.max(np.abs(jax.tree.leaves(result.z_scores))) < 4.5


class Recurrent(nn.Module):
    """A cell of flax with its orthogonal matrices."""

    width: int

    @nn.compact
    def __call__(self, x):
        return nn.Dense(1, use_bias=False)(nn.RNN(nn.GRUCell(self.width))(x)[:, -1])


def recurrent_step(params, _):
    x = jax.random.normal(KEY, (4, 5, 3))
    n = params["params"]["Dense_0"]["kernel"].shape[0]

    def loss(params):
        out = Recurrent(n).apply(params, x)[:, 0] / n**0.5
        return jnp.mean((out - jnp.sin(x[:, :, 0].sum(1))) ** 2)

    value, grads = jax.value_and_grad(loss)(params)
    rate = lambda g: 0.2 * (n if g.ndim == 1 or g.shape[0] == 3 else 1)
    return jax.tree.map(lambda w, g: w - rate(g) * g, params, grads), value


def trained_beside_networks(step, make, seeds):
    """Three steps in the limit, within 5 standard errors of networks of width 256 and 4 / n."""
    options = {"key": KEY, "progress": False}
    limit = tp.train(step, make, [None] * 3, width=tp.inf, samples=2**10, replicates=4, **options)
    networks = tp.train(step, make, [None] * 3, width=256, replicates=seeds, **options)
    error = np.hypot(limit.stderr.outputs, networks.stderr.outputs)
    assert np.all(np.abs(limit.outputs - networks.outputs) < 5 * error + 4 / 256)
    return limit


def test_a_recurrent_cell_trains_from_its_own_initialiser():
    """Three steps, within 5 standard errors of networks of width 256 and 4 / n; several stacks of
    orthogonal matrices are drawn at a time, which decompositions on CPUs may not survive."""
    make = lambda n: Recurrent(n).init(KEY, jnp.zeros((4, 5, 3)))
    trained_beside_networks(recurrent_step, make, 8)


def unrolled(cell, x, n):
    out, _ = hk.dynamic_unroll(cell(n), x.swapaxes(0, 1), cell(n).initial_state(len(x)))
    return out[-1]


class Cell(nn.Module):
    width: int

    @nn.compact
    def __call__(self, x):
        return nn.RNN(nn.OptimizedLSTMCell(self.width))(x)[:, -1]


def haiku_cell(cell, power=0):
    """The last state, as a function of parameters; inputs times a power of the width."""
    net = lambda n: hk.without_apply_rng(
        hk.transform(lambda x: unrolled(cell, x * float(n) ** power, n))
    )
    return lambda n, x: net(n).init(KEY, x), lambda params, n, x: net(n).apply(params, x)


#: Cells whose matrices stand side by side along a width, or an input beside a state: there the
#: input is scaled, since haiku draws its rows like those of the state.
CELLS = {
    "haiku GRU": haiku_cell(hk.GRU),
    "haiku LSTM": haiku_cell(hk.LSTM, 0.5),
    "linen OptimizedLSTM": (
        lambda n, x: Cell(n).init(KEY, x), lambda params, n, x: Cell(n).apply(params, x),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CELLS)
def test_a_cell_of_matrices_side_by_side_trains(name):
    """Three steps in muP, within 5 standard errors of 48 networks of width 256 and 4 / n: a false
    alarm in 10^6 runs."""
    initialise, apply = CELLS[name]
    x = jax.random.normal(KEY, (4, 3, 3))

    def make(n):
        return initialise(n, x), jax.random.normal(jax.random.key(7), (n,))

    def step(params, _):
        n = len(params[1])

        def loss(params):
            out = apply(params[0], n, x) @ params[1] / n
            return jnp.mean((out - jnp.asarray([1.0, -1.0, 0.5, -0.3])) ** 2), out

        grads, out = jax.grad(loss, has_aux=True)(params)
        rate = lambda g: 0.3 * (n if g.ndim == 1 or g.shape[0] == 3 else 1)
        return jax.tree.map(lambda w, g: w - rate(g) * g, params, grads), out

    limit = trained_beside_networks(step, make, 48)
    assert np.max(np.abs(limit.outputs[-1])) > 0.03  # it learns


# --- errors


def heavy(n):
    return {"w": jax.random.cauchy(KEY, (n,))}


ERRORS = {
    "a factor without its signs": (
        lambda n: {"w": jnp.linalg.qr(jax.random.normal(KEY, (n, n)))[1]},
        "triangular factor",
    ),
    "a part of an orthogonal matrix": (
        lambda n: {"w": initializers.orthogonal()(KEY, (n, n))[:, : n // 2]},
        "a part of it",
    ),
    "a function of an orthogonal matrix": (
        lambda n: {"w": jnp.abs(initializers.orthogonal()(KEY, (n, n)))},
        "functions of those",
    ),
    "more rows than columns": (
        lambda n: {"w": initializers.orthogonal()(KEY, (n, 2 * n))},
        "orthogonal matrix of shape",
    ),
    "heavy tails": (heavy, "heavy tails"),
    "one key twice": (
        lambda n: {"a": jax.random.normal(KEY, (n, 3)), "b": jax.random.normal(KEY, (n,))},
        r"\['a'\] and \['b'\] .* one random key",
    ),
    "overlapping parts": (
        lambda n: (lambda w: {"a": w[:, :2], "b": w[:, 1:]})(jax.random.normal(KEY, (n, 3))),
        "one random key",
    ),
    "sums of draws": (lambda n: {"w": jax.random.normal(KEY, (n, 9)).sum(1)}, "reduce_sum"),
    "less than a width": (lambda n: {"w": jnp.zeros((n - 3, n))}, r"\['w'\].*lengths"),
    "two numbers beside widths": (
        lambda n: {"w": jnp.zeros((n + 3, n + 3))},
        r"\['w'\] of make.n. has the shape 3 \+ n",
    ),
    "an orthogonal matrix beside a number": (
        lambda n: {"w": initializers.orthogonal()(KEY, (n + 3, n))},
        r"\['w'\].*3 \+ n, n",
    ),
    "a table along a width": (lambda n: {"w": jnp.arange(1.0 * n)}, "different numbers"),
    "rarer and rarer": (
        lambda n: {"w": 1.0 * jax.random.bernoulli(KEY, 20 / n, (n,))},
        "changes with the width",
    ),
    "a draw among others": (
        lambda n: (
            lambda keys: {
                "all": jnp.stack([jax.random.normal(key, (n,)) for key in keys]),
                "one": jax.random.normal(keys[2], (n,)),
            }
        )(jax.random.split(KEY, 4)),
        r"\['all'\] and \['one'\] .* one random key",
    ),
    "a law that changes": (
        lambda n: {"w": (jax.random.normal if n < 4000 else jax.random.uniform)(KEY, (n,))},
        "changes with the width",
    ),
    "no power": (lambda n: {"w": jax.random.normal(KEY, (n,)) * np.sin(n)}, "no power"),
}


@pytest.mark.parametrize("name", ERRORS)
def test_error_names_the_leaf(name):
    make, text = ERRORS[name]
    with pytest.raises(tp.LimitError, match=text):
        tp.declare(make)


def test_an_axis_of_two_widths():
    with pytest.raises(tp.WidthError, match="no multiple of one width"):
        tp.declare(lambda n, m: jnp.zeros(n + m), tp.Width("n"), tp.Width("m", ratio=2))
    with pytest.warns(tp.LimitWarning, match="leading power"):
        tp.declare(
            lambda n, m: initializers.glorot_normal()(KEY, (n, m)),
            tp.Width("n"), tp.Width("m", ratio=2),
        )  # fmt: skip


def test_make_that_fails():
    def make(n):
        w = jax.random.normal(KEY, (n,))
        return w if w[0] > 0 else -w

    with pytest.raises(tp.WidthError, match=r"make\(1920\) failed .*TracerBool") as error:
        tp.declare(make)
    assert "test_initialisers.py" in str(error.value)


def test_scale_that_is_no_power():
    """Glorot's of many inputs: the limit has the leading power, and a warning says so."""
    make = lambda n: initializers.glorot_uniform()(KEY, (784, n))
    with pytest.warns(tp.LimitWarning, match=r"leaf .* is 0\.0272 at n=1920, and 0\.0323"):
        theta = tp.declare(make)
    assert str(theta.std) == "1.41421 * n**-1/2"


def test_wrong_widths():
    with pytest.raises(TypeError, match=r"tp\.Width"):
        tp.declare(lambda n: jnp.zeros(n), 128)
    with pytest.raises(tp.WidthError, match="ratios"):
        tp.declare(lambda n, m: jnp.zeros((n, m)), tp.Width("n"), tp.Width("m"))
