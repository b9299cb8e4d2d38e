"""Declarations of random parameters: shapes of numbers and widths, and laws of the entries."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import jax

from tplimit import arguments
from tplimit.declare.entries import LAWS, EntryLaw, Quantiles, by_quantiles
from tplimit.declare.joined import SideBySide
from tplimit.declare.widths import Scale, Sum, Width, as_scale
from tplimit.errors import LimitError, WidthError


@dataclass(frozen=True, repr=False)
class Parameter:
    """A declared parameter. Made by ``tp.normal``, ``tp.truncated_normal``, ``tp.uniform``,
    ``tp.rademacher``, ``tp.orthogonal``, ``tp.full``, and by ``tp.declare``.

    Attributes:
        shape: integers and widths (or multiples of a width).
        law: name of the law of the entries.
        scale: standard deviation (normal), half-width (uniform), size (rademacher); what quantiles
            are multiplied by.
        mean: mean, or the value itself.
        quantiles: of a law that has no name of its own.
        shift: what is added to scaled quantiles.
        tied: declarations with the same number, in one tree, are one array.

    >>> import tplimit as tp
    >>> n = tp.Width("n")
    >>> tp.normal((n, n), std=n**-0.5)
    Parameter((n, n), normal, std n**-1/2)
    >>> tp.full((n,), 2)
    Parameter((n,), full, std 0, mean 2)
    """

    tplimit_parameter: ClassVar[bool] = True
    shape: tuple[Any, ...]
    law: str
    scale: Scale
    mean: Scale
    quantiles: Quantiles | None = None
    shift: Scale | None = None
    tied: int | None = None

    @property
    def __jax_array__(self) -> Any:
        raise LimitError(
            "A parameter that was only declared is used as an array.",
            advice="Sample it first: theta = tp.sample(theta, key, width=1024).",
        )

    def __repr__(self) -> str:
        """What a user looks at: shape, law, standard deviation, and a mean that is not zero."""
        axes = ", ".join(map(str, self.shape)) + ("," if len(self.shape) == 1 else "")
        mean = f", mean {self.mean}" if self.mean.coefficient else ""
        return f"Parameter(({axes}), {self.law}, std {self.std}{mean})"

    @property
    def std(self) -> Scale:
        """Standard deviation of the entries."""
        return self.scale * self.entries.std

    @property
    def entries(self) -> EntryLaw:
        """The law of the standardised entries."""
        return LAWS[self.law] if self.quantiles is None else by_quantiles(self.quantiles)

    @property
    def spread(self) -> Scale:
        """What is drawn is multiplied by it."""
        return self.std if self.quantiles is None else self.scale

    @property
    def location(self) -> Scale:
        """What is added then."""
        return self.mean if self.shift is None else self.shift

    def draw(self, key: jax.Array, shape: tuple[int, ...], dtype: Any) -> jax.Array:
        """Entries of spread 1 at location 0."""
        return self.entries.draw(key, shape, dtype)


def _declared(shape: Any, law: str, scale: Scale, mean: Scale) -> Any:
    given = shape if isinstance(shape, Sequence) and not isinstance(shape, str) else (shape,)
    return in_parts(Parameter(tuple(_dim(dim) for dim in given), law, scale, mean))


def in_parts(parameter: Parameter) -> Any:
    """A parameter, or where an axis has a length ``k + n`` its two parts along it.

    Raises:
        WidthError: there are two such axes, or it is an orthogonal matrix.
    """
    shape = parameter.shape
    axes = [axis for axis, dim in enumerate(shape) if isinstance(dim, Sum)]
    if not axes:
        return parameter
    if len(axes) > 1 or parameter.law == "orthogonal":
        what = "Two axes" if len(axes) > 1 else "An axis of an orthogonal matrix"
        raise WidthError(
            f"{what} of the form k + n: {', '.join(map(str, shape))}.",
            advice="Declare the parts of such a parameter by themselves.",
        )
    (axis,) = axes
    parts = [
        replace(parameter, shape=(*shape[:axis], part, *shape[axis + 1 :]))
        for part in shape[axis].parts
    ]
    return SideBySide(tuple(parts), axis)


def _dim(dim: Any) -> Any:
    """An axis of a declared shape: a positive integer, a width or a multiple of one."""
    wanted = "A shape consists of positive integers and widths or multiples of them, as in (3, n)."
    if isinstance(dim, (Width, Sum)):
        return dim
    if isinstance(dim, Scale):
        length, power = dim.as_power_of_n()
        if power not in (0, 1) or length <= 0 or (power == 0 and length % 1):
            raise WidthError(f"An axis of length {dim} is not a width.", advice=wanted)
        return dim
    try:
        return arguments.whole("an axis of shape", dim)
    except (TypeError, ValueError):
        raise WidthError(
            f"shape has an axis of length {arguments.shown(dim)}.", advice=wanted
        ) from None


def _spread(name: str, value: Any) -> Scale:
    """A standard deviation, or another scale that is not negative."""
    scale = as_scale(value, name)
    arguments.not_negative(name, scale.coefficient)
    return scale


def normal(shape: Any, std: Any = 1.0, mean: Any = 0.0) -> Parameter:
    """Independent Gaussian entries ``N(mean, std^2)``.

    Args:
        shape: mixes integers and widths, for instance ``(64, n)``, ``(n, 3 * n)``, ``(n,)``. One
            axis may be both side by side, ``(3 + n, 4 * n)``: it is declared as its two parts,
            which programs see as one array.
        std, mean: numbers or scales ``c * n**p``.

    Raises:
        WidthError: an axis of the shape is no positive integer and no multiple of a width.
        TypeError, ValueError: ``std`` or ``mean`` is no number, not finite, or ``std`` negative.

    Example:
        >>> import tplimit as tp
        >>> n = tp.Width("n")
        >>> W = tp.normal((n, n), std=n**-0.5)
    """
    return _declared(shape, "normal", _spread("std", std), as_scale(mean, "mean"))


def truncated_normal(shape: Any, std: Any = 1.0, mean: Any = 0.0) -> Parameter:
    """Independent entries of a normal law that is cut off at two of its standard deviations.

    ``std`` is the standard deviation of what is left, as initialisers called LeCun, Glorot or He
    normal have it. For matrices with two widths the limit is that of Gaussian entries.

    Example:
        >>> import tplimit as tp
        >>> n = tp.Width("n")
        >>> tp.truncated_normal((3, n), std=3**-0.5).law
        'truncated normal'
    """
    return _declared(shape, "truncated normal", _spread("std", std), as_scale(mean, "mean"))


def uniform(shape: Any, scale: Any = 1.0) -> Parameter:
    """Independent entries, uniform on ``[-scale, scale]``.

    For matrices with two widths the limit is that of Gaussian entries of the same variance
    (Golikov and Yang, *Non-Gaussian Tensor Programs*, 2022, Theorem 2).
    """
    return _declared(shape, "uniform", _spread("scale", scale), Scale(0.0))


def rademacher(shape: Any, scale: Any = 1.0) -> Parameter:
    """Independent entries ``+scale`` or ``-scale`` with equal probability.

    For matrices with two widths the limit is that of Gaussian entries of the same variance
    (Golikov and Yang, *Non-Gaussian Tensor Programs*, 2022, Theorem 2).
    """
    return _declared(shape, "rademacher", _spread("scale", scale), Scale(0.0))


def orthogonal(shape: Any, scale: Any = 1.0) -> Parameter:
    """``scale`` times a uniformly distributed (Haar) orthogonal matrix.

    Of shape ``(n, n)`` it keeps inner products, ``O^T O = scale^2 I``; of shape ``(k, n)`` or
    ``(n, k)``, with an integer ``k``, its ``k`` rows or columns are orthonormal. Leading axes of
    the shape are a stack of independent ones. Its entries have the standard deviation
    ``scale n^(-1/2)``.

    In the limit a Haar matrix is deferred like a Gaussian one: the image of a vector of which
    nothing is known is a Gaussian vector, but ``O^T (O x) = scale^2 x``, and images of several
    vectors have the inner products of these. Orthonormal rows are independent Gaussian ones.

    Raises:
        WidthError: fewer than two axes, or two that are different widths.

    Example:
        >>> import jax, jax.numpy as jnp, tplimit as tp
        >>> n = tp.Width("n")
        >>> theta = {"O": tp.orthogonal((n, n)), "x": tp.normal((n,))}
        >>> theta = tp.sample(theta, jax.random.key(0), width=tp.inf, samples=256)
        >>> back = lambda t: jnp.mean((t["O"].T @ (t["O"] @ t["x"])) * t["x"])
        >>> bool(abs(tp.limit(back)(theta) - 1) < 1e-5)
        True
    """
    parameter: Any = _declared(shape, "orthogonal", _spread("scale", scale), Scale(0.0))
    widths = [as_scale(side) for side in parameter.shape[-2:] if not isinstance(side, int)]
    if len(parameter.shape) < 2 or len(set(widths)) > 1:
        raise WidthError(
            f"An orthogonal matrix of shape {parameter.shape} is not supported.",
            advice="Its last two axes are one width twice, or a width and an integer.",
        )
    return replace(parameter, scale=parameter.scale * long_side(parameter.shape) ** -0.5)


def long_side(shape: tuple[Any, ...]) -> Scale:
    """The longer side of a matrix with one width at most."""
    widths = [as_scale(side) for side in shape[-2:] if not isinstance(side, int)]
    return widths[0] if widths else Scale(float(max(shape[-2:])))


def full(shape: Any, value: Any) -> Parameter:
    """Constant entries: a number or a scale ``c * n**p``."""
    return _declared(shape, "full", Scale(0.0), as_scale(value, "value"))


def is_parameter(leaf: Any) -> bool:
    return isinstance(leaf, Parameter)
