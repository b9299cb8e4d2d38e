"""A run before the run, on a few particles: what compilation has to know of a program.

The rules are run on arrays without numbers, which tells what spaces are one, how many rows are
asked of each matrix, and which sums the interpretation makes. Then the summands of these are
evaluated in double precision: for particles as they are, a few of them; for images of deferred
matrices a dense matrix stands in. A sum of which nothing is left but round-off cancels, whatever
the particles. Then terms of lower order lead, and other sums are made: so all is done again, until
nothing new is found.

Some numbers have no limit, such as the largest coordinate of a vector. But programs subtract it
before they take exponentials (softmax, logsumexp), and what they return is the same for any other
number: so it is tried with another one.
"""

import functools
import itertools
import math
import operator
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tplimit import _jax
from tplimit.errors import LimitError
from tplimit.gaussian.bank import Bank
from tplimit.gaussian.deferred import Store
from tplimit.interpreter.cancellation import GONE, HIDDEN, Name, Sums
from tplimit.interpreter.context import SEVERAL, Context, Decide, spaces_of
from tplimit.interpreter.ledger import Asked, generic
from tplimit.interpreter.loop import evaluate
from tplimit.interpreter.spaces import Spaces
from tplimit.matrices import placed
from tplimit.program import numerics
from tplimit.program.equations import Program
from tplimit.values.fields import COMMON, PAIRS, map_arrays
from tplimit.values.tensors import Matrices, Tensor, Value, knowing

#: Numbers without a limit as they are.
_NO_OFFSET = np.zeros(SEVERAL)

#: Particles of a rehearsal: so many that nothing holds for all of them by chance.
_PARTICLES = 64

#: What is left of a sum that cancels, relative to its summands, in double precision.
_ROUND_OFF = 1e-12

#: Draws of numbers that a cancellation has to hold for. In every one but the first all numbers are
#: others, so that nothing holds by the choice of the data: that one of two outputs is the larger.
_DRAWS = 12

#: How far numbers without a limit are moved: a little, and so far that decisions fall otherwise.
_OFFSETS = (0.7, 20.0, -20.0)

#: The largest difference that this makes to what does not depend on them, relative to a number and
#: to the largest one beside it.
_SAME, _ROUNDED = 1e-4, 1e-9


@jax.tree_util.register_static
@dataclass(frozen=True, eq=False)
class Learnt:
    """What a rehearsal tells.

    Attributes:
        spaces: which width axes are one.
        asked: how many rows are asked of each matrix.
        cancelled: which sums cancel; None where there is no expansion in the width.
        sources: of each term of each output what it depends on, as bits: the first is the draw of
            the fluctuations, the others are the terms of the inputs in turn (``terms_of``).
    """

    spaces: Spaces
    asked: Asked
    cancelled: Mapping[Name, np.ndarray] | None
    sources: tuple[tuple[int, ...], ...] = ()


def interpreted(ctx: Context, program: Program, values: Sequence[Value]) -> list[Value]:
    """Outputs of a program, in the form in which they leave a call."""
    return [_leaving(ctx, value) for value in evaluate(ctx, program, values)]


def _leaving(ctx: Context, value: Value) -> Value:
    if isinstance(value, Matrices):
        return placed.absorbed(ctx, value)
    if not isinstance(value, Tensor) or value.finite:
        return value
    return knowing(replace(value, space=ctx.spaces.left(value.space)), **value.facts._asdict())


def rehearsed(
    program: Program,
    values: Sequence[Value],
    bank: Bank | None,
    decide: Decide,
    axes: Sequence[int | None] | None,
    refuted: Collection[Name],
) -> Learnt:
    """What a run of a program on such values has to know.

    Args:
        axes: for each value 0 where it has an axis of replicates, else None; None without any.
        refuted: sums that are known not to cancel.

    Raises:
        LimitError: the program has no limit, or none that is known.
    """
    places = [None] * len(values) if axes is None else axes
    first = [_first(value) if at == 0 else value for value, at in zip(values, places, strict=True)]
    bank = bank if bank is None or axes is None else _first(bank)
    spaces = spaces_of(bank)
    if bank is None or bank.law.exact:
        return _Traced.of(program, decide, spaces, None, bank, first).learnt(())
    draws = [_few(program, bank, first, number) for number in range(_DRAWS)]
    cancelled: dict[Name, np.ndarray] = {}
    while True:
        traced = _Traced.of(program, decide, spaces, cancelled, *draws[0])
        learnt = traced.course.learnt.spaces
        if learnt.units != spaces.units:
            # Multipliers of a width are others where it has shares: they are to be from the start.
            spaces = learnt
            continue
        found = traced.cancelling(draws, refuted)
        if found.keys() == cancelled.keys() and all(
            np.array_equal(found[name], cancelled[name]) for name in found
        ):
            return traced.learnt(draws)
        # Up to the first sum that was not known before, all that was found stands. What comes
        # after it may be another sum now; it is looked at again.
        cancelled = found


