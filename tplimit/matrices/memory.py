"""Room for functions of pairs: arrays of the size of the number of particles, squared."""

import functools
import os
from fractions import Fraction

import jax
import numpy as np

from tplimit.errors import RoomError
from tplimit.interpreter.context import Context
from tplimit.matrices.parts import Matrix
from tplimit.values.exponents import Size

#: The share of the memory that one array of pairs may take: a step holds a dozen or more.
_SHARE_OF_MEMORY = 1 / 128

#: Particles with which averages over pairs are precise to a few thousandths.
_FEW = 2**11

#: Where it is not known how much memory there is.
_USUAL_MEMORY = 16 * 2**30


def require_room(ctx: Context, matrix: Matrix) -> None:
    """Refuse an array of pairs for which there is no room."""
    rows, columns = ctx.size(matrix.rows), ctx.size(matrix.columns)
    room = _SHARE_OF_MEMORY * _memory()
    if 4 * rows * columns <= room:
        return
    # A power of two, for Sobol' points.
    most = 2 ** int(np.log2(np.sqrt(room / 4 / (rows * columns)) * ctx.size(Size(Fraction(1)))))
    ctx.fail(
        f"A function of all pairs of particles takes {4 * rows * columns / 2**30:.2g} GiB for each "
        "array, and a step needs a dozen.",
        RoomError,
        f"samples={min(most, _FEW)} is usually enough; up to {most} fit on this machine.",
    )


@functools.cache
def _memory() -> float:
    """Bytes of memory of the device, or of the machine."""
    found = (jax.local_devices()[0].memory_stats() or {}).get("bytes_limit")
    if found is not None:
        return float(found)
    try:
        return float(os.sysconf("SC_PAGE_SIZE")) * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):
        return _USUAL_MEMORY
