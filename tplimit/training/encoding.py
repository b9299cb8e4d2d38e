"""Values of tplimit, and plain trees of arrays, as JSON and bytes; no code is stored or run.

In the JSON numbers, strings and None stand for themselves, and all else is `[kind, content]`. What
may occur several times (arrays, the parts of limit values) is written once, in a table, so that it
is shared again after reading. Classes come from a closed list and are written field by field; what
is read has to be what the annotations of the fields say.
"""

import functools
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from fractions import Fraction
from types import UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints, is_typeddict

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import AbstractArray

from tplimit import _jax
from tplimit.arguments import Deferred
from tplimit.declare.entries import Quantiles
from tplimit.declare.parameters import Parameter
from tplimit.declare.widths import Scale, Width
from tplimit.errors import Location
from tplimit.gaussian.bank import Bank
from tplimit.gaussian.deferred import Law, Store
from tplimit.gaussian.kinds import KINDS
from tplimit.matrices.parts import Matrix, Part
from tplimit.program.equations import Aval
from tplimit.training.trajectory import Records
from tplimit.transforms.opaque import LimitValue, Lineage, Revealed
from tplimit.values.exponents import NEVER, Exponents, Size
from tplimit.values.parity import Marginal, Parity
from tplimit.values.spans import Span
from tplimit.values.tensors import Matrices, MatrixRemainder, Patch, Tensor, Term

__all__ = ["Malformed", "OtherFields", "conforms", "decode", "encode"]

_CLASSES = (
    Aval, Bank, Deferred, Exponents, Law, LimitValue, Location, Matrices, Matrix, MatrixRemainder,
    Marginal, Parameter, Parity, Patch, Quantiles, Records, Revealed, Scale, Size, Span, Store,
    Tensor, Term, Width,
)  # fmt: skip
_IMPLS = ("threefry2x32", "rbg", "unsafe_rbg")


def _class(name: str) -> type | None:
    """The class of this name, if it is on the list, a part of matrices, or a kind of noise."""
    classes = (*_CLASSES, *Part.__subclasses__(), *KINDS.values())
    return {cls.__name__: cls for cls in classes}.get(name)


class OtherFields(Exception):
    """A class that is written field by field has not the fields it had."""


class Malformed(Exception):
    """Nothing that `encode` wrote."""


def _fields(cls: type) -> tuple[str, ...]:
    if is_dataclass(cls):
        return tuple(f.name for f in fields(cls))
    return tuple(getattr(cls, "_fields", None) or cls.__slots__)  # type: ignore[attr-defined]


def encode(value: Any) -> tuple[Any, dict[str, np.ndarray]]:
    """A value as JSON, and the bytes of its arrays by name.

    Raises:
        TypeError: a part of it is of a class that is not on the list.
    """
    encoder = _Encoder()
    code = encoder.code(value)
    return {"table": encoder.table, "value": code}, encoder.arrays


