"""Random numbers that are drawn along a width: independent entries, sampled as particles.

One key is one draw: its particles are functions of the bits of the key, so that equal keys are
equal draws, whatever arguments and calls they come by. Runs of several replicates have particles of
their own.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from tplimit._jax import primitives as p
from tplimit.declare.bits import Chain, entry_of, evaluated, sources_of
from tplimit.declare.draws import draw_p
from tplimit.errors import NoLimitError
from tplimit.interpreter.context import Context
from tplimit.interpreter.table import RULES
from tplimit.program.traits import TRAITS, Origin
from tplimit.values.parity import Marginal, Parity
from tplimit.values.tensors import Tensor, tensor, with_parity


@RULES(draw_p)
def draw(ctx: Context, *keys: Tensor, chain: Chain, bits: Sequence[Mapping[str, Any]]) -> Tensor:
    """Independent entries of a known law along a width: those of `jax.random` that are functions
    of random bits, entry by entry."""
    (aval,) = ctx.equation.out_avals
    if aval.dtype.kind in "iu":
        ctx.fail(
            "Random integers along a width are no values of a limit.", NoLimitError,
            "Convert them to floating-point numbers where they are drawn.",
        )  # fmt: skip
    (axis,) = aval.width_axes
    space = ctx.spaces.of_draw(aval.shape[axis])
    drawn = [
        p.random_bits_p.bind(_of_this_run(ctx, key.coefficient), **ctx.resolve(dict(params)))
        for key, params in zip(keys, bits, strict=True)
    ]
    # Which other draws have the same key is known in the run only.
    parity = Parity(unknown=frozenset((space,)), fresh=False, marginal=_marginal(ctx, chain))
    entries = evaluated(chain, dict(zip(sources_of(chain), drawn, strict=True)))
    return with_parity(tensor(entries, axis=axis, space=space), parity)


draw.several(draw.forms["one"])
TRAITS[draw_p] = Origin()


def _of_this_run(ctx: Context, key: Any) -> Any:
    """The key with which particles are drawn."""
    if ctx.exact or ctx.bank is None or ctx.bank.key is None:
        return key
    own = jax.random.bits(ctx.bank.key)
    keys = jax.vmap(lambda one: jax.random.fold_in(one, own))(jnp.ravel(key))
    return keys.reshape(jnp.shape(key))


def _marginal(ctx: Context, chain: Chain) -> Marginal:
    """The law of single entries."""
    (aval,) = ctx.equation.out_avals
    if aval.dtype.kind == "b":
        return Marginal(order=0, atoms=True)
    known = entry_of(chain)
    if known is None:
        ctx.fail("Random numbers along a width may be infinite, or no numbers.", NoLimitError)
    return Marginal(*known)
