"""The folder of a checkpoint: one call at a time, full disks, other calls and other files."""

import errno
import os
import subprocess
import sys
import threading

import jax
import numpy as np
import pytest

import tplimit as tp
from tplimit.output import files

N = tp.Width("n")
THETA = {"v": tp.normal((N,))}


def step(theta, y):
    return {"v": theta["v"] * 0.5}, theta["v"].mean() + y


def observe(theta):
    return theta["v"][:2]


def run(folder, **options):
    given = {"width": 8, "key": jax.random.key(0), "progress": False} | options
    return tp.train(given.pop("step", step), THETA, np.arange(4.0, dtype=np.float32),
                    checkpoint=folder, **given)  # fmt: skip


def every(folder):
    return tp.Checkpoint(folder, every=1)


def names(folder):
    return sorted(path.name for path in folder.iterdir() if path.name not in ("lock", "states"))


def interrupted(folder, **options):
    """Stop a run before its third step."""

    class Stop(Exception):
        pass

    left = iter(range(2))
    write = files.Format.write

    def stopping(self, *content):
        if next(left, None) is None:
            raise Stop
        write(self, *content)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files.Format, "write", stopping)
        with pytest.raises(Stop):
            run(every(folder), **options)


# --- one call at a time

HOLD = """
import sys, time
from pathlib import Path
from tplimit.output.files import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""


def test_a_lock_ends_with_its_process(tmp_path):
    command = [sys.executable, "-c", HOLD, str(tmp_path / "lock")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    with pytest.raises(ValueError, match="another run is using the checkpoint folder"):
        run(tmp_path)
    process.kill()
    process.communicate()
    assert (tmp_path / "lock").exists()
    assert len(run(tmp_path).outputs) == 4


def test_two_threads_on_one_folder(tmp_path):
    inside, go_on, found = threading.Event(), threading.Event(), []

    def waiting(theta, y):
        inside.set()
        assert go_on.wait(60)
        return step(theta, y)

    thread = threading.Thread(target=lambda: found.append(run(tmp_path, step=waiting)))
    thread.start()
    assert inside.wait(60)
    with pytest.raises(ValueError, match="give this run a folder of its own"):
        run(tmp_path)
    go_on.set()
    thread.join()
    np.testing.assert_array_equal(found[0].outputs, run(tmp_path).outputs)


def test_a_call_that_fails_gives_the_lock_back(tmp_path):
    with pytest.raises(ZeroDivisionError):
        run(tmp_path, step=lambda theta, y: 1 // 0)
    run(tmp_path)


def test_a_finished_run_may_be_read_where_nothing_can_be_written(tmp_path, monkeypatch):
    expected = run(tmp_path)
    real = open

    def refused(path, mode="r", *args, **kwargs):
        if mode != "r" and os.path.basename(path) == "lock":
            raise PermissionError(errno.EACCES, "Permission denied")
        return real(path, mode, *args, **kwargs)

    # Whoever runs the tests may be allowed everything.
    monkeypatch.setattr("builtins.open", refused)
    np.testing.assert_array_equal(run(tmp_path).outputs, expected.outputs)


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def test_where_there_are_no_locks_nothing_is_locked(number, tmp_path, monkeypatch):
    def none(*args):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("fcntl.flock", none)
    assert len(run(tmp_path).outputs) == 4


# --- disks


class FullDisk:
    """A file on a disk that is full after some bytes."""

    def __init__(self, file, room):
        self.file, self.room = file, room

    def write(self, content):
        self.file.write(content[: self.room])
        if len(content) > self.room:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def __getattr__(self, name):
        return getattr(self.file, name)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.file.close()


def test_a_full_disk(tmp_path, monkeypatch):
    expected = run(None)
    interrupted(tmp_path)
    before = names(tmp_path)
    real = open

    def full(path, mode="r", *args, **kwargs):
        file = real(path, mode, *args, **kwargs)
        return FullDisk(file, 100) if mode == "wb" else file

    for folder, good in ((tmp_path, before[-1]), (tmp_path / "new", "there is no good file")):
        with monkeypatch.context() as patch:
            patch.setattr("builtins.open", full)
            with pytest.raises(OSError, match=rf"cannot be written \(No space.*{good}") as caught:
                run(every(folder))
        assert caught.value.errno == errno.ENOSPC
        assert names(folder) == (before if folder == tmp_path else [])
        np.testing.assert_array_equal(run(every(folder)).outputs, expected.outputs)


def test_other_files_are_left_alone(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "checkpoint-1.safetensors").write_text("mine")
    run(every(tmp_path))
    assert (tmp_path / "notes.txt").read_text() == "mine"
    assert (tmp_path / "checkpoint-1.safetensors").read_text() == "mine"


# --- calls


def test_a_folder_has_a_name():
    with pytest.raises(ValueError, match="empty string: give it a name"):
        run("")
    with pytest.raises(TypeError, match=r"a checkpoint is a folder, or .*, got 3"):
        run(3)


@pytest.mark.parametrize("finished", [True, False])
@pytest.mark.parametrize("name", ["observe", "init"])
def test_functions_that_were_not_given(name, finished, tmp_path):
    added = {name: {"observe": observe, "init": lambda theta: theta}[name]}
    run(tmp_path) if finished else interrupted(tmp_path)
    with pytest.raises(ValueError, match=f"belongs to another run: {name} differ; give this run"):
        run(tmp_path, **added)


def test_functions_that_record_something_else(tmp_path):
    interrupted(tmp_path, observe=observe)
    for other in (lambda theta: theta["v"], lambda theta: {"v": theta["v"][:2]}):
        with pytest.raises(ValueError, match="are step and observe those of the earlier call"):
            run(tmp_path, observe=other)
