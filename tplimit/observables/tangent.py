"""The tangent kernel of a network at any time, by products: a derivative along a gradient."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from tplimit import arguments

__all__ = ["rates_of", "scaled", "tangent_kernel"]

#: Learning rates: a number, a tree with one for each parameter or for several, or a function of
#: the parameters that gives one of these.
Rates = Any


def tangent_kernel(apply: Callable[[Any, Any], Any], rates: Rates = 1.0) -> Callable[..., Array]:
    """The tangent kernel of a function of parameters, wherever they are in training.

        Θ(x, x') = Σ_p rate_p ∂f(x)/∂p · ∂f(x')/∂p

    is what a small step of gradient descent with these rates acts through: it changes ``f(x)`` by
    ``-Σ_j Θ(x, x_j) ∂loss/∂f(x_j)``. No gradient is stored for itself and no power of the width has
    to be known but those of the rates: where the rates are those of training and training is
    stable, it is of order one.

    Args:
        apply: plain JAX, ``apply(params, x)``, outputs of any shape without a width.
        rates: learning rates: a number, a tree of numbers with the shape of the parameters or of a
            part of it, or a function of the parameters that returns one; a function reads powers
            of the width from shapes, ``lambda t: {"U": t["v"].shape[0], "W": 1.0, ...}``. A rate
            of 0 leaves a parameter out.

    Returns:
        ``kernel(params, x1, x2=None)``, plain JAX, of the shape of the outputs of x1, then of x2:
        (P, Q) for one output for each point, (P, k, Q, k) for k. At initialisation, with rate 1, it
        is `tp.ntk`, which has closed forms.

    Raises:
        ValueError: a rate is negative; the rates have another structure than the parameters.

    Source: A. Jacot, F. Gabriel and C. Hongler, arXiv 1806.07572; with powers of the width, G. Yang
    and E. J. Hu, *Feature Learning in Infinite-Width Neural Networks*, arXiv 2011.14522.

    >>> f = lambda params, x: x @ params["w"] + params["b"]
    >>> params = {"w": jnp.array([0.3, -0.2]), "b": jnp.array(1.0)}
    >>> x = jnp.array([[1.0, 2.0], [0.0, 1.0]])
    >>> tangent_kernel(f, {"w": 2.0, "b": 0.5})(params, x).tolist()
    [[10.5, 4.5], [4.5, 2.5]]
    """
    arguments.function("apply", apply, "(params, x) -> outputs")

    def kernel(params: Any, x1: Any, x2: Any = None) -> Array:
        factors = rates_of(rates, params)
        others = x1 if x2 is None else x2
        f, pull = jax.vjp(lambda params: apply(params, x1), params)

        def row(cotangent: Array) -> Array:
            (gradient,) = pull(cotangent.reshape(f.shape))
            tangent = scaled(gradient, factors)
            return jax.jvp(lambda params: apply(params, others), (params,), (tangent,))[1]

        rows = jax.vmap(row)(jnp.eye(f.size, dtype=f.dtype))
        return rows.reshape(*f.shape, *rows.shape[1:])

    return kernel


def rates_of(rates: Rates, params: Any) -> Any:
    """One rate for each parameter, in a tree of the same structure."""
    given = rates(params) if callable(rates) else rates
    for path, rate in jax.tree_util.tree_leaves_with_path(given):
        if arguments.number_of(rate) is not None:
            arguments.not_negative(f"rates{jax.tree_util.keystr(path)}", rate)
    return jax.tree.broadcast(given, params)


def scaled(tree: Any, factors: Any) -> Any:
    """Arrays times numbers, leaf by leaf; what is left out is exactly 0."""
    return jax.tree.map(
        lambda a, c: jnp.zeros_like(a) if arguments.number_of(c) == 0 else a * c, tree, factors
    )
