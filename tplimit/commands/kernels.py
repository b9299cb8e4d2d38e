"""The command `tplimit kernels`: a kernel matrix of data, as a file and as a picture."""

import time
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import jax
import numpy as np
import typer
from rich.console import Console

from tplimit.commands.console import failed, plain_warnings
from tplimit.commands.data import SOURCES, points_of
from tplimit.errors import LimitError
from tplimit.kernels import gram, mlp
from tplimit.output.figures import kernel_figure, save_figure
from tplimit.output.files import Format

__all__ = ["kernels"]


class Which(StrEnum):
    """Kernels of a network."""

    nngp = "nngp"
    ntk = "ntk"


Inputs = Annotated[
    str,
    typer.Option(
        help="digits, random, or inputs (points, features): a .npy file, or x of a .npz file."
    ),
]
Count = Annotated[int, typer.Option(min=1, help="Number of points of digits and random.")]
Depth = Annotated[int, typer.Option(min=0, help="Hidden layers.")]
Name = Annotated[str, typer.Option(help="A name, as in tplimit.kernels.dual.")]
Weights = Annotated[float, typer.Option(help="Standard deviation of the weights.")]
Biases = Annotated[float, typer.Option(help="Standard deviation of the biases.")]
Kind = Annotated[Which, typer.Option(help="Covariance at initialisation, or tangent kernel.")]
Double = Annotated[bool, typer.Option("--float64", help="Compute in double precision.")]
Seed = Annotated[int, typer.Option(min=0, help="Of the data.")]
Out = Annotated[Path, typer.Option(help="Folder for the files.")]


def kernels(
    data: Inputs = "digits",
    points: Count = 256,
    depth: Depth = 2,
    activation: Name = "relu",
    w_std: Weights = 1.0,
    b_std: Biases = 0.0,
    kernel: Kind = Which.ntk,
    float64: Double = False,
    seed: Seed = 0,
    out: Out = Path("tplimit-kernels"),
) -> None:
    """Kernel matrix of an infinitely wide network: kernel.safetensors and kernel.png.

    The file holds the matrix "kernel" and, of digits and random, "inputs" and "labels"; points are
    in the order of the data. Python reads it by safetensors.numpy.load_file.
    """
    try:
        x, labels = _inputs(data, points, seed)
        network = mlp(depth, activation, w_std, b_std)
        start = time.monotonic()
        dtype = np.float64 if float64 else np.float32
        with plain_warnings(), jax.enable_x64(float64):
            matrix = gram(network, x, which=kernel.value, dtype=dtype)
        seconds = time.monotonic() - start
    except (LimitError, ValueError, OSError, ModuleNotFoundError) as error:
        raise failed(error) from error
    settings = {
        "data": data, "depth": depth, "activation": activation,
        "w_std": w_std, "b_std": b_std, "kernel": kernel.value, "seed": seed,
        "seconds": round(seconds, 3),
    }  # fmt: skip
    # A file of the user's is not copied; what was drawn here is nowhere else.
    arrays = {"kernel": matrix} | ({} if labels is None else {"inputs": x, "labels": labels})
    Format("tplimit.kernel").write(
        out / "kernel.safetensors", arrays, {k: str(v) for k, v in settings.items()}
    )
    order = np.arange(len(matrix)) if labels is None else np.argsort(labels, kind="stable")
    title = f"{kernel.value.upper()}, {depth} hidden layers, {activation}"
    figure = save_figure(kernel_figure(matrix[np.ix_(order, order)], title), out / "kernel.png")
    Console().print(
        f"{len(matrix)} points, {seconds:.1f} s; matrix: {out / 'kernel.safetensors'}; "
        f"figure: {figure}\nIn Python: "
        f'safetensors.numpy.load_file("{out / "kernel.safetensors"}")["kernel"]',
        markup=False,
        highlight=False,
        soft_wrap=True,
    )


def _inputs(data: str, points: int, seed: int) -> tuple[np.ndarray, np.ndarray | None]:
    if data in SOURCES:
        found = SOURCES[data](points, 0, seed=seed)
        return found.x, found.y
    if not data.endswith((".npy", ".npz")):
        raise ValueError(
            f"unknown data {data!r}: digits, random, or a file that ends in .npy, or .npz with x"
        )
    return points_of(data), None
