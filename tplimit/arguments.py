"""Arguments of the public functions, checked before any work.

Each check is a function named after the argument. It returns the value in the one form that the
library works with, and refuses what is none by name, saying what was given and what to pass:
``TypeError`` for another kind of thing, ``ValueError`` for a number or a name out of range,
``WidthError`` for what is no width.
"""

import functools
import inspect
import math
import operator
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from numbers import Real
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from tplimit import _jax
from tplimit.errors import LimitError, WidthError

#: The infinite width.
inf = math.inf

#: Lengths of axes are 32 bit numbers.
LONGEST = 2**31 - 1

_MOST_REPLICATES = 2**24


@dataclass(frozen=True)
class Deferred:
    """A finite width ``n``, exact in law, whose random matrices are never formed.

    A network of width ``n`` costs ``O(n r)`` per product, with ``r`` the number of vectors its
    matrices have met, instead of ``O(n^2)``.

    Raises:
        WidthError: ``n`` is no integer from 2 on.
    """

    n: int

    def __post_init__(self) -> None:
        size = _size(self.n, "tp.Deferred(n): n", "an integer from 2 on", least=2)
        object.__setattr__(self, "n", size)


# --- numbers, names and functions


def shown(value: Any) -> str:
    """A value as an error quotes it: short, on one line."""
    shape = getattr(value, "shape", None)
    if shape is not None and hasattr(value, "dtype") and shape != ():
        return f"an array of shape {tuple(shape)} and dtype {value.dtype}"
    text = " ".join(repr(value).split())
    return text if len(text) <= 80 else f"{text[:77]}..."


def whole(name: str, value: Any, *, least: int = 1, most: int = LONGEST, example: int = 1) -> int:
    """An integer, Python's or NumPy's, from ``least`` to ``most``.

    Raises:
        TypeError: another kind of number, such as 1.0, or no number.
        ValueError: out of range.
    """
    number = _integer(value)
    if number is None:
        raise TypeError(
            f"{name}={shown(value)} is no integer: pass one from {least} on, such as {example}"
        )
    if not least <= number <= most:
        raise ValueError(
            f"{name}={number} is out of range: pass an integer from {least} to {_large(most)}, "
            f"such as {example}"
        )
    return number


def _integer(value: Any) -> int | None:
    """An integer as Python's; None for anything else, True and False among it."""
    if isinstance(value, (bool, np.bool_)) or _jax.is_traced(value):
        return None
    if getattr(value, "shape", ()) != () or (hasattr(value, "dtype") and _is_bool(value)):
        return None
    try:
        return operator.index(value)
    except TypeError:
        return None


def _large(number: int) -> str:
    power = (number + 1).bit_length() - 1
    for text, exact in ((f"2**{power}", 2**power), (f"2**{power} - 1", 2**power - 1)):
        if number == exact and number > 1000:
            return text
    return str(number)


def real(name: str, value: Any, pass_: str = "a number such as 0.5") -> float:
    """A finite real number: Python's, NumPy's, a ``Fraction`` or a scalar of JAX, as a float.

    Raises:
        TypeError: no real number.
        ValueError: NaN, or infinite.
    """
    number = number_of(value)
    if number is None:
        raise TypeError(f"{name}={shown(value)} is no real number: pass {pass_}")
    if not math.isfinite(number):
        raise ValueError(f"{name}={number} is not finite: pass {pass_}")
    return number


def number_of(value: Any) -> float | None:
    """A real number as a float (infinite where it is too large); None for anything else."""
    if isinstance(value, (bool, np.bool_)) or _jax.is_traced(value):
        return None
    if hasattr(value, "dtype"):
        if value.shape or _is_bool(value) or not jnp.issubdtype(value.dtype, np.number):
            return None
        if np.iscomplexobj(value):
            return None
    elif not isinstance(value, Real):
        return None
    try:
        return float(value)
    except OverflowError:
        return inf


def positive(name: str, value: Any, pass_: str = "a positive number such as 0.5") -> float:
    """A finite real number above 0, as a float."""
    number = real(name, value, pass_)
    if number <= 0:
        raise ValueError(f"{name}={number} is not positive: pass {pass_}")
    return number


