"""Shares of matrices along their widths, and matrices side by side."""

import functools
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose
from oracles.helpers import assert_same_mean, dense as networks, sampled
from test_parts import EXAMPLES, N, context, dense, op_by_op, whole  # noqa: F401

import tplimit as tp
from tplimit.matrices import placed, products
from tplimit.matrices.parts import Part
from tplimit.matrices.placed import Placed
from tplimit.values.exponents import Size
from tplimit.values.spans import Span
from tplimit.values.tensors import tensor

HALF, ONE, TWO = Fraction(1, 2), Fraction(1), Fraction(2)
FIRST, SECOND, ALL = slice(0, N // 2), slice(N // 2, N), slice(None)


def spans(number: int) -> tuple[Span, ...]:
    """The first half taken, the second half taken, the second half in the place of the first."""
    return (
        Span.taken(Size(ONE), 0 * HALF, HALF),
        Span.taken(Size(ONE), HALF, HALF),
        Span(HALF, 0 * HALF, HALF, ONE, ONE),
    )[number : number + 1]


def selection(span: Span) -> np.ndarray:
    """The matrix that a span is, ``(target, source)``."""
    eye = np.eye(int(span.source * N))
    return np.asarray(span.moved(jnp.asarray(eye), N)).T


@pytest.mark.parametrize(("row", "column"), [(0, 1), (1, 2), (2, 0)])
@pytest.mark.parametrize("kind", [k for k in EXAMPLES if k is not Placed], ids=lambda k: k.__name__)
@pytest.mark.usefixtures("op_by_op")
def test_a_share_has_the_entries_of_the_whole(kind: type[Part], row: int, column: int) -> None:
    """Of every kind of part, from its images, at finite width, where all entries are known."""
    ctx = context()
    matrix = whole(ctx, EXAMPLES[kind](ctx))
    (rows,), (columns,) = spans(row), spans(column)
    share = placed.placed(ctx, matrix, rows, columns)
    expected = selection(rows) @ dense(ctx, matrix) @ selection(columns).T
    entries = _entries(ctx, share)
    assert_allclose(entries, expected, atol=1e-4)
    assert_allclose(_entries(ctx, share.T), expected.T, atol=1e-4)
    back = placed.placed(ctx, share, rows.T, columns.T)
    assert_allclose(
        _entries(ctx, back),
        selection(rows).T @ expected @ selection(columns),
        atol=1e-4,
    )


def _entries(ctx: Any, matrix: Any) -> np.ndarray:
    """All entries, from the images of all unit vectors."""
    eye = jnp.eye(ctx.size(matrix.columns))
    vector = tensor(eye, axis=1, space=matrix.column_space)
    return np.asarray(products.apply(ctx, matrix, vector, matrix.columns).coefficient).T


def test_spans_go_after_one_another() -> None:
    """As their matrices do; the way back is the transposed matrix."""
    chain = [
        Span.put(Size(ONE), HALF, TWO),
        Span.taken(Size(TWO), ONE, ONE),
        Span(0 * ONE, HALF, HALF, ONE, ONE),
    ]
    both = chain[0].then(chain[1])
    assert both is not None
    every = both.then(chain[2])
    assert every is not None
    matrices = [selection(span) for span in chain]
    assert_allclose(selection(every), matrices[2] @ matrices[1] @ matrices[0])
    assert_allclose(selection(every.T), selection(every).T)
    assert Span.put(Size(ONE), 0 * ONE, TWO).then(chain[1]) is None


# --- programs

n = tp.Width("n")
DECLARED = {
    "u": tp.normal((3, n)),
    "W": tp.normal((n, 2 * n), std=n**-0.5),
    "A": tp.normal((n, n), std=n**-0.5),
    "B": tp.normal((n, n), std=2 * n**-0.5),
    "v": tp.normal((n,)),
}
X = jnp.asarray([[1.0, -0.5, 0.3], [0.4, 1.2, -1.0]])


def linear(t: Any) -> Any:
    """Averages that are known: entries of a share are as independent as those of a matrix."""
    h = t["v"]
    first, second = jnp.split(t["W"], 2, axis=1)
    m = h.shape[0]
    joined = jnp.concatenate([t["A"], t["B"]], axis=1)
    tall = jnp.concatenate([t["A"], t["B"]])
    return jnp.stack(
        [
            jnp.mean((h @ first) ** 2),
            jnp.mean((h @ first) * (h @ second)),
            jnp.mean((first @ (h @ first)) * h),  # W1 W1^T
            jnp.mean((second @ (h @ first)) * h),  # W2 W1^T
            jnp.mean((h @ joined) ** 2),
            jnp.mean((joined @ (h @ joined)) * h),  # A A^T + B B^T
            jnp.mean((tall @ h)[:m] ** 2),
            jnp.mean((tall[m:] @ h) ** 2),
            jnp.mean((h[: m // 2] @ t["A"][: m // 2]) ** 2),
            jnp.mean((t["W"][: m // 2, m // 2 : m] @ h[m // 2 :]) ** 2),
            jnp.mean((jnp.tile(t["A"], (1, 3)) @ jnp.tile(h, 3)) ** 2),
        ]
    )


#: Of the entries of v half stand in a half; 3 A v has 9 times the square of A v.
EXACT = [1, 0, 1, 0, (1 + 4) / 2, 1 + 4, 1, 4, 0.5, 0.5, 9]


@pytest.mark.parametrize("noise", ["sobol", "random"])
def test_linear_programs(noise: str) -> None:
    """Matching makes some exact; else within 6 errors, 1024^(-1/2) a number of order one."""
    theta = tp.sample(DECLARED, jax.random.key(3), width=tp.inf, samples=1024, noise=noise)
    found = np.asarray(tp.limit(linear)(theta))
    assert_allclose(found, EXACT, atol=6 * 1024**-0.5, rtol=6 * 1024**-0.5)
    whole = [4, 6, 7]  # images by all rows of a matrix are matched
    assert_allclose(found[whole], np.asarray(EXACT)[whole], rtol=1e-4)


def trained(t: Any) -> Any:
    """Two steps of every parameter, through shares and matrices side by side, both ways."""

    def out(t: Any) -> Any:
        h = jnp.tanh(X @ t["u"])
        gate, value = jnp.split(h @ t["W"], 2, axis=1)
        first, _ = jnp.split(t["W"], 2, axis=1)
        joined = jnp.concatenate([t["A"], t["B"]], axis=1)
        both = jnp.tanh(jnp.concatenate([jax.nn.sigmoid(gate) * value, h @ first.T], axis=1))
        return jnp.tanh(both @ joined.T) @ t["v"] / len(t["v"])

    def loss(t: Any) -> Any:
        return jnp.mean((out(t) - jnp.asarray([1.0, -0.5])) ** 2)

    found = [out(t)]
    for _ in range(2):
        m = len(t["v"])
        rates = {"u": m, "v": m, "W": 1, "A": 1, "B": 1}
        gradient = jax.grad(loss)(t)
        t = {name: t[name] - 0.5 * rates[name] * gradient[name] for name in t}
        found.append(out(t))
    return jnp.stack(found)


@functools.cache
def finite() -> np.ndarray:
    return networks(trained, DECLARED, 480, 48)


@pytest.mark.parametrize("width", [tp.inf, tp.Deferred(480)], ids=str)
def test_trained_beside_networks(width: Any) -> None:
    """6 numbers within 4.5 errors: a false alarm in 20 000 runs. The limit has a bias of 1/n."""
    seeds = 4 if width == tp.inf else 24
    found = sampled(trained, DECLARED, width, seeds, samples=2048)
    assert_same_mean(found, finite(), slack=6 / 480 if width == tp.inf else 0.0)
    assert np.abs(np.diff(finite().mean(0).reshape(3, 2), axis=0)).min() > 0.05  # it learns


def step(t: Any, _: Any) -> Any:
    """A step of the matrix of both side by side, which is in the state as such."""
    joined, v = t

    def out(joined: Any) -> Any:
        return jnp.mean(jnp.tanh(v @ joined) ** 2)

    value, gradient = jax.value_and_grad(out)(joined)
    return (joined - 2 * len(v) * gradient, v), value


def test_a_state_of_matrices_side_by_side() -> None:
    """Updates are absorbed where they stand: the state of the third step has the form of the
    second. Records within 4.5 errors of those of networks."""
    init = lambda t: (jnp.concatenate([t["A"], t["B"]], axis=1), t["v"])
    options = {"init": init, "key": jax.random.key(1), "progress": False}
    batches = [None] * 3
    limit = tp.train(step, DECLARED, batches, width=tp.inf, samples=2048, replicates=4, **options)
    finite = tp.train(step, DECLARED, batches, width=480, replicates=24, **options)
    error = np.hypot(limit.stderr.outputs, finite.stderr.outputs)
    assert np.all(abs(limit.outputs - finite.outputs) <= 4.5 * error + 6 / 480)
    matrix = jax.tree.leaves(limit.state)[0]._value.items.item()
    assert {type(part) for part in matrix.parts} == {Placed}
    assert len(matrix.parts) == 4  # two matrices, and what each has learnt


# --- what there is not


def refused(run: Callable[[Any], Any], kind: type[Exception], words: str, **options: Any) -> None:
    theta = tp.sample(DECLARED, jax.random.key(3), width=tp.inf, samples=64, **options)
    with pytest.raises(kind, match=words) as caught:
        tp.limit(run)(theta)
    assert caught.value.location.file == __file__


def test_refused_with_a_reason() -> None:
    refused(lambda t: jnp.sum(t["v"] @ t["W"][:, :3]), tp.NoLimitError, "Single coordinates")
    refused(lambda t: jnp.sum(t["v"] @ t["W"][:, ::2]), tp.NoLimitError, "strided slice")
    refused(
        lambda t: jnp.mean(jnp.tanh(jnp.split(t["W"], 2, 1)[0] @ t["v"])),
        tp.UnsupportedOperationError,
        "fluctuations of a share",
        terms=2,
    )


def test_two_terms_of_the_forward_pass() -> None:
    """The initial function of a network in the NTK parameterization, through the second share of
    a matrix: over 400 keys a Gaussian of the variance that the limit of one term gives. Within
    4.5 errors of ``(2 / 400)^(1/2)`` of it: a false alarm in 10^5 runs."""
    hidden = lambda t: jnp.tanh(t["u"][0] @ jnp.split(t["W"], 2, 1)[1])
    output = tp.limit(lambda t: len(t["v"]) ** -0.5 * hidden(t) @ t["v"])
    drawn = lambda seed, terms: tp.sample(
        DECLARED, jax.random.key(seed), width=tp.inf, samples=256, terms=terms
    )
    found = np.asarray([output(drawn(seed, 2)) for seed in range(400)])
    variance = float(tp.limit(lambda t: jnp.mean(hidden(t) ** 2))(drawn(0, 1)))
    assert abs(np.mean(found**2) / variance - 1) < 4.5 * (2 / 400) ** 0.5 + 0.02
