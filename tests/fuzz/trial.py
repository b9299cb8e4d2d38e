"""One random program of a kind: made from its number, judged, and made small where it fails."""

import random
from types import ModuleType

from fuzz.programs import Program, seed_of, smallest
from fuzz.verdicts import Verdict


def trial(kind: ModuleType, number: int, reduce: bool = True) -> tuple[Verdict, Program]:
    """The verdict on the program with this number, and the smallest with the same outcome."""
    program = kind.generate(random.Random(seed_of(kind.NAME, number)))
    verdict = kind.judge(program, number)
    if verdict.fault and reduce:
        program = smallest(program, lambda p: kind.judge(p, number).outcome is verdict.outcome)
    return verdict, program
