"""`tp.train(..., checkpoint=...)`: a killed run goes on bit for bit; wrong files and other runs."""

import functools
import shutil
import signal
import subprocess
import sys
import time
from collections import namedtuple
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from oracles.helpers import assert_same
from safetensors.numpy import save_file

import tplimit as tp
from tplimit.gaussian.deferred import Law
from tplimit.training import checkpoint, encoding, infinite
from tplimit.transforms import effort
from tplimit.values.tensors import Tensor

N = tp.Width("n")
THETA = {
    "u": tp.normal((2, N)),
    "w": tp.normal((N, N), std=N**-0.5),
    "v": tp.normal((N,)),
    "b": tp.full((), 0.0),
}
X = np.array([[1.0, 0.5], [-0.2, 0.7]], np.float32)
BATCHES = [(X * (1 + t / 10), np.array([1.0, -1.0], np.float32)) for t in range(3)]
WIDTHS = {"inf": tp.inf, "deferred": tp.Deferred(64), "integer": 8}
OPTIMIZER = optax.sgd(0.1, momentum=0.9)


class State(NamedTuple):
    theta: dict
    optimizer: tuple
    count: jax.Array


def predict(theta, x):
    hidden = jnp.tanh(jnp.tanh(x @ theta["u"]) @ theta["w"])
    return hidden @ theta["v"] / theta["v"].shape[0] + theta["b"]


def init(theta):
    return State(theta, OPTIMIZER.init(theta), jnp.zeros((), jnp.int32))


def step(state, batch):
    x, y = batch
    loss, gradient = jax.value_and_grad(lambda t: jnp.mean((predict(t, x) - y) ** 2))(state.theta)
    n = state.theta["v"].shape[0]
    gradient = {k: g * n if k in "uv" else g for k, g in gradient.items()}
    updates, optimizer = OPTIMIZER.update(gradient, state.optimizer, state.theta)
    theta = optax.apply_updates(state.theta, updates)
    return State(theta, optimizer, state.count + 1), {"loss": loss, "parts": [y, (state.count,)]}


def observe(state):
    n = state.theta["v"].shape[0]
    return predict(state.theta, X), predict(state.theta, X) / n**0.5


def run(width, **options):
    given = {
        "key": jax.random.key(1), "samples": 64, "replicates": 2, "init": init, "observe": observe,
        "progress": False,
    } | options  # fmt: skip
    return tp.train(given.pop("step", step), given.pop("theta", THETA),
                    given.pop("batches", BATCHES), width=width, **given)  # fmt: skip


@functools.cache
def uninterrupted(name):
    return run(WIDTHS[name])


def every(folder, steps=1):
    return tp.Checkpoint(folder, every=steps)


class Killed(BaseException):
    """Stands for the end of the process."""


@pytest.fixture
def mortal(monkeypatch):
    """A function: from now on the process dies in the write after `count` writes."""
    write = checkpoint._write

    def dies_after(count):
        left = iter(range(count))

        def writes(path, *content):
            if next(left, None) is None:
                path.with_name(path.name + ".partial").write_bytes(b"half")
                raise Killed
            write(path, *content)

        monkeypatch.setattr(checkpoint, "_write", writes)

    return dies_after


def files(folder):
    """What lies in the folder, besides the lock."""
    return sorted(path.name for path in folder.iterdir() if path.name not in ("lock", "states"))


@pytest.mark.slow
@pytest.mark.parametrize("name", WIDTHS)
def test_killed_again_and_again(name, tmp_path, mortal, monkeypatch):
    monkeypatch.setattr(infinite, "_TOGETHER_CPU", 1)
    # Every position of a part occurs: after each of three steps, and between two parts.
    saves, expected = {"inf": (1, 7), "deferred": (2, 3), "integer": (2, 1)}[name]
    deaths = 0
    for _ in range(20):
        mortal(saves)
        try:
            resumed = run(WIDTHS[name], checkpoint=every(tmp_path))
        except Killed:
            deaths += 1
            assert len([name for name in files(tmp_path) if name.endswith("safetensors")]) <= 2
        else:
            break
    # At integer width the replicates are one part, else (here) each is one.
    assert deaths == expected
    assert_same(resumed, run(WIDTHS[name]))


