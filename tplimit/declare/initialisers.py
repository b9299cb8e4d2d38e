"""Declarations from a module's own initialiser: ``tp.declare``.

It is traced at a few integer widths, where every leaf is an array of independent entries of one law
(``walk.py``). Shapes and scales are fitted over the widths as those of any program are.
"""

import functools
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from types import FunctionType, MethodType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from tplimit import _jax
from tplimit.declare.bits import law_of
from tplimit.declare.entries import LAWS, alike
from tplimit.declare.joined import SideBySide
from tplimit.declare.parameters import (
    Parameter,
    in_parts,
    is_parameter,
    long_side,
    orthogonal,
)
from tplimit.declare.walk import PARTS, Entries, Opaque, Run, run
from tplimit.declare.widths import Scale, Sum, Width
from tplimit.errors import LimitWarning, UnsupportedOperationError, WidthError, warn
from tplimit.program.beside import offset
from tplimit.program.powers import Fitted, Misfit, fit_constant, fit_dim
from tplimit.values.exponents import Size, rational

#: How far a scale may be off by its leading power, at the smallest of these widths.
_LEADS = 0.01

#: How far an inverse variance may be off a straight line: round-off.
_AFFINE = 1e-5

#: The common width takes these values: numbers of heads or gates divide them.
_WIDTHS = (1920, 3840, 5760, 13440)


def declare(make: Callable[..., Any], *widths: Width) -> Any:
    """Declarations of the parameters that an initialiser makes, for every width.

    Shapes, laws, means and standard deviations are found by tracing ``make`` at a few integer
    widths: nothing is sampled, and no array of that size is made. Laws are exact: those of all
    ``jax.nn.initializers``, and of flax, haiku and equinox, whose entries are independent.

    Args:
        make: from integers, one for each width, to a pytree of parameters: a module's ``init``.
            Random keys are written inside.
        widths: the widths; by default one of the name ``"n"``.

    Returns:
        The same tree with a declaration for every array of floating-point numbers that is random or
        has a width: for ``tp.sample``, ``tp.train``, ``tp.compare`` and the kernels. Leaves that
        are one draw are tied. Other leaves (counters, keys, small arrays, functions) are as
        ``make`` returns them.

    Raises:
        UnsupportedOperationError: a leaf is not made of independent entries of one law with finite
            moments, nor an orthogonal matrix; or two leaves are drawn with one key.
        WidthError: a shape or scale follows no power of the width, or ``make`` fails at one.

    Warns:
        LimitWarning: a mean or standard deviation is no pure power of the width, as
            ``(2 / (784 + n))**0.5``: it is declared by its leading one, and networks of finite
            width are not those of ``make``.

    Example:
        >>> import jax, tplimit as tp
        >>> def make(n):
        ...     kernel = jax.nn.initializers.lecun_normal()
        ...     return {"kernel": kernel(jax.random.key(0), (n, n)), "bias": jax.numpy.zeros(n)}
        >>> theta = tp.declare(make)
        >>> theta["kernel"].law, str(theta["kernel"].std), str(theta["bias"].shape[0])
        ('truncated normal', 'n**-1/2', 'n')
    """
    widths = widths or (Width("n"),)
    for width in widths:
        if not isinstance(width, Width):
            raise TypeError(f"widths consist of tp.Width, not {width!r}")
    if len({width.name for width in widths}) < len(widths):
        raise WidthError("Two of the widths have one name.")
    if len(widths) > 1 and any(width.declared is None for width in widths[1:]):
        raise WidthError(
            "The limit depends on the ratios of the widths, which are not declared.",
            advice=f'Declare them, for instance tp.Width("{widths[1].name}", ratio=2).',
        )
    common = [run(make, [width.ratio * n for width in widths]) for n in _WIDTHS]
    # Which of several widths an axis has is told by doubling one at a time.
    base = [width.ratio * _WIDTHS[0] for width in widths]
    doubled = [
        run(make, [size * (2 if i == j else 1) for j, size in enumerate(base)])
        for i in range(len(widths) if len(widths) > 1 else 0)
    ]
    first, everyone = common[0], (*common, *doubled)
    if any(one.paths != first.paths for one in everyone):
        raise WidthError("make returns other trees at other widths.")
    leaf = _Leaf(widths)
    leaves = [
        leaf.declared(path, [one.values[i] for one in common], [one.values[i] for one in doubled])
        for i, path in enumerate(first.paths)
    ]
    leaves = _tied(first, leaves)
    everything = list(first.others)
    for place, declared in zip(first.places, leaves, strict=True):
        everything[place] = declared
    return jax.tree.unflatten(first.tree, everything)


