"""Arrays with an axis of length k + n, by their pieces: numbers and a width side by side."""

import functools
from typing import Any

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose
from oracles.helpers import assert_same_mean, dense, line_of, sampled

import tplimit as tp
from tplimit.declare.joined import SideBySide
from tplimit.declare.parameters import Parameter

n = tp.Width("n")
PARTS = {
    "A": tp.normal((3, 2 * n), std=0.5),
    "W": tp.normal((n, 2 * n), std=n**-0.5),
    "a": tp.normal((3,)),
    "h": tp.normal((n,)),
    "v": tp.normal((2 * n,)),
}
JOINED = {
    "W": tp.normal((3 + n, 2 * n), std=n**-0.5),
    "b": tp.normal((3 + n,)),
    "v": tp.normal((n,)),
}
X = jnp.asarray([[1.0, -0.5, 0.3], [0.4, 1.2, -1.0]])


def whole(t: Any) -> tuple[Any, Any]:
    """A matrix and a vector whose first three rows stand beside those of a width."""
    return jnp.concatenate([t["A"], t["W"]]), jnp.concatenate([t["a"], t["h"]])


def mean(x: Any) -> Any:
    return jnp.mean(x**2)


def loop(w: Any, z: Any) -> Any:
    """The array is a constant, carried, and what is stacked."""

    def turn(carried: Any, _: Any) -> Any:
        carried = jnp.tanh(carried + 0.1 * (z @ w) @ w.T / len(z))
        return carried, carried

    last, rows = jax.lax.scan(turn, z, None, length=3)
    return jnp.stack([mean(last @ w), mean((rows @ w)[1])])


def turns(t: Any) -> Any:
    a, h, out = t["a"], t["h"], []
    for _ in range(3):
        length = 3 + len(h)
        y = (t["a"] @ t["A"] + t["h"] @ t["W"]) * 0.1 / length
        a, h = jnp.tanh(a + t["A"] @ y), jnp.tanh(h + t["W"] @ y)
        out.append(mean(a @ t["A"] + h @ t["W"]))
    return jnp.stack([out[-1], out[1]])


def gradients(t: Any) -> Any:
    loss = lambda w, z: jnp.mean(jnp.tanh(z @ w) * t["v"])
    g, d = jax.grad(loss, (0, 1))(*whole(t))
    return jnp.stack([mean(d @ (whole(t)[0] - 0.3 * len(t["h"]) * g)), jnp.sum(d[:3])])


def gradients_of_parts(t: Any) -> Any:
    loss = lambda A, W, a, h: jnp.mean(jnp.tanh(a @ A + h @ W) * t["v"])
    A, W, a, h = jax.grad(loss, (0, 1, 2, 3))(t["A"], t["W"], t["a"], t["h"])
    rate = 0.3 * len(t["h"])
    return jnp.stack([mean(a @ (t["A"] - rate * A) + h @ (t["W"] - rate * W)), jnp.sum(a)])


def normalised(x: Any, z: Any) -> Any:
    return (x - jnp.mean(z, keepdims=True)) / jnp.std(z)


def centred(z: Any, image: Any) -> Any:
    return jnp.stack([jnp.var(z), mean(image(normalised(z, z)))])