@pytest.mark.slow
def test_a_finished_run_returns_at_once(tmp_path):
    def untouched(*args):
        raise AssertionError

    for name, width in WIDTHS.items():
        run(width, checkpoint=tmp_path / name)
        before = files(tmp_path / name)
        again = run(width, checkpoint=str(tmp_path / name), step=untouched, observe=untouched)
        assert_same(again, uninterrupted(name))
        assert files(tmp_path / name) == before


def test_parts_of_several_replicates(tmp_path, mortal, monkeypatch):
    monkeypatch.setattr("tplimit.training.finite._CHUNK_BYTES", 5000)
    whole = run(8, replicates=3)
    mortal(6)
    with pytest.raises(Killed):
        run(8, replicates=3, checkpoint=every(tmp_path))
    mortal(100)
    assert_same(run(8, replicates=3, checkpoint=every(tmp_path)), whole)
    monkeypatch.undo()
    with pytest.raises(ValueError, match="another run: division of the replicates differ"):
        run(8, replicates=3, checkpoint=every(tmp_path))


def test_steps_that_are_optimised(tmp_path, mortal, monkeypatch, unshared):
    """How well a step is compiled follows from its place in the run, not from what has been run."""
    monkeypatch.setattr(effort, "_PAYS", 3 * 64 * 2)  # from step 2 on; the first two are not
    monkeypatch.setattr(infinite, "_TOGETHER_CPU", 64)
    batches = [BATCHES[0]] * 5
    whole = run(tp.inf, batches=batches)
    mortal(8)
    with pytest.raises(Killed):
        run(tp.inf, batches=batches, checkpoint=every(tmp_path))
    mortal(100)
    assert_same(run(tp.inf, batches=batches, checkpoint=every(tmp_path)), whole)


def test_double_precision(tmp_path, mortal):
    with jax.enable_x64(True):
        whole = run(8)
        mortal(2)
        with pytest.raises(Killed):
            run(8, checkpoint=every(tmp_path))
        mortal(100)
        resumed = run(8, checkpoint=every(tmp_path))
        assert_same(resumed, whole)
        assert resumed.state.theta["w"].dtype == jnp.float64


def test_intervals(tmp_path, monkeypatch):
    counts = []
    write = checkpoint._write
    monkeypatch.setattr(checkpoint, "_write", lambda *a: (counts.append(a[0].name), write(*a)))

    def saves(folder, **options):
        counts.clear()
        run(8, checkpoint=folder, **options)
        return len(counts)

    assert saves(tmp_path / "time") == 1  # only the end, after less than a minute
    monkeypatch.setattr(checkpoint, "_SECONDS", 0.0)
    assert saves(tmp_path / "always") == 4
    assert saves(every(tmp_path / "two", 2)) == 2
    assert files(tmp_path / "always") == [f"checkpoint-0000000{i}.safetensors" for i in (3, 4)]
    with pytest.raises(ValueError, match="at least 1 step"):
        every(tmp_path, 0)


SCRIPT = """
import pathlib, sys
sys.path[:0] = sys.argv[1].split(":")
import test_checkpoint as t
run = t.run(t.WIDTHS[sys.argv[2]], batches=t.BATCHES * 4, checkpoint=t.every(sys.argv[3]))
"""


@pytest.mark.parametrize("name", [pytest.param("inf", marks=pytest.mark.slow), "integer"])
def test_sigkill_at_any_moment(name, tmp_path, request):
    generator = np.random.default_rng()  # another moment each time
    command = [
        sys.executable,
        "-c",
        SCRIPT,
        ":".join(map(str, request.path.parents[:2])),
        name,
        str(tmp_path),
    ]
    kills, most = 0, 3 if name == "inf" else 1
    while True:
        before = files(tmp_path)
        process = subprocess.Popen(command)
        # Each process gets past its first save, then it has a fraction of a second to live.
        while kills < most and process.poll() is None and files(tmp_path) == before:
            time.sleep(0.01)
        try:
            code = process.wait(timeout=generator.uniform(0, 0.2) if kills < most else 300)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            code = process.wait()
        if code == 0:
            break
        assert code == -signal.SIGKILL
        kills += 1
    assert_same(
        run(WIDTHS[name], batches=BATCHES * 4, checkpoint=tmp_path),
        run(WIDTHS[name], batches=BATCHES * 4),
    )


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    """A folder with the checkpoints after step 3 and at the end of a run of integer width."""
    folder = tmp_path_factory.mktemp("template")
    run(8, checkpoint=every(folder))
    return folder


