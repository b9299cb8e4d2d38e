"""Random parameters: declared once, sampled at any width.

``tp.normal((n, n), std=n**-0.5)`` declares; ``tp.sample(theta, key, width=...)`` gives ordinary
arrays at an integer width and limit values at ``tp.inf`` and ``tp.Deferred(n)``.
"""

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from fractions import Fraction
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from tplimit import arguments
from tplimit.algebra import expansion
from tplimit.arguments import Deferred, inf
from tplimit.caching.store import kept
from tplimit.declare.initialisers import declarations
from tplimit.declare.joined import put_together
from tplimit.declare.parameters import Parameter, is_parameter
from tplimit.declare.widths import Scale, Width, as_scale
from tplimit.errors import LimitError, LimitWarning, WidthError, warn
from tplimit.gaussian import deferred, kinds, noise
from tplimit.gaussian.bank import Bank
from tplimit.gaussian.deferred import Law
from tplimit.interpreter.context import Context
from tplimit.matrices import matrices
from tplimit.matrices.parts import Matrix
from tplimit.matrices.scaled_gaussian import ScaledGaussian
from tplimit.program.equations import Aval
from tplimit.transforms import sharding
from tplimit.transforms.effort import compiled
from tplimit.transforms.opaque import LimitValue, Lineage, Revealed
from tplimit.values.exponents import EXACT_ZERO, NEVER, Dim, Exponents, Size
from tplimit.values.parity import EVEN, Marginal, Parity
from tplimit.values.tensors import Matrices, Tensor, tensor, with_parity

_SALT = 0x7470_6C69
#: Numbers of keys beside those of the leaves, which have their places.
_BANK, _NOISE, _ROWS = 2**31 - 3, 2**31 - 2, 2**31 - 1

#: New directions below this share of a row's second moment are dropped in the limit.
RANK_TOLERANCE = 1e-5


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
    pair_samples: int | None = None,
) -> Any:
    """Parameters at a width.

    Args:
        theta: pytree of declared parameters, other leaves being passed through; or a function of
            an integer that makes parameters at this width, for ``tp.declare``.
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
        pair_samples: particles ``K`` per common width over which functions of pairs are averaged
            (Adam and its kin on matrices between widths), by default all. An array of pairs then
            takes ``8 M K`` bytes instead of ``4 M^2``. A divisor of ``samples``; with Sobol'
            points a power of two that is at least ``samples / 16`` keeps them balanced. With one
            term only.

    Returns: the same pytree with arrays (integer widths) or opaque limit values.

    Raises:
        WidthError: ``width`` is no width, undeclared ratios, sizes that are no whole numbers, or
            particles that cannot be divided evenly among the devices.
        TypeError: an argument is of another kind: ``key`` is no random key, ``samples`` no integer,
            ``mesh`` no mesh.
        ValueError: an argument is out of range: an array of keys, an unknown kind of noise or
            initial output, less than two samples, a rank tolerance outside of [0, 1), or other
            than 1, 2 or 3 terms.

    Warns:
        LimitWarning: Sobol' noise with ``samples`` that are no power of two. It works; the points
            are balanced less well, which costs up to a third of the precision.

    Example:
        >>> import jax, tplimit as tp
        >>> n = tp.Width("n")
        >>> tp.sample({"v": tp.normal((n,))}, jax.random.key(0), width=8)["v"].shape
        (8,)
    """
    theta = declarations(theta)
    return drawn(
        theta,
        arguments.key(key),
        width=width_of(theta, width),
        samples=arguments.samples(samples),
        noise=kinds.named(noise),
        rank_tolerance=arguments.rank_tolerance(rank_tolerance),
        mesh=arguments.mesh(mesh),
        terms=arguments.terms(terms),
        init_output=arguments.init_output(init_output),
        pair_samples=arguments.pair_samples(pair_samples, terms),
    )


def drawn(
    theta: Any,
    key: jax.Array,
    *,
    width: Any,
    samples: int,
    noise: str,
    rank_tolerance: float | None,
    mesh: Mesh | None,
    terms: int,
    init_output: str,
    pair_samples: int | None = None,
) -> Any:
    """``sample`` with arguments that are checked; several keys give as many replicates of limit
    values."""
    leaves, tree = jax.tree.flatten(theta, is_leaf=is_parameter)
    if is_limit(width):
        law = law_of(width, noise, rank_tolerance)
        n = width.n if isinstance(width, Deferred) else samples
        _warn_of_samples(law, n)
        mesh = None if mesh is None else sharding.for_particles(mesh, n)
        dtype = np.dtype(jnp.result_type(float))
        # A network of finite width is what it is, without any expansion.
        kept = 1 if law.exact else terms
        # Central-limit terms are drawn with all particles.
        thinned = pair_samples is not None and pair_samples < n and not law.exact and kept == 1
        few = pair_samples if thinned else None
        if few is not None and n % few:
            raise ValueError(
                f"pair_samples={few} does not divide samples={n}: pass a power of two of both"
            )
        how = Draw(law, n, dtype, mesh, kept, init_output == "sample", few)
        values = _limit_values(leaves, key, how)
    else:
        sizes, key = _sizes(width, _widths(leaves)), jax.random.fold_in(key, _SALT)
        values = [
            _dense(leaf, jax.random.fold_in(key, i), sizes) if is_parameter(leaf) else leaf
            for i, leaf in zip(_first_tied(leaves), leaves, strict=True)
        ]
    out = jax.tree.unflatten(tree, values)
    return out if is_limit(width) else put_together(out)


