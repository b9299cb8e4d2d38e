"""Programs compiled in pieces: a piece that stands at many places is compiled once.

``jax.jit`` gives the compiler one program, in which every call of a function is written out, and
the compiler takes its time for each of the loops in it. Here functions that are marked are compiled
apart, and what lies between their calls in as few parts as their order allows; pieces and parts
that are equal are compiled once in a process. Then they run one after the other. That costs some
tenths of a millisecond for each, and loops are not fused across them: it is a way to compile fast
what runs a few times.
"""

import math
from collections.abc import Callable, Hashable, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, TypeVar

import jax

from tplimit import _jax
from tplimit.caching import disk
from tplimit.caching.store import PIECES, kept

T = TypeVar("T")

_MARK = "tplimit_piece"

_in_pieces: ContextVar[bool] = ContextVar("in_pieces", default=False)


def apart(function: Callable[..., T], *args: Any, **fixed: Hashable) -> T:
    """``function(*args, **fixed)``, which is compiled apart in programs compiled in pieces.

    It depends on its arguments only, of which the ``fixed`` ones are no arrays.
    """
    if not _in_pieces.get():
        return function(*args, **fixed)
    # JAX remembers what it traced of the same function with arguments of the same form.
    key = (function, tuple(fixed.items()))
    piece: Callable[..., T] = PIECES.get(key, lambda: _marked(function, fixed))
    return piece(*args)


def _marked(function: Callable[..., Any], fixed: dict[str, Hashable]) -> Callable[..., Any]:
    def tplimit_piece(*args: Any) -> Any:
        return function(*args, **fixed)

    return jax.jit(tplimit_piece)


def chained(function: Callable[..., Any], *, donated: bool = False) -> Callable[..., Any]:
    """``function`` compiled in pieces, for a short wait.

    Args:
        donated: the memory of the first argument may be reused.
    """
    programs: dict[Hashable, tuple[Callable[[Sequence[Any]], list[Any]], Any]] = {}

    def call(*args: Any) -> Any:
        leaves, tree = jax.tree.flatten(args)
        form = tree, _jax.form(leaves)
        if form not in programs:
            token = _in_pieces.set(True)
            try:
                jaxpr, shape = jax.make_jaxpr(function, return_shape=True)(*args)
            finally:
                _in_pieces.reset(token)
            gone = len(jax.tree.leaves(args[0])) if donated else 0
            programs[form] = _chain(jaxpr, gone), jax.tree.structure(shape)
        run, out_tree = programs[form]
        return jax.tree.unflatten(out_tree, run(leaves))

    return call


@dataclass(frozen=True)
class _Link:
    """A compiled part of a program: reads and writes numbered variables, and the last that it is
    needed for are forgotten."""

    run: Callable[..., Any]
    reads: Sequence[int]
    writes: Sequence[int]
    over: Sequence[int]


def _chain(closed: Any, gone: int) -> Callable[[Sequence[Any]], list[Any]]:
    """A program as a chain of compiled parts; the memory of the first ``gone`` arguments may be
    reused."""
    jaxpr, constants = _jax.open_jaxpr(closed)
    results = {atom for atom in jaxpr.outvars if not isinstance(atom, _jax.Literal)}
    parts = _parts(jaxpr, results)
    last = {v: place for place, part in enumerate(parts) for v in _reads(part)}
    owned = set(jaxpr.invars[:gone])
    given = [*jaxpr.constvars, *jaxpr.invars]
    numbers = {v: number for number, v in enumerate(given)}
    links = []
    for place, part in enumerate(parts):
        reads = _reads(part)
        needed = {v for e in part for v in e.outvars if last.get(v, -1) > place or v in results}
        over = {v for v in reads if last[v] == place and v not in results}
        free = [v in over and v in owned for v in reads]
        link, writes = _compiled(jaxpr, part, reads, needed, free)
        for v in writes:
            numbers[v] = len(numbers)
        owned.update(writes)
        over.update(v for v in writes if v not in needed)
        links.append(_Link(link, *([numbers[v] for v in some] for some in (reads, writes, over))))
    ends = [_end(atom, numbers) for atom in jaxpr.outvars]

    def run(leaves: Sequence[Any]) -> list[Any]:
        values: dict[int, Any] = dict(enumerate([*constants, *leaves]))
        for link in links:
            out = link.run(*[values[number] for number in link.reads])
            values.update(zip(link.writes, out, strict=True))
            for number in link.over:
                del values[number]
        return [constant if number is None else values[number] for number, constant in ends]

    return run


