"""`tp.nngp` and `tp.ntk` of plain JAX programs: recursions read off them, particles, networks.

Particles are compared with exact kernels in units of their standard error over replicates, all
entries together by their largest |z|: a false alarm in 10^4 runs, by Student's t and Bonferroni.
"""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import statistics
from scipy import stats

import tplimit as tp
from tplimit import kernels

N = tp.Width("n")
RNG = np.random.default_rng(3)
X = RNG.normal(size=(4, 3))


def z_of(found, expected):
    """Largest |z| over its threshold."""
    z = (found.value - expected) / found.stderr
    limit = stats.t.isf(1e-4 / 2 / z.size, REPLICATES - 1)
    return float(jnp.abs(z).max() / limit)


REPLICATES = 8


def affine(x, W, b, w_std=1.3, b_std=0.4):
    return w_std * x @ W / x.shape[-1] ** 0.5 + b_std * b


def perceptron(depth, activation):
    """A multilayer perceptron in the NTK parameterization, written by hand."""

    def apply(theta, x):
        for l in range(depth):
            x = activation(affine(x, *theta[l]))
        return affine(x, *theta[depth])[:, 0]

    sizes = [3, *[N] * depth, 1]
    theta = [(tp.normal((a, b)), tp.normal((b,))) for a, b in itertools.pairwise(sizes)]
    return apply, theta


ACTIVATIONS = {
    "relu": jax.nn.relu, "erf": jax.lax.erf, "tanh": jnp.tanh,
    "gelu": lambda h: jax.nn.gelu(h, approximate=False),
    "leaky_relu": jax.nn.leaky_relu, "sin": jnp.sin, "silu": jax.nn.silu,
}  # fmt: skip


QUICK = {("relu", 3)}


@pytest.mark.parametrize(
    ("name", "depth"),
    [
        case if case in QUICK else pytest.param(*case, marks=pytest.mark.slow)
        for case in itertools.product(ACTIVATIONS, (1, 3))
    ],
)
def test_perceptrons_are_read_off_exactly(name, depth):
    """Float64; with biases and standard deviations that are no powers of the width."""
    apply, theta = perceptron(depth, ACTIVATIONS[name])
    with jax.enable_x64(True):
        x1, x2 = jnp.asarray(X), jnp.asarray(X[:2])
        expected = kernels.mlp(depth, name, 1.3, 0.4)(x1, x2)
        tolerance = 1e-6 if name == "leaky_relu" else 1e-9
        for which, exact in ((tp.nngp, expected.nngp), (tp.ntk, expected.ntk)):
            found = which(apply, theta, x1, x2, method="closed_form")
            assert found.method == "closed_form"
            assert found.value.dtype == jnp.float64
            np.testing.assert_allclose(found, exact, rtol=tolerance)


@pytest.mark.slow
def test_the_scales_may_be_in_the_parameters():
    """Standard parameterization: the same covariance; its tangent kernel grows with the width."""
    theta = {
        "U": tp.normal((3, N)),
        "W": tp.normal((N, N), std=N**-0.5),
        "v": tp.normal((N,), std=N**-0.5),
    }

    def apply(t, x):
        return jnp.tanh(jnp.tanh(x @ t["U"] / 3**0.5) @ t["W"]) @ t["v"]

    x = jnp.asarray(X, jnp.float32)
    found = tp.nngp(apply, theta, x, method="closed_form")
    np.testing.assert_allclose(found, kernels.mlp(2, "tanh")(x).nngp, rtol=1e-5)
    with pytest.raises(tp.DivergenceError, match=r"grows like n\^1"):
        tp.ntk(apply, theta, x, method="closed_form")


def residual_network(t, x):
    h = x @ t["U"] / x.shape[-1] ** 0.5
    for W in t["W"]:
        h = h + 0.5 * jax.nn.relu(h) @ W / W.shape[0] ** 0.5
    return jax.nn.relu(h) @ t["v"] / t["v"].shape[0] ** 0.5


RESIDUAL = {
    "U": tp.normal((3, N)), "W": [tp.normal((N, N)), tp.normal((N, N))], "v": tp.normal((N,)),
}  # fmt: skip


