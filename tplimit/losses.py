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
    return _cross_entropy(f, y) / f.shape[0]


@jax.custom_jvp
def _cross_entropy(f: jax.Array, y: jax.Array) -> jax.Array:
    return jnp.sum(y * (_all_and_shares(f)[0][..., None] - f))


@_cross_entropy.defjvp
def _cross_entropy_jvp(
    primals: tuple[jax.Array, jax.Array], tangents: tuple[jax.Array, jax.Array]
) -> tuple[jax.Array, jax.Array]:
    (f, y), (df, dy) = primals, tangents
    total, shares = _all_and_shares(f)
    slope = shares * jnp.sum(y, axis=-1, keepdims=True) - y
    value = jnp.sum(y * (total[..., None] - f))
    return value, jnp.sum(slope * df) + jnp.sum(dy * (total[..., None] - f))


def _all_and_shares(f: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Log-sum-exp and softmax over the last axis, class after class.

    Only different logits are ever subtracted. Where logits grow with the width, the usual
    ``f - max(f)`` would leave a difference of large equal numbers.
    """
    total, shares = f[..., 0], [jnp.ones(f.shape[:-1], f.dtype)]
    for k in range(1, f.shape[-1]):
        lead = total - f[..., k]
        shares = [share * jax.nn.sigmoid(lead) for share in shares] + [jax.nn.sigmoid(-lead)]
        total = jnp.maximum(total, f[..., k]) + _softplus(-jnp.abs(lead))
    return total, jnp.stack(shares, axis=-1)


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
