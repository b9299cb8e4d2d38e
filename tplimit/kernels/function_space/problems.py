"""What training in function space is given, checked: kernels, targets, losses, functions."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tplimit import arguments
from tplimit.caching.store import compiled
from tplimit.kernels.function_space.grams import Evaluated, Held, as_matrix, check_kernel
from tplimit.networks import losses
from tplimit.networks.losses import Loss

__all__ = ["Problem", "record_steps"]


@dataclass(frozen=True, eq=False)
class Problem:
    """Checked data. Functions have the axes (points, replicates, outputs) throughout.

    Attributes:
        kernel: of the training points.
        test_kernel: of test points with training points; None without test points.
        targets: what the loss compares outputs with, points first.
        start, start_test: the initial function.
        objective: `loss(f, y)` of arrays as the user sees them.
        replicated, vector: whether the user's functions have an axis of replicates, and none of
            outputs.
        largest: the largest eigenvalue of the kernel, by Lanczos' method.
    """

    kernel: Held | Evaluated
    test_kernel: Held | Evaluated | None
    targets: np.ndarray
    start: np.ndarray
    start_test: np.ndarray
    objective: Callable[[Any, Any], Any]
    replicated: bool
    vector: bool
    largest: float

    @property
    def points(self) -> int:
        return self.kernel.shape[0]

    @property
    def dtype(self) -> np.dtype:
        return self.kernel.dtype

    @property
    def squared(self) -> bool:
        """Whether the loss is the squared error, whose training is linear."""
        return self.objective is losses.mse

    @classmethod
    def of(
        cls,
        kernel_tt: Any,
        kernel_st: Any,
        y: Any,
        loss: Loss,
        f0: Any,
        outputs: int | None = None,
        x: Any = None,
        x_test: Any = None,
        **how: Any,
    ) -> "Problem":
        """Check everything. `how` goes to `tplimit.kernels.grams.as_matrix`.

        Raises:
            ValueError: shapes do not fit, an entry is not finite, the kernel is not symmetric or
                not positive semidefinite, or labels are not those of the loss.
        """
        kernel = as_matrix("kernel_tt", kernel_tt, x, **how)
        points = kernel.shape[0]
        if kernel_st is None and x_test is not None and callable(kernel_tt):
            kernel_st = kernel_tt
        test = None
        if kernel_st is not None:
            if callable(kernel_st) and (x is None or x_test is None):
                raise ValueError("kernel_st is a function: give the points, x= and x_test=")
            test = as_matrix("kernel_st", kernel_st, x_test, x, **how)
            if test.shape[1] != points:
                raise ValueError(
                    f"kernel_st has shape {test.shape}: its columns are the {points} training "
                    "points, its rows the test points"
                )
        _, largest = check_kernel("kernel_tt", kernel)
        objective = losses.resolve(loss)
        targets = _targets(y, points, objective, kernel.dtype)
        shape = _output_shape(targets, objective, outputs, f0)
        start, start_test = _initial(f0, shape, 0 if test is None else test.shape[0], kernel.dtype)
        replicated = start.ndim > len(shape)
        problem = cls(
            kernel,
            test,
            targets,
            _inside(start, replicated, len(shape) == 1),
            _inside(start_test, replicated, len(shape) == 1),
            objective,
            replicated,
            len(shape) == 1,
            largest,
        )
        problem._try_loss()
        return problem

    def _try_loss(self) -> None:
        with precision(self.dtype):
            f, y = jnp.asarray(self.start[:, 0]), jnp.asarray(self.targets)
            value = jax.eval_shape(self.objective, f[:, 0] if self.vector else f, y)
        if getattr(value, "shape", None) != ():
            raise ValueError(f"the loss has to return one number, it returns {value}")

    @property
    def slopes(self) -> Callable[[jax.Array, jax.Array], tuple[jax.Array, jax.Array]]:
        """Loss (replicates,) and its derivatives (batch, replicates, outputs) at f and y."""
        return slopes(self.objective, self.vector)

    def outside(self, f: np.ndarray) -> np.ndarray:
        """(points, records, replicates, outputs) as the user sees it, records first."""
        f = np.moveaxis(f, 0, 2)  # records, replicates, points, outputs
        f = f[..., 0] if self.vector else f
        return f if self.replicated else f[:, 0]

    def outputs(self, beta: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Functions of training and test points from coefficients (points, records, ...)."""
        train = self.start[:, None] + self.kernel.times(beta).astype(self.dtype)
        if self.test_kernel is None:
            return train, np.zeros((0, *train.shape[1:]), self.dtype)
        test = self.start_test[:, None] + self.test_kernel.times(beta).astype(self.dtype)
        return train, test

    def losses(self, f: np.ndarray) -> np.ndarray:
        """The loss of all training points from outputs (points, records, replicates, outputs)."""
        values = compiled(jax.vmap(_of_outputs(self.objective, self.vector), in_axes=(1, None)))
        with precision(self.dtype):
            found = values(
                jnp.asarray(f.reshape(len(f), -1, f.shape[-1])), jnp.asarray(self.targets)
            )
        losses = np.asarray(found).reshape(f.shape[1:3])
        return losses if self.replicated else losses[:, 0]