def test_residual_sums_of_fresh_products_are_recognised():
    block = kernels.residual(kernels.activation("relu"), kernels.dense(0.5))
    net = kernels.network(
        kernels.dense(), block, block, kernels.activation("relu"), kernels.dense()
    )
    x = jnp.asarray(X, jnp.float32)
    found = tp.ntk(residual_network, RESIDUAL, x, method="closed_form")
    np.testing.assert_allclose(found, net(x).ntk, rtol=1e-5)


def test_a_rectifier_written_by_hand_is_a_function_of_one_vector():
    """``0.1 h`` is a multiple of ``h``, not another Gaussian vector."""

    def apply(t, x):
        h = x @ t["U"] / x.shape[-1] ** 0.5
        return jnp.where(h > 0, h, 0.1 * h) @ t["v"] / t["v"].shape[0] ** 0.5

    x = jnp.asarray(X, jnp.float32)
    expected = kernels.mlp(1, kernels.leaky_relu(0.1))(x)
    found = tp.ntk(apply, RESIDUAL, x, method="closed_form")
    np.testing.assert_allclose(found, expected.ntk, rtol=1e-5)


@pytest.mark.slow
def test_conversions_to_integers_are_functions_with_jumps():
    """A mask as a number is the step function; truncation is not the identity it looks like."""

    def network(phi):
        return lambda t, x: phi(x @ t["U"] / x.shape[-1] ** 0.5) @ t["v"] / t["v"].shape[0] ** 0.5

    def covariance(phi):
        return tp.nngp(network(phi), RESIDUAL, x, method="closed_form")

    x = jnp.asarray(X, jnp.float32)
    expected = kernels.mlp(1, "step")(x)
    found = covariance(lambda h: (h > 0).astype(jnp.float32))
    np.testing.assert_allclose(found, expected.nngp, atol=1e-6)
    truncated = covariance(lambda h: (0.9 * jnp.tanh(h)).astype(jnp.int32).astype(jnp.float32))
    np.testing.assert_array_equal(truncated.value, 0)
    with pytest.raises(tp.ActivationError, match="estimate its kernels from particles"):
        covariance(lambda h: (9 * h).astype(jnp.int32).astype(jnp.float32))


def test_sums_that_share_a_part_are_not():
    """``(h + A) + (h + B)``: the two are not independent, and no formula is made up for them."""

    def apply(t, x):
        h = x @ t["U"]
        a, b = (h + jnp.tanh(h) @ W / W.shape[0] ** 0.5 for W in t["W"])
        return jnp.tanh(a + b) @ t["v"] / t["v"].shape[0] ** 0.5

    x = jnp.asarray(X, jnp.float32)
    with pytest.raises(tp.UnsupportedOperationError, match="share a part"):
        tp.ntk(apply, RESIDUAL, x, method="closed_form")


@pytest.mark.parametrize(
    ("apply", "reason"),
    [
        (
            lambda t, x: jnp.tanh(jnp.tanh(x @ t["U"]) @ t["W"][0] @ t["W"][0]) @ t["v"],
            "used twice",
        ),
        (lambda t, x: jnp.tanh(x @ t["U"]).mean(axis=0) @ t["v"] + x[:, 0], "point to point"),
        (lambda t, x: jnp.tanh(x @ t["U"] * x[:, :1]) @ t["v"], "point to point"),
        (lambda t, x: jnp.tanh(x @ t["U"]) @ t["U"].T @ jnp.ones(3), "used twice"),
    ],
)
def test_what_is_not_recognised_is_refused_with_its_line(apply, reason):
    x = jnp.asarray(X, jnp.float32)
    with pytest.raises(tp.UnsupportedOperationError, match=reason) as error:
        tp.nngp(apply, RESIDUAL, x, method="closed_form")
    assert "test_kernel_programs.py" in str(error.value)
    assert 'method="particles"' in str(error.value)


def test_vectors_that_are_not_gaussian_have_no_closed_form():
    theta = {"U": tp.rademacher((3, N)), "v": tp.normal((N,), std=N**-0.5)}
    apply = lambda t, x: jnp.tanh(x @ t["U"]) @ t["v"]
    with pytest.raises(tp.UnsupportedOperationError, match="not Gaussian"):
        tp.nngp(apply, theta, jnp.asarray(X, jnp.float32), method="closed_form")


