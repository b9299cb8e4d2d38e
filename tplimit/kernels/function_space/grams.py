"""Kernel matrices of many points: blocks, symmetry, products without the matrix."""

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Shaped

from tplimit import arguments
from tplimit.kernels._neural_tangents import Imported
from tplimit.kernels.recursions.network import Network
from tplimit.kernels.recursions.recurrent import Recurrent
from tplimit.output.progress import STEP, bar

__all__ = ["Evaluated", "Held", "KernelFunction", "KernelLike", "as_matrix", "gram"]

#: A function of inputs (n1, ...), (n2, ...) to the kernel (n1, n2), or to an object that has it as
#: an attribute `ntk` (or `nngp`).
KernelFunction = Callable[[Any, Any], Any]
KernelLike = Shaped[np.ndarray, "rows columns"] | KernelFunction

BLOCK = 1024
# Kernels that know a Gram matrix when they have one set of points.
_ONE_ARGUMENT = (Network, Recurrent, Imported)
#: Functions whose matrix has at most so many bytes are evaluated once.
MEMORY = 8 * 10**9
# Round-off of an entry relative to the largest one, and of an eigenvalue to the largest one.
_ASYMMETRY = {4: 1e-4, 8: 1e-6}
INDEFINITE = {4: 1e-4, 8: 1e-8}
# Up to this size Cholesky's decomposition takes seconds.
_CHOLESKY = 8192
_LANCZOS_STEPS = 30
_FEW_STEPS = 10


def gram(
    kernel: KernelFunction,
    x: Any,
    x2: Any = None,
    *,
    which: str = "ntk",
    block: int = BLOCK,
    dtype: Any = None,
    progress: bool = True,
) -> Float[np.ndarray, "rows columns"]:
    """The matrix k(x_i, x2_j) of a kernel function, evaluated block by block.

    Without `x2` only the blocks i <= j are evaluated and the others are their transposes, so that
    the matrix is symmetric to the last bit. A function that computes in float64 may be stored in
    float32: 20 000 points then need 1.6 GB, beside one block of the function's own arrays.

    Args:
        kernel: function of (rows, ...), (columns, ...) to (rows, columns), or to an object with
            this matrix as attribute, as `tplimit.kernels.mlp(...)` makes.
        x, x2: inputs, points along the first axis.
        which: the attribute, "ntk" or "nngp".
        block: points per block.
        dtype: of the result; by default that of the kernel.
        progress: show a bar where someone looks.

    Raises:
        ValueError: an entry is not finite, or a block has the wrong shape.

    >>> import numpy as np
    >>> gram(lambda a, b: a @ b.T, np.eye(3)[:2]).tolist()
    [[1.0, 0.0], [0.0, 1.0]]
    """
    return Evaluated(kernel, x, x2, which, block, dtype).matrix(progress)


class Held:
    """A kernel matrix in memory."""

    def __init__(self, matrix: np.ndarray) -> None:
        self.matrix = matrix
        self.shape = matrix.shape
        self.dtype = matrix.dtype
        self._device: jax.Array | None = None

    @property
    def device(self) -> jax.Array:
        """The matrix as a JAX array, copied once. JAX must be in the precision of `dtype`."""
        if self._device is None:
            self._device = jnp.asarray(self.matrix)
        return self._device

    def times(self, v: np.ndarray) -> np.ndarray:
        """The product with vectors (columns, ...)."""
        flat = v.reshape(len(v), -1)
        return (self.matrix @ flat).reshape(self.shape[0], *v.shape[1:])

    def rows_times(self, rows: np.ndarray, v: np.ndarray) -> np.ndarray:
        """Some rows of the product."""
        flat = v.reshape(len(v), -1)
        return (self.matrix[rows] @ flat).reshape(len(rows), *v.shape[1:])


