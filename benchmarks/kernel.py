"""One query of a deferred matrix: achieved bandwidth and arithmetic against the machine's.

A query reads `X` four times and `Y` twice (`gaussian/deferred.py`). Its bandwidth is the bytes of
these six reads over its time, beside that of a copy of the stack (read and written); its arithmetic
is that of all its matrix products, beside one product of the same shape, a block of coefficients
with a stack. Blocks of few rows are bound by memory, blocks of many rows by arithmetic.
"""

from typing import Any

import jax
import jax.numpy as jnp
from common import Report, measure, parser, seconds, spread

from tplimit.gaussian import deferred
from tplimit.gaussian.deferred import Law, Store
from tplimit.gaussian.kinds import Sobol, Stream

#: (M, pairs, rows of a block)
FULL = [(2**14, 256, 10), (2**16, 256, 10), (2**18, 128, 10), (2**14, 256, 64), (2**16, 256, 64)]
SMALL = [(2**12, 64, 10)]
READS = 6
#: Products with a stack: three of inner products, residual, correction, and three images.
PRODUCTS = 8
#: Products of a block with a block or with a square matrix: bases, their roots, fresh images.
SMALL_PRODUCTS = 8


def full_store(size: int, pairs: int, free: int) -> Store:
    """A store with random pairs of both kinds and room for one more block."""
    one, two, three = jax.random.split(jax.random.key(0), 3)
    place = jnp.arange(pairs)
    store = deferred.empty_store(one, size, size, pairs, jnp.dtype("float32"))
    return deferred.replace(
        store,
        X=jax.random.normal(two, (pairs, size)),
        Y=jax.random.normal(three, (pairs, size)),
        forward=place < pairs // 2,
        transposed=(place >= pairs // 2) & (place < pairs - free),
        count=jnp.asarray(pairs - free),
    )


def query_seconds(store: Store, rows: int, repeats: int) -> list[float]:
    """Times of a query that takes over its store, as in training; one core is applied with it."""
    pairs, size = store.X.shape
    x = jax.random.normal(jax.random.key(1), (rows, size))
    points = Sobol.of(jax.random.key(2), [size]).with_room(2 * pairs)
    core = jnp.zeros((pairs, pairs))

    def run(store: Store, x: Any, points: Any, core: Any) -> Any:
        stream = Stream(store.key_Y, points)
        return deferred.query(store, x, Law(False, 1e-5), stream=stream, cores=(core,))

    compiled = jax.jit(run, donate_argnums=0)
    times = []
    for _ in range(repeats + 1):
        own = jax.block_until_ready(jax.tree.map(jnp.copy, store))
        times.append(seconds(lambda own=own: compiled(own, x, points, core)))
    return times[1:]  # the first compiles


def main() -> None:
    options = parser(__doc__).parse_args()
    report = Report("kernel", options)
    product = jax.jit(lambda a, b: a @ b)
    rows = []
    for size, pairs, block in SMALL if options.small else FULL:
        store = full_store(size, pairs, block)
        copy = jax.jit(lambda stack: stack + 1)
        moved = 2 * store.X.nbytes / measure(lambda s=store, c=copy: c(s.X), 7).median
        time, fastest, slowest = spread(query_seconds(store, block, 7))
        read = READS * store.X.nbytes / time
        done = 2 * block * size * (PRODUCTS * pairs + SMALL_PRODUCTS * block) / time
        some = jax.random.normal(jax.random.key(3), (block, pairs))
        alone = measure(lambda s=store, c=some: product(c, s.X), 9).median
        gemm = 2 * block * pairs * size / alone
        rows.append(
            {
                "M": size,
                "pairs": pairs,
                "rows": block,
                "ms": 1e3 * time,
                "fastest": 1e3 * fastest,
                "slowest": 1e3 * slowest,
                "GB/s": read / 1e9,
                "copy GB/s": moved / 1e9,
                "share": read / moved,
                "GF/s": done / 1e9,
                "GEMM GF/s": gemm / 1e9,
                "share of GEMM": done / gemm,
            }
        )
    report.table("one query, float32", rows)


if __name__ == "__main__":
    main()
