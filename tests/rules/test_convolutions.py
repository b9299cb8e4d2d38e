"""Convolutions and windows over space, with channels that grow: written as other operations."""

import equinox as eqx
import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from oracles.helpers import assert_same_mean, dense, error_of, line_of, sampled

import tplimit as tp
from tplimit import _jax
from tplimit.kernels.programs.recognition import program_of
from tplimit.program import rewriting

n = tp.Width("n")
rng = np.random.default_rng(0)
X = jnp.asarray(rng.normal(size=(2, 5, 4, 2)), jnp.float32)
Y = jnp.asarray([1.0, -0.5])
IMAGES = "NHWC", "HWIO", "NHWC"


def conv(x, kernel, strides=(1, 1), padding="SAME", **options):
    return lax.conv_general_dilated(
        x, kernel, strides, padding, dimension_numbers=IMAGES, **options
    )


# Written as other operations: the same numbers ----------------------------------------------------


def by_other_operations(function):
    """A function all of whose convolutions and windows are written as other operations."""

    def run(jaxpr, inputs):
        body, consts = _jax.open_jaxpr(jaxpr)
        known = dict(zip(body.constvars, consts, strict=True))
        known.update(zip(body.invars, inputs, strict=True))
        read = lambda atom: atom.val if isinstance(atom, _jax.Literal) else known[atom]
        for e in body.eqns:
            operands = [read(atom) for atom in e.invars]
            written = rewriting.rewritten([e], [{}] * len(operands)) or [_jax.inner_program(e)]
            if written[0] is not None:
                outputs = run(written[0], operands)
            else:
                assert not any(word in e.primitive.name for word in ("conv_g", "window", "_and_"))
                outputs = e.primitive.bind(*operands, **e.params)
                outputs = outputs if e.primitive.multiple_results else [outputs]
            known.update(zip(e.outvars, outputs, strict=True))
        return [read(atom) for atom in body.outvars]

    return lambda *args: run(jax.make_jaxpr(function)(*args), args)


def assert_the_same(function, *args):
    one, two = jax.jit(function)(*args), jax.jit(by_other_operations(function))(*args)
    for a, b in zip(jax.tree.leaves(one), two, strict=True):
        assert (a.shape, a.dtype) == (b.shape, b.dtype)
        close = 0.05 if a.dtype == jnp.bfloat16 else 2e-5
        np.testing.assert_allclose(
            np.asarray(a, float), np.asarray(b, float), rtol=close, atol=close
        )


# Lengths, kernel, strides, padding, lhs and rhs dilation, groups of features and of the batch.
CONVOLUTIONS = {
    "same": ((5, 4), (3, 2), (2, 1), "SAME", (1, 1), (1, 1), 1, 1),
    "1x1": ((3, 2), (1, 1), (1, 1), "VALID", (1, 1), (1, 1), 1, 1),
    "dilated": ((6,), (2,), (3,), ((2, -1),), (2,), (2,), 1, 1),
    "groups": ((5,), (3,), (1,), "SAME", (1,), (1,), 2, 1),
    "depthwise": ((4, 4), (3, 3), (1, 2), "SAME", (1, 1), (1, 1), 4, 1),
    "groups of the batch": ((4,), (2,), (1,), "VALID", (1,), (1,), 1, 2),
    "wider than the input": ((2,), (5,), (2,), ((1, 3),), (1,), (1,), 1, 1),
    "nothing": ((2, 3), (3, 1), (1, 1), "VALID", (1, 1), (1, 1), 1, 1),
    "volumes": ((3, 2, 4), (2, 1, 3), (1, 1, 2), "SAME", (1, 1, 1), (1, 1, 1), 1, 1),
    "all at once": ((5, 3), (2, 3), (2, 1), ((3, 0), (-1, 2)), (2, 3), (1, 2), 2, 1),
}


