"""Data, networks and measurements that the scripts share."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import tplimit as tp
from tplimit import Parameterization
from tplimit.networks.activations import resolve
from tplimit.reproduction import Measurement, average

INPUTS = np.array(
    [
        [0.20735051523887160, 0.49297088610069500, 0.19826224571003230],
        [-0.78189433896261650, 0.54321352000387060, 0.26782474341841840],
        [-0.32217194121617110, 0.34867086251781210, 0.21874343771164542],
        [0.17647949799331558, 0.01705334478947807, 0.32802779196746820],
    ]
)
TARGETS = np.array([1.0, -1.0, 0.5, 1.0])
POINTS = np.array(
    [
        [-0.44187245220100013, -0.09774596879583167, -0.28927158760798694],
        [0.3593077275807765, 0.023833264488995393, -0.17547405057905316],
    ]
)
NAMES = ("A", "B")


def named(name: str) -> Parameterization:
    """A parameterization with the first layer of the theory, without a factor of its inputs."""
    return getattr(tp.parameterizations, name)(input_scale=1.0)


def network(depth: int, activation: Any, bias: Any = "first") -> tp.Model:
    return tp.mlp(depth, inputs=INPUTS.shape[1], activation=activation, bias=bias)


def scaled_relu2(h: jax.Array) -> jax.Array:
    """√(2/3)/2 max(h, 0)²: of degree 2, and f_1 of order one for two hidden layers."""
    return (2 / 3) ** 0.5 / 2 * resolve("relu2")(h)


def root_2_relu(h: jax.Array) -> jax.Array:
    """√2 max(h, 0), which keeps second moments: finite widths are closer to their limit."""
    return 2**0.5 * jnp.maximum(h, 0)


def linear(f: jax.Array, y: jax.Array) -> jax.Array:
    """A loss of derivative -y: no exponent hides behind a residual that shrinks."""
    return -jnp.sum(f * y)


def batches(steps: int) -> list[tuple[jax.Array, jax.Array]]:
    """One sample per step, over again where there are more steps than samples."""
    order = np.arange(steps) % len(INPUTS)
    x, y = jnp.asarray(INPUTS[order, None]), jnp.asarray(TARGETS[order, None])
    return list(zip(x, y, strict=True))


def functions(
    p: Parameterization,
    model: tp.Model,
    eta: float,
    steps: int,
    width: Any,
    replicates: int,
    *,
    samples: int = 2**13,
    seed: int = 0,
    loss: Any = "mse",
    theta: Mapping[str, Any] | None = None,
) -> np.ndarray:
    """f_0, f_1, .. at the test points: (replicates, steps + 1, points)."""
    predict, points = p.predict(model), jnp.asarray(POINTS)
    run = tp.train(
        p.step(model, loss, eta),
        p.theta(model) if theta is None else theta,
        batches(steps),
        width=width,
        key=jax.random.key(seed),
        replicates=replicates,
        samples=samples,
        observe=lambda state: predict(state, points),
    )
    return np.asarray(run.replicates.observations, float)


def layers(
    p: Parameterization, model: tp.Model, state: Any, x: jax.Array
) -> tuple[list[jax.Array], list[jax.Array]]:
    """Preactivations h^1 .. h^L, f and the inputs x^0 .. x^L of all layers."""
    effective, phi = p.effective(model, state), resolve(model.activation)
    given, h = [x], []
    for l in range(1, model.layers + 1):
        h.append(given[-1] @ effective[f"W{l}"] + effective.get(f"b{l}", 0.0))
        given.append(phi(h[-1]))
    return h, given[:-1]


def contributions(
    p: Parameterization,
    model: tp.Model,
    eta: float,
    steps: int,
    widths: Mapping[int, int],
    *,
    seed: int = 0,
) -> list[dict[str, dict[int, np.ndarray]]]:
    """Per step, per layer "1" .. "L+1", by width: RMS of ΔW^l x^{l-1} at the next input, per seed.

    `widths` maps widths to numbers of seeds. The derivative of the loss is -1 throughout.
    """
    inner = p.step(model, linear, eta)

    def step(state: Any, batch: Any) -> Any:
        x, following = batch
        before = p.effective(model, state)
        state, _ = inner(state, (x, jnp.ones(1)))
        _, given = layers(p, model, state, following)
        after = p.effective(model, state)
        moved = [
            given[l - 1] @ (after[f"W{l}"] - before[f"W{l}"]) for l in range(1, model.layers + 1)
        ]
        return state, jnp.stack([jnp.sqrt(jnp.mean(m**2)) for m in moved])

    order = np.arange(steps + 1) % len(INPUTS)
    x = jnp.asarray(INPUTS[order, None])
    pairs = [(x[t], x[t + 1]) for t in range(steps)]
    found: list[dict[str, dict[int, np.ndarray]]] = [
        {f"layer {l}": {} for l in range(1, model.layers + 1)} for _ in range(steps)
    ]
    for n, seeds in widths.items():
        run = tp.train(
            step, p.theta(model), pairs, width=n, key=jax.random.key(seed), replicates=seeds
        )
        sizes = np.asarray(run.replicates.outputs, float)
        for t in range(steps):
            for l in range(1, model.layers + 1):
                found[t][f"layer {l}"][n] = sizes[:, t, l - 1]
    return found


def leading_contributions(
    p: Parameterization, model: tp.Model, eta: float, samples: int = 2**12
) -> list[tp.Leading]:
    """Exponent and coefficient of the first step's mean squares of ΔW^l x^{l-1}, at infinite width.

    Updates are written out, -η n^-(2a + c) times the gradient, for W + ΔW - W keeps leading terms
    only, and ΔW is none.
    """
    x, following = jnp.asarray(INPUTS[:1]), jnp.asarray(INPUTS[1:2])
    a, c = p.exponents("a", model), p.exponents("first", model)
    phi = resolve(model.activation)

    def sizes(theta: Any) -> list[jax.Array]:
        before = p.effective(model, theta)
        gradient = jax.grad(lambda w: linear(model.apply(w, x), jnp.ones(1)))(before)
        n = theta["W1"].shape[-1]
        h, found = following, []
        for l in range(1, model.layers + 1):
            rate = -eta * n ** -float(2 * a[l - 1] + c[l - 1])
            update = {name: rate * gradient[name] for name in (f"W{l}", f"b{l}") if name in before}
            found.append(jnp.mean((h @ update[f"W{l}"]) ** 2))
            after = {name: before[name] + update[name] for name in update}
            h = phi(h @ after[f"W{l}"] + after.get(f"b{l}", 0.0))
        return found

    theta = tp.sample(p.theta(model), jax.random.key(0), width=tp.inf, samples=samples)
    return tp.leading(sizes)(theta)


def distance(runs: np.ndarray, limit: np.ndarray) -> np.ndarray:
    """Per replicate, the RMS over steps and points of runs - limit."""
    return np.sqrt(np.mean((runs - limit) ** 2, axis=(1, 2)))


def standard_error(runs: np.ndarray) -> np.ndarray:
    return runs.std(axis=0, ddof=1) / len(runs) ** 0.5


def largest(runs: np.ndarray) -> Measurement:
    """The absolute mean over replicates of the entry whose mean is the largest."""
    return _entry(runs, np.argmax)


def smallest(runs: np.ndarray) -> Measurement:
    """The same of the entry whose mean is the smallest."""
    return _entry(runs, np.argmin)


def _entry(runs: np.ndarray, choose: Callable[[np.ndarray], Any]) -> Measurement:
    entries = runs.reshape(len(runs), -1)
    return abs(average(entries[:, choose(np.abs(entries.mean(axis=0)))]))
