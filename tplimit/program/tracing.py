"""Differential tracing: the program is traced at several widths and the traces are compared.

What differs between the traces is a width: axes whose length differs are width axes, numbers that
differ are powers ``c * n^p``. All widths are proportional to one ``n``. Nested calls are expanded,
so that a ``Program`` is one list of equations; only loops and branches keep programs inside.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, TypeVar

import jax
import numpy as np

from tplimit import _jax
from tplimit._jax import primitives as p
from tplimit.caching.identity import identity
from tplimit.errors import (
    COMPLEX_ADVICE,
    LimitError,
    Location,
    NoLimitError,
    UnsupportedOperationError,
    WidthError,
)
from tplimit.program import known
from tplimit.program.beside import Cuts, Joined, Refusal
from tplimit.program.equations import Aval, Constant, Equation, Operand, Program, Slot, grows
from tplimit.program.powers import (
    Fitted,
    Misfit,
    checked_constant,
    checked_dim,
    fit_constant,
    fit_dim,
)
from tplimit.program.rewriting import rewritten
from tplimit.program.traits import Control, kind_of
from tplimit.values.exponents import EXACT_ZERO, NEVER, ORDER_ONE, Dim

#: Multiples of 1920, so that heads and other usual divisors divide them; n^2 stays below 2^31.
#: The first is traced twice: a difference means that the program is not deterministic.
WIDTHS = (5760, 5760, 13440, 40320)
#: Widths exact in float32, to catch thresholds such as ``min(n, 10000)``.
LARGE_WIDTHS = (1_050_240, 16_775_040)
#: A width that no small number divides, to catch ``n % 2``, and what a program may have to divide a
#: width by, so that it can be traced there.
UNEVEN, DIVISORS = 46337, (1, 2, 3, 4, 6, 8, 12, 24)

_INT32_ROOT = 46340

_T = TypeVar("_T")
#: How to fit what traces have, and how to check it at a further width.
_Fits = tuple[Callable[[Sequence[Any], Sequence[int]], _T], Callable[[_T, Any, int], _T]]
_DIM: _Fits[Dim] = fit_dim, checked_dim
_CONSTANT: _Fits[Fitted] = fit_constant, checked_constant


COMPLEX = "Complex numbers that depend on a width are not supported."


def is_complex(aval: Any) -> bool:
    """Whether a variable holds complex numbers."""
    return bool(jax.numpy.issubdtype(aval.dtype, np.complexfloating))


def trace(
    function: Callable[..., Any],
    arguments: Callable[[int], Sequence[Any]],
    multiple: int = 1,
    also: Sequence[int] = (),
) -> tuple[Program, Any]:
    """Read ``function`` as a program.

    Args:
        function: takes a flat list of arrays, returns a pytree.
        arguments: abstract flat arguments (``jax.ShapeDtypeStruct``) at a width ``n``.
        multiple: every ``n`` used is a multiple of this (denominators of the widths' ratios).
        also: further widths that must give the same program; numbers that depend on the width
            are remembered as they are at the last of them.

    Returns: the program and the tree structure of the outputs.

    Raises:
        WidthError, NoLimitError: where the traces disagree, with the line.
    """
    traces: list[Any] = []
    trees: list[Any] = []
    widths: list[int] = []
    small = [base * multiple for base in WIDTHS]
    longest = max((d for value in arguments(small[-1]) for d in value.shape), default=0)
    # Products of two lengths must stay below 2^31; all trial widths are divisible by 24.
    divisor = next((k for k in (1, 2, 3, 4, 6, 8, 12) if longest <= k * _INT32_ROOT), 24)
    small = [n // divisor for n in small]
    required = [*small, *also]
    for n in [*small, *(base * multiple for base in LARGE_WIDTHS), *also]:
        inputs = arguments(n)
        try:
            jaxpr, shape = jax.make_jaxpr(function, return_shape=True)(*inputs)
        except (OverflowError, MemoryError) as error:
            if n in required:
                raise NoLimitError(
                    f"At a trial width of {n} the program fails: {error}",
                    location=_jax.user_location(error),
                    advice="Write lengths and their products as floats: x / float(n * n).",
                ) from error
            continue
        except LimitError:
            raise
        except Exception as error:
            if _about_widths(error, function, arguments(2 * n)):
                raise failed_at_width(error, _COMBINED) from error
            raise
        if n not in required and len(jaxpr.eqns) > 2 * len(traces[0].eqns):
            continue
        traces.append(jaxpr)
        trees.append(jax.tree.structure(shape))
        widths.append(n)
    uneven = None
    for n in ((UNEVEN // divisor | 1) * multiple * k for k in DIVISORS):
        try:
            jaxpr, shape = jax.make_jaxpr(function, return_shape=True)(*arguments(n))
        except Exception:  # the program asks for a width that can be divided
            continue
        traces.append(jaxpr)
        trees.append(jax.tree.structure(shape))
        uneven = n
        break
    if len(set(trees)) > 1:
        raise NoLimitError("The structure of the outputs depends on the width.")
    return _program(traces, tuple(widths), uneven, None), trees[0]


_COMBINED = "Axes of different widths, or a width and a finite axis, are combined."


def _about_widths(error: Exception, function: Callable[..., Any], wider: Sequence[Any]) -> bool:
    """Whether a failure of the user's code, of JAX's or of a library is about lengths of axes.

    Its text then has a number that doubles, or quadruples, at twice the width. Other failures are
    the user's to see as they are.
    """
    numbers = re.findall(r"\d+", str(error))
    try:
        jax.make_jaxpr(function)(*wider)
    except Exception as other:
        if type(other) is not type(error):
            return True
        pairs = zip(numbers, re.findall(r"\d+", str(other)), strict=False)
        return any(int(a) and int(b) in (2 * int(a), 4 * int(a)) for a, b in pairs)
    return True


def failed_at_width(error: Exception, reason: str, advice: str = "") -> WidthError:
    """What the user's code raised at a trial width, as an error about widths that quotes it."""
    said = (str(error).splitlines() or ["nothing"])[0]
    return WidthError(
        reason,
        location=_jax.user_location(error),
        advice=f"{advice} {type(error).__name__} at a trial width: {said}".lstrip(),
    )


def _program(
    jaxprs: Sequence[Any], widths: tuple[int, ...], uneven: int | None, where: Location | None
) -> Program:
    builder = _Builder(widths, uneven)
    opened = [_jax.open_jaxpr(jaxpr) for jaxpr in jaxprs]
    avals = [
        builder.aval([var.aval for var in invars], where)
        for invars in zip(*(jaxpr.invars for jaxpr, _ in opened), strict=True)
    ]
    inputs = tuple(builder.slot(aval) for aval in avals)
    outputs = builder.run(opened, inputs, where)
    if any(isinstance(out, Joined) for out in outputs):
        raise NoLimitError(
            "An output has an axis of the form k + n that no argument has.",
            location=where,
            advice="Return its parts by themselves.",
        )
    out_avals = tuple(builder.aval_of(out) for out in outputs)
    needed = {out for out in outputs if isinstance(out, Slot)}
    equations: list[Equation] = []
    for equation in reversed(builder.known.values()):
        if needed.intersection(equation.outputs):
            equations.append(equation)
            needed.update(slot for slot in equation.inputs if isinstance(slot, Slot))
    return Program(inputs, tuple(outputs), tuple(equations[::-1]), tuple(avals), out_avals)


class _Builder:
    """Walks aligned jaxprs in step and writes the equations of one program.

    ``uneven``: the width of the last of the jaxprs, which is not fitted but checked, or None.
    """

    def __init__(self, widths: tuple[int, ...], uneven: int | None) -> None:
        self.widths, self.uneven = widths, uneven
        # By what they compute: what is computed twice, as under jax.checkpoint, is one equation.
        self.known: dict[Any, Equation] = {}
        self.avals: list[Aval] = []
        self.makers: dict[Operand, Equation] = {}
        self.cuts = Cuts(widths)

    def slot(self, aval: Aval) -> Slot:
        self.avals.append(aval)
        return Slot(len(self.avals) - 1)

    def aval_of(self, operand: Operand) -> Aval:
        return self.avals[operand.index] if isinstance(operand, Slot) else operand.aval

    def fitted(
        self, fits: _Fits[_T], what: str, values: Sequence[Any], where: Location | None
    ) -> _T:
        """What follows a power of the width."""
        fit, check = fits
        try:
            if self.uneven is None:
                return fit(values, self.widths)
            return check(fit(values[:-1], self.widths), values[-1], self.uneven)
        except Misfit as misfit:
            same = values[0] is not values[1] and not np.array_equal(values[0], values[1])
            if same and self.widths[0] == self.widths[1]:
                raise NoLimitError(
                    f"The program is not deterministic: {what} differs between two traces.",
                    location=where,
                    advice="Draw random numbers with jax.random from a key that is an argument.",
                ) from None
            raise NoLimitError(
                f"{what} depends on the width in a way that is no power of it: {misfit}.",
                location=where,
                advice="Only axes proportional to a width and numbers c * n**p have a limit.",
            ) from None

    def aval(self, avals: Sequence[Any], where: Location | None) -> Aval:
        shapes = [aval.shape for aval in avals]
        if len({len(shape) for shape in shapes}) > 1:
            raise WidthError("The number of axes depends on the width.", location=where)
        dims = tuple(
            self.fitted(_DIM, "The length of an axis", lengths, where)
            for lengths in zip(*shapes, strict=True)
        )
        return Aval(dims, avals[0].dtype)

    def constant(self, values: Sequence[Any], where: Location | None) -> Operand:
        aval = self.aval([jax.typeof(value) for value in values], where)
        if _jax.is_key(aval):
            data = [np.asarray(jax.random.key_data(value)) for value in values]
            if any(not np.array_equal(data[0], other) for other in data[1:]):
                raise NoLimitError("A random key depends on the width.", location=where)
            return Constant(Fitted(values[0], ORDER_ONE, EXACT_ZERO, values[0]), aval)
        arrays = [np.asarray(value) for value in values]
        if is_complex(aval) and not all(np.array_equal(arrays[0], a) for a in arrays[1:]):
            raise UnsupportedOperationError(COMPLEX, location=where, advice=COMPLEX_ADVICE)
        if aval.width_axes:
            arrays = [_one_coordinate(array, aval, where) for array in arrays]
        fitted = self.fitted(_CONSTANT, "A constant", arrays, where)
        if fitted.coefficient.dtype != aval.dtype:
            aval = Aval(aval.shape, fitted.coefficient.dtype)
        return Constant(fitted, aval)

    def run(
        self, jaxprs: Sequence[tuple[Any, list[Any]]], inputs: Sequence[Operand], where: Any
    ) -> list[Operand]:
        """Write the equations of aligned jaxprs; returns their outputs."""
        environments: list[dict[Any, Operand]] = [{} for _ in jaxprs]
        places = [_first_use(jaxprs[0][0], var) or where for var in jaxprs[0][0].constvars]
        constants = [
            self.constant(values, place)
            for *values, place in zip(*(consts for _, consts in jaxprs), places, strict=True)
        ]
        for environment, (jaxpr, _) in zip(environments, jaxprs, strict=True):
            environment.update(zip(jaxpr.constvars, constants, strict=True))
            environment.update(zip(jaxpr.invars, inputs, strict=True))

        def read(atoms: Sequence[Any], place: Location | None) -> Operand:
            if all(isinstance(atom, _jax.Literal) for atom in atoms):
                return self.constant([_literal(atom) for atom in atoms], place)
            found = {
                id(env[atom]): env[atom] for env, atom in zip(environments, atoms, strict=True)
            }
            if len(found) > 1:
                raise _disagreement("the operands", place)
            return next(iter(found.values()))

        counts = {len(jaxpr.eqns) for jaxpr, _ in jaxprs}
        longest = max(range(len(jaxprs)), key=lambda k: len(jaxprs[k][0].eqns))
        for equations in zip(*(jaxpr.eqns for jaxpr, _ in jaxprs), strict=False):
            place = _jax.location(equations[0]) or where
            if len({equation.primitive for equation in equations}) > 1:
                names = sorted({equation.primitive.name for equation in equations})
                raise _disagreement(" and ".join(names), _jax.location(equations[longest]) or place)
            operands = [
                read(atoms, place)
                for atoms in zip(*(equation.invars for equation in equations), strict=True)
            ]
            outputs = self.equation(equations, operands, place)
            for environment, equation in zip(environments, equations, strict=True):
                environment.update(zip(equation.outvars, outputs, strict=True))
        if len(counts) > 1:
            extra = jaxprs[longest][0].eqns[min(counts)]
            raise _disagreement("the number of operations", _jax.location(extra) or where)
        return [
            read(atoms, where)
            for atoms in zip(*(jaxpr.outvars for jaxpr, _ in jaxprs), strict=True)
        ]

    def equation(
        self, equations: Sequence[Any], operands: list[Any], where: Location | None
    ) -> list[Any]:
        with self.refusing(where):
            outs = self.cuts.of_results(equations)
        if any(isinstance(operand, Joined) for operand in operands) or any(outs[0]):
            return self.in_pieces(equations, operands, outs, where)
        widths = [self.widths_of(operand) for operand in operands]
        bodies = known.written(equations, widths, lambda place: self.known_array(operands[place]))
        bodies = bodies or [_jax.inner_program(equation) for equation in equations]
        if bodies[0] is None:
            bodies = rewritten(equations, widths) or bodies
        if bodies[0] is not None:
            self.refuse_by_name(equations, operands, where)
            return self.run([_jax.open_jaxpr(body) for body in bodies], operands, where)
        avals = tuple(
            self.aval([var.aval for var in variables], where)
            for variables in zip(*(equation.outvars for equation in equations), strict=True)
        )
        inside = isinstance(kind_of(equations[0].primitive), Control)
        params = {
            name: self.param(name, [e.params[name] for e in equations], where, inside)
            for name in equations[0].params
        }
        if equations[0].primitive is p.reshape_p:
            source = self.before_reshaped(operands[0])
            if _without_ones(self.aval_of(source).shape) == _without_ones(avals[0].shape):
                operands = [source, *operands[1:]]
                if self.aval_of(source).shape == avals[0].shape:
                    return operands
        outputs = tuple(self.slot(aval) for aval in avals)
        in_avals = tuple(self.aval_of(operand) for operand in operands)
        equation = Equation(
            equations[0].primitive,
            tuple(operands),
            outputs,
            params,
            None if grows(params) else dict(equations[0].params),
            in_avals,
            avals,
            where,
        )
        key = identity(replace(equation, outputs=()))
        found = self.known.setdefault(key, equation)
        self.makers.update(dict.fromkeys(found.outputs, found))
        return list(found.outputs)

    def in_pieces(
        self, equations: Sequence[Any], operands: list[Any], outs: Any, where: Location | None
    ) -> list[Any]:
        """Operations on arrays with an axis of length k + n (``beside.py``)."""
        run = lambda bodies, given: self.run([_jax.open_jaxpr(b) for b in bodies], given, where)
        bodies = [_jax.inner_program(equation) for equation in equations]
        if bodies[0] is not None:
            return run(bodies, operands)
        with self.refusing(where):
            return self.cuts.in_pieces(equations, operands, outs, run)

    @contextmanager
    def refusing(self, where: Location | None) -> Iterator[None]:
        """What is not written as operations on pieces is refused at its line."""
        try:
            yield
        except Refusal as refusal:
            raise UnsupportedOperationError(
                f"{refusal} Coordinates of a width and others stand side by side there.",
                location=where,
                advice="Keep both parts in arrays of their own, and add the products with them.",
            ) from None

    def before_reshaped(self, operand: Operand) -> Operand:
        """What a reshaped array was: axes that are merged and split again are as before."""
        maker = self.makers.get(operand) if isinstance(operand, Slot) else None
        return maker.inputs[0] if maker is not None and maker.primitive is p.reshape_p else operand

    def widths_of(self, operand: Operand) -> dict[int, int]:
        """The width axes of an operand, with the number of shares that have been put together."""
        new, old = self.aval_of(operand), self.aval_of(self.before_reshaped(operand))
        shares = dict.fromkeys(new.width_axes, 1)
        for axis in new.width_axes:
            count = old.shape[axis] if axis < len(old.shape) else 1
            rest = (*old.shape[:axis], *old.shape[axis + 2 :])
            if rest == (*new.shape[:axis], *new.shape[axis + 1 :]) and isinstance(count, int):
                shares[axis] = count
        return shares

    def known_array(self, operand: Operand) -> np.ndarray | None:
        """A constant that is the same at every width, or what is computed from such ones."""
        if _jax.is_key(self.aval_of(operand)) or self.aval_of(operand).width_axes:
            return None
        if isinstance(operand, Constant):
            fitted = operand.fitted
            same = set(fitted.exponents.levels()) <= {0, NEVER} and fitted.remainder == EXACT_ZERO
            return np.asarray(fitted.coefficient) if same and fitted.logs is None else None
        maker = self.makers.get(operand)
        if maker is None or maker.plain is None or isinstance(kind_of(maker.primitive), Control):
            return None
        arrays = [self.known_array(given) for given in maker.inputs]
        if any(array is None for array in arrays):
            return None
        with jax.ensure_compile_time_eval():
            out = maker.primitive.bind(*map(jax.numpy.asarray, arrays), **maker.plain)
        found = out if maker.primitive.multiple_results else [out]
        return np.asarray(found[maker.outputs.index(operand)])

    def refuse_by_name(
        self, equations: Sequence[Any], operands: list[Operand], where: Location | None
    ) -> None:
        """Functions of JAX that draw coordinates of a width, of which the traces do not tell."""
        name = equations[0].params.get("name")
        lengths = {tuple(var.aval.shape for var in equation.outvars) for equation in equations}
        constants = [operand for operand in operands if isinstance(operand, Constant)]
        grows = any(level > 0 for one in constants for level in one.fitted.exponents.levels())
        if (name == "_shuffle" and len(lengths) > 1) or (name == "_randint" and grows):
            raise UnsupportedOperationError(
                "jax.random.permutation, shuffle and choice along a width are not supported: they "
                "pair coordinates with others.",
                location=where,
                advice="Draw independent entries, as with jax.random.bernoulli or normal.",
            )

    def param(self, name: str, values: Sequence[Any], where: Location | None, inside: bool) -> Any:
        first = values[0]
        if _jax.is_jaxpr(first):
            return _program(values, self.widths, self.uneven, where) if inside else first
        if isinstance(first, (tuple, list)) and all(type(v) is type(first) for v in values):
            if any(len(v) != len(first) for v in values):
                raise _disagreement(f"the parameter {name}", where)
            parts = [self.param(name, list(vs), where, inside) for vs in zip(*values, strict=True)]
            return type(first)(*parts) if hasattr(first, "_fields") else type(first)(parts)
        if all(v is first for v in values[1:]):
            return first  # enumerations among them, which are integers too
        if isinstance(first, (int, np.integer)) and not isinstance(first, bool):
            return self.fitted(_DIM, f"The parameter {name}", [int(v) for v in values], where)
        if callable(first) or all(first is v or _same(first, v) for v in values[1:]):
            return first
        raise _disagreement(f"the parameter {name}", where)


def _without_ones(shape: Sequence[Dim]) -> list[Dim]:
    return [dim for dim in shape if dim != 1]


def _first_use(jaxpr: Any, var: Any) -> Location | None:
    for equation in jaxpr.eqns:
        if any(atom is var for atom in equation.invars):
            return _jax.location(equation)
    return None


def _literal(atom: Any) -> Any:
    value, dtype = atom.val, atom.aval.dtype
    return value if isinstance(value, jax.Array) else np.asarray(value, dtype)


def _same(a: Any, b: Any) -> bool:
    try:
        return bool(a == b)
    except (TypeError, ValueError):
        return False


def _one_coordinate(array: np.ndarray, aval: Aval, where: Location | None) -> np.ndarray:
    """One slice of a constant along its width axes, along which it must not vary."""
    for axis in aval.width_axes:
        first = np.take(array, [0], axis=axis)
        if not np.array_equal(np.broadcast_to(first, array.shape), array):
            raise NoLimitError(
                "A constant array varies along a width; its coordinates are no random variables.",
                location=where,
                advice="Pass it as a parameter made with tp.normal, tp.uniform or tp.full.",
            )
        array = first
    return array


def _disagreement(what: str, where: Location | None) -> NoLimitError:
    return NoLimitError(
        f"The program depends on the width: {what} differ between traces at different widths.",
        location=where,
        advice="Control flow may not depend on a width; move the decision out of the program.",
    )
