"""Neural signature kernels: residual networks driven by a path, infinitely wide and deep."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from tplimit import arguments
from tplimit._jax import is_traced
from tplimit.kernels.duals.activations import Activation, Dual, dual

__all__ = ["signature"]


def signature(
    x: ArrayLike,
    y: ArrayLike | None = None,
    activation: Activation | Dual = "identity",
    *,
    sigma_a: ArrayLike = 1.0,
    sigma_b: ArrayLike = 0.0,
    sigma_0: ArrayLike = 1.0,
    shared: bool = True,
    times: ArrayLike | None = None,
    refine: int = 1,
    grid: bool = False,
) -> Array:
    """Covariance of the outputs of infinitely wide residual networks controlled by two paths.

        Y_{i+1} = Y_i + Σ_k (A_k φ(Y_i) + b_k) Δx^k_i,        f = v·Y / √N

    with entries A_k ~ N(0, σ_A²/N), b_k ~ N(0, σ_b²), Y_0 ~ N(0, σ_0²), v ~ N(0, 1). At infinite
    width N, f is a Gaussian process. With the same weights in every layer (`shared`) its covariance
    at s steps of x and t steps of y obeys

        K[s+1,t+1] = K[s+1,t] + K[s,t+1] - K[s,t] + (σ_A² V + σ_b²) <Δx_s, Δy_t>
        K[0,t] = K[s,0] = σ_0²,        V = E[φ(Z_1) φ(Z_2)],
        (Z_1, Z_2) ~ N(0, [[K^xx[s,s], K[s,t]], [K[s,t], K^yy[t,t]]])

    which is exact at this depth, and a scheme of first order for the partial differential equation
    ∂²K/∂s∂t = (σ_A² V + σ_b²) <x', y'> of infinite depth. With the identity, σ_A = σ_0 = 1 and σ_b
    = 0 this is the signature kernel, I_0(2 √<x, y>) for linear paths. With fresh weights in every
    layer, whose increments are multiplied by 1/√Δt,

        K[i+1] = K[i] + (σ_A² V + σ_b²) <Δx_i, Δy_i> / Δt_i.

    Source: Muça Cirone, Lemercier and Salvi, arXiv 2303.17671. It runs under `jax.jit` and can be
    differentiated, also in the paths. The dtype follows JAX's flag.

    Args:
        x: paths (n1, points, channels), or one path (points, channels), at `points` ≥ 2 times.
        y: the same, n2 paths; None stands for `x`.
        activation: φ, as for `tplimit.kernels.dual`.
        sigma_a, sigma_b, sigma_0: standard deviations, which may be traced.
        shared: whether all layers have the same weights.
        times: of the points, increasing; only for fresh weights. Default: equidistant on [0, 1].
        refine: steps per segment of the paths, which are interpolated linearly. The error of
            shared weights against infinite depth is halved when this is doubled.
        grid: return the values at all steps instead of the last.

    Returns:
        K (n1, n2), without the axes of single paths. With `grid` two more axes (steps of x + 1,
        steps of y + 1), or one (steps + 1) for fresh weights. Time and memory are those of
        n1·n2·steps² evaluations of V, and n1·n2·steps numbers (without `grid`).

    Raises:
        ValueError: shapes do not fit, or an entry is not finite.

    >>> t = jnp.linspace(0.0, 1.0, 101)[:, None]
    >>> bool(abs(signature(t, 1.3 * t) - 2.7888) < 0.02)  # I_0(2 sqrt(1.3))
    True
    """
    first, second = _paths("x", x), _paths("y", x if y is None else y)
    if first.shape[2] != second.shape[2]:
        raise ValueError(
            f"x has {first.shape[2]} channels and y has {second.shape[2]}: they have to agree"
        )
    refine = arguments.whole("refine", refine)
    if not shared and first.shape[1] != second.shape[1]:
        raise ValueError(
            f"with fresh weights both paths are at the same times, got {first.shape[1]} and "
            f"{second.shape[1]} points"
        )
    if shared and times is not None:
        raise ValueError("with shared weights the kernel does not depend on the times")
    sigmas = tuple(jnp.asarray(s, first.dtype) for s in (sigma_a, sigma_b, sigma_0))
    dx, dy = (_increments(path, refine) for path in (first, second))
    phi = dual(activation)
    if shared:
        k = _shared(phi, sigmas, dx, dy, grid)
    else:
        dt = _intervals(times, first.shape[1], refine, first.dtype)
        k = _fresh(phi, sigmas, dx, dy, dt)
        k = k if grid else k[..., -1]
    k = k if jnp.ndim(x) == 3 else k[0]
    single = jnp.ndim(x if y is None else y) == 2
    return jnp.squeeze(k, 1 if jnp.ndim(x) == 3 else 0) if single else k


def _paths(name: str, given: ArrayLike) -> Array:
    found = arguments.numbers(name, given)
    path = jnp.asarray(found, jnp.result_type(found, float))
    path = path[None] if path.ndim == 2 else path
    if path.ndim != 3 or path.shape[1] < 2 or path.shape[2] < 1:
        raise ValueError(
            f"{name} has shape {jnp.shape(given)}: paths have the axes (points, channels) or "
            "(paths, points, channels), with two points or more"
        )
    if not is_traced(path) and not jnp.isfinite(path).all():
        raise ValueError(f"{name} has entries that are not finite")
    return path


def _increments(path: Array, refine: int) -> Array:
    """(paths, steps, channels)."""
    return jnp.repeat(jnp.diff(path, axis=1) / refine, refine, axis=1)


def _intervals(times: ArrayLike | None, points: int, refine: int, dtype: Any) -> Array:
    t = jnp.linspace(0.0, 1.0, points, dtype=dtype) if times is None else jnp.asarray(times, dtype)
    if t.shape != (points,):
        raise ValueError(f"times has shape {t.shape} for paths of {points} points")
    if not is_traced(t) and not (jnp.isfinite(t).all() and (jnp.diff(t) > 0).all()):
        raise ValueError("times have to be increasing")
    return jnp.repeat(jnp.diff(t) / refine, refine)


def _density(phi: Dual, sigmas: Any, cov: Array, var1: Array, var2: Array) -> Array:
    """σ_A² E[φ φ] + σ_b²."""
    value, _ = phi.moments(cov, var1, var2)
    return sigmas[0] ** 2 * value + sigmas[1] ** 2


@functools.partial(jax.jit, static_argnums=(0, 4))
def _shared(phi: Dual, sigmas: Any, dx: Array, dy: Array, grid: bool) -> Array:
    own = jax.vmap(functools.partial(_variances, phi, sigmas))
    var_x, var_y = own(dx), own(dy)
    start = jnp.broadcast_to(sigmas[2] ** 2, (len(dx), len(dy), dy.shape[1] + 1))

    def step(row: Array, here: tuple[Array, Array]) -> tuple[Array, Any]:
        d, var = here  # of the paths x at step s
        density = _density(phi, sigmas, row[..., :-1], var[:, None, None], var_y[None, :, :-1])
        row = _next_row(row, density * jnp.einsum("ic,jtc->ijt", d, dy))
        return row, row if grid else None

    steps = jnp.swapaxes(dx, 0, 1), var_x[:, :-1].T
    last, rows = jax.lax.scan(step, start, steps)
    if not grid:
        return last[..., -1]
    return jnp.moveaxis(jnp.concatenate([start[None], rows]), 0, 2)


def _next_row(row: Array, sources: Array) -> Array:
    """K[s+1,:] from K[s,:]: their difference grows by one source with every t."""
    return row + jnp.pad(jnp.cumsum(sources, axis=-1), [(0, 0)] * (row.ndim - 1) + [(1, 0)])


def _variances(phi: Dual, sigmas: Any, d: Array) -> Array:
    """K[s,s] of one path with itself, (steps + 1,), by rows of its lower triangle.

    A source at (s, t) needs the variances at s and t, so that t must not run ahead of s.
    """
    steps = len(d)
    place = jnp.arange(steps + 1)

    def step(carry: tuple[Array, Array], s: Array) -> tuple[tuple[Array, Array], None]:
        row, var = carry  # K[s,t] and K[t,t], right for t <= s
        known = place[:-1] <= s
        # What is not known yet is replaced by something harmless, also for derivatives.
        cov, other = jnp.where(known, row[:-1], 0.0), jnp.where(known, var[:-1], 1.0)
        density = _density(phi, sigmas, cov, var[s], other)
        sources = jnp.where(known, density * (d @ d[s]), 0.0)
        # K[s,s+1] = K[s+1,s], which does not depend on it.
        beside = _next_row(row, sources)[s]
        row = _next_row(row.at[s + 1].set(beside), sources)
        return (row, var.at[s + 1].set(row[s + 1])), None

    start = jnp.full(steps + 1, sigmas[2] ** 2)
    (_, var), _ = jax.lax.scan(step, (start, start), jnp.arange(steps))
    return var


@functools.partial(jax.jit, static_argnums=0)
def _fresh(phi: Dual, sigmas: Any, dx: Array, dy: Array, dt: Array) -> Array:
    """(n1, n2, steps + 1)."""

    def step(carry: Any, here: Any) -> tuple[Any, Array]:
        cov, var_x, var_y = carry
        d, e, interval = here

        def grown(k: Array, var1: Array, var2: Array, products: Array) -> Array:
            return k + _density(phi, sigmas, k, var1, var2) * products / interval

        new = (
            grown(cov, var_x[:, None], var_y[None, :], d @ e.T),
            grown(var_x, var_x, var_x, jnp.sum(d * d, axis=1)),
            grown(var_y, var_y, var_y, jnp.sum(e * e, axis=1)),
        )
        return new, new[0]

    square = sigmas[2] ** 2
    start = tuple(jnp.full(n, square) for n in ((len(dx), len(dy)), len(dx), len(dy)))
    steps = jnp.swapaxes(dx, 0, 1), jnp.swapaxes(dy, 0, 1), dt
    _, found = jax.lax.scan(step, start, steps)
    return jnp.moveaxis(jnp.concatenate([start[0][None], found]), 0, 2)
