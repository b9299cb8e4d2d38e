"""Runs that turn to two terms by themselves, killed by SIGKILL: all goes on bit for bit."""

import itertools
import os
import signal
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles.helpers import assert_same

import tplimit as tp
from tplimit.training import checkpoint, infinite, options

N = tp.Width("n")
THETA = {"u": tp.normal((2, N)), "v": tp.normal((N,))}
DEEP = THETA | {"w": tp.normal((N, N), std=N**-0.5)}  # takes three times as long to compile
X = np.array([[1.0, 0.5], [-0.2, 0.7]], np.float32)
Y = np.array([1.0, -1.0], np.float32)


def predict(theta, x):
    hidden = x @ theta["u"]
    hidden = hidden @ theta["w"] if "w" in theta else hidden
    return hidden @ theta["v"] / theta["v"].shape[0] ** 0.5


def step(theta, batch):
    """A step of an NTK network; without a batch one that has a limit with one term."""
    if batch is None:
        return theta, jnp.mean(theta["v"] ** 2)
    loss = lambda t: jnp.mean((predict(t, X) - batch) ** 2)
    value, gradient = jax.value_and_grad(loss)(theta)
    rates = {"u": 0.2, "w": 0.2 / theta["v"].shape[0], "v": 0.2}
    return {name: p - rates[name] * gradient[name] for name, p in theta.items()}, value


def observe(theta):
    return jnp.mean(theta["v"] ** 2)


def run(folder=None, steps=3, warm=2, **options):
    batches = [None] * warm + [Y] * steps
    given = {
        "width": tp.inf, "key": jax.random.key(5), "samples": 32, "replicates": 2,
        "observe": observe if warm else lambda theta: predict(theta, X), "progress": False,
        "checkpoint": None if folder is None else tp.Checkpoint(folder, every=1),
    } | options  # fmt: skip
    return tp.train(given.pop("step", step), given.pop("theta", THETA), batches, **given)


class Killed(BaseException):
    """Stands for the end of the process."""


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def die_at(event, death=die, patch=setattr):
    """From now on the process ends in place of an event: a flush, a renaming or a deletion."""
    count = itertools.count()

    def dying(function):
        def call(*args, **kwargs):
            if next(count) == event:
                death()
            return function(*args, **kwargs)

        return call

    for owner, name in ((os, "fsync"), (os, "replace"), (Path, "unlink")):
        patch(owner, name, dying(getattr(owner, name)))


def saved(folder):
    """Terms and number of steps in the newest checkpoint."""
    content = checkpoint.Checkpoints(folder, {})._newest()
    return content["decided"]["terms"], len(content["history"].outputs)


def test_killed_in_every_phase(tmp_path, monkeypatch):
    def death():
        raise Killed

    # In the first attempt, which has one term and two steps; while that is deleted; in the second.
    for event, left in ((5, (1, 2)), (1, (1, 1)), (12, (2, 2))):
        with monkeypatch.context() as patch:
            die_at(event, death, patch.setattr)
            with pytest.raises(Killed):
                run(tmp_path)
        assert saved(tmp_path) == left
    resumed = run(tmp_path)
    assert resumed.random
    assert_same(resumed, run())
    # It is finished: the same again.
    assert_same(run(tmp_path), resumed)


SCRIPT = """
import sys
sys.path[:0] = sys.argv[1].split(":")
import test_checkpoint_kernel as t
t.infinite._TOGETHER_CPU = 1
t.die_at(int(sys.argv[2]))
t.run(sys.argv[3], steps=20, theta=t.DEEP)
"""


@pytest.mark.slow
def test_ten_processes_are_killed(tmp_path, monkeypatch):
    command = [sys.executable, "-c", SCRIPT, ":".join(map(str, Path(__file__).parents[:2]))]
    for event in np.random.default_rng(11).integers(3, 17, 10):
        ended = subprocess.run([*command, str(event), str(tmp_path)])
        assert ended.returncode == -signal.SIGKILL
    monkeypatch.setattr(infinite, "_TOGETHER_CPU", 1)
    resumed = run(tmp_path, steps=20, theta=DEEP)
    assert resumed.random
    assert sum(resumed.directions) > 0
    assert_same(resumed, run(steps=20, theta=DEEP))


# --- what is random


@pytest.mark.slow
def test_however_it_was_asked_for_it_is_random(monkeypatch):
    monkeypatch.setattr(infinite, "_TOGETHER_CPU", 1)
    one = run()
    assert one.random
    assert "random limit" in repr(one)
    assert_same(one, run(terms=2))
    assert not run(init_output="zero").random


@pytest.mark.slow
def test_what_tends_to_a_number_is_not_random():
    def mean_field(theta, batch):
        return theta, jnp.mean(predict(theta, X) ** 2) / theta["v"].shape[0]

    how = {"step": mean_field, "observe": None, "steps": 1, "warm": 0}
    assert not run(**how, terms=2).random
    records = run(**how, fluctuations=True, replicates=4, bias_check=True)
    assert not records.random
    assert np.std(records.fluctuations.outputs) == 0


@pytest.mark.parametrize("terms", [None, 2])
def test_bias_check_refuses_a_random_limit_at_once(terms, monkeypatch):
    monkeypatch.setattr(infinite, "_TOGETHER_CPU", 1)
    # Of the run with all samples nothing is sampled.
    sampled, drawn = [], options.drawn
    record = lambda *args, **options: sampled.append(options["samples"]) or drawn(*args, **options)
    monkeypatch.setattr(options, "drawn", record)
    with pytest.raises(ValueError, match=r'random limit.*use init_output="zero"'):
        run(samples=64, terms=terms, bias_check=True)
    assert set(sampled) == {32}
