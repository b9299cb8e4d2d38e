"""What the progress line says: what takes its time, and for how long."""

import io
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import jax
import jax.numpy as jnp
import pytest

import tplimit as tp
from tplimit.output import progress
from tplimit.output.progress import STEP
from tplimit.training import loop

N = tp.Width("n")


def train() -> None:
    def step(t: Any, rate: Any) -> Any:
        value, g = jax.value_and_grad(lambda t: (jnp.mean(t["v"] ** 2) - 2.0) ** 2)(t)
        return {"v": t["v"] - rate * t["v"].shape[0] * g["v"]}, value

    observe = lambda t: jnp.mean(t["v"])
    tp.train(
        step, {"v": tp.normal((N,))}, jnp.full(3, 0.1), width=tp.inf, key=jax.random.key(0),
        samples=64, observe=observe,
    )  # fmt: skip


def test_it_tells_what_is_compiled(unshared: None, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []

    @contextmanager
    def bar(*_: Any) -> Iterator[Any]:
        yield told.append

    monkeypatch.setattr(loop, "bar", bar)
    train()
    assert told[:4] == ["sampling", "compiling observe 1", "compiling step 1", STEP]
    assert told.count(STEP) == 3
    assert len(told) == len(set(told)) + 2  # nothing is compiled twice


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_it_tells_for_how_long(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = Terminal()
    monkeypatch.setattr(sys, "stderr", shown)
    monkeypatch.setenv("COLUMNS", "120")
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    with progress.bar(2, "width 8", True) as advance:
        advance("compiling step 1")
        now[0] = 7.0
    assert "compiling step 1, 7 s" in shown.getvalue()