@pytest.mark.parametrize("case", CONVOLUTIONS)
@pytest.mark.parametrize("derivatives", [False, True])
def test_convolutions_are_contractions_of_patches(case, derivatives):
    space, kernel, strides, padding, base, dilation, groups, batches = CONVOLUTIONS[case]
    letters = "DHW"[-len(space) :]
    numbers = f"N{letters}C", f"{letters}IO", f"NC{letters}"
    x = rng.normal(size=(2 * batches, *space, 4)).astype(np.float32)
    w = rng.normal(size=(*kernel, 4 // groups, 4)).astype(np.float32)

    def run(x, w):
        return lax.conv_general_dilated(
            x, w, strides, padding, base, dilation, numbers, groups, batches
        )

    weights = rng.normal(size=run(x, w).shape).astype(np.float32)
    slopes = jax.grad(lambda x, w: jnp.sum(jnp.tanh(run(x, w)) * weights), (0, 1))
    if not derivatives:
        assert_the_same(run, x, w)
    elif weights.size:
        assert_the_same(slopes, x, w)
        assert_the_same(lambda x, w: jax.jvp(slopes, (x, w), (0.5 * x, w))[1], x, w)


# Lengths, window, strides, padding, dilations of the window and of the operand.
POOLS = {
    "halves": ((4, 6), (2, 2), (2, 2), "VALID", (1, 1), (1, 1)),
    "overlapping": ((5, 4), (3, 2), (2, 1), "SAME", (1, 1), (1, 1)),
    "padded": ((5,), (3,), (2,), ((2, 1),), (1,), (1,)),
    "left out": ((7,), (2,), (3,), "VALID", (1,), (1,)),
    "dilated": ((5, 3), (2, 2), (1, 1), "VALID", (2, 1), (1, 2)),
    "no windows": ((2,), (3,), (1,), "VALID", (1,), (1,)),
}


@pytest.mark.parametrize("case", POOLS)
@pytest.mark.parametrize(
    ("init", "function"), [(0.0, lax.add), (-np.inf, lax.max), (np.inf, lax.min)]
)
def test_windows_are_sums_and_extrema_of_patches(case, init, function):
    """With ties, of which derivatives in reverse take the first one. Forward JAX takes one that
    hangs on the machine, so that there are none."""
    space, window, strides, padding, dilation, base = POOLS[case]
    wide = lambda sizes: (1, *sizes, 1)
    padding = padding if isinstance(padding, str) else ((0, 0), *padding, (0, 0))
    x = rng.integers(0, 3, (2, *space, 2)).astype(np.float32)
    different = rng.permutation(x.size).reshape(x.shape).astype(np.float32)
    settings = wide(window), wide(strides), padding, wide(base), wide(dilation)
    run = lambda x: lax.reduce_window(x, init, function, *settings)
    assert_the_same(lambda x: jax.jvp(run, (x,), (jnp.sin(x),)), different)
    if case != "dilated" or function is lax.add:
        weights = rng.normal(size=run(x).shape).astype(np.float32)
        assert_the_same(lambda x: (run(x), jax.grad(lambda x: jnp.sum(run(x) * weights))(x)), x)


def test_other_precisions(float64):
    for dtype in (jnp.bfloat16, jnp.float64):
        x, w = X.astype(dtype), jnp.asarray(rng.normal(size=(2, 2, 2, 3)), dtype)
        assert_the_same(lambda x, w: nn.avg_pool(conv(x, w), (2, 2), (1, 2)), x, w)
        assert_the_same(lambda x: jax.grad(lambda x: nn.max_pool(x, (2, 2)).sum())(x), x)


def test_few_operations_are_enough():
    """Patches by one gather for each axis, one contraction; halves by a change of shape alone."""
    theta = {"W": tp.normal((3, 3, 2, n)), "v": tp.normal((n,))}
    pooled = lambda t, x: nn.avg_pool(conv(x, t["W"]), (2, 2), (2, 2)) @ t["v"]
    program = program_of(pooled, theta, X[:, :4])
    names = [e.primitive.name for e in program.equations]
    assert names.count("gather") == 2 and names.count("dot_general") == 2
    assert len(names) <= 10, names


# Beside networks ----------------------------------------------------------------------------------

U = tp.normal((2, 2, 2, n), std=0.4)
W = tp.normal((2, 2, n, n), std=(4 * n) ** -0.5)


def network(hidden, **declared):
    """A step of gradient descent of a network with a hidden part, in muP: outputs afterwards."""
    declared = {"U": U, "v": tp.normal((n,)), **declared}

    def outputs(t):
        h = hidden(t, jnp.tanh(conv(X, t["U"])))
        return h.mean((1, 2)) @ t["v"] / t["v"].shape[0]

    def run(t):
        gradient = jax.grad(lambda t: jnp.mean((outputs(t) - Y) ** 2))(t)
        rate = lambda name: 1.0 if name == "W" else t["v"].shape[0]
        t = {name: t[name] - rate(name) * gradient[name] for name in t}
        return outputs(t), jnp.mean(t["v"] ** 2)

    return run, declared


def scanned(t):
    h = jnp.tanh(conv(X, t["U"]))
    h, _ = lax.scan(lambda h, _: (h + jnp.tanh(conv(h, t["W"])), None), h, None, length=3)
    return jnp.mean(h**2, (1, 2, 3))


def volumes(t):
    spec = "NDHWC", "DHWIO", "NDHWC"
    h = X[:, None]
    for name in "ab":
        h = jnp.tanh(
            lax.conv_general_dilated(h, t[name], (1, 2, 1), "SAME", dimension_numbers=spec)
        )
    return jnp.mean(h**2, (1, 2, 3, 4))


def ensemble(t):
    """Kernels side by side, which JAX makes one convolution of many channels of."""
    one = lambda u, w: jnp.mean(jnp.tanh(conv(jnp.tanh(conv(X, u)), w)) ** 2)
    return jax.vmap(one)(t["u"], t["w"])


FINITE = jnp.asarray(rng.normal(size=(3, 2, 3)), jnp.float32)


def finite_kernel(t):
    """The batch grows, and the kernel is a constant."""
    spec = "NWC", "WIO", "NWC"
    h = lax.conv_general_dilated(t["x"], FINITE, (1,), "SAME", dimension_numbers=spec)
    return jnp.mean(jnp.tanh(h) ** 2, 0)


D = tp.normal((2, 2, 1, n))
tanh = jnp.tanh
NETWORKS = {
    "strides": network(
        lambda t, h: tanh(conv(h, t["W"], (2, 1), ((1, 2), (0, -1)))), W=W
    ),
    "dilated": network(
        lambda t, h: tanh(conv(h, t["W"], padding="VALID", rhs_dilation=(2, 1))), W=W
    ),
    "transposed": network(
        lambda t, h: tanh(lax.conv_transpose(h[:, :3, :2], t["W"], (2, 2), "SAME")), W=W
    ),
    "1x1": network(
        lambda t, h: tanh(conv(h, t["W"])), W=tp.normal((1, 1, n, n), std=n**-0.5)
    ),
    "depthwise": network(
        lambda t, h: tanh(conv(h, t["D"], feature_group_count=h.shape[-1])), D=D
    ),
    "groups of inputs": network(lambda t, h: h * tanh(conv(X, t["D"], feature_group_count=2)), D=D),
    "averages": network(
        lambda t, h: tanh(conv(nn.avg_pool(h, (2, 2), (1, 2), "SAME", False), t["W"])), W=W
    ),
    "maxima": network(
        lambda t, h: nn.max_pool(jax.nn.relu(conv(h, t["W"])), (3, 3), (2, 2), ((1, 1), (1, 1))),
        W=W,
    ),
    "minima": network(lambda t, h: tanh(-nn.max_pool(-conv(h, t["W"]), (2, 2), (1, 1))), W=W),
    "nothing": network(
        lambda t, h: h + conv(h[:, :1], t["W"], padding="VALID").sum((1, 2), keepdims=True), W=W
    ),
    "scan": (scanned, {"U": U, "W": W}),
    "volumes": (
        volumes,
        {"a": tp.normal((1, 2, 2, 2, n), std=0.4),
         "b": tp.normal((1, 2, 2, n, n), std=(4 * n) ** -0.5)},
    ),
    "ensemble": (
        ensemble,
        {"u": tp.normal((3, 2, 2, 2, n), std=0.4),
         "w": tp.normal((3, 2, 2, n, n), std=(4 * n) ** -0.5)},
    ),
    "groups": (
        lambda t: jnp.mean(
            tanh(conv(tanh(conv(X, t["U"])), t["G"], feature_group_count=4)) ** 2, (1, 2, 3)
        ),
        {"U": U, "G": tp.normal((2, 2, n / 4, n), std=n**-0.5)},
    ),
    "finite kernel": (finite_kernel, {"x": tp.normal((n, 4, 2))}),
}  # fmt: skip


@pytest.mark.parametrize("case", NETWORKS)
def test_limit_is_the_mean_of_networks(case):
    run, declared = NETWORKS[case]
    found = sampled(run, declared, tp.inf, 3)
    assert_same_mean(found, dense(run, declared, 128, 48), 4 / 128)


@pytest.mark.parametrize("case", NETWORKS)
def test_deferred_has_the_mean_of_networks(case):
    run, declared = NETWORKS[case]
    assert_same_mean(sampled(run, declared, tp.Deferred(64), 24), dense(run, declared, 64, 64))


def test_networks_come_closer_as_they_grow():
    run, declared = NETWORKS["maxima"]

    def step(t, _):
        return t, run(t)[0]

    compared = tp.compare(
        step, declared, [None], widths=(32, 64, 128, 256), seeds=16, key=jax.random.key(1),
        samples=2**12, replicates=2,
    )  # fmt: skip
    assert abs(compared.slope + 0.5) <= 0.2
    assert np.max(np.abs(compared.z_scores)) <= 4.5


# Refused ------------------------------------------------------------------------------------------


PLAIN = {"window_strides": (1, 1), "padding": "SAME", "dimension_numbers": IMAGES}


def along_a_width(t):
    x = t["v"][None, :, None, None]
    return jnp.mean(lax.conv_general_dilated(x, jnp.ones((3, 1, 1, 1)), **PLAIN))  # here


def pooled_width(t):
    return jnp.mean(nn.max_pool(t["x"][None], (2,), (2,)))  # here


def groups_in_training(t):
    h, groups = jnp.tanh(conv(X, t["U"])), {"feature_group_count": 4}
    f = lambda w: jnp.mean(lax.conv_general_dilated(h, w, **PLAIN, **groups))  # here
    return jnp.mean(jax.grad(f)(t["G"]))


def several_outputs_for_each_channel(t):
    h = jnp.tanh(conv(X, t["U"]))
    groups = {"feature_group_count": h.shape[-1]}
    return jnp.mean(lax.conv_general_dilated(h, t["E"], **PLAIN, **groups) ** 2)  # here


def own_function(t):
    return jnp.mean(lax.reduce_window(t["x"], 1.0, lax.mul, (1, 2), (1, 2), "VALID"))  # here


def padding_alone(t):
    pad = ((2, 0), (0, 0))
    x = t["x"].T
    return jnp.mean(lax.reduce_window(x, -jnp.inf, lax.max, (2, 1), (1, 1), pad))  # here


REFUSED = {
    along_a_width: (tp.NoLimitError, "no order|have none"),
    pooled_width: (tp.NoLimitError, "no order|have none"),
    groups_in_training: (tp.NoLimitError, "dealt out to an axis behind it"),
    several_outputs_for_each_channel: (tp.NoLimitError, "dealt out to an axis behind it"),
    own_function: (tp.UnsupportedOperationError, "function of one's own"),
    padding_alone: (tp.NoLimitError, "padding alone"),
}


@pytest.mark.parametrize("program", REFUSED, ids=lambda f: f.__name__)
def test_refused_with_the_line(program):
    declared = {
        "U": U, "v": tp.normal((n,)), "x": tp.normal((n, 4)), "E": tp.normal((2, 2, 1, 2 * n)),
        "G": tp.normal((2, 2, n / 4, n), std=n**-0.5),
    }  # fmt: skip
    theta = tp.sample(declared, jax.random.key(0), width=tp.inf, samples=64)
    kind, text = REFUSED[program]
    error = error_of(kind, tp.limit(program), theta)
    assert error.location.line == line_of(program) and __file__ in error.location.file
    assert any(word in str(error) for word in text.split("|")), str(error)


# Kernels ------------------------------------------------------------------------------------------

KERNELS = {
    name: tp.normal(shape)
    for name, shape in {"U": (3, 3, 2, n), "b": (n,), "W": (3, 2, n, n), "v": (n,)}.items()
}
IMAGE = jnp.asarray(rng.normal(size=(4, 6, 5, 2)), jnp.float32)


def ntk_network(activation):
    def apply(t, x):
        m = t["v"].shape[0]
        h = activation(1.5 / 18**0.5 * conv(x, t["U"]) + 0.1 * t["b"])
        h = nn.avg_pool(h, (2, 2), (2, 1))
        h = activation(1.5 / (6 * m) ** 0.5 * conv(h, t["W"], (2, 1), "VALID"))
        return h.mean((1, 2)) @ t["v"] / m**0.5

    return apply


@pytest.mark.parametrize("name", ["relu", "erf"])
def test_kernels_are_those_of_neural_tangents(stax, name):
    activation, layer = {
        "relu": (jax.nn.relu, stax.Relu()), "erf": (jax.scipy.special.erf, stax.Erf())
    }[name]  # fmt: skip
    layers = (
        stax.Conv(1, (3, 3), padding="SAME", W_std=1.5, b_std=0.1), layer,
        stax.AvgPool((2, 2), (2, 1)),
        stax.Conv(1, (3, 2), (2, 1), W_std=1.5), layer, stax.GlobalAvgPool(), stax.Dense(1),
    )  # fmt: skip
    for which in ("nngp", "ntk"):
        expected = stax.serial(*layers)[2](IMAGE[:2], IMAGE[2:], which)
        kernel = getattr(tp, which)
        found = kernel(ntk_network(activation), KERNELS, IMAGE[:2], IMAGE[2:], "closed_form")
        np.testing.assert_allclose(found.value, expected, rtol=2e-5)


def test_kernels_by_particles_are_those_in_closed_form():
    apply, x = ntk_network(jnp.tanh), IMAGE[:2]
    for kernel in (tp.nngp, tp.ntk):
        exact = kernel(apply, KERNELS, x, method="closed_form")
        found = kernel(apply, KERNELS, x, method="particles", samples=2**11, replicates=8)
        assert np.all(np.abs(found - exact) <= 6 * found.stderr + 1e-3)


def test_what_is_padded_before_a_nonlinearity_has_its_value_at_zero():
    def apply(t, x):
        h = jnp.pad(conv(x, t["U"]) / 18**0.5, ((0, 0), (1, 0), (0, 2), (0, 0)))
        h = jnp.cos(h[:, ::2])
        return nn.avg_pool(conv(h, t["R"]) / t["b"].shape[0] ** 0.5, (2, 2)).mean((1, 2, 3))

    theta = {**KERNELS, "R": tp.normal((2, 2, n, 1))}
    exact = tp.nngp(apply, theta, IMAGE[:2], method="closed_form")
    found = tp.nngp(apply, theta, IMAGE[:2], method="particles", samples=2**11, replicates=8)
    assert np.all(np.abs(found - exact) <= 6 * found.stderr + 1e-3)


# Modules ------------------------------------------------------------------------------------------

SMALL = jax.random.normal(jax.random.key(1), (2, 6, 6, 1))


class Flax(nn.Module):
    width: int

    @nn.compact
    def __call__(self, x):
        x = nn.max_pool(nn.relu(nn.Conv(self.width, (3, 3))(x)), (2, 2), (2, 2))
        x = nn.avg_pool(nn.relu(nn.ConvTranspose(self.width, (2, 2), (2, 2))(x)), (2, 2), (2, 2))
        x = nn.relu(nn.Conv(self.width, (3, 3), strides=2)(x))
        return nn.Dense(1, use_bias=False)(x.mean((1, 2)))


class Equinox(eqx.Module):
    layers: list

    def __init__(self, width, key):
        keys = jax.random.split(key, 3)
        self.layers = [
            eqx.nn.Conv2d(1, width, 3, padding=1, key=keys[0]), eqx.nn.MaxPool2d(2, 2),
            jax.nn.relu, eqx.nn.Conv2d(width, width, 3, padding=1, key=keys[1]),
            eqx.nn.AvgPool2d(2, 1), jax.nn.relu,
            lambda x: x.mean((1, 2)), eqx.nn.Linear(width, 1, use_bias=False, key=keys[2]),
        ]  # fmt: skip

    def __call__(self, x):
        for layer in self.layers:
            x = layer(x)
        return x


def haiku_network(width):
    def forward(x):
        x = hk.max_pool(jax.nn.relu(hk.Conv2D(width, 3)(x)), 2, 2, "SAME", channel_axis=-1)
        x = hk.avg_pool(jax.nn.relu(hk.Conv2D(width, 3, stride=2)(x)), 2, 1, "SAME")
        return hk.Linear(1, with_bias=False)(x.mean((1, 2)))

    return hk.without_apply_rng(hk.transform(forward))


def equinox_apply(leaves, x):
    net = eqx.filter_eval_shape(Equinox, leaves[0].shape[0], jax.random.key(0))
    arrays, rest = eqx.partition(net, lambda leaf: isinstance(leaf, jax.ShapeDtypeStruct))
    net = eqx.combine(jax.tree.unflatten(jax.tree.structure(arrays), leaves), rest)
    return jax.vmap(net)(jnp.moveaxis(x, -1, 1))


MODULES = {
    "flax": (
        lambda m: Flax(m).init(jax.random.key(0), SMALL),
        lambda t, x: Flax(t["params"]["Conv_0"]["bias"].shape[0]).apply(t, x),
    ),
    "equinox": (
        lambda m: jax.tree.leaves(eqx.filter(Equinox(m, jax.random.key(0)), eqx.is_array)),
        equinox_apply,
    ),
    "haiku": (
        lambda m: haiku_network(m).init(jax.random.key(0), SMALL),
        lambda t, x: haiku_network(t["conv2_d"]["b"].shape[0]).apply(t, x),
    ),
}


@pytest.mark.parametrize("library", MODULES)
def test_modules_as_they_are(library):
    """Two steps of SGD in muP from their own initialisers, beside networks of width 256."""
    make, apply = MODULES[library]
    shapes = [jax.eval_shape(lambda m=m: make(m)) for m in (24, 48)]
    # Parameters that grow with the width, as biases do, move with a rate of n.
    rates = jax.tree.map(lambda a, b: b.size == 2 * a.size and a.shape[-2:] != (24, 1), *shapes)
    last = lambda a: a.shape in ((24, 1), (1, 24))
    rates = jax.tree.map(lambda rate, a: rate and not last(a), rates, shapes[0])

    def step(t, _):
        m = max(max(leaf.shape) for leaf in jax.tree.leaves(t))

        def loss(t):
            outputs = apply(t, SMALL)[:, 0] / m**0.5
            return jnp.mean((outputs - Y) ** 2), outputs

        (_, outputs), gradient = jax.value_and_grad(loss, has_aux=True)(t)
        move = lambda leaf, g, rate: leaf - 0.3 * (m if rate else 1) * g
        return jax.tree.map(move, t, gradient, rates), outputs

    how = {"key": jax.random.key(2), "progress": False}
    steps = [None] * 3
    limit = tp.train(step, make, steps, width=tp.inf, samples=2**11, replicates=3, **how)
    finite = tp.train(step, make, steps, width=256, replicates=12, **how)
    error = np.hypot(limit.stderr.outputs, finite.stderr.outputs)
    assert np.all(np.abs(limit.outputs - finite.outputs) <= 4.5 * error + 4 / 256)
