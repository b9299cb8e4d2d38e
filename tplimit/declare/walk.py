"""What an initialiser makes at one width: arrays of independent entries, from its jaxpr.

An initialiser makes parameters of random bits, by operations entry by entry. So its jaxpr is walked
with three kinds of values: arrays that are known (keys, small constants), arrays of independent
entries of one law (``Entries``: the operations that lead from the bits to an entry, but for the
shape), and what is neither (``Opaque``, with a reason: the forward pass that many initialisers run
beside is of no concern).
"""

import hashlib
import itertools
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from tplimit import _jax
from tplimit.declare.bits import Chain, Number, Operation, Source, shown
from tplimit.errors import LimitError, WidthError
from tplimit.program.numerics import turn_by_turn

#: Arrays up to this size are computed, larger ones are known by one entry or not at all.
_SMALL = 2**16

#: Loops over layers are walked turn by turn.
_LONGEST = 256

#: Operations entry by entry that initialisers consist of.
ENTRYWISE = frozenset(
    """abs acos acosh add and asin asinh atan atan2 atanh bitcast_convert_type cbrt ceil clamp
    convert_element_type copy cos cosh div eq erf erf_inv erfc exp exp2 expm1 floor ge gt
    integer_pow is_finite le lgamma log log1p logistic lt max min mul ne neg nextafter not or pow
    reduce_precision rem round rsqrt select_n shift_left shift_right_arithmetic
    shift_right_logical sign sin sinh sqrt square sub tan tanh xor""".split()  # noqa: SIM905
)
#: Operations that arrange entries, each of which is there once afterwards.
_ARRANGING = frozenset(["broadcast_in_dim", "reshape", "rev", "squeeze", "transpose"])
_JOINED = "joined"
PARTS = frozenset(["dynamic_slice", "slice", "split"])


class Entries(NamedTuple):
    """An array of independent entries of one law, or of one number.

    Attributes:
        shape, dtype: of the array.
        chain: how an entry comes about.
        place: how they have been arranged since they were drawn.
    """

    shape: tuple[int, ...]
    dtype: Any
    chain: Chain
    place: tuple[tuple[Any, ...], ...] = ()

    @property
    def random(self) -> bool:
        return bool(self.chain.sources)

    @property
    def sources(self) -> frozenset[Source]:
        """All the bits that entries are made of, those of other blocks too."""
        blocks = [block for step in self.place if step[0] == _JOINED for block in step[1]]
        return self.chain.sources.union(*(block.sources for block in blocks))


class Opaque(NamedTuple):
    """An array of which only the shape is known, and why."""

    shape: tuple[int, ...]
    dtype: Any
    why: str


class _Unknown(Exception):
    """The result of an operation is opaque; the argument says why."""


class Run(NamedTuple):
    """What ``make`` returns at some widths: arrays at their ``places`` among all leaves."""

    values: list[Any]
    paths: list[str]
    places: list[int]
    others: list[Any]
    tree: Any


def run(make: Callable[..., Any], sizes: Sequence[Fraction]) -> Run:
    kept: dict[str, Any] = {}

    def arrays() -> list[Any]:
        made = make(*(int(size) for size in sizes))
        flat, tree = jax.tree_util.tree_flatten_with_path(made)
        places = [i for i, (_, leaf) in enumerate(flat) if _is_array(leaf)]
        kept.update(
            tree=tree,
            places=places,
            others=[None if i in places else leaf for i, (_, leaf) in enumerate(flat)],
            paths=[jax.tree_util.keystr(flat[i][0]) for i in places],
        )
        return [flat[i][1] for i in places]

    try:
        jaxpr, consts = _jax.open_jaxpr(jax.make_jaxpr(arrays)())
    except LimitError:
        raise
    except Exception as error:
        shown = ", ".join(str(int(size)) for size in sizes)
        raise WidthError(
            f"make({shown}) failed while it was traced: {type(error).__name__}: "
            f"{str(error).splitlines()[0] if str(error) else ''}",
            location=_jax.user_location(error),
            advice="make takes one integer for each width and returns arrays. What hangs on the "
            "numbers in them cannot be traced.",
        ) from error
    with np.errstate(all="ignore"):
        values = _walk(jaxpr, consts, [])
    return Run(list(map(_lifted, values)), **kept)


def _is_array(leaf: Any) -> bool:
    return isinstance(leaf, (jax.Array, np.ndarray, np.generic)) or _jax.is_traced(leaf)


def _lifted(value: Any) -> Any:
    """A known array as entries of one number, if it is one."""
    if isinstance(value, (Entries, Opaque)) or _jax.is_key(value):
        return value
    array = np.asarray(value)
    if array.size and np.all(array == array.flat[0]):
        return Entries(array.shape, array.dtype, Number.of(array.flat[0]))
    return value


