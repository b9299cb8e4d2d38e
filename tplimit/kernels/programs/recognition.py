"""Closed-form kernels read off a program: dense layers and pointwise functions of Gaussian vectors.

The program is interpreted once on values of four kinds: numbers, declared parameters, Gaussian
vectors with their kernels (``K``, covariance of one coordinate over the points, and ``Θ``, inner
products of gradients), and pointwise functions of such a vector. With fresh weights of standard
deviation ``s`` and a factor ``c`` from the program, a product with ``x`` gives

    K' = c² s² n E[x xᵀ],     Θ' = c² n E[x xᵀ] + c² s² n Θ_x,

``E[x xᵀ] = E[φ(u) φ(v)]`` and ``Θ_x = Θ E[φ'(u) φ'(v)]`` by the dual activation of ``x = φ(h)``.
Powers of the width are counted along. Whatever is not of this form, a weight used twice first of
all, is not recognised, and said so with its line.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from fractions import Fraction
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from tplimit._jax import primitives as p
from tplimit.arguments import inf
from tplimit.declare.parameters import Parameter, is_parameter
from tplimit.errors import DivergenceError, UnsupportedOperationError
from tplimit.kernels.duals.activations import Dual, dual, name_of
from tplimit.kernels.programs.fields import (
    ONE,
    Field,
    Gaussian,
    Number,
    Power,
    Value,
    Weights,
    folded,
    scaled,
)
from tplimit.kernels.programs.positions import (
    MOST_POINTS,
    moved,
    numbers_of,
    only_moved,
    over_places,
    settled,
)
from tplimit.kernels.recursions.network import distinct
from tplimit.program import traits
from tplimit.program.equations import Constant, Equation, Program, Slot
from tplimit.program.traits import Identity, Linear, is_rounding, kind_of
from tplimit.transforms.compilation import Evaluator
from tplimit.transforms.opaque import aval_of
from tplimit.transforms.sampling import sample
from tplimit.values.exponents import NEVER, Size


class NotRecognised(Exception):
    """The program is no composition of dense layers and pointwise functions."""

    def __init__(self, reason: str, equation: Equation | None = None) -> None:
        super().__init__(reason)
        self.error = UnsupportedOperationError(
            f"No closed form of the kernel was recognised: {reason}",
            operation=None if equation is None else str(equation),
            location=None if equation is None else equation.location,
            advice='method="particles" takes any program that tp.limit takes.',
        )


def recognised(apply: Callable[..., Any], theta: Any, x1: Any, x2: Any, which: str) -> Array:
    """The kernel ``which`` at all pairs of inputs.

    Raises:
        NotRecognised: with the reason and the line.
        DivergenceError: the kernel grows with the width.
    """
    if not isinstance(x1, jax.Array) or not isinstance(x2, jax.Array) or x1.ndim < 1:
        raise NotRecognised("the inputs are no single array.")
    # Points that coincide are one: their correlation stays 1 through all layers.
    places, numbers = distinct([x1, x2])
    rows, columns = numbers[: len(x1)], numbers[len(x1) :]
    points = jnp.concatenate([x1, x2])[places]
    program = program_of(apply, theta, points)
    (out,) = _run(program, theta, points)
    if not isinstance(out, Field) or out.function is not None:
        raise NotRecognised("the output is no Gaussian vector.")
    out = settled(folded(out))
    rest = out.shape if out.axis is None else out.shape[: out.axis] + out.shape[out.axis + 1 :]
    if rest[:1] != (len(points),) or any(dim != 1 for dim in rest[1:]):
        raise NotRecognised("the points are not along the first axis of the output.")
    kernel = out.gaussian.K if which == "nngp" else out.gaussian.Theta
    if kernel.exponent > 0:
        raise DivergenceError(
            f"The kernel grows like n^{kernel.exponent}.",
            advice="Give parameters a standard deviation of 1 and the network the factors n^(-1/2) "
            "(NTK parameterization), or rescale the output.",
        )
    if kernel.exponent < 0:
        return jnp.zeros((len(x1), len(x2)), kernel.array.dtype)
    return kernel.array[np.ix_(rows, columns)]


def program_of(apply: Callable[..., Any], theta: Any, x: Any) -> Program:
    """The program of ``apply`` at declared parameters."""
    # A small sample has the avals of the parameters, and nothing else of it is used.
    sampled = sample(theta, jax.random.key(0), width=inf, samples=8, noise="random")
    leaves, tree = jax.tree.flatten(((sampled, x), {}))
    program, _ = Evaluator(apply).program(tree, [aval_of(leaf) for leaf in leaves], leaves)
    return program


def _run(program: Program, theta: Any, x: Any) -> list[Value]:
    declared = jax.tree.leaves(theta, is_leaf=is_parameter)
    known: dict[Slot, Value] = {}
    for place, (slot, leaf) in enumerate(
        zip(program.inputs, [*declared, *jax.tree.leaves(x)], strict=True)
    ):
        if isinstance(leaf, Parameter):
            known[slot] = Weights(leaf, place, tuple(range(len(leaf.shape))))
        else:
            known[slot] = Number(jnp.asarray(leaf))
    walk = _Walk()

    def read(operand: Any) -> Value:
        return _constant(operand) if isinstance(operand, Constant) else known[operand]

    for equation in program.equations:
        values = [read(operand) for operand in equation.inputs]
        for slot in equation.outputs:
            known[slot] = walk.apply(equation, values)
    return [read(output) for output in program.outputs]


def _is_layout(e: Equation) -> bool:
    """Whether an equation gives the same numbers in another shape or precision."""
    kind = kind_of(e.primitive)
    if isinstance(kind, Identity) or (isinstance(kind, Linear) and kind.in_order):
        return True
    return e.primitive is p.convert_element_type_p and not is_rounding(e)


def _constant(constant: Constant) -> Number:
    fitted = constant.fitted
    if fitted.logs is not None:
        raise NotRecognised("a number is a logarithm of the width.")
    levels = [level for level in fitted.exponents.levels() if level != NEVER]
    if constant.aval.width_axes or len(levels) > 1:
        raise NotRecognised("a constant array depends on the width.")
    return Number(jnp.asarray(fitted.coefficient), levels[0] if levels else Fraction(0))


class _Walk:
    """Interprets equations; each parameter may be used once."""

    def __init__(self) -> None:
        self.used: set[int] = set()

    def apply(self, e: Equation, values: Sequence[Value]) -> Value:
        if len(e.outputs) > 1:
            raise NotRecognised("an operation with several results.", e)
        if all(isinstance(value, Number) for value in values):
            return self.numbers(e, values)
        if e.primitive is p.dot_general_p:
            return self.product(e, *values)
        if _is_layout(e):
            return self.reshaped(e, values[0])
        if e.primitive is p.slice_p and _coordinates_alone(e, values[0]):
            return self.sliced(e, values[0])
        if any(isinstance(value, Weights) for value in values):
            return self.with_weights(e, values)
        found = moved(e, values)
        if found is not None:
            whole = only_moved(found)
            return found if whole else settled(folded(found))
        return self.pointwise(e, values)

    def numbers(self, e: Equation, values: Sequence[Any]) -> Number:
        """Data and constants: plain JAX; powers of the width only as factors."""
        exponents = [value.exponent for value in values]
        if any(isinstance(dim, Size) for aval in e.out_avals for dim in aval.shape) or not e.plain:
            raise NotRecognised("a number along a width.", e)
        out = e.primitive.bind(*[jnp.asarray(v.array) for v in values], **e.plain)
        if not any(exponents):
            return Number(out)
        if e.primitive is p.mul_p:
            return Number(out, sum(exponents))
        if e.primitive is p.div_p:
            return Number(out, exponents[0] - exponents[1])
        kind = kind_of(e.primitive)
        if isinstance(kind, traits.Power):
            return Number(out, exponents[0] * (kind.exponent or Fraction(e.params["y"])))
        if _is_layout(e):
            return Number(out, exponents[0])
        raise NotRecognised("a function of the width.", e)

    def reshaped(self, e: Equation, value: Value) -> Value:
        """Axes of length one come and go; parameters are repeated along points."""
        old, new = e.in_avals[0].shape, e.out_avals[0].shape
        if isinstance(value, Weights):
            if e.primitive is p.broadcast_in_dim_p:
                places: list[int | None] = [None] * len(new)
                for axis, place in zip(value.axes, e.params["broadcast_dimensions"], strict=True):
                    places[place] = axis
                return replace(value, axes=tuple(places))
            kept = _matched(old, new)
            if kept is None:
                raise NotRecognised("a parameter is reshaped.", e)
            return replace(value, axes=tuple(None if i is None else value.axes[i] for i in kept))
        assert isinstance(value, Field)
        if old == new:
            return value
        kept = _matched(old, new) if value.points is None else None
        if kept is None:
            found = moved(e, [value])
            if found is None:
                raise NotRecognised("points are moved.", e)
            return found
        # A single coordinate may lose its axis.
        axis = kept.index(value.axis) if value.axis in kept else None
        return replace(value, axis=axis, shape=new)

    def sliced(self, e: Equation, value: Value) -> Value:
        """Some of the coordinates, all points."""
        old, new = e.in_avals[0].shape, e.out_avals[0].shape
        changed = [i for i in range(len(old)) if old[i] != new[i]]
        if not isinstance(value, Field) or changed not in ([], [value.axis]):
            raise NotRecognised("a choice of points or of parameters.", e)
        return replace(value, shape=new)

    def with_weights(self, e: Equation, values: Sequence[Value]) -> Value:
        """Factors and biases."""
        (weights,) = [v for v in values if isinstance(v, Weights)] if _one(values) else [None]
        others = [v for v in values if not isinstance(v, Weights)]
        if weights is None or len(others) > 1:
            raise NotRecognised("parameters are combined with each other.", e)
        if e.primitive is p.neg_p:
            return replace(weights, factor=scaled(weights.factor, Number(-1.0)))
        if e.primitive is p.transpose_p:
            axes = tuple(weights.axes[i] for i in e.params["permutation"])
            return replace(weights, axes=axes)
        if not others:
            raise NotRecognised("parameters are used otherwise than in products and biases.", e)
        (other,) = others
        if isinstance(other, Number) and np.size(other.array) == 1:
            number = Number(jnp.reshape(other.array, ()), other.exponent)
            if e.primitive is p.mul_p:
                return replace(weights, factor=scaled(weights.factor, number))
            if e.primitive is p.div_p and values[1] is other:
                inverse = Number(1 / number.array, -number.exponent)
                return replace(weights, factor=scaled(weights.factor, inverse))
        if isinstance(other, Field) and e.primitive in (p.add_p, p.sub_p):
            return self.biased(e, other, weights)
        raise NotRecognised("parameters are used otherwise than in products and biases.", e)

    def biased(self, e: Equation, given: Field, weights: Weights) -> Field:
        """``h + b``: one fresh number for each coordinate, the same at all points."""
        if given.function is not None:
            raise NotRecognised("a bias is added to what is not Gaussian.", e)
        places = [place for place, axis in enumerate(weights.axes) if axis is not None]
        if places != ([] if given.axis is None else [given.axis]):
            raise NotRecognised("a bias along the points.", e)
        self.use(e, weights)
        given = settled(folded(given))
        gaussian, (std, power), c = given.gaussian, _std(weights.parameter), weights.factor
        one = Power(jnp.square(c.array) * jnp.ones_like(gaussian.K.array), 2 * c.exponent)
        K = gaussian.K + one.times(std**2, 2 * power) if std else gaussian.K
        parts = gaussian.parts | {weights.place}
        return replace(given, gaussian=Gaussian(K, gaussian.Theta + one, parts))

    def product(self, e: Equation, a: Value, b: Value) -> Field:
        """A dense layer: fresh weights contracted with data or with a field."""
        (over, batch) = e.params["dimension_numbers"]
        first = isinstance(a, Weights)
        weights, x = (a, b) if first else (b, a)
        ours, theirs = (over[0], over[1]) if first else (over[1], over[0])
        if not isinstance(weights, Weights) or isinstance(x, Weights):
            raise NotRecognised("a product of two vectors.", e)
        left = [axis for axis in range(len(weights.axes)) if axis not in ours]
        if batch[0] or None in weights.axes or len(left) > 1:
            raise NotRecognised("a product other than that of a dense layer.", e)
        self.use(e, weights)
        shape_x = e.in_avals[1 if first else 0].shape
        out = e.out_avals[0].shape
        axis = None if not left else (0 if first else len(out) - 1)
        E, Theta_x, size = self.moments(e, x, theirs, shape_x)
        (std, power), c = _std(weights.parameter), weights.factor
        factor, lift = jnp.square(c.array) * size[0], 2 * c.exponent + size[1]
        K = E.times(factor * std**2, lift + 2 * power)
        Theta = E.times(factor, lift)
        if Theta_x is not None:
            Theta = Theta + Theta_x.times(factor * std**2, lift + 2 * power)
        gaussian = Gaussian(K, Theta, frozenset((weights.place,)))
        return Field(gaussian, None, None, axis, out)

    def moments(
        self, e: Equation, x: Value, over: Sequence[int], shape: tuple[Any, ...]
    ) -> tuple[Power, Power | None, tuple[float, int]]:
        """Second moments of a coordinate, summed over the places of a patch, their tangents, and
        how many coordinates, ``c n^p``."""
        points = np.prod([int(d) for i, d in enumerate(shape) if i not in over], dtype=int)
        if points > MOST_POINTS:
            raise NotRecognised("a kernel over so many points.", e)
        if isinstance(x, Number):
            array = jnp.asarray(x.array)
            rows = jnp.moveaxis(array, over, range(-len(over), 0)).reshape(points, -1)
            met = jnp.matmul(rows, rows.T, precision="highest")
            return Power(met, 2 * x.exponent), None, (1.0, 0)
        assert isinstance(x, Field)
        axis = x.axis
        if axis is None or axis not in over:
            raise NotRecognised("a product along the points.", e)
        x, size = folded(x), shape[axis]
        count = (float(size.ratio), 1) if isinstance(size, Size) else (float(size), 0)
        K, Theta = self.of_one_coordinate(e, x)
        if x.points is None and len(over) == 1:
            return K, Theta, count
        numbers = np.expand_dims(numbers_of(x), axis)
        inside = numbers.ndim - 1 - np.arange(len(over), 0, -1)
        places = np.moveaxis(numbers, over, inside)
        places = places.reshape(points, -1, numbers.shape[-1])
        return over_places(K, places), over_places(Theta, places), count

    def of_one_coordinate(self, e: Equation, x: Field) -> tuple[Power, Power]:
        """Second moments of a coordinate at the points of the Gaussian vector, and tangents."""
        gaussian = x.gaussian
        if x.function is None:
            return gaussian.K, gaussian.Theta
        K = _bounded(e, gaussian.K)
        variances = jnp.diagonal(K)
        found: Dual = dual(x.name or x.function)
        inside = jnp.square(x.inner.array)
        value, slope = found.both(
            inside * K, inside * variances[:, None], inside * variances[None, :]
        )
        slope = inside * slope
        c, power = jnp.square(x.factor.array), 2 * x.factor.exponent
        return Power(c * value, power), gaussian.Theta.times(c * slope, power)

    def pointwise(self, e: Equation, values: Sequence[Value]) -> Field:
        """A function of one Gaussian vector, or a sum of independent ones."""
        fields = [value for value in values if isinstance(value, Field)]
        numbers = [value for value in values if isinstance(value, Number)]
        if any(np.size(number.array) != 1 for number in numbers):
            raise NotRecognised("a function that differs from point to point.", e)
        multiple = self.scaled(e, values, fields, numbers)
        if multiple is not None:
            return multiple
        if len({(one.axis, one.shape) for one in fields}) > 1:
            raise NotRecognised("vectors of different shapes are combined.", e)
        if len({(id(one.gaussian), id(one.points)) for one in fields}) > 1:
            return self.summed(e, fields)
        if any(one.exponent for one in [*numbers, *(x.factor for x in fields)]):
            raise NotRecognised("a function of the width.", e)
        if e.plain is None or not _is_pointwise(e):
            raise NotRecognised("no function of each coordinate by itself.", e)
        if not only_moved(fields[0]):
            raise NotRecognised("a function of what has been pooled or padded.", e)
        _bounded(e, fields[0].gaussian.K)
        function, name = _composed(e, values), _name(e, values)
        inner = ONE if name is None else fields[0].factor
        return replace(fields[0], function=function, name=name, inner=inner, factor=ONE)

    def scaled(
        self, e: Equation, values: Sequence[Value], fields: list[Field], numbers: list[Number]
    ) -> Field | None:
        """A vector times a number, of any power of the width."""
        if len(fields) != 1:
            return None
        (x,) = fields
        if e.primitive is p.neg_p:
            number = Number(-1.0)
        elif e.primitive is p.mul_p:
            number = numbers[0]
        elif e.primitive is p.div_p and values[0] is x:
            number = Number(1 / numbers[0].array, -numbers[0].exponent)
        else:
            return None
        number = Number(jnp.reshape(jnp.asarray(number.array), ()), number.exponent)
        multiple = replace(x, factor=scaled(x.factor, number))
        # A number alone leaves it a function of the same vector, as in where(h > 0, h, 0.1 * h).
        return folded(multiple) if number.exponent else multiple

    def summed(self, e: Equation, fields: list[Field]) -> Field:
        """A residual sum of independent Gaussian vectors."""
        if e.primitive not in (p.add_p, p.add_jaxvals_p, p.sub_p):
            raise NotRecognised("a function of two Gaussian vectors.", e)
        a, b = (settled(folded(one)).gaussian for one in fields)
        if any(one.function is not None for one in fields):
            raise NotRecognised("a sum of functions of different Gaussian vectors.", e)
        if a.parts & b.parts:
            raise NotRecognised("a sum of vectors that share a part.", e)
        total = Gaussian(a.K + b.K, a.Theta + b.Theta, a.parts | b.parts)
        return replace(fields[0], gaussian=total, factor=ONE, points=None)

    def use(self, e: Equation, weights: Weights) -> None:
        law = weights.parameter
        mean, _ = law.mean.as_power_of_n()
        if mean:
            raise NotRecognised("a parameter has a mean.", e)
        if weights.place in self.used:
            raise NotRecognised("a parameter is used twice (tied weights).", e)
        wide = sum(not isinstance(dim, int) for dim in law.shape)
        if law.tied is not None:
            raise NotRecognised("a parameter that is tied to another one.", e)
        if law.law not in ("normal", "full") and wide < 2:
            raise NotRecognised("a parameter that is not Gaussian, where no sum makes it so.", e)
        self.used.add(weights.place)


def _coordinates_alone(e: Equation, value: Value) -> bool:
    """Whether a slice leaves the points as they are."""
    old, new = e.in_avals[0].shape, e.out_avals[0].shape
    changed = [i for i in range(len(old)) if old[i] != new[i]]
    return not isinstance(value, Field) or changed in ([], [value.axis])


def _one(values: Sequence[Value]) -> bool:
    return sum(isinstance(value, Weights) for value in values) == 1


def _std(parameter: Parameter) -> tuple[float, Fraction]:
    """The standard deviation as ``c n^p``."""
    return parameter.std.as_power_of_n()


def _bounded(e: Equation, K: Power) -> Array:
    """The covariance of preactivations, which neither grow nor vanish."""
    if K.exponent != 0:
        raise NotRecognised(f"a nonlinearity of a vector of order n^{K.exponent / 2}.", e)
    return K.array


def _matched(old: tuple[Any, ...], new: tuple[Any, ...]) -> list[int | None] | None:
    """For each new axis the old one, None for a new one of length 1, if only those differ."""
    kept: list[int | None] = []
    left = list(range(len(old)))
    for dim in new:
        while left and old[left[0]] == 1 and dim != 1:
            left.pop(0)
        if left and old[left[0]] == dim:
            kept.append(left.pop(0))
        elif dim == 1:
            kept.append(None)
        else:
            return None
    return kept if all(old[i] == 1 for i in left) else None


def _is_pointwise(e: Equation) -> bool:
    shapes = {aval.shape for aval in e.in_avals if aval.shape}
    return shapes <= {e.out_avals[0].shape} and not e.primitive.multiple_results


def _name(e: Equation, values: Sequence[Value]) -> str | None:
    """Name of a known function of a Gaussian vector."""
    x = next(value for value in values if isinstance(value, Field))
    if x.function is not None:
        return None
    if e.primitive is p.max_p and any(
        isinstance(value, Number) and float(value.array) == 0 for value in values
    ):
        return "relu"
    return name_of(getattr(jax.lax, e.primitive.name, None))


def _composed(e: Equation, values: Sequence[Value]) -> Callable[[Any], Any]:
    """The operation after the functions that its operands are."""
    plain = e.plain

    def function(u: Any) -> Any:
        operands = []
        for value in values:
            if isinstance(value, Field):
                inner = u if value.function is None else value.function(u)
                operands.append(inner * jnp.asarray(value.factor.array, inner.dtype))
            else:
                array = jnp.reshape(jnp.asarray(value.array), ())  # type: ignore[union-attr]
                kind = array.dtype if not jnp.issubdtype(array.dtype, jnp.floating) else u.dtype
                operands.append(jnp.broadcast_to(array.astype(kind), jnp.shape(u)))
        return e.primitive.bind(*operands, **(plain or {}))

    return function