@pytest.fixture
def two_files(template, tmp_path):
    return [Path(shutil.copy(template / name, tmp_path)) for name in files(template)]


def with_version(path, version):
    any_version = replace(checkpoint._FORMAT, version=1000, oldest=0)
    replace(any_version, version=version).write(path, any_version.read(path)[1])


def flipped(path):
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


DAMAGES = {
    "empty": (lambda p: p.write_bytes(b""), "truncated"),
    "folder": (lambda p: (p.unlink(), p.mkdir()), "cannot be read"),
    "dangling link": (lambda p: (p.unlink(), p.symlink_to(p.with_name("gone"))), "cannot be read"),
    "truncated": (lambda p: p.write_bytes(p.read_bytes()[:-1]), "truncated"),
    "text": (lambda p: p.write_text("something else, longer than the header"), "truncated or no"),
    "foreign": (lambda p: save_file({"a": np.ones(3)}, p), "but no Checkpoint of tplimit"),
    "one bit": (flipped, "checksum is wrong"),
}


@pytest.mark.parametrize(("damage", "reason"), DAMAGES.values(), ids=DAMAGES)
def test_damaged_files_are_noticed(damage, reason, two_files):
    old, new = two_files
    damage(new)
    found = checkpoint.Checkpoints(new.parent, {})
    with pytest.warns(tp.LimitWarning, match=f"{new.name}.*{reason}.*; going on from .*{old.name}"):
        assert len(found._newest()["history"].outputs) == 3


@pytest.mark.parametrize("damage", ["truncated", "folder", "dangling link"])
def test_the_one_before_a_damaged_file_is_used(damage, two_files):
    old, new = two_files
    DAMAGES[damage][0](new)
    with pytest.warns(tp.LimitWarning, match=DAMAGES[damage][1]) as caught:
        resumed = run(8, checkpoint=every(new.parent))
    assert caught[0].filename == __file__
    # There is a newer one, so that there is nothing to warn of any more.
    for trajectory in (resumed, run(8, checkpoint=every(new.parent))):
        assert_same(trajectory, uninterrupted("integer"))
    # What is damaged makes room; a folder is somebody else's.
    left = {old.name, "checkpoint-00000005.safetensors"} | ({new.name} & {*files(new.parent)})
    assert set(files(new.parent)) == left
    assert new.is_dir() == (damage == "folder")
    assert (new.name in left) == (damage == "folder")


def test_no_readable_file(two_files):
    for path in two_files:
        path.write_bytes(b"")
    with pytest.raises(ValueError, match=r"no checkpoint can be read: .*Delete them"):
        run(8, checkpoint=two_files[0].parent)


def test_a_newer_version_is_refused(two_files):
    with_version(two_files[1], 3)
    with pytest.raises(ValueError, match="version 3, this tplimit reads up to 2: update tplimit"):
        run(8, checkpoint=two_files[0].parent)
    with_version(two_files[1], 1)
    with pytest.raises(ValueError, match="use the version of tplimit that wrote it"):
        run(8, checkpoint=two_files[0].parent)


@pytest.mark.slow
def test_other_fields_are_refused(tmp_path, monkeypatch):
    run(tp.inf, checkpoint=tmp_path)
    others = [cls for cls in encoding._CLASSES if cls is not Law]
    monkeypatch.setattr(encoding, "_CLASSES", (*others, namedtuple("Law", "exact other")))
    with pytest.raises(ValueError, match=r"another version of tplimit \(it has another Law\)"):
        run(tp.inf, checkpoint=tmp_path)


def test_another_run_is_refused(two_files):
    folder = two_files[0].parent
    others = {
        "key": {"key": jax.random.key(2)},
        "batches": {"batches": BATCHES[::-1]},
        "batches, theta": {"batches": BATCHES[:2], "theta": THETA | {"b": tp.full((), 1.0)}},
        "samples": {"samples": 65},
        "replicates": {"replicates": 3},
        "width": {"width": 9},
        "precision": {},
    }
    for names, options in others.items():
        with (
            jax.enable_x64(names == "precision"),
            pytest.raises(ValueError, match="belongs to another run") as caught,
        ):
            run(options.pop("width", 8), checkpoint=folder, **options)
        assert set(names.split(", ")) <= set(
            str(caught.value).split("run: ")[1].split(" differ")[0].split(", ")
        )
    # Equal batches are equal, whoever holds them.
    jax_batches = [jax.tree.map(jnp.asarray, batch) for batch in BATCHES]
    again = run(8, checkpoint=folder, batches=jax_batches)
    assert_same(again, uninterrupted("integer"))


