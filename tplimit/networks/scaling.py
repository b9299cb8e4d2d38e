"""Powers of the width per layer: `Parameterization`, and its training step in plain JAX.

Sources: Yang and Hu, Tensor Programs IV (abc-parameterizations); Yang and Littwin, Tensor
Programs IVb (adaptive optimizers, their exponent d); Hajjar, Chizat and Giraud, Training Integrable
Parameterizations of Deep Neural Networks in the Infinite-Width Limit (ac form, exponents of the
first step, initial weights dropped after it); Golikov, Dynamically Stable Infinite-Width Limits of
Neural Classifiers (reference width, corrected initial function).
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import jax

from tplimit import arguments
from tplimit.declare.parameters import full, normal
from tplimit.declare.widths import Width
from tplimit.errors import WidthError
from tplimit.networks.losses import Loss, resolve
from tplimit.networks.models import Model
from tplimit.networks.optimizers import degree

if TYPE_CHECKING:
    import optax

__all__ = ["Exponents", "Factors", "Parameterization"]

Exponent = int | float | Fraction
Exponents = Exponent | Sequence[Exponent] | Callable[[Model], Sequence[Exponent]]
Factors = float | Sequence[float]
State = dict[str, Any]

# Entries of a state besides the weights. `_INITIAL` holds no array: its presence alone says that no
# step was made yet, so that the first step's own learning rates need no counter, which would be a
# number known only at run time and would hide the exponents from the limit. `_ORIGIN` holds the
# initial parameters from the first step on, where predictions keep the initial function.
_INITIAL = "initial"
_OPTIMIZER = "optimizer"
_ORIGIN = "origin"


@dataclass(frozen=True)
class Parameterization:
    """Exponents per layer: multiplier n^-a, initial standard deviation n^-b, learning rate n^-c.

        W^l = n^{-a_l} w^l,    w^l(0) ~ N(0, n^{-2 b_l}),    Δw^l = -lr n^{-c_l} ∇_{w^l} loss

    The width n is read from the shape of the parameters, so one function serves every width.

    Args:
        a, b, c: each one number for all layers, a triple (input, hidden, output), a sequence of
            length depth + 1, or a function from the model to such a sequence.
        first: exponents c of the first step, if it has its own.
        input_scale: constant factor of the first weight matrix; None means inputs^-1/2.
        biases: exponents of the biases; None means those of the weights of the same layer
            (the ac form of Hajjar, Chizat and Giraud).
        bias_std: factor of the biases' initial standard deviation; 0 starts them at zero.
        std: factors of the weights' initial standard deviations, given like exponents, or a
            function of a layer's number of inputs at the reference width.
        mean: initial means of the weights, in units of n^-b, given like exponents.
        shrink: after the first step the initial weights of layer l are multiplied by n^-shrink_l
            while its update is kept; `math.inf` removes them. Given like exponents.
        initial_a: the initial function is kept with multipliers of these exponents: predictions are
            f_t - f_0 + (f_0 with n^-initial_a in place of n^-a). The correction has no gradient.
        reference: the width at which every power of n is 1: n stands for width / reference.

    Calling a parameterization returns it with some fields changed: `mup(input_scale=1.0)`.

    Raises:
        ValueError: a sequence fits neither the depth nor (input, hidden, output).
        WidthError: an exponent is no rational number with a small denominator.

    >>> import tplimit as tp
    >>> tp.parameterizations.mup.exponents("a", tp.mlp(2, inputs=3))
    (Fraction(0, 1), Fraction(1, 2), Fraction(1, 1))
    """

    a: Exponents
    b: Exponents
    c: Exponents
    first: Exponents | None = None
    input_scale: float | None = None
    biases: "Parameterization | None" = None
    bias_std: float = 1.0
    std: Factors | Callable[[float], float] = 1.0
    mean: Factors = 0.0
    shrink: Exponents = 0
    initial_a: Exponents | None = None
    reference: float = 1.0
    name: str = field(default="", compare=False)

    def __call__(self, **changes: Any) -> "Parameterization":
        """The same parameterization with these fields changed."""
        return replace(self, **changes)

    def exponents(self, which: str, model: Model | int) -> tuple[Fraction, ...]:
        """The exponents `"a"`, `"b"`, `"c"`, `"first"`, `"initial_a"` or `"d"`, layer by layer.

        `first` falls back to `c`, and `initial_a` to `a`. Instead of a model its depth L may be
        given where the exponents do not depend on the activation, or for one of degree 1.

        `d` follows from the others: ∇_{w^l} loss = Θ(n^-d_l) where activations are of order one,

            d_{L+1} = a_{L+1},    d_l = a_l + s  (l ≤ L),    s = min(a + b, 2a + c) of layer L + 1,

        since derivatives by preactivations have the order n^-s of the output weights: n^-(a + b) at
        first, if they are not 0, and n^-(2a + c) of their updates. n^d is the factor of gradients
        in Tensor Programs IVb.

        >>> import tplimit as tp
        >>> [str(e) for e in tp.parameterizations.mup.exponents("d", 2)]
        ['1', '3/2', '1']
        """
        if isinstance(model, int):
            model = Model(model, inputs=1, activation="identity")
        if which == "d":
            return self._orders_of_gradients(model)
        given = getattr(self, which)
        if given is None:
            given = {"first": self.c, "initial_a": self.a}[which]
        if callable(given):
            given = given(model)
        return tuple(_exact(e) for e in self._per_layer(f"exponents {which}", given, model))

    def _orders_of_gradients(self, model: Model) -> tuple[Fraction, ...]:
        a, b, c = (self.exponents(which, model) for which in "abc")
        s = 2 * a[-1] + c[-1]
        if self.factors("std", model)[-1] or self.factors("mean", model)[-1]:
            s = min(s, a[-1] + b[-1])
        return (*(e + s for e in a[:-1]), a[-1])

    def factors(self, which: str, model: Model) -> tuple[float, ...]:
        """The numbers `"std"`, `"mean"` or `"shrink"` (an exponent, perhaps infinite) per layer."""
        given = getattr(self, which)
        if callable(given):
            fan_in = [model.inputs] + [self.reference] * model.depth
            given = given(model) if which == "shrink" else [given(n) for n in fan_in]
        return self._per_layer(which, given, model)

    def _per_layer(self, what: str, given: Any, model: Model) -> tuple[Any, ...]:
        """One entry per layer from one for all, a triple, or a sequence."""
        if not isinstance(given, Sequence):
            return (given,) * model.layers
        if len(given) == 3 and model.layers != 3:
            given = (given[0], *(given[1],) * (model.depth - 1), given[2])
        if len(given) != model.layers:
            raise ValueError(
                f"{self.name or 'the parameterization'} has {len(given)} {what}, but "
                f"a network of depth {model.depth} has {model.layers} layers: give one per layer, "
                "or three for (input, hidden, output)"
            )
        return tuple(given)

    def theta(self, model: Model, width: Width | None = None) -> State:
        """Declarations of the parameters of `model`, for `tplimit.sample` and `tplimit.train`.

        Weights are Gaussian of mean mean·n^-b and standard deviation std·n^-b, biases of mean 0 and
        standard deviation bias_std·n^-b. `width` is the width n of all hidden layers, by default
        `tplimit.Width("n")`.
        """
        # A wrong number of exponents is refused here, not in the first step.
        for which in ("a", "c", "first", "initial_a"):
            self.exponents(which, model)
        n = Width("n") if width is None else width
        stds = (*self.factors("std", model), *[self.bias_std] * len(model.biased))
        means = (*self.factors("mean", model), *[0.0] * len(model.biased))
        powers = self._powers(model, "b").values()
        theta = {
            name: self._declare(shape, std, mean, n, power)
            for (name, shape), std, mean, power in zip(
                model.shapes(n).items(), stds, means, powers, strict=True
            )
        }
        own = any(p is not None and p.first is not None for p in (self, self.biases))
        marked = own or any(self.factors("shrink", model))
        return theta | {_INITIAL: ()} if marked else theta

    def _declare(
        self, shape: tuple[Any, ...], std: float, mean: float, n: Width, power: Fraction
    ) -> Any:
        scale = self.reference ** float(power) * n**-power if power else 1.0
        # n**-b keeps its exact exponent, and 0 has none.
        if std == 0:
            return full(shape, mean * scale if mean else 0.0)
        return normal(shape, std=std * scale, mean=mean * scale if mean else 0.0)

    def predict(self, model: Model) -> Callable[[Mapping[str, Any], jax.Array], jax.Array]:
        """The network `predict(theta, x)`: `x` (batch, inputs) to (batch,) or (batch, outputs).

        `theta` may be the state of `step` as well.
        """
        network = self._network(model, "a")
        if self.initial_a is None:
            return network
        uncorrected = self._network(model, "initial_a")

        def predict(theta: Mapping[str, Any], x: jax.Array) -> jax.Array:
            origin = theta.get(_ORIGIN, theta)
            # In this order the correction is exactly 0 where n is the reference width.
            return network(theta, x) + (uncorrected(origin, x) - network(origin, x))

        return predict

    def _network(self, model: Model, which: str) -> Callable[..., jax.Array]:
        return lambda theta, x: model.apply(self.effective(model, theta, which), x)

    def effective(
        self, model: Model, theta: Mapping[str, Any], which: str = "a"
    ) -> dict[str, jax.Array]:
        """The effective weights and biases of `model.apply`: multipliers n^-a times parameters.

        `theta` may be the state of `step` as well; `which` names the exponents.
        """
        scale = 1 / model.inputs**0.5 if self.input_scale is None else self.input_scale
        n = self._relative(theta["W1"].shape[-1])
        return {
            name: _times_power(theta[name], n, -power, scale if name == "W1" else 1.0)
            for name, power in self._powers(model, which).items()
        }

    def step(
        self,
        model: Model,
        loss: Loss,
        lr: Factors,
        optimizer: "optax.GradientTransformation | None" = None,
        first_lr: Factors | None = None,
    ) -> Callable[[State, tuple[jax.Array, jax.Array]], tuple[State, jax.Array]]:
        """One training step in plain JAX: `step(state, (x, y))` returns the new state and the loss.

            g = ∇_w loss,     w ← w - lr n^-c g,     and with an optimizer of updates u:

            w ← w + lr n^-(c + d) u(n^d g, z),     z = n^(c + d) w,     d = exponents("d", model)

        An optimizer works in natural units: it sees gradients of order one, and parameters z that
        move by lr u. Its updates have the powers of n that gradient descent has, whatever their
        size says of that of the gradients, and are those of n^-c g for an optimizer that is
        homogeneous of degree 1, such as momentum. `eps` is added to numbers of order one; decoupled
        weight decay is w ← (1 - lr·decay) w. Where n is the reference width nothing is changed.

        Args:
            model: from `tplimit.mlp`.
            loss: `"mse"`, `"logistic"`, `"cross_entropy"`, or a function `loss(f, y)` to a scalar.
            lr: base learning rate; layer l uses lr·n^-c_l. One number, or one per layer.
            optimizer: an optax transformation. Give it the learning rate 1, as in
                `optax.adam(1.0)`: `lr` multiplies its updates, and the decay of weights in them.
                One that keeps parameters of its own (schedule-free) needs to know its rate: give it
                there, and lr = 1. None is plain SGD.
            first_lr: base learning rates of the first step, if it has its own, for instance those
                of `tplimit.parameterizations.calibrate`.

        The state before the first step is theta itself. With an optimizer, later states hold its
        memory under "optimizer" beside the parameters, so `predict` takes every state.

        Raises:
            ValueError: the loss has an unknown name, labels and outputs differ in shape,
                `first_lr` is given to a parameterization that treats all steps alike, or an
                optimizer that is not homogeneous of degree 1 to one with `first` exponents.

        >>> import jax, optax, tplimit as tp
        >>> p, model = tp.parameterizations.mup, tp.mlp(2, inputs=3)
        >>> step = p.step(model, "mse", 0.1, optimizer=optax.adam(1.0))
        >>> theta = tp.sample(p.theta(model), jax.random.key(0), width=64)
        >>> new, _ = step(theta, (jax.numpy.ones((1, 3)), jax.numpy.ones(1)))
        >>> [round(float(abs(new[k] - theta[k]).max()), 4) for k in ("W1", "W2", "W3")]
        [0.1, 0.0125, 0.1]
        """
        objective = resolve(loss)
        predict = self.predict(model)
        later = self._rates(model, "c", lr)
        first = self._rates(model, "first", lr if first_lr is None else first_lr)
        shrink = dict(zip(later, self.factors("shrink", model), strict=False))
        # Without an optimizer the units are those of the parameters.
        d = dict.fromkeys(later, Fraction(0))
        if optimizer is not None:
            self._check_first(model, optimizer)
            d = self._powers(model, "d")
        if first_lr is not None and _INITIAL not in self.theta(model):
            raise ValueError(
                "first_lr needs a parameterization whose first step is its own: "
                f"set its exponents, {self.name or 'p'}(first=...)"
            )

        def step(state: State, batch: tuple[jax.Array, jax.Array]) -> tuple[State, jax.Array]:
            x, y = batch
            n = self._relative(state["W1"].shape[-1])
            theta = {name: state[name] for name in later}
            # The origin is no argument of the differentiated function: it has no gradient.
            kept = {} if self.initial_a is None else {_ORIGIN: state.get(_ORIGIN, theta)}
            value, updates = jax.value_and_grad(lambda t: objective(predict(t | kept, x), y))(theta)
            initial = _INITIAL in state
            rates = first if initial else later
            memory, sign = {}, -1.0
            if optimizer is not None:
                z = {k: _times_power(theta[k], n, c + d[k], 1.0) for k, (_, c) in rates.items()}
                before = state[_OPTIMIZER] if _OPTIMIZER in state else optimizer.init(z)
                updates = {k: _times_power(g, n, d[k], 1.0) for k, g in updates.items()}
                updates, after = optimizer.update(updates, before, z)
                memory, sign = {_OPTIMIZER: after}, 1.0
            new = {}
            for name, (rate, power) in rates.items():
                update = _times_power(updates[name], n, -power - d[name], sign * rate)
                lost = shrink.get(name, 0) if initial else 0
                if lost == math.inf:
                    new[name] = update
                else:
                    new[name] = _times_power(theta[name], n, -_exact(lost), 1.0) + update
            return new | memory | kept, value

        return step

    def _check_first(self, model: Model, optimizer: "optax.GradientTransformation") -> None:
        """Rates of a first step make up for small gradients: refused where these do not matter."""
        own = self._powers(model, "first") != self._powers(model, "c")
        if own and degree(optimizer, model) != 1:
            raise ValueError(
                f"{self.name or 'the parameterization'} has learning rates of its own in the first "
                "step, large ones for gradients that vanish with the width, and the updates of "
                "this optimizer are not proportional to the gradients. Take one that treats all "
                "steps alike, such as naive_ip or ip_non_centered, or write your own step "
                "(docs/optimizers.md)"
            )

    def _relative(self, n: int) -> float:
        return n if self.reference == 1 else n / self.reference

    def _rates(self, model: Model, which: str, lr: Factors) -> dict[str, tuple[float, Fraction]]:
        """Base learning rate and exponent of every parameter; a bias has its layer's base rate."""
        rates = self._per_layer("learning rates", lr, model)
        for rate in rates:
            arguments.scalar("lr", rate)
        rates += tuple(rates[l - 1] for l in model.biased)
        powers = self._powers(model, which)
        return {k: (rate, power) for rate, (k, power) in zip(rates, powers.items(), strict=True)}

    def _powers(self, model: Model, which: str) -> dict[str, Fraction]:
        """The exponent of every parameter, in the order of `model.shapes`."""
        weights = biases = self.exponents(which, model)
        if self.biases is not None and which == "d":  # derivatives have the order of the weights'
            a, own = self.exponents("a", model), self.biases.exponents("a", model)
            biases = tuple(d - i + j for d, i, j in zip(weights, a, own, strict=True))
        elif self.biases is not None:
            biases = self.biases.exponents(which, model)
        powers = (*weights, *(biases[l - 1] for l in model.biased))
        return dict(zip(model.shapes(1), powers, strict=True))


def _exact(value: Any) -> Fraction:
    if isinstance(value, (int, Fraction)):
        return Fraction(value)
    fraction = Fraction(value).limit_denominator(1000)
    if abs(float(fraction) - float(value)) > 1e-9:
        raise WidthError(
            f"The exponent {value} is not a rational number with denominator up to 1000.",
            advice="Exponents of the width are exact: use for instance -0.5 or Fraction(2, 3).",
        )
    return fraction


def _times_power(value: Any, n: float, power: Fraction, factor: float) -> Any:
    """`factor * n**power * value`, without the multiplication where the product is 1."""
    if power:
        factor = factor * n ** float(power)
    return value if power == 0 and factor == 1.0 else factor * value
