"""Shares of a width, such as heads and gates: what is zero by symmetry is zero there, too, and sums
over shares fluctuate jointly right, with one another and with those over the whole width."""

import itertools
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles.helpers import dense

import tplimit as tp

n = tp.Width("n")
DECLARED = {
    **{name: tp.normal((n,)) for name in "vwu"},
    **{name: tp.normal((n, n), std=n**-0.5) for name in "QKV"},
    "U": tp.normal((3, n)),
}
X = jnp.asarray([[1.0, -0.5, 0.3], [0.4, 1.2, -1.0], [0.1, 0.2, 0.3]])


def sampled(terms=1, noise="sobol", samples=4096):
    return tp.sample(
        DECLARED, jax.random.key(5), width=tp.inf, samples=samples, terms=terms, noise=noise
    )


POWERS = list(itertools.product(range(4), range(4), range(3)))


def moments(t, odd=lambda x: x):
    """E[odd(v_1)^a v_2^b w_1^c] over halves of v and w, for all powers."""
    (first, second), (other, _) = t["v"].reshape(2, -1), t["w"].reshape(2, -1)
    return [jnp.mean(odd(first) ** a * second**b * other**c) for a, b, c in POWERS]


def gaussian(power):
    return 0 if power % 2 else np.prod(np.arange(1, power, 2.0))


@pytest.mark.parametrize("noise", ["sobol", "random"])
@pytest.mark.parametrize("terms", [1, 2])
def test_moments_of_halves(terms, noise):
    """Those that symmetry knows to vanish do, and no other one is taken for zero. Within 6 errors
    of 2048 independent coordinates: a false alarm in 10^7 programs."""
    found = tp.series(moments)(sampled(terms, noise))
    known = 0
    for powers, series in zip(POWERS, found, strict=True):
        exact = np.prod([gaussian(q) for q in powers])
        spread = np.prod([gaussian(2 * q) for q in powers]) ** 0.5
        exponent, coefficient = series.terms[0]
        if exponent == -0.5:
            assert exact == 0, powers
            known += 1
        else:
            assert exponent == 0, powers
            assert abs(coefficient - exact) <= 6 * spread / 2048**0.5, powers
    # Of those that vanish only the ones with an even power of v in all look as if they need not.
    assert known == sum((a + b) % 2 or c % 2 for a, b, c in POWERS)


def odd_functions(t):
    """Both shares take part: an odd function of the two together is odd."""
    first, second = t["v"].reshape(2, -1)
    joint = jnp.tanh(first + 0.5 * second)
    return jnp.stack(
        [
            jnp.mean(joint),
            jnp.mean(joint * first),
            jnp.mean(joint * second),
            jnp.mean(joint**2 * second),
            jnp.mean(joint * first * second),
            jnp.mean(joint * first**2 * second),
        ]
    )


def attention(t, heads=2):
    h = jnp.tanh(X @ t["U"])
    q, k, v = (jnp.moveaxis((h @ t[name]).reshape(3, heads, -1), 1, 0) for name in "QKV")
    scores = jax.nn.softmax(jnp.einsum("hid,hjd->hij", q, k) / q.shape[-1], -1)
    out = jnp.moveaxis(jnp.einsum("hij,hjd->hid", scores, v), 0, 1).reshape(3, -1)
    return jnp.concatenate([jnp.mean(jnp.tanh(out) ** 2, 1), jnp.mean(out * (h @ t["V"]), 1)])


@pytest.mark.parametrize("program", [odd_functions, attention])
def test_beside_networks(program):
    """Averages of 24 networks of width 1008, four of their errors and a bias of 1/n."""
    found = np.ravel(tp.limit(program)(sampled()))
    networks = dense(program, DECLARED, 1008, 24)
    error = np.std(networks, axis=0, ddof=1) / len(networks) ** 0.5
    assert np.all(np.abs(np.mean(networks, axis=0) - found) <= 4 * error + 0.02)


