"""Powers of the width: initial scales, multipliers and learning rates per layer, in plain JAX.

Sources: Yang and Hu, Tensor Programs IV (abc-parameterizations, muP); Hajjar, Chizat and Giraud,
Training Integrable Parameterizations of Deep Neural Networks in the Infinite-Width Limit (ac form
and the integrable scalings).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import Any

import jax
import jax.numpy as jnp
import optax

from tplimit.models import Model
from tplimit.parameters import full, normal
from tplimit.widths import Width, rational

__all__ = [
    "Exponents",
    "Loss",
    "Parameterization",
    "cross_entropy",
    "logistic",
    "mean_field",
    "mse",
    "mup",
    "naive_ip",
    "ntk",
    "standard",
]

Exponent = int | float | Fraction
Exponents = Exponent | Sequence[Exponent] | Callable[[int], Sequence[Exponent]]
Loss = str | Callable[[jax.Array, jax.Array], jax.Array]
State = dict[str, Any]

# Entries of a state besides the weights. `_INITIAL` holds no array: its presence alone says that no
# step was made yet, so that the first step's own learning rates need no counter, which would be a
# number known only at run time and would hide the exponents from the limit.
_INITIAL = "initial"
_OPTIMIZER = "optimizer"


def mse(f: jax.Array, y: jax.Array) -> jax.Array:
    """Half the squared error, summed over outputs, averaged over the batch: mean_b ½|f_b - y_b|².

    Shapes (batch,) or (batch, outputs), equal for both; a mismatch raises ValueError.
    """
    _same_shape(f, y)
    return 0.5 * jnp.sum((f - y) ** 2) / f.shape[0]


def logistic(f: jax.Array, y: jax.Array) -> jax.Array:
    """Logistic loss for labels ±1: mean log(1 + exp(-y f)); shapes (batch,), equal for both."""
    _same_shape(f, y)
    return jnp.mean(jax.nn.softplus(-y * f))


def cross_entropy(f: jax.Array, y: jax.Array) -> jax.Array:
    """Softmax cross-entropy: mean_b -Σ_k y_bk log softmax(f_b)_k.

    `f` has shape (batch, outputs); `y` holds class numbers of shape (batch,) (an integer dtype), or
    probabilities of the shape of `f`. Other shapes raise ValueError.
    """
    y = jnp.asarray(y)
    if f.ndim == 2 and y.ndim == 1 and jnp.issubdtype(y.dtype, jnp.integer):
        y = jax.nn.one_hot(y, f.shape[-1], dtype=f.dtype)
    _same_shape(f, y)
    return -jnp.sum(y * jax.nn.log_softmax(f, axis=-1)) / f.shape[0]


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


@dataclass(frozen=True)
class Parameterization:
    """Exponents per layer: multiplier n^-a, initial standard deviation n^-b, learning rate n^-c.

        W^l = n^{-a_l} w^l,    w^l(0) ~ N(0, n^{-2 b_l}),    Δw^l = -lr n^{-c_l} ∇_{w^l} loss

    The width n is read from the shape of the parameters, so one function serves every width.

    Args:
        a, b, c: each one number for all layers, a triple (input, hidden, output), a sequence of
            length depth + 1, or a function from depth to such a sequence.
        first: exponents c of the first step, if it has its own.
        input_scale: constant factor of the first weight matrix; None means inputs^-1/2.
        biases: exponents of the biases; None means those of the weights of the same layer
            (the ac form of Hajjar, Chizat and Giraud).
        bias_std: factor of the biases' initial standard deviation; 0 starts them at zero.

    Calling a parameterization returns it with some fields changed: `mup(input_scale=1.0)`.

    Raises:
        ValueError: a sequence fits neither the depth nor (input, hidden, output).
        WidthError: an exponent is no rational number with a small denominator.

    >>> import tplimit as tp
    >>> tp.parameterizations.mup.exponents("a", depth=2)
    (Fraction(0, 1), Fraction(1, 2), Fraction(1, 1))
    """

    a: Exponents
    b: Exponents
    c: Exponents
    first: Exponents | None = None
    input_scale: float | None = None
    biases: "Parameterization | None" = None
    bias_std: float = 1.0
    name: str = field(default="", compare=False)

    def __call__(self, **changes: Any) -> "Parameterization":
        """The same parameterization with these fields changed."""
        return replace(self, **changes)

    def exponents(self, which: str, depth: int) -> tuple[Fraction, ...]:
        """The exponents `"a"`, `"b"`, `"c"` or `"first"` of the layers 1 .. depth + 1."""
        given = getattr(self, which)
        if given is None:  # `first` falls back to `c`
            given = self.c
        if callable(given):
            given = given(depth)
        if not isinstance(given, Sequence):
            given = (given,) * (depth + 1)
        elif len(given) == 3 and depth + 1 != 3:
            given = (given[0], *(given[1],) * (depth - 1), given[2])
        if len(given) != depth + 1:
            raise ValueError(
                f"{self.name or 'the parameterization'} has {len(given)} exponents {which}, but "
                f"a network of depth {depth} has {depth + 1} layers: give one per layer, "
                "or three for (input, hidden, output)"
            )
        return tuple(rational(e) for e in given)

    def theta(self, model: Model, width: Width | None = None) -> State:
        """Declarations of the parameters of `model`, for `tplimit.sample` and `tplimit.train`.

        Weights are Gaussian of standard deviation n^-b, biases bias_std·n^-b. `width` is the width
        n of all hidden layers, by default `tplimit.Width("n")`.
        """
        # A wrong number of exponents is refused here, not in the first step.
        for which in ("a", "c", "first"):
            self.exponents(which, model.depth)
        n = Width("n") if width is None else width
        theta = {
            name: _declare(shape, std, n, power)
            for (name, shape), (std, power) in zip(
                model.shapes(n).items(), self._per_parameter(model, "b"), strict=True
            )
        }
        own_first = any(p is not None and p.first is not None for p in (self, self.biases))
        return theta | {_INITIAL: ()} if own_first else theta

    def predict(self, model: Model) -> Callable[[Mapping[str, Any], jax.Array], jax.Array]:
        """The network `predict(theta, x)`: `x` (batch, inputs) to (batch,) or (batch, outputs).

        `theta` may be the state of `step` as well.
        """
        scale = 1 / model.inputs**0.5 if self.input_scale is None else self.input_scale
        powers = [power for _, power in self._per_parameter(model, "a")]

        def predict(theta: Mapping[str, Any], x: jax.Array) -> jax.Array:
            n = theta["W1"].shape[-1]
            effective = {
                name: _times_power(theta[name], n, -power, scale if name == "W1" else 1.0)
                for name, power in zip(model.shapes(n), powers, strict=True)
            }
            return model.apply(effective, x)

        return predict

    def step(
        self,
        model: Model,
        loss: Loss,
        lr: float,
        optimizer: optax.GradientTransformation | None = None,
    ) -> Callable[[State, tuple[jax.Array, jax.Array]], tuple[State, jax.Array]]:
        """One training step in plain JAX: `step(state, (x, y))` returns the new state and the loss.

        Args:
            model: from `tplimit.mlp`.
            loss: `"mse"`, `"logistic"`, `"cross_entropy"`, or a function `loss(f, y)` to a scalar.
            lr: base learning rate; layer l uses lr·n^-c_l.
            optimizer: an optax transformation whose updates are multiplied by lr·n^-c_l; give it
                the learning rate 1, as in `optax.sgd(1.0, momentum=0.9)`. None is plain SGD.

        The state before the first step is theta itself. With an optimizer, later states hold its
        memory under "optimizer" beside the parameters, so `predict` takes every state.

        Raises:
            ValueError: the loss has an unknown name, or labels and outputs differ in shape.
        """
        objective = _resolve_loss(loss)
        predict = self.predict(model)
        names = tuple(model.shapes(1))
        first, later = (
            dict(zip(names, (power for _, power in self._per_parameter(model, c)), strict=True))
            for c in ("first", "c")
        )

        def step(state: State, batch: tuple[jax.Array, jax.Array]) -> tuple[State, jax.Array]:
            x, y = batch
            n = state["W1"].shape[-1]
            theta = {name: state[name] for name in names}
            value, updates = jax.value_and_grad(lambda t: objective(predict(t, x), y))(theta)
            memory, sign = {}, -1.0
            if optimizer is not None:
                before = state[_OPTIMIZER] if _OPTIMIZER in state else optimizer.init(theta)
                updates, after = optimizer.update(updates, before, theta)
                memory, sign = {_OPTIMIZER: after}, 1.0
            powers = first if _INITIAL in state else later
            new = {
                k: w + _times_power(updates[k], n, -powers[k], sign * lr) for k, w in theta.items()
            }
            return new | memory, value

        return step

    def _per_parameter(self, model: Model, which: str) -> list[tuple[float, Fraction]]:
        """Factor of the standard deviation and exponent, in the order of `model.shapes`."""
        weights = self.exponents(which, model.depth)
        biases = weights if self.biases is None else self.biases.exponents(which, model.depth)
        return [(1.0, e) for e in weights] + [(self.bias_std, biases[l - 1]) for l in model.biased]


def _declare(shape: tuple[Any, ...], std: float, n: Width, power: Fraction) -> Any:
    if std == 0:
        return full(shape, 0.0)
    return normal(shape, std=std * n**-power if power else std)


def _times_power(value: Any, n: int, power: Fraction, factor: float) -> Any:
    """`factor * n**power * value`, without the multiplication where the product is 1."""
    if power:
        factor = factor * n ** float(power)
    return value if power == 0 and factor == 1.0 else factor * value


def _resolve_loss(loss: Loss) -> Callable[[jax.Array, jax.Array], jax.Array]:
    if callable(loss):
        return loss
    if loss not in _LOSSES:
        raise ValueError(
            f"unknown loss {loss!r}: use one of {', '.join(_LOSSES)}, or a function loss(f, y)"
        )
    return _LOSSES[loss]


_HALF = Fraction(1, 2)

#: Maximal update parameterization in ac form (Yang and Hu; every layer learns features).
mup = Parameterization((0, _HALF, 1), 0, -1, name="mup")

#: Integrable scaling, averages over the width in every layer, with learning rates that make every
#: update of order one. With three or more hidden layers and φ(0) = 0 the limit stays at 0.
naive_ip = Parameterization((0, 1, 1), 0, (-1, -2, -1), name="naive_ip")

#: Mean-field scaling: with one hidden layer the same as muP, with more the same as `naive_ip`.
mean_field = naive_ip(name="mean_field")

#: Neural tangent parameterization (Jacot, Gabriel and Hongler).
ntk = Parameterization((0, _HALF, _HALF), 0, 0, name="ntk")

#: Standard scaling: variance 1/fan_in, learning rates without powers of n. Its first step diverges.
standard = Parameterization(0, (0, _HALF, _HALF), 0, name="standard")
