"""Random entries as functions of random bits, and the laws that they have."""

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from tplimit.declare.entries import BOUND, TRUNCATED_STD, Quantiles

#: Nodes of each source, of one, two and three.
_SHARED = (2**16, 2**11, 2**7)

#: Quantiles that a law without a name is known by.
_QUANTILES = 2**12

#: How far quantiles of a symmetric law may be off, in standard deviations or of their size: in the
#: tails single nodes are seen.
_SYMMETRIC = 5e-3

#: So many equal values are no accident of round-off.
_ATOM = 64

#: How far quantiles of a named law may be off, in standard deviations: round-off.
_TOLERANCE = 2e-5

#: A fourth moment that grows by more where tails are resolved four times better has no limit.
_GROWTH = 1.25


@dataclass(frozen=True)
class Number:
    """A constant."""

    value: Any = field(compare=False)
    bits: bytes = b""
    dtype: str = ""

    @classmethod
    def of(cls, value: Any) -> "Number":
        array = np.asarray(value)
        return cls(array, array.tobytes(), str(array.dtype))

    @property
    def sources(self) -> frozenset["Source"]:
        return frozenset()

    @property
    def law(self) -> Any:
        return self


@dataclass(frozen=True)
class Source:
    """Random bits: of a key, drawn in a shape."""

    key: str
    shape: tuple[int, ...]
    bits: int

    @property
    def sources(self) -> frozenset["Source"]:
        return frozenset((self,))

    @property
    def law(self) -> Any:
        return self.bits


@dataclass(frozen=True)
class Operation:
    """A primitive, entry by entry."""

    bind: Callable[..., Any] = field(compare=False)
    name: str
    params: str
    operands: tuple[Any, ...]

    @classmethod
    def of(cls, equation: Any, operands: Sequence[Any]) -> "Operation":
        bind = functools.partial(equation.primitive.bind, **equation.params)
        return cls(bind, equation.primitive.name, shown(equation), tuple(operands))

    @functools.cached_property
    def sources(self) -> frozenset[Source]:
        return frozenset().union(*(operand.sources for operand in self.operands))

    @functools.cached_property
    def law(self) -> Any:
        """What tells the law: the same without the names of the sources."""
        order = {source: i for i, source in enumerate(sources_of(self))}
        return _without_names(self, order)


@dataclass(frozen=True)
class Frame:
    """An orthogonal matrix, or orthonormal rows or columns: the factor ``Q`` of Gaussian entries,
    with the signs that make it uniformly distributed.

    Attributes:
        of: the entries.
        shape: of the matrix.
    """

    of: Any
    shape: tuple[int, int]

    @property
    def sources(self) -> frozenset[Source]:
        return frozenset(self.of.sources)

    @property
    def law(self) -> Any:
        return ("orthogonal", self.shape)

    @property
    def std(self) -> float:
        """Standard deviation of an entry."""
        return float(max(self.shape)) ** -0.5


Chain = Number | Source | Operation | Frame


def shown(equation: Any) -> str:
    """The parameters of an equation, by which it is told from others of its primitive."""
    return repr(sorted((k, v) for k, v in equation.params.items() if k != "sharding"))


class Law(NamedTuple):
    """Mean, standard deviation and form of the law of an entry.

    Attributes:
        name: of the law, ``"other"`` where it has none.
        quantiles: of the core, where it has no name: an entry is ``scale * core + shift``.
        trouble: why it has no use, or nothing.
    """

    mean: float
    std: float
    name: str
    quantiles: Quantiles | None = None
    scale: float = 1.0
    shift: float = 0.0
    trouble: str = ""


def law_of(chain: Chain) -> Law:
    """The law of an entry: exactly that of its core, scaled and moved."""
    factor, offset, core = _affine(chain)
    if not core.sources:
        return Law(factor * float(np.asarray(_evaluated(core, {}))) + offset, 0.0, "full")
    if isinstance(core, Frame) and offset == 0:
        return Law(0.0, abs(factor) * core.std, "orthogonal")
    if frames_of(core):
        return Law(0.0, 0.0, "other", trouble="are functions of those of an orthogonal matrix")
    law = _law_of_core(_Core(core))
    quantiles = law.quantiles if factor > 0 or law.quantiles is None else law.quantiles.mirrored
    return law._replace(
        mean=factor * law.mean + offset, std=abs(factor) * law.std, quantiles=quantiles,
        scale=abs(factor), shift=offset,
    )  # fmt: skip


