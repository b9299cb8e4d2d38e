"""Every file that is written is open to whom the umask says."""

import os

import jax
import numpy as np
import pytest
from matplotlib.figure import Figure
from typer.testing import CliRunner

import tplimit as tp
from tplimit.commands.main import app
from tplimit.output.figures import save_figure
from tplimit.training.trajectory import Records

N = tp.Width("n")


def trajectory(replicates=2):
    records = Records(np.ones((replicates, 3)), np.ones((replicates, 4)))
    return tp.Trajectory(records, Records(0.0, 0.0), 8)


def comparison():
    return tp.compare(
        lambda theta, y: (theta, theta["v"].mean() + y), {"v": tp.normal((N,))}, [1.0],
        widths=[4, 8], seeds=2, samples=64, replicates=2, key=jax.random.key(0), progress=False,
    )  # fmt: skip


def train(folder):
    step = lambda theta, y: (theta, theta["v"].mean() + y)
    how = {"width": 8, "key": jax.random.key(0), "progress": False}
    tp.train(step, {"v": tp.normal((N,))}, [1.0], checkpoint=folder, **how)


def kernel_run(folder):
    kernel = np.eye(2)
    run = tp.kernels.train(kernel, kernel, np.ones(2), "mse", lr=0.1, steps=1)
    run.save(folder / "run.safetensors")


def command(folder):
    options = ["kernels", "--data", "random", "--points", "4", "--out", str(folder)]
    result = CliRunner().invoke(app, options)
    assert result.exit_code == 0, result.output


WRITERS = {
    "trajectory": lambda folder: trajectory().save(folder / "run.safetensors"),
    "comparison": lambda folder: comparison().save(folder / "result.json"),
    "figure": lambda folder: save_figure(Figure(), folder / "figure.png"),
    "figure without a suffix": lambda folder: save_figure(Figure(), folder / "figure"),
    "kernel run": kernel_run,
    "checkpoint": train,
    "command": command,
}


@pytest.mark.parametrize("umask", [0o002, 0o077], ids=oct)
@pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS)
def test_files_follow_the_umask(write, umask, tmp_path):
    before = os.umask(umask)
    try:
        write(tmp_path / "new folder")
    finally:
        os.umask(before)
    written = list((tmp_path / "new folder").iterdir())
    assert written
    assert not [path for path in written if path.suffix == ".partial"]
    assert {path.stat().st_mode & 0o777 for path in written} == {0o666 & ~umask}


def test_a_file_that_cannot_be_finished_leaves_the_old_one(tmp_path, monkeypatch):
    path = trajectory().save(tmp_path / "run.safetensors")
    before = path.read_bytes()

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        trajectory(3).save(path)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == [path.name]
