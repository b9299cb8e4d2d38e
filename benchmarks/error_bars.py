"""Error bars of one run beside the spread over keys.

A bar is the root mean square of the standard errors that runs of one key print; the spread is the
standard deviation of what they print. Averages, functions of several averages over the same
particles, and the output of a network with one hidden layer in muP after some steps of gradient
descent. A run of several replicates prints another bar, the spread of these.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from common import Report, parser, rms

import tplimit as tp
from tplimit.gaussian.kinds import KINDS

WIDTH = tp.Width("n")
VECTORS = {name: tp.normal((WIDTH,)) for name in "uvw"}
MATRICES = {**VECTORS, "W": tp.normal((WIDTH, WIDTH), std=WIDTH**-0.5)}
MATRICES["G"] = tp.normal((WIDTH, 2 * WIDTH), std=WIDTH**-0.5)
NETWORK = {"w": tp.normal((5, WIDTH)), "v": tp.normal((WIDTH,))}
X = jax.random.normal(jax.random.key(7), (8, 5))
Y = jnp.sin(X[:, 0])


def rectified(t: dict[str, Any], shift: float) -> Any:
    return jnp.mean(jax.nn.relu(t["v"] + shift))


def between(t: dict[str, Any], factor: Any) -> Any:
    """The size of an image is an average over the particles of the image before it."""
    return jnp.mean(jnp.tanh(t["W"].T @ (factor * (t["W"] @ t["v"]))) ** 2)


def masked(t: dict[str, Any]) -> Any:
    return jax.random.bernoulli(jax.random.key(9), 0.5, t["v"].shape)


def gated(t: dict[str, Any]) -> Any:
    """A gate made of the halves of a width."""
    gate, value = jnp.split(t["w"] @ t["G"], 2)
    return jnp.mean(jnp.tanh(t["W"].T @ (jax.nn.silu(gate) * value)) ** 2)


def outputs(t: dict[str, Any]) -> Any:
    return jnp.tanh(X @ t["w"]) @ t["v"] / t["v"].shape[0]


def trained(steps: int) -> Callable[[dict[str, Any]], Any]:
    """The output at the first point after some steps with rate 1."""

    def loss(t: dict[str, Any]) -> Any:
        return jnp.mean((outputs(t) - Y) ** 2)

    def run(t: dict[str, Any]) -> Any:
        for _ in range(steps):
            rate = t["v"].shape[0]
            t = jax.tree.map(lambda w, g, rate=rate: w - rate * g, t, jax.grad(loss)(t))
        return outputs(t)[0]

    return run


CASES: dict[str, tuple[dict[str, Any], Callable[[dict[str, Any]], Any]]] = {
    "mean of tanh(v)^2": (VECTORS, lambda t: jnp.mean(jnp.tanh(t["v"]) ** 2)),
    "mean of relu(v)": (VECTORS, lambda t: rectified(t, 0.0)),
    "mean of relu(v + u w)": (VECTORS, lambda t: jnp.mean(jax.nn.relu(t["v"] + t["u"] * t["w"]))),
    "ratio": (VECTORS, lambda t: jnp.mean(t["v"] ** 2 * t["u"] ** 2) / jnp.mean(t["v"] ** 2)),
    "sum of twelve": (VECTORS, lambda t: sum(rectified(t, 0.1 * i) for i in range(12))),
    "difference": (VECTORS, lambda t: rectified(t, 0.5) - rectified(t, 0.1)),
    "between matrices": (MATRICES, lambda t: between(t, t["u"])),
    "a mask between matrices": (MATRICES, lambda t: between(t, masked(t))),
    "a gate between matrices": (MATRICES, gated),
    "network, 1 step": (NETWORK, trained(1)),
    "network, 3 steps": (NETWORK, trained(3)),
    "network, 10 steps": (NETWORK, trained(10)),
}


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--samples", type=int, default=2**12, help="particles")
    arguments.add_argument("--keys", type=int, default=32, help="runs of one key each")
    options = arguments.parse_args()
    if options.small:
        options.keys = 2
    report = Report("error_bars", options)
    rows = []
    for name, (theta, function) in CASES.items():
        row: dict[str, object] = {"case": name}
        leading = tp.leading(function)
        for noise in KINDS:
            values, bars = [], []
            for key in jax.random.split(jax.random.key(0), options.keys):
                sampled = tp.sample(theta, key, width=tp.inf, samples=options.samples, noise=noise)
                found = leading(sampled)
                values.append(float(found.coefficient))
                bars.append(float(found.stderr))
            spread = float(np.std(values, ddof=1))
            row[f"{noise}: spread"] = spread
            row[f"{noise}: bar / spread"] = rms(np.array(bars)) / spread
        rows.append(row)
    report.table("standard errors of one run", rows)


if __name__ == "__main__":
    main()