def _affine(chain: Chain) -> tuple[float, float, Chain]:
    """``factor``, ``offset`` and ``core`` with ``factor * core + offset``, from the end on."""
    factor, offset = 1.0, 0.0
    while isinstance(chain, Operation):
        fixed = [i for i, operand in enumerate(chain.operands) if not operand.sources]
        name = chain.name
        if name in ("convert_element_type", "copy") and _floats(chain.operands[0]):
            (chain,) = chain.operands
            continue
        if name == "neg":
            factor, chain = -factor, chain.operands[0]
            continue
        if len(chain.operands) != 2 or len(fixed) != 1 or name not in ("mul", "div", "add", "sub"):
            break
        number = float(np.asarray(_evaluated(chain.operands[fixed[0]], {}), np.float64))
        if name == "mul":
            factor *= number
        elif name == "div":
            if fixed[0] == 0:
                break
            factor /= number
        else:
            sign = -1.0 if name == "sub" and fixed[0] == 1 else 1.0
            offset += factor * sign * number
            factor = -factor if name == "sub" and fixed[0] == 0 else factor
        chain = chain.operands[1 - fixed[0]]
    return factor, offset, chain


def frames_of(chain: Chain) -> frozenset[Frame]:
    """The orthogonal matrices that an entry hangs on."""
    if isinstance(chain, Operation):
        return frozenset().union(*map(frames_of, chain.operands))
    return frozenset((chain,)) if isinstance(chain, Frame) else frozenset()


def _floats(chain: Chain) -> bool:
    """Whether entries are floating-point numbers."""
    nodes = {source: np.zeros((), _unsigned(source.bits)) for source in chain.sources}
    return bool(jnp.issubdtype(jnp.asarray(_evaluated(chain, nodes)).dtype, jnp.floating))


class _Core:
    """A chain that is equal to others of the same law."""

    def __init__(self, chain: Chain) -> None:
        self.chain = chain

    def __hash__(self) -> int:
        return hash(self.chain.law)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Core) and self.chain.law == other.chain.law


@functools.lru_cache(maxsize=256)
def _law_of_core(core: _Core) -> Law:
    sources = sources_of(core.chain)
    if len(sources) > len(_SHARED):
        return Law(0.0, 0.0, "other", trouble=f"hang on {len(sources)} draws each")
    x = _sorted(core.chain, sources, 1)
    if not np.all(np.isfinite(x)):
        return Law(0.0, 0.0, "other", trouble="may be infinite or no number")
    if x[0] == x[-1]:
        return Law(float(x[0]), 0.0, "full")
    named = _named(x) if len(sources) == 1 else None
    if named is not None:
        return named
    coarse = _sorted(core.chain, sources, 4)
    moments = [np.mean(((y - np.mean(y)) / np.std(y)) ** 4) for y in (x, coarse)]
    if moments[0] > _GROWTH * moments[1]:
        return Law(0.0, 0.0, "other", trouble="have heavy tails: no fourth moment")
    values, counts = np.unique(x, return_counts=True)
    if len(values) == 2 and abs(counts[0] - counts[1]) <= 1e-3 * len(x):
        return Law(float(x[0] + x[-1]) / 2, float(x[-1] - x[0]) / 2, "rademacher")
    known = _entry(core)
    assert known is not None
    quantiles = _quantiles(x, smooth=bool(counts.max() <= _ATOM))
    quantiles = quantiles._replace(order=known.order, heavy=known.heavy)
    mean = 0.0 if quantiles.symmetric else float(np.mean(x))
    return Law(mean, quantiles.std, "other", quantiles)


class Entry(NamedTuple):
    """The law of an entry, as far as signs and moments hang on it.

    Attributes:
        order: the largest of zeros of it and of it with a number added: a share ``eps^(1/order)``
            of the entries is nearer than ``eps`` to some value, and not equal to it; 0 where all
            entries are single values.
        atoms: whether single values have a probability.
        heavy: whether not all moments are known to be finite.
        positive: whether none is negative.
        away: whether all are away from 0.
    """

    order: int
    atoms: bool
    heavy: bool
    positive: bool
    away: bool


#: Operations after which moments may be infinite.
_POLES = frozenset(
    ["cosh", "div", "exp", "exp2", "expm1", "integer_pow", "pow", "rsqrt", "sinh", "tan"]
)

#: The entries within these lengths are counted, in root mean squares; orders are rounded up but for
#: so much.
_FAR, _NEAR, _DOUBT = 1e-2, 1e-3, 0.3


@functools.lru_cache(maxsize=256)
def _entry(core: _Core) -> Entry | None:
    x = _sorted(core.chain, sources_of(core.chain), 1)
    if not np.all(np.isfinite(x)):
        return None
    size = max(float(np.sqrt(np.mean(x**2))), np.finfo(float).tiny)
    values, counts = np.unique(x, return_counts=True)
    single = np.isin(x, values[counts > _ATOM])
    smooth, order = x[~single] / size, 0
    if len(smooth):
        far, near = (_most(smooth, length) for length in (_FAR, _NEAR))
        order = max(1, round(math.log(_FAR / _NEAR) / math.log(max(far / near, 1.1)) + _DOUBT))
    away = (x[0] > 0 or x[-1] < 0) and float(np.min(np.abs(x))) > _FAR * size
    poles = _has_poles(core.chain)
    return Entry(order, bool(single.any()), poles, bool(x[0] >= 0), bool(away))


def _most(x: np.ndarray, length: float) -> int:
    """The most of sorted numbers that stand within a length."""
    return int(np.max(np.searchsorted(x, x + length, "right") - np.arange(len(x))))


