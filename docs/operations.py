"""Writes docs/operations.md, the table of supported operations, from the rules themselves."""

from pathlib import Path

from jax.extend.core import primitives

from tplimit.interpreter.table import RULES

PAGE = Path(__file__).with_name("operations.md")
HEAD = """# Supported operations

Generated from the rules (`python docs/operations.py`). A primitive of JAX has a rule, is refused
with a reason, or is probed; without a rule, an operation on finite arrays that do not scale with
the width is simply evaluated. Calls (`jit`, `checkpoint`, `custom_jvp_call`, `custom_vjp_call`) are
expanded in place. A rule of your own is entered with `tplimit.rule`: `tplimit.rule(primitive,
linear=(0,))` where it is linear, or `@tplimit.rule(primitive)` with a function; see there.

Convolutions and windows run along finite axes; batch and channels may be widths. They are written
as other operations: a convolution as one contraction of the patches of its operand with the kernel,
over offsets and channels at once, a pooled array as a sum or an extremum of patches. So strides,
all kinds of padding, dilations, transposed and depthwise convolutions, their derivatives and
`jax.vmap` of them have limits, and with average pooling kernels in closed form. Of equal entries of
a window derivatives take the first one, as JAX does in reverse; where values are equal in all that
is known of them (positions of an image that look alike, away from exact zeros), the derivative of a
maximum is refused. Of finitely many groups with growing channels there is the value, no derivative.

Shares of a width, such as one gate of (3n), are taken by `slice` and `split`, of vectors also by
`reshape(3, n)`, of matrices along one or both of their widths; widths side by side are one width.
An integer and a width side by side, `concatenate([x, h])` of an input and a state, make an axis of
length k + n. Such an array is its pieces, and operations on it are written as operations on these:
those entry by entry, contractions, sums, transposition, broadcasting, slices, stacks, padding and
`scan`.

An operation that is in no table is evaluated on small arrays. If every entry of its result is one
function of the entries at the same place (tested by changing, permuting and leaving out others),
it acts on values of order 1 as `f(c + O(n^rho)) = f(c) + O(n^rho)`; a value whose unknown part
reaches a jump or the end of the domain is refused. Where the function has derivatives that
reproduce its values, it is expanded: at 0 for vanishing values, and in several terms. What it
does at infinity is not guessed. Found this way are `acos`, `acosh`, `asin`, `atan2`, `atanh`,
`bessel_i0e`, `bessel_i1e`, `clz`, `digamma`, `erf_inv`, `igamma`, `igammac`, `lgamma`,
`nextafter`, `polygamma`, `population_count`, `regularized_incomplete_beta`, `zeta`, the
comparison `eq_to` of a total order and primitives of one's own (with an implementation that JAX can
trace, or a lowering).

Some functions of `jax.numpy` have limits along a width though the steps by which they compute have
none. They are known by the name of their jitted function, tried out on random arrays, and read as
what they compute. `quantile`, `median` and `percentile` (and those that leave NaN out) along a
width, or over all axes with one, are quantiles of the limiting law, with a remainder n^-1/2. Inside
of an atom (dead units) they are exact; where the law has a gap at the level, within the sampling
error, they are refused: there is no limit. `searchsorted` and `digitize` of a vector among finitely
many numbers are comparisons with each of them. `interp` with increasing knots that are known before
the run is a continuous function of every coordinate, with all its terms; with others it is a choice
between the pieces. `histogram`, `bincount`, `segment_sum` and `x.at[index].add` with an index along
a width are sums over it: counts are of order n, divide by `x.shape[0]`. `jnp.histogram(x, bins=10)`
takes its range from the extreme coordinates, which have no limit: pass `range=` or the edges.
Sorting a width, `x.at[index].set` with such an index, and derivatives of quantiles are refused.

"""


def page() -> str:
    """The page as it should be; of primitives that this JAX lacks, as it was written."""
    title, rule, *current = RULES.describe().splitlines()
    names = {name_of(line) for line in current}
    written = [line for line in PAGE.read_text().splitlines() if line.startswith("| `")]
    kept = [line for line in written if not exists(name_of(line)) and name_of(line) not in names]
    return HEAD + "\n".join([title, rule, *sorted([*current, *kept], key=name_of)]) + "\n"


def name_of(line: str) -> str:
    return line.split("`")[1]


def exists(primitive: str) -> bool:
    """Whether this JAX has a primitive of the name."""
    return any(getattr(p, "name", None) == primitive for p in vars(primitives).values())


if __name__ == "__main__":
    PAGE.write_text(page())
