"""Everything tplimit takes from JAX outside its public numerical API. No other file does."""

import contextlib
import functools
import itertools
import os
import sysconfig
import traceback
from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jax.extend import core as jex_core, source_info_util
from jax.extend.core import primitives

from tplimit.errors import Location

Primitive = jex_core.Primitive
Jaxpr = jex_core.Jaxpr
JaxprEqn = jex_core.JaxprEqn
ClosedJaxpr = jex_core.ClosedJaxpr
Literal = jex_core.Literal
Var = jex_core.Var
jaxpr_as_fun = jex_core.jaxpr_as_fun

__all__ = [
    "ClosedJaxpr",
    "Jaxpr",
    "JaxprEqn",
    "Literal",
    "Primitive",
    "Var",
    "compiled",
    "dumped",
    "entry_function",
    "evaluated_params",
    "form",
    "former_names",
    "inner_program",
    "is_jaxpr",
    "is_key",
    "is_traced",
    "is_weak",
    "jaxpr_as_fun",
    "loaded",
    "location",
    "log2_p",
    "one_minus_square_p",
    "open_jaxpr",
    "part",
    "plain_literal",
    "primitives",
    "program_of",
    "scan_layout",
    "settings",
    "shapes_of",
    "split_p",
    "stack_p",
    "tile_p",
    "traced",
    "traced_anew",
    "unstack_p",
    "user_location",
    "weakly_typed",
]


# Public in `jax.lax` alone. JAX 0.10.0 lacks some.
split_p: Primitive | None = getattr(jax.lax, "split_p", None)
stack_p: Primitive | None = getattr(jax.lax, "stack_p", None)
unstack_p: Primitive | None = getattr(jax.lax, "unstack_p", None)
tile_p: Primitive | None = getattr(jax.lax, "tile_p", None)
# New in JAX 0.12.
log2_p: Primitive | None = getattr(primitives, "log2_p", None)
one_minus_square_p: Primitive | None = getattr(primitives, "one_minus_square_p", None)

# Frames of this package are never "the user's line". The match is by prefix, hence the separator.
source_info_util.register_exclusion(os.path.dirname(os.path.abspath(__file__)) + os.sep)

# Primitives whose body is simply evaluated in place, with the parameter that holds it.
_INLINE: dict[str, str] = {
    "jit": "jaxpr",
    "pjit": "jaxpr",
    "closed_call": "call_jaxpr",
    "eval_jaxpr": "call_jaxpr",
    "core_call": "call_jaxpr",
    "custom_jvp_call": "call_jaxpr",
    "custom_vjp_call": "call_jaxpr",
    "custom_vjp_call_jaxpr": "fun_jaxpr",
    "remat2": "jaxpr",
    "checkpoint": "jaxpr",
    "custom_lin": "jaxpr",
}


def is_jaxpr(value: Any) -> bool:
    """Whether a parameter is a jaxpr, open or closed (one class from JAX 0.12 on)."""
    return isinstance(value, (Jaxpr, ClosedJaxpr))


def open_jaxpr(value: Any) -> tuple[Any, list[Any]]:
    """The open jaxpr and its constants. From JAX 0.12 ``ClosedJaxpr is Jaxpr``."""
    if isinstance(value, ClosedJaxpr):
        inner = getattr(value, "jaxpr", value)
        return inner, list(value.consts)
    return value, list(getattr(value, "consts", ()))


# Functions of one variable that JAX computes by way of the bits of their argument, and what they
# are: of a value that is known up to a remainder there are no bits to look at.
_BY_BITS: dict[str, Callable[[Any], Any]] = {
    "exp_neg_sq": lambda x: jax.numpy.exp(-x * x),  # the derivative of erf from JAX 0.12 on
}


def inner_program(equation: Any) -> Any | None:
    """The jaxpr that a call-like equation merely evaluates, or None."""
    if equation.primitive.name == "custom_jvp_call":
        body, _ = open_jaxpr(equation.params["call_jaxpr"])
        plain = _BY_BITS.get(getattr(body.debug_info, "func_name", ""))
        if plain is not None:
            return program_of(plain, equation)
    if _is_composite(equation):
        return _expanded(equation)
    if equation.primitive is primitives.convert_element_type_p and _to_truth_value(equation):
        return program_of(lambda operand: operand != 0, equation)
    if equation.primitive.name == "optimization_barrier":  # not public as a primitive
        return program_of(lambda *operands: operands, equation)
    name = _INLINE.get(equation.primitive.name)
    return None if name is None else equation.params.get(name)


def _to_truth_value(equation: Any) -> bool:
    kind = np.dtype(equation.params["new_dtype"]).kind
    return kind == "b" and equation.invars[0].aval.dtype.kind == "f"


def _is_composite(equation: Any) -> bool:
    """Whether an operation stands for a program, as ``searchsorted`` does from JAX 0.12 on."""
    primitive = equation.primitive
    if primitive.name in _INLINE or not hasattr(primitive, "to_lojax"):
        return False
    return bool(primitive.is_high(*(var.aval for var in equation.invars), **equation.params))


