"""Functions of states: what they return as NumPy arrays, at any width."""

import functools
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any

import jax
import numpy as np

from tplimit import arguments
from tplimit.caching.store import compiled
from tplimit.errors import WidthError
from tplimit.output.estimates import Estimate
from tplimit.transforms.compilation import Evaluator
from tplimit.transforms.limits import exponent_of, raw, to_limit
from tplimit.transforms.sampling import is_limit

__all__ = ["check_record", "evaluated", "largest"]


def evaluated(
    function: Callable[..., Any], states: Sequence[tuple[Any, ...]], width: Any
) -> Estimate:
    """What a function gives of the states of each replicate.

    Raises:
        WidthError: it returns a value with a width, at infinite or deferred width.
        TypeError: it returns no arrays.
    """
    if not is_limit(width):
        run = compiled(lambda *given: arguments.returned(function, function(*given)))
        found = [jax.tree.map(np.asarray, run(*given)) for given in states]
        arguments.records(function, found[0])
        exponents = jax.tree.map(lambda leaf: Fraction(0), found[0])
        return Estimate(_stacked(found), exponents)
    limited, records, powers = raw(Evaluator(function, records=True)), [], []
    for given in states:
        record = limited(*given)
        check_record(function, record, "the function of evaluate")
        records.append(jax.tree.map(lambda leaf: np.asarray(to_limit(leaf)), record))
        powers.append(jax.tree.map(exponent_of, record))
    return Estimate(_stacked(records), jax.tree.map(largest, *powers))


def _stacked(records: list[Any]) -> Any:
    return jax.tree.map(lambda *leaves: np.stack(leaves), *records)


def largest(*exponents: Any) -> Any:
    """Entry by entry the largest of several exponents: one, or an object array of them."""
    found = functools.reduce(np.maximum, [np.asarray(e, dtype=object) for e in exponents])
    return found if np.ndim(found) else np.asarray(found, dtype=object).item()


def check_record(source: Any, record: Any, role: str) -> None:
    """Raise where a record of limit values is no number.

    Records are numbers: what has a width is a random variable for each of its coordinates.
    `role` is what `source` is in the run, such as "observe".
    """
    for path, leaf in jax.tree_util.tree_leaves_with_path(record):
        if leaf._aval.width_axes:
            raise WidthError(
                f"output{jax.tree_util.keystr(path)} of {role}, {arguments.described(source)}, "
                f"has a width, {leaf!r}, and so no record at tp.inf or tp.Deferred(n).",
                location=leaf._origin,
                advice="Return averages over the width, such as jnp.mean(h**2), or outputs of the "
                "network. For its distribution take tp.particles(fn)(state) of the states at the "
                "end, run.states, or at the steps that tp.train(..., keep=[0, 10]) keeps, "
                "run.snapshots[10].",
            )
    arguments.records(source, jax.tree.map(lambda leaf: leaf._aval, record))
