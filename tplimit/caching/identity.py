"""What was traced, as a key: equal keys compute the same numbers.

Names, source lines and rules of differentiation take no part in an evaluation, nor in the key.
Numbers are compared bit for bit, arrays by their bytes. What cannot be looked into (a callback, an
object without a hash) is equal to itself only.
"""

import dataclasses
import hashlib
from collections.abc import Hashable, Mapping
from typing import Any

import jax
import numpy as np

from tplimit import _jax

#: Arrays of more bytes are kept as a digest.
_SHORT = 64


class Identity:
    """The key of some values; hashed once.

    Attributes:
        weight: bytes of the arrays among them.
    """

    __slots__ = ("_hash", "_parts", "weight")

    def __init__(self, parts: Hashable, weight: int) -> None:
        self._parts, self._hash, self.weight = parts, hash(parts), weight

    def __hash__(self) -> int:
        return self._hash

    def __eq__(self, other: object) -> bool:
        return self is other or (isinstance(other, Identity) and self._parts == other._parts)


def identity(*values: Any) -> Identity:
    """The key of programs (jaxprs or those of ``tracing.py``), of arrays and other arguments."""
    reader = _Reader()
    return Identity(reader.read(values), reader.weight)


class _Itself:
    """An object that is equal to itself only, kept alive so that its address stays its own."""

    __slots__ = ("value",)

    def __init__(self, value: Any) -> None:
        self.value = value

    def __hash__(self) -> int:
        return id(self.value)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Itself) and self.value is other.value


class _Reader:
    """Reads values into nested tuples."""

    def __init__(self) -> None:
        self.weight = 0

    def read(self, value: Any) -> Hashable:
        kind = type(value)
        if value is None or isinstance(value, (bool, int, str, bytes)):
            return kind, value
        if isinstance(value, float):
            return kind, value.hex()
        if isinstance(value, complex):
            return kind, value.real.hex(), value.imag.hex()
        if _jax.is_jaxpr(value):
            return self.jaxpr(value)
        if isinstance(value, (tuple, list)):
            return (kind, *map(self.read, value))
        if isinstance(value, Mapping):
            return (kind, *((key, self.read(value[key])) for key in sorted(value)))
        if isinstance(value, (np.ndarray, np.generic, jax.Array)):
            return self.array(value)
        if isinstance(value, type):
            return value
        if _compared_by_fields(value):
            fields = (f.name for f in dataclasses.fields(value) if f.compare)
            return (kind, *(self.read(getattr(value, name)) for name in fields))
        return self.other(value)

    def array(self, value: Any) -> Hashable:
        if _jax.is_traced(value) or not getattr(value, "is_fully_addressable", True):
            return _Itself(value)
        place = getattr(value, "sharding", None)
        form = (place, str(value.dtype), value.shape, _jax.is_weak(value))
        if _jax.is_key(value):
            with jax.ensure_compile_time_eval():
                value = jax.random.key_data(value)
        array = np.asarray(value)
        if array.dtype == object:
            return (form, *map(self.read, array.flat))
        self.weight += array.nbytes
        data = array.tobytes()
        return form, data if len(data) <= _SHORT else hashlib.sha256(data).digest()

    def other(self, value: Any) -> Hashable:
        # Callables may be equal, as bound methods are, and yet do something else by now.
        if callable(value):
            return _Itself(value)
        try:
            hash(value)
        except TypeError:
            return _Itself(value)
        return type(value), value

    def jaxpr(self, value: Any) -> Hashable:
        """Variables by the order in which they appear."""
        jaxpr, constants = _jax.open_jaxpr(value)
        numbers: dict[Any, int] = {}

        def new(variables: Any) -> Hashable:
            for variable in variables:
                numbers[variable] = len(numbers)
            return tuple(variable.aval for variable in variables)

        def used(atom: Any) -> Hashable:
            if isinstance(atom, _jax.Literal):
                return atom.aval, self.read(_jax.plain_literal(atom.val))
            return numbers[atom]

        def equation(e: Any) -> Hashable:
            operands = tuple(map(used, e.invars))
            params = self.read(_jax.evaluated_params(e))
            return e.primitive, operands, params, new(e.outvars), _jax.settings(e)

        return (
            "jaxpr",
            tuple(map(self.read, constants)),
            new(jaxpr.constvars),
            new(jaxpr.invars),
            tuple(map(equation, jaxpr.eqns)),
            tuple(map(used, jaxpr.outvars)),
        )


def _compared_by_fields(value: Any) -> bool:
    """Whether a value is an unchanging dataclass whose fields are all there is to it."""
    settings = getattr(type(value), "__dataclass_params__", None)
    return settings is not None and settings.frozen and settings.eq
