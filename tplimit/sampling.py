"""Random parameters: declared once, sampled at any width.

``tp.normal((n, n), std=n**-0.5)`` declares; ``tp.sample(theta, key, width=...)`` gives ordinary
arrays at an integer width and limit values at ``tp.inf`` and ``tp.Deferred(n)``.
"""

import math
import operator
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from tplimit import expansion, matrices, sharding
from tplimit._jax import random_key
from tplimit.bank import Bank
from tplimit.errors import LimitError, LimitWarning, WidthError
from tplimit.gaussian import deferred, noise, sobol
from tplimit.gaussian.deferred import Law
from tplimit.interpret import Context
from tplimit.leaves import LimitValue, Lineage, Revealed
from tplimit.parameters import Parameter, is_parameter
from tplimit.parity import EVEN, Parity
from tplimit.store import kept
from tplimit.trace import Aval
from tplimit.values import Gaussian, Matrices, Matrix, Tensor, tensor, with_parity
from tplimit.widths import NEVER, NONE, Dim, Exponents, Scale, Size, Width, as_scale

#: The infinite width.
inf = math.inf

_SALT = 0x7470_6C69

#: New directions below this share of a row's second moment are dropped in the limit.
RANK_TOLERANCE = 1e-5


@dataclass(frozen=True)
class Deferred:
    """A finite width ``n``, exact in law, whose random matrices are never formed.

    A network of width ``n`` costs ``O(n r)`` per product, with ``r`` the number of vectors its
    matrices have met, instead of ``O(n^2)``.
    """

    n: int

    def __post_init__(self) -> None:
        if not isinstance(self.n, (int, np.integer)) or self.n <= 0:
            raise WidthError(f"tp.Deferred needs a positive whole number, not {self.n!r}.")


def sample(
    theta: Any,
    key: jax.Array,
    *,
    width: Any,
    samples: int = 2**14,
    noise: str = "sobol",
    rank_tolerance: float | None = None,
    mesh: Mesh | None = None,
    terms: int = 1,
    init_output: str = "sample",
) -> Any:
    """Parameters at a width.

    Args:
        theta: pytree of declared parameters; other leaves are passed through.
        key: random key; equal keys give equal draws.
        width: an integer, ``{name: integer}``, ``tp.Deferred(n)`` or ``tp.inf``.
        samples: Monte Carlo particles per common width ``n`` (``tp.inf`` only).
        noise: how particles are drawn at ``tp.inf``: ``"sobol"``, randomised Sobol' points, or
            ``"random"``, pseudo-random numbers. Both are moment-matched.
        rank_tolerance: share of a vector's second moment below which a new direction of a
            random matrix is not revealed (default: 1e-5 at ``tp.inf``, round-off at Deferred).
            0 stands for round-off, ``(1000 eps)^2``.
        mesh: devices that share the particles, a ``jax.sharding.Mesh`` (limit values only).
        terms: how many terms of the expansion in the width are kept of every value at ``tp.inf``.
            With 1 a program whose leading terms vanish, such as one in a kernel regime, gives a
            ``CancellationError``; 2 or 3 evaluate it, at several times the cost.
        init_output: with several terms, ``"sample"`` draws the central-limit terms of sums over a
            width, so that the initial function is one random function, or ``"zero"`` leaves them
            out, so that it is 0.

    Returns: the same pytree with arrays (integer widths) or opaque limit values.

    Raises:
        WidthError: undeclared ratios, sizes that are no whole numbers, or particles that cannot be
            divided evenly among the devices.
        LimitError: an unknown kind of noise or initial output, a rank tolerance outside of [0, 1),
            or less than one term.
        TypeError: ``key`` is no random key, or ``mesh`` no mesh.

    Warns:
        LimitWarning: Sobol' noise with ``samples`` that are no power of two. It works; the points
            are balanced less well, which costs up to a third of the precision.

    Example:
        >>> import jax, tplimit as tp
        >>> n = tp.Width("n")
        >>> tp.sample({"v": tp.normal((n,))}, jax.random.key(0), width=8)["v"].shape
        (8,)
    """
    key = random_key(key)
    leaves, tree = jax.tree.flatten(theta, is_leaf=is_parameter)
    widths, law = _widths(leaves), law_of(width, noise, rank_tolerance)
    if isinstance(width, Deferred) or width == inf:
        _check_ratios(widths)
        n = _count(width, samples)
        _warn_of_balance(law, n)
        mesh = None if mesh is None else sharding.for_particles(mesh, n)
        dtype = np.dtype(jnp.result_type(float))
        draw = Draw(law, n, dtype, mesh, *series_options(law, terms, init_output))
        sampled = _limit_values(leaves, key, draw)
    else:
        sizes, key = _sizes(width, widths), jax.random.fold_in(key, _SALT)
        sampled = [
            _dense(leaf, jax.random.fold_in(key, i), sizes) if is_parameter(leaf) else leaf
            for i, leaf in enumerate(leaves)
        ]
    return jax.tree.unflatten(tree, sampled)