def slopes(
    objective: Callable[[Any, Any], Any], vector: bool
) -> Callable[[jax.Array, jax.Array], tuple[jax.Array, jax.Array]]:
    """Loss (replicates,) and its derivatives (batch, replicates, outputs) at f and y."""
    value = jax.value_and_grad(_of_outputs(objective, vector))
    return jax.vmap(value, in_axes=(1, None), out_axes=(0, 1))


def _of_outputs(objective: Callable[[Any, Any], Any], vector: bool) -> Callable[..., jax.Array]:
    """The loss of outputs (points, outputs)."""
    return lambda f, y: objective(f[:, 0] if vector else f, y)


def precision(dtype: Any) -> Any:
    """JAX in the precision of the kernel, for as long as the context lasts."""
    return jax.enable_x64(np.dtype(dtype).itemsize == 8)


def record_steps(record: Any, steps: int, most: int) -> np.ndarray:
    """The steps at which outputs are wanted, in increasing order.

    Raises:
        ValueError: they are not integers between 0 and `steps`, or more than `most`.
    """
    count = steps + 1 if record is None else np.size(record)
    if count > most:
        raise ValueError(
            f"{count} records do not fit into memory, {most} do: choose fewer steps by record="
        )
    if record is None:
        return np.arange(steps + 1)
    wanted = np.unique(np.asarray(record))
    integers = np.issubdtype(wanted.dtype, np.integer)
    if not integers or wanted.size == 0 or wanted[0] < 0 or wanted[-1] > steps:
        raise ValueError(f"record has to hold numbers of steps from 0 to {steps}, got {record}")
    return wanted


def _targets(y: Any, points: int, objective: Any, dtype: np.dtype) -> np.ndarray:
    targets = np.asarray(arguments.numbers("y", y))
    if targets.ndim == 0 or len(targets) != points:
        raise ValueError(f"y has shape {targets.shape} for {points} training points")
    if not np.all(np.isfinite(targets)):
        raise ValueError("y has entries that are not finite")
    named = objective in (losses.mse, losses.logistic)
    if objective is losses.logistic and not np.all(np.abs(targets) == 1):
        raise ValueError("the logistic loss needs labels -1 and 1")
    if named or np.issubdtype(targets.dtype, np.floating):
        targets = targets.astype(dtype)
    return targets


def _output_shape(
    targets: np.ndarray, objective: Any, outputs: int | None, f0: Any
) -> tuple[int, ...]:
    """(points,) or (points, outputs)."""
    points = len(targets)
    classes = objective is losses.cross_entropy and targets.ndim == 1
    if not classes:
        return targets.shape if outputs is None else (points, outputs)
    if not np.issubdtype(targets.dtype, np.integer):
        raise ValueError("cross-entropy needs class numbers (integers), or probabilities (n, k)")
    if outputs is None:
        last = None if f0 is None else np.shape(f0[0])[-1:]
        outputs = last[0] if last else int(targets.max()) + 1
    if targets.min() < 0 or targets.max() >= outputs:
        raise ValueError(
            f"class numbers from {targets.min()} to {targets.max()} for {outputs} outputs"
        )
    return (points, outputs)


def _initial(
    f0: Any, shape: tuple[int, ...], test_points: int, dtype: np.dtype
) -> tuple[np.ndarray, np.ndarray]:
    test_shape = (test_points, *shape[1:])
    if f0 is None:
        return np.zeros(shape, dtype), np.zeros(test_shape, dtype)
    if not isinstance(f0, Sequence) or len(f0) != 2:
        raise ValueError("f0 is a pair: the initial function at the training and test points")
    first, second = (np.asarray(a, dtype) for a in (f0[0], () if f0[1] is None else f0[1]))
    replicates = first.shape[: -len(shape)] if first.ndim > len(shape) else ()
    if first.shape != (*replicates, *shape) or len(replicates) > 1:
        raise ValueError(
            f"f0 at the training points has shape {first.shape}: {shape} is expected, or this "
            "behind one axis of replicates"
        )
    if f0[1] is None and test_points == 0:
        second = np.zeros((*replicates, *test_shape), dtype)
    if second.shape != (*replicates, *test_shape):
        raise ValueError(
            f"f0 at the test points has shape {second.shape}, {(*replicates, *test_shape)} is "
            "expected"
        )
    if not (np.all(np.isfinite(first)) and np.all(np.isfinite(second))):
        raise ValueError("f0 has entries that are not finite")
    return first, second


def _inside(f: np.ndarray, replicated: bool, vector: bool) -> np.ndarray:
    """A function as the user gives it with axes (points, replicates, outputs)."""
    f = f[..., None] if vector else f
    f = f if replicated else f[None]
    return np.ascontiguousarray(np.moveaxis(f, 0, 1))