def _expanded(equation: Any) -> Any:
    """The program that a composite operation stands for."""

    def program(*operands: Any) -> Any:
        return equation.primitive.to_lojax(*operands, **equation.params)

    return program_of(program, equation)


def shapes_of(equation: Any) -> list[jax.ShapeDtypeStruct]:
    """Shapes and types of the operands of an equation."""
    return [
        jax.ShapeDtypeStruct(var.aval.shape, var.aval.dtype, weak_type=var.aval.weak_type)
        for var in equation.invars
    ]


def program_of(
    function: Callable[..., Any], equation: Any, shapes: Sequence[Any] | None = None
) -> Any:
    """The jaxpr of a function of the operands of an equation, or of arrays of other shapes, at its
    place."""
    shapes = shapes_of(equation) if shapes is None else shapes
    with source_info_util.user_context(equation.source_info.traceback):
        return jax.make_jaxpr(function)(*shapes)


# Parameters that an evaluation does not look at: names, rules of differentiation, and the function
# beside the jaxpr that was made of it.
_UNUSED = {
    "jit": {"name"},
    "pjit": {"name"},
    "remat2": {"policy"},
    "checkpoint": {"policy"},
    "reduce": {"computation"},
}


def evaluated_params(equation: Any) -> dict[str, Any]:
    """The parameters of an equation that its evaluation depends on."""
    name = equation.primitive.name
    # A composite operation is an object that is made anew at every use.
    if name.startswith(("custom_jvp_call", "custom_vjp_call")) or _is_composite(equation):
        return {"body": inner_program(equation)}
    unused = _UNUSED.get(name, set())
    return {key: value for key, value in equation.params.items() if key not in unused}


def settings(equation: Any) -> Hashable:
    """Settings of JAX that an equation was traced with and is evaluated with."""
    context = equation.ctx
    names = (name for name in type(context).__slots__ if not name.startswith("_"))
    return tuple((name, getattr(context, name, None)) for name in names)


_TRACING = jax.make_user_context(None)
_TIMES = itertools.count()


@contextlib.contextmanager
def traced_anew() -> Iterator[None]:
    """Tracing inside of this uses nothing that JAX remembers of earlier times.

    JAX keeps what it traced of a jitted function, the body of a loop or a branch, by the function,
    so that a global variable that has changed since would be seen with its old value.
    """
    with _TRACING(next(_TIMES)):
        yield


def traced(function: Any, *args: Any) -> tuple[Any, Any]:
    """The jaxpr of a function as it is now, and its output as shapes."""
    with traced_anew():
        # A function of its own: JAX remembers what it traced by function.
        return jax.make_jaxpr(lambda *args: function(*args), return_shape=True)(*args)


def part(jaxpr: Any, equations: Sequence[Any], reads: Sequence[Any], writes: Sequence[Any]) -> Any:
    """Some equations of an open jaxpr as a program by itself, closed."""
    alone = jaxpr.replace(
        constvars=[], invars=list(reads), outvars=list(writes), eqns=list(equations)
    )
    return ClosedJaxpr(alone, [])


def scan_layout(params: dict[str, Any]) -> tuple[int, int]:
    """Numbers of constants and of carried values of a ``scan`` equation.

    ``num_consts`` and ``num_carry`` became one flat-tree parameter pair in JAX 0.11.
    """
    if "num_consts" in params:
        return int(params["num_consts"]), int(params["num_carry"])
    consts, carry, *_ = params["ft_in"].unpack()
    return len(consts), len(carry)


#: Folders of installed packages, of Python and of this package.
_INSTALLED = tuple({sysconfig.get_path(name) + os.sep for name in ("purelib", "platlib")})
_STANDARD = sysconfig.get_path("stdlib") + os.sep
_OWN = os.path.dirname(os.path.abspath(__file__)) + os.sep


def location(equation: Any) -> Location | None:
    """The user's file, line and function, or None (bodies of cached jits carry none).

    Of what an installed library does, the line that calls it, and beside it that of the library.
    """
    text = source_info_util.summarize(equation.source_info)
    head, _, function = text.rpartition(" (")
    parts = head.rsplit(":", 2)
    if len(parts) < 3 or not parts[1].isdigit():
        return None
    found = Location(parts[0], int(parts[1]), function.rstrip(")"))
    library = next((place for place in _INSTALLED if found.file.startswith(place)), None)
    if library is None:
        return found
    hidden = (*_INSTALLED, _STANDARD, _OWN)
    for frame in getattr(equation.source_info.traceback, "frames", ()):
        if not frame.file_name.startswith(hidden):
            within = f"{found.file.removeprefix(library)}:{found.line}"
            return Location(frame.file_name, frame.line_num, frame.function_name, within)
    return found


def user_location(error: BaseException) -> Location | None:
    """The innermost frame of an exception that is neither JAX's nor tplimit's."""
    hidden = tuple(
        os.path.dirname(os.path.abspath(str(m))) + os.sep for m in (jax.__file__, __file__)
    )
    found = None
    for frame, line in traceback.walk_tb(error.__traceback__):
        file = frame.f_code.co_filename
        if not file.startswith(hidden) and "site-packages" not in file:
            found = Location(file, line, frame.f_code.co_name)
    return found


