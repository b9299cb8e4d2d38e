"""Activations by name, and the powers that they behave like at 0."""

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from types import MappingProxyType

import jax
import jax.numpy as jnp
import numpy as np

from tplimit._jax import jaxpr_as_fun, traced
from tplimit.caching.store import kept

__all__ = ["ACTIVATIONS", "Activation", "Orders", "orders", "resolve"]

Activation = str | Callable[[jax.Array], jax.Array]


@jax.custom_jvp
def _relu2(h: jax.Array) -> jax.Array:
    return jax.nn.relu(h) ** 2


# Written as 2 max(h, 0), the derivative compares nothing: where h vanishes in the limit its sign,
# which the derivative of relu would need, is decided by terms of a smaller order.
_relu2.defjvps(lambda dh, value, h: 2 * jax.nn.relu(h) * dh)


#: All activations that have names: those of networks, of the command line, and of kernels.
ACTIVATIONS: Mapping[str, Callable[[jax.Array], jax.Array]] = MappingProxyType(
    {
        "abs": jnp.abs,
        "celu": jax.nn.celu,
        "cos": jnp.cos,
        "elu": jax.nn.elu,
        "erf": jax.scipy.special.erf,
        "exp": jnp.exp,
        "gaussian": lambda h: jnp.exp(-h * h),
        "gelu": lambda h: jax.nn.gelu(h, approximate=False),
        "gelu_tanh": lambda h: jax.nn.gelu(h, approximate=True),
        "hard_sigmoid": jax.nn.hard_sigmoid,
        "hard_silu": jax.nn.hard_silu,
        "hard_tanh": jax.nn.hard_tanh,
        "identity": lambda h: h,
        "leaky_relu": jax.nn.leaky_relu,
        "mish": jax.nn.mish,
        "relu": jax.nn.relu,
        "relu2": _relu2,
        "relu6": jax.nn.relu6,
        "selu": jax.nn.selu,
        "sigmoid": jax.nn.sigmoid,
        "sign": jnp.sign,
        "silu": jax.nn.silu,
        "sin": jnp.sin,
        "softplus": jax.nn.softplus,
        "softsign": jax.nn.soft_sign,
        "square": jnp.square,
        "step": lambda h: jnp.heaviside(h, 0.5),
        "tanh": jnp.tanh,
    }
)

# Small enough for the leading power to show, large enough for float32 to see 1 - cos(z).
_SMALL = 2.0**-6
_NEAR = np.array([-1.0, 1.0]) * _SMALL
_FAR = np.array([-64.0, -8.0, -2.0, -1.0, -0.3, 0.3, 1.0, 2.0, 8.0, 64.0])
_POINTS = np.concatenate([[0.0], _NEAR, 2 * _NEAR, _FAR, 2 * _FAR]).astype(np.float32)
_ROUND_OFF = 1e-5
# Powers are told from their neighbours, multiples of 1/4, in spite of the next term at _SMALL.
_POWER_ERROR = 0.06


@dataclass(frozen=True)
class Orders:
    """Leading powers of an activation at 0: φ(z) = Θ(|z|^value), φ'(z) = Θ(|z|^slope).

    Attributes:
        value: 0 where φ(0) ≠ 0, else the degree p of the first term.
        slope: p - 1; where φ(0) ≠ 0, the same of φ - φ(0).
        homogeneous: whether φ(c z) = c^p φ(z) for every c > 0, at every z.
        odd: whether φ(-z) = -φ(z).
    """

    value: Fraction
    slope: Fraction
    homogeneous: bool
    odd: bool


def resolve(activation: Activation) -> Callable[[jax.Array], jax.Array]:
    """The function that a name in `ACTIVATIONS` stands for; a function stands for itself.

    Raises:
        ValueError: no activation has this name.
    """
    if callable(activation):
        return activation
    if activation not in ACTIVATIONS:
        raise ValueError(
            f"unknown activation {activation!r}: use one of {', '.join(ACTIVATIONS)}, or a JAX "
            "function"
        )
    return ACTIVATIONS[activation]


def orders(activation: Activation) -> Orders:
    """Leading powers of an activation, found from its values near 0 and on both sides.

    Raises:
        ValueError: near 0 the activation behaves like no power.

    >>> orders("relu2").value, orders("tanh").value, orders("sigmoid").value
    (Fraction(2, 1), Fraction(1, 1), Fraction(0, 1))
    """
    return _named(activation) if isinstance(activation, str) else _traced(activation)


@functools.cache
def _named(activation: str) -> Orders:
    """Those of a function with a name: it stays what it is, and planes of regimes ask often."""
    return _traced(resolve(activation))


def _traced(activation: Callable[[jax.Array], jax.Array]) -> Orders:
    program, _ = traced(activation, _POINTS)
    return kept("orders", lambda: _orders(jaxpr_as_fun(program)), program)


def _orders(program: Callable[[jax.Array], Sequence[jax.Array]]) -> Orders:
    # Compiled ahead, for it may be called where JAX is tracing.
    (values,) = jax.jit(program).lower(_POINTS).compile()(_POINTS)
    zero, small, twice_small, phi, phi_of_twice = np.split(
        np.asarray(values, np.float64), np.cumsum([1, 2, 2, len(_FAR)])
    )
    degree = _power(small - zero, twice_small - zero)
    if degree is None:
        raise ValueError(
            "near 0 the activation behaves like no power of its argument: "
            "give its degree, mlp(..., degree=p)"
        )
    if abs(zero[0]) > _ROUND_OFF:
        return Orders(Fraction(0), degree - 1, homogeneous=False, odd=False)
    homogeneous = np.allclose(phi_of_twice, 2.0 ** float(degree) * phi, _ROUND_OFF, _ROUND_OFF)
    odd = np.allclose(phi[::-1], -phi, _ROUND_OFF, _ROUND_OFF)
    return Orders(degree, degree - 1, homogeneous, odd)


def _power(values: np.ndarray, at_twice: np.ndarray) -> Fraction | None:
    """The p with φ(2t) ≈ 2^p φ(t), on the side where φ is larger; None if there is none."""
    near, far = np.abs(values).max(), np.abs(at_twice).max()
    if not (0 < near < math.inf and 0 < far < math.inf):
        return None
    exponent = math.log2(far / near)
    power = Fraction(round(4 * exponent), 4)
    return power if power > 0 and abs(exponent - power) < _POWER_ERROR else None
