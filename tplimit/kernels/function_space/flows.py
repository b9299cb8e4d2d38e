"""Gradient flow in function space: continuous training time."""

import time
from typing import Any

import jax.numpy as jnp
import numpy as np

from tplimit.caching.store import compiled
from tplimit.errors import DivergenceError
from tplimit.kernels.function_space.grams import BLOCK, MEMORY, Held, KernelLike
from tplimit.kernels.function_space.problems import Problem, precision
from tplimit.kernels.function_space.runs import KernelRun
from tplimit.kernels.function_space.training import by_gains, finish, modes
from tplimit.networks.losses import Loss
from tplimit.output.progress import STEP, bar

__all__ = ["flow"]


def flow(
    kernel_tt: KernelLike,
    kernel_st: KernelLike | None,
    y: Any,
    loss: Loss,
    times: Any,
    *,
    f0: tuple[Any, Any] | None = None,
    outputs: int | None = None,
    tolerance: float = 1e-6,
    solver: str = "DOP853",
    x: Any = None,
    x_test: Any = None,
    which: str = "ntk",
    dtype: Any = None,
    block: int = BLOCK,
    memory: int = MEMORY,
    progress: bool = True,
) -> KernelRun:
    """Train in function space in continuous time, the limit of small learning rates, t = lr·steps.

        df_t(x)/dt = -Σ_a Θ(x, x_a) ∂loss/∂f(x_a)

    The squared error has a closed form, f_t - f_0 = Θ Θ⁻¹ (1 - e^(-Θ t/n)) (y - f_0), by the
    eigendecomposition of Θ: O(n³), in seconds up to 4096 points. Other losses (and kernel functions
    that do not fit into `memory`) are integrated by `scipy.integrate.solve_ivp` in float64, on one
    coefficient per training point, replicate and output.

    Arguments are those of `tplimit.kernels.train`, without learning rate and optimizer, and

    Args:
        times: increasing, not negative; those that are recorded.
        tolerance: relative error of the coefficients that the integrator aims at; the absolute one
            is 1e-3 of it.
        solver: method of `solve_ivp`; explicit ones take a number of steps that grows like
            λ_max t / n.

    Raises:
        ValueError: as `train`, or times are not increasing.
        DivergenceError: the integrator fails.

    >>> import numpy as np
    >>> theta = np.array([[2.0, 1.0], [1.0, 2.0]])
    >>> run = flow(theta, None, np.array([1.0, -1.0]), "mse", [0.0, 1.0])
    >>> bool(abs(run.train[1, 0] - (1 - np.exp(-0.5))) < 1e-12)
    True
    """
    started = time.monotonic()
    how = {"which": which, "dtype": dtype, "block": block, "memory": memory, "progress": progress}
    problem = Problem.of(kernel_tt, kernel_st, y, loss, f0, outputs, x, x_test, **how)
    t = np.atleast_1d(np.asarray(times, np.float64))
    if t.ndim != 1 or not np.all(np.isfinite(t)) or t[0] < 0 or np.any(np.diff(t) <= 0):
        raise ValueError("times have to be increasing numbers, 0 or larger")
    if problem.squared and isinstance(problem.kernel, Held):
        values, vectors = modes(problem.kernel)
        safe = np.where(values > 0, values, 1.0)
        gains = np.where(values > 0, -np.expm1(-values / problem.points * t[:, None]) / safe, 0.0)
        beta = by_gains(problem, gains, vectors, t)
    else:
        beta = _integrated(problem, t, tolerance, solver, progress)
    return finish(problem, t, beta, started)


def _integrated(
    problem: Problem, t: np.ndarray, tolerance: float, solver: str, progress: bool
) -> np.ndarray:
    shape, kernel = problem.start.shape, problem.kernel
    if isinstance(kernel, Held):
        kernel = Held(kernel.matrix.astype(np.float64, copy=False))
    start = problem.start.astype(np.float64)
    from scipy.integrate import solve_ivp  # slow to import

    with precision(np.float64), bar(len(t), "gradient flow", progress) as shown:
        y = jnp.asarray(problem.targets)
        slope = compiled(lambda f, y: problem.slopes(f, y)[1])

        def velocity(at: float, beta: np.ndarray) -> np.ndarray:
            f = start + kernel.times(beta.reshape(shape))
            return -np.asarray(slope(jnp.asarray(f), y)).ravel()

        beta, reached, found = np.zeros(start.size), 0.0, []
        for end in t:
            if end > reached:
                step = solve_ivp(
                    velocity, (reached, end), beta, solver, rtol=tolerance, atol=1e-3 * tolerance
                )
                if not step.success or not np.all(np.isfinite(step.y[:, -1])):
                    raise DivergenceError(
                        f"The flow could not be integrated from {reached:g} to {end:g}: "
                        f"{step.message}",
                        advice="Ask for shorter times, or another solver.",
                    )
                beta, reached = step.y[:, -1], end
            found.append(beta.reshape(shape))
            shown(STEP)
    return np.stack(found, axis=1).astype(problem.dtype)
