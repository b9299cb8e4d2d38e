"""What comes of a program, and the counts of many."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import StrEnum

import tplimit as tp


class Outcome(StrEnum):
    """What a program ended in."""

    RIGHT = "right"
    WRONG = "wrong"  # a number that networks do not have
    FOREIGN = "foreign"  # an exception that is none of the library's
    JUSTIFIED = "refused: there is no limit"
    REFUSED = "refused though there is one"
    SKIPPED = "no answer at finite width"


@dataclass(frozen=True)
class Verdict:
    """An outcome, and what there is to say: the numbers, or the reason."""

    outcome: Outcome
    text: str = ""

    @property
    def fault(self) -> bool:
        return self.outcome in (Outcome.WRONG, Outcome.FOREIGN)


class Stopped(Exception):
    """A verdict that was found before the end."""

    def __init__(self, verdict: Verdict) -> None:
        super().__init__(verdict.text)
        self.verdict = verdict


@contextmanager
def watched(has_limit: bool) -> Iterator[None]:
    """Refusals and foreign exceptions of what runs inside, as verdicts."""
    try:
        yield
    except tp.LimitError as error:
        outcome = Outcome.REFUSED if has_limit else Outcome.JUSTIFIED
        reason = str(error).split("\n")[0]
        raise Stopped(Verdict(outcome, f"{type(error).__name__}: {reason}")) from error
    except Stopped:
        raise
    except Exception as error:
        text = f"{type(error).__name__}: {str(error)[:200]}"
        raise Stopped(Verdict(Outcome.FOREIGN, text)) from error


@dataclass
class Counts:
    """Outcomes of one kind of program."""

    outcomes: Counter[Outcome] = field(default_factory=Counter)
    reasons: Counter[str] = field(default_factory=Counter)

    def add(self, verdict: Verdict) -> None:
        self.outcomes[verdict.outcome] += 1
        if verdict.outcome is Outcome.REFUSED:
            self.reasons[verdict.text] += 1

    @property
    def tried(self) -> int:
        return self.outcomes.total()

    @property
    def faults(self) -> int:
        return self.outcomes[Outcome.WRONG] + self.outcomes[Outcome.FOREIGN]