@jax.tree_util.register_static
@dataclass(frozen=True, eq=False)
class _Course:
    """How an interpretation went: what it learnt, the error it ended in, what it asked, the errors
    of numbers without a limit, how many terms its outputs have and whether they are finite."""

    learnt: Learnt
    error: LimitError | None
    names: Sequence[tuple[Name, int | None, float]]
    without_limit: Sequence[LimitError]
    terms: Sequence[tuple[int, bool]]


@dataclass(frozen=True)
class _Traced:
    """An interpretation as a jaxpr, whose outputs are the sums it made, each with its size, where
    there are numbers without a limit those that it returns, and the terms of its outputs.

    ``marks``: for each argument of the jaxpr what it is, see ``Learnt.sources``; ``lower``: those
    marks that are not of leading terms.
    """

    jaxpr: Any
    course: _Course
    marks: Sequence[int]
    lower: Sequence[int]

    @classmethod
    def of(
        cls,
        program: Program,
        decide: Decide,
        spaces: Spaces,
        cancelled: Mapping[Name, np.ndarray] | None,
        bank: Bank | None,
        values: Sequence[Value],
    ) -> "_Traced":
        def interpretation(
            bank: Bank | None, values: Sequence[Value], offset: Any, drawn: Any
        ) -> tuple[tuple[list[tuple[Any, Any]], list[Any], list[Any]], _Course]:
            sums = None if cancelled is None else Sums(cancelled, rehearsing=True)
            offset = None if sums is None else offset
            ctx = Context(
                bank, spaces=spaces.copied(), decide=decide, dry=True, sums=sums, offset=offset,
                drawn=drawn,
            )  # fmt: skip
            error, out = None, []
            try:
                out = interpreted(ctx, program, values)
            except LimitError as failure:
                error = failure
            asked = [] if sums is None or sums.questions is None else sums.questions
            learnt = Learnt(ctx.spaces, ctx.ledger.asked, cancelled)
            names = [(one.name, one.axis, one.hidden_share) for one in asked]
            balances = [(question.total, question.size) for question in asked]
            numbers = [number for value in out for number in _numbers(value)]
            vectors = [value if isinstance(value, Tensor) else None for value in out]
            terms = [(0, False) if v is None else (len(v.terms), v.finite) for v in vectors]
            course = _Course(learnt, error, names, tuple(ctx.without_limit), tuple(terms))
            known = [jnp.asarray(t.coefficient) for v in vectors if v is not None for t in v.terms]
            return (balances, numbers if ctx.without_limit else [], known), course

        traced = jax.make_jaxpr(interpretation, return_shape=True)
        jaxpr, (_, course) = traced(bank, values, _NO_OFFSET, np.zeros((), np.float32))
        return cls(jaxpr, course, *_marks(bank, values))

    def learnt(self, draws: Sequence[tuple[Bank, Sequence[Value]]]) -> Learnt:
        if self.course.error is not None:
            raise self.course.error
        errors = self.course.without_limit
        if errors:
            for draw in draws:
                if self._depends(draw, np.ones(SEVERAL)):
                    single = zip(errors, np.eye(SEVERAL), strict=False)
                    raise next((e for e, one in single if self._depends(draw, one)), errors[0])
        marks = iter(self._sources(draws))
        sources = tuple(tuple(itertools.islice(marks, count)) for count, _ in self.course.terms)
        return replace(self.course.learnt, sources=sources)

    def _sources(self, draws: Sequence[tuple[Bank, Sequence[Value]]]) -> list[int]:
        """For each term of the outputs what it depends on, see ``Learnt``."""
        finite = [finite for count, finite in self.course.terms for _ in range(count)]
        reached = _reached(self.jaxpr, self.marks)
        marks = reached[len(reached) - len(finite) :]
        numbers = functools.reduce(operator.or_, itertools.compress(marks, finite), 0)
        # A number may be made beside something random, or of lower order, and not depend on it:
        # that is tried.
        tried = [bit for bit in self.lower if bit & numbers and draws]
        first = self._evaluated(draws[0]) if tried else []
        for bit in tried:
            other = self._evaluated(draws[0], moved=bit)
            for place, own in enumerate(range(len(first) - len(finite), len(first))):
                if marks[place] & bit and _same(np.asarray(first[own]), np.asarray(other[own])):
                    marks[place] ^= bit
        return marks

    def _evaluated(
        self, draw: tuple[Bank, Sequence[Value]], offset: Any = _NO_OFFSET, moved: int = 0
    ) -> list[Any]:
        """Results for some particles; those arguments are others whose mark is ``moved``."""
        arguments = [*jax.tree.leaves(draw), offset, np.zeros((), np.float32)]
        if moved:
            pairs = zip(arguments, self.marks, strict=True)
            arguments = [_moved(a) if mark == moved else a for a, mark in pairs]
        return numerics.evaluated(self.jaxpr, arguments)

    def _depends(self, draw: tuple[Bank, Sequence[Value]], which: np.ndarray) -> bool:
        """Whether the outputs are others for others of the numbers that have no limit."""
        place = 2 * len(self.course.names)
        first, *others = (
            self._evaluated(draw, offset * which)[place:] for offset in (0.0, *_OFFSETS)
        )
        return not all(
            _same(np.asarray(a), np.asarray(b))
            for other in others
            for a, b in zip(first, other, strict=True)
        )

    def cancelling(
        self, draws: Sequence[tuple[Bank, Sequence[Value]]], refuted: Collection[Name]
    ) -> dict[Name, np.ndarray]:
        """Masks of the sums of which some entries are round-off for all these particles."""
        found: dict[Name, np.ndarray] = {}
        for number, draw in enumerate(draws):
            arrays = iter(self._evaluated(draw))
            masks = {}
            for name, axis, share in self.course.names:
                total, size = next(arrays), next(arrays)
                gone = _round_off(total, size, axis, _ROUND_OFF, number > 0)
                if name in refuted:
                    continue
                if number == 0:
                    hidden = _round_off(total, size, axis, share, False)
                    masks[name] = np.where(gone, GONE, np.where(hidden, HIDDEN, 0))
                elif name in found:
                    # What cancels for these numbers only is no rule; round-off is that of these.
                    masks[name] = np.where(~gone & (found[name] == GONE), 0, found[name])
            found = {name: mask for name, mask in masks.items() if np.any(mask)}
            if not found:
                break
        return found


