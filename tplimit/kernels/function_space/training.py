"""Training in function space: what gradient descent with a frozen kernel does to the outputs."""

import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from tplimit import arguments
from tplimit.caching.store import compiled
from tplimit.errors import DivergenceError, LimitWarning, warn
from tplimit.kernels.function_space.grams import BLOCK, MEMORY, Held, KernelLike
from tplimit.kernels.function_space.optimizers import check_linear, move
from tplimit.kernels.function_space.problems import Problem, precision, record_steps, slopes
from tplimit.kernels.function_space.runs import KernelRun, recorded
from tplimit.networks.losses import Loss, resolve
from tplimit.output.progress import STEP, bar

if TYPE_CHECKING:
    import optax

__all__ = ["train"]

# An eigendecomposition of so many points takes seconds, and then no step costs more than its modes.
_SPECTRAL = 4096
#: Multiplications of one compiled call, about a second.
_SEGMENT = 2 * 10**10
# Eigenvalues below so many units of round-off of the largest one are those of the round-off of the
# matrix. Divided by them, errors would be of the size of the outputs.
_FLOOR = 4
_METHODS = ("auto", "spectral", "iterate")


def train(
    kernel_tt: KernelLike,
    kernel_st: KernelLike | None,
    y: Any,
    loss: Loss,
    lr: float,
    steps: int,
    optimizer: "optax.GradientTransformation | None" = None,
    *,
    f0: tuple[Any, Any] | None = None,
    record: Any = None,
    batches: Any = None,
    outputs: int | None = None,
    method: str = "auto",
    x: Any = None,
    x_test: Any = None,
    which: str = "ntk",
    dtype: Any = None,
    block: int = BLOCK,
    memory: int = MEMORY,
    progress: bool = True,
) -> KernelRun:
    """Train in function space: gradient descent with the frozen tangent kernel Θ, step by step.

        f_{t+1}(x) = f_t(x) - lr Σ_a Θ(x, x_a) ∂loss/∂f(x_a)          (f_t at the training points)

    This is what `parameterization.step(model, loss, lr, optimizer)` does to the outputs of an
    infinitely wide network in the NTK parameterization (Jacot, Gabriel and Hongler, arXiv
    1806.07572; Lee et al., arXiv 1902.06720), with the same conventions: `"mse"` is half the mean
    square, and the updates of an optimizer are multiplied by lr (`optax.sgd(1.0, momentum=0.9)`).
    Several outputs share one kernel.

    The optimizer itself runs, on one coefficient per training point and output: parameters move by
    θ_t - θ_0 = Σ_a J(x_a)ᵀ β_t(a), and f_t = f_0 + Θ β_t. So it has to be linear in the gradients,
    with the same coefficients for all parameters: SGD, momentum, Nesterov's method, schedules,
    weight decay (towards the initial function), chains of these. It is tried on random gradients
    before, and refused if it is not.

    Methods: "spectral" is for the squared error with full batches. It needs the eigendecomposition
    of Θ, O(n³) and four matrices in float64, and then steps cost O(n): without an optimizer f_t is
    a closed formula,

        f_t - f_0 = Θ Θ⁻¹ (1 - (1 - lr Θ/n)^t) (y - f_0).

    Eigenvalues within round-off of the largest one (4 units of the kernel's dtype) are taken for 0:
    what they would teach in very long runs is lost, and float64 resolves more of them.

    "iterate" is for everything, O(n²) a step (O(n·batch) with minibatches), and "auto" takes the
    first up to 4096 points. A kernel function is evaluated once, in symmetric blocks, if its matrix
    fits into `memory` bytes, and anew in every step if not.

    Args:
        kernel_tt: kernel of the n training points, (n, n), or a function of inputs (see `gram`);
            then give `x`.
        kernel_st: kernel of m test points with the training points, (m, n), a function, or None:
            no test points, or with `x_test` the same function.
        y: targets, (n,) or (n, outputs); class numbers (n,) for "cross_entropy".
        loss: "mse", "logistic", "cross_entropy", or `loss(f, y)` to one number in JAX, with `f` of
            shape (n,) or (n, outputs): the shape of `f0` or of `y`, or as `outputs` says.
        lr, steps: learning rate and number of steps.
        f0: the initial function at training and test points, a pair of arrays; default 0. With one
            leading axis more these are replicates, trained beside each other.
        record: steps to record, from 0 to `steps`; default: all.
        batches: minibatches in a fixed order: an array (number, size) of the points of each step,
            or a size that divides n; they are repeated as long as there are steps. Default: all
            points in every step.
        outputs: number of outputs, where `y` does not tell.
        x, x_test: inputs of kernel functions.
        which: the attribute that holds the kernel, for functions that return several.
        dtype: to compute in, float32 or float64; default: that of the kernel, whatever JAX's own
            setting. Results are NumPy arrays of this type.
        block: points per block of kernel functions.
        memory: bytes that the matrix of a kernel function may need.
        progress: show a bar where someone looks.

    Raises:
        ValueError: shapes, labels or options do not fit, an entry is not finite, or the kernel is
            not symmetric or has negative eigenvalues.
        UnsupportedOperationError: the optimizer is not linear.
        DivergenceError: outputs grow beyond all bounds.

    Warns:
        LimitWarning: lr is beyond 2 n / λ_max (squared error, no optimizer), where training
            diverges, or the loss has grown.

    >>> import numpy as np
    >>> theta = np.array([[2.0, 1.0], [1.0, 2.0]])
    >>> run = train(theta, theta[:1], np.array([1.0, -1.0]), "mse", lr=1.0, steps=2)
    >>> run.train[:, 0].round(9).tolist(), run.loss.round(9).tolist()
    ([0.0, 0.5, 0.75], [0.5, 0.125, 0.03125])
    """
    started = time.monotonic()
    lr, steps = arguments.positive("lr", lr), arguments.whole("steps", steps, least=0, most=2**62)
    arguments.one_of("method", method, _METHODS)
    resolve(loss)
    how = {"which": which, "dtype": dtype, "block": block, "memory": memory, "progress": progress}
    problem = Problem.of(kernel_tt, kernel_st, y, loss, f0, outputs, x, x_test, **how)
    wanted = record_steps(record, steps, _affordable_records(problem))
    rows = _batches(batches, problem.points)
    with precision(problem.dtype):
        if optimizer is not None:
            check_linear(optimizer, lr, steps, problem.dtype)
        if _spectral(method, problem, rows):
            beta = _by_modes(problem, optimizer, lr, wanted, progress)
        else:
            plain = problem.squared and rows is None and optimizer is None
            _warn_of_divergence(problem, lr, problem.largest if plain else 0.0)
            beta = _collect(_iterates(problem, optimizer, lr, wanted, rows, progress), wanted)
    return finish(problem, wanted, beta, started)


