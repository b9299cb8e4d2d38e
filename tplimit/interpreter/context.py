"""What a rule may use: lengths at hand, spaces, the ledger of queries, checks and errors."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any, NamedTuple, NoReturn

import jax
import jax.numpy as jnp
import numpy as np

from tplimit._jax import Primitive
from tplimit.errors import (
    CANCELLATION_ADVICE,
    CancellationError,
    LimitError,
    LimitWarning,
    NoLimitError,
    UnsupportedOperationError,
)
from tplimit.gaussian.bank import Bank
from tplimit.interpreter import folding, zeros
from tplimit.interpreter.cancellation import GONE, Balance, Sums, round_off
from tplimit.interpreter.ledger import Ledger
from tplimit.interpreter.spaces import Spaces
from tplimit.program.equations import Equation, Operand, Program, Slot
from tplimit.program.traits import Kind
from tplimit.values.exponents import SLOWLY, Exponent, Size
from tplimit.values.tensors import Tensor, Value, tensor

#: From a finite variable to its value, computed before the run, or None where that cannot be.
Decide = Callable[[Slot], np.ndarray | None]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Check:
    """A condition on numbers, verified after the run: ``ok`` must hold, else ``error`` is raised
    (or, if it is a warning, warned).

    Attributes:
        doubt: it holds if no decision that is not sure changes an output (``doubts.py``). Of
            records a warning is enough: every replicate decides for itself.
    """

    ok: Any
    error: LimitError | LimitWarning = field(metadata={"static": True})
    doubt: bool = field(default=False, metadata={"static": True})


class Place(NamedTuple):
    """The equation whose rule is running, its program, what its primitive is, and its operands."""

    program: Program
    equation: Equation
    kind: Kind
    operands: Sequence[Value]


#: Numbers without a limit that are told apart.
SEVERAL = 16


class Context:
    """What a rule may use.

    Attributes:
        ledger: the deferred matrices, and what they have been asked.
        spaces: which width axes are one.
        checks: conditions to be verified when the run is over.
        decisions: those that the current rule has taken about numbers (``doubts.py``).
        decide: gives values of finite variables that are known before the run.
        sums: which sums cancel, or None where that is not known: at finite width, in the bodies
            of compiled loops.
        offset: how far numbers without a limit, on which nothing may depend, are moved, one after
            the other; None where that is not tried (see ``arbitrary``).
        without_limit: errors of these numbers, if something does depend on them.
        nested: whether the program at hand is the body of a loop or a branch.
    """

    def __init__(
        self,
        bank: Bank | None,
        *,
        spaces: Spaces | None = None,
        decide: Decide = lambda slot: None,
        dry: bool = False,
        sums: Sums | None = None,
        offset: Any = None,
        drawn: Any = 0.0,
    ) -> None:
        self.spaces = spaces_of(bank) if spaces is None else spaces
        self.ledger = Ledger(bank, self.spaces, dry, drawn)
        self.decide = decide
        self.sums = sums
        self.offset = offset
        self.without_limit: list[LimitError] = []
        self.checks: list[Check] = []
        self.decisions: list[Tensor] = []
        self.nested = False
        self.at: Place | None = None

    # The current equation -------------------------------------------------------------------

    @property
    def program(self) -> Program:
        """The program that the current equation stands in."""
        assert self.at is not None
        return self.at.program

    @property
    def equation(self) -> Equation:
        """The equation whose rule is running."""
        assert self.at is not None
        return self.at.equation

    @property
    def kind(self) -> Kind:
        """What the current primitive is."""
        assert self.at is not None
        return self.at.kind

    def flips(self, gap: Exponent) -> Exponent:
        """Exponent of the share of coordinates on which what is smaller by ``n^gap`` has another
        sign than the operands of the current equation, or their difference, have without it."""
        assert self.at is not None
        return gap if gap >= SLOWLY else zeros.share_below(gap, zeros.order(self.at.operands))

    def bind(self, primitive: Primitive, *arrays: Any, **params: Any) -> Any:
        """Evaluate a primitive on coefficients; constants are folded."""
        params = self.resolve(params)
        concrete = all(isinstance(a, (np.ndarray, np.generic)) for a in arrays)
        if concrete and sum(np.size(a) for a in arrays) <= folding.LIMIT:
            return folding.folded(primitive, arrays, params)
        return primitive.bind(*(_array(a) for a in arrays), **params)

    def rebind(self, *arrays: Any) -> Any:
        """The current equation's primitive on coefficients."""
        return self.bind(self.equation.primitive, *arrays, **self.equation.params)

    # Sizes and scales -----------------------------------------------------------------------

    @property
    def bank(self) -> Bank | None:
        """The deferred matrices as they are revealed."""
        return self.ledger.bank

    @property
    def exact(self) -> bool:
        """Whether the widths are true, finite ones (a deferred network), not a limit."""
        return self.bank is not None and self.bank.law.exact

    @property
    def terms(self) -> int:
        """Terms of the expansion in the width that are kept of every value."""
        return 1 if self.bank is None else self.bank.terms

    @property
    def root_n(self) -> float:
        """Square root of the number of particles per common width."""
        return 1.0 if self.bank is None else float(self.bank.n) ** 0.5

    def size(self, dim: int | Size) -> int:
        """Length of an axis in the arrays at hand."""
        if isinstance(dim, Size):
            return dim.at(self.bank.n if self.bank is not None else 1)
        return int(dim)

    def few(self, size: Size) -> int:
        """Particles of a width over which functions of pairs are averaged."""
        few = None if self.bank is None else self.bank.pair_samples
        return self.size(size) if few is None else size.at(few)

    def shape(self, dims: Iterable[int | Size]) -> tuple[int, ...]:
        return tuple(self.size(dim) for dim in dims)

    def scale(self, coefficient: float, power: Fraction) -> tuple[float, Fraction]:
        """``c n^p`` as coefficient and exponent; at finite width the exponent is 0."""
        if self.exact and self.bank is not None and power != 0:
            return coefficient * float(self.bank.n) ** float(power), Fraction(0)
        return coefficient, power

    def resolve(self, params: Any) -> Any:
        """Parameters with every ``Size`` replaced by the length at hand."""
        return jax.tree.map(lambda v: self.size(v) if isinstance(v, Size) else v, params)

    def cancelling(
        self, balance: Callable[[], Balance], axis: int | None, sure: bool = False
    ) -> np.ndarray | None:
        """Mask of the entries of a sum that are exactly zero though its summands are not (see
        ``cancellation.py``), with length 1 along the width; None if none are known to be.

        A sum of vectors that cancels in a run and is not known to is refused, where it is `sure`:
        has no sampling error that would hide what is left.
        """
        found = self.left_of(balance, axis, sure)
        return None if found is None else found == GONE

    def left_of(
        self, balance: Callable[[], Balance], axis: int | None, sure: bool, below: bool = False
    ) -> np.ndarray | None:
        """What becomes of the entries of a sum, see `cancelling`: `GONE` or, of one `below` others
        in a vector, `HIDDEN`; None if they are what they seem to be."""
        if self.sums is None:
            return None
        asked = sure and axis is not None and not self.exact
        equation = None if self.at is None else self.at.equation
        found = self.sums.left_of(equation, balance, axis, asked and below)
        if asked and found is None and self.sums.questions is None:
            assert axis is not None
            error = self.error(
                "Vectors that are added up cancel but for round-off, and it is not known whether "
                "they are the same.",
                CancellationError,
                "Where one of them comes from an earlier call, keep the parameters in the state "
                "and compute both in one function.",
            )
            self.check(~round_off(balance(), axis), error)
        return found

    # Numbers without a limit ------------------------------------------------------------------

    def arbitrary(self, number: Any, error: LimitError) -> Any:
        """A number that has no limit, such as the largest coordinate of a vector or ``log n``.

        Programs that subtract it and add it again return the same for any other number. This is
        tried in the rehearsal (``transforms/rehearsal.py``), where such a number is another one,
        the same one where it was the same.

        Raises:
            LimitError: the error, where it cannot be tried.
        """
        if self.offset is None:
            raise error
        self.without_limit.append(error)
        number = jnp.asarray(number)
        offset = jnp.asarray(self.offset)[(len(self.without_limit) - 1) % SEVERAL]
        moved = number + offset * (2 + jnp.sin(12.9898 * number))
        return moved.astype(number.dtype)

    @property
    def log_n(self) -> Any:
        """The logarithm of the width, as ``arbitrary``."""
        error = self.error(
            "An output depends on the logarithm of the width, which has no limit.",
            NoLimitError,
            "Subtract the logarithm of the width: jax.nn.logsumexp(x) - jnp.log(x.shape[-1]).",
        )
        return self.arbitrary(jnp.ones((), jnp.result_type(float)), error)

    # Failures -------------------------------------------------------------------------------

    def error(
        self,
        reason: str,
        kind: type[LimitError] | type[LimitWarning] = UnsupportedOperationError,
        advice: str = "",
    ) -> Any:
        """An error or a warning that names the current operation and the user's line."""
        equation = None if self.at is None else self.at.equation
        return kind(
            reason,
            operation=None if equation is None else str(equation),
            location=None if equation is None else equation.location,
            advice=advice or None,
        )

    def fail(
        self, reason: str, kind: type[LimitError] = UnsupportedOperationError, advice: str = ""
    ) -> NoReturn:
        raise self.error(reason, kind, advice)

    def check(self, ok: Any, error: LimitError | LimitWarning, doubt: bool = False) -> None:
        """Require a condition on numbers; verified when the run is over (see ``Check``)."""
        if isinstance(ok, (bool, np.bool_, np.ndarray)) and bool(np.all(ok)):
            return
        self.checks.append(Check(jnp.all(ok), error, doubt))

    def refuse_later(self, value: Tensor, error: LimitError, significant: Any) -> Tensor:
        """Refuse when the run is over: then it is known whether a coefficient only vanishes.

        Returns a placeholder of NaN, so that the run can go on to its end.
        """
        vanishes = self.error(
            f"{error.reason.rstrip('.')}, by a coefficient that is zero within the sampling error.",
            CancellationError,
            CANCELLATION_ADVICE,
        )
        self.checks.append(Check(significant, vanishes))
        self.checks.append(Check(jnp.asarray(False), error))
        shape, dtype = np.shape(value.coefficient), jnp.result_type(float)
        return tensor(jnp.full(shape, jnp.nan, dtype), axis=value.axis, space=value.space)

    # Programs inside of programs ------------------------------------------------------------

    def decided(self, operand: Operand) -> np.ndarray | None:
        """The value of a finite variable, computed before the run if that is possible."""
        if not isinstance(operand, Slot) or self.nested:
            return None
        return self.decide(operand)

    def child(self, bank: Bank | None) -> "Context":
        """A context for the body of a compiled loop, with a bank of its own."""
        inner = Context(
            bank, spaces=self.spaces, decide=self.decide, dry=self.ledger.dry, offset=self.offset,
            drawn=self.ledger.drawn,
        )  # fmt: skip
        inner.nested, inner.at = True, self.at
        inner.ledger.sides = set(self.ledger.sides)
        inner.without_limit = self.without_limit
        return inner


def spaces_of(bank: Bank | None) -> Spaces:
    """What earlier calls know of the widths."""
    if bank is None:
        return Spaces()
    units = zip(bank.divided, bank.units, strict=True)
    return Spaces(bank.classes, units, zip(bank.drawn, bank.drawn_units, strict=True))


def _array(value: Any) -> Any:
    """Anything as a JAX array; arrays (typed keys among them) as they are."""
    return value if isinstance(value, jax.Array) else jnp.asarray(value)
