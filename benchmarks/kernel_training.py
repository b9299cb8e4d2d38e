"""Training in function space with many points: memory and time of every part.

The NTK of a network of 3 hidden ReLU layers on random points of a sphere, float32, by blocks; its
checks; steps with the matrix held and with the kernel evaluated anew; regression by Cholesky's
decomposition and by conjugate gradients; and the eigendecomposition. The peak of memory is that of
the process, in which the parts run one after the other.
"""

import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from common import Report, parser, peak_memory

import tplimit as tp

INPUTS, CLASSES, TEST = 32, 10, 100
NETWORK = tp.kernels.mlp(3, "relu", 2**0.5, 0.1)
FULL, SMALL = (2_000, 5_000, 10_000, 20_000), (300,)
QUIET = {"progress": False}


def problem(points: int) -> tuple[np.ndarray, np.ndarray]:
    """Inputs of size sqrt(INPUTS), and the largest of the CLASSES outputs of a random network."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((points + TEST, INPUTS))
    x *= (INPUTS / np.sum(x**2, axis=1, keepdims=True)) ** 0.5
    outputs = np.tanh(x @ rng.standard_normal((INPUTS, 64))) @ rng.standard_normal((64, CLASSES))
    return x.astype(np.float32), outputs[:points].argmax(axis=1)


def seconds(function: Callable[[], Any]) -> float:
    start = time.perf_counter()
    jax.block_until_ready(function())
    return time.perf_counter() - start


def measured(points: int, spectral: int, free: int) -> dict[str, Any]:
    """A row of the table; the last two parts up to so many points."""
    x, y = problem(points)
    train, test = x[:points], x[points:]
    one_hot = np.eye(CLASSES, dtype=np.float32)[y]
    tp.kernels.gram(NETWORK, train[: 2 * 1024], **QUIET)  # compiled before
    start = time.perf_counter()
    tt = tp.kernels.gram(NETWORK, train, **QUIET)
    row = {"points": points, "matrix GB": tt.nbytes / 1e9, "kernel s": time.perf_counter() - start}
    st = tp.kernels.gram(NETWORK, test, train, **QUIET)

    def steps(loss: str, targets: Any, count: int, method: str = "iterate") -> float:
        return seconds(
            lambda: tp.kernels.train(
                tt, st, targets, loss, 0.5, count, record=[count], method=method, **QUIET
            )
        )

    def regression(targets: np.ndarray, method: str) -> float:
        return seconds(
            lambda: tp.kernels.posterior(tt, st, targets, noise=0.1, method=method, **QUIET)
        )

    few, many = 1, 11 if points > 5_000 else 101
    for loss, targets in (("cross_entropy", y), ("mse", one_hot)):
        steps(loss, targets, few)  # compiles
        row["checks s"] = steps(loss, targets, few)
        row[f"{loss} ms/step"] = 1e3 * (steps(loss, targets, many) - row["checks s"]) / (many - few)
    row["Cholesky s"] = regression(one_hot, "cholesky")
    row["CG s/output"] = regression(one_hot[:, 0], "cg")
    row["spectral s"] = steps("mse", one_hot, 10**6, "spectral") if points <= spectral else None
    row["s/step, no matrix"] = None
    if points <= free:
        one, six = (
            seconds(
                lambda n=n: tp.kernels.train(
                    NETWORK, None, y, "cross_entropy", 0.5, n, record=[n],
                    x=train, x_test=test, memory=0, **QUIET,
                )
            )
            for n in (1, 6)
        )  # fmt: skip
        row["s/step, no matrix"] = (six - one) / 5
    row["peak GB"] = peak_memory() / 1e9
    return row


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--points", type=int, nargs="*", help="numbers of points")
    options.add_argument("--spectral", type=int, default=5_000, help="largest eigendecomposition")
    options.add_argument("--free", type=int, default=5_000, help="largest without the matrix")
    given = options.parse_args()
    report = Report("kernel_training", given)
    rows = []
    for points in given.points or (SMALL if given.small else FULL):
        rows.append(measured(points, given.spectral, given.free))
        report.table("NTK of 3 hidden ReLU layers, 10 outputs, float32", rows, key="parts")


if __name__ == "__main__":
    main()