def is_limit(width: Any) -> bool:
    """Whether what is sampled at a width are limit values, not ordinary arrays."""
    return isinstance(width, Deferred) or width == inf


def width_of(theta: Any, width: Any) -> Any:
    """A width that the declarations in a tree can be sampled at.

    Raises:
        WidthError: it is none, ratios are not declared, or sizes are no whole numbers.
    """
    parameters = [leaf for leaf in jax.tree.leaves(theta) if is_parameter(leaf)]
    widths = _widths(parameters)
    width = arguments.width(width, widths)
    if is_limit(width):
        _check_ratios(widths)
    else:
        sizes = _sizes(width, widths)
        for parameter in parameters:
            _shape(parameter, sizes)
    return width


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
        return dict(width)
    return {name: Size(w.ratio).at(width) for name, w in widths.items()}


def _shape(parameter: Parameter, sizes: Mapping[str, int]) -> tuple[int, ...]:
    shape = []
    for dim in parameter.shape:
        length = as_scale(dim).at(sizes)
        if abs(length - round(length)) > 1e-9 * max(length, 1):
            raise WidthError(
                f"An axis of length {dim} has length {length} at {dict(sizes)}, which is no whole "
                "number."
            )
        shape.append(round(length))
    return tuple(shape)


def _dense(parameter: Parameter, key: jax.Array, sizes: Mapping[str, int]) -> jax.Array:
    dtype, shape = jnp.result_type(float), _shape(parameter, sizes)
    spread, location = (
        jnp.asarray(scale.at(sizes), dtype) for scale in (parameter.spread, parameter.location)
    )
    return location + spread * parameter.draw(key, shape, dtype)


def _dims(parameter: Parameter) -> tuple[Dim, ...]:
    dims: list[Dim] = []
    for dim in parameter.shape:
        scale = as_scale(dim)
        coefficient, power = scale.as_power_of_n()
        if power == 0:
            dims.append(round(coefficient))
        else:
            name = "*".join(sorted(width.name for width in scale.widths))
            dims.append(Size(Fraction(coefficient).limit_denominator(10**6), name=name))
    return tuple(dims)


def law_of(width: Any, kind: str, tolerance: float | None) -> Law:
    """How noise is drawn at a width, from the arguments of ``sample``."""
    exact = isinstance(width, Deferred)
    eps = float(jnp.finfo(jnp.result_type(float)).eps)
    # Directions made of round-off would be amplified: with 50 eps, training that converges fails
    # after some tens of steps.
    smallest = (1000 * eps) ** 2
    default = smallest if exact else RANK_TOLERANCE
    # At finite width the noise is pseudo-random, whatever is asked for in the limit.
    kind = "random" if exact else kind
    tolerance = default if tolerance is None else max(tolerance, smallest)
    return Law(exact, tolerance, kind)


def _warn_of_samples(law: Law, n: int) -> None:
    concern = kinds.KINDS[law.kind].concern(n)
    if concern is not None:
        warn(LimitWarning(concern))


class Draw(NamedTuple):
    """How limit values are drawn (see ``Bank``)."""

    law: Law
    n: int
    dtype: np.dtype
    mesh: Mesh | None = None
    terms: int = 1
    fluctuating: bool = True
    pair_samples: int | None = None


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
            values, bank = _Sampler(key, how, len(declared)).draw(declared)
        return sharding.constrained(how.mesh, (values, replace(bank, mesh=how.mesh)))

    def draw_all(keys: jax.Array) -> tuple[list[Any], Bank]:
        return jax.vmap(draw)(keys) if keys.ndim else draw(keys)

    rows = sum(math.prod(d for d in _dims(p) if isinstance(d, int)) for p in declared if p)
    return kept(
        "sampler",
        lambda: compiled(draw_all, rows * how.n, whole=how.mesh is not None),
        declared,
        how,
    )