def not_negative(name: str, value: Any, pass_: str = "0 or a positive number") -> float:
    """A finite real number, 0 or above, as a float."""
    number = real(name, value, pass_)
    if number < 0:
        raise ValueError(f"{name}={number} is negative: pass {pass_}")
    return number


def scalar(name: str, value: Any, pass_: str = "a number such as 0.5") -> Any:
    """A finite real number, or one that JAX is tracing; as it was given."""
    if not _jax.is_traced(value):
        real(name, value, pass_)
    return value


def one_of(name: str, value: Any, choices: Collection[str]) -> str:
    """One of several names."""
    options = " or ".join(map(repr, choices))
    if not isinstance(value, str):
        raise TypeError(f"{name}={shown(value)} is no name: pass {options}")
    if value not in choices:
        raise ValueError(f"{name}={value!r} is not known: pass {options}")
    return value


def flag(name: str, value: Any) -> bool:
    """True or False."""
    if not isinstance(value, (bool, np.bool_)):
        raise TypeError(f"{name}={shown(value)} is neither True nor False")
    return bool(value)


def function(name: str, value: Any, signature: str) -> Callable[..., Any]:
    """A function, or another thing that can be called."""
    if not callable(value):
        raise TypeError(f"{name}={shown(value)} is no function: pass {name}{signature}")
    return value


# --- widths and particles


def width(value: Any, names: Collection[str] | None = None) -> Any:
    """What to sample at: ``inf``, ``Deferred(n)``, an integer, or {name: integer}.

    ``names``: the widths that are declared, where they are known.
    """
    if isinstance(value, Deferred):
        return value
    if isinstance(value, Mapping):
        return _widths_by_name(value, names)
    if isinstance(value, (float, np.floating)) and value == inf:
        return inf
    return _size(value, "width", "a positive integer, {name: integer}, tp.Deferred(n) or tp.inf")


def _size(value: Any, name: str, wanted: str, least: int = 1) -> int:
    try:
        return whole(name, value, least=least)
    except (TypeError, ValueError):
        raise WidthError(
            f"{name}={shown(value)} is not a width.",
            advice=f"Pass {wanted}, up to {_large(LONGEST)}.",
        ) from None


def _widths_by_name(given: Mapping[Any, Any], names: Collection[str] | None) -> dict[str, int]:
    for name, size in given.items():
        if isinstance(size, Deferred) or (isinstance(size, float) and size == inf):
            raise WidthError(
                f"width={dict(given)!r} has {name!r} at {size!r}.",
                advice="Widths go to infinity, and are deferred, together, in the ratios that are "
                f"declared: pass width={'tp.inf' if size == inf else 'tp.Deferred(n)'}.",
            )
    found = {name: _size(n, f"width[{name!r}]", "a positive integer") for name, n in given.items()}
    if names is None:
        return found
    example = ", ".join(f"{name!r}: 64" for name in sorted(names))
    for what, wrong in (
        ("has no size of", sorted(set(names) - set(found))),
        ("names, but no parameter has,", sorted(set(found) - set(names), key=str)),
    ):
        if wrong:
            raise WidthError(
                f"width={dict(given)!r} {what} the width {', '.join(map(repr, wrong))}.",
                advice=f"Pass a size for every width, width={{{example}}}.",
            )
    return found


def widths(values: Any) -> list[int]:
    """The finite widths of a comparison, all different."""
    if isinstance(values, (str, Mapping)) or not np.iterable(values):
        raise TypeError(
            f"widths={shown(values)} is no list of integers: pass for instance [64, 256, 1024]"
        )
    found = [_size(value, "widths: one", "integers, such as [64, 256, 1024]") for value in values]
    if not found or len(set(found)) < len(found):
        raise ValueError(
            f"widths={found} have to be at least one and all different: pass for instance "
            "[64, 256, 1024]"
        )
    return found


def samples(value: Any) -> int:
    """Particles per common width."""
    return whole("samples", value, least=2, most=2**30, example=2**14)


