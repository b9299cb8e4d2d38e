"""Sharpness, the curvature that decides how large a learning rate may be, by products."""

import itertools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from tplimit import arguments
from tplimit.networks.losses import Loss, resolve
from tplimit.observables.tangent import Rates, rates_of, scaled, tangent_kernel

__all__ = ["gauss_newton_sharpness", "largest_eigenvalue", "sharpness"]

# Directions whose share of the square of a unit vector is less are round-off, and in the limit
# the share of a second moment below which directions are dropped (`rank_tolerance`).
_SHARE = 1e-4


def largest_eigenvalue(kernel: Any) -> Array:
    """Largest eigenvalue of a kernel over points: (P, P), or (P, k, P, k) for several outputs.

    Of the tangent kernel of training, divided by P, it is the sharpness of half the mean squared
    error but for the curvature of the network (`gauss_newton_sharpness`). In the limit entries
    have to be of order one.

    Raises:
        ValueError: the kernel is not square.

    >>> largest_eigenvalue(jnp.array([[2.0, 1.0], [1.0, 2.0]])).round(4)
    Array(3., dtype=float32)
    """
    return jnp.linalg.eigvalsh(_square(kernel))[-1]


def gauss_newton_sharpness(
    apply: Callable[[Any, Any], Any], loss: Loss, rates: Rates = 1.0
) -> Callable[[Any, Any, Any], Array]:
    """Largest eigenvalue of the Gauss-Newton part of the Hessian, in the metric of the rates.

        λ_max(R^{1/2} J^T ℓ'' J R^{1/2}) = λ_max(C^T Θ C),      C C^T = ℓ''

    with the tangent kernel ``Θ = J R J^T`` of the rates R and the Hessian ``ℓ''`` of the loss by
    the outputs: a small matrix, exact at every width. It is `sharpness` but for the second
    derivatives of the network, which vanish in kernel regimes and where the loss is 0.

    Args:
        apply, loss, rates: as for `sharpness`. The loss is convex in the outputs; else the result
            is NaN.

    Returns:
        ``value(params, x, y)``, plain JAX, a number.

    >>> f = lambda params, x: params["w"] * x
    >>> value = gauss_newton_sharpness(f, "mse", rates=0.1)
    >>> value({"w": jnp.array(1.0)}, jnp.array([1.0, 3.0]), jnp.zeros(2)).round(4)
    Array(0.5, dtype=float32)
    """
    kernel, loss_of = tangent_kernel(apply, rates), resolve(loss)

    def value(params: Any, x: Any, y: Any) -> Array:
        f = apply(params, x)
        curvature = _square(jax.hessian(lambda f: loss_of(f, y))(f))
        # That of the softmax is singular: a constant is no change of its outputs.
        little = 10 * jnp.finfo(f.dtype).eps * jnp.trace(curvature)
        C = jnp.linalg.cholesky(curvature + little * jnp.eye(len(curvature), dtype=f.dtype))
        return largest_eigenvalue(C.T @ _square(kernel(params, x)) @ C)

    return value