#: An operation on the array, and what it is in its parts.
PROGRAMS = {
    "contraction": (
        lambda t: mean(whole(t)[1] @ whole(t)[0]),
        lambda t: mean(t["a"] @ t["A"] + t["h"] @ t["W"]),
    ),
    "transposed": (
        lambda t: mean((whole(t)[0] @ t["v"])[3:] / len(t["h"]) ** 0.5),
        lambda t: mean(t["W"] @ t["v"] / len(t["h"]) ** 0.5),
    ),
    "batch": (
        lambda t: mean(jnp.stack([whole(t)[1], 2 * whole(t)[1]]) @ whole(t)[0]),
        lambda t: 2.5 * mean(t["a"] @ t["A"] + t["h"] @ t["W"]),
    ),
    "vmap": (
        lambda t: mean(jax.vmap(lambda x: jnp.concatenate([x, t["h"]]) @ whole(t)[0])(X)),
        lambda t: mean(X @ t["A"] + t["h"] @ t["W"]),
    ),
    "entry by entry": (
        lambda t: jnp.mean(jnp.where(whole(t)[1] > 0, jnp.exp(-(whole(t)[1] ** 2)), 0.5)),
        lambda t: jnp.mean(jnp.where(t["h"] > 0, jnp.exp(-(t["h"] ** 2)), 0.5)),
    ),
    "centred": (
        lambda t: centred(whole(t)[1], lambda z: z @ whole(t)[0]),
        lambda t: centred(t["h"], lambda h: normalised(t["a"], t["h"]) @ t["A"] + h @ t["W"]),
    ),
    "sums": (
        lambda t: jnp.stack([jnp.sum(whole(t)[0][:3, :] ** 2, 0) @ t["v"] / len(t["h"])]),
        lambda t: jnp.stack([jnp.sum(t["A"] ** 2, 0) @ t["v"] / len(t["h"])]),
    ),
    "pieces": (
        lambda t: sum(map(mean, jnp.split(jnp.concatenate([whole(t)[1], t["h"]]), [2, 3]))) * 0
        + jnp.sum(whole(t)[1][1:3])
        + mean(jnp.split(jnp.concatenate([t["h"], whole(t)[1]]), [len(t["h"])])[0]),
        lambda t: jnp.sum(t["a"][1:]) + mean(t["h"]),
    ),
    "padded": (
        lambda t: mean(jnp.pad(t["h"], (3, 0)) @ whole(t)[0]),
        lambda t: mean(t["h"] @ t["W"]),
    ),
    "reshaped": (
        lambda t: mean(
            (jnp.stack([whole(t)[1]] * 4).reshape(2, 2, -1)[:, None].squeeze(1) @ whole(t)[0])
            .reshape(4, -1)
        ),
        lambda t: mean(t["a"] @ t["A"] + t["h"] @ t["W"]),
    ),
    "loop": (lambda t: loop(*whole(t)), turns),
    "gradients": (gradients, gradients_of_parts),
    "jit": (
        lambda t: jax.jit(lambda w, z: mean(jax.checkpoint(jnp.dot)(z, w)))(*whole(t)),
        lambda t: mean(t["a"] @ t["A"] + t["h"] @ t["W"]),
    ),
}  # fmt: skip


@functools.cache
def limit() -> Any:
    return tp.sample(PARTS, jax.random.key(2), width=tp.inf, samples=256)


@pytest.mark.parametrize("name", PROGRAMS)
def test_what_it_is_in_its_parts(name: str) -> None:
    """The same numbers, in the limit and in networks: to round-off of sums in another order."""
    joined, parts = PROGRAMS[name]
    network = tp.sample(PARTS, jax.random.key(2), width=64)
    for at, theta in ((tp.limit, limit()), (lambda run: run, network)):
        size = float(jnp.max(jnp.abs(at(parts)(theta)))) + 0.05
        # In a network 3 numbers more in the averages make a difference.
        same = name in ("entry by entry", "centred") and theta is network
        assert_allclose(at(joined)(theta), at(parts)(theta), atol=0.2 if same else 2e-4 * size)


def trained(t: Any) -> Any:
    """Two steps of a recurrent network of which input and state stand side by side."""

    def out(t: Any) -> Any:
        m = len(t["v"])
        h = jnp.zeros((2, m))
        for _ in range(2):
            both = jnp.concatenate([X * m**0.5, h], axis=1) + 0.1 * t["b"]
            gate, value = jnp.split(both @ t["W"], 2, axis=1)
            h = jax.nn.sigmoid(gate) * jnp.tanh(value)
        return h @ t["v"] / m

    def loss(t: Any) -> Any:
        return jnp.mean((out(t) - jnp.asarray([1.0, -0.5])) ** 2)

    found = [out(t)]
    for _ in range(2):
        rates = {"W": 1, "b": 1, "v": len(t["v"])}
        gradient = jax.grad(loss)(t)
        t = {name: t[name] - 0.5 * rates[name] * gradient[name] for name in t}
        found.append(out(t))
    return jnp.stack(found)


@pytest.mark.parametrize("width", [tp.inf, tp.Deferred(480)], ids=str)
def test_trained_beside_networks(width: Any) -> None:
    """6 numbers within 4.5 errors: a false alarm in 20 000 runs. The limit has a bias of 1/n."""
    networks = dense(trained, JOINED, 480, 32)
    seeds = 4 if width == tp.inf else 16
    found = sampled(trained, JOINED, width, seeds, samples=1024)
    assert_same_mean(found, networks, slack=6 / 480 if width == tp.inf else 0.0)
    assert np.abs(np.diff(networks.mean(0).reshape(3, 2), axis=0)).min() > 0.02  # it learns