def _folded(key: jax.Array, numbers: Sequence[int]) -> list[jax.Array]:
    """``fold_in`` of several numbers, one loop in a compiled program."""
    keys = jax.vmap(functools.partial(jax.random.fold_in, key))(np.asarray(numbers, np.uint32))
    return [keys[i] for i in range(len(numbers))]


def _first_tied(leaves: Sequence[Any]) -> list[int]:
    """The place of the first leaf that each one is the same array as, mostly its own."""
    first: dict[int, int] = {}
    ties = [leaf.tied if is_parameter(leaf) else None for leaf in leaves]
    return [i if tie is None else first.setdefault(tie, i) for i, tie in enumerate(ties)]


def _aval(parameter: Parameter) -> Aval:
    return Aval(_dims(parameter), np.dtype(jnp.result_type(float)))


class _Sampler:
    """Draws limit values: vectors as particles, matrices as empty stores."""

    def __init__(self, key: jax.Array, how: Draw, leaves: int) -> None:
        names = [*range(leaves), _BANK, _NOISE, _ROWS]
        self.keys = dict(zip(names, _folded(key, names), strict=True))
        self.how = how
        self.law, self.n, self.dtype = how.law, how.n, how.dtype
        self.exact = self.law.exact
        self.stores: list[deferred.Store] = []
        self.store_spaces: list[tuple[int, int]] = []
        self.store_sources: list[tuple[frozenset[int], frozenset[int]]] = []
        self.anchors: list[jax.Array] = []
        self.anchor_spaces: list[int] = []
        self.spaces = 0
        self.initial = 0
        self.ctx = Context(Bank(n=self.n, law=self.law, terms=how.terms))

    def draw(self, leaves: Sequence[Parameter | None]) -> tuple[list[Any], Bank]:
        """Values of the parameters (None where there is none), and their bank."""
        first = _first_tied(leaves)
        own = [leaf if first[i] == i else None for i, leaf in enumerate(leaves)]
        gaussians = self._joint_rows(own)
        drawn = [
            None if leaf is None else self._value(leaf, i, gaussians.get(i))
            for i, leaf in enumerate(own)
        ]
        values = [drawn[i] for i in first]
        lengths = {s.X.shape[1] for s in self.stores} | {s.Y.shape[1] for s in self.stores}
        bank = Bank(
            stores=tuple(self.stores),
            anchors=tuple(self.anchors),
            noise=self._noise(*sorted(lengths)),
            store_spaces=tuple(self.store_spaces),
            store_sources=tuple(self.store_sources),
            anchor_spaces=tuple(self.anchor_spaces),
            key=self.keys[_BANK],
            initial=self.initial,
            spaces=self.spaces,
            n=self.n,
            law=self.law,
            terms=self.how.terms,
            fluctuating=self.how.fluctuating,
            pair_samples=self.how.pair_samples,
        )
        return values, bank

    def _joint_rows(self, leaves: Sequence[Parameter | None]) -> dict[int, jax.Array]:
        """Rows of all Gaussian vectors of one length, matched jointly in the limit."""
        by_length: dict[int, list[tuple[int, int]]] = {}
        for i, leaf in enumerate(leaves):
            exactly = self.exact and leaf is not None and leaf.law == "orthogonal"
            if leaf is not None and leaf.entries.of_normal is not None and not exactly:
                dims = _dims(leaf)
                sizes = [d for d in dims if isinstance(d, Size)]
                if len(sizes) == 1:
                    count = math.prod(d for d in dims if not isinstance(d, Size))
                    by_length.setdefault(self.ctx.size(sizes[0]), []).append((i, count))
        rows: dict[int, jax.Array] = {}
        for length, members in by_length.items():
            total = sum(count for _, count in members)
            joint = self._stream(length, total).rows(jnp.asarray(0), total, length, self.dtype)
            if not self.exact:
                joint = noise.matched(joint)
            start = 0
            for i, count in members:
                rows[i] = joint[start : start + count]
                start += count
        return rows

    def _stream(self, length: int, rows: int) -> kinds.Stream:
        """Noise of initial vectors of one length; rows of all lengths have their own numbers."""
        key = jax.random.fold_in(self.keys[_ROWS], length)
        first, self.initial = self.initial, self.initial + rows
        return kinds.Stream(key, self._noise(length).with_room(self.initial), first)

    def _noise(self, *lengths: int) -> kinds.Noise:
        return kinds.KINDS[self.law.kind].of(self.keys[_NOISE], lengths)

    def _space(self) -> int:
        self.spaces += 1
        return self.spaces - 1

    def _scaled(self, scale: Scale) -> Tensor:
        c, p = self.ctx.scale(*scale.as_power_of_n())
        if c == 0:
            return tensor(jnp.zeros((), self.dtype), Exponents(NEVER))
        return tensor(jnp.asarray(c, self.dtype), Exponents(p))

    def _value(self, leaf: Parameter, place: int, rows: Any) -> Any:
        aval, key = _aval(leaf), self.keys[place]
        axes = aval.width_axes
        if len(axes) > 2:
            raise WidthError("A parameter may have at most two width axes.")
        if leaf.law == "orthogonal" and len(axes) == 1 and self.how.terms > 1:
            raise LimitError(
                "Orthonormal rows or columns beside a width have a limit in one term only.",
                advice="Use terms=1, or independent entries: tp.normal(shape, std=n**-0.5).",
            )
        if len(axes) == 2:
            return self._matrices(leaf, aval, key)
        shape = self.ctx.shape(aval.shape)
        spread, location = self._scaled(leaf.spread), self._scaled(leaf.location)
        axis = axes[0] if axes else None
        space = None if axis is None else self._space()
        if rows is not None and axis is not None:
            finite = [d for i, d in enumerate(shape) if i != axis]
            assert leaf.entries.of_normal is not None
            rows = leaf.entries.of_normal(rows)
            drawn = jnp.moveaxis(rows.reshape(*finite, shape[axis]), -1, axis)
        else:
            drawn = leaf.draw(key, shape, self.dtype)
            if axis is not None and leaf.law != "full":
                rows = jnp.moveaxis(drawn, axis, -1).reshape(-1, shape[axis])
        if rows is not None and not self.exact and space is not None:
            self._anchor(rows, space)
        return self._affine(leaf, drawn, spread, location, axis, space)

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
        drawn: jax.Array,
        spread: Tensor,
        location: Tensor,
        axis: int | None,
        space: int | None,
    ) -> Tensor:
        """``location + spread * drawn`` with exponents; what is no kept term becomes remainder."""
        parts = []
        if not spread.vanishes:
            law = leaf.entries
            random = tensor(spread.coefficient * drawn, spread.exponents, EXACT_ZERO, axis, space)
            sources = frozenset(() if space is None else (space,))
            odd, unknown = (sources, frozenset()) if law.symmetric else (frozenset(), sources)
            entry = Marginal(law.order, not law.smooth, law.heavy, law.positive)
            parts.append(with_parity(random, Parity(odd, unknown, law.smooth, entry)))
        if not location.vanishes or not parts:
            constant = jnp.broadcast_to(location.coefficient, drawn.shape)
            same = tensor(constant, location.exponents, EXACT_ZERO, axis, space)
            parts.append(with_parity(same, EVEN))
        return expansion.total(self.ctx, parts)

    def _matrices(self, leaf: Parameter, aval: Aval, key: jax.Array) -> Matrices:
        first, second = aval.width_axes
        rows, columns = aval.shape[first], aval.shape[second]
        assert isinstance(rows, Size) and isinstance(columns, Size)
        if self.exact and leaf.law not in ("normal", "orthogonal", "full"):
            raise LimitError(
                f"A {leaf.law} matrix is not Gaussian, so it cannot be deferred exactly.",
                advice="Use tp.normal with the same standard deviation, or an integer width.",
            )
        shape = tuple(int(d) for d in aval.shape if not isinstance(d, Size))
        items = np.empty(shape, dtype=object)
        std, mean = self._scaled(leaf.std), self._scaled(leaf.mean)
        keys = _folded(key, range(items.size))
        common: dict[tuple[int, ...], tuple[int, int]] = {}
        for index, own in zip(np.ndindex(shape), keys, strict=True):
            spaces = self._space(), self._space()
            matrix = Matrix(rows, columns, *spaces)
            if not std.vanishes:
                gaussian = ScaledGaussian(std, len(self.stores))
                self._store(own, rows, columns, spaces, leaf.law)
                # Of a stack signs may be flipped in all its matrices at once, too: so heads that
                # are put side by side keep a symmetry. The same for stacks inside of it.
                stacks = [index[:k] for k in range(len(index))]
                for stack in stacks:
                    common.setdefault(stack, (self._space(), self._space()))
                sides = zip(spaces, *(common[stack] for stack in stacks), strict=True)
                out, into = map(frozenset, sides)
                self.store_sources.append((out, into))
                matrix = Matrix(rows, columns, *spaces, (gaussian,))
            if not mean.vanishes:
                offset = matrices.constant(self.ctx, rows, columns, mean)
                matrix = matrices.sum_of(self.ctx, matrix, offset)
            items[index] = matrix
        return Matrices(items, (first, second))

    def _store(
        self, key: jax.Array, rows: Size, columns: Size, spaces: tuple[int, int], law: str
    ) -> None:
        sizes = self.ctx.size(rows), self.ctx.size(columns)
        several, orthogonal = self.how.terms > 1, law == "orthogonal"
        self.stores.append(deferred.empty_store(key, *sizes, 0, self.dtype, several, orthogonal))
        self.store_spaces.append(spaces)
