"""What has no limit, and why."""

from tplimit._jax import primitives as p
from tplimit.interpret import RULES

_NO_ORDER = "coordinates along a width are exchangeable and have no order"

RULES.refuse(_NO_ORDER, p.sort_p, p.top_k_p, p.cummax_p, p.cummin_p, p.cumprod_p, p.cumlogsumexp_p)
RULES.refuse(
    "linear algebra with a width axis would need the whole spectrum of a random matrix",
    p.cholesky_p, p.eig_p, p.eigh_p, p.svd_p, p.qr_p, p.lu_p, p.triangular_solve_p, p.schur_p,
)  # fmt: skip
RULES.refuse("windows along a width depend on the order of coordinates", p.reduce_window_p,
             p.reduce_window_sum_p, p.reduce_window_max_p, p.reduce_window_min_p)  # fmt: skip
RULES.refuse("a Fourier transform along a width depends on the order of coordinates", p.fft_p)
RULES.refuse(
    "random numbers drawn inside the program along a width are not supported yet; make them "
    "parameters with tp.normal",
    p.random_bits_p, p.threefry2x32_p, p.rng_bit_generator_p, p.rng_uniform_p,
)  # fmt: skip
