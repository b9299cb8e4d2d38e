"""Inner products and norms of matrices, in every spelling, beside networks and closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import tplimit as tp

n = tp.Width("n")
DECLARED = {
    "U": tp.normal((3, n)),
    "W": tp.normal((n, n), std=n**-0.5),
    "V": tp.normal((n, n), std=2 * n**-0.5),
    "v": tp.normal((n,)),
}
X = jnp.asarray([[1.0, -0.5, 0.3], [0.4, 1.2, -1.0]])


def size(t):
    return t["v"].shape[0]


def loss(t):
    h = jnp.tanh(jnp.tanh(X @ t["U"]) @ t["W"] + 0.1 * X @ t["U"])
    return jnp.mean((h @ t["v"] / size(t) - jnp.array([1.0, -1.0])) ** 2)


def gradient(t):
    return jax.grad(loss)(t)


def updated(t):
    return {**t, "W": t["W"] - 0.5 * gradient(t)["W"]}


def by_entries(t):
    """A step that is a function of pairs."""
    return {**t, "W": t["W"] - 0.1 * jnp.tanh(size(t) * gradient(t)["W"]) / size(t)}


SPELLINGS = {
    "sum of a product": lambda g: jnp.sum(g * g),
    "power": lambda g: jnp.sum(g**2),
    "square": lambda g: jnp.sum(jnp.square(g)),
    "einsum": lambda g: jnp.einsum("ij,ij->", g, g),
    "trace": lambda g: jnp.einsum("ij,ij->", g.T, g.T),
    "tensordot": lambda g: jnp.tensordot(g, g, 2),
    "norm": lambda g: jnp.linalg.norm(g) ** 2,
    "optax": lambda g: optax.global_norm({"W": g}) ** 2,
    "over one and the other": lambda g: jnp.sum(jnp.sum(g * g, 0)),
}


@pytest.mark.parametrize("terms", [1, 2])
def test_spellings_of_a_norm(terms):
    """Of a gradient, of low rank."""
    theta = tp.sample(DECLARED, jax.random.key(0), width=tp.inf, samples=1024, terms=terms)
    found = [tp.limit(lambda t, s=s: s(gradient(t)["W"]))(theta) for s in SPELLINGS.values()]
    np.testing.assert_allclose(found, found[0] * np.ones(len(found)), rtol=1e-3)
    networks = [
        SPELLINGS["norm"](gradient(tp.sample(DECLARED, jax.random.key(k), width=512))["W"])
        for k in range(12)
    ]
    error = np.std(networks) / 12**0.5
    # Sampling errors of the limit are below a tenth of those of 12 networks of this width.
    assert abs(np.mean(networks) - found[0]) < 4.5 * error


@pytest.mark.parametrize("name", [name for name in SPELLINGS if name != "over one and the other"])
def test_norm_of_a_gaussian_matrix(name):
    """``sum W_ab^2 = n`` for a variance of ``1 / n``, before and after training steps."""
    theta = tp.sample(DECLARED, jax.random.key(0), width=tp.inf, samples=256)
    for step in (lambda t: t, updated, by_entries):
        norm = tp.limit(lambda t, step=step: SPELLINGS[name](step(t)["W"]) / size(t))(theta)
        assert norm == pytest.approx(1, rel=1e-5)


INNER = {
    "two matrices": (lambda t: jnp.sum(t["W"] * t["V"]) / size(t), 0.0),
    "transposed": (lambda t: jnp.sum(t["W"] * t["W"].T) / size(t), 0.0),
    "scaled": (lambda t: jnp.sum((3 * t["W"]) * t["W"]) / size(t), 3.0),
    "of sums": (lambda t: jnp.sum((t["W"] + t["V"]) ** 2) / size(t), 5.0),
    "difference": (lambda t: jnp.sum((t["W"] - t["V"]) * t["W"]) / size(t), 1.0),
    "beside an update": (lambda t: jnp.sum(updated(t)["W"] * t["W"]) / size(t), 1.0),
}


@pytest.mark.parametrize("terms", [1, 2])
@pytest.mark.parametrize("name", INNER)
def test_inner_products_of_gaussian_matrices(name, terms):
    function, exact = INNER[name]
    theta = tp.sample(DECLARED, jax.random.key(0), width=tp.inf, samples=256, terms=terms)
    assert tp.limit(function)(theta) == pytest.approx(exact, abs=1e-5)


@pytest.mark.parametrize("terms", [1, 2])
@pytest.mark.parametrize("step", [updated, by_entries])
def test_what_cancels_is_zero(step, terms):
    """A step less itself, from the gradient to the weights; not a small number of known order."""
    theta = tp.sample(DECLARED, jax.random.key(0), width=tp.inf, samples=256, terms=terms)
    found = tp.leading(lambda t: jnp.sum((step(t)["W"] - step(t)["W"]) ** 2))(theta)
    assert found.coefficient == 0
    assert found.exponent == -np.inf


def test_standard_deviation():
    theta = tp.sample(DECLARED, jax.random.key(0), width=tp.inf, samples=256)
    assert tp.limit(lambda t: size(t) ** 0.5 * jnp.std(t["V"]))(theta) == pytest.approx(2, rel=1e-5)


MOVED = {
    "update": lambda t: jnp.sum((updated(t)["W"] - t["W"]) ** 2),
    "two updates": lambda t: jnp.sum((updated(updated(t))["W"] - t["W"]) ** 2),
    "update and gradient": lambda t: jnp.sum(
        (updated(t)["W"] - t["W"]) * gradient(updated(t))["W"]
    ),
    "of pairs": lambda t: 10 * jnp.sum((by_entries(t)["W"] - t["W"]) ** 2),
    "of pairs and gradient": lambda t: jnp.sum((by_entries(t)["W"] - t["W"]) * gradient(t)["W"]),
    "two steps of pairs": lambda t: 10
    * jnp.sum((by_entries(by_entries(t))["W"] - t["W"]) ** 2),
    "rows": lambda t: jnp.mean(jnp.tanh(size(t) * jnp.sum(gradient(t)["W"] ** 2, axis=1))),
    "columns of pairs": lambda t: jnp.mean(
        jnp.tanh(size(t) * jnp.sum((by_entries(t)["W"] - t["W"]) ** 2, axis=0))
    ),
    "clipped": lambda t: loss(
        {**t, "W": t["W"] - optax.clip_by_global_norm(0.05).update(
            {"W": gradient(t)["W"]}, optax.EmptyState())[0]["W"]}
    ),
}  # fmt: skip


@pytest.mark.parametrize("terms", [1, 2])
@pytest.mark.parametrize("name", MOVED)
def test_beside_networks(name, terms):
    """16 networks, 4 keys of the limit; a false alarm in 10^4 for each."""
    function = MOVED[name]
    limits = [
        tp.limit(function)(
            tp.sample(DECLARED, jax.random.key(k), width=tp.inf, samples=1024, terms=terms)
        )
        for k in range(4)
    ]
    compiled = jax.jit(function)
    networks = [compiled(tp.sample(DECLARED, jax.random.key(k), width=512)) for k in range(16)]
    error = np.hypot(np.std(networks) / 4, np.std(limits) / 2)
    assert abs(np.mean(networks) - np.mean(limits)) < 4 * error + 4e-3 * np.abs(np.mean(limits))


def test_weight_decay_in_the_loss():
    """A penalty ``c |W|^2 / n``: its value, and a gradient ``2 c W / n``."""

    def penalised(t):
        return loss(t) + 0.1 * jnp.sum(t["W"] ** 2) / size(t)

    theta = tp.sample(DECLARED, jax.random.key(0), width=tp.inf, samples=1024)
    plain, value = tp.limit(lambda t: (loss(t), penalised(t)))(theta)
    assert value - plain == pytest.approx(0.1, rel=1e-4)

    def shrinking(t):
        added = jax.grad(penalised)(t)["W"] - gradient(t)["W"]
        return jnp.sum(added * t["W"])

    assert tp.limit(shrinking)(theta) == pytest.approx(0.2, rel=1e-4)


@pytest.mark.parametrize(
    "other", [lambda w: w, lambda w: jnp.tanh(jnp.outer(w @ w.sum(0), w.sum(1)))]
)
def test_norm_of_a_deferred_matrix_is_refused(other):
    """And its inner product with a function of what it has been applied to."""
    theta = tp.sample(DECLARED, jax.random.key(0), width=tp.Deferred(64))

    def program(t):
        return jnp.sum(t["W"] * other(t["W"]))  # here

    with pytest.raises(tp.UnsupportedOperationError, match="finite width") as caught:
        tp.limit(program)(theta)
    assert f"{__file__}:{program.__code__.co_firstlineno + 1}" in str(caught.value)


def stack_of(t):
    """Two functions of pairs, one of low rank among them."""
    g = gradient(t)["W"]
    return jnp.stack([g, jnp.tanh(size(t) * g) / size(t)])


def total(a, b):
    return jnp.sum(a * b)


#: A function of a stack, and the same of the list of its matrices.
STACKED = {
    "norms": (lambda s: jnp.sum(s * s, (1, 2)), lambda m: [total(a, a) for a in m]),
    "vmapped norms": (
        jax.vmap(lambda m: jnp.linalg.norm(m) ** 2),
        lambda m: [total(a, a) for a in m],
    ),
    "inner products": (
        lambda s: jnp.einsum("kij,kij->k", s, s[::-1]),
        lambda m: [total(a, b) for a, b in zip(m, m[::-1], strict=True)],
    ),
    "all inner products": (
        lambda s: jnp.einsum("kij,lij->kl", s, s),
        lambda m: [[total(a, b) for b in m] for a in m],
    ),
    "one inner product": (
        lambda s: jnp.einsum("kij,kij->", s, s),
        lambda m: sum(total(a, a) for a in m),
    ),
    "rows": (
        lambda s: jnp.mean(jnp.sum(s, 2) ** 2, 1),
        lambda m: [jnp.mean(jnp.sum(a, 1) ** 2) for a in m],
    ),
    "columns": (
        lambda s: jnp.mean(jnp.sum(s, 1) ** 2, 1),
        lambda m: [jnp.mean(jnp.sum(a, 0) ** 2) for a in m],
    ),
    "products": (
        lambda s: jnp.sum(jnp.einsum("kij,kjl->kil", s, s) ** 2, (1, 2)),
        lambda m: [jnp.sum((a @ a) ** 2) for a in m],
    ),
    "gram matrices": (
        lambda s: jnp.sum(jax.vmap(lambda m: m @ m.T)(s) ** 2, (1, 2)),
        lambda m: [jnp.sum((a @ a.T) ** 2) for a in m],
    ),
    "products of all": (
        lambda s: jnp.sum(jnp.einsum("kij,mjl->kmil", s, s) ** 2, (2, 3)),
        lambda m: [[jnp.sum((a @ b) ** 2) for b in m] for a in m],
    ),
    "a sum of products": (
        lambda s: jnp.sum(jnp.einsum("kij,kjl->il", s, s) ** 2),
        lambda m: jnp.sum((m[0] @ m[0] + m[1] @ m[1]) ** 2),
    ),
    "widths apart": (
        lambda s: jnp.sum(jnp.einsum("ikj,jkl->kil", s.swapaxes(0, 1), s.transpose(1, 0, 2)) ** 2),
        lambda m: sum(jnp.sum((a @ a) ** 2) for a in m),
    ),
}


#: Of what they grow like.
POWERS = {name: 4 for name in STACKED if "products" in name and "inner" not in name} | {
    "gram matrices": 4,
    "widths apart": 4,
}


@pytest.mark.parametrize("terms", [1, 2])
@pytest.mark.parametrize("name", STACKED)
def test_each_matrix_of_a_stack_by_itself(name, terms):
    """The same as of each matrix alone, in the limit and in a network."""
    of_stack, of_list = STACKED[name]
    scaled = lambda t: [size(t) * gradient(t)["W"], jnp.tanh(size(t) * gradient(t)["W"])]
    both = lambda t: (of_stack(jnp.stack(scaled(t))), jnp.asarray(of_list(scaled(t))))
    for width, tolerance in ((tp.inf, 2e-3), (64, 1e-4)):
        how = {"samples": 256, "terms": terms} if width == tp.inf else {}
        theta = tp.sample(DECLARED, jax.random.key(0), width=width, **how)
        run = (
            tp.limit(lambda t: [o / float(size(t)) ** POWERS.get(name, 2) for o in both(t)])
            if how
            else both
        )
        found, expected = run(theta)
        assert found.shape == expected.shape
        np.testing.assert_allclose(found, expected, rtol=tolerance, atol=1e-7)


@pytest.mark.parametrize("terms", [1, 2])
@pytest.mark.parametrize("test", ["either", "neither", "less"])
def test_trust_ratio(test, terms):
    """``|W| / |G|``, of order ``n``, or 1 where one of the norms is 0: none is, but by accident."""
    chosen = {
        "either": lambda w, g: jnp.where((w == 0) | (g == 0), 1.0, w / g),
        "neither": lambda w, g: jnp.where((w != 0) & (g != 0), w / g, 1.0),
        "less": lambda w, g: jnp.where(jnp.logical_not(g == 0.0), w / g, 1.0),
    }

    def program(t):
        g = size(t) * gradient(t)["W"]
        ratio = chosen[test](jnp.linalg.norm(t["W"]), jnp.linalg.norm(g))
        return size(t) ** 0.5 * ratio

    theta = tp.sample(DECLARED, jax.random.key(0), width=tp.inf, samples=1024, terms=terms)
    found = tp.limit(program)(theta)
    networks = [program(tp.sample(DECLARED, jax.random.key(k), width=512)) for k in range(12)]
    error = np.std(networks) / 12**0.5
    assert abs(np.mean(networks) - found) < 4.5 * error + 0.02 * found


def test_a_norm_that_is_zero_chooses():
    """A matrix of zeros is known before the run; one that vanishes within its error is refused."""

    def program(t, scale):
        g = scale * gradient(t)["W"]
        norm = jnp.linalg.norm(g)
        return jnp.where(norm == 0, 1.0, size(t) * norm)

    theta = tp.sample(DECLARED, jax.random.key(0), width=tp.inf, samples=256)
    assert tp.limit(lambda t: program(t, 0.0))(theta) == 1
    with pytest.raises(tp.CancellationError):
        tp.limit(lambda t, c: program(t, c) / size(t))(theta, 0.0)


@pytest.mark.parametrize("terms", [1, 2])
def test_a_branch_by_a_norm(terms):
    """`lax.cond` chooses as `where` does, of numbers and of matrices of different powers of n."""

    def program(t):
        g = size(t) * gradient(t)["W"]
        norm = jnp.linalg.norm(g)
        ratio = jax.lax.cond(norm == 0, lambda: 1.0, lambda: norm / size(t))
        unit = jax.lax.cond(norm == 0, lambda g: g, lambda g: g / norm, g)
        return ratio, jnp.sum(unit * unit)

    theta = tp.sample(DECLARED, jax.random.key(0), width=tp.inf, samples=1024, terms=terms)
    ratio, one = tp.limit(program)(theta)
    expected = tp.limit(lambda t: jnp.linalg.norm(gradient(t)["W"]))(theta)
    assert ratio == pytest.approx(float(expected), rel=1e-5)
    assert one == pytest.approx(1, rel=1e-4)