def test_the_covariance_needs_a_readout():
    theta = {"v": tp.normal((3, N), std=N**-0.5)}
    apply = lambda t, x: jnp.tanh(jnp.sum(x @ t["v"], axis=-1))
    with pytest.raises(tp.LimitError, match="not linear in any of the parameters"):
        tp.nngp(apply, theta, jnp.asarray(X, jnp.float32))


def test_bad_input():
    apply, theta = perceptron(1, jnp.tanh)
    x = jnp.asarray(X, jnp.float32)
    with pytest.raises(ValueError, match="NaN"):
        tp.ntk(apply, theta, x.at[0, 0].set(jnp.nan))
    with pytest.raises(ValueError, match="float32 or float64, not bfloat16"):
        tp.ntk(apply, theta, x.astype(jnp.bfloat16))
    with pytest.raises(ValueError, match="method='exact' is not known"):
        tp.ntk(apply, theta, x, method="exact")
    with pytest.raises(tp.LimitError, match="No parameter is declared"):
        tp.ntk(apply, [(jnp.ones((3, 4)), jnp.ones(4))], x)


@pytest.mark.parametrize("method", ["auto", "closed_form", "particles"])
@pytest.mark.parametrize("which", [tp.nngp, tp.ntk])
def test_an_axis_of_points_is_asked_for(which, method):
    """One point, outputs without their axis, other numbers of outputs than of points."""
    apply, theta = perceptron(1, jnp.tanh)
    flat = lambda t, x: jnp.tanh(x @ t["U"]) @ t["v"] / t["v"].shape[0] ** 0.5
    weights = {"U": tp.normal((3, N)), "v": tp.normal((N,))}
    x = jnp.asarray(X, jnp.float32)
    for f, t, given, message in (
        (apply, theta, x[0], r"apply failed for x of shape \(3,\).*\n.*x\[None\]"),
        (flat, weights, x[0], r"array of shape \(\) for x of shape \(3,\).*pass x\[None\]"),
        (flat, weights, x[0, 0], r"apply failed for x of shape \(\)"),
        (flat, weights, x[:0], r"x of shape \(0, 3\) holds no points"),
        (lambda t, x: flat(t, x).sum(), weights, x, r"array of shape \(\) for x of shape \(4, 3\)"),
        (lambda t, x: flat(t, x)[:1], weights, x, r"array of shape \(1,\) for x of shape \(4, 3\)"),
        (lambda t, x: (flat(t, x), x), weights, x, "apply returns 2 arrays"),
        (lambda t, x: flat(t, x) > 0, weights, x, "dtype bool"),
    ):
        with pytest.raises(ValueError, match=message):
            which(f, t, given, method=method)
        with pytest.raises(ValueError, match=message):
            which(f, t, given, given, method=method)
    with pytest.raises(ValueError, match=r"\(4, 3\) and x2 of shape \(4, 2\)"):
        which(lambda t, x: flat(t, jnp.pad(x, ((0, 0), (0, 3 - x.shape[1])))), weights, x, x[:, :2])


def test_a_function_of_one_point_is_mapped_as_the_error_says():
    weights = {"U": tp.normal((3, N)), "v": tp.normal((N,))}
    apply = lambda t, x: jax.lax.erf(x @ t["U"] / 3**0.5) @ t["v"] / t["v"].shape[0] ** 0.5
    x = jnp.asarray(X, jnp.float32)
    mapped = lambda theta, x: jax.vmap(lambda one: apply(theta, one))(x)
    found = tp.ntk(mapped, weights, x)
    np.testing.assert_allclose(found, kernels.mlp(1, "erf")(x).ntk, rtol=1e-5)
    np.testing.assert_allclose(tp.ntk(apply, weights, x[:1]), found.value[:1, :1], rtol=1e-6)


def test_a_matrix_of_kernels_is_an_array_in_arithmetic():
    apply, theta = perceptron(1, jnp.tanh)
    found = tp.ntk(apply, theta, jnp.asarray(X, jnp.float32))
    np.testing.assert_array_equal(2 * found - found.value, np.asarray(found))
    assert jnp.linalg.eigvalsh(jnp.asarray(found)).min() > 0
    assert found.shape == (4, 4)


# --- particles