def test_scores_of_heads_without_training_are_known_to_vanish():
    """With 1/d the scores of each head are exactly zero: every position looks at all alike."""

    def scores(t):
        h = jnp.tanh(X @ t["U"])
        q, k = ((h @ t[name]).reshape(3, 2, -1) for name in "QK")
        return jax.nn.softmax(jnp.einsum("ihd,jhd->hij", q, k) / q.shape[-1], -1)

    found = tp.limit(scores)(sampled(2, samples=512))
    np.testing.assert_allclose(found, np.full((2, 3, 3), 1 / 3), rtol=1e-6)


DRAWS = 300


def draws(program, samples=768, declared=DECLARED):
    """Outputs of the limit, one row for each draw of the parameters."""
    limited = tp.limit(program)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # so many samples have thirds, and are no power of two
        thetas = [
            tp.sample(declared, jax.random.key(k), width=tp.inf, samples=samples, terms=2)
            for k in range(DRAWS)
        ]
    return np.stack([np.ravel(limited(theta)) for theta in thetas])


def assert_covariance(found, exact):
    """Of Gaussian variables: every entry within 4.5 of its standard errors.

    Over 100 entries that fails by chance once in 1500 choices of keys.
    """
    second = found.T @ found / len(found)
    size = np.diag(exact)
    error = np.sqrt((np.outer(size, size) + exact**2) / len(found))
    assert np.all(np.abs(second - exact) <= 4.5 * error + 1e-6), (second - exact) / error


#: Sums over these of standard normals have as covariances the lengths of the intersections.
PLACES = {
    "all": (0, 12), "first half": (0, 6), "second half": (6, 12), "third": (0, 4),
    "two thirds": (4, 12), "first of a split half": (6, 9), "second of it": (9, 12),
    "in the middle": (3, 9),
}  # fmt: skip


