"""How much a kernel looks like the targets, or like another kernel."""

from typing import Any

import jax.numpy as jnp
from jax import Array

__all__ = ["alignment", "target_kernel"]


def target_kernel(y: Any) -> Array:
    """The kernel of the targets, ``y y^T``: (P, P) from (P,), or (P, k) for k outputs.

    >>> target_kernel(jnp.array([1.0, -1.0])).tolist()
    [[1.0, -1.0], [-1.0, 1.0]]
    """
    y = jnp.asarray(y)
    if y.ndim not in (1, 2):
        raise ValueError(f"targets of shape {y.shape} are neither (points,) nor (points, outputs)")
    columns = y.reshape(len(y), -1)
    return columns @ columns.T


def alignment(kernel: Any, other: Any, *, centred: bool = True) -> Array:
    """Alignment of two kernels over the same points: the cosine of the angle between the matrices.

        A(K, L) = <HKH, HLH>_F / (‖HKH‖_F ‖HLH‖_F),      H = 1 - 1 1^T / P

    With ``centred=False``, without H: then ``A(K, y y^T) = y^T K y / (‖K‖_F ‖y‖²)``. It does not
    depend on the scale of either kernel, nor, centred, on a constant that is added to features. It
    lies between 0 and 1 for positive semidefinite kernels. The alignment with the targets is
    ``alignment(kernel, target_kernel(y))``, that with the kernel before training

        run.evaluate(lambda a, b: alignment(K(a), K(b)), step=[0, -1])

    Args:
        kernel, other: (P, P). Kernels of order one have an alignment of order one.
        centred: centred kernel alignment (CKA); else the cosine.

    Raises:
        ValueError: an argument is no square matrix, or there are not the same points.

    A kernel that is 0, or constant where it is centred, has none: the result is NaN, in the limit
    NaN or an error.

    Source: N. Cristianini and others, *On kernel-target alignment*, NeurIPS 2001; C. Cortes, M.
    Mohri and A. Rostamizadeh, *Algorithms for learning kernels based on centered alignment*, arXiv
    1203.0550; of features, S. Kornblith and others, arXiv 1905.00414.

    >>> K = jnp.array([[2.0, 0.0, 1.0], [0.0, 1.0, 0.0], [1.0, 0.0, 3.0]])
    >>> alignment(K, 4 * K + 1).round(4), alignment(K, jnp.eye(3), centred=False).round(4)
    (Array(1., dtype=float32), Array(0.866, dtype=float32))
    """
    for name, matrix in (("kernel", kernel), ("other", other)):
        shape = jnp.shape(matrix)
        if len(shape) != 2 or shape[0] != shape[1]:
            raise ValueError(f"{name} of shape {shape} is no kernel over points, (P, P)")
    if jnp.shape(kernel) != jnp.shape(other):
        raise ValueError(
            f"kernels of shapes {jnp.shape(kernel)} and {jnp.shape(other)} have different points"
        )
    K, L = (_centre(jnp.asarray(one)) if centred else jnp.asarray(one) for one in (kernel, other))
    return jnp.sum(K * L) / jnp.sqrt(jnp.sum(K * K) * jnp.sum(L * L))


def _centre(kernel: Array) -> Array:
    projection = jnp.eye(len(kernel)) - 1 / len(kernel)
    return projection @ kernel @ projection