@pytest.mark.slow
def test_particles_of_a_perceptron():
    apply, theta = perceptron(2, jnp.tanh)
    x = jnp.asarray(X, jnp.float32)
    exact = kernels.mlp(2, "tanh", 1.3, 0.4)(x)
    for which, expected in ((tp.nngp, exact.nngp), (tp.ntk, exact.ntk)):
        found = which(apply, theta, x, method="particles", samples=2**10, replicates=REPLICATES)
        assert z_of(found, expected) < 1
        assert np.abs(found - expected).max() < 0.03 * np.abs(expected).max()


def recurrent(theta, x):
    """Tied weights; each sequence stops at its own length, the state stays from there on."""
    sequences, lengths = x
    U, W, b, v = (theta[k] for k in "UWbv")
    state = jnp.zeros((len(sequences), b.shape[0]))
    for t in range(sequences.shape[1]):
        h = 1.2 * state @ W / W.shape[0] ** 0.5 + sequences[:, t] @ U / U.shape[0] ** 0.5 + 0.3 * b
        state = jnp.where((t < lengths)[:, None], jax.lax.erf(h), state)
    return state @ v / v.shape[0] ** 0.5


RECURRENT = {
    "U": tp.normal((3, N)), "W": tp.normal((N, N)), "b": tp.normal((N,)), "v": tp.normal((N,)),
}  # fmt: skip


@pytest.mark.slow
def test_tied_weights_and_unequal_lengths():
    """Two ways that share nothing: particles of the program, the recursion over pairs of times."""
    sequences, lengths = RNG.normal(size=(3, 4, 3)), np.array([4, 2, 3])
    x = jnp.asarray(sequences, jnp.float32), jnp.asarray(lengths)
    exact = kernels.rnn("erf", w_std=1.2, u_std=1.0, b_std=0.3)(x[0], lengths1=x[1])
    for which, expected in ((tp.nngp, exact.nngp), (tp.ntk, exact.ntk)):
        found = which(recurrent, RECURRENT, x, samples=2**12, replicates=REPLICATES)
        assert found.method == "particles"
        assert z_of(found, expected) < 1
        assert np.abs(found - expected).max() < 0.03 * np.abs(expected).max()


def attention(theta, x):
    """One block of attention with scores over the width, not its root, then a readout of means."""
    h = x @ theta["U"] / x.shape[-1] ** 0.5
    q, k, v = (h @ theta[name] / h.shape[-1] ** 0.5 for name in ("Q", "K", "V"))
    scores = jnp.einsum("pin,pjn->pij", q, k) / q.shape[-1]
    mixed = h + jnp.einsum("pij,pjn->pin", jax.nn.softmax(scores, axis=-1), v)
    hidden = jax.nn.relu(mixed @ theta["W"] / h.shape[-1] ** 0.5)
    return hidden.mean(axis=1) @ theta["v"] / h.shape[-1] ** 0.5


ATTENTION = {
    "U": tp.normal((3, N)), "v": tp.normal((N,)),
    **{name: tp.normal((N, N)) for name in "QKVW"},
}  # fmt: skip


def batch_norm(theta, x):
    """Normalised over the batch, so that all points depend on each other."""
    h = x @ theta["U"] / x.shape[-1] ** 0.5
    for W in theta["W"]:
        h = jax.nn.relu((h - h.mean(axis=0)) / h.std(axis=0)) @ W / W.shape[0] ** 0.5
    return jax.nn.relu(h) @ theta["v"] / theta["v"].shape[0] ** 0.5


BATCH_NORM = {"U": tp.normal((3, N)), "W": [tp.normal((N, N))], "v": tp.normal((N,))}


def finite(apply, theta, x, which, width, seeds):
    """Kernels of networks of a width: gradients, and outputs linear in their readout."""

    @jax.jit
    def kernel(theta):
        gradients = jax.jacrev(lambda t: apply(t, x))(theta)
        taken = [gradients["v"]] if which == "nngp" else jax.tree.leaves(gradients)
        flat = [g.reshape(g.shape[0], -1) for g in taken]
        return sum(g @ g.T for g in flat)

    keys = jax.random.split(jax.random.key(5), seeds)
    return np.array([kernel(tp.sample(theta, key, width=width)) for key in keys], np.float64)


