"""Ordinary networks trained over widths and seeds, in plain JAX.

The program is given as for tplimit: `predict(theta, x)` and `step(state, batch) -> (state, loss)`,
with the width read from shapes; nothing here knows what it is.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike, NDArray

PyTree = Any
Sampler = Callable[[jax.Array, int], PyTree]
Step = Callable[[PyTree, PyTree], tuple[PyTree, jax.Array]]


class DenseRuns(NamedTuple):
    """`f`: (seeds, steps+1, ..points), first before step 0; `losses`: (seeds, steps)."""

    f: NDArray[np.float64]
    losses: NDArray[np.float64]


def train_dense(
    predict: Callable[[PyTree, jax.Array], jax.Array],
    sampler: Sampler,
    step: Step,
    batches: PyTree,
    points: ArrayLike,
    *,
    widths: Sequence[int],
    seeds: int | Mapping[int, int],
    first_step: Step | None = None,
    key: int = 0,
    x64: bool = False,
    memory: int = 2**28,
) -> dict[int, DenseRuns]:
    """Train `seeds` networks of every width (a number, or one per width), observed at `points`.

    Args:
        predict: `predict(theta, points)`, observed before every step and after the last.
        sampler: `sampler(key, width)`, parameters or state at that width.
        step: one step of training; `first_step` replaces it at t = 0.
        batches: pytree with the steps on axis 0 of every leaf.
        x64: compute in float64, whatever the global flag.
        memory: bytes of parameters trained side by side; the rest is done in turn.

    Returns:
        `{width: DenseRuns}`.
    """
    with jax.enable_x64(x64):
        dtype = jnp.float64 if x64 else jnp.float32
        batches = jax.tree.map(lambda b: _as_float(b, dtype), batches)
        points = _as_float(points, dtype)

        def run(random: jax.Array, width: int) -> tuple[jax.Array, jax.Array]:
            theta = sampler(random, width)
            f, losses, start = [predict(theta, points)[None]], [], 0
            if first_step is not None:
                theta, loss = first_step(theta, jax.tree.map(lambda b: b[0], batches))
                f.append(predict(theta, points)[None])
                losses.append(loss[None])
                start = 1

            def body(state: PyTree, batch: PyTree) -> tuple[PyTree, tuple[jax.Array, jax.Array]]:
                state, loss = step(state, batch)
                return state, (predict(state, points), loss)

            rest = jax.tree.map(lambda b: b[start:], batches)
            _, (later, later_losses) = jax.lax.scan(body, theta, rest)
            return jnp.concatenate([*f, later]), jnp.concatenate([*losses, later_losses])

        results = {}
        for width in widths:
            count = seeds if isinstance(seeds, int) else seeds[width]
            keys = jax.random.split(jax.random.fold_in(jax.random.key(key), width), count)
            shapes = jax.eval_shape(lambda k, n=width: sampler(k, n), keys[0])
            size = sum(s.size * s.dtype.itemsize for s in jax.tree.leaves(shapes))
            chunk = int(np.clip(memory // size, 1, count))
            compiled = jax.jit(jax.vmap(lambda k, n=width: run(k, n)))
            parts = []
            for start in range(0, count, chunk):
                part = min(start, count - chunk)  # the last chunk overlaps: one compilation
                out = compiled(keys[part : part + chunk])
                parts.append([np.asarray(o, float)[start - part :] for o in out])
            results[width] = DenseRuns(*(np.concatenate(p) for p in zip(*parts, strict=True)))
        return results


def _as_float(x: ArrayLike, dtype: Any) -> jax.Array:
    """Floating arrays in the precision asked for; integers and booleans as they are."""
    x = np.asarray(x)
    return jnp.asarray(x, dtype) if np.issubdtype(x.dtype, np.floating) else jnp.asarray(x)