def pair_samples(value: Any, terms: int = 1) -> int | None:
    """Particles over which functions of pairs are averaged, or None."""
    if value is None:
        return None
    if terms > 1:
        raise ValueError(
            "pair_samples is for one term: fluctuations of functions of pairs need all particles; "
            "leave it out, or take fewer samples"
        )
    return whole("pair_samples", value, least=2, most=2**30, example=2**9)


def replicates(value: Any, name: str = "replicates") -> int:
    """Independent repetitions."""
    return whole(name, value, most=_MOST_REPLICATES, example=4)


def keep(value: Any, last: int) -> tuple[int, ...] | None:
    """Steps at which states are kept, from 0 to the last, or None."""
    if value is None:
        return None
    wanted = f"pass steps from 0 to {last}, or from the end, such as keep=[0, -1]"
    if isinstance(value, (str, Mapping)) or not np.iterable(value):
        raise TypeError(f"keep={shown(value)} is no list of steps: {wanted}")
    found = [_integer(step) for step in value]
    if None in found:
        raise TypeError(f"keep={shown(value)} has steps that are no integers: {wanted}")
    steps = {step if step >= 0 else last + 1 + step for step in found if step is not None}
    if steps and not 0 <= min(steps) <= max(steps) <= last:
        raise ValueError(f"keep={shown(value)} has steps that the run has not: {wanted}")
    return tuple(sorted(steps))


def terms(value: Any) -> int:
    """Terms of the expansion in the width."""
    return whole("terms", value, most=3, example=2)


def init_output(value: Any) -> str:
    """The initial function, with several terms."""
    return one_of("init_output", value, ("sample", "zero"))


def rank_tolerance(value: Any) -> float | None:
    """A share of a second moment, or None."""
    if value is None:
        return None
    wanted = "a number from 0 (round-off) to below 1, such as 1e-6"
    share = not_negative("rank_tolerance", value, wanted)
    if share >= 1:
        raise ValueError(f"rank_tolerance={share} is no share of a second moment: pass {wanted}")
    return share


def mesh(value: Any) -> Mesh | None:
    """Devices that share the particles, or None."""
    if value is not None and not isinstance(value, Mesh):
        raise TypeError(f'mesh={shown(value)} is no mesh: pass jax.make_mesh((4,), ("particles",))')
    return value


# --- random keys


def key(value: Any, name: str = "key") -> jax.Array:
    """One random key, as a typed one: of the old kind, ``jax.random.PRNGKey(0)``, as well.

    Raises:
        TypeError: something else, such as an integer.
        ValueError: an array of keys.
    """
    dtype, shape = getattr(value, "dtype", None), getattr(value, "shape", None)
    wanted = "jax.random.key(0), for instance"
    one = () if dtype is not None and _jax.is_key(value) else _jax.raw_key_shape()
    if dtype is None or shape is None or not (one == () or dtype == np.uint32):
        raise TypeError(f"{name}={shown(value)} is no random key: pass {wanted}")
    if shape == one:
        return value if one == () else jax.random.wrap_key_data(value)
    if len(shape) > len(one) and shape[len(shape) - len(one) :] == one:
        raise ValueError(
            f"{name}={shown(value)} holds several random keys: pass one of them, {name}[0] "
            f"(keys are split off it here), or {wanted}"
        )
    raise TypeError(f"{name}={shown(value)} is no random key: pass {wanted}")


# --- arrays


def numbers(name: str, value: Any) -> Any:
    """An array of real numbers, of NumPy or JAX; nested lists are made one.

    Raises:
        ValueError: rows of unequal length, or something else than real numbers.
    """
    if not hasattr(value, "dtype"):
        try:
            value = np.asarray(value)
        except ValueError as error:
            raise ValueError(f"{name} is no array: {error}; pass rows of equal length") from error
    if not is_array(value) or _jax.is_key(value) or np.iscomplexobj(value):
        given = shown(value) if value.dtype == object else f"has dtype {value.dtype}"
        raise ValueError(f"{name} {given}, real numbers are expected")
    return value


