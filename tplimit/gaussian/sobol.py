"""Randomised Sobol' points as rows of standard normals, made where they are used.

Coordinate ``d`` of point ``i`` is the exclusive or of the direction numbers ``v[d, k]`` over the
binary digits ``k`` of ``i``. Points are computed from these, so that nothing of the size of
(coordinates x points) is stored, and each device computes its own particles.

Randomisation: a linear matrix scramble and a digital shift for every coordinate (J. Matoušek,
*On the L2-discrepancy for anchored boxes*, J. Complexity 14, 1998), which make every point uniform
and keep the net; and for each length one order of the points, random within the groups that tell
the sampling error. The order keeps apart what the net would tie together: points ``i`` and
``i + M/2`` differ by a fixed digital shift, and a width axis may be split into halves that are
combined.
"""

import functools
from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float, Int, Key, UInt32

from tplimit.gaussian.sampling import grouped

_BITS = 32

#: Coordinates for which direction numbers are known (S. Joe, F. Y. Kuo, SIAM J. Sci. Comput. 2008).
MOST = 21201  # scipy.stats.qmc.Sobol.MAXDIM


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Points:
    """Sobol' points in a random order.

    Attributes:
        directions: direction numbers ``v`` ``(D, m)``.
        order: number of the point that each of ``M <= 2^m`` particles has.
    """

    directions: UInt32[Array, "d m"]
    order: UInt32[Array, " M"]

    def normals(
        self, keys: Key[Array, " b"], coordinates: Int[Array, " b"], dtype: jnp.dtype
    ) -> Float[Array, "b M"]:
        """Standard normals ``(B, M)``, row ``b`` from its coordinate, scrambled by its key.

        Rows whose coordinate is beyond the table are pseudo-random.
        """
        known = self.directions.shape[0]
        plain = self.directions[jnp.minimum(coordinates, known - 1)]
        v, shift = jax.vmap(_scrambled)(keys, plain)
        digits = jnp.broadcast_to(shift[:, None], (len(keys), self.order.shape[0]))
        for k in range(v.shape[1]):
            one = (self.order >> k) & 1
            digits = digits ^ (one[None, :] * v[:, k, None])
        if known >= MOST:
            plain_bits = jax.vmap(lambda k: jax.random.bits(k, self.order.shape, jnp.uint32))
            digits = jnp.where(coordinates[:, None] < known, digits, plain_bits(keys))
        return _normal(digits, dtype)


def _scrambled(
    key: Key[Array, ""], v: UInt32[Array, " m"]
) -> tuple[UInt32[Array, " m"], UInt32[Array, ""]]:
    """Direction numbers times a random unit lower triangular matrix over GF(2), and a shift."""
    bits = jax.random.bits(key, (_BITS + 1,), jnp.uint32)
    place = jnp.uint32(1) << jnp.arange(_BITS - 1, -1, -1, dtype=jnp.uint32)  # leading digit first
    # Row j of the matrix mixes digit j with the digits that lead it.
    rows = (bits[:-1] & ~((place << 1) - 1)) | place
    parity = jax.lax.population_count(rows[None, :] & v[:, None]) & 1
    return jnp.sum(parity * place, axis=1, dtype=jnp.uint32), bits[-1]


def _normal(digits: UInt32[Array, "..."], dtype: jnp.dtype) -> Float[Array, "..."]:
    # The middle of one of 2^23 (2^31) cells: exactly representable, never 0 or 1.
    kept = min(jnp.finfo(dtype).nmant, _BITS - 1)
    cell = (digits >> (_BITS - kept)).astype(dtype)
    uniform = (cell + 0.5) * 2.0 ** (1 - kept) - 1
    return jax.lax.erf_inv(uniform) * jnp.asarray(2**0.5, dtype)


def order(key: Key[Array, ""], size: int) -> UInt32[Array, " size"]:
    """An order of the first ``size`` points, random within each group of particles."""
    groups = grouped(jnp.arange(size, dtype=jnp.uint32), 0)
    place = jnp.argsort(jax.random.bits(key, groups.shape), axis=1)  # permutations compile longer
    mixed = jnp.take_along_axis(groups, place, axis=1).reshape(-1)
    return jnp.concatenate([mixed, jnp.arange(mixed.size, size, dtype=jnp.uint32)])


def digits(size: int) -> int:
    """Binary digits that number ``size`` points."""
    return max(1, (size - 1).bit_length())


@functools.lru_cache(maxsize=8)
def directions(coordinates: int, bits: int) -> np.ndarray:
    """Direction numbers ``(coordinates, bits)`` of scipy's sequence, at most ``MOST`` of them."""
    import scipy  # alone, which is fast; what it holds is slow to import

    coordinates = min(coordinates, MOST)
    table = Path(scipy.__file__).parent / "stats" / "_sobol_direction_numbers.npz"
    if not table.exists():
        return _probed(coordinates, bits)
    with np.load(table) as found:
        polynomials, first = found["poly"][:coordinates], found["vinit"][:coordinates]
    return _continued(polynomials, first, bits)


def _continued(polynomials: np.ndarray, first: np.ndarray, bits: int) -> np.ndarray:
    """Direction numbers by the recursion over the digits of primitive polynomials over GF(2).

    With ``a_j`` the coefficients of a polynomial of degree ``s``, all numbers odd::

        m_k = m_(k-s) ^ xor_(j=1..s) 2^j a_j m_(k-j),    v_k = m_k 2^(31 - k)
    """
    m = np.ones((len(polynomials), bits), np.int64)
    degrees = np.array([int(p).bit_length() - 1 for p in polynomials])
    for degree in np.unique(degrees[1:]):  # the first coordinate has no polynomial
        rows = degrees == degree
        rows[0] = False
        known = min(degree, bits)
        numbers = m[rows]
        numbers[:, :known] = first[rows, :known]
        for k in range(degree, bits):
            new = numbers[:, k - degree].copy()
            for j in range(1, degree + 1):
                new ^= ((polynomials[rows] >> (degree - j)) & 1) * (numbers[:, k - j] << j)
            numbers[:, k] = new
        m[rows] = numbers
    return (m << np.arange(_BITS - 1, _BITS - 1 - bits, -1)).astype(np.uint32)


def _probed(coordinates: int, bits: int) -> np.ndarray:
    """Direction numbers read off the points of scipy, which is slow to import.

    Point ``2^(k+1) - 1`` of its order (a Gray code) is the direction number ``v[:, k]`` itself.
    """
    from scipy.stats import qmc

    engine = qmc.Sobol(coordinates, scramble=False, bits=_BITS)
    table = np.zeros((coordinates, bits), np.uint32)
    passed = 0
    for k in range(bits):
        index = 2 ** (k + 1) - 1
        engine.fast_forward(index - passed)
        table[:, k] = (engine.random(1)[0] * 2.0**_BITS).astype(np.uint32)
        passed = index + 1
    return table
