"""Limit values as users hold them: opaque leaves that share one bank of revealed randomness."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, NoReturn

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec, Sharding

from tplimit._jax import is_key, is_traced
from tplimit.errors import OPAQUE, OPAQUE_ADVICE, LimitError, Location, OpaqueAttributeError
from tplimit.gaussian.bank import Bank, merged, shifted
from tplimit.matrices.parts import Matrix
from tplimit.program.equations import Aval
from tplimit.transforms import sharding
from tplimit.values.exponents import EXACT_ZERO, ORDER_ONE, Size
from tplimit.values.fields import COMMON, map_arrays, stores_in
from tplimit.values.tensors import Tensor, Term, Value, tensor


class Lineage:
    """Where a bank comes from: a chain of versions, by identity."""

    __slots__ = ("parents",)

    def __init__(self, *parents: "Lineage") -> None:
        self.parents = parents

    def ancestors(self) -> set[int]:
        """Identities of this version and all before it."""
        seen: set[int] = set()
        stack: list[Lineage] = [self]
        while stack:
            version = stack.pop()
            if id(version) not in seen:
                seen.add(id(version))
                stack.extend(version.parents)
        return seen


@dataclass(frozen=True)
class Revealed:
    """A bank as users' values share it, with its lineage and bounds on the rows in use."""

    bank: Bank
    lineage: Lineage
    used: dict[int, int] = field(default_factory=dict)


class LimitValue:
    """A parameter or result at infinite (or deferred) width. Opaque outside limited functions.

    It is a leaf of pytrees. Use it through ``tp.limit(fn)(value)``.
    """

    tplimit_value: ClassVar[bool] = True
    __slots__ = ("_aval", "_origin", "_random", "_revealed", "_value")
    _aval: Aval
    _origin: Location | None
    _random: tuple[bool, ...]  # terms that are other numbers for every draw
    _revealed: Revealed | None
    _value: Value

    def __init__(
        self,
        value: Value,
        aval: Aval,
        revealed: Revealed | None,
        origin: Location | None = None,
        random: tuple[bool, ...] = (),
    ) -> None:
        self._value = value
        self._random = random
        self._aval = aval
        self._revealed = revealed
        self._origin = origin

    def __repr__(self) -> str:
        return f"LimitValue({self._aval})"

    @property
    def __jax_array__(self) -> NoReturn:
        # A property: JAX asks for the attribute before it calls it, everywhere.
        raise LimitError(OPAQUE, advice=OPAQUE_ADVICE)

    def __getattr__(self, name: str) -> NoReturn:
        raise OpaqueAttributeError(f"{OPAQUE} It has no {name!r}.", advice=OPAQUE_ADVICE)

    def __reduce__(self) -> NoReturn:
        raise LimitError(f"{OPAQUE} It cannot be pickled or copied.", advice=OPAQUE_ADVICE)

    def __copy__(self) -> "LimitValue":
        return self  # immutable

    def __deepcopy__(self, memo: dict[int, Any]) -> "LimitValue":
        return self

    def __array__(self, *args: Any, **kwargs: Any) -> NoReturn:
        raise LimitError(OPAQUE, advice=OPAQUE_ADVICE)


def _opaque(self: LimitValue, *args: Any) -> NoReturn:
    raise LimitError(OPAQUE, advice=OPAQUE_ADVICE)


for _name in [
    "add",
    "radd",
    "sub",
    "rsub",
    "mul",
    "rmul",
    "truediv",
    "rtruediv",
    "pow",
    "rpow",
    "matmul",
    "rmatmul",
    "neg",
    "pos",
    "abs",
    "floordiv",
    "rfloordiv",
    "mod",
    "rmod",
    "divmod",
    "and",
    "or",
    "xor",
    "invert",
    "getitem",
    "len",
    "iter",
    "float",
    "int",
    "bool",
    "lt",
    "le",
    "gt",
    "ge",
]:
    setattr(LimitValue, f"__{_name}__", _opaque)