@pytest.mark.slow
def test_another_structure_is_refused(two_files):
    with pytest.raises(ValueError, match=r"another theta or init: it starts from .*State"):
        run(8, checkpoint=two_files[0].parent, init=lambda theta: (init(theta), theta["b"]))
    with pytest.raises(ValueError, match=r"float32\[2\].* this run from"):
        run(8, checkpoint=two_files[0].parent,
            init=lambda theta: init(theta)._replace(count=jnp.zeros(3)))  # fmt: skip


@pytest.mark.parametrize("width", WIDTHS.values(), ids=WIDTHS)
def test_a_state_that_changes_its_structure(width, tmp_path):
    def grows(state, batch):
        return {"theta": state.get("theta", state), "last": state["b"]}, state["b"]

    options = {"step": grows, "init": None, "observe": None}
    with pytest.raises(ValueError, match=r"step turned .*'b'.*let init return a state"):
        run(width, checkpoint=tmp_path, **options)
    assert files(tmp_path) == []


def test_records_of_another_kind(tmp_path):
    Pair = namedtuple("Pair", "a b")
    with pytest.raises(TypeError, match="cannot hold a Pair: let step and observe return dicts"):
        run(8, checkpoint=tmp_path, observe=lambda state: Pair(state.count, state.count))


def test_the_folder_is_a_file(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(FileExistsError):
        run(8, checkpoint=tmp_path / "file")


def test_values_come_back_bit_for_bit():
    weak = jnp.asarray(0.1)
    shared = np.arange(6.0).reshape(2, 3).T
    mixed = np.empty((2, 2), object)
    mixed[...] = [[Fraction(1, 3), -np.inf], [Fraction(0), Fraction(1, 3)]]
    values = [
        None, True, 2**70, "Ünïcode", 0.1, -np.inf, 1j, Fraction(-1, 3), {(0, True): [1], 2: ()},
        np.float64(0.1), np.bool_(True), np.array(3, np.int8), np.zeros((0, 2)), mixed,
        np.array([np.nan, -0.0], np.float16), np.arange(3, dtype=">f4"), np.dtype("bfloat16"),
        jnp.asarray([0.1, np.nan, -0.0], jnp.bfloat16), jnp.arange(3, dtype=jnp.uint8), weak,
        jnp.array([True, False]), jax.random.key(3),
        jax.random.split(jax.random.key(3, impl="rbg")), jax.random.key(0).dtype, shared, shared,
    ]  # fmt: skip
    code, arrays = encoding.encode(values)
    back = encoding.decode(code, arrays)
    assert encoding.encode(back)[0] == code
    for old, new in zip(values, back, strict=True):
        assert type(old) is type(new)
        if isinstance(old, (np.ndarray, np.generic, jax.Array)):
            assert (old.dtype.name if isinstance(old.dtype, np.dtype) else old.dtype) == (
                new.dtype.name if isinstance(new.dtype, np.dtype) else new.dtype
            )
            assert old.shape == new.shape
            assert str(old) == str(new)
            assert getattr(old, "weak_type", False) is getattr(new, "weak_type", False)
        else:
            assert old == new
    assert back[-1] is back[-2]
    assert sum(getattr(v, "weak_type", False) for v in back) == 1
    with pytest.raises(TypeError, match="cannot hold a object"):
        encoding.encode(object())


def test_limit_values_share_their_bank_again():
    theta = tp.sample(THETA, jax.random.key(0), width=tp.inf, samples=64)
    loss = tp.limit(lambda t: jnp.mean(predict(t, X) ** 2))
    back = encoding.decode(*encoding.encode(theta))
    assert {id(leaf._revealed) for leaf in back.values()} == {id(back["u"]._revealed)}
    assert loss(back) == loss(theta)
    assert isinstance(back["u"]._value, Tensor)
    assert back["w"]._revealed.bank.stores[0].key_Y == theta["w"]._revealed.bank.stores[0].key_Y