def finish(problem: Problem, times: np.ndarray, beta: np.ndarray, started: float) -> KernelRun:
    """The run with coefficients (points, records, replicates, outputs), begun at a time."""
    with np.errstate(over="ignore", invalid="ignore"):
        train, test = problem.outputs(beta)
    for f in (train, test):
        finite = np.all(np.isfinite(f), axis=(0, 2, 3))
        if not np.all(finite):
            raise _diverged(times[np.argmin(finite)])
    loss = problem.losses(train)
    if not np.all(loss[-1] <= 2 * loss[0]):
        warn(
            LimitWarning(
                f"The loss has grown from {np.max(loss[0]):.3g} to {np.max(loss[-1]):.3g}: the "
                "learning rate is too large. (With the squared error, without an optimizer, the "
                f"bound is 2 n / λ_max = {_stability_bound(problem.points, problem.largest):.4g}.)"
            )
        )
    last = problem.outside(beta[:, -1:])[0]
    record = recorded(problem.dtype) | {"seconds": round(time.monotonic() - started, 3)}
    arrays = times, problem.outside(train), problem.outside(test), loss, last
    return KernelRun(*arrays, record=record)


# --- the squared error, mode by mode


def _spectral(method: str, problem: Problem, rows: np.ndarray | None) -> bool:
    possible = problem.squared and rows is None and isinstance(problem.kernel, Held)
    if method == "spectral" and not possible:
        raise ValueError(
            'method="spectral" needs loss="mse", full batches, and a kernel that fits into memory'
        )
    return (
        possible and method != "iterate" and (method == "spectral" or problem.points <= _SPECTRAL)
    )


def modes(kernel: Held) -> tuple[np.ndarray, np.ndarray]:
    """Eigenvalues and eigenvectors (in columns), float64; eigenvalues within round-off are 0."""
    values, vectors = np.linalg.eigh(kernel.matrix.astype(np.float64, copy=False))
    floor = _FLOOR * np.finfo(kernel.dtype).eps * values[-1]
    return np.where(values > floor, values, 0.0), vectors


def _by_modes(
    problem: Problem,
    optimizer: "optax.GradientTransformation | None",
    lr: float,
    wanted: np.ndarray,
    progress: bool,
) -> np.ndarray:
    assert isinstance(problem.kernel, Held)
    values, vectors = modes(problem.kernel)
    if optimizer is None:
        _warn_of_divergence(problem, lr, values[-1])
    gains = mode_gains(values, optimizer, lr, wanted, progress)
    return by_gains(problem, gains, vectors, wanted)


