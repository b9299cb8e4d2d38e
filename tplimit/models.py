"""Networks in plain JAX whose weights carry no power of the width."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal

import jax
import jax.numpy as jnp

__all__ = ["ACTIVATIONS", "Activation", "Model", "mlp"]

Activation = str | Callable[[jax.Array], jax.Array]

ACTIVATIONS: Mapping[str, Callable[[jax.Array], jax.Array]] = MappingProxyType(
    {
        "abs": jnp.abs,
        "celu": jax.nn.celu,
        "cos": jnp.cos,
        "elu": jax.nn.elu,
        "erf": jax.scipy.special.erf,
        "gelu": lambda h: jax.nn.gelu(h, approximate=False),
        "identity": lambda h: h,
        "leaky_relu": jax.nn.leaky_relu,
        "relu": jax.nn.relu,
        "selu": jax.nn.selu,
        "sigmoid": jax.nn.sigmoid,
        "silu": jax.nn.silu,
        "sin": jnp.sin,
        "softplus": jax.nn.softplus,
        "softsign": jax.nn.soft_sign,
        "square": jnp.square,
        "tanh": jnp.tanh,
    }
)


@dataclass(frozen=True)
class Model:
    """A multilayer perceptron with effective weights: `apply` contains no scaling at all.

        h_1 = x W1 + b1,    h_l = φ(h_{l-1}) W_l + b_l,    f = φ(h_depth) W_{depth+1} + b_{depth+1}

    Shapes, with d inputs, width n and k outputs: `W1` (d, n), `W2` ... `W{depth}` (n, n), the last
    one (n, k), or (n,) for one output; biases (n,), the last one (k,), or () for one output.
    `tplimit.Parameterization` gives the parameters their powers of n.
    """

    depth: int
    inputs: int
    outputs: int = 1
    activation: Activation = "tanh"
    bias: bool | Literal["first"] = False

    def __post_init__(self) -> None:
        for name in ("depth", "inputs", "outputs"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} has to be a positive integer, got {value!r}")
        if self.bias not in (False, True, "first"):
            raise ValueError(f'bias has to be False, True or "first", got {self.bias!r}')
        if not callable(self.activation) and self.activation not in ACTIVATIONS:
            raise ValueError(
                f"unknown activation {self.activation!r}: use one of {', '.join(ACTIVATIONS)}, "
                "or pass a function such as jnp.tanh"
            )

    @property
    def layers(self) -> int:
        """The number of weight matrices, `depth + 1`."""
        return self.depth + 1

    @property
    def biased(self) -> tuple[int, ...]:
        """The layers l = 1 .. depth + 1 that have a bias."""
        if self.bias == "first":
            return (1,)
        return tuple(range(1, self.layers + 1)) if self.bias else ()

    def shapes(self, n: Any) -> dict[str, tuple[Any, ...]]:
        """Name and shape of every parameter at width `n` (an integer or a `tplimit.Width`)."""
        rows = [self.inputs, *[n] * self.depth]
        last: tuple[int, ...] = () if self.outputs == 1 else (self.outputs,)
        columns = [*[(n,)] * self.depth, last]
        weights = {
            f"W{l}": (r, *c) for l, (r, c) in enumerate(zip(rows, columns, strict=True), start=1)
        }
        return weights | {f"b{l}": columns[l - 1] for l in self.biased}

    def apply(self, theta: Mapping[str, Any], x: jax.Array) -> jax.Array:
        """The outputs f of shape (batch,) for one output, else (batch, outputs).

        `theta` maps the names of `shapes` to effective weights, `x` has shape (batch, inputs).
        """
        activation = self.activation
        if not callable(activation):
            activation = ACTIVATIONS[activation]
        h = x
        for l in range(1, self.layers + 1):
            h = h @ theta[f"W{l}"]
            if l in self.biased:
                h = h + theta[f"b{l}"]
            if l < self.layers:
                h = activation(h)
        return h


def mlp(
    depth: int,
    inputs: int,
    outputs: int = 1,
    activation: Activation = "tanh",
    bias: bool | Literal["first"] = False,
) -> Model:
    """A multilayer perceptron in plain JAX, see `Model`.

    Args:
        depth: number of hidden layers, at least 1; there are `depth + 1` weight matrices.
        inputs: dimension of the inputs.
        outputs: dimension of the outputs; with 1 the network returns shape (batch,).
        activation: a name in `tplimit.models.ACTIVATIONS` or any elementwise function.
        bias: a bias in no layer, in every layer, or only in the `"first"`.

    Raises:
        ValueError: a size is not a positive integer, or the activation has an unknown name.

    >>> import jax.numpy as jnp
    >>> model = mlp(depth=1, inputs=2, activation="relu")
    >>> theta = {"W1": jnp.ones((2, 3)), "W2": jnp.ones(3)}
    >>> model.apply(theta, jnp.array([[1.0, 2.0], [-1.0, 0.0]])).tolist()
    [9.0, 0.0]
    """
    return Model(depth, inputs, outputs, activation, bias)
