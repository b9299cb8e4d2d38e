"""Monte Carlo of the muP limit of deep nonlinear networks, fields and corrections written out.

Program (`L` hidden layers, `s` = `input_scale`, bias in layer 1 only, `b` = 1 or 0)::

    h_1 = s x U + b beta          U: d x n, beta: n, std 1        rates eta n
    h_l = phi(h_{l-1}) W_l        W_l std n^-1/2                  rate eta
    f   = phi(h_L) v / n          v std 1                         rate eta n
    loss = 0.5 * mean over the batch of (f - y)^2

Limit (Hajjar, Chizat & Giraud, arXiv 2110.15596, form of Cor. A.8.7.1 with the hidden matrices
kept; corrections from Yang & Hu, arXiv 2011.14522). Sums run over the training samples s of earlier
steps, with `chi_s = (f_s - y_s) / B`; `dx, dh` are n times the gradients of f::

    h_1     = Z^{U x} + Z^beta - eta sum chi_s (s^2 x_s.x + b) dh_1s
    h_l     = Ghat + sum_s E[d x_{l-1} / d Bhat_s] dh_ls - eta sum chi_s E[x_{l-1,s} x_{l-1}] dh_ls
    f       = E[Z^v x_L] - eta sum chi_s E[x_Ls x_L]
    dx_L    = Z^v - eta sum chi_s x_Ls,        dh_l = dx_l phi'(h_l)
    dx_l    = Bhat + sum_s E[d dh_{l+1} / d Ghat_s] x_ls - eta sum chi_s E[dh_{l+1,s} dh_{l+1}] x_ls

(in the last correction s includes the present step). `Ghat_s`, `Bhat_s` are Gaussian, with
covariances E[x_{l-1,s} x_{l-1,s'}] and E[dh_{l+1,s} dh_{l+1,s'}], forward and backward independent.
A new field is drawn by conditioning on the earlier ones. Expected derivatives follow from Stein's
lemma: the vector k of E[d z / d field_s] solves `K k = r`, K = Cov(field), r_s = E[z field_s].

Noise is moment-matched (zero mean, exactly orthonormal to all earlier noise of its layer); it
changes no limit and shrinks the error. Everything is explicit numpy in float64.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]
Indices = NDArray[np.integer]
Function = Callable[[Array], Array]

# name -> (phi, phi' as a function of h)
ACTIVATIONS: dict[str, tuple[Function, Function]] = {
    "tanh": (np.tanh, lambda h: 1 - np.tanh(h) ** 2),
    "relu": (lambda h: np.maximum(h, 0), lambda h: (h > 0).astype(float)),
    "linear": (lambda h: h, np.ones_like),
}


class Noise:
    """Standard normals of one layer, matched in mean and second moments to all drawn before."""

    def __init__(self, samples: int, random: np.random.Generator) -> None:
        self.random = random
        self.basis = np.ones((1, samples))

    def draw(self, count: int) -> Array:
        rows = []
        for _ in range(count):
            z = self.random.standard_normal(self.basis.shape[1])
            for _ in range(2):
                z -= _moments(z[None], self.basis)[0] @ self.basis
            z /= np.sqrt(np.mean(z**2))
            self.basis = np.vstack([self.basis, z])
            rows.append(z)
        return np.array(rows)


def _moments(a: Array, b: Array) -> Array:
    """E[a_i b_j] over samples (last axis)."""
    return a @ b.T / a.shape[1]


def _solve(matrix: Array, right: Array) -> Array:
    """Least squares with the null space of dependent fields cut off."""
    return np.linalg.lstsq(matrix, right, rcond=1e-11)[0]


class Fields:
    """One direction of a Gaussian matrix: inputs `z_s` so far, and fields with their covariance.

    Inputs live in the layer they come from, fields in the layer they go to.
    """

    def __init__(self, samples: int, noise: Noise) -> None:
        self.inputs = np.zeros((0, samples))
        self.fields = np.zeros((0, samples))
        self.noise = noise

    def draw(self, z: Array, keep: bool) -> Array:
        """Fields of inputs `z`, conditioned on the earlier fields; remembered if `keep`."""
        cross = _moments(self.inputs, z)
        regression = _solve(_moments(self.inputs, self.inputs), cross) if len(cross) else cross
        rest = z - regression.T @ self.inputs
        values, vectors = np.linalg.eigh(_moments(rest, rest))
        values = np.where(values > 1e-12 * np.mean(z**2), values, 0.0)
        root = (vectors * np.sqrt(values))[:, values > 0]
        new = regression.T @ self.fields + root @ self.noise.draw(root.shape[1])
        if keep:
            self.inputs = np.vstack([self.inputs, z])
            self.fields = np.vstack([self.fields, new])
        return new

    def derivatives(self, z: Array) -> Array:
        """E[d z_i / d field_s] by Stein's lemma: (rows of z, fields)."""
        if not len(self.fields):
            return np.zeros((len(z), 0))
        covariance = _moments(self.inputs, self.inputs)
        return _solve(covariance, _moments(self.fields, z)).T


