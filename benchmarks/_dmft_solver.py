"""The alternating fixed-point solver for the limit (dynamical mean field theory), for `dmft.py`.

Written from its description (B. Bordelon and C. Pehlevan, arXiv 2205.09653, and the settings of
their published notebooks), compiled as a whole per outer iteration. For the network of `common.py`
with L hidden layers, times t, s < T and points p, q < P, joined to one index a = (t, p):

    h^l = u^l + (A^{l-1} + C^l) g^l,   C^l(t,s) = (eta gamma / P) Phi^{l-1}(t,s) Delta_s,  s < t
    z^l = r^l + (B^l + D^l) phi(h^l),  D^l(t,s) = (eta gamma / P) G^{l+1}(t,s) Delta_s,    s < t
    g^l = z^l phi'(h^l),   u^l ~ N(0, Phi^{l-1}),   r^l ~ N(0, G^{l+1})
    Phi^l = <phi(h^l) phi(h^l)>,   G^l = <g^l g^l>,   A^l = <d phi(h^l) / d r^l>,
    B^l = <d g^{l+1} / d u^{l+1}>,   Phi^0 = x x / D,   G^{L+1} = 1,   A^0 = B^L = 0.

Two modes. `published`: errors Delta = y - f by the kernel's Euler rule,
Delta_{t+1} = Delta_t - (eta / P) NTK(t) Delta_t, which is not gradient descent at finite eta; new
responses weighted by 1 - damping; 1e-6 added to every entry of a covariance. `corrected`: the exact
f_t = <z^L_t phi(h^L_t)> / gamma - f_0, new responses weighted by the damping like the kernels, and
nothing added. Only responses that enter another layer are computed.
"""

import time
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from common import Problem
from jax import Array, lax

MODES = ("published", "corrected")


class Settings(NamedTuple):
    """The published settings of the deep network."""

    samples: int = 1000
    iterations: int = 20
    damping: float = 0.7
    field_sweeps: int = 500
    field_tolerance: float = 1e-6
    response_sweeps: int = 30
    response_tolerance: float = 1e-20
    batch: int = 50  # samples whose responses are computed together


class State(NamedTuple):
    """Two-time arrays (layers, N, N) with N = T P; errors (T, P)."""

    phi: Array  # Phi^1 ... Phi^L
    g: Array  # G^1 ... G^L
    a: Array  # A^1 ... A^{L-1}
    b: Array  # B^1 ... B^{L-1}
    delta: Array


class Solver:
    """The solver for one problem, with its compilation done and timed."""

    def __init__(self, problem: Problem, settings: Settings, mode: str) -> None:
        if mode not in MODES:
            raise ValueError(f"mode has to be one of {MODES}, got {mode!r}")
        equations = _Equations(problem, settings, mode == "published")
        self.iterations, self.y = settings.iterations, equations.y
        key = jax.random.key(0)
        begin = time.perf_counter()
        self._start = jax.jit(equations.start).lower(key).compile()
        shape = jax.eval_shape(equations.start, key)
        self._iterate = jax.jit(equations.iterate).lower(shape, key).compile()
        self.compilation = time.perf_counter() - begin
        self._run(key, 1)  # threads and small programs start here, not in a timed run

    def __call__(self, seed: int) -> Array:
        """Predictions f (T, P) after all iterations."""
        return self._run(jax.random.key(seed), self.iterations)

    def _run(self, key: Array, iterations: int) -> Array:
        state = self._start(jax.random.fold_in(key, 0))
        for i in range(iterations):
            state = self._iterate(state, jax.random.fold_in(key, i + 1))
        return self.y - state.delta


