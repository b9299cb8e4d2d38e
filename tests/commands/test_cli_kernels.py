"""The command `tplimit kernels`: files, options, errors as text."""

from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import pytest
import safetensors.numpy
from test_cli import invoke, plain

from tplimit import kernels
from tplimit.commands import data
from tplimit.output.files import Format

KERNEL = Format("tplimit.kernel")


def test_digits(tmp_path):
    result = invoke("kernels", "--points", "40", "--depth", "1", "--out", str(tmp_path / "a"))
    assert result.exit_code == 0, result.output
    assert "40 points" in result.output
    settings, arrays = KERNEL.read(tmp_path / "a" / "kernel.safetensors")
    digits = data.digits(40, 0)
    np.testing.assert_allclose(arrays["kernel"], kernels.mlp(1)(digits.x).ntk, rtol=1e-5)
    assert arrays["kernel"].dtype == "f4"
    np.testing.assert_array_equal(arrays["labels"], digits.y)
    np.testing.assert_array_equal(arrays["inputs"], digits.x)
    assert settings["activation"] == "relu" and settings["kernel"] == "ntk"
    assert (tmp_path / "a" / "kernel.png").stat().st_size > 10_000


def test_own_inputs_in_double_precision(tmp_path):
    x = np.random.default_rng(0).normal(size=(30, 4))
    np.save(tmp_path / "x.npy", x)
    result = invoke(
        "kernels", "--data", str(tmp_path / "x.npy"), "--depth", "2", "--activation", "erf",
        "--w-std", "1.3", "--b-std", "0.2", "--kernel", "nngp", "--float64", "--out", str(tmp_path),
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    _, arrays = KERNEL.read(tmp_path / "kernel.safetensors")
    with jax.enable_x64(True):
        expected = kernels.mlp(2, "erf", 1.3, 0.2)(x).nngp
    np.testing.assert_allclose(arrays["kernel"], expected, rtol=1e-12)
    assert set(arrays) == {"kernel"}


def test_the_file_is_read_as_the_output_says(tmp_path):
    """The printed line runs; kernels of random points can be made again from the stored inputs."""
    result = invoke("kernels", "--data", "random", "--points", "9", "--out", str(tmp_path))
    line = plain(result.output).split("In Python: ")[1].strip()
    matrix = eval(line, {"safetensors": safetensors})
    arrays = safetensors.numpy.load_file(tmp_path / "kernel.safetensors")
    assert set(arrays) == {"kernel", "inputs", "labels"}
    np.testing.assert_array_equal(matrix, arrays["kernel"])
    np.testing.assert_allclose(matrix, kernels.mlp(2)(arrays["inputs"]).ntk, rtol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--data", "mnist"], 1, "unknown data 'mnist'"),
        (["--data", "nowhere.npy"], 1, "No such file"),
        (["--points", "9000"], 1, "points wanted, the two classes have"),
        (["--activation", "tan"], 1, "unknown activation 'tan'"),
        (["--kernel", "other"], 2, "--kernel"),
        (["--depth", "-1"], 2, "--depth"),
        (["--w-std", "nan"], 1, "w_std=nan is not finite"),
        (["--b-std", "inf"], 1, "b_std=inf is not finite"),
        (["--data", "random", "--seed", "-1"], 2, "--seed"),
    ],
)
def test_wrong_options(arguments, code, message, tmp_path):
    result = invoke("kernels", *arguments, "--out", str(tmp_path / "out"))
    assert result.exit_code == code, result.output
    assert message in plain(result.output)
    assert "Traceback" not in result.output
    assert not (tmp_path / "out").exists()


def lying(x: np.ndarray, shape: tuple[int, ...], path: Path) -> None:
    """A file whose header says more than the data hold."""
    with path.open("wb") as file:
        header = {"descr": np.lib.format.dtype_to_descr(x.dtype), "fortran_order": False}
        np.lib.format.write_array_header_1_0(file, header | {"shape": shape})
        file.write(x.tobytes())


FILES: dict[str, tuple[Callable[[Path], object], str]] = {
    "text": (lambda path: path.write_text("1.0 2.0\n3.0 4.0\n"), "no .npy file of numbers, or dam"),
    "empty": (lambda path: path.write_bytes(b""), "no .npy file of numbers, or damaged"),
    "longer": (lambda path: lying(np.ones((3, 2)), (300, 2), path), "or damaged"),
    "huge": (lambda path: lying(np.ones((3, 2)), (10**12, 2), path), "or damaged"),
    "negative": (lambda path: lying(np.ones((3, 2)), (-3, 2), path), "or damaged"),
    "objects": (lambda path: np.save(path, np.array([[None]])), "no .npy file of numbers"),
    "number": (lambda path: np.save(path, np.float64(3)), "has shape (), (points, features)"),
    "vector": (lambda path: np.save(path, np.ones(3)), "has shape (3,), (points, features)"),
    "no points": (lambda path: np.save(path, np.ones((0, 3))), "has to hold points"),
    "letters": (lambda path: np.save(path, np.array([["a"]])), "has dtype <U1, real numbers are"),
    "complex": (lambda path: np.save(path, np.ones((2, 2)) * 1j), "has dtype complex128, real"),
    "nan": (lambda path: np.save(path, np.full((2, 2), np.nan)), "entries that are not finite"),
}


@pytest.mark.parametrize("name", FILES)
def test_files_that_hold_no_inputs(name, tmp_path):
    """Each is refused in words, whatever its header says; nothing in it is run."""
    write, message = FILES[name]
    path = tmp_path / "x.npy"
    write(path)
    result = invoke("kernels", "--data", str(path), "--out", str(tmp_path / "out"))
    assert result.exit_code == 1, result.output
    assert message in plain(result.output)
    assert "pickle" not in plain(result.output) and "Traceback" not in result.output
    assert not (tmp_path / "out").exists()