def _walk(jaxpr: Any, consts: Sequence[Any], inputs: Sequence[Any]) -> list[Any]:
    """Outputs of a jaxpr on values of the three kinds."""
    known = dict(zip(jaxpr.constvars, consts, strict=True))
    known.update(zip(jaxpr.invars, inputs, strict=True))

    def read(atom: Any) -> Any:
        if isinstance(atom, _jax.Literal):
            value: Any = atom
            return np.asarray(value.val, value.aval.dtype)
        return known[atom]

    for equation in jaxpr.eqns:
        outputs = _applied(equation, [read(atom) for atom in equation.invars])
        known.update(zip(equation.outvars, outputs, strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def _applied(equation: Any, inputs: list[Any]) -> list[Any]:
    body = _jax.inner_program(equation)
    if body is not None:
        return _walk(*_jax.open_jaxpr(body), inputs)
    avals: list[Any] = [var.aval for var in equation.outvars]
    known = not any(isinstance(value, (Entries, Opaque)) for value in inputs)
    try:
        if equation.primitive.name == "random_bits":
            return [_bits(equation, avals[0], inputs[0])]
        if known and all(np.prod(aval.shape) <= _SMALL for aval in avals):
            return _computed(equation, inputs)
        if equation.primitive.name == "scan":
            return _scanned(equation.params, inputs)
        return _by_entries(equation, avals, [_entries(value) for value in inputs])
    except _Unknown as reason:
        return [Opaque(aval.shape, aval.dtype, str(reason)) for aval in avals]


def _bits(equation: Any, aval: Any, key: Any) -> Entries:
    if isinstance(key, (Entries, Opaque)):
        raise _Unknown("a random key that depends on random numbers")
    with jax.ensure_compile_time_eval():
        data = np.asarray(jax.random.key_data(key))
    name = hashlib.sha256(data.tobytes()).hexdigest()
    source = Source(name, tuple(aval.shape), int(equation.params["bit_width"]))
    return Entries(tuple(aval.shape), aval.dtype, source)


def _computed(equation: Any, inputs: Sequence[Any]) -> list[Any]:
    with jax.ensure_compile_time_eval():
        given = [x if isinstance(x, jax.Array) else jnp.asarray(x) for x in inputs]
        out = equation.primitive.bind(*given, **equation.params)
    return list(out) if equation.primitive.multiple_results else [out]


def _entries(value: Any) -> Entries:
    value = _lifted(value)
    if isinstance(value, Entries):
        return value
    raise _Unknown(value.why if isinstance(value, Opaque) else "an array of different numbers")


def _by_entries(equation: Any, avals: Sequence[Any], values: list[Entries]) -> list[Any]:
    name, aval = equation.primitive.name, avals[0]
    random = [value for value in values if value.random]
    if name in ENTRYWISE:
        if any(value.shape != aval.shape for value in random):
            raise _Unknown("random entries that are repeated along an axis")
        if len({value.place for value in random}) > 1:
            raise _Unknown("random entries in two arrangements")
        chain = Operation.of(equation, [value.chain for value in values])
        return [Entries(aval.shape, aval.dtype, chain, random[0].place if random else ())]
    if name in _ARRANGING and len(values) == 1:
        (value,) = values
        if value.random and np.prod(value.shape) != np.prod(aval.shape):
            raise _Unknown("random entries that are repeated along an axis")
        place = _at(value, (name, aval.shape, shown(equation)))
        return [Entries(aval.shape, aval.dtype, value.chain, place)]
    if name in PARTS:
        value, boxes = values[0], _boxes(equation, values)
        return [
            Entries(a.shape, a.dtype, value.chain, _at(value, (name, box)))
            for a, box in zip(avals, boxes, strict=True)
        ]
    if name in ("concatenate", "stack"):
        return [_joined(values, aval.shape, aval.dtype)]
    if name == "iota":
        raise _Unknown("numbers along an axis")
    raise _Unknown(f"the operation {name}")


def _boxes(equation: Any, values: Sequence[Entries]) -> list[tuple[tuple[int, int], ...]]:
    """Which entries parts are made of: first and last along every axis."""
    params, whole = equation.params, [(0, length) for length in values[0].shape]
    if equation.primitive.name == "slice":
        if any(stride != 1 for stride in params["strides"] or ()):
            raise _Unknown("entries left out at intervals")
        return [tuple(zip(params["start_indices"], params["limit_indices"], strict=True))]
    if equation.primitive.name == "split":
        ends = np.cumsum([0, *params["sizes"]])
        axis = params["axis"]
        pairs = itertools.pairwise(map(int, ends))
        return [(*whole[:axis], pair, *whole[axis + 1 :]) for pair in pairs]
    starts = [value.chain for value in values[1:]]
    if not all(isinstance(start, Number) for start in starts):
        raise _Unknown("a part at a random place")
    return [
        tuple(
            (int(start.value), int(start.value) + size)  # type: ignore[union-attr]
            for start, size in zip(starts, params["slice_sizes"], strict=True)
        )
    ]


def _at(value: Entries, step: tuple[Any, ...]) -> tuple[tuple[Any, ...], ...]:
    return (*value.place, step) if value.random else ()


def _joined(values: Sequence[Entries], shape: tuple[int, ...], dtype: Any) -> Entries:
    """Blocks of one law side by side."""
    if len({value.chain.law for value in values}) > 1:
        raise _Unknown("blocks of different laws side by side")
    if values[0].random and len({(value.chain, value.place) for value in values}) < len(values):
        raise _Unknown("one draw beside itself")
    place = ((_JOINED, tuple(values)),) if values[0].random else ()
    return Entries(tuple(shape), dtype, values[0].chain, place)


def _scanned(params: dict[str, Any], inputs: list[Any]) -> list[Any]:
    """A loop over layers, turn by turn."""
    if params["length"] > _LONGEST:
        raise _Unknown(f"a loop of {params['length']} turns")
    return turn_by_turn(params, inputs, _walk, _turn, _stacked)


def _turn(value: Any, i: int) -> Any:
    if isinstance(value, Entries):
        return value._replace(shape=value.shape[1:], place=_at(value, ("turn", i)))
    return value._replace(shape=value.shape[1:]) if isinstance(value, Opaque) else value[i]


def _stacked(column: Sequence[Any]) -> Any:
    shape, dtype = (len(column), *column[0].shape), column[0].dtype
    if not any(isinstance(value, (Entries, Opaque)) for value in column):
        return jnp.stack(column)
    try:
        return _joined([_entries(value) for value in column], shape, dtype)
    except _Unknown as reason:
        return Opaque(shape, dtype, str(reason))