def _widths(leaves: Sequence[Any]) -> dict[str, Width]:
    found: dict[str, Width] = {}
    for leaf in leaves:
        if not isinstance(leaf, Parameter):
            continue
        scales = [as_scale(dim) for dim in leaf.shape] + [leaf.scale, leaf.mean]
        for width in (w for scale in scales for w in scale.widths):
            if found.setdefault(width.name, width).ratio != width.ratio:
                raise WidthError(f"The width {width.name!r} is declared with two ratios.")
    return found


def _check_ratios(widths: Mapping[str, Width]) -> None:
    undeclared = [name for name, width in widths.items() if width.declared is None]
    if len(undeclared) > 1:
        names = ", ".join(sorted(undeclared))
        raise WidthError(
            f"The limit depends on the ratios of the widths {names}, which are not declared.",
            advice=f'Declare them, for instance tp.Width("{sorted(undeclared)[1]}", ratio=2).',
        )


def _sizes(width: Any, widths: Mapping[str, Width]) -> dict[str, int]:
    if isinstance(width, Mapping):
        missing = sorted(set(widths) - set(width))
        if missing:
            raise WidthError(f"No size is given for the widths {', '.join(missing)}.")
        return {name: int(size) for name, size in width.items()}
    if not isinstance(width, (int, np.integer)) or isinstance(width, bool) or width <= 0:
        raise WidthError(
            f"width={width!r} is not a width.",
            advice="Use a positive integer, {name: integer}, tp.Deferred(n) or tp.inf.",
        )
    return {name: Size(w.ratio).at(int(width)) for name, w in widths.items()}


def _dense(parameter: Parameter, key: jax.Array, sizes: Mapping[str, int]) -> jax.Array:
    shape = []
    for dim in parameter.shape:
        length = as_scale(dim).at(sizes)
        if abs(length - round(length)) > 1e-9 * max(length, 1):
            raise WidthError(f"An axis has length {length}, which is no whole number.")
        shape.append(round(length))
    dtype = jnp.result_type(float)
    std, mean = parameter.std.at(sizes), parameter.mean.at(sizes)
    return jnp.asarray(mean, dtype) + jnp.asarray(std, dtype) * parameter.draw(
        key, tuple(shape), dtype
    )


def _dims(parameter: Parameter) -> tuple[Dim, ...]:
    dims: list[Dim] = []
    for dim in parameter.shape:
        scale = as_scale(dim)
        coefficient, power = scale.on_ray()
        if power == 0:
            dims.append(round(coefficient))
        elif power == 1:
            name = "*".join(sorted(width.name for width in scale.widths))
            dims.append(Size(Fraction(coefficient).limit_denominator(10**6), name=name))
        else:
            raise WidthError(f"An axis of length n^{power} is not a width.")
    return tuple(dims)