class Evaluated:
    """A kernel function at given points; products evaluate it block by block and keep nothing."""

    def __init__(
        self,
        kernel: KernelFunction,
        x: Any,
        x2: Any = None,
        which: str = "ntk",
        block: int = BLOCK,
        dtype: Any = None,
    ) -> None:
        arguments.function("kernel", kernel, "(x1, x2) -> matrix")
        self.block = arguments.whole("block", block, example=BLOCK)
        self.kernel, self.which = kernel, which
        self.symmetric = x2 is None
        self.x = np.asarray(arguments.points("x", x))
        self.x2 = self.x if x2 is None else np.asarray(arguments.points("x2", x2))
        for name, points in (("x", self.x), ("x2", self.x2)):
            if not np.all(np.isfinite(points)):
                raise ValueError(f"{name} has entries that are not finite")
        self.shape = (len(self.x), len(self.x2))
        self._double = dtype is not None and np.dtype(dtype).itemsize == 8
        own = self._entries(self.x[:1], self.x2[:1]).dtype
        self.dtype = np.dtype(own if dtype is None else dtype)

    def matrix(self, progress: bool = False) -> np.ndarray:
        """All entries."""
        out = np.empty(self.shape, self.dtype)
        pairs = list(self._pairs())
        with bar(len(pairs), "kernel", progress) as advance:
            for rows, columns in pairs:
                out[rows, columns] = values = self._block(rows, columns)
                if self.symmetric:
                    if rows == columns:  # a function need not be symmetric to the last bit
                        out[rows, columns] = (values + values.T) / 2
                    else:
                        out[columns, rows] = values.T
                advance(STEP)
        return out

    def times(self, v: np.ndarray) -> np.ndarray:
        """The product with vectors (columns, ...); a symmetric kernel's blocks serve twice."""
        flat = v.reshape(len(v), -1).astype(self.dtype, copy=False)
        out = np.zeros((self.shape[0], flat.shape[1]), self.dtype)
        for rows, columns in self._pairs():
            values = self._block(rows, columns)
            out[rows] += values @ flat[columns]
            if self.symmetric and rows != columns:
                out[columns] += values.T @ flat[rows]
        return out.reshape(self.shape[0], *v.shape[1:])

    def rows_times(self, rows: np.ndarray, v: np.ndarray) -> np.ndarray:
        """Some rows of the product."""
        part = Evaluated(self.kernel, self.x[rows], self.x2, self.which, self.block, self.dtype)
        return part.times(v)

    def _pairs(self) -> Iterator[tuple[slice, slice]]:
        for i in range(0, self.shape[0], self.block):
            for j in range(i if self.symmetric else 0, self.shape[1], self.block):
                yield slice(i, i + self.block), slice(j, j + self.block)

    def _block(self, rows: slice, columns: slice) -> np.ndarray:
        x = self.x[rows]
        x2 = x if self.symmetric and rows == columns else self.x2[columns]
        return self._entries(x, x2).astype(self.dtype, copy=False)

    def _entries(self, x: np.ndarray, x2: np.ndarray) -> np.ndarray:
        # A function in JAX follows the flag, which is not touched where no dtype was asked for.
        with jax.enable_x64(True) if self._double else nullcontext():
            if x is x2 and isinstance(self.kernel, _ONE_ARGUMENT):
                found: Any = self.kernel(x)  # then points with themselves are exact
            else:
                found = self.kernel(x, x2)
            values = np.asarray(getattr(found, self.which, found))
        if values.shape != (len(x), len(x2)):
            raise ValueError(
                f"the kernel function returned shape {values.shape} for {len(x)} and {len(x2)} "
                f"points, ({len(x)}, {len(x2)}) is expected"
            )
        if not np.all(np.isfinite(values)):
            raise ValueError("the kernel function returned entries that are not finite")
        return values


def as_matrix(
    name: str,
    kernel: KernelLike,
    x: Any = None,
    x2: Any = None,
    *,
    which: str = "ntk",
    block: int = BLOCK,
    memory: int = MEMORY,
    dtype: Any = None,
    progress: bool = False,
) -> Held | Evaluated:
    """A kernel that was given as an array, or as a function with its points.

    Raises:
        ValueError: an array has the wrong number of axes or entries that are not finite, or a
            function comes without points.
    """
    if callable(kernel):
        if x is None:
            raise ValueError(f"{name} is a function: give the points, x= (and x_test=)")
        found = Evaluated(kernel, x, x2, which, block, dtype)
        if found.shape[0] * found.shape[1] * found.dtype.itemsize > memory:
            return found
        return Held(found.matrix(progress))
    matrix = np.asarray(arguments.numbers(name, getattr(kernel, which, kernel)))
    if matrix.ndim != 2 or 0 in matrix.shape:
        raise ValueError(f"{name} has shape {matrix.shape}, a matrix is expected")
    if not np.issubdtype(matrix.dtype, np.floating):
        matrix = matrix.astype(np.float64)
    if dtype is not None or matrix.dtype.itemsize < 4:
        matrix = matrix.astype(np.float32 if dtype is None else dtype)
    for rows in range(0, len(matrix), BLOCK):
        if not np.all(np.isfinite(matrix[rows : rows + BLOCK])):
            raise ValueError(f"{name} has entries that are not finite")
    _check_size(name, matrix)
    return Held(matrix)


