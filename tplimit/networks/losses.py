"""Losses in plain JAX, averaged over the batch."""

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp

__all__ = ["Loss", "cross_entropy", "logistic", "mse"]

Loss = str | Callable[[jax.Array, jax.Array], jax.Array]


def mse(f: jax.Array, y: jax.Array) -> jax.Array:
    """Half the squared error, summed over outputs, averaged over the batch: mean_b ½|f_b - y_b|².

    Shapes (batch,) or (batch, outputs), equal for both; a mismatch raises ValueError.
    """
    _same_shape(f, y)
    return 0.5 * jnp.sum((f - y) ** 2) / f.shape[0]


def logistic(f: jax.Array, y: jax.Array) -> jax.Array:
    """Logistic loss for labels ±1: mean log(1 + exp(-y f)); shapes (batch,), equal for both."""
    _same_shape(f, y)
    return jnp.mean(_softplus(-y * f))


@jax.custom_jvp
def _softplus(z: jax.Array) -> jax.Array:
    return jax.nn.softplus(z)


@_softplus.defjvp
def _softplus_jvp(
    primals: tuple[jax.Array], tangents: tuple[jax.Array]
) -> tuple[jax.Array, jax.Array]:
    # The derivative of JAX's is a difference of large numbers where logits grow with the width.
    (z,), (dz,) = primals, tangents
    return _softplus(z), jax.nn.sigmoid(z) * dz


def cross_entropy(f: jax.Array, y: jax.Array) -> jax.Array:
    """Softmax cross-entropy: mean_b -Σ_k y_bk log softmax(f_b)_k.

    `f` has shape (batch, outputs); `y` holds class numbers of shape (batch,) (an integer dtype), or
    probabilities of the shape of `f`. Other shapes raise ValueError.
    """
    y = jnp.asarray(y)
    if f.ndim == 2 and y.ndim == 1 and jnp.issubdtype(y.dtype, jnp.integer):
        y = jax.nn.one_hot(y, f.shape[-1], dtype=f.dtype)
    if f.ndim != 2:
        raise ValueError(
            f"outputs of shape {f.shape} are no classes: the shape is (batch, outputs); for two "
            'classes and one output take the loss "logistic"'
        )
    _same_shape(f, y)
    total = jax.nn.logsumexp(f, axis=-1, keepdims=True)
    return jnp.sum(y * (total - f)) / f.shape[0]


_LOSSES: Mapping[str, Callable[[jax.Array, jax.Array], jax.Array]] = {
    "mse": mse,
    "logistic": logistic,
    "cross_entropy": cross_entropy,
}


def _same_shape(f: jax.Array, y: jax.Array) -> None:
    # (batch,) against (batch, 1) would broadcast to (batch, batch) and train on nonsense.
    if jnp.shape(f) != jnp.shape(y):
        raise ValueError(
            f"outputs of shape {jnp.shape(f)} against labels of shape {jnp.shape(y)}: "
            "reshape the labels"
        )


def resolve(loss: Loss) -> Callable[[jax.Array, jax.Array], jax.Array]:
    """The function that a loss names; ValueError for an unknown name."""
    if callable(loss):
        return loss
    if loss not in _LOSSES:
        raise ValueError(
            f"unknown loss {loss!r}: use one of {', '.join(_LOSSES)}, or a function loss(f, y)"
        )
    return _LOSSES[loss]