def mesh_of(leaves: Iterable[Any]) -> Mesh | None:
    """The mesh that the particles of limit values lie on, or None."""
    for leaf in leaves:
        if isinstance(leaf, LimitValue) and leaf._revealed is not None:
            return leaf._revealed.bank.mesh
    return None


def beside(leaves: Sequence[Any]) -> list[Any]:
    """The same leaves with ordinary arrays moved to the devices that the limit values lie on."""
    home = next((s for s in map(_sharding, leaves) if s is not None), None)

    def brought(leaf: Any) -> Any:
        if home is None or not isinstance(leaf, jax.Array) or is_traced(leaf):
            return leaf
        elsewhere = leaf.committed and leaf.sharding.device_set != home.device_set
        return jax.device_put(leaf, home) if elsewhere else leaf

    return [brought(leaf) for leaf in leaves]


def _sharding(leaf: Any) -> Sharding | None:
    """Where arrays lie that are not divided, beside a limit value; None for what is none."""
    if not isinstance(leaf, LimitValue) or leaf._revealed is None:
        return None
    bank = leaf._revealed.bank
    if bank.mesh is not None:
        return NamedSharding(bank.mesh, PartitionSpec())
    arrays = [array for array in jax.tree.leaves(leaf._value) if isinstance(array, jax.Array)]
    return arrays[0].sharding if arrays and not is_traced(arrays[0]) else None


def on_mesh(mesh: Mesh | None, leaves: Sequence[Any]) -> list[Any]:
    """The same leaves with their limit values moved onto the mesh; what they share stays shared."""
    if mesh is None:
        return list(leaves)
    moved: dict[int, Revealed] = {}
    values: dict[int, Any] = {}

    def move(leaf: Any) -> Any:
        if not isinstance(leaf, LimitValue):
            return leaf
        own = leaf._revealed
        if own is not None and id(own) not in moved:
            bank = sharding.placed(mesh, replace(own.bank, mesh=mesh))
            moved[id(own)] = replace(own, bank=bank)
        if id(leaf._value) not in values:
            values[id(leaf._value)] = sharding.placed(mesh, leaf._value, _replicates(leaf))
        revealed = None if own is None else moved[id(own)]
        return LimitValue(values[id(leaf._value)], leaf._aval, revealed, leaf._origin, leaf._random)

    return [move(leaf) for leaf in leaves]


def _replicates(leaf: LimitValue) -> int:
    """Axes of replicates before those of a value."""
    value = leaf._value
    return len(value.shape) - len(leaf._aval.shape) if isinstance(value, Tensor) else 0


def revealed_directions(tree: Any) -> tuple[int, ...]:
    """Directions that have been revealed of each random matrix in a tree of limit values."""
    for leaf in jax.tree.leaves(tree):
        if isinstance(leaf, LimitValue) and leaf._revealed is not None:
            return tuple(int(store.count) for store in leaf._revealed.bank.stores)
    return ()


def with_terms(tree: Any, terms: int) -> Any | None:
    """The same limit values with more terms kept from now on.

    None where that is no longer possible: at finite width, with as many terms already, or when
    random matrices have been revealed without the changes that further terms need.
    """
    leaves = jax.tree.leaves(tree)
    banks = [leaf._revealed for leaf in leaves if isinstance(leaf, LimitValue) and leaf._revealed]
    if not banks or any(b.bank.law.exact or b.bank.terms >= terms or b.used for b in banks):
        return None
    return with_banks(tree, lambda own: Revealed(own.bank.of_terms(terms), own.lineage))


def has_matrices(tree: Any) -> bool:
    """Whether among the parameters that limit values were sampled with are random matrices."""
    revealed = [leaf._revealed for leaf in jax.tree.leaves(tree) if isinstance(leaf, LimitValue)]
    return any(one is not None and one.bank.stores for one in revealed)


def _another(key: jax.Array) -> jax.Array:
    return jax.random.fold_in(key, 1)