def test_sums_over_parts_fluctuate_jointly():
    """Equal and unequal parts, nested ones, and the whole: slices, splits, reshapes, as one."""

    def sums(t):
        v = t["v"]
        size = len(v)
        second = v.reshape(2, -1)[1]
        parts = {
            "all": v, "first half": jnp.split(v, 2)[0], "second half": second,
            "third": v[: size // 3], "two thirds": v[size // 3 :],
            "first of a split half": second.reshape(2, -1)[0],
            "second of it": jnp.split(second, 2)[1], "in the middle": v[size // 4 : 3 * size // 4],
        }  # fmt: skip
        assert parts.keys() == PLACES.keys()
        return jnp.stack([jnp.sum(part) for part in parts.values()]) / size**0.5

    exact = np.array(
        [
            [max(0, min(a[1], b[1]) - max(a[0], b[0])) / 12 for a in PLACES.values()]
            for b in PLACES.values()
        ]
    )
    found = draws(sums)
    assert_covariance(found, exact)
    # The sum over the whole is that over its parts, in every single draw.
    whole, *others = found.T
    np.testing.assert_allclose(whole, others[0] + others[1], atol=2e-6)
    np.testing.assert_allclose(whole, others[2] + others[3], atol=2e-6)
    np.testing.assert_allclose(others[1], others[4] + others[5], atol=2e-6)


def test_what_is_made_of_several_shares_is_their_function():
    """Products of different coordinates, halves exchanged and put back: none is taken for
    another."""

    def sums(t):
        v, w = t["v"], t["w"]
        first, second = jnp.split(v, 2)
        exchanged = jnp.concatenate([second, first])
        half = w[: len(w) // 2]
        parts = [v * w, exchanged * w, first * half, second * half, first * second * half]
        return jnp.stack([jnp.sum(part) for part in parts]) / len(v) ** 0.5

    exact = np.diag([1, 1, 0.5, 0.5, 0.5])
    exact[0, 2] = exact[2, 0] = exact[1, 3] = exact[3, 1] = 0.5
    assert_covariance(draws(sums), exact)


def test_a_sum_less_those_over_its_shares_is_nothing():
    """It is found to cancel; what is left is of lower order, and not known."""

    def left(t):
        return (jnp.sum(t["v"]) - jnp.sum(jnp.sum(t["v"].reshape(4, -1), 1))) / len(t["v"]) ** 0.5

    assert tp.limit(left)(sampled(2, samples=512)) == 0
    with pytest.raises(tp.CancellationError, match=r"unknown part is of order n\^0"):
        tp.limit(lambda t: len(t["v"]) ** 0.5 * left(t))(sampled(2, samples=512))


HEADS = 2
STACKED = {
    "U": tp.normal((3, n)),
    **{name: tp.normal((n, HEADS, n / HEADS), std=n**-0.5) for name in "QK"},
}
SPELLINGS = {
    "reshaped": lambda q: q.reshape(3, HEADS, -1),
    "split": lambda q: jnp.stack(jnp.split(q, HEADS, -1), 1),
    "sliced": lambda q: jnp.stack([q[:, : q.shape[1] // 2], q[:, q.shape[1] // 2 :]], 1),
    "pairs first": lambda q: jnp.moveaxis(jax.vmap(lambda z: z.reshape(HEADS, -1))(q), 0, 0),
}


def logits(t, spelled=SPELLINGS["reshaped"]):
    h = X @ t["U"]
    if t["Q"].ndim == 3:
        q, k = (jnp.einsum("in,nhd->ihd", h, t[name]) for name in "QK")
    else:
        q, k = (spelled(h @ t[name]) for name in "QK")
    return jnp.einsum("ihd,jhd->hij", q, k) / q.shape[-1] ** 0.5


@pytest.mark.parametrize("declared", [DECLARED, STACKED], ids=["square", "stacked"])
def test_logits_divided_by_the_root_are_gaussian(declared):
    """Given the features, `q_i k_j / sqrt(d)` has covariances `K_ii' K_jj'`, and heads are
    independent, K being the kernel of the features."""
    found = draws(logits, 1024, declared)
    kernel = np.asarray(X @ X.T, float)
    exact = np.kron(np.eye(HEADS), np.kron(kernel, kernel))
    assert_covariance(found, exact)
    # The fourth moment of a normal variable is 3, that of a mixture is larger.
    scaled = found / np.sqrt(np.diag(exact))
    fourth = np.mean(scaled**4)
    assert abs(fourth - 3) <= 4.5 * np.std(np.mean(scaled**4, 1)) / DRAWS**0.5


def test_logits_do_not_hang_on_the_spelling():
    theta = sampled(2, samples=512)
    expected = tp.limit(logits)(theta)
    for spelled in SPELLINGS.values():
        found = tp.limit(lambda t, s=spelled: logits(t, s))(theta)
        np.testing.assert_allclose(found, expected, atol=1e-6)


def test_what_is_unknown_is_odd_where_its_factors_are():
    """`a v` is known to order 1 as `a` is, a sum that fluctuates; what is unknown of it is odd in
    `v`, and so of lower order in a sum with the independent `w`."""

    def sums(t):
        v, w = t["v"], t["w"]
        a = jnp.sum(t["u"]) / len(v) ** 0.5
        parts = [a * v, jnp.tanh(a * v), jax.nn.gelu(a * v + v)]
        return jnp.stack([jnp.sum(w * part) for part in parts]) / len(v) ** 0.5

    found = draws(sums, 512)
    squares = found[:, 0] ** 2  # of mean E[a^2] = 1
    assert abs(np.mean(squares) - 1) <= 4.5 * np.std(squares) / DRAWS**0.5
    networks = dense(sums, {name: DECLARED[name] for name in "uvw"}, 512, DRAWS)
    error = np.std(found**2, 0) ** 2 / DRAWS + np.std(networks**2, 0) ** 2 / DRAWS
    assert np.all(np.abs(np.mean(found**2, 0) - np.mean(networks**2, 0)) <= 4.5 * error**0.5)


def test_what_is_unknown_and_even_is_not_left_out():
    """With `v` itself the sum of `a v` has a mean, of which what is unknown of `a` is a part."""

    def sums(t):
        v = t["v"]
        return jnp.sum(v * jnp.tanh(jnp.sum(t["u"]) / len(v) ** 0.5 * v)) / len(v) ** 0.5

    with pytest.raises(tp.DivergenceError):
        tp.limit(sums)(sampled(2, samples=512))


@pytest.mark.parametrize("similar", [1, 1.001])
def test_the_error_where_logits_grow_says_what_to_do(similar):
    """Queries that contain the keys: equal tokens have equal logits of order n^(1/2), similar ones
    logits that are equal within their error."""

    def aligned(t):
        h = jnp.stack([X[0], similar * X[0], X[1]]) @ t["U"]
        k = (h @ t["K"]).reshape(3, 2, -1)
        q = (h @ t["Q"]).reshape(3, 2, -1) + k
        return jax.nn.softmax(jnp.einsum("ihd,jhd->hij", q, k) / q.shape[-1] ** 0.5)  # here

    with pytest.raises(tp.CancellationError, match=r"grows? like n\^1/2") as found:
        tp.limit(aligned)(sampled(2, samples=512))
    assert "divide by d" in found.value.advice
    assert "test_shares.py" in str(found.value)


def test_shares_of_too_few_particles_are_refused():
    """Their sums would not be normal."""
    run = lambda t: jnp.sum(t["v"].reshape(16, -1), 1) / len(t["v"]) ** 0.5
    with pytest.raises(tp.WidthError, match="4 independent multipliers"):
        tp.limit(run)(sampled(2, samples=64))


def test_what_a_saturated_softmax_makes_of_random_logits_is_random():
    """So large that the largest takes nearly all for most draws."""
    run = lambda t: jnp.sum(jax.nn.softmax(20 * logits(t)) ** 2, -1)
    assert tp.leading(run)(sampled(2, samples=512)).random


def fluctuation(x, t):
    return jnp.sum(x) / t["v"].shape[0] ** 0.5


@pytest.mark.parametrize("name", "uvw")
def test_sums_of_an_earlier_call_are_the_same_where_a_width_has_been_combined_since(name):
    """Whichever of two spaces stands for both: the sum of one call is that of the other."""
    theta = sampled(terms=2, samples=1024)
    theta, before = tp.limit(lambda t: (t, fluctuation(t[name], t)))(theta)
    other = "w" if name == "v" else "v"
    joint = lambda t: (fluctuation(t[name], t), fluctuation(t[name] * t[other], t))
    after, _ = tp.limit(joint)(theta)
    assert abs(float(before)) > 1e-3
    np.testing.assert_allclose(after, before, rtol=1e-4)


def test_products_of_sums_leave_their_widths_apart():
    """As those of attention weights, sums over keys, with their gradients, sums over values."""
    theta = sampled(terms=2, samples=1024)

    def logits(t):
        return (jnp.dot(t["v"], t["u"]) / t["v"].shape[0] ** 0.5, fluctuation(t["w"], t))

    def product(t):
        v, w = logits(t)
        return v, w, v * jnp.dot(t["w"], t["w"]) / t["w"].shape[0]

    theta, *before = tp.limit(lambda t: (t, *logits(t)))(theta)
    *after, both = tp.limit(product)(theta)
    np.testing.assert_allclose(after, before, rtol=1e-4)
    np.testing.assert_allclose(both, before[0], rtol=0.05)


DIVIDED = {
    "the whole": lambda t: t["v"],
    "a half": lambda t: t["v"].reshape(2, -1)[0],
    "a quarter": lambda t: t["v"].reshape(4, -1)[1],
}


@pytest.mark.parametrize(("first", "second"), itertools.permutations(DIVIDED, 2))
def test_a_width_that_is_divided_otherwise_since_is_refused(first, second):
    """Multipliers of an earlier call were others: a number would be that of independent sums. What
    was divided once stays so."""
    theta = sampled(terms=2, samples=1024)
    theta, before = tp.limit(lambda t: (t, fluctuation(DIVIDED[first](t), t)))(theta)
    later = tp.limit(lambda t: fluctuation(DIVIDED[second](t), t))
    if second == "the whole" or (first, second) == ("a quarter", "a half"):
        both = lambda t: tuple(fluctuation(DIVIDED[name](t), t) for name in (first, second))
        together = tp.limit(both)(sampled(terms=2, samples=1024))
        np.testing.assert_allclose([before, later(theta)], together, rtol=1e-4)
        return
    with pytest.raises(
        tp.NoLimitError, match="An earlier call has drawn sums over a width"
    ) as error:
        later(theta)
    assert "test_shares.py" in str(error.value)
