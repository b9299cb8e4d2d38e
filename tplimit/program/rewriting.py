"""Operations that are written as others before they are interpreted."""

from collections.abc import Callable, Sequence
from typing import Any

from tplimit import _jax
from tplimit._jax import primitives as p
from tplimit.program import scatters, windows
from tplimit.program.windows import Widths

#: Functions that give a program of the operands, or None where the operation stays.
_WRITTEN: dict[Any, Callable[[Any, Widths], Callable[..., Any] | None]] = {
    **windows.WRITTEN,
    p.scatter_add_p: scatters.into_bins,
}


def rewritten(equations: Sequence[Any], widths: Widths) -> list[Any] | None:
    """Aligned equations as programs in terms of other operations, or None where they stay."""
    write = _WRITTEN.get(equations[0].primitive)
    if write is None:
        return None
    programs = []
    for equation in equations:
        function = write(equation, widths)
        if function is None:
            return None
        programs.append(_jax.program_of(function, equation))
    return programs


__all__ = ["rewritten"]