def entry_of(chain: Chain) -> Entry | None:
    """What is known of the law of an entry; None where it may be infinite or no number."""
    return _entry(_Core(chain))


def _has_poles(chain: Chain) -> bool:
    if not isinstance(chain, Operation):
        return False
    power = chain.name == "integer_pow" and "-" not in chain.params
    return (chain.name in _POLES and not power) or any(map(_has_poles, chain.operands))


def _quantiles(x: np.ndarray, smooth: bool) -> Quantiles:
    std = float(np.std(x))
    table = x[((np.arange(_QUANTILES) + 0.5) / _QUANTILES * len(x)).astype(int)]
    uneven = np.abs(x + x[::-1]) / (std + np.abs(x))
    symmetric = bool(np.max(uneven) < _SYMMETRIC)
    if symmetric:
        table = (table - table[::-1]) / 2
    # The moments of the table are those of the law, but for single values: these are exact. What is
    # never negative stays so.
    if smooth and (x[0] >= 0 or x[-1] <= 0):
        table = table * (np.mean(x) / np.mean(table))
    elif smooth:
        middle = 0.0 if symmetric else np.mean(x)
        table = middle + (table - np.mean(table)) * (std / np.std(table))
    return Quantiles(tuple(map(float, table)), std, symmetric, smooth)


def _named(x: np.ndarray) -> Law | None:
    """A law with a name, of which these are the quantiles at equidistant probabilities."""
    from scipy.special import ndtr, ndtri

    if len(x) < 2**10:
        return None
    p = (np.arange(len(x)) + 0.5) / len(x)
    low, high = ndtr([-BOUND, BOUND])
    forms = {
        "normal": ndtri(p),
        "truncated normal": ndtri(low + p * (high - low)) / TRUNCATED_STD,
        "uniform": (2 * p - 1) * 3**0.5,
    }
    inner = slice(len(x) // 1000, -(len(x) // 1000))
    for name, form in forms.items():
        upper = slice(len(x) // 2 + len(x) // 8, -(len(x) // 1000))
        mirrored = (x - x[::-1])[upper] / 2
        std = float(np.median(mirrored / form[upper]))
        mean = float(np.median(x[inner] - std * form[inner]))
        if np.max(np.abs(x - mean - std * form)[inner]) < _TOLERANCE * std:
            return Law(mean if abs(mean) > 1e-6 * std else 0.0, std, name)
    return None


def _sorted(chain: Chain, sources: Sequence[Source], coarser: int) -> np.ndarray:
    """Values at nodes in the middle of equal shares of all bits, from the smallest on."""
    per = _SHARED[len(sources) - 1] // coarser
    nodes = {}
    for i, source in enumerate(sources):
        points = _nodes(source.bits, per)
        nodes[source] = points.reshape([-1 if j == i else 1 for j in range(len(sources))])
    values = np.asarray(_evaluated(chain, nodes))
    return np.sort(values.astype(np.float64).ravel())


def _nodes(bits: int, count: int) -> np.ndarray:
    count = min(count, 2**bits)
    middle = (np.arange(count, dtype=np.float64) + 0.5) / count * 2.0**bits
    return middle.astype(_unsigned(bits))


def _unsigned(bits: int) -> Any:
    return {8: np.uint8, 16: np.uint16, 32: np.uint32, 64: np.uint64}[bits]


def evaluated(chain: Chain, nodes: Mapping[Source, Any]) -> Any:
    """The value of a chain at bits of its sources."""
    done: dict[int, Any] = {}

    def of(one: Chain) -> Any:
        if isinstance(one, Number):
            return jnp.asarray(one.value)
        if isinstance(one, Source):
            return jnp.asarray(nodes[one])
        if isinstance(one, Frame):  # of the type of
            return of(one.of)
        if id(one) not in done:
            operands = [of(operand) for operand in one.operands]
            shape = np.broadcast_shapes(*(operand.shape for operand in operands))
            done[id(one)] = one.bind(*(jnp.broadcast_to(x, shape) for x in operands))
        return done[id(one)]

    return of(chain)


def _evaluated(chain: Chain, nodes: Mapping[Source, Any]) -> Any:
    """The same, computed now."""
    with jax.ensure_compile_time_eval():
        return evaluated(chain, nodes)


def sources_of(chain: Chain) -> list[Source]:
    """The sources of a chain in the order in which it reads them."""
    found: dict[Source, None] = {}

    def look(one: Chain) -> None:
        if isinstance(one, Source):
            found.setdefault(one)
        inside = one.operands if isinstance(one, Operation) else ()
        for operand in (one.of,) if isinstance(one, Frame) else inside:
            look(operand)

    look(chain)
    return list(found)


def _without_names(chain: Chain, order: dict[Source, int]) -> Any:
    if isinstance(chain, Source):
        return ("bits", order[chain], chain.bits)
    if isinstance(chain, Number):
        return chain
    if isinstance(chain, Frame):
        return chain.law
    return chain.name, chain.params, tuple(_without_names(one, order) for one in chain.operands)