def law_of(width: Any, kind: str, tolerance: float | None) -> Law:
    """How noise is drawn at a width, from the arguments of ``sample``.

    Raises:
        LimitError: they are out of range, whatever the width.
    """
    if kind not in noise.NOISE_KINDS:
        raise LimitError(
            f"noise={kind!r} is not known.",
            advice=f"Use one of: {', '.join(map(repr, noise.NOISE_KINDS))}.",
        )
    if tolerance is not None and not 0 <= tolerance < 1:
        raise LimitError(
            f"rank_tolerance={tolerance} is no share of a second moment.",
            advice="Use a number from 0 (round-off) to below 1, for instance 1e-6.",
        )
    exact = isinstance(width, Deferred)
    eps = float(jnp.finfo(jnp.result_type(float)).eps)
    # Directions made of round-off would be amplified: with 50 eps, training that converges fails
    # after some tens of steps.
    smallest = (1000 * eps) ** 2
    default = smallest if exact else RANK_TOLERANCE
    # At finite width the noise is pseudo-random, whatever is asked for in the limit.
    kind = "random" if exact else kind
    tolerance = default if tolerance is None else max(float(tolerance), smallest)
    return Law(exact, tolerance, kind)


def _count(width: Any, samples: int) -> int:
    """Coordinates per common width: particles in the limit."""
    n = int(width.n) if isinstance(width, Deferred) else operator.index(samples)
    if n < 2:
        raise WidthError(f"{n} samples are too few.")
    return n


def _warn_of_balance(law: Law, n: int) -> None:
    if law.kind == "sobol" and n & (n - 1):
        lower = 1 << (n.bit_length() - 1)
        warnings.warn(
            LimitWarning(
                f"samples={n} is no power of two: Sobol' points are then balanced less well. "
                f'Use {lower} or {2 * lower}, or noise="random".'
            ),
            stacklevel=3,
        )


class Draw(NamedTuple):
    """How limit values are drawn (see ``Bank``)."""

    law: Law
    n: int
    dtype: np.dtype
    mesh: Mesh | None = None
    terms: int = 1
    fluctuating: bool = True


def series_options(law: Law, terms: int, init_output: str) -> tuple[int, bool]:
    """Terms to keep, and whether sums over a width fluctuate, from the arguments of ``sample``.

    Raises:
        LimitError: they are out of range, whatever the width.
    """
    if init_output not in ("sample", "zero"):
        raise LimitError(
            f"init_output={init_output!r} is not known.", advice="Use 'sample' or 'zero'."
        )
    if isinstance(terms, bool) or not isinstance(terms, (int, np.integer)) or not 1 <= terms <= 3:
        raise LimitError(f"terms={terms!r} is no number of terms.", advice="Use 1, 2 or 3.")
    # A network of finite width is what it is, without any expansion.
    return (1 if law.exact else int(terms)), init_output == "sample"


def _limit_values(leaves: Sequence[Any], key: jax.Array, how: Draw) -> list[Any]:
    declared = tuple(leaf if is_parameter(leaf) else None for leaf in leaves)
    values, bank = _sampler(declared, how)(key)
    revealed = Revealed(bank, Lineage())
    return [
        leaf if parameter is None else LimitValue(value, _aval(parameter), revealed)
        for leaf, parameter, value in zip(leaves, declared, values, strict=True)
    ]


def _sampler(
    declared: tuple[Parameter | None, ...], how: Draw
) -> Callable[[jax.Array], tuple[list[Any], Bank]]:
    """The compiled draw of these parameters."""

    def draw(key: jax.Array) -> tuple[list[Any], Bank]:
        # Apart from keys that callers split off the same key: split(key)[i] is fold_in(key, i).
        key = jax.random.fold_in(key, _SALT)
        with noise.divided(how.mesh is not None):
            values, bank = _Sampler(key, how).draw(declared)
        return sharding.constrained(how.mesh, (values, replace(bank, mesh=how.mesh)))

    def draw_all(keys: jax.Array) -> tuple[list[Any], Bank]:
        return jax.vmap(draw)(keys) if keys.ndim else draw(keys)

    return kept("sampler", lambda: jax.jit(draw_all), declared, how)


def _aval(parameter: Parameter) -> Aval:
    return Aval(_dims(parameter), np.dtype(jnp.result_type(float)))