class _Equations:
    def __init__(self, problem: Problem, settings: Settings, published: bool) -> None:
        x, y = problem.data
        self.depth, self.steps, self.points = problem.depth, problem.steps, problem.points
        self.size = self.steps * self.points
        self.gamma, self.rate = problem.gamma, problem.eta / self.points
        self.y = jnp.asarray(y)
        self.settings, self.published = settings, published
        self.kx = jnp.asarray(x @ x.T / problem.inputs)
        times = jnp.repeat(jnp.arange(self.steps), self.points)
        self.past = (times[:, None] > times[None, :]).astype(jnp.float32)
        beta = problem.beta
        self.phi = lambda h: jnp.tanh(beta * h) / beta
        self.slope = lambda h: 1 - jnp.tanh(beta * h) ** 2
        self.bend = lambda h: -2 * beta * jnp.tanh(beta * h) * (1 - jnp.tanh(beta * h) ** 2)

    # --- start: kernels at initialisation, constant in time

    def start(self, key: Array) -> State:
        phi, slopes, kernel = [], [], self.kx
        for layer in range(self.depth):
            u = self._draw(jax.random.fold_in(key, layer), kernel, self.settings.samples)
            kernel = self._gram(self.phi(u))
            phi.append(kernel)
            slopes.append(self._gram(self.slope(u)))
        g = [jnp.ones_like(self.kx)]
        for slope in reversed(slopes):
            g.insert(0, slope * g[0])
        constant = lambda k: jnp.tile(k, (self.steps, self.steps))
        none = jnp.zeros((self.depth - 1, self.size, self.size))
        phi, g = jnp.stack([*map(constant, phi)]), jnp.stack([*map(constant, g[:-1])])
        delta = jnp.tile(self.y, (self.steps, 1))
        state = State(phi, g, none, none, delta)
        return state._replace(delta=self._euler(state))

    # --- one outer iteration

    def iterate(self, state: State, key: Array) -> State:
        if self.published:
            state = state._replace(delta=self._euler(state))
        gain = self.rate * self.gamma * self.past * state.delta.reshape(-1)
        first, last = jnp.tile(self.kx, (self.steps, self.steps)), jnp.ones_like(self.past)
        zero = jnp.zeros_like(self.past)
        phi, g, a, b = [], [], [], []
        for layer in range(1, self.depth + 1):
            below = first if layer == 1 else state.phi[layer - 2]
            above = last if layer == self.depth else state.g[layer]
            to_h = gain * below + (zero if layer == 1 else state.a[layer - 2])
            to_z = gain * above + (zero if layer == self.depth else state.b[layer - 1])
            u, r = self._sources(jax.random.fold_in(key, layer), layer, below, above)
            h, z = self._fields(u, r, to_h, to_z)
            phi.append(self._gram(self.phi(h)))
            g.append(self._gram(z * self.slope(h)))
            to_b, to_a = self._responses(h, z, to_h, to_z, b=layer > 1, a=layer < self.depth)
            if layer > 1:
                b.append(to_b)
            if layer < self.depth:
                a.append(to_a)
        new = self.settings.damping
        response = 1 - new if self.published else new
        mixed = lambda weight, old, update: (1 - weight) * old + weight * jnp.stack(update)
        state = State(
            mixed(new, state.phi, phi), mixed(new, state.g, g),
            mixed(response, state.a, a), mixed(response, state.b, b), state.delta,
        )  # fmt: skip
        if self.published:
            return state._replace(delta=self._euler(state))
        f = jnp.mean(z * self.phi(h), axis=1).reshape(self.steps, self.points) / self.gamma
        return state._replace(delta=self.y - (f - f[0]))

    def _euler(self, state: State) -> Array:
        """Delta_{t+1} = Delta_t - (eta / P) NTK(t) Delta_t, from the equal-time kernels."""
        equal = lambda k: jnp.moveaxis(
            jnp.diagonal(k.reshape(self.steps, self.points, self.steps, self.points), 0, 0, 2), 2, 0
        )
        ones = jnp.ones((1, self.steps, self.points, self.points))
        kx = self.kx * ones
        phi = jnp.concatenate([kx, jax.vmap(equal)(state.phi)])
        g = jnp.concatenate([jax.vmap(equal)(state.g), ones])
        ntk = jnp.sum(phi * g, axis=0)
        return lax.scan(lambda d, k: (d - self.rate * k @ d, d), self.y, ntk)[1]

    # --- fields

    def _sources(self, key: Array, layer: int, below: Array, above: Array) -> tuple[Array, Array]:
        """u and r (N, S). In the first layer u is constant in time, in the last r is one number."""
        one, two = jax.random.split(key)
        count = self.settings.samples
        if layer == 1:
            u = jnp.tile(self._draw(one, self.kx, count), (self.steps, 1))
        else:
            u = self._draw(one, below, count)
        if layer == self.depth:
            return u, jnp.tile(jax.random.normal(two, (1, count)), (self.size, 1))
        return u, self._draw(two, above, count)

    def _draw(self, key: Array, covariance: Array, count: int) -> Array:
        values, vectors = jnp.linalg.eigh(covariance + (1e-6 if self.published else 0.0))
        root = vectors * jnp.sqrt(jnp.maximum(values, 0.0))
        return root @ jax.random.normal(key, (len(values), count))

    def _fields(self, u: Array, r: Array, to_h: Array, to_z: Array) -> tuple[Array, Array]:
        def sweep(carry: tuple[Array, ...]) -> tuple[Array, ...]:
            h, z, _, count = carry
            new_h = u + to_h @ (z * self.slope(h))
            new_z = r + to_z @ self.phi(h)
            moved = jnp.sum((new_h - h) ** 2) / jnp.sum(new_h**2)
            moved += jnp.sum((new_z - z) ** 2) / jnp.sum(new_z**2)
            return new_h, new_z, moved, count + 1

        def unfinished(carry: tuple[Array, ...]) -> Array:
            s = self.settings
            return (carry[2] > s.field_tolerance) & (carry[3] < s.field_sweeps)

        return lax.while_loop(unfinished, sweep, (u, r, jnp.inf, 0))[:2]

    def _responses(
        self, h: Array, z: Array, to_h: Array, to_z: Array, *, b: bool, a: bool
    ) -> tuple[Array | None, Array | None]:
        """Averages over samples of d g / d u and d phi(h) / d r, in batches of samples."""
        count = self.settings.samples
        batch = next(k for k in range(min(self.settings.batch, count), 0, -1) if count % k == 0)
        pieces = lambda x: jnp.moveaxis(x.reshape(self.size, -1, batch), 1, 0)

        def add(
            total: tuple[Array, Array], hz: tuple[Array, Array]
        ) -> tuple[tuple[Array, ...], None]:
            one = partial(self._jacobian, *hz, to_h, to_z)
            return (total[0] + (one("u") if b else 0), total[1] + (one("r") if a else 0)), None

        zero = jnp.zeros((self.size, self.size))
        total, _ = lax.scan(add, (zero, zero), (pieces(h), pieces(z)))
        return total[0] / count, total[1] / count

    def _jacobian(self, h: Array, z: Array, to_h: Array, to_z: Array, source: str) -> Array:
        """Sum over a batch of samples, by sweeps of the linearised equations.

        Arrays are (N, batch, N): field's index, sample, source's index, so that a sweep is two
        products of large matrices.
        """
        slope, curve = self.slope(h)[:, :, None], (z * self.bend(h))[:, :, None]
        eye = jnp.broadcast_to(jnp.eye(self.size)[:, None], (self.size, h.shape[1], self.size))
        zero = jnp.zeros_like(eye)
        source_h, source_z = (eye, zero) if source == "u" else (zero, eye)
        times = lambda m, x: (m @ x.reshape(self.size, -1)).reshape(x.shape)

        def sweep(carry: tuple[Array, ...]) -> tuple[Array, ...]:
            dh, dz, _, count = carry
            new_h = source_h + times(to_h, slope * dz + curve * dh)
            new_z = source_z + times(to_z, slope * dh)
            moved = jnp.mean((new_h - dh) ** 2) + jnp.mean((new_z - dz) ** 2)
            return new_h, new_z, moved, count + 1

        def unfinished(carry: tuple[Array, ...]) -> Array:
            s = self.settings
            return (carry[2] > s.response_tolerance) & (carry[3] < s.response_sweeps)

        dh, dz, *_ = lax.while_loop(unfinished, sweep, (source_h, source_z, jnp.inf, 0))
        out = slope * dz + curve * dh if source == "u" else slope * dh
        return jnp.sum(out, axis=1)

    def _gram(self, x: Array) -> Array:
        return x @ x.T / x.shape[1]