def terms_of(value: Value) -> int:
    """How many terms a value has; a matrix counts as one."""
    return len(value.terms) if isinstance(value, Tensor) else 1


def _marks(bank: Bank | None, values: Sequence[Value]) -> tuple[list[int], list[int]]:
    """For each array of the arguments the bit of what it belongs to, see ``Learnt.sources``, and
    the bits that are not of leading terms."""
    marks, lower, bit = [0] * len(jax.tree.leaves(bank)), [1], 2
    for value in values:
        whole = len(marks) + len(jax.tree.leaves(value))
        for number, term in enumerate(value.terms if isinstance(value, Tensor) else (value,)):
            marks += [bit] * len(jax.tree.leaves(term))
            lower += [bit] if number else []
            bit *= 2
        marks += [0] * (whole - len(marks))
    return [*marks, 0, 1], lower


def _reached(closed: Any, marks: Sequence[int]) -> list[int]:
    """Which of the marked arguments each result of a jaxpr depends on."""
    jaxpr, _ = _jax.open_jaxpr(closed)
    found = dict(zip(jaxpr.invars, marks, strict=True))

    def of(atoms: Sequence[Any]) -> list[int]:
        return [0 if isinstance(a, _jax.Literal) else found.get(a, 0) for a in atoms]

    for equation in jaxpr.eqns:
        mark = functools.reduce(operator.or_, of(equation.invars), 0)
        found.update(dict.fromkeys(equation.outvars, mark))
    return of(jaxpr.outvars)


def _moved(array: Any) -> Any:
    floating = jnp.issubdtype(array.dtype, jnp.floating)
    return (1.7 * np.asarray(array) + 0.3).astype(array.dtype) if floating else array


def _round_off(
    total: Any, size: Any, axis: int | None, share: float, otherwise: bool
) -> np.ndarray:
    """Entries of a sum that are at most a share of its summands for all coordinates along a width.

    What is 0 with its summands, or no number, is none if the numbers are those of the data; for
    other numbers it says nothing.
    """
    # Where summands are small by chance, what they are made of has left larger round-off.
    typical = 0 if axis is None else np.mean(size, axis, keepdims=True)
    gone = np.abs(total) <= share * (size + typical)
    if axis is not None:
        gone, size = np.all(gone, axis, keepdims=True), np.max(size, axis, keepdims=True)
    silent = ~(size > 0) | ~np.isfinite(size)
    return gone | silent if otherwise else gone & ~silent


