"""Arrays with an axis of length ``k + n``: written as operations on their pieces.

Numbers and coordinates of a width side by side, as ``concatenate([x, h])`` of an input and a state,
are no width: the first ones are not like the others. Such an array is never formed. It is its
*pieces*, finite arrays and arrays with a width, and every operation on it is written as operations
on these: entry by entry on each piece, a contraction as a sum of contractions, a slice as the
pieces that it takes. So nothing behind the trace knows of them.
"""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax

from tplimit import _jax
from tplimit.program.pieces import Form, Pieces, Refusal, joined, operation


@dataclass(frozen=True)
class Joined:
    """An array with an axis of length ``k + n``, by its pieces.

    Attributes:
        axis: along which they stand side by side.
        pieces: variables of the program.
        lengths: of the pieces, at every width of the traces.
    """

    axis: int
    pieces: tuple[Any, ...]
    lengths: tuple[tuple[int, ...], ...]


class Cuts:
    """How the arrays of a program are cut, by their length at every width.

    ``widths`` of the traces; a further one that is not proportional to them may come last.
    """

    def __init__(self, widths: Sequence[int]) -> None:
        self.widths = widths
        self._known: dict[tuple[int, ...], tuple[tuple[int, ...], ...]] = {}

    def of_results(self, equations: Sequence[Any]) -> list[list[Form | None]]:
        """Of the results of aligned equations, at every width, those with such an axis.

        Raises:
            Refusal: one has two.
        """
        found: list[list[Form | None]] = [[] for _ in equations]
        for variables in zip(*(equation.outvars for equation in equations), strict=True):
            shapes = [variable.aval.shape for variable in variables]
            alike = len({len(shape) for shape in shapes}) == 1  # else the axes are refused
            first = mixed_axis(shapes[: len(self.widths)], self.widths) if alike else None
            ways: Sequence[Form | None] = [None] * len(shapes)
            if first is not None:
                lengths = tuple(shape[first.axis] for shape in shapes)
                cut = self._known.get(lengths) or tuple(map(first.cut, lengths))
                ways = [Form(first.axis, way) for way in cut]
            for forms, way in zip(found, ways, strict=True):
                forms.append(way)
        return found

    def in_pieces(
        self,
        equations: Sequence[Any],
        operands: Sequence[Any],
        outs: Sequence[Sequence[Form | None]],
        run: Callable[[list[Any], list[Any]], Sequence[Any]],
    ) -> list[Any]:
        """The results of aligned equations, some as ``Joined``.

        ``run`` writes programs of pieces, one for each width, and returns their results.

        Raises:
            Refusal: the operation is not written as others.
        """
        programs, found = [], []
        for number, equation in enumerate(equations):
            given = [
                Form(o.axis, o.lengths[number]) if isinstance(o, Joined) else None for o in operands
            ]
            function, forms = _written(equation, given, outs[number])
            shapes = _shapes(_jax.shapes_of(equation), given)
            programs.append(_jax.program_of(function, equation, shapes))
            found.append(forms)
        flat = [x for o in operands for x in (o.pieces if isinstance(o, Joined) else (o,))]
        results = iter(run(programs, flat))
        made: list[Any] = []
        for ways in zip(*found, strict=True):
            if ways[0] is None:
                made.append(next(results))
                continue
            pieces = tuple(next(results) for _ in ways[0].lengths)
            lengths = tuple(way.lengths for way in ways)
            self._known.setdefault(tuple(map(sum, lengths)), lengths)
            made.append(Joined(ways[0].axis, pieces, lengths))
        return made


def mixed_axis(shapes: Sequence[tuple[int, ...]], widths: Sequence[int]) -> Form | None:
    """The axis of length ``k + r n`` in the shapes at several widths, with ``k`` and ``r n`` at the
    first of them; None where there is none.

    Raises:
        Refusal: there are two.
    """
    found = []
    for axis, lengths in enumerate(zip(*shapes, strict=True)):
        k = offset(lengths, widths)
        if k:
            found.append(Form(axis, (k, lengths[0] - k)))
    if len(found) > 1:
        raise Refusal("An array with two axes of the form k + n.")
    return found[0] if found else None


def offset(lengths: Sequence[int], widths: Sequence[int]) -> int:
    """``k`` of lengths ``k + r n``, or 0 where they are something else."""
    first, last = (lengths[0], widths[0]), (lengths[-1], widths[-1])
    if first[1] == last[1] or first[0] == last[0]:
        return 0
    k, rest = divmod(first[0] * last[1] - last[0] * first[1], last[1] - first[1])
    slope = (last[0] - first[0]) / (last[1] - first[1])
    fits = all(abs(k + slope * n - length) < 0.5 for length, n in zip(lengths, widths, strict=True))
    return k if not rest and fits and k > 0 else 0


def _written(
    equation: Any, forms: Sequence[Form | None], outs: Sequence[Form | None]
) -> tuple[Callable[..., list[Any]], list[Form | None]]:
    """A function of the pieces of the operands of an equation, at one width, and the forms of its
    results, which are known when it has been called.

    Args:
        equation: of a jaxpr.
        forms: of the operands.
        outs: of the results, for which the equation itself does not tell how they are cut.

    Raises:
        Refusal: the operation is not written as others.
    """
    write = operation(equation.primitive)
    if write is None:
        raise Refusal(f"{equation.primitive.name} of an array with an axis of the form k + n.")
    found: list[Form | None] = []

    def function(*flat: Any) -> list[Any]:
        arrays = iter(flat)
        operands = [
            next(arrays)
            if form is None
            else Pieces(form.axis, tuple(itertools.islice(arrays, len(form.lengths))))
            for form in forms
        ]
        results = [
            _as_asked(result, out)
            for result, out in zip(write(equation, operands, outs), outs, strict=True)
        ]
        found[:] = [Form(r.axis, r.lengths) if isinstance(r, Pieces) else None for r in results]
        return [a for r in results for a in (r.arrays if isinstance(r, Pieces) else (r,))]

    return function, found


def _shapes(operands: Sequence[Any], forms: Sequence[Form | None]) -> list[Any]:
    """Shapes of the pieces of arrays of these shapes."""
    found: list[Any] = []
    for whole, form in zip(operands, forms, strict=True):
        if form is None:
            found.append(whole)
            continue
        for length in form.lengths:
            shape = list(whole.shape)
            shape[form.axis] = length
            found.append(jax.ShapeDtypeStruct(tuple(shape), whole.dtype, weak_type=whole.weak_type))
    return found


def _as_asked(result: Any, out: Form | None) -> Any:
    """Pieces where the result has an axis of the form k + n, and one array where it has not."""
    if isinstance(result, Pieces) and out is None:
        return joined(result)
    if not isinstance(result, Pieces) and out is not None:
        raise Refusal("An array with an axis of the form k + n that is made as a whole.")
    return result


__all__ = ["Cuts", "Form", "Joined", "Pieces", "Refusal", "mixed_axis", "offset"]
