"""Exact infinite-width limits of deep linear networks in muP, without particles.

Program (`L` hidden layers, `d` inputs, width `n`, `k` outputs)::

    h_1 = x U scale        U: d x n, std first_std       scale = 1 / sqrt(d)
    h_{l+1} = h_l W_l      W_l: n x n, std hidden_std * n^-1/2
    f = m * h_L v / n      v: n x k, std readout_std     m = readout_multiplier
    loss = 0.5 * mean((f - y)^2)       U -= eta n dU,  W_l -= eta dW_l,  v -= eta n dv

In the limit every width vector is a linear combination of independent standard Gaussian
*sources*, so it is its row of coefficients, and `E[Z^x Z^y]` is the dot product of two rows.
A Gaussian matrix acts by `Z^{Wx} = Zhat^{Wx} + Zdot^{Wx}` (Yang & Hu, Tensor Programs IV,
arXiv 2011.14522, Def. 7.3 and Thm 7.4)::

    Cov(Zhat^{Wx}, Zhat^{Wy}) = E[Z^x Z^y]
    Zdot^{Wx} = sum_y Z^y E[d Z^x / d Zhat^{W^T y}]     over the earlier W^T y

and the derivative of a linear combination with respect to a source is its coefficient.
Sources of forward and of transposed uses are independent.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]
Batch = tuple[ArrayLike, ArrayLike]


class LinearRun(NamedTuple):
    """`f`: (steps+1, points[, outputs]), first before step 0; `losses`: (steps,)."""

    f: Array
    losses: Array


@dataclass
class Space:
    """The neurons of one layer: how many independent sources have been drawn there so far."""

    sources: int = 0

    def draw(self, count: int) -> Array:
        """`count` new sources, as rows of coefficients (count, sources)."""
        start, self.sources = self.sources, self.sources + count
        return np.eye(self.sources)[start:]

    def pad(self, x: Array) -> Array:
        """Rows written before later sources were drawn, with zeros for those."""
        return np.pad(x, ((0, 0), (0, self.sources - x.shape[1])))


@dataclass
class _Side:
    """One direction of a Gaussian matrix: orthonormal inputs seen, and the sources they gave."""

    inputs: Array = field(default_factory=lambda: np.zeros((0, 0)))
    images: list[int] = field(default_factory=list)


class GaussianMatrix:
    """`W: source -> target` with standard deviation `std * n^-1/2`, defined by its images.

    If `x = sum_i c_i q_i` with the `q_i` orthonormal, then `Zhat^{Wx} = sum_i c_i Zhat^{W q_i}`,
    one new source for each new `q_i`: a dependent query gets the same combination of images. A
    residual of pure round-off may become a direction too; it is as good as any other, since its
    weight in the image is that residual, so `tolerance` saves work and decides nothing.
    """

    def __init__(
        self, source: Space, target: Space, std: float = 1.0, tolerance: float = 1e-14
    ) -> None:
        self.spaces = (source, target)
        self.sides = (_Side(), _Side())
        self.std, self.tolerance = std, tolerance

    def forward(self, x: Array, correction: bool = True) -> Array:
        """Rows of `W x`; `correction=False` drops Zdot (wrong on purpose)."""
        return self._query(0, x, correction)

    def transposed(self, y: Array, correction: bool = True) -> Array:
        """Rows of `W^T y`."""
        return self._query(1, y, correction)

    def _query(self, direction: int, x: Array, correction: bool) -> Array:
        here, there = self.spaces[direction], self.spaces[1 - direction]
        side, other = self.sides[direction], self.sides[1 - direction]
        x = here.pad(x)
        side.inputs = here.pad(side.inputs)
        for row in x:
            self._reveal(side, there, row)
        result = np.zeros((len(x), there.sources))
        result[:, side.images] = x @ side.inputs.T
        if correction:
            # x[:, j] = E[d Z^x / d source_j] where source_j = Zhat of the transposed query p_j.
            result += x[:, other.images] @ there.pad(other.inputs)
        return self.std * result

    def _reveal(self, side: _Side, there: Space, x: Array) -> None:
        """Add the direction of `x` outside the inputs already seen, if there is one."""
        norm = size = np.linalg.norm(x)
        residual = x
        for _ in range(5):
            residual = residual - (side.inputs @ residual) @ side.inputs
            before, size = size, np.linalg.norm(residual)
            if size <= self.tolerance * norm:
                return
            if size > before / 2:  # nothing cancelled: orthogonal to round-off
                side.inputs = np.vstack([side.inputs, residual / size])
                side.images.append(there.sources)
                there.sources += 1
                return


class DeepLinear:
    """The infinitely wide deep linear network of the module's docstring.

    Updates are kept as pairs of rows, `W_l(t) = W_l(0) - eta sum_{s,b} h_{l,s,b}^T g_{l+1,s,b} / n`
    with `g = n dloss/dh` (order 1), so that

        h W_l   = h W_l(0)   - eta sum <h, h_{l,s,b}> g_{l+1,s,b}
        g W_l^T = g W_l(0)^T - eta sum <g, g_{l+1,s,b}> h_{l,s,b}
    """

    def __init__(
        self,
        hidden: int,
        inputs: int,
        outputs: int = 1,
        *,
        eta: float,
        first_std: float = 1.0,
        hidden_std: float = 1.0,
        readout_std: float = 1.0,
        readout_multiplier: float = 1.0,
        correction: bool = True,
        tolerance: float = 1e-14,
    ) -> None:
        self.eta, self.multiplier, self.correction = eta, readout_multiplier, correction
        self.spaces = [Space() for _ in range(hidden)]
        self.first = first_std * self.spaces[0].draw(inputs)
        self.readout = readout_std * self.spaces[-1].draw(outputs)
        self.matrices = [
            GaussianMatrix(a, b, hidden_std, tolerance)
            for a, b in zip(self.spaces, self.spaces[1:], strict=False)
        ]
        self.updates: list[list[tuple[Array, Array]]] = [[] for _ in self.matrices]

    def forward(self, x: Array) -> list[Array]:
        """Rows of `h_1, .., h_L` for inputs `x`: (batch, d)."""
        h = x @ self.spaces[0].pad(self.first) / np.sqrt(x.shape[1])
        layers = [h]
        for matrix, updates in zip(self.matrices, self.updates, strict=True):
            image = matrix.forward(h, self.correction)
            target = matrix.spaces[1]
            for h_s, g_s in updates:
                image = image - self.eta * _inner(matrix.spaces[0], h, h_s) @ target.pad(g_s)
            h = image
            layers.append(h)
        return layers

    def __call__(self, x: ArrayLike) -> Array:
        """Outputs (points, outputs) = m E[Z^{h_L} Z^v]."""
        return self._output(self.forward(np.asarray(x, float))[-1])

    def step(self, x: ArrayLike, y: Array) -> float:
        """One step of gradient descent on inputs `x` (batch, d), labels `y` (batch, outputs)."""
        x = np.asarray(x, float)
        layers = self.forward(x)
        error = self._output(layers[-1]) - y
        chi = self.multiplier * error / error.size
        g = chi @ self.spaces[-1].pad(self.readout)
        new: list[tuple[Array, Array]] = []
        for matrix, updates, h in zip(
            self.matrices[::-1], self.updates[::-1], layers[-2::-1], strict=True
        ):
            new.append((h, g))
            back = matrix.transposed(g, self.correction)
            source, target = matrix.spaces
            for h_s, g_s in updates:
                back = back - self.eta * _inner(target, g, g_s) @ source.pad(h_s)
            g = back
        for updates, update in zip(self.updates, new[::-1], strict=True):
            updates.append(update)
        first, last = self.spaces[0], self.spaces[-1]
        self.readout = last.pad(self.readout) - self.eta * chi.T @ last.pad(layers[-1])
        self.first = first.pad(self.first) - self.eta * x.T @ first.pad(g) / np.sqrt(x.shape[1])
        return float(0.5 * np.mean(error**2))

    def _output(self, h: Array) -> Array:
        return self.multiplier * _inner(self.spaces[-1], h, self.readout)


def _inner(space: Space, x: Array, y: Array) -> Array:
    """E[Z^x Z^y] for all pairs of rows."""
    return space.pad(x) @ space.pad(y).T


def deep_linear(
    hidden: int, batches: Sequence[Batch], points: ArrayLike, *, eta: float, **options: Any
) -> LinearRun:
    """Train the limit: `batches` of `(x: (batch, d), y: (batch,) or (batch, outputs))`.

    `options` are `first_std`, `hidden_std`, `readout_std`, `readout_multiplier`, `correction`
    and `tolerance`.
    """
    points = np.asarray(points, float)
    flat, batches = _labels(batches)
    outputs = batches[0][1].shape[1]
    network = DeepLinear(hidden, points.shape[1], outputs, eta=eta, **options)
    f, losses = [network(points)], []
    for x, y in batches:
        losses.append(network.step(x, y))
        f.append(network(points))
    return LinearRun(_squeeze(np.stack(f), flat), np.array(losses))


def _labels(batches: Sequence[Batch]) -> tuple[bool, list[tuple[Array, Array]]]:
    """Labels as columns, and whether they were given without a column axis."""
    pairs = [(np.asarray(x, float), np.asarray(y, float)) for x, y in batches]
    flat = pairs[0][1].ndim == 1
    return flat, [(x, y.reshape(len(x), -1)) for x, y in pairs]


def _squeeze(f: Array, flat: bool) -> Array:
    return f[..., 0] if flat else f


def finite_representation(
    batches: Sequence[Batch],
    points: ArrayLike,
    *,
    eta: float,
    first_std: float = 1.0,
    readout_std: float = 1.0,
    momentum: float = 0.0,
    weight_decay: float = 0.0,
) -> LinearRun:
    """One hidden linear layer at infinite width as a finite network of `d + k` units.

    `U = [first_std I, 0]`, `v = [0; readout_std I]`, `f = x U v / sqrt(d)`, trained ordinarily with
    step `eta` (Yang & Hu, arXiv 2011.14522, section 6.1). With momentum `mu` and weight decay `w`
    (coupled): `M <- mu M + dloss/dp + w p`, `p <- p - eta M`.
    """
    points = np.asarray(points, float)
    flat, batches = _labels(batches)
    inputs, outputs = points.shape[1], batches[0][1].shape[1]
    first = np.hstack([first_std * np.eye(inputs), np.zeros((inputs, outputs))])
    readout = np.vstack([np.zeros((inputs, outputs)), readout_std * np.eye(outputs)])
    scale = 1 / np.sqrt(inputs)
    velocity = [np.zeros_like(first), np.zeros_like(readout)]
    f, losses = [scale * points @ first @ readout], []
    for x, y in batches:
        error = scale * x @ first @ readout - y
        chi = error / error.size
        gradients = [scale * x.T @ chi @ readout.T, scale * first.T @ x.T @ chi]
        for i, (gradient, parameter) in enumerate(zip(gradients, (first, readout), strict=True)):
            velocity[i] = momentum * velocity[i] + gradient + weight_decay * parameter
        first, readout = first - eta * velocity[0], readout - eta * velocity[1]
        losses.append(0.5 * np.mean(error**2))
        f.append(scale * points @ first @ readout)
    return LinearRun(_squeeze(np.stack(f), flat), np.array(losses))


class Recursion(NamedTuple):
    """Outputs and kernels, (steps+1,) each."""

    f: Array
    kernel: Array


def two_layer_recursion(eta: float, gamma: float, steps: int, target: float = 1.0) -> Recursion:
    """One hidden linear layer, one sample with `|x|^2 = d`: a closed recursion.

    `f = mean(v h) / gamma`, `h = x U / sqrt(d)`, loss `(target - f)^2 / 2`, learning rate
    `eta gamma^2 n` on both layers, `D = target - f`, `f_0 = 0`, `K_0 = E[h^2] + E[v^2] = 2`::

        f' = f + eta K D + eta^2 gamma^2 f D^2
        K' = K + 4 eta gamma^2 f D + eta^2 gamma^2 D^2 K

    In terms of `deep_linear`: `hidden=1, eta=eta gamma^2, readout_multiplier=1/gamma`.
    """
    f, kernel = [0.0], [2.0]
    for _ in range(steps):
        error = target - f[-1]
        f.append(f[-1] + eta * kernel[-1] * error + (eta * gamma * error) ** 2 * f[-1])
        kernel.append(
            kernel[-1]
            + 4 * eta * gamma**2 * f[-2] * error
            + (eta * gamma * error) ** 2 * kernel[-1]
        )
    return Recursion(np.array(f), np.array(kernel))


# (eta, gamma) -> {step: (f, kernel)}, rounded to 8 decimals.
TWO_LAYER_GOLDEN: dict[tuple[float, float], dict[int, tuple[float, float | None]]] = {
    (0.05, 1.0): {
        5: (0.41703658, 2.15123507),
        10: (0.68036707, 2.40035416),
        20: (0.91909110, 2.69834379),
    },
    (0.003, 0.25): {5: (0.02964235, None), 20: (0.11341377, None)},
}


def dense_linear(
    hidden: int,
    batches: Sequence[Batch],
    points: ArrayLike,
    *,
    eta: float,
    width: int,
    seed: int,
    precision: type = np.float64,
) -> LinearRun:
    """One finite network of the same program, with gradients written out by hand."""
    random = np.random.default_rng(seed)
    points = np.asarray(points, precision)
    flat, pairs = _labels(batches)
    d, k, n = points.shape[1], pairs[0][1].shape[1], width
    first = random.standard_normal((d, n), dtype=precision) / precision(np.sqrt(d))
    weights = [
        random.standard_normal((n, n), dtype=precision) / precision(np.sqrt(n))
        for _ in range(hidden - 1)
    ]
    readout = random.standard_normal((n, k), dtype=precision)

    def layers(x: Array) -> list[Array]:
        rows = [x @ first]
        for weight in weights:
            rows.append(rows[-1] @ weight)
        return rows

    f, losses = [layers(points)[-1] @ readout / n], []
    for x, y in pairs:
        x = x.astype(precision)
        h = layers(x)
        error = h[-1] @ readout / n - y.astype(precision)
        chi = error / error.size
        g = chi @ readout.T
        readout = readout - eta * h[-1].T @ chi
        for weight, rows in zip(weights[::-1], h[-2::-1], strict=True):
            back = g @ weight.T
            weight -= (eta / n) * rows.T @ g
            g = back
        first = first - (eta / d) * x.T @ g
        losses.append(0.5 * np.mean(error**2))
        f.append(layers(points)[-1] @ readout / n)
    return LinearRun(_squeeze(np.stack(f), flat).astype(float), np.array(losses, float))