def points(name: str, value: Any) -> Any:
    """An array of real numbers with one point or more along its first axis."""
    found = numbers(name, value)
    if found.ndim == 0 or len(found) == 0:
        raise ValueError(
            f"{name} has to hold points along its first axis, but its shape is {found.shape}"
        )
    return found


def is_array(value: Any) -> bool:
    """Whether JAX takes it for an array of numbers or keys."""
    if isinstance(value, (bool, int, float, complex)):
        return True
    if not hasattr(value, "dtype") or not hasattr(value, "shape"):
        return hasattr(type(value), "__jax_array__")
    return _jax.is_key(value) or _is_bool(value) or bool(jnp.issubdtype(value.dtype, np.number))


def _is_bool(array: Any) -> bool:
    return bool(jnp.issubdtype(array.dtype, np.bool_))


def arrays(name: str, tree: Any, wanted: str, of: str = "") -> None:
    """A tree whose leaves are arrays and numbers; ``of`` says whose it is.

    Raises:
        TypeError: a leaf is something else, such as a string.
    """
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        if not is_array(leaf):
            raise TypeError(
                f"{name}{jax.tree_util.keystr(path)}{of} is {shown(leaf)}, of type "
                f"{type(leaf).__name__}, which is no array: {wanted}"
            )


def returned(source: Callable[..., Any], tree: Any) -> Any:
    """What a function of the user's returned: a tree of arrays and numbers."""
    wanted = "return arrays and numbers, in dicts, lists and tuples"
    arrays("output", tree, wanted, f" of {described(source)}")
    return tree


def records(source: Callable[..., Any], tree: Any) -> Any:
    """What is recorded of the output of a user's function: no random keys."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        if hasattr(leaf, "dtype") and _jax.is_key(leaf):
            raise TypeError(
                f"output{jax.tree_util.keystr(path)} of {described(source)} is a random key, which "
                "is no number to record: return jax.random.key_data(key)"
            )
    return tree


def described(source: Any) -> str:
    """A function by its name and where it is written."""
    inner = inspect.unwrap(source)
    while isinstance(inner, functools.partial):
        inner = inspect.unwrap(inner.func)
    code = getattr(inner, "__code__", None)
    name = getattr(inner, "__qualname__", type(inner).__name__)
    return name if code is None else f"{name} ({code.co_filename}:{code.co_firstlineno})"


def theta(tree: Any) -> Any:
    """Declarations, and arrays beside them.

    Raises:
        LimitError: there is no declaration, or it is sampled already: these parameters would be the
            same in every replicate, whatever the width and the key.
        TypeError: a leaf is neither a declaration nor an array.
    """
    leaves = jax.tree.leaves(tree)
    declared = any(hasattr(leaf, "tplimit_parameter") for leaf in leaves)
    if not declared or any(hasattr(type(leaf), "tplimit_value") for leaf in leaves):
        raise LimitError(
            "theta is sampled already, or declares no parameter.",
            advice="Pass the declarations (tp.normal, ...) as theta: it is sampled here, once for "
            "every replicate.",
        )
    arrays("theta", tree, "pass declarations (tp.normal, ...), arrays and numbers")
    return tree


def batches(value: Any) -> list[Any]:
    """One entry per step."""
    if isinstance(value, (tuple, Mapping)):
        raise TypeError(
            f"batches is a {type(value).__name__}: is it one batch, a list of batches, or arrays "
            "stacked over steps? For stacked arrays X and Y write list(zip(X, Y)); for one step "
            "with (x, y) write [(x, y)]"
        )
    if isinstance(value, str) or not np.iterable(value):
        raise TypeError(
            f"batches={shown(value)} is of type {type(value).__name__}: pass a list of batches, or "
            "arrays stacked along a leading axis"
        )
    found = list(value)
    if not found:
        raise ValueError("batches is empty: there is no step to make; pass one batch per step")
    for step, batch in enumerate(found):
        arrays(f"batches[{step}]", batch, "batches hold arrays and numbers")
    return found
