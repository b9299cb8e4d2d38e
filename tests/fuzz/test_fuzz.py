"""Some random programs of each kind, the same ones at every run, and those that once failed.

Comparisons with samples allow for five standard errors and more: of a thousand such runs about one
fails by chance. The numbers of what is tried here are fixed, and pass.
"""

import random
from types import ModuleType

import pytest

import tplimit as tp
from fuzz import arrays, found, networks, vectors
from fuzz.programs import Program, Step, smallest
from fuzz.trial import trial
from fuzz.verdicts import Outcome, Verdict


def slowly(*numbers: int) -> list[object]:
    return [pytest.param(number, marks=pytest.mark.slow) for number in numbers]


def agree(kind: ModuleType, number: int) -> None:
    verdict, program = trial(kind, number)
    assert not verdict.fault, f"{verdict.outcome}: {verdict.text}\n{program.source}"


@pytest.mark.parametrize("number", [*range(8), *slowly(*range(8, 200))])
def test_finite_arrays(number: int):
    agree(arrays, number)


@pytest.mark.parametrize("number", [*range(3), *slowly(*range(3, 60))])
def test_vectors(number: int):
    agree(vectors, number)


@pytest.mark.parametrize("number", slowly(*range(15)))
def test_networks(number: int):
    agree(networks, number)


@pytest.mark.parametrize("name", found.ARRAYS)
def test_arrays_that_once_failed(name: str):
    for number in (0, 1):  # in double and in single precision
        verdict = arrays.judge(found.ARRAYS[name], number)
        assert verdict.outcome in (Outcome.RIGHT, Outcome.JUSTIFIED), verdict.text


@pytest.mark.parametrize("name", found.VECTORS)
def test_vectors_that_once_failed(name: str):
    verdict = vectors.judge(found.VECTORS[name], number=1)
    assert verdict.outcome is Outcome.RIGHT, verdict.text


# --- the fuzzer itself


def test_a_wrong_number_is_found():
    """A function that is another one at finite width, which only the fuzzer's stand-in shows."""
    wrong = Program(arrays.HEAD, (Step("", "x + 1.0 * (type(v).__name__ == '_Width')"),))
    assert arrays.judge(wrong, 0).outcome is Outcome.WRONG


def test_a_foreign_exception_is_found(monkeypatch: pytest.MonkeyPatch):
    def broken(function: object) -> object:
        raise KeyError("missing")

    monkeypatch.setattr(tp, "leading", broken)
    verdict = arrays.judge(Program(arrays.HEAD, (Step("", "x + y"),)), 0)
    assert (verdict.outcome, verdict.text) == (Outcome.FOREIGN, "KeyError: 'missing'")


def test_a_program_that_fails_is_made_small():
    """Of all steps those are left that the failure is said to depend on."""
    program = arrays.generate(random.Random(3))
    last = program.steps[-2].name
    bad = Step("bad", "jnp.tanh({0})", ("t0",))
    steps = (*program.steps[:-1], bad, Step("", "{0} + {1}", ("bad", last)))
    small = smallest(Program(program.head, steps), lambda p: "jnp.tanh(t0)" in p.source)
    assert [step.name for step in small.steps] == ["t0", "bad", ""]


def test_the_same_number_makes_the_same_program():
    first, second = (trial(arrays, 5, reduce=False) for _ in range(2))
    assert first == second
    assert isinstance(first[0], Verdict)
