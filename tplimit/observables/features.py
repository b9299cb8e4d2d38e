"""Kernels of the features of a layer and of the gradients that it gets, and how far both move."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from tplimit import arguments

__all__ = ["feature_kernel", "gradient_kernel", "movement"]


def feature_kernel(h: Any, other: Any = None) -> Array:
    """Kernel of the features of a layer: ``Φ_ij = h(x_i) · h(x_j) / n``.

    Args:
        h: features of points, (P, n), the width along the last axis: `features(params, x)`.
        other: features of other points in the same layer, (Q, n); None stands for ``h``.

    Returns:
        (P, P) or (P, Q). For features of order one it has a limit, ``E[Z_i Z_j]``.

    Raises:
        ValueError: an argument has not two axes, or they have different widths.

    Source: C. Bordelon and C. Pehlevan, *Self-Consistent Dynamical Field Theory of Kernel Evolution
    in Wide Neural Networks*, arXiv 2205.09653.

    >>> feature_kernel(jnp.array([[1.0, 3.0], [2.0, 0.0]])).tolist()
    [[5.0, 1.0], [1.0, 2.0]]
    """
    other = h if other is None else other
    for name, features in (("h", h), ("other", other)):
        _points_and_width(name, features)
    if h.shape[1] != other.shape[1]:
        raise ValueError(f"h of shape {h.shape} and other of shape {other.shape} are of two widths")
    return h @ other.T / h.shape[1]


def gradient_kernel(head: Callable[[Any], Any], h: Any, power: float = 1) -> Array:
    """Kernel of the gradients that a layer gets: ``G_ij = n^power g_i · g_j``.

        g_i = ∂ Σ_k f_k / ∂h_i

    is the derivative of the output at ``x_i`` by the features there, where points do not meet each
    other. (Where they do, as in batch normalisation, it is that of the sum of all outputs.) With it
    the tangent kernel of a dense layer ``h = x W``, and the rate of ``W``, is
    ``rate · (x_i · x_j) (g_i · g_j)``.

    Args:
        head: the network from this layer on, plain JAX, (P, n) -> (P,).
        h: the features, (P, n), before the activation as a rule.
        power: 1 where the output is an average over the width (muP, mean-field: gradients of order
            ``1/n``), 0 for NTK parameterization. With one that is too large the limit is a
            `DivergenceError`, with one that is too small it is 0: `tp.leading` tells.

    Returns:
        (P, P).

    Raises:
        ValueError: ``h`` has not two axes, or ``head`` returns not one number for each point.

    Source: as `feature_kernel`.

    >>> v = jnp.array([1.0, -1.0, 2.0, 0.0])
    >>> h = jnp.array([[0.5, 0.1, 0.2, 0.3], [0.1, 2.0, 1.0, 0.4]])
    >>> gradient_kernel(lambda h: h @ v / 4, h).tolist()
    [[1.5, 1.5], [1.5, 1.5]]
    """
    arguments.function("head", head, "(h) -> outputs")
    arguments.real("power", power, "the power of the width, such as 1")
    _points_and_width("h", h)
    f, pull = jax.vjp(head, h)
    if jnp.shape(f) != h.shape[:1]:
        raise ValueError(
            f"head returns an array of shape {jnp.shape(f)} for {h.shape[0]} points, one number "
            "for each is wanted: of several outputs take one, lambda h: head(h)[:, 0]"
        )
    (g,) = pull(jnp.ones_like(f))
    return h.shape[1] ** power * (g @ g.T)


def movement(now: Any, before: Any, scale: Any = 1.0) -> Any:
    """How far arrays have moved: ``scale · mean((now - before)^2)``, leaf by leaf.

    Features of order one that are learnt move by order one, with scale 1. In a kernel regime they
    move by ``n^(-1/2)`` and the limit is 0: with scale ``n`` it is not. ``n^2`` times the mean
    square of the entries of a matrix (n, n), is its squared Frobenius norm, of order one in muP.

    Args:
        now, before: trees of arrays, such as parameters or features, of any shape.
        scale: a number, or one for each leaf in a tree; powers of the width from shapes.

    Returns:
        The same tree with a number for each leaf.

    Raises:
        ValueError: the trees, or the shapes of two leaves, differ.

    Both states belong to one network: `run.evaluate(fn, step=[0, -1])` passes them. In the limit
    the Gaussian part of the weights then cancels exactly. At `tp.Deferred(n)` that of matrices
    between widths does not: their movement is an `UnsupportedOperationError`, use an integer width.

    >>> movement({"v": jnp.array([1.0, 3.0])}, {"v": jnp.array([1.0, 1.0])}, scale=2)["v"]
    Array(4., dtype=float32)
    """
    factors = jax.tree.broadcast(scale, now)

    def moved(a: Any, b: Any, factor: Any) -> Array:
        if jnp.shape(a) != jnp.shape(b):
            raise ValueError(f"shapes differ: {jnp.shape(a)} now and {jnp.shape(b)} before")
        return factor * jnp.mean((a - b) ** 2)

    return jax.tree.map(moved, now, before, factors)


def _points_and_width(name: str, features: Any) -> None:
    shape = jnp.shape(features)
    if len(shape) != 2:
        raise ValueError(
            f"{name} of shape {shape} is not (points, width): for one point pass {name}[None], for "
            f"sequences or images {name}.reshape(-1, {name}.shape[-1]) or an average over places"
        )
