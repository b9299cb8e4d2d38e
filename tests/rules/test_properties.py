"""What must not change a limit: jit, checkpoint, names, order, batching, calling again."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given, settings, strategies as st
from jax import lax
from numpy.testing import assert_allclose
from oracles.helpers import sampled, standard_error, tree_difference
from oracles.programs import INPUTS, MLP, RECURRENT, X, Y, descend, predict, rates, squared

import tplimit as tp
from tplimit.transforms import sampling

Theta = dict[str, Any]

n = tp.Width("n")
KEY = jax.random.key(7)
ROUND_OFF = 2e-5
SAMPLES = 512


def draw(declaration: Any = MLP, key: jax.Array = KEY, width: Any = tp.inf) -> Theta:
    return tp.sample(declaration, key, width=width, samples=SAMPLES)


def train(t: Theta) -> jax.Array:
    return predict(descend(squared(predict), t), X)


@pytest.fixture(scope="module")
def reference() -> np.ndarray:
    """Compiled with all optimisations, unlike what is compared with it."""
    return np.asarray(tp.limit(train)(draw()))


# The same program written differently ----------------------------------------------------------


def _jit_inside(t: Theta) -> jax.Array:
    step = jax.jit(lambda t: descend(squared(jax.jit(predict)), t))
    return jax.jit(predict)(step(t), X)


def _checkpoint_inside(t: Theta) -> jax.Array:
    return predict(descend(squared(jax.checkpoint(predict)), t), X)


def _per_sample(t: Theta) -> jax.Array:
    gradient = jax.grad(lambda t, x, y: 0.5 * (predict(t, x) - y) ** 2)
    g = jax.vmap(gradient, (None, 0, 0))(t, X, Y)
    t = jax.tree.map(lambda p, r, d: p - r * d.mean(0), t, rates(t), g)
    return predict(t, X)


def _scanned_once(t: Theta) -> jax.Array:
    t, _ = lax.scan(lambda t, b: (descend(squared(predict, *b), t), None), t, (X[None], Y[None]))
    return predict(t, X)


def _branched(t: Theta) -> jax.Array:
    t = lax.cond(jnp.asarray(True), lambda t: descend(squared(predict), t), lambda t: t, t)
    return predict(t, X)


def _transposed_twice(t: Theta) -> jax.Array:
    return train(t | {"W": t["W"].T.T, "U": jnp.swapaxes(t["U"].T, 0, 1)})


SAME: dict[str, Callable[[Theta], jax.Array]] = {
    "jit around": jax.jit(train),
    "jit inside": _jit_inside,
    "checkpoint around": jax.checkpoint(train),
    "checkpoint inside": _checkpoint_inside,
    "per-sample gradients": _per_sample,
    "scan of one step": _scanned_once,
    "known branch": _branched,
    "transposes": _transposed_twice,
}


@pytest.mark.parametrize("function", SAME.values(), ids=SAME.keys())
def test_writing_does_not_matter(function: Any, reference: np.ndarray) -> None:
    """Wrapping parts of a program, or averaging gradients of samples, changes nothing."""
    assert_allclose(tp.limit(function)(draw()), reference, atol=ROUND_OFF)


def test_calls_compose(reference: np.ndarray) -> None:
    """A step and a prediction in two calls give what they give in one."""
    step = tp.limit(lambda t: descend(squared(predict), t))
    assert_allclose(tp.limit(predict)(step(draw()), X), reference, atol=ROUND_OFF)


def test_calls_are_deterministic(reference: np.ndarray) -> None:
    """Calling again, and sampling again with the same key, gives identical numbers."""
    limit, theta = tp.limit(train), draw()
    assert np.array_equal(limit(theta), limit(theta))
    assert np.array_equal(limit(draw()), limit(theta))
    assert np.array_equal(tp.limit(train)(draw()), limit(theta))
    assert not np.array_equal(limit(draw(key=jax.random.key(8))), limit(theta))


def _batches(steps: int) -> tuple[jax.Array, jax.Array]:
    return jnp.resize(X, (steps, 1, INPUTS)), jnp.resize(Y, (steps, 1))


def _step(t: Theta, batch: Any) -> tuple[Theta, jax.Array]:
    return descend(squared(predict, *batch), t), predict(t, X)


def _deferred_or_not(*slow: bool) -> Any:
    widths = [(tp.inf, "limit"), (tp.Deferred(SAMPLES), "deferred")]
    return pytest.mark.parametrize(
        "width",
        [
            pytest.param(width, id=name, marks=[pytest.mark.slow] if late else [])
            for (width, name), late in zip(widths, slow, strict=True)
        ],
    )


@_deferred_or_not(True, True)
def test_scan_over_steps_equals_calls(width: Any) -> None:
    """Steps in one compiled scan and in calls give the same states."""
    batches = _batches(8)
    state, outputs = tp.limit(lambda t, b: lax.scan(_step, t, b))(draw(width=width), batches)
    theta, found, limited = draw(width=width), [], tp.limit(_step)
    for x, y in zip(*batches, strict=True):
        theta, output = limited(theta, (x, y))
        found.append(output)
    assert_allclose(jnp.stack(found), outputs, atol=2e-4)
    predicted = tp.limit(predict)
    assert_allclose(predicted(theta, X), predicted(state, X), atol=2e-4)


@pytest.mark.slow
@_deferred_or_not(False, False)
def test_nested_scans_equal_one(width: Any) -> None:
    """Twenty steps in one scan, in scans in a scan, and unrolled by JAX are the same."""
    batches = _batches(20)

    def nested(t: Theta, batches: Any) -> jax.Array:
        split = jax.tree.map(lambda b: b.reshape(2, 10, *b.shape[1:]), batches)
        return lax.scan(lambda t, b: lax.scan(_step, t, b), t, split)[1].reshape(20, 4)

    plain = tp.limit(lambda t, b: lax.scan(_step, t, b)[1])(draw(width=width), batches)
    assert_allclose(tp.limit(nested)(draw(width=width), batches), plain, atol=2e-4)
    unrolled = tp.limit(lambda t, b: lax.scan(_step, t, b, unroll=4)[1])
    assert_allclose(unrolled(draw(width=width), batches), plain, atol=2e-4)
    kept = tp.limit(lambda t, b: lax.scan(jax.checkpoint(_step), t, b)[1])
    assert_allclose(kept(draw(width=width), batches), plain, atol=2e-4)


@pytest.mark.slow
def test_loop_in_time_equals_scan() -> None:
    """An unrolled recurrent network and its scan have the same limit, gradients included."""

    def by_scan(t: Theta) -> jax.Array:
        cell = lambda h, x: (jnp.tanh(h @ t["W"] + x[None] @ t["U"]), None)
        return lax.scan(cell, t["h"], X[0])[0] @ t["v"] / t["v"].shape[0]

    def by_loop(t: Theta) -> jax.Array:
        h = t["h"]
        for x in X[0]:
            h = jnp.tanh(h @ t["W"] + x[None] @ t["U"])
        return h @ t["v"] / t["v"].shape[0]

    def trained(f: Callable[[Theta], jax.Array]) -> Callable[[Theta], jax.Array]:
        return lambda t: f(descend(lambda t: 0.5 * (f(t) - 1.0) ** 2, t))

    theta = draw(RECURRENT)
    assert_allclose(tp.limit(trained(by_scan))(theta), tp.limit(trained(by_loop))(theta), atol=1e-3)


# Names and order -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a", "zeta", "width of the network"])
def test_renaming_a_width_changes_nothing(name: str, reference: np.ndarray) -> None:
    """Widths are known by identity; their names do not enter."""
    k = tp.Width(name)
    renamed = {
        "U": tp.normal((INPUTS, k)),
        "b": tp.normal((k,)),
        "W": tp.normal((k, k), std=k**-0.5),
        "c": tp.full((k,), 0.0),
        "v": tp.normal((k,)),
    }
    np.testing.assert_allclose(tp.limit(train)(draw(renamed)), reference, rtol=1e-5)


def test_order_of_parameters_changes_no_law() -> None:
    """Another order of the parameters gives other draws of the same law."""
    order = ("v", "c", "W", "b", "U")

    def size(t: Theta) -> jax.Array:
        return jnp.mean(jnp.tanh(jnp.tanh(X @ t["U"] + t["b"]) @ t["W"] + t["v"]) ** 2, -1)

    def reordered(t: tuple[Any, ...]) -> jax.Array:
        return size(dict(zip(order, t, strict=True)))

    first = sampled(size, MLP, tp.inf, 12, SAMPLES)
    other = sampled(reordered, tuple(MLP[name] for name in order), tp.inf, 12, SAMPLES)
    error = np.hypot(standard_error(first), standard_error(other))
    assert np.all(np.abs(first.mean(0) - other.mean(0)) < 4.5 * error)


# Batches ---------------------------------------------------------------------------------------


@pytest.mark.slow
def test_merged_batches_equal_batches_apart() -> None:
    """Queries for all inputs at once, and for each by itself, agree within their own error."""

    def apart(t: Theta) -> jax.Array:
        t = descend(squared(predict), t)
        return jnp.concatenate([predict(t, x[None]) for x in X])

    def parts_of_gradient(t: Theta) -> jax.Array:
        grads = [jax.grad(squared(predict, X[i : i + 2], Y[i : i + 2]))(t) for i in (0, 2)]
        g = jax.tree.map(lambda a, b: (a + b) / 2, *grads)
        return predict(jax.tree.map(lambda p, r, d: p - r * d, t, rates(t), g), X)

    merged = sampled(train, MLP, tp.inf, 12, SAMPLES)
    separate = sampled(lambda t: (apart(t), parts_of_gradient(t)), MLP, tp.inf, 12, SAMPLES)
    for part in np.split(separate, 2, axis=1):
        error = np.hypot(standard_error(merged), standard_error(part))
        assert np.all(np.abs(merged.mean(0) - part.mean(0)) < 4.5 * error)
    # At initialisation inputs in one block share their noise with inputs in separate blocks.
    theta = draw()
    together = tp.limit(predict)(theta, X)
    alone = jnp.concatenate([tp.limit(predict)(theta, x[None]) for x in X])
    assert_allclose(together, alone, atol=6 / np.sqrt(SAMPLES))


# Finite functions ------------------------------------------------------------------------------

A = jnp.asarray([[1.0, 2.0], [-0.5, 0.25]])
B = jnp.asarray([[0.5, 0.125], [-1.0, 0.75]])

FINITE: dict[str, Callable[..., Any]] = {
    "algebra": lambda a, b: (a @ b, a * b - b / 3, a**-1, a**2.5, jnp.abs(a) ** b, -a % 1.5),
    "rounding": lambda a, b: (jnp.floor(a), jnp.round(a), a // 0.4, a.astype(int), jnp.sign(b)),
    "transcendental": lambda a, b: (
        jnp.exp(a),
        jnp.log(jnp.abs(b)),
        jnp.arctan2(a, b),
        jnp.sinc(a),
    ),
    "infinities": lambda a, b: (jnp.nan_to_num(a / 0), jnp.log(0 * a), jnp.maximum(-jnp.inf, a)),
    "order": lambda a, b: (jnp.sort(a, 0), jnp.argsort(b), jnp.argmax(a), jnp.median(a)),
    "sums": lambda a, b: (jnp.cumsum(a), jnp.prod(b), jnp.var(a, ddof=1), jnp.max(b, 0)),
    "layout": lambda a, b: (jnp.stack([a, b]), jnp.tile(a, 2), jnp.pad(a, 1), jnp.roll(b, 1), a.T),
    "indexing": lambda a, b: (a[0], a[jnp.array([1, 0])], a.at[0, 1].set(3.0), jnp.diag(a)),
    "search": lambda a, b: (jnp.searchsorted(jnp.arange(3.0), a), jnp.interp(a, b[1], b[0])),
    "histogram": lambda a, b: (jnp.histogram(a, 3)[0], jnp.unique(b, size=3), (b > 0).sum()),
    "linear algebra": lambda a, b: (jnp.linalg.inv(a), jnp.linalg.solve(a, b), jnp.linalg.det(b)),
    "spectrum": lambda a, b: (jnp.linalg.svd(a)[1], jnp.linalg.eigh(a @ a.T)[0]),
    "loops": lambda a, b: (
        lax.while_loop(lambda s: s[0] < 5, lambda s: (s[0] + 1, s[1] * 2), (0, a)),
        lax.fori_loop(0, 30, lambda i, c: c + a * i, b),
        lax.scan(lambda c, x: (c + x, c * x), a[0], b),
        lax.map(jnp.sin, a),
        lax.associative_scan(jnp.add, a),
    ),
    "branches": lambda a, b: (
        lax.cond(a[0, 0] > 0, lambda: a, lambda: b),
        lax.switch(jnp.argmax(a), [lambda: 1.0, lambda: 2.0, lambda: 3.0]),
        jnp.where(a > 0, a, 0.0),
        jnp.select([a > 1, a > 0], [b, a], -1.0),
    ),
    "random": lambda a, b: (
        jax.random.normal(jax.random.key(0), (2,)) + a,
        jax.random.permutation(jax.random.key(1), 4),
        jax.random.categorical(jax.random.PRNGKey(2), a),
    ),
    "derivatives": lambda a, b: (
        jax.grad(lambda a: jnp.linalg.slogdet(a)[1])(a),
        jax.hessian(lambda a: jnp.sum(jnp.sin(a @ b)))(a),
        jax.jacfwd(jax.nn.softmax)(a[0]),
    ),
    "special": lambda a, b: (
        jax.scipy.special.gammaln(jnp.abs(a)),
        jax.scipy.special.xlogy(jnp.array([0.0, 1.0]), a[0]),
        jnp.fft.fft(a[0]).real,
        jax.nn.one_hot(jnp.array([0, 1]), 3),
    ),
}


@pytest.mark.parametrize("function", FINITE.values(), ids=FINITE.keys())
def test_finite_functions_are_unchanged(function: Any) -> None:
    """The limit of a function of finite arrays is the function, dtypes included."""
    found, expected = tp.limit(function)(A, B), function(A, B)
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert_allclose(one, other, rtol=1e-5, atol=1e-6)
        assert jnp.result_type(one) == jnp.result_type(other)


def test_finite_functions_beside_a_width() -> None:
    """The same beside values with a width, in one program."""
    function = FINITE["loops"]
    found = tp.limit(lambda t, a, b: (function(a, b), jnp.mean(t["v"] ** 2)))(draw(), A, B)
    assert tree_difference(found[0], function(A, B)) < 1e-5


# Hypothesis, at small sizes --------------------------------------------------------------------

VECTORS = tp.sample(
    {"v": tp.normal((n,)), "w": tp.uniform((n,), 2.0), "W": tp.normal((n, n), std=n**-0.5)},
    KEY,
    width=tp.inf,
    samples=256,
)
numbers = st.floats(-3, 3, allow_nan=False, width=32)


@given(numbers, numbers, numbers)
@settings(max_examples=20, deadline=None)
def test_width_average_is_linear(a: float, b: float, c: float) -> None:
    """``mean(a v + b w + c) = a mean(v) + b mean(w) + c``."""
    f = tp.limit(_linear)
    parts = f(VECTORS, 1.0, 0.0, 0.0), f(VECTORS, 0.0, 1.0, 0.0)
    assert_allclose(f(VECTORS, a, b, c), a * parts[0] + b * parts[1] + c, atol=1e-5)


def _linear(t: Theta, a: jax.Array, b: jax.Array, c: jax.Array) -> jax.Array:
    return jnp.mean(a * t["v"] + b * t["w"] + c)


@given(numbers, numbers)
@example(2.0, 2.0**-8)  # the new direction is below the tolerance
@settings(max_examples=20, deadline=None)
def test_queries_are_linear(a: float, b: float) -> None:
    """``W (a v + b w) = a W v + b W w``, whichever is asked first, up to dropped directions."""
    dropped = 2 * sampling.RANK_TOLERANCE * (a * a + b * b)
    assert tp.limit(_linearity)(VECTORS, a, b) < 1e-6 + dropped


def _linearity(t: Theta, a: jax.Array, b: jax.Array) -> jax.Array:
    first = a * (t["v"] @ t["W"])
    joint = (a * t["v"] + b * t["w"]) @ t["W"]
    return jnp.mean((joint - first - b * (t["w"] @ t["W"])) ** 2)


@given(numbers, numbers)
@settings(max_examples=20, deadline=None)
def test_transposed_queries_are_adjoint(a: float, b: float) -> None:
    """``<y, W x> = <W^T y, x>``."""
    left, right = tp.limit(_adjoint)(VECTORS, a, b)
    assert_allclose(left, right, atol=1e-4 * (1 + a * a + b * b))


def _adjoint(t: Theta, a: jax.Array, b: jax.Array) -> tuple[jax.Array, jax.Array]:
    x, y = jnp.tanh(a * t["v"] + t["w"]), jnp.sin(t["v"] + b * t["w"])
    return jnp.mean(y * (x @ t["W"])), jnp.mean((t["W"] @ y) * x)


@given(st.permutations(range(4)))
@settings(max_examples=8, deadline=None)
def test_order_of_finite_entries_does_not_matter(order: list[int]) -> None:
    """Permuting inputs before or after a forward pass is the same."""
    index = jnp.asarray(order)
    before = tp.limit(lambda t, i: jnp.mean((X[i] @ t["U"]) ** 2, -1))
    theta = {"U": tp.sample(tp.normal((INPUTS, n)), KEY, width=tp.inf, samples=64)}
    after = tp.limit(lambda t: jnp.mean((X @ t["U"]) ** 2, -1))(theta)
    assert_allclose(before(theta, index), after[index], rtol=1e-5)