class _Sampler:
    """Draws limit values: vectors as particles, matrices as empty stores."""

    def __init__(self, key: jax.Array, how: Draw) -> None:
        self.key, self.how = key, how
        self.law, self.n, self.dtype = how.law, how.n, how.dtype
        self.exact = self.law.exact
        self.stores: list[deferred.Store] = []
        self.store_spaces: list[tuple[int, int]] = []
        self.anchors: list[jax.Array] = []
        self.anchor_spaces: list[int] = []
        self.spaces = 0
        self.initial = 0
        self.orders: dict[int, jax.Array] = {}
        self.ctx = Context(Bank(n=self.n, law=self.law, terms=how.terms))

    def draw(self, leaves: Sequence[Parameter | None]) -> tuple[list[Any], Bank]:
        """Values of the parameters (None where there is none), and their bank."""
        gaussians = self._joint_rows(leaves)
        values = [
            None if leaf is None else self._value(leaf, i, gaussians.get(i))
            for i, leaf in enumerate(leaves)
        ]
        lengths = {s.X.shape[1] for s in self.stores} | {s.Y.shape[1] for s in self.stores}
        if self.law.kind != "sobol":
            lengths = set()
        bank = Bank(
            stores=tuple(self.stores),
            anchors=tuple(self.anchors),
            orders=tuple(self._order(length) for length in sorted(lengths)),
            store_spaces=tuple(self.store_spaces),
            anchor_spaces=tuple(self.anchor_spaces),
            lengths=tuple(sorted(lengths)),
            key=jax.random.fold_in(self.key, 2**31 - 3),
            initial=self.initial,
            spaces=self.spaces,
            n=self.n,
            law=self.law,
            terms=self.how.terms,
            fluctuating=self.how.fluctuating,
        )
        return values, bank

    def _joint_rows(self, leaves: Sequence[Parameter | None]) -> dict[int, jax.Array]:
        """Rows of all Gaussian vectors of one length, matched jointly in the limit."""
        by_length: dict[int, list[tuple[int, int]]] = {}
        for i, leaf in enumerate(leaves):
            if leaf is not None and leaf.law == "normal":
                dims = _dims(leaf)
                sizes = [d for d in dims if isinstance(d, Size)]
                if len(sizes) == 1:
                    count = math.prod(d for d in dims if not isinstance(d, Size))
                    by_length.setdefault(self.ctx.size(sizes[0]), []).append((i, count))
        rows: dict[int, jax.Array] = {}
        for length, members in by_length.items():
            total = sum(count for _, count in members)
            source = self._source(length, total)
            if self.exact:
                joint = source.rows(jnp.asarray(0), total, length, self.dtype)
            else:
                joint = noise.joint_rows(source, total, length, self.dtype)
            start = 0
            for i, count in members:
                rows[i] = joint[start : start + count]
                start += count
        return rows

    def _source(self, length: int, rows: int) -> noise.Source:
        """Noise of initial vectors of one length; all have Sobol' coordinates of their own."""
        key = jax.random.fold_in(jax.random.fold_in(self.key, 2**31 - 1), length)
        if self.law.kind != "sobol":
            return noise.Source(key)
        directions = sobol.directions(self.initial + rows, sobol.digits(length))
        points = sobol.Points(jnp.asarray(directions), self._order(length))
        first, self.initial = self.initial, self.initial + rows
        return noise.Source(key, points, first)

    def _order(self, length: int) -> jax.Array:
        if length not in self.orders:
            key = jax.random.fold_in(jax.random.fold_in(self.key, 2**31 - 2), length)
            self.orders[length] = sobol.order(key, length)
        return self.orders[length]

    def _space(self) -> int:
        self.spaces += 1
        return self.spaces - 1

    def _scaled(self, scale: Scale) -> Tensor:
        c, p = self.ctx.scale(*scale.on_ray())
        if c == 0:
            return tensor(jnp.zeros((), self.dtype), Exponents(NEVER))
        return tensor(jnp.asarray(c, self.dtype), Exponents(p))

    def _value(self, leaf: Parameter, place: int, rows: Any) -> Any:
        aval, key = _aval(leaf), jax.random.fold_in(self.key, place)
        axes = aval.width_axes
        if len(axes) > 2:
            raise WidthError("A parameter may have at most two width axes.")
        if len(axes) == 2:
            return self._matrices(leaf, aval, key)
        shape = self.ctx.shape(aval.shape)
        std, mean = self._scaled(leaf.std), self._scaled(leaf.mean)
        axis = axes[0] if axes else None
        space = None if axis is None else self._space()
        if rows is not None and axis is not None:
            finite = [d for i, d in enumerate(shape) if i != axis]
            standard = jnp.moveaxis(rows.reshape(*finite, shape[axis]), -1, axis)
        else:
            standard = leaf.draw(key, shape, self.dtype)
            if axis is not None and leaf.law != "full":
                rows = jnp.moveaxis(standard, axis, -1).reshape(-1, shape[axis])
        if rows is not None and not self.exact and space is not None:
            self._anchor(rows, space)
        return self._affine(leaf, standard, std, mean, axis, space)

    def _anchor(self, rows: jax.Array, space: int) -> None:
        """Remember an orthonormal basis of initial vectors, for matching new noise to it."""
        if rows.shape[0] + 1 > noise.MATCHING_SHARE * rows.shape[1]:
            return
        centred = rows - jnp.mean(rows, axis=1, keepdims=True)
        self.anchors.append(noise.orthonormalise(centred, jnp.ones(rows.shape[0], bool)))
        self.anchor_spaces.append(space)

    def _affine(
        self,
        leaf: Parameter,
        standard: jax.Array,
        std: Tensor,
        mean: Tensor,
        axis: int | None,
        space: int | None,
    ) -> Tensor:
        """``mean + std * standard`` with exponents; what is no kept term becomes remainder."""
        parts = []
        if not std.vanishes:
            drawn = tensor(std.coefficient * standard, std.exponents, NONE, axis, space)
            # All laws are symmetric.
            odd = frozenset(() if space is None else (space,))
            parts.append(with_parity(drawn, Parity(odd, fresh=leaf.law != "rademacher")))
        if not mean.vanishes or not parts:
            constant = jnp.broadcast_to(mean.coefficient, standard.shape)
            same = tensor(constant, mean.exponents, NONE, axis, space)
            parts.append(with_parity(same, EVEN))
        return expansion.total(self.ctx, parts)

    def _matrices(self, leaf: Parameter, aval: Aval, key: jax.Array) -> Matrices:
        first, second = aval.width_axes
        rows, columns = aval.shape[first], aval.shape[second]
        assert isinstance(rows, Size) and isinstance(columns, Size)
        if self.exact and leaf.law in ("uniform", "rademacher"):
            raise LimitError(
                f"A {leaf.law} matrix is not Gaussian, so it cannot be deferred exactly.",
                advice="Use tp.normal with the same standard deviation, or an integer width.",
            )
        shape = tuple(int(d) for d in aval.shape if not isinstance(d, Size))
        items = np.empty(shape, dtype=object)
        std, mean = self._scaled(leaf.std), self._scaled(leaf.mean)
        for number, index in enumerate(np.ndindex(shape)):
            spaces = self._space(), self._space()
            matrix = Matrix(rows, columns, *spaces)
            if not std.vanishes:
                gaussian = Gaussian(std, len(self.stores))
                self._store(jax.random.fold_in(key, number), rows, columns, spaces)
                matrix = Matrix(rows, columns, *spaces, gaussians=(gaussian,))
            if not mean.vanishes:
                offset = matrices.constant(self.ctx, rows, columns, mean)
                matrix = matrices.sum_of(self.ctx, matrix, offset)
            items[index] = matrix
        return Matrices(items, (first, second))

    def _store(self, key: jax.Array, rows: Size, columns: Size, spaces: tuple[int, int]) -> None:
        sizes = self.ctx.size(rows), self.ctx.size(columns)
        self.stores.append(deferred.empty_store(key, *sizes, 0, self.dtype, self.how.terms > 1))
        self.store_spaces.append(spaces)