class MupLimit:
    """The limit dynamics of the module's docstring; one object is one training run."""

    def __init__(
        self,
        inputs: ArrayLike,
        *,
        hidden: int,
        activation: str = "tanh",
        eta: float = 1.0,
        samples: int = 200_000,
        seed: int = 0,
        correction: bool = True,
        input_scale: float = 1.0,
        bias: bool = True,
    ) -> None:
        """`inputs`: (count, d), every input that will be used; refer to them by index."""
        self.phi, self.slope = ACTIVATIONS[activation]
        self.hidden, self.eta, self.correction = hidden, eta, correction
        x = np.asarray(inputs, float)
        self.gram = input_scale**2 * x @ x.T + bias
        random = np.random.default_rng(seed)
        noise = [Noise(samples, random) for _ in range(hidden)]
        first = noise[0].draw(x.shape[1] + bias)
        ones = np.ones((len(x), int(bias)))
        self.base = np.hstack([input_scale * x, ones]) @ first  # Z^{U x} + Z^beta
        self.readout = noise[-1].draw(1)
        self.up = [Fields(samples, noise[layer + 1]) for layer in range(hidden - 1)]
        self.down = [Fields(samples, noise[layer]) for layer in range(hidden - 1)]
        self.chi = np.zeros(0)
        self.used = np.zeros(0, int)  # index of the input of each training sample so far
        self.x = [np.zeros((0, samples)) for _ in range(hidden)]  # of the training samples
        self.dh = [np.zeros((0, samples)) for _ in range(hidden)]

    def forward(self, index: Indices, keep: bool = False) -> tuple[list[Array], Array]:
        """Preactivations of all layers for inputs `index`, and f."""
        step = self.eta * self.chi
        h = self.base[index] - (step * self.gram[np.ix_(index, self.used)]) @ self.dh[0]
        layers = [h]
        for layer in range(1, self.hidden):
            x = self.phi(h)
            up, down = self.up[layer - 1], self.down[layer - 1]
            h = up.draw(x, keep)
            if self.correction:
                h = h + down.derivatives(x) @ self.dh[layer]
            h = h - (step * _moments(x, self.x[layer - 1])) @ self.dh[layer]
            layers.append(h)
        x = self.phi(h)
        f = _moments(x, self.readout)[:, 0] - _moments(x, self.x[-1]) @ step
        return layers, f

    def train(self, index: Indices, y: Array) -> float:
        """One step on the inputs `index` with labels `y`; the loss before it."""
        layers, f = self.forward(index, keep=True)
        step = self.eta * self.chi
        x = [self.phi(h) for h in layers]
        dx = np.repeat(self.readout - step @ self.x[-1], len(index), axis=0)
        dh = [dx * self.slope(layers[-1])]
        for layer in range(self.hidden - 2, -1, -1):
            above = dh[0]
            dx = self.down[layer].draw(above, keep=True)
            if self.correction:
                dx = dx + self.up[layer].derivatives(above) @ np.vstack([self.x[layer], x[layer]])
            dx = dx - (step * _moments(above, self.dh[layer + 1])) @ self.x[layer]
            dh.insert(0, dx * self.slope(layers[layer]))
        self.chi = np.append(self.chi, (f - y) / len(index))
        self.used = np.append(self.used, index)
        self.x = [np.vstack(pair) for pair in zip(self.x, x, strict=True)]
        self.dh = [np.vstack(pair) for pair in zip(self.dh, dh, strict=True)]
        return float(0.5 * np.mean((f - y) ** 2))


class LimitRun(NamedTuple):
    """`f`: (steps+1, points) before every step and after the last; `losses`: (steps,)."""

    f: Array
    losses: Array


def mup_limit(
    batches: tuple[ArrayLike, ArrayLike],
    points: ArrayLike,
    *,
    hidden: int = 2,
    activation: str = "tanh",
    eta: float = 1.0,
    samples: int = 200_000,
    seed: int = 0,
    correction: bool = True,
    input_scale: float = 1.0,
    bias: bool = True,
) -> LimitRun:
    """Train on `batches` = (x: (steps, [batch,] d), y: (steps, [batch])) and observe `points`.

    `correction=False` drops both Zdot: wrong on purpose. With the defaults and the golden data:
    `golden.MUP_TANH`. `input_scale=d**-0.5, bias=False` is the program x U / sqrt(d) without bias.
    """
    points = np.asarray(points, float)
    x = np.asarray(batches[0], float)
    y = np.asarray(batches[1], float).reshape(len(x), -1)
    x = x.reshape(*y.shape, points.shape[1])
    limit = MupLimit(
        np.vstack([x.reshape(-1, x.shape[-1]), points]),
        hidden=hidden,
        activation=activation,
        eta=eta,
        samples=samples,
        seed=seed,
        correction=correction,
        input_scale=input_scale,
        bias=bias,
    )
    observed = y.size + np.arange(len(points))
    f, losses = [limit.forward(observed)[1]], []
    for t, labels in enumerate(y):
        losses.append(limit.train(t * y.shape[1] + np.arange(y.shape[1]), labels))
        f.append(limit.forward(observed)[1])
    return LimitRun(np.stack(f), np.array(losses))