def _check_size(name: str, matrix: np.ndarray) -> None:
    """Products of two entries, summed over the points, are finite."""
    largest = max(abs(float(matrix.max(initial=0))), abs(float(matrix.min(initial=0))))
    most = float(np.finfo(matrix.dtype).max) ** 0.5 / max(matrix.shape)
    if largest > most:
        raise ValueError(
            f"{name} has entries up to {largest:.3g}, whose products overflow {matrix.dtype}: "
            "divide the kernel by a constant, or compute in float64"
        )


# --- what a kernel of training points has to be


def check_kernel(name: str, kernel: Held | Evaluated) -> tuple[float, float]:
    """A kernel of points with themselves: square, symmetric, without negative eigenvalues.

    The last by Cholesky's decomposition of K plus its allowed round-off up to 8192 points. Above,
    by Lanczos' method, whose approximate eigenvalues lie between the true ones: there a kernel that
    is only slightly indefinite can pass. Functions that are not evaluated once are taken at
    their word.

    Returns:
        The smallest and largest approximate eigenvalue of Lanczos' method.

    Raises:
        ValueError: it is not.
    """
    rows, columns = kernel.shape
    if rows != columns or rows == 0:
        raise ValueError(f"{name} has shape {kernel.shape}, a square matrix is expected")
    if isinstance(kernel, Evaluated):
        return ritz_values(kernel, _FEW_STEPS)
    _check_symmetry(name, kernel.matrix)
    smallest, largest = ritz_values(kernel, _LANCZOS_STEPS)
    tolerance = INDEFINITE[kernel.dtype.itemsize]
    if rows <= _CHOLESKY and smallest >= -tolerance * largest:
        try:
            # Beside its tolerance, whatever its size, a kernel of zeros has to pass.
            shift = tolerance * largest + np.finfo(kernel.dtype).tiny
            np.linalg.cholesky(kernel.matrix + shift * np.eye(rows, dtype=kernel.dtype))
        except np.linalg.LinAlgError:
            smallest = float(np.linalg.eigvalsh(kernel.matrix)[0])
    if smallest < -tolerance * largest:
        raise ValueError(
            f"{name} is not positive semidefinite: it has the eigenvalue {smallest:.3g}, the "
            f"largest is {largest:.3g}. Is it a kernel, of the training points in one order?"
        )
    return smallest, largest


def _check_symmetry(name: str, matrix: np.ndarray) -> None:
    scale = np.abs(np.diag(matrix)).max()
    for i in range(0, len(matrix), BLOCK):
        rows = slice(i, i + BLOCK)
        difference = np.abs(matrix[rows, i:] - matrix[i:, rows].T)
        scale = max(scale, np.abs(matrix[rows, i:]).max())
        if difference.max() > _ASYMMETRY[matrix.dtype.itemsize] * scale:
            j, k = np.unravel_index(difference.argmax(), difference.shape)
            raise ValueError(
                f"{name} is not symmetric: entries ({i + j}, {i + k}) and ({i + k}, {i + j}) "
                f"differ by {difference.max():.3g}"
            )


def ritz_values(kernel: Held | Evaluated, steps: int) -> tuple[float, float]:
    """Smallest and largest eigenvalue of a symmetric kernel as Lanczos' method sees them.

    Both lie between the true ones. The largest of a kernel is right to three digits or more after
    30 steps; the smallest is that of an outlier, if there is one.
    """
    from scipy.linalg import eigh_tridiagonal  # slow to import

    n = kernel.shape[0]
    basis = np.random.default_rng(0).standard_normal((1, n)).astype(kernel.dtype)
    basis /= np.linalg.norm(basis)
    diagonal, beside = [], []
    for _ in range(min(steps, n)):
        image = kernel.times(basis[-1])
        diagonal.append(float(basis[-1] @ image))
        for _ in range(2):  # twice, for orthogonality
            image = image - (basis @ image) @ basis
        beside.append(float(np.linalg.norm(image)))
        if beside[-1] <= 10 * np.finfo(kernel.dtype).eps * max(map(abs, diagonal)):
            break
        basis = np.vstack([basis, image / np.asarray(beside[-1], kernel.dtype)])
    values = eigh_tridiagonal(diagonal, beside[:-1], eigvals_only=True)
    return float(values[0]), float(values[-1])