def former_names() -> dict[str, dict[str, Any]]:
    """What JAX 0.4 had under other names, by module, for libraries written for it."""
    core = ("ClosedJaxpr", "Jaxpr", "JaxprEqn", "Literal", "Primitive", "Var")
    functions = ("jaxpr_as_fun", "subjaxprs")
    return {
        "jax.core": {name: getattr(jex_core, name) for name in core + functions},
        "jax.util": {"safe_map": _safe_map, "safe_zip": _safe_zip},
        # Gone: only ever a key of a table of rules.
        "jax.interpreters.ad": {"zeros_like_p": Primitive("zeros_like")},
    }


def _safe_zip(*sequences: Any) -> list[tuple[Any, ...]]:
    return list(zip(*map(list, sequences), strict=True))


def _safe_map(function: Any, *sequences: Any) -> list[Any]:
    return [function(*items) for items in _safe_zip(*sequences)]


def is_traced(value: Any) -> bool:
    """Whether JAX is tracing the value, so that its numbers cannot be looked at."""
    return isinstance(value, jax.core.Tracer)


def is_key(value: Any) -> bool:
    """Whether an array holds typed random keys."""
    return jax.dtypes.issubdtype(value.dtype, jax.dtypes.prng_key)


def raw_key_shape() -> tuple[int, ...]:
    """Shape of a random key of the old kind, ``jax.random.PRNGKey(0)``."""
    return tuple(jax.eval_shape(jax.random.PRNGKey, 0).shape)


def form(leaves: list[Any]) -> Hashable:
    """What a program depends on of its arguments on one device. From JAX 0.12 on types of arrays
    that a loaded program returns are equal to themselves only."""
    types = map(jax.typeof, leaves)
    return tuple((one.shape, one.dtype, one.weak_type) for one in types)


def is_weak(value: Any) -> bool:
    """Whether an array has the dtype of a Python scalar, which gives way to other dtypes."""
    return bool(getattr(value, "weak_type", False))


def plain_literal(value: Any) -> Any:
    """A number in a jaxpr as Python, NumPy or JAX know it."""
    if isinstance(value, (bool, int, float, complex, np.ndarray, np.generic, jax.Array)):
        return value
    return np.asarray(value)


def weakly_typed(array: jax.Array) -> jax.Array:
    """The same numbers with the dtype of a Python scalar, which gives way to other dtypes."""
    return primitives.convert_element_type_p.bind(
        array, new_dtype=array.dtype, weak_type=True, sharding=None
    )


#: XLA's options that compile several times faster what then runs a few times slower.
_QUICK = {"xla_backend_optimization_level": "0", "xla_cpu_use_fusion_emitters": False}


def compiled(function: Callable[..., Any], *, quick: bool, **options: Any) -> Any:
    """``jax.jit``; ``quick``: compiled for a short wait, where the backend can.

    On CPUs most of the waiting is for optimisations of machine code. Others compile as always.
    """
    chosen = _quick_options(jax.default_backend()) if quick else {}
    return jax.jit(function, compiler_options=chosen or None, **options)


@functools.cache
def _quick_options(backend: str) -> dict[str, Any]:
    """Those options that there are: they come and go with the versions of XLA."""
    if backend != "cpu":
        return {}
    return {name: value for name, value in _QUICK.items() if _is_option({name: value})}


def _is_option(option: dict[str, Any]) -> bool:
    try:
        jax.jit(lambda: 0, compiler_options=option).lower().compile()
    except Exception:
        return False
    return True


def dumped(program: Any) -> bytes:
    """A compiled program, to be ``loaded`` by another process on such a machine."""
    from jax.experimental import serialize_executable

    content, _, _ = serialize_executable.serialize(program)
    return content


def loaded(content: bytes, lowered: Any) -> Callable[..., Any]:
    """A compiled program that was ``dumped``, and lowered as this one is."""
    from jax.experimental import serialize_executable

    return serialize_executable.deserialize_and_load(content, lowered.in_tree, lowered.out_tree)


def entry_function(
    primitive: Primitive, params: dict[str, Any], arrays: list[Any]
) -> Callable[..., Any] | str:
    """An operation as a function of arrays that JAX can compile, or why it is not evaluated.

    A user's own primitive may have no lowering, only an implementation in terms of JAX.
    """
    if any(is_jaxpr(leaf) for leaf in jax.tree.leaves(params, is_leaf=is_jaxpr)):
        return "it calls a function"

    def bound(*operands: Any) -> Any:
        return primitive.bind(*operands, **params)

    def implemented(*operands: Any) -> Any:
        return primitive.impl(*operands, **params)

    if jax.make_jaxpr(bound)(*arrays).effects:
        return "it has side effects"
    try:
        jax.jit(bound).lower(*arrays)
    except NotImplementedError:
        return implemented
    return bound
