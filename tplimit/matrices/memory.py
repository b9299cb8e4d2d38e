"""Room for functions of pairs: arrays of the size of the number of particles, squared."""

from tplimit.errors import RoomError
from tplimit.interpreter.context import Context
from tplimit.matrices.parts import Matrix

#: Particles with which averages over pairs are precise to a few thousandths.
FEW = 2**11

#: As many as there may be: an array of their pairs takes 256 MiB, and a step a dozen.
MOST = 2**13


def require_room(ctx: Context, matrix: Matrix) -> None:
    """Refuse an array of too many pairs."""
    rows, columns = ctx.size(matrix.rows), ctx.size(matrix.columns)
    few_rows, few_columns = ctx.few(matrix.rows), ctx.few(matrix.columns)
    thinned = rows * few_columns + few_rows * columns
    entries = rows * columns if few_rows == rows else thinned
    if entries > MOST**2:
        ctx.fail(
            f"A function of pairs of {rows} and {columns} particles takes "
            f"{4 * entries / 2**30:.2g} GiB for each array, and a step a dozen.",
            RoomError,
            f"samples={FEW} is usually enough; up to {MOST} are possible, and more with a smaller "
            "pair_samples, the particles that are averaged over.",
        )
