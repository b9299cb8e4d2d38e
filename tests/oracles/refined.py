"""IP-LLR with ReLU at infinite width, dead units included: particles, without the interpreter.

The recursion of Hajjar, Chizat and Giraud, arXiv 2110.15596, Theorem A.8.4, for one sample per
step, with one more rule. Units of the last hidden layer with ``h_0 < 0`` have ``h_t = 0`` in the
limit; at finite width the sign of ``h_t`` is that of the Gaussian ``W_0 x_t``, which vanishes as
``n^(-1/2)``, so that the derivative of ReLU there is ``1{W_0 x_t > 0}`` and not ``relu'(0) = 0``.
"""

import numpy as np

Array = np.ndarray


def relu(h: Array) -> Array:
    return np.maximum(h, 0.0)


def _inner(a: Array, b: Array) -> float:
    return float(np.mean(a * b))


def _next_field(rng: np.random.Generator, fields: list[Array], covariance: Array) -> Array:
    """One more Gaussian, of this covariance with the fields and (last entry) with itself."""
    gram = np.array([[_inner(a, b) for a in fields] for b in fields])
    weights = np.linalg.lstsq(gram, covariance[:-1], rcond=None)[0]
    left = max(covariance[-1] - weights @ gram @ weights, 0.0)
    known = sum(w * field for w, field in zip(weights, fields, strict=True))
    return known + np.sqrt(left) * rng.standard_normal(fields[0].size)


class _Layers:
    """Particles of all layers, step by step."""

    def __init__(self, rng, points, hidden, eta, samples):
        self.rng, self.points, self.hidden, self.eta = rng, points, hidden, eta
        kernel = points @ points.T + 1.0
        factor = np.linalg.cholesky(kernel + 1e-12 * np.eye(len(points)))
        self.first = factor @ rng.standard_normal((len(points), samples))
        self.kernel = kernel
        forward = [self.first[0]]
        for _ in range(1, hidden):
            size = np.sqrt(np.mean(relu(forward[-1]) ** 2))
            forward.append(size * rng.standard_normal(samples))
        backward = [rng.standard_normal(samples)]
        for h in forward[:0:-1]:
            size = np.sqrt(np.mean((backward[0] * (h > 0)) ** 2))
            backward.insert(0, size * rng.standard_normal(samples))
        self.readout = backward[-1]
        self.x = [[relu(h)] for h in forward]
        self.dh = [[dx * (h > 0)] for dx, h in zip(backward, forward, strict=True)]
        self.chi, self.inputs = [], [0]
        self.fields = [forward[-1]]

    def function(self, place: int) -> tuple[float, list[Array]]:
        """The network at a point, and its preactivations."""
        rates = -self.eta * np.array(self.chi)
        weights = rates * self.kernel[self.inputs, place]
        h = [self.first[place] + sum(w * d for w, d in zip(weights, self.dh[0], strict=True))]
        for l in range(1, self.hidden):
            x = relu(h[-1])
            weights = rates * [_inner(past, x) for past in self.x[l - 1]]
            h.append(sum(w * d for w, d in zip(weights, self.dh[l], strict=True)))
        x = relu(h[-1])
        f = _inner(self.readout, x) + rates @ [_inner(past, x) for past in self.x[-1]]
        return float(f), h

    def train(self, place: int, target: float) -> None:
        """The backward pass at a point, remembered for all later steps."""
        f, h = self.function(place)
        rates = -self.eta * np.array(self.chi)
        dx = self.readout + sum(r * x for r, x in zip(rates, self.x[-1], strict=True))
        inputs = [*self.x[-2], relu(h[-2])]
        covariance = np.array([_inner(past, inputs[-1]) for past in inputs])
        self.fields.append(_next_field(self.rng, self.fields, covariance))
        gates = [preactivation > 0 for preactivation in h]
        gates[-1] = np.where(h[-1] == 0, self.fields[-1] > 0, gates[-1])
        new = [dx * gates[-1]]
        for l in range(self.hidden - 1, 0, -1):
            met = rates * [_inner(past, new[0]) for past in self.dh[l]]
            dx = sum(r * x for r, x in zip(met, self.x[l - 1], strict=True))
            new.insert(0, dx * gates[l - 1])
        for l in range(self.hidden):
            self.x[l].append(relu(h[l]))
            self.dh[l].append(new[l])
        self.chi.append(f - target)
        self.inputs.append(place)


def ip_llr_relu(
    inputs: Array, targets: Array, points: Array, hidden: int, eta: float, samples: int, seed: int
) -> Array:
    """``f_1, f_2, ..`` at the points, one row per step; one training input per step."""
    everything = np.concatenate([inputs, points])
    layers = _Layers(np.random.default_rng(seed), everything, hidden, eta, samples)
    layers.chi = [-float(targets[0])]
    found = []
    for t in range(len(inputs)):
        if t > 0:
            layers.train(t, float(targets[t]))
        found.append([layers.function(len(inputs) + k)[0] for k in range(len(points))])
    return np.array(found)
