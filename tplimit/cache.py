"""What is made for a user's function and kept for the next call with the same one."""

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

#: Results kept by each cached function, the last used ones.
_KEPT = 16

P = ParamSpec("P")
T = TypeVar("T")


def cached(make: Callable[P, T]) -> Callable[P, T]:
    """``make`` with its last results kept, by equality of its arguments.

    Functions are equal to themselves only, as in ``jax.jit``: what a function has closed over is
    not looked at. Arguments that cannot be hashed give a new result every time.
    """
    remembered = functools.lru_cache(maxsize=_KEPT, typed=True)(make)

    @functools.wraps(make)
    def call(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            hash((args, tuple(kwargs.values())))
        except TypeError:
            return make(*args, **kwargs)
        return remembered(*args, **kwargs)  # type: ignore[arg-type]

    return call
