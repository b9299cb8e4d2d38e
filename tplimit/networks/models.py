"""Networks in plain JAX whose weights carry no power of the width."""

from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Literal

import jax

from tplimit.networks.activations import ACTIVATIONS, Activation, Orders, orders, resolve

__all__ = ["ACTIVATIONS", "Activation", "Model", "mlp"]


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
    degree: int | Fraction | None = None

    def __post_init__(self) -> None:
        for name in ("depth", "inputs", "outputs"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} has to be a positive integer, got {value!r}")
        if self.bias not in (False, True, "first"):
            raise ValueError(f'bias has to be False, True or "first", got {self.bias!r}')
        resolve(self.activation)
        if self.degree is not None and not self.degree > 0:
            raise ValueError(f"the degree of an activation is positive, got {self.degree}")

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

    @property
    def orders(self) -> Orders:
        """Leading powers of the activation and of its derivative at 0.

        Raises:
            ValueError: they cannot be found from its values, and no `degree` was given.
        """
        try:
            return orders(self.activation)
        except ValueError:
            if self.degree is None:
                raise
            degree = Fraction(self.degree)
            return Orders(degree, degree - 1, homogeneous=False, odd=False)

    @property
    def homogeneity(self) -> Fraction:
        """The degree p of the activation: ``φ(z) = Θ(|z|^p)`` at 0.

        It is p for ReLU^p and other positively homogeneous functions, and 1 for smooth ones with
        φ(0) = 0 and φ'(0) ≠ 0. `degree` overrides what is found from the values of φ.

        Raises:
            ValueError: φ(0) ≠ 0, or φ behaves like no power near 0.

        >>> mlp(2, inputs=3, activation="relu2").homogeneity
        Fraction(2, 1)
        """
        if self.degree is not None:
            return Fraction(self.degree)
        if self.orders.value == 0:
            raise ValueError(
                "φ(0) is not 0, so the activation has no degree: subtract φ(0), "
                "or choose the degree yourself, mlp(..., degree=1)"
            )
        return self.orders.value

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
        activation = resolve(self.activation)
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
    degree: int | Fraction | None = None,
) -> Model:
    """A multilayer perceptron in plain JAX, see `Model`.

    Args:
        depth: number of hidden layers, at least 1; there are `depth + 1` weight matrices.
        inputs: dimension of the inputs.
        outputs: dimension of the outputs; with 1 the network returns shape (batch,).
        activation: a name, see `tplimit.networks.activations`, or any elementwise function.
        bias: a bias in no layer, in every layer, or only in the `"first"`.
        degree: degree p of the activation at 0, ``φ(z) = Θ(|z|^p)``, for parameterizations that
            depend on it; None finds it from the values of the activation, see `Model.homogeneity`.

    Raises:
        ValueError: a size or the degree is not positive, or the activation has an unknown name.

    >>> import jax.numpy as jnp
    >>> model = mlp(depth=1, inputs=2, activation="relu")
    >>> theta = {"W1": jnp.ones((2, 3)), "W2": jnp.ones(3)}
    >>> model.apply(theta, jnp.array([[1.0, 2.0], [-1.0, 0.0]])).tolist()
    [9.0, 0.0]
    """
    return Model(depth, inputs, outputs, activation, bias, degree)