@pytest.mark.slow
@pytest.mark.parametrize("which", ["nngp", "ntk"])
@pytest.mark.parametrize(
    ("apply", "theta", "shape"),
    [(attention, ATTENTION, (2, 4, 3)), (batch_norm, BATCH_NORM, (12, 3))],
    ids=["attention", "batch norm"],
)
def test_other_architectures_against_networks(apply, theta, shape, which):
    """Differences fall as n^(-1/2), and the means at the largest width agree."""
    x = jnp.asarray(np.random.default_rng(8).normal(size=shape), jnp.float32)
    limit = getattr(tp, which)(apply, theta, x, samples=2**12, replicates=REPLICATES)
    widths = [128, 256, 512]
    runs = {n: finite(apply, theta, x, which, n, 24) for n in widths}
    size = np.abs(limit.value).max()
    norms = [np.linalg.norm(runs[n] - limit.value, axis=(1, 2)) for n in widths]
    # Medians over networks: small variances in a batch make heavy tails.
    slope = np.polyfit(np.log(widths), [np.log(np.median(norm)) for norm in norms], 1)[0]
    assert -0.8 < slope < -0.3
    last = runs[512]
    error = np.hypot(statistics.standard_error(last), limit.stderr)
    assert np.all(np.abs(last.mean(axis=0) - limit.value) < 5 * error + 0.02 * size)


#: Layouts that give back what they get, by way of every operation that moves or adds entries.
LAYOUTS = {
    "stack": lambda y: jnp.stack([y, y], 1)[:, 0],
    "split": lambda y: jnp.split(jnp.stack([y, 2 * y], 1), 2, axis=1)[0][:, 0],
    "unstack": lambda y: jnp.unstack(jnp.stack([2 * y, y]))[1],
    "pad": lambda y: jnp.pad(y, (0, 2))[: len(y)],
    "cumulative sum": lambda y: jnp.cumsum(jnp.stack([y, 0 * y], 1), axis=1)[:, 1],
    "tile": lambda y: jnp.tile(y, 2)[: len(y)],
    "set": lambda y: jnp.zeros_like(y).at[jnp.arange(len(y))].set(y),
    "update": lambda y: jax.lax.dynamic_update_slice(jnp.zeros(9), y, (2,))[2 : 2 + len(y)],
    "concatenate": lambda y: jnp.concatenate([jnp.zeros(2), y])[2:],
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_outputs_are_linear_in_the_readout_whatever_moves_them(name):
    """By particles, equal keys: the kernel of the network itself."""
    theta = {"U": tp.normal((3, N)), "v": tp.normal((N,))}

    def apply(t, x):
        return jnp.tanh(x @ t["U"]) @ t["v"] / t["v"].shape[0] ** 0.5

    x = jnp.asarray(X[:2], jnp.float32)
    options = {"method": "particles", "key": jax.random.key(0), "samples": 256}
    plain = tp.nngp(apply, theta, x, **options).value
    moved = tp.nngp(lambda t, x: LAYOUTS[name](apply(t, x)), theta, x, **options).value
    np.testing.assert_allclose(moved, plain, rtol=1e-5)


@pytest.mark.parametrize("slope", [0.1, pytest.param(-0.5, marks=pytest.mark.slow)])
def test_a_kinked_function_is_precise_at_points_that_coincide(slope):
    """FAULTS B: slopes that jump see the root of an error of the correlation."""
    n = tp.Width("n")
    theta = {"U": tp.normal((300, n)), "W": [tp.normal((n, n))] * 4, "v": tp.normal((n,))}
    x = jnp.asarray(np.random.default_rng(3).normal(size=(3, 300)), jnp.float32)

    def network(t, x):
        root = jnp.sqrt(t["v"].shape[0])
        phi = lambda u: jnp.where(u > 0, u, slope * u)
        h = phi(x @ t["U"] / jnp.sqrt(300.0))
        for i in range(4):
            h = phi(h @ t["W"][i] / root)
        return h @ t["v"] / root

    with jax.enable_x64(True):
        exact = kernels.mlp(5, kernels.leaky_relu(slope))(np.asarray(x, np.float64))
        expected = np.asarray(exact.ntk), np.asarray(exact.nngp)
    for which, value in zip((tp.ntk, tp.nngp), expected, strict=True):
        assert which(network, theta, x).method == "closed_form"
        np.testing.assert_allclose(np.asarray(which(network, theta, x)), value, 1e-5)
        np.testing.assert_allclose(np.asarray(which(network, theta, x, x + 0)), value, 1e-5)
        single = which(network, theta, x[:1], x)
        np.testing.assert_allclose(np.asarray(single), value[:1], 1e-5)
