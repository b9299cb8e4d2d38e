"""Records that grow with the width, and the parameter by whose training they do."""

import contextlib
from collections.abc import Sequence
from typing import Any

import jax

from tplimit.arguments import inf
from tplimit.errors import DivergenceError, LimitError
from tplimit.training.loop import Functions
from tplimit.transforms.compilation import Evaluator
from tplimit.transforms.growth import Steps
from tplimit.transforms.sampling import sample

__all__ = ["growing"]

# What grows is looked for in so many steps, with so many particles: exponents need no accuracy.
_STEPS, _SAMPLES = 4, 2**8


def growing(
    error: LimitError, functions: Functions, theta: Any, batches: Sequence[Any], step: int
) -> LimitError:
    """The error of a record after so many steps, with the parameter by which it grows.

    The first steps are made once more, until preactivations or outputs of a network grow in the
    forward pass, and compared with the same without the training of single parameters. Where that
    tells nothing the error is as it was: what grows is no part of a network, or does so later.
    """
    # Whatever goes wrong here, what the user has to see is the error that there was.
    with contextlib.suppress(Exception):
        state = sample(
            theta, jax.random.key(0), width=inf, samples=_SAMPLES, terms=2, rank_tolerance=0.0
        )
        if functions.init is not None:
            state = Evaluator(functions.init)((state,), {})
        training = Steps(functions.step, state, "theta" if functions.init is None else "state")
        training.run([*batches, batches[-1]][: min(step + 1, _STEPS)])
        faults = training.faults()
        if faults:
            more = "tp.classify_step(step, theta, batch).explain() tells all that has to be mended."
            advice = [*map(str, faults), more]
            # What grows is wanted by some: then an unknown coefficient has reasons of its own.
            if error.advice is not None and not isinstance(error, DivergenceError):
                advice.append(f"Where it is meant to grow: {error.advice}")
            return type(error)(
                error.reason,
                operation=error.operation,
                location=error.location,
                advice="\n".join(advice),
            )
    return error