class _Encoder:
    def __init__(self) -> None:
        self.table: list[Any] = []
        self.arrays: dict[str, np.ndarray] = {}
        # Values are held as well as numbered: an identity may be used again after deletion.
        self._seen: dict[int, tuple[int, Any]] = {}

    def code(self, value: Any) -> Any:
        kind = type(value)
        if value is None or kind in (bool, int, str):
            return value
        if isinstance(value, Mesh):
            # Devices belong to a process; who reads the values puts them onto devices of his own.
            return None
        if kind is float:
            return ["float", value.hex()]
        if kind is complex:
            return ["complex", [value.real.hex(), value.imag.hex()]]
        if kind is Fraction:
            return ["fraction", str(value)]
        if kind is dict:
            return ["dict", [[self.code(key), self.code(entry)] for key, entry in value.items()]]
        if kind in (list, tuple):
            return [kind.__name__, [self.code(entry) for entry in value]]
        if kind is frozenset:
            return ["set", [self.code(entry) for entry in sorted(value)]]
        if id(value) not in self._seen:
            shared = self._shared(value)
            self._seen[id(value)] = len(self.table), value
            self.table.append(shared)
        return ["shared", self._seen[id(value)][0]]

    def _shared(self, value: Any) -> Any:
        kind = type(value)
        if _class(kind.__name__) is kind:
            content = {name: self.code(getattr(value, name)) for name in _fields(kind)}
            return ["class", [kind.__name__, content]]
        if isinstance(value, Lineage):
            # Who descends from whom matters among the values of one process only.
            return ["lineage", None]
        if isinstance(value, jax.Array):
            if _jax.is_key(value):
                data = np.asarray(jax.random.key_data(value))
                return ["key", [str(jax.random.key_impl(value)), self.code(data)]]
            return ["jax", [self._bytes(np.asarray(value)), bool(value.weak_type)]]
        if isinstance(value, np.generic):
            return ["scalar", self._bytes(np.asarray(value))]
        if isinstance(value, np.ndarray):
            return self._objects(value) if value.dtype == object else ["numpy", self._bytes(value)]
        if isinstance(value, np.dtype):
            return ["dtype", value.name]
        for impl in _IMPLS:
            if kind is type(_key_dtype(impl)) and value == _key_dtype(impl):
                return ["key_dtype", impl]
        raise TypeError(f"a checkpoint cannot hold a {kind.__qualname__}")

    def _bytes(self, array: np.ndarray) -> Any:
        name = str(len(self.arrays))
        # In native byte order, and as it lies in memory.
        flat = np.array(array, dtype=np.dtype(array.dtype.name), order="C").reshape(-1)
        self.arrays[name] = flat.view(np.uint8)
        return [name, array.dtype.name, list(array.shape)]

    def _objects(self, array: np.ndarray) -> Any:
        """Few of the entries differ, as a rule: exponents of a large array take a few levels."""
        distinct: dict[Any, int] = {}
        codes: list[Any] = []
        places: list[int] = []
        for entry in array.flat:
            plain = isinstance(entry, (Fraction, float))
            mark = (type(entry), entry) if plain else id(entry)
            if mark not in distinct:
                distinct[mark] = len(codes)
                codes.append(self.code(entry))
            places.append(distinct[mark])
        index = np.array(places, np.int32).reshape(array.shape)
        return ["objects", [codes, self._bytes(index)]]


@functools.cache
def _key_dtypes() -> set[type]:
    return {type(_key_dtype(impl)) for impl in _IMPLS}


def _key_dtype(impl: str) -> Any:
    return jax.eval_shape(lambda: jax.random.key(0, impl=impl)).dtype


def decode(code: Any, arrays: Mapping[str, np.ndarray]) -> Any:
    """The value that `encode` wrote, bit for bit.

    Raises:
        OtherFields: a class of this version has other fields than when it was written.
        Malformed: `encode` did not write it.
    """
    decoder = _Decoder(arrays)
    try:
        for entry in code["table"]:
            # What an entry refers to stands before it.
            decoder.table.append(decoder.value(entry))
        return decoder.value(code["value"])
    except (OtherFields, Malformed, MemoryError):
        raise
    except Exception as error:  # whatever nonsense leads to
        raise Malformed(f"{type(error).__name__}: {error}") from error


