"""What has been compiled, kept by what it computes and not by who asked for it.

Functions are traced anew at the start of every run, which shows them as they are now: a learning
rate that was a global variable has its new value. Compiling takes a hundred times longer, so that
programs which have been compiled serve everybody who traces the same.
"""

import math
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any, Generic, TypeVar

import jax

from tplimit import _jax
from tplimit.caching.identity import identity

T = TypeVar("T")


class Store(Generic[T]):
    """The things used last, by key.

    Args:
        most: how many are kept.
        heaviest: the sum of the weights of those that are kept; what weighs more is not kept.
    """

    def __init__(self, most: int, heaviest: float = math.inf) -> None:
        self.most, self.heaviest = most, heaviest
        self._kept: OrderedDict[Hashable, tuple[T, int]] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._kept)

    @property
    def weight(self) -> int:
        return sum(weight for _, weight in self._kept.values())

    def get(self, key: Hashable, make: Callable[[], T], weight: int = 0) -> T:
        """What is kept under a key, or else what ``make`` makes."""
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key][0]
        made = make()
        with self._lock:
            if weight <= self.heaviest:
                self._kept[key] = made, weight
            while len(self._kept) > self.most or self.weight > self.heaviest:
                self._kept.popitem(last=False)
        return made

    def clear(self) -> None:
        with self._lock:
            self._kept.clear()


#: All compiled programs; their constants are held twice, by the program and by the device. On CPUs
#: each takes some hundred memory maps, of which Linux gives a process 65530.
PROGRAMS: Store[Any] = Store(64, 2**28)

#: Pieces of programs (see ``pieces.py``), which are smaller.
PIECES: Store[Any] = Store(512, 2**28)


def kept(what: str, make: Callable[[], T], *values: Any, store: Store[Any] | None = None) -> T:
    """Something made for programs or other values, shared by all that are equal to them."""
    key = identity(what, *values)
    return (PROGRAMS if store is None else store).get(key, make, key.weight)


def compiled(function: Callable[..., Any], *, donated: bool = False) -> Callable[..., Any]:
    """``function`` compiled, as by ``jax.jit``, but as it is now, and once for each program.

    It is traced at the first call with arguments of a form. What was compiled for an equal program
    is used again, whichever function that came from.

    Args:
        donated: the memory of the first argument may be reused.
    """
    programs: dict[Hashable, tuple[Callable[..., Any], Any]] = {}

    def call(*args: Any) -> Any:
        leaves, tree = jax.tree.flatten(args)
        form = tree, tuple(map(jax.typeof, leaves))
        if form not in programs:
            programs[form] = _program(function, args, donated)
        run, out_tree = programs[form]
        return jax.tree.unflatten(out_tree, run(*leaves))

    return call


def _program(
    function: Callable[..., Any], args: tuple[Any, ...], donated: bool
) -> tuple[Callable[..., Any], Any]:
    """The compiled program, from leaves to leaves, and the structure of the output."""
    jaxpr, shape = _jax.traced(function, *args)
    gone = tuple(range(len(jax.tree.leaves(args[0])))) if donated else ()

    def compile() -> Callable[..., Any]:
        return jax.jit(_jax.jaxpr_as_fun(jaxpr), donate_argnums=gone)

    return kept("compiled", compile, jaxpr, gone), jax.tree.structure(shape)