def declarations(theta: Any) -> Any:
    """A tree of declarations, or those of what a function makes (``declare``)."""
    makes = isinstance(theta, (FunctionType, MethodType, functools.partial))
    return declare(theta) if makes else theta


# --- draws


def _tied(made: Run, leaves: Sequence[Any]) -> list[Any]:
    """Declarations of which those of the same draw are tied.

    Raises:
        UnsupportedOperationError: two leaves are made of one draw, or of draws with one key, and
            are neither the same array nor parts without an entry in common.
    """
    users: dict[str, list[int]] = {}
    for i, (leaf, value) in enumerate(zip(leaves, made.values, strict=True)):
        declared = is_parameter(leaf) or isinstance(leaf, SideBySide)
        for key in {source.key for source in value.sources} if declared else ():
            users.setdefault(key, []).append(i)
    out = list(leaves)
    for places in users.values():
        entries = [made.values[i] for i in places]
        if _parts(entries):
            continue
        for place, one in zip(places, entries, strict=True):
            if (one.chain, one.place) != (entries[0].chain, entries[0].place):
                raise UnsupportedOperationError(
                    f"The leaves {made.paths[places[0]]} and {made.paths[place]} of make(n) are "
                    "drawn with one random key, and are not the same array.",
                    advice="Split the key, so that each parameter has its own: "
                    "jax.random.split(key).",
                )
        number = next(_TIES)
        for place in places:
            if isinstance(out[place], SideBySide):
                raise UnsupportedOperationError(
                    f"The leaf {made.paths[place]} of make(n), with an axis of the form k + n, is "
                    "the same draw as another one."
                )
            out[place] = replace(out[place], tied=number)
    return out


def _parts(entries: Sequence[Entries]) -> bool:
    """Whether arrays are parts of the same draw that have no entry in common."""
    cuts = [(one.chain, _cut(one.place)) for one in entries]
    return all(
        a is not None
        and b is not None
        and a[0] == b[0]
        and _disjoint(a[1], b[1])
        and first.sources == second.sources
        for (first, a), (second, b) in itertools.combinations(cuts, 2)
    )


def _cut(place: Any) -> tuple[Any, Any] | None:
    """What was done to a draw before a part of it was taken, and the part; None of all of it."""
    for number, step in enumerate(place):
        if step[0] in PARTS:
            return place[:number], step[1]
    return None


def _disjoint(one: Any, other: Any) -> bool:
    return any(a[1] <= b[0] or b[1] <= a[0] for a, b in zip(one, other, strict=True))


_TIES = itertools.count()


# --- leaves