def by_gains(
    problem: Problem, gains: np.ndarray, vectors: np.ndarray, times: np.ndarray
) -> np.ndarray:
    """Coefficients (points, records, ...): the modes of y - f_0 times `gains` (records, modes)."""
    residual = problem.targets.reshape(problem.points, 1, -1) - problem.start
    turned = np.tensordot(vectors, residual, (0, 0))
    with np.errstate(over="ignore", invalid="ignore"):
        scaled = gains.T[:, :, None, None] * turned[:, None]
    finite = np.all(np.isfinite(scaled), axis=(0, 2, 3))
    if not np.all(finite):
        raise _diverged(times[np.argmin(finite)])
    return np.tensordot(vectors, scaled, 1)


def mode_gains(
    values: np.ndarray,
    optimizer: "optax.GradientTransformation | None",
    lr: float,
    wanted: np.ndarray,
    progress: bool,
) -> np.ndarray:
    """The coefficient of a mode with residual 1 at each record: (records, modes).

    For gradient descent this is (1 - (1 - lr λ/n)^t) / λ. An optimizer runs on the modes, whose
    loss is (λ b - 1)² / 2 n: it commutes with the rotation to them. Modes with λ = 0 have no effect
    on outputs, and no coefficient.
    """
    if optimizer is None:
        rates = lr * values / len(values)
        with np.errstate(over="ignore", invalid="ignore"):
            return lr / len(values) * _geometric_sums(rates, wanted[:, None])
    ones = np.ones((len(values), 1, 1), values.dtype)
    advance = _advancer(_mode_loss, optimizer, False, False)
    data = (values, np.zeros_like(ones), ones, np.zeros((1, 1), int))
    with precision(np.float64):
        found = _held(advance, data, optimizer, lr, wanted, len(values), progress)
        return _collect(found, wanted)[:, :, 0, 0].T * (values > 0)


def _mode_loss(f: jax.Array, y: jax.Array) -> jax.Array:
    return 0.5 * jnp.sum((f - y[:, 0]) ** 2) / len(f)


def _geometric_sums(rates: np.ndarray, t: np.ndarray) -> np.ndarray:
    """Σ_{s<t} (1 - r)^s = (1 - (1 - r)^t) / r without cancellation, and 0 where r = 0."""
    small = np.minimum(rates, 0.5)
    safe = np.where(rates > 0, rates, 1.0)
    direct = (1 - (1 - rates) ** t) / safe
    stable = -np.expm1(t * np.log1p(-small)) / safe
    return np.where(rates > 0, np.where(rates > 0.5, direct, stable), 0.0)


def _stability_bound(points: int, largest: float) -> float:
    """The learning rate beyond which descent on the squared error diverges, 2 n / λ_max."""
    return 2 * points / largest if largest > 0 else np.inf


def _warn_of_divergence(problem: Problem, lr: float, largest: float) -> None:
    bound = _stability_bound(problem.points, largest)
    if lr > bound:
        warn(
            LimitWarning(
                f"lr = {lr:.4g} is beyond 2 n / λ_max = {bound:.4g}: training diverges. The "
                f"largest eigenvalue of kernel_tt is {largest:.4g}."
            )
        )


# --- any loss, step by step


def _iterates(
    problem: Problem,
    optimizer: "optax.GradientTransformation | None",
    lr: float,
    wanted: np.ndarray,
    rows: np.ndarray | None,
    progress: bool,
) -> Iterator[np.ndarray]:
    """The coefficients (points, replicates, outputs) at each record."""
    batched = rows is not None
    if not isinstance(problem.kernel, Held):
        yield from _evaluated(problem, optimizer, lr, wanted, rows, progress)
        return
    advance = _advancer(problem.objective, optimizer, problem.vector, batched)
    data = (
        problem.kernel.device,
        jnp.asarray(problem.start),
        jnp.asarray(problem.targets),
        jnp.asarray(rows if batched else np.zeros((1, 1), int)),
    )
    size = rows.shape[1] if rows is not None else problem.points
    work = 2 * size * problem.start.size
    yield from _held(advance, data, optimizer, lr, wanted, work, progress)