def with_other_draws(tree: Any) -> Any:
    """The same limit values with other central-limit terms of sums over a width.

    These are drawn when a sum is made: values as sampled, before anything was computed.
    """

    def redrawn(revealed: Revealed) -> Revealed:
        key = revealed.bank.key
        if key is not None:
            replicated = key.ndim > (0 if is_key(key) else 1)
            key = (jax.vmap(_another) if replicated else _another)(key)
        return Revealed(replace(revealed.bank, key=key), Lineage())

    return with_banks(tree, redrawn)


def with_banks(tree: Any, change: Callable[[Revealed], Revealed]) -> Any:
    """The same limit values with other banks; what is shared stays shared."""
    changed: dict[int, Revealed] = {}

    def other(leaf: Any) -> Any:
        own = leaf._revealed if isinstance(leaf, LimitValue) else None
        if own is None:
            return leaf
        if id(own) not in changed:
            changed[id(own)] = change(own)
        return LimitValue(leaf._value, leaf._aval, changed[id(own)], leaf._origin, leaf._random)

    return jax.tree.map(other, tree)


def copied(tree: Any) -> Any:
    """The same limit values, with a copy of all that a call which consumes them would reuse."""

    def own_memory(revealed: Revealed) -> Revealed:
        stores = jax.tree.map(jnp.copy, revealed.bank.stores)
        return replace(revealed, bank=replace(revealed.bank, stores=stores))

    return with_banks(tree, own_memory)


def replicate(tree: Any, index: int) -> Any:
    """One of the replicates in a tree of limit values that have an axis of them."""
    banks: dict[int, Revealed] = {}

    def picked(tree: Any) -> Any:
        return map_arrays(lambda a, _, role: a if role == COMMON["role"] else a[index], tree)

    def bank_of(revealed: Revealed) -> Revealed:
        if id(revealed) not in banks:
            banks[id(revealed)] = replace(revealed, bank=picked(revealed.bank))
        return banks[id(revealed)]

    def one(leaf: Any) -> Any:
        if not isinstance(leaf, LimitValue):
            return leaf
        own = None if leaf._revealed is None else bank_of(leaf._revealed)
        return LimitValue(picked(leaf._value), leaf._aval, own, leaf._origin, leaf._random)

    return jax.tree.map(one, tree)


def sound(leaf: LimitValue, replicates: int) -> bool:
    """Whether the parts of a limit value fit together, as far as can be seen without a program."""
    value, shape, own = leaf._value, leaf._aval.shape, leaf._revealed
    bank = Bank() if own is None else own.bank
    many = () if replicates == 1 else (replicates,)
    fitting: list[bool] = []

    def note(array: Any, axis: int | None, role: str) -> Any:
        before = () if role == COMMON["role"] else many
        fitting.append(np.shape(array)[: len(before)] == before)
        fitting.append(axis is None or np.ndim(array) > len(before))
        return array

    map_arrays(note, (value, bank))
    if not all(fitting):
        return False

    def of_rank(term: Term) -> bool:
        arrays = [a for a in (term.coefficient, term.stderr, term.zeros) if a is not None]
        return all(np.ndim(array) == len(many) + len(shape) for array in arrays)

    def of_stores(matrix: Any) -> bool:
        known = isinstance(matrix, Matrix)
        return known and all(0 <= label < len(bank.stores) for label in stores_in(matrix))

    axes: tuple[int, ...]
    if isinstance(value, Tensor):
        axes = () if value.axis is None else (value.axis,)
        fits = bool(value.terms) and all(map(of_rank, value.terms))
    else:
        axes = value.axes
        finite = tuple(dim for dim in shape if not isinstance(dim, Size))
        fits = value.items.shape == finite and all(map(of_stores, value.items.flat))
    return fits and axes == leaf._aval.width_axes


# Entering: banks of the arguments, and their values with labels of the joint bank.