@dataclass
class _Leaf:
    """Declarations from values at several widths."""

    widths: Sequence[Width]

    def declared(self, path: str, values: Sequence[Any], doubled: Sequence[Any]) -> Any:
        """A declaration, or the array itself where it has neither widths nor random numbers."""
        opaque = next((value for value in values if isinstance(value, Opaque)), None)
        if opaque is not None:
            raise UnsupportedOperationError(
                f"The leaf {path} of make(n) is not made of independent entries of one law: "
                f"{opaque.why}.",
                advice="Declare it by hand, with tp.normal(shape, std) for instance, in the place "
                "of what tp.declare cannot read.",
            )
        if not all(isinstance(value, Entries) for value in values):
            return self._array(path, values)
        lengths = zip(*(value.shape for value in values), strict=True)
        try:
            dims = tuple(map(_fitted_dim, lengths))
        except (Misfit, ValueError) as error:
            raise WidthError(f"The shape of the leaf {path} of make(n): {error}.") from error
        one = values[0]
        if jnp.issubdtype(one.dtype, jnp.floating) and (one.random or _grows(dims)):
            shapes = [value.shape for value in (one, *doubled)]
            shape = [self._dim(path, *along) for along in zip(dims, *shapes, strict=True)]
            return self._parameter(path, tuple(shape), values, doubled)
        if one.random or _grows(dims):
            raise UnsupportedOperationError(
                f"The leaf {path} of make(n) is an array of {one.dtype} that is random or has a "
                "width."
            )
        return self._array(path, [np.full(v.shape, v.chain.value, v.dtype) for v in values])

    def _array(self, path: str, values: Sequence[Any]) -> Any:
        """An array that is the same at all widths."""
        first = values[0]
        if not all(_same(first, other) for other in values):
            raise UnsupportedOperationError(
                f"The leaf {path} of make(n) is an array of different numbers that depends on the "
                "width.",
                advice="Make it inside of the program, or declare it by hand.",
            )
        return first if isinstance(first, jax.Array) else jnp.asarray(first)

    def _dim(self, path: str, dim: Any, *lengths: int) -> Any:
        """An axis: an integer, a width or a multiple of one. Lengths: as it is, and with each of
        several widths doubled."""
        if isinstance(dim, _Both):
            rest = self._dim(path, dim.width, *(length - dim.first for length in lengths))
            return dim.first + rest
        if not isinstance(dim, Size):
            return dim
        moved = [i for i, length in enumerate(lengths[1:]) if length != lengths[0]] or [0]
        if dim.power != 1 or len(moved) > 1:
            raise WidthError(
                f"An axis of the leaf {path} of make(n) has length {lengths[0]} at "
                f"n={_WIDTHS[0]}, which is no multiple of one width.",
                advice="Axes are integers or multiples of a width.",
            )
        width = self.widths[moved[0]]
        multiple = dim.ratio / width.ratio
        return width if multiple == 1 else float(multiple) * width

    def _parameter(
        self, path: str, shape: tuple[Any, ...], values: Sequence[Any], doubled: Sequence[Any]
    ) -> Any:
        laws = [law_of(value.chain) for value in values]
        name, quantiles = laws[0].name, laws[0].quantiles
        trouble = next((law.trouble for law in laws if law.trouble), "")
        if trouble:
            raise UnsupportedOperationError(
                f"The entries of the leaf {path} of make(n) {trouble}.",
                advice="Tensor programs are about entries with enough moments; declare another "
                "law by hand.",
            )
        if any(law.name != name or not alike(law.quantiles, quantiles) for law in laws):
            raise UnsupportedOperationError(
                f"The law of the leaf {path} of make(n) changes with the width."
            )
        sums = [dim for dim in shape if isinstance(dim, Sum)]
        if len(sums) > 1 or (sums and name == "orthogonal"):
            raise WidthError(
                f"The leaf {path} of make(n) has the shape {', '.join(map(str, shape))}: of a "
                "matrix that is not orthogonal one axis may be an integer and a width side by side."
            )
        others = [law_of(value.chain) for value in doubled]
        mean = self._scale(path, [x.mean for x in laws], [x.mean for x in others])
        std = self._scale(path, [x.std for x in laws], [x.std for x in others])
        if quantiles is not None:
            scale = self._scale(path, [x.scale for x in laws], [x.scale for x in others])
            shift = self._scale(path, [x.shift for x in laws], [x.shift for x in others])
            return in_parts(Parameter(shape, name, scale, mean, quantiles, shift))
        if name == "orthogonal":
            return orthogonal(shape, std * long_side(shape) ** 0.5)
        spread = LAWS[name].std
        return in_parts(Parameter(shape, name, std * (1 / spread) if spread else std, mean))

    def _leading(self, path: str, values: Sequence[float]) -> tuple[float, Fraction]:
        """``c`` and ``p`` of the leading power ``c n^p`` of a scale."""
        try:
            numbers = [np.asarray(value, np.float32) for value in values]
            fitted: Fitted = fit_constant(numbers, _WIDTHS)
        except Misfit as error:
            # Numbers of inputs and outputs add up, and are an inverse variance: (784 + n) / 2.
            inverse = np.asarray(values) ** -2.0
            slope, offset = np.polyfit(_WIDTHS, inverse, 1)
            off = np.max(np.abs(slope * np.asarray(_WIDTHS) + offset - inverse) / inverse)
            if not (off < _AFFINE and slope * _WIDTHS[0] > _AFFINE * inverse[0]):
                raise WidthError(
                    f"A scale of the leaf {path} of make(n) follows no power of the width: {error}."
                ) from error
            return float(np.copysign(slope**-0.5, values[-1])), Fraction(-1, 2)
        return float(fitted.coefficient), Fraction(fitted.exponents.value)

    def _scale(self, path: str, values: Sequence[float], doubled: Sequence[float]) -> Scale:
        """``c * n**p`` from its values, with the powers of each of several widths."""
        if not any(values):
            return Scale(0.0)
        c, total = self._leading(path, values)
        powers = [rational(round(24 * np.log2(abs(x / values[0]))) / 24) for x in doubled]
        if not powers or sum(powers) != total:
            powers = [total] + [Fraction(0)] * (len(self.widths) - 1)
        scale = Scale(1.0)
        for width, power in zip(self.widths, powers, strict=True):
            scale = scale * width**power
            c /= float(width.ratio) ** float(power)
        scale = scale * _neat(c)
        sizes = {width.name: int(width.ratio * _WIDTHS[0]) for width in self.widths}
        lead = scale.at(sizes)
        off = [abs(lead / values[0] - 1)]
        for width, value in zip(self.widths if doubled else (), doubled, strict=True):
            off.append(abs(scale.at(sizes | {width.name: 2 * sizes[width.name]}) / value - 1))
        if max(off) > _LEADS:
            warn(
                LimitWarning(
                    f"A scale of the leaf {path} of make(n) is {values[0]:.3g} at n={_WIDTHS[0]}, "
                    f"and {lead:.3g} by its leading power of n, by which it is declared: networks "
                    "of finite width differ by as much from those that make returns."
                )
            )
        return scale


class _Both(NamedTuple):
    """A length ``k + n``."""

    first: int
    width: Size


def _fitted_dim(lengths: Sequence[int]) -> Any:
    try:
        return fit_dim(lengths, _WIDTHS)
    except Misfit:
        first = offset(lengths, _WIDTHS)
        if not first:
            raise
        width = fit_dim([length - first for length in lengths], _WIDTHS)
        assert isinstance(width, Size)
        return _Both(first, width)


def _same(first: Any, other: Any) -> bool:
    if isinstance(first, Entries) or isinstance(other, Entries) or first.shape != other.shape:
        return False
    if _jax.is_key(first):
        first, other = jax.random.key_data(first), jax.random.key_data(other)
    return np.array_equal(np.asarray(first), np.asarray(other), equal_nan=True)


def _neat(c: float) -> float:
    """A coefficient without round-off where its square is a simple number."""
    square = Fraction(c * c).limit_denominator(10**4)
    exact = float(square) ** 0.5
    return float(np.copysign(exact, c)) if abs(exact - abs(c)) <= 4e-7 * abs(c) else c


def _grows(dims: Sequence[Any]) -> bool:
    return any(isinstance(dim, (Size, _Both)) for dim in dims)