def _held(
    advance: Any,
    data: tuple[Any, ...],
    optimizer: "optax.GradientTransformation | None",
    lr: float,
    wanted: np.ndarray,
    work: int,
    progress: bool,
) -> Iterator[np.ndarray]:
    """Compiled segments of many steps; `work` is the number of operations of one."""
    longest = max(1, _SEGMENT // max(work, 1))
    beta = jnp.zeros_like(data[1])
    carry = (beta, () if optimizer is None else optimizer.init(beta))
    ends = [
        min(start + longest, stop)
        for begin, stop in zip([0, *wanted[:-1]], wanted, strict=True)
        for start in range(begin, max(stop, begin + 1), longest)
    ]
    recorded, done = set(wanted.tolist()), 0
    with bar(len(ends), "training in function space", progress) as shown:
        for end in ends:
            carry = advance(carry, done, end, lr, *data)
            done = end
            if done in recorded:
                yield np.asarray(carry[0])
            shown(STEP)


def _evaluated(
    problem: Problem,
    optimizer: "optax.GradientTransformation | None",
    lr: float,
    wanted: np.ndarray,
    rows: np.ndarray | None,
    progress: bool,
) -> Iterator[np.ndarray]:
    """Products by a kernel that is evaluated anew in each."""
    react = compiled(_reaction(problem.objective, optimizer, problem.vector))
    y = jnp.asarray(problem.targets)
    beta = jnp.zeros_like(problem.start)
    carry = (beta, () if optimizer is None else optimizer.init(beta))
    recorded, last = set(wanted.tolist()), int(wanted[-1])
    with bar(last, "training in function space", progress) as shown:
        for t in range(last + 1):
            if t in recorded:
                yield np.asarray(carry[0])
            if t == last:
                return
            held = np.asarray(carry[0])
            if rows is None:
                f = problem.start + problem.kernel.times(held)
                carry = react(carry, lr, jnp.asarray(f), y, None)
            else:
                batch = rows[t % len(rows)]
                f = problem.start[batch] + problem.kernel.rows_times(batch, held)
                carry = react(carry, lr, jnp.asarray(f), y[batch], jnp.asarray(batch))
            shown(STEP)


def _reaction(objective: Any, optimizer: Any, vector: bool) -> Callable[..., Any]:
    """From outputs at a batch to new coefficients and memory."""
    derivatives = slopes(objective, vector)

    def react(carry: Any, lr: Any, f: Any, y: Any, batch: Any) -> Any:
        beta, memory = carry
        gradient = derivatives(f, y)[1].astype(beta.dtype)
        if batch is not None:  # a point that is twice in a batch counts twice
            gradient = jnp.zeros_like(beta).at[batch].add(gradient)
        beta, memory = move(optimizer, lr, gradient, memory, beta)
        return beta.astype(f.dtype), memory

    return react


def _advancer(objective: Any, optimizer: Any, vector: bool, batched: bool) -> Callable[..., Any]:
    """Steps `start` to `stop`, compiled; the kernel is a matrix, or its eigenvalues."""
    react = _reaction(objective, optimizer, vector)

    def product(kernel: Any, beta: Any) -> Any:
        if kernel.ndim == 1:
            return kernel[:, None, None] * beta
        return jnp.tensordot(kernel, beta, 1, precision="highest")

    def advance(
        carry: Any, start: Any, stop: Any, lr: Any, kernel: Any, f0: Any, y: Any, rows: Any
    ) -> Any:
        def step(t: Any, carry: Any) -> Any:
            if not batched:
                return react(carry, lr, f0 + product(kernel, carry[0]), y, None)
            batch = rows[t % len(rows)]
            f = f0[batch] + product(kernel[batch], carry[0])
            return react(carry, lr, f, y[batch], batch)

        return jax.lax.fori_loop(start, stop, step, carry)

    return compiled(advance)


def _collect(found: Iterator[np.ndarray], wanted: np.ndarray) -> np.ndarray:
    """Stacked behind the axis of points; stops where they are not finite."""
    kept = []
    for t, beta in zip(wanted, found, strict=True):
        if not np.all(np.isfinite(beta)):
            raise _diverged(t)
        kept.append(beta)
    return np.stack(kept, axis=1)


def _diverged(t: Any) -> DivergenceError:
    return DivergenceError(
        f"Training diverges: outputs are not finite any more at step {t}.",
        advice="Take a smaller learning rate; with the squared error and without an optimizer it "
        "has to be below 2 n / λ_max(kernel_tt).",
    )


# --- options


def _batches(batches: Any, points: int) -> np.ndarray | None:
    if batches is None:
        return None
    rows = np.asarray(batches)
    if not np.issubdtype(rows.dtype, np.integer):
        raise ValueError("batches holds indices of points, or is the size of a batch")
    if rows.ndim == 0:
        if rows < 1 or points % rows:
            raise ValueError(f"a batch size of {rows} does not divide {points} points")
        rows = np.arange(points).reshape(-1, int(rows))
    if rows.ndim != 2 or rows.size == 0:
        raise ValueError(f"batches has shape {rows.shape}: (number of batches, size) is expected")
    if rows.min() < 0 or rows.max() >= points:
        raise ValueError(f"batches has indices from {rows.min()} to {rows.max()}, of {points}")
    return rows


def _affordable_records(problem: Problem) -> int:
    numbers = 2 * problem.start.size + problem.start_test.size
    return MEMORY // (numbers * problem.dtype.itemsize)