def sharpness(
    apply: Callable[[Any, Any], Any], loss: Loss, rates: Rates = 1.0, steps: int = 6
) -> Callable[[Any, Any, Any], Array]:
    """Largest eigenvalue of the Hessian of the loss in the metric of the learning rates.

        λ_max(R^{1/2} H R^{1/2}),      H = ∂²loss(apply(params, x), y)/∂params²

    Gradient descent with these rates is stable along all directions where it is below 2, at every
    width; with the plain Hessian it would be below 2 divided by a rate that grows or vanishes with
    the width. With rates of the powers of n that make training stable it is of order one.

    It is found by `steps` products with the Hessian (a derivative of the gradient, never a matrix),
    from a fixed combination of the gradients of the outputs, as the largest Rayleigh quotient in
    the space of all products (Rayleigh-Ritz, as Lanczos does): a lower bound of ``λ_max``, up to
    round-off, that grows with `steps`. How near it is depends on the gap
    below the largest eigenvalue: compare with more.

    Args:
        apply: plain JAX, ``apply(params, x)``, outputs without a width.
        loss: ``loss(f, y)``, a number, or the name of one: "mse" (half the mean square), ...
        rates: as for `tangent_kernel`, those of training with their constants. A rate of 0 leaves a
            parameter out.
        steps: products with the Hessian. Each makes the program longer, so the first call waits.

    Returns:
        ``value(params, x, y)``, plain JAX, a number.

    Raises:
        ValueError: a rate is negative, a loss has an unknown name, or `steps` is out of range.

    Source: J. Cohen and others, *Gradient Descent on Neural Networks Typically Occurs at the Edge
    of Stability*, arXiv 2103.00065; in the metric of the rates, arXiv 2207.14484.

    >>> f = lambda params, x: params["a"] * params["b"] * x
    >>> params = {"a": jnp.array(2.0), "b": jnp.array(0.0)}
    >>> value = sharpness(f, "mse", rates={"a": 0.1, "b": 0.4})
    >>> round(float(value(params, jnp.ones(1), jnp.ones(1))), 3)  # of [[0, -0.2], [-0.2, 1.6]]
    1.625
    """
    arguments.function("apply", apply, "(params, x) -> outputs")
    steps, loss_of = arguments.whole("steps", steps, most=50, example=6), resolve(loss)

    def value(params: Any, x: Any, y: Any) -> Array:
        roots = jax.tree.map(lambda rate: rate**0.5, rates_of(rates, params))
        gradient = jax.grad(lambda params: loss_of(apply(params, x), y))

        def product(z: Any) -> Any:
            curved = jax.jvp(gradient, (params,), (scaled(z, roots),))[1]
            return scaled(curved, roots)

        f, pull = jax.vjp(lambda params: apply(params, x), params)
        (start,) = pull(_some_numbers(f))
        return _largest_quotient(product, scaled(start, roots), steps)

    return value


def _largest_quotient(product: Callable[[Any], Any], start: Any, steps: int) -> Array:
    """Largest ``<z, A z> / <z, z>`` over the span of ``start``, ``A start``, ..."""
    vectors, lengths = [_unit(start)[0]], []
    for _ in range(steps):
        unit, length = _unit(product(vectors[-1]))
        vectors.append(unit)
        lengths.append(length)
    gram = {
        (i, j): _inner(vectors[i], vectors[j])
        for i, j in itertools.combinations_with_replacement(range(steps + 1), 2)
    }
    pairs = range(steps)
    G = jnp.stack([jnp.stack([gram[min(i, j), max(i, j)] for j in pairs]) for i in pairs])
    # A z_j is the next vector times its length: no product is needed for <z_i, A z_j>.
    A = jnp.stack(
        [jnp.stack([lengths[j] * gram[min(i, j + 1), max(i, j + 1)] for j in pairs]) for i in pairs]
    )
    # The vectors become parallel. What is added to G lowers a positive quotient, never raises it.
    C = jnp.linalg.cholesky(G + _SHARE * jnp.eye(steps, dtype=G.dtype))
    half = jax.scipy.linalg.solve_triangular(C, (A + A.T) / 2, lower=True)
    return largest_eigenvalue(jax.scipy.linalg.solve_triangular(C, half.T, lower=True))


def _inner(a: Any, b: Any) -> Array:
    products = jax.tree.map(lambda a, b: jnp.sum(a * b), a, b)
    return jnp.asarray(sum(jax.tree.leaves(products)))


def _unit(z: Any) -> tuple[Any, Array]:
    length = jnp.sqrt(_inner(z, z))
    return jax.tree.map(lambda a: a / length, z), length


def _some_numbers(f: Any) -> Array:
    """Fixed numbers without a pattern: a start that is orthogonal to nothing that matters."""
    return jnp.asarray(np.random.default_rng(0).normal(size=jnp.shape(f)), f.dtype)


def _square(kernel: Any) -> Array:
    """(P, .., P, ..) as a matrix."""
    kernel = jnp.asarray(kernel)
    half = kernel.ndim // 2
    if kernel.ndim == 0 or kernel.shape[:half] != kernel.shape[half:]:
        raise ValueError(
            f"a kernel of shape {kernel.shape} is not square: its eigenvalues are those over the "
            "same points twice, (P, P) or (P, k, P, k)"
        )
    size = int(np.prod(kernel.shape[:half]))
    return kernel.reshape(size, size)
