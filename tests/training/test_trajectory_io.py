"""`Trajectory.save`, `load` and `plot`; wrong files."""

from collections import namedtuple
from fractions import Fraction

import jax
import numpy as np
import pytest
from safetensors.numpy import save_file

import tplimit as tp
from tplimit.training.trajectory import Records


def trajectory(width=16, outputs=None):
    generator = np.random.default_rng(0)
    records = Records(
        {"loss": generator.normal(size=(3, 4)), "k": (np.arange(12).reshape(3, 4), None)}
        if outputs is None
        else outputs,
        [generator.normal(size=(3, 2, 5)).astype(np.float32).transpose(0, 2, 1)],
    )
    mixed = np.array([Fraction(-1, 2), -np.inf], dtype=object)
    exponents = Records({"loss": Fraction(-3, 2), "k": (Fraction(0), None)}, [mixed])
    return tp.Trajectory(records, exponents, width, state={"not": "saved"})


def equal(one, two):
    assert jax.tree.structure(one) == jax.tree.structure(two)
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(two), strict=True):
        assert np.asarray(a).dtype == np.asarray(b).dtype
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    "width",
    [16, {"n": 16, "m": 32}, tp.inf, tp.Deferred(100)],
    ids=["integer", "named", "infinite", "deferred"],
)
def test_roundtrip(width, tmp_path):
    saved = trajectory(width)
    loaded = tp.Trajectory.load(saved.save(tmp_path / "new folder" / "run.safetensors"))
    for part in ("outputs", "observations"):
        equal(getattr(saved.replicates, part), getattr(loaded.replicates, part))
        equal(getattr(saved.exponents, part), getattr(loaded.exponents, part))
    assert loaded.exponents.outputs["loss"] == Fraction(-3, 2)
    assert loaded.width == width
    assert loaded.state is None
    np.testing.assert_array_equal(loaded.stderr.outputs["loss"], saved.stderr.outputs["loss"])
    assert [f.name for f in (tmp_path / "new folder").iterdir()] == ["run.safetensors"]


def test_what_cannot_be_saved_is_named(tmp_path):
    Pair = namedtuple("Pair", "a b")
    with pytest.raises(TypeError, match=r"cannot save outputs.p, a Pair: let step and observe"):
        trajectory(outputs={"p": Pair(np.ones(3), np.ones(3))}).save(tmp_path / "x")
    with pytest.raises(TypeError, match="keys that are no strings"):
        trajectory(outputs={1: np.ones(3)}).save(tmp_path / "x")
    assert not list(tmp_path.iterdir())


def test_wrong_files(tmp_path):
    path = trajectory().save(tmp_path / "run.safetensors")
    content = path.read_bytes()
    for cut in (0, 5, 200, len(content) - 1):
        path.write_bytes(content[:cut])
        with pytest.raises(ValueError, match="truncated or no safetensors file"):
            tp.Trajectory.load(path)
    path.write_bytes(b"something else entirely, longer than a header")
    with pytest.raises(ValueError, match="truncated or no safetensors file"):
        tp.Trajectory.load(path)
    save_file({"a": np.ones(3)}, path)
    with pytest.raises(ValueError, match="a safetensors file, but no Trajectory of tplimit"):
        tp.Trajectory.load(path)
    save_file({"a": np.ones(3)}, path, metadata={"format": "tplimit.Trajectory", "version": "3"})
    with pytest.raises(ValueError, match="format version 3, this tplimit reads up to 2"):
        tp.Trajectory.load(path)
    with pytest.raises(FileNotFoundError):
        tp.Trajectory.load(tmp_path / "missing")


@pytest.mark.parametrize("suffix", ["png", "pdf", "svg"])
def test_plot(suffix, tmp_path):
    path = trajectory().plot(tmp_path / f"figure.{suffix}")
    assert path.stat().st_size > 1000


def test_nothing_to_plot(tmp_path):
    records = Records(None, None)
    with pytest.raises(ValueError, match="nothing to plot"):
        tp.Trajectory(records, records, 4).plot(tmp_path / "figure.png")
