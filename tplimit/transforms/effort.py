"""How well a program is compiled: for a short wait, or for many calls.

Optimising takes several times as long as all the rest of compilation, and makes a call two or three
times faster. It pays for programs that have much to do. Numbers of the two agree to round-off, not
bit for bit: so what is chosen follows from what is known before, and never from a clock.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax

from tplimit.caching import disk
from tplimit.caching.pieces import chained

#: Work of a query from which optimising pays: vectors x particles x calls. Measured: optimising
#: takes 0.7 s for a query, and saves 80 ns for each of the numbers in its vectors.
_PAYS = 2**23

#: So many entries of a function of pairs are as much work as one of these numbers.
ENTRIES = 2**8

#: The programs of so many steps of a run are others than those of all that follow: before a matrix
#: has been trained it is simpler, and with several terms it takes two steps to have them all.
_EARLY = 2


@dataclass(frozen=True)
class Calls:
    """How often a function is called in a run, as far as that is known before.

    Attributes:
        row: calls in a row, each of which takes over what the one before has revealed.
        times: how many such rows there are.
        done: calls of this row that are done already.
    """

    row: int
    times: int = 1
    done: int = 0

    @property
    def left(self) -> int:
        """Calls to come in this row."""
        return self.row - self.done

    @property
    def alike(self) -> int:
        """How many calls of the run the program of the next one will serve."""
        later = self.row - _EARLY
        return self.times * (later if self.done >= _EARLY else 1)

    def after(self, calls: int) -> "Calls":
        """What is left after some more calls."""
        return Calls(self.row, self.times, self.done + calls)


def pays(work: float) -> bool:
    """Whether optimising pays for programs whose queries have so much to do, in all calls.

    It always does but on CPUs, whose compilers alone are known well enough.
    """
    return work >= _PAYS or jax.default_backend() != "cpu"


def compiled(
    function: Callable[..., Any], work: float, *, donated: bool = False, whole: bool = True
) -> Callable[..., Any]:
    """A function compiled, as by ``jax.jit``, for so much work.

    Args:
        donated: the memory of the first argument may be reused.
        whole: as one program, even if it is for little work.
    """
    if whole or pays(work):
        gone = 0 if donated else ()
        return disk.compiled(function, quick=not pays(work), donate_argnums=gone)
    return chained(function, donated=donated)
