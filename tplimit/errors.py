"""Errors of tplimit: each names the operation and the user's line, and says what to do."""

import inspect
import os
import sysconfig
import warnings
from dataclasses import dataclass
from typing import Self


@dataclass(frozen=True)
class Location:
    """A place in the user's program.

    Attributes:
        file, line, function: of the program.
        within: file and line of an installed library that is called there, or nothing.
    """

    file: str
    line: int
    function: str
    within: str = ""

    def __str__(self) -> str:
        text = f"{self.file}:{self.line} ({self.function})"
        return f"{text}, within {self.within}" if self.within else text


class _Explained(Exception):
    """What errors and warnings say; see `LimitError`."""

    def __init__(
        self,
        reason: str,
        *,
        operation: str | None = None,
        location: Location | None = None,
        advice: str | None = None,
    ) -> None:
        self.reason = reason
        self.operation = operation
        self.location = location
        self.advice = advice
        lines = [reason]
        if operation is not None:
            lines.append(f"operation: {operation}")
        if location is not None:
            lines.append(f"at: {location}")
        if advice is not None:
            lines.append(advice)
        lines.append(f"documentation: {self.entry()}")
        super().__init__("\n".join(lines))

    @classmethod
    def entry(cls) -> str:
        """Where the documentation has this class: a page of it, and the section of that name.

        The address is within the pages, wherever they are: on the web or in `docs/_build`.
        """
        return f"errors.html#{cls.__name__.lower()}"

    def at(self, location: Location | None) -> Self:
        """The same at another place, without the traceback of an earlier raise."""
        return type(self)(
            self.reason, operation=self.operation, location=location, advice=self.advice
        )


class LimitError(_Explained):
    """Base of all errors of tplimit.

    Args:
        reason: what is wrong, in plain words.
        operation: the operation with the shapes of its operands.
        location: the user's file, line and function.
        advice: what to do.
    """


class DivergenceError(LimitError):
    """A number was asked for that grows without bound: with the width, or in training."""


class CancellationError(LimitError):
    """The known terms cancel or vanish, and the next term, which decides, is not known."""


class NoLimitError(LimitError):
    """The operation has no infinite-width limit."""


class WidthError(LimitError):
    """Widths are used inconsistently, or their ratio or divisibility is not what is needed."""


class UnsupportedOperationError(LimitError):
    """tplimit has no rule for the operation on these values."""


class RoomError(LimitError):
    """Functions of all pairs of so many particles are too large: take fewer samples."""


class ActivationError(LimitError, ValueError):
    """An activation has no finite second moment, or what is needed of it is no number."""


class OpaqueAttributeError(LimitError, AttributeError):
    """An attribute of an array was asked of an opaque limit value."""


class LimitWarning(_Explained, UserWarning):
    """The result is well defined but probably not what is meant."""


def warn(warning: Warning) -> None:
    """Warn at the user's call: the innermost one outside of tplimit and of installed libraries.

    JAX and others call what the user wrote, and that may call tplimit again.
    """
    frame, level, outside = inspect.currentframe(), 1, 0
    while frame is not None:
        if not _is_ours(frame.f_globals.get("__name__", "")):
            outside = outside or level
            if not frame.f_code.co_filename.startswith(_INSTALLED):
                break
        frame, level = frame.f_back, level + 1
    else:
        level = outside or level
    warnings.warn(warning, stacklevel=level)


def _is_ours(module: str) -> bool:
    return module.partition(".")[0] == __name__.partition(".")[0]


# Where libraries are, the standard one among them; `<frozen ..>` are parts of Python.
_INSTALLED = (
    "<frozen",
    *(os.path.join(sysconfig.get_path(name), "") for name in ("purelib", "platlib", "stdlib")),
)


OPAQUE = (
    "A limit value is opaque outside of a limited function: it stands for a random variable, "
    "not for an array."
)
OPAQUE_ADVICE = (
    "Apply the operation inside: tp.limit(fn)(value, ...), for instance "
    "tp.limit(optimizer.init)(theta)."
)
NEXT_TERM_ADVICE = (
    "Further terms of the expansion in the width decide. tp.train and tp.limit of new parameters "
    "try two terms by themselves; between calls of tp.limit, tp.sample(..., terms=2) keeps two "
    "from the start. Where these do not decide either, this version does not."
)
CANCELLATION_ADVICE = (
    "The leading coefficient vanishes, for instance because a readout is symmetric and "
    "independent of the features, as in the NTK parameterization. " + NEXT_TERM_ADVICE
)
DIVERGENCE_ADVICE = (
    "A power of the width is missing: in what is asked for (a mean where a sum stands), in the "
    "initial values, or in a learning rate. tp.leading shows coefficient and exponent."
)
RESCALE_ADVICE = "Rescale the initialisation or the learning rate with the width."
LOGITS_ADVICE = (
    "Logits of attention are inner products over a width of length d. Independent queries and keys "
    "make them of order 1 if they are divided by its square root; but where training aligns the "
    "two they grow like n^(1/2): divide by d, as in muP."
)
COMPLEX_ADVICE = "Keep real and imaginary parts as two real arrays."
MATRIX_ADVICE = (
    "Sums, finite factors, products with vectors and norms are supported, and functions of all "
    "entries of matrices without a Gaussian part, such as gradients and their averages."
)
RULE_ADVICE = "Enter a rule of your own: @tp.rule(primitive)."