def test_declared_and_drawn() -> None:
    """Its two parts, of which a network has one array; the other order is another declaration."""
    assert isinstance(JOINED["W"], SideBySide)
    first, second = JOINED["W"].parts
    assert isinstance(first, Parameter) and isinstance(second, Parameter)
    assert (first.shape, second.shape) == ((3, 2 * n), (n, 2 * n))
    assert [part.shape for part in tp.normal((n, 2 * n + 3)).parts] == [(n, 2 * n), (n, 3)]
    drawn = tp.sample(JOINED, jax.random.key(0), width=480)
    assert drawn["W"].shape == (483, 960)
    for part in (drawn["W"][:3], drawn["W"][3:]):
        assert abs(float(jnp.var(part)) * 480 - 1) < 5 * (2 / part.size) ** 0.5
    state = tp.limit(lambda t: jax.tree.map(lambda x: 2 * x, t))(
        tp.sample(JOINED, jax.random.key(0), width=tp.inf, samples=64)
    )
    assert isinstance(state["W"], SideBySide)
    assert tp.limit(lambda t: mean(t["b"]))(state) == pytest.approx(4, rel=1e-3)


def test_read_from_an_initialiser() -> None:
    """The one matrix of haiku's LSTM."""
    net = lambda m: hk.transform(lambda x: hk.LSTM(m)(x, hk.LSTM(m).initial_state(2)))
    theta = tp.declare(lambda m: net(m).init(jax.random.key(0), X))["lstm/linear"]
    assert [part.shape for part in theta["w"].parts] == [(3, 4.0 * n), (n, 4.0 * n)]
    assert {part.law for part in theta["w"].parts} == {"truncated normal"}
    shared = lambda m: [jax.random.normal(jax.random.key(0), (3 + m,))] * 2
    with pytest.raises(tp.UnsupportedOperationError, match="same draw as another"):
        tp.declare(shared)


def kernel_of(t: Any, x: Any) -> Any:
    m = len(t["v"])
    h = jnp.broadcast_to(t["h"], (len(x), m))
    both = jnp.concatenate([x * m**0.5, h], axis=1)
    return jnp.tanh(both @ t["W"] / m**0.5) @ t["v"] / m**0.5


def kernel_of_parts(t: Any, x: Any) -> Any:
    m = len(t["v"])
    return jnp.tanh((x @ t["A"] * m**0.5 + t["h"] @ t["B"]) / m**0.5) @ t["v"] / m**0.5


@pytest.mark.parametrize("kernel", [tp.nngp, tp.ntk])
def test_kernels(kernel: Any) -> None:
    """With derivatives by the parts; of the same draws, hence to round-off."""
    vectors = {"h": tp.normal((n,)), "v": tp.normal((n,))}
    joined = {"W": tp.normal((3 + n, n)), **vectors}
    parts = {"A": tp.normal((3, n)), "B": tp.normal((n, n)), **vectors}
    options = {"samples": 128, "replicates": 2, "method": "particles"}
    found = kernel(kernel_of, joined, X, **options).value
    assert_allclose(found, kernel(kernel_of_parts, parts, X, **options).value, rtol=1e-4)


# --- what there is not


def outer(t: Any) -> Any:
    z = whole(t)[1]
    return jnp.sum(jnp.outer(z, z))  # here


def largest(t: Any) -> Any:
    return jnp.max(whole(t)[1])  # here


def branch(t: Any) -> Any:
    return jnp.sum(jax.lax.cond(t["a"][0] > 0, jnp.sin, jnp.cos, whole(t)[1]))  # here


def more_than_a_share(t: Any) -> Any:
    return jnp.mean(t["v"][: len(t["h"]) + 3])  # here


def returned(t: Any) -> Any:
    return whole(t)[1]


@pytest.mark.parametrize("run", [outer, largest, branch, more_than_a_share])
def test_refused_with_its_line(run: Any) -> None:
    words = "k \\+ n|single coordinates besides"
    with pytest.raises(tp.UnsupportedOperationError, match=words) as caught:
        tp.limit(run)(limit())
    assert caught.value.location.line == line_of(run)
    assert "arrays of their own" in str(caught.value)


def test_refused_without_a_line() -> None:
    with pytest.raises(tp.NoLimitError, match="An output has an axis of the form k"):
        tp.limit(returned)(limit())
    turned = tp.sample(tp.normal((n + 3,)), jax.random.key(0), width=tp.inf, samples=64)
    with pytest.raises(tp.LimitError, match="length of an axis"):
        tp.limit(lambda z, h: jnp.sum(z * jnp.concatenate([X[0], h])))(turned, turned.parts[0])
    for shape in ((3 + n, 3 + n), (n + 1, n + 1)):
        with pytest.raises(tp.WidthError, match="Two axes of the form"):
            tp.normal(shape)
    with pytest.raises(tp.WidthError, match="orthogonal"):
        tp.orthogonal((3 + n, n))