def _same(a: np.ndarray, b: np.ndarray) -> bool:
    """Whether two arrays are the same, up to round-off."""
    if not np.issubdtype(a.dtype, np.floating):
        return bool(np.array_equal(a, b))
    known = np.isfinite(a)
    if not np.array_equal(a[~known], b[~known], equal_nan=True):
        return False
    a, b = a[known], b[known]
    size = np.abs(a)
    return bool(np.all(np.abs(a - b) <= _SAME * size + _ROUNDED * np.max(size, initial=0.0)))


def _numbers(value: Value) -> list[Any]:
    """What a value is, without what is not known of it."""
    if isinstance(value, Tensor):
        return [jnp.asarray(term.coefficient) for term in value.terms]
    return jax.tree.leaves(value)


def _first(tree: Any) -> Any:
    """A value, or a bank, of the first of several replicates."""

    def one(array: Any, _: int | None, role: str) -> Any:
        if role == COMMON["role"]:
            return array
        return array[0] if _at_hand(array) else jax.ShapeDtypeStruct(array.shape[1:], array.dtype)

    return map_arrays(one, tree)


def _at_hand(array: Any) -> bool:
    """Whether the numbers of an array can be looked at."""
    if isinstance(array, jax.ShapeDtypeStruct) or _jax.is_traced(array):
        return False
    return bool(getattr(array, "is_fully_addressable", True))


def _few(
    program: Program, bank: Bank, values: Sequence[Value], number: int
) -> tuple[Bank, Sequence[Value]]:
    """A few of the particles, and stores without any structure."""
    thinned = 1 if bank.pair_samples is None else bank.n // bank.pair_samples
    parts = thinned * math.lcm(1, *(size.ratio.denominator for size in program.sizes))
    size = min(bank.n, parts * -(-_PARTICLES // parts))
    unseen: dict[int, int] = {}  # arrays without numbers: one that stands twice is one

    def some(array: Any, axis: int | None, role: str) -> Any:
        if jnp.issubdtype(array.dtype, jax.dtypes.prng_key):
            unknown = isinstance(array, jax.ShapeDtypeStruct)
            return jnp.broadcast_to(jax.random.key(number), array.shape) if unknown else array
        if role == COMMON["role"]:
            return array
        if _at_hand(array):
            array = np.asarray(array)
        else:
            name = unseen.setdefault(id(array), len(unseen))
            array = generic(array.shape, array.dtype, name, 6)
        widths = [axis, axis - 1] if axis is not None and role == PAIRS["role"] else [axis]
        for place in widths:
            if place is not None and place < array.ndim and array.shape[place] > 1:
                length = array.shape[place] * size // bank.n
                start = number * (array.shape[place] - length) // (_DRAWS - 1)
                array = np.take(array, range(start, start + length), place)
        return array if number == 0 else _changed(array, number)

    def without_structure(label: int, store: Store) -> Store:
        count = store.capacity or _PARTICLES
        shapes = [(count, rows.shape[1] * size // bank.n) for rows in (store.X, store.Y)]
        X, Y = (
            jnp.asarray(np.asarray(generic(shape, store.X.dtype, label, i, number), store.X.dtype))
            for i, shape in enumerate(shapes, 4)
        )
        every = jnp.asarray(np.ones(count, bool))
        square = jnp.asarray(np.zeros((count, count), store.X.dtype))
        gamma = None if store.gamma is None else square
        return replace(
            store, X=X, Y=Y, forward=every, transposed=every, overlap=square, gamma=gamma
        )

    stores = tuple(without_structure(*item) for item in enumerate(bank.stores))
    rest = map_arrays(some, replace(bank, stores=()))
    few = None if bank.pair_samples is None else bank.pair_samples * size // bank.n
    rest = replace(rest, stores=stores, n=size, mesh=None, pair_samples=few)
    return rest, map_arrays(some, values)


def _changed(array: np.ndarray, number: int) -> np.ndarray:
    """Other numbers, where there were equal ones equal ones again, of the same sign if all are."""
    if array.dtype.kind != "f":
        return array
    known = np.where(np.isfinite(array), array, 0).astype(float)
    factor = 1.5 * np.sin(12.9898 * known + 2.1 * number)
    return (array * (1.6 + factor if np.all(array >= 0) else factor)).astype(array.dtype)