def gathered(leaves: list[Any]) -> tuple[Revealed | None, list[Value]]:
    """One bank for all limit values among the arguments; the newest of related ones."""
    found: list[Revealed] = []
    for leaf in leaves:
        own = leaf._revealed if isinstance(leaf, LimitValue) else None
        if own is not None and all(own.lineage is not other.lineage for other in found):
            found.append(own)
    tips = _tips(found)
    if not tips:
        return None, [_plain(leaf) for leaf in leaves]
    if len(tips) == 1:
        values = [leaf._value if isinstance(leaf, LimitValue) else _plain(leaf) for leaf in leaves]
        return tips[0], values
    _refuse_equal_keys(tips)
    laws = {
        (b.n, b.law, b.terms, b.fluctuating, b.pair_samples) for b in (tip.bank for tip in tips)
    }
    if len(laws) > 1:
        raise LimitError(
            "Values sampled at different widths, samples, noise or numbers of terms are combined."
        )
    if len({tip.bank.mesh for tip in tips}) > 1:
        raise LimitError("Values on different meshes of devices are combined.")
    bank, shifts = merged([tip.bank for tip in tips])
    ancestors = [tip.lineage.ancestors() for tip in tips]
    used: dict[int, int] = {}
    for tip, (stores, _) in zip(tips, shifts, strict=True):
        used |= {index + stores: count for index, count in tip.used.items()}
    values = []
    for leaf in leaves:
        if not isinstance(leaf, LimitValue):
            values.append(_plain(leaf))
            continue
        own = leaf._revealed
        shift = (0, 0)
        if own is not None:
            place = next(i for i, ids in enumerate(ancestors) if id(own.lineage) in ids)
            shift = shifts[place]
        values.append(shifted(leaf._value, *shift))
    return Revealed(bank, Lineage(*(tip.lineage for tip in tips)), used), values


def _refuse_equal_keys(tips: list[Revealed]) -> None:
    """Two samples drawn with one key hold the same matrices twice, which has no meaning here."""
    seen: set[bytes] = set()
    for tip in tips:
        own = {np.asarray(jax.random.key_data(s.key_Y)).tobytes() for s in tip.bank.stores}
        if own & seen:
            raise LimitError(
                "Two samples that were drawn with the same key are combined.",
                advice="Use one sample twice, or draw them with different keys.",
            )
        seen |= own


def _tips(found: list[Revealed]) -> list[Revealed]:
    """The newest versions; two that share an ancestor are a fork, which has no joint law."""
    if len(found) <= 1:
        return found
    ancestors = [revealed.lineage.ancestors() for revealed in found]
    tips = [
        i for i, revealed in enumerate(found)
        if not any(id(revealed.lineage) in ids for j, ids in enumerate(ancestors) if j != i)
    ]  # fmt: skip
    for k, i in enumerate(tips):
        for j in tips[k + 1 :]:
            if ancestors[i] & ancestors[j]:
                raise LimitError(
                    "Two values come from the same sample but from different calls: each call "
                    "has revealed the random matrices in its own way, so they have no joint law.",
                    advice="Compute both in one function: tp.limit(lambda ...: (first, second)).",
                )
    return [found[i] for i in tips]


def _plain(leaf: Any) -> Tensor:
    if isinstance(leaf, LimitValue):
        assert isinstance(leaf._value, Tensor)
        return leaf._value
    array = _as_array(leaf)
    # A zero is known before the run: a bias of 0 is of no order, and hides nothing below it.
    known = not is_traced(array) and array.is_fully_addressable
    zero = known and jnp.issubdtype(array.dtype, jnp.floating) and not np.any(np.asarray(array))
    return tensor(array, EXACT_ZERO if zero else ORDER_ONE)


def _as_array(leaf: Any) -> jax.Array:
    if isinstance(leaf, jax.Array):
        return leaf
    try:
        return jnp.asarray(leaf)
    except TypeError:
        raise LimitError(
            f"An argument of type {type(leaf).__name__} is no array.",
            advice="Arguments are limit values, arrays and numbers; close over anything else.",
        ) from None


def aval_of(leaf: Any) -> Aval:
    if isinstance(leaf, LimitValue):
        return leaf._aval
    shaped = jax.typeof(_as_array(leaf))
    return Aval(tuple(shaped.shape), shaped.dtype)


def weak(leaf: Any) -> bool:
    if isinstance(leaf, (bool, int, float, complex)):
        return True
    return bool(getattr(leaf, "weak_type", False)) if isinstance(leaf, jax.Array) else False