def _end(atom: Any, numbers: dict[Any, int]) -> tuple[int | None, Any]:
    """The number of a result, or what it is."""
    if not isinstance(atom, _jax.Literal):
        return numbers[atom], None
    aval: Any = atom.aval
    return None, jax.numpy.asarray(_jax.plain_literal(atom.val), aval.dtype)


def _parts(jaxpr: Any, results: set[Any]) -> list[list[Any]]:
    """The equations that are needed: pieces, each by itself, and between them what has to be
    computed before the next pieces."""
    needed, wanted = [], set(results)
    for equation in reversed(jaxpr.eqns):
        if not wanted.isdisjoint(equation.outvars):
            needed.append(equation)
            wanted.update(_operands(equation))
    # Even stages lie between pieces, odd stages are pieces.
    stages: dict[Any, int] = {}
    between: dict[int, list[Any]] = {}
    pieces: dict[int, list[list[Any]]] = {}
    for equation in reversed(needed):
        before = max((stages.get(v, 0) for v in _operands(equation)), default=0)
        if _is_piece(equation):
            stage = before + 1 if before % 2 == 0 else before + 2
            pieces.setdefault(stage, []).append([equation])
        else:
            stage = before + before % 2
            between.setdefault(stage, []).append(equation)
        stages.update(dict.fromkeys(equation.outvars, stage))
    parts = pieces | {stage: [equations] for stage, equations in between.items()}
    return [part for stage in sorted(parts) for part in parts[stage]]


def _is_piece(equation: Any) -> bool:
    return equation.params.get("name") == _MARK


def _operands(equation: Any) -> list[Any]:
    return [atom for atom in equation.invars if not isinstance(atom, _jax.Literal)]


def _reads(part: Sequence[Any]) -> list[Any]:
    """What a part takes from outside, in the order in which it is met."""
    made = {v for e in part for v in e.outvars}
    return list(dict.fromkeys(v for e in part for v in _operands(e) if v not in made))


def _compiled(
    jaxpr: Any, part: Sequence[Any], reads: Sequence[Any], needed: set[Any], free: Sequence[bool]
) -> tuple[Callable[..., Any], Sequence[Any]]:
    """The compiled part, and the variables that it computes."""
    first = part[0]
    if _is_piece(first) and list(first.invars) == list(reads) and _all_new(first.params["jaxpr"]):
        closed, writes = first.params["jaxpr"], first.outvars
    else:
        writes = [v for e in part for v in e.outvars if v in needed]
        closed = _jax.part(jaxpr, part, reads, writes)
    gone = _useful(reads, writes, free)

    def compile() -> Callable[..., Any]:
        return disk.compiled(_jax.jaxpr_as_fun(closed), quick=True, donate_argnums=gone)

    def find() -> tuple[Any, Callable[..., Any]]:
        return closed, kept("piece", compile, closed, gone, store=PIECES)

    if closed is not first.params.get("jaxpr"):
        return find()[1], writes
    # What JAX remembers is the same object, and need not be read again to be known.
    return PIECES.get((id(closed), gone), find)[1], writes


def _all_new(closed: Any) -> bool:
    """Whether no result of a program is an argument, which JAX would return as it is: then it is
    not known whose memory it is."""
    jaxpr, _ = _jax.open_jaxpr(closed)
    return set(jaxpr.invars).isdisjoint(
        atom for atom in jaxpr.outvars if not isinstance(atom, _jax.Literal)
    )


def _useful(reads: Sequence[Any], writes: Sequence[Any], free: Sequence[bool]) -> tuple[int, ...]:
    """Places of the free operands whose memory some result can use, where it matters: no copy of
    rows that are appended to, but for rows themselves one program, whoever needs them afterwards.
    """
    found, open_ = [], [(v.aval.shape, v.aval.dtype) for v in writes]
    largest = max((math.prod(v.aval.shape) for v in reads), default=0)
    for place, v in enumerate(reads):
        form = v.aval.shape, v.aval.dtype
        if free[place] and form in open_ and math.prod(form[0]) == largest:
            open_.remove(form)
            found.append(place)
    return tuple(found)