class _Decoder:
    def __init__(self, arrays: Mapping[str, np.ndarray]) -> None:
        self.arrays = arrays
        self.table: list[Any] = []

    def value(self, code: Any) -> Any:
        if not isinstance(code, list):
            return code
        kind, content = code
        return getattr(self, f"read_{kind}")(content)

    def read_shared(self, number: int) -> Any:
        return self.table[number]

    def read_float(self, text: str) -> float:
        return float.fromhex(text)

    def read_complex(self, parts: list[str]) -> complex:
        return complex(*map(float.fromhex, parts))

    def read_fraction(self, text: str) -> Fraction:
        return Fraction(text)

    def read_dict(self, pairs: list[Any]) -> dict[Any, Any]:
        return {self.value(key): self.value(entry) for key, entry in pairs}

    def read_list(self, entries: list[Any]) -> list[Any]:
        return [self.value(entry) for entry in entries]

    def read_tuple(self, entries: list[Any]) -> tuple[Any, ...]:
        return tuple(self.value(entry) for entry in entries)

    def read_set(self, entries: list[Any]) -> frozenset[Any]:
        return frozenset(self.value(entry) for entry in entries)

    def read_class(self, content: Any) -> Any:
        name, codes = content
        cls = _class(name)
        if cls is None or set(_fields(cls)) != set(codes):
            raise OtherFields(f"it has another {name}")
        values = {field: self.value(code) for field, code in codes.items()}
        hints = _hints(cls)
        for field, value in values.items():
            # Records are trees of the user's. What may be None has that as its default.
            missing = value is None and hints[field] is Any and _default(cls, field) is not None
            if cls is not Records and (missing or not conforms(value, hints[field])):
                raise Malformed(f"{name}.{field} is a {type(value).__name__}")
        if cls is Exponents and not all(map(_is_exponent, values["array"].flat)):
            raise Malformed("an exponent is no number")
        if issubclass(cls, tuple):
            return cls(**values)
        # Not by the constructor: what it would check or convert has been so already.
        made = object.__new__(cls)
        for field, value in values.items():
            object.__setattr__(made, field, value)
        return made

    def read_lineage(self, content: None) -> Lineage:
        return Lineage()

    def read_numpy(self, content: Any) -> np.ndarray:
        name, dtype, shape = content
        # A copy: records may be changed by whoever gets them.
        return self.arrays[name].copy().view(np.dtype(dtype)).reshape(shape)

    def read_scalar(self, content: Any) -> Any:
        return self.read_numpy(content)[()]

    def read_jax(self, content: Any) -> jax.Array:
        made = jnp.array(self.read_numpy(content[0]), copy=True)
        return _jax.weakly_typed(made) if content[1] else made

    def read_key(self, content: Any) -> jax.Array:
        return jax.random.wrap_key_data(jnp.array(self.value(content[1])), impl=content[0])

    def read_key_dtype(self, impl: str) -> Any:
        return _key_dtype(impl)

    def read_dtype(self, name: str) -> np.dtype:
        return np.dtype(name)

    def read_objects(self, content: Any) -> np.ndarray:
        codes, places = content
        index = self.read_numpy(places)
        distinct = np.empty(len(codes), dtype=object)
        for i, code in enumerate(codes):
            distinct[i] = self.value(code)
        made = np.empty(index.shape, dtype=object)
        made[...] = distinct[index]
        return made


# --- what is read


@functools.cache
def _hints(cls: type) -> dict[str, Any]:
    return get_type_hints(cls)


def _default(cls: type, field: str) -> Any:
    return getattr(cls, field, MISSING)  # as dataclasses and named tuples keep them


def conforms(value: Any, hint: Any) -> bool:
    """Whether a value is what an annotation says; `Any` stands for arrays and dtypes."""
    kind, inner = get_origin(hint), get_args(hint)
    if hint is Any:
        return value is None or isinstance(value, _ARRAYS) or type(value) in _key_dtypes()
    if kind in (Union, UnionType):
        return any(conforms(value, one) for one in inner)
    if is_typeddict(hint):
        hints = _hints(hint)
        return (
            isinstance(value, dict)
            and value.keys() == hints.keys()
            and all(conforms(entry, hints[name]) for name, entry in value.items())
        )
    if isinstance(hint, type) and issubclass(hint, AbstractArray):
        return isinstance(value, jax.Array)
    if type(value) is bool:
        return hint in (bool, object)
    if not isinstance(value, kind or hint):
        return False
    if kind is dict:
        return all(conforms(k, inner[0]) and conforms(v, inner[1]) for k, v in value.items())
    if kind is tuple and inner[1:] != (...,):
        return len(value) == len(inner) and all(map(conforms, value, inner))
    return kind is None or all(conforms(entry, inner[0]) for entry in value)


_ARRAYS = (jax.Array, np.ndarray, np.generic, np.dtype)


def _is_exponent(value: Any) -> bool:
    return type(value) is Fraction or value == NEVER
