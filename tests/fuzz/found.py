"""Programs of the kinds that once had a wrong number, or none, made small."""

from fuzz import arrays, vectors
from fuzz.programs import Program, Step

_MIXED = Step("t0", "jnp.stack([x[0], y[1] * n**-0.5, 0.9 * n])")
_GROWING = Step("t0", "y * n**0.5")


def _of_arrays(*templates: str, first: Step = _MIXED) -> Program:
    steps = [first]
    for template in templates:
        steps.append(Step(f"t{len(steps)}", f"({template}).astype(float)", (steps[-1].name,)))
    return Program(arrays.HEAD, (*steps, Step("", "{0}", (steps[-1].name,))))


def _of_vectors(first: str, template: str, result: str) -> Program:
    return Program(
        vectors.HEAD,
        (Step("t0", first), Step("t1", template, ("t0",)), Step("", result, ("t1", "t0"))),
    )


ARRAYS: dict[str, Program] = {
    "a coefficient that is 0": _of_arrays("(1 + {0} / n) - 1"),
    "below a hyperbolic cosine": _of_arrays("jnp.cosh({0} / n**2) - 1"),
    "the remainder of what grows": _of_arrays("jnp.mod({0} * n, 0.7)"),
    "what grows less its floor": _of_arrays("{0} * 1e3 - jnp.floor({0} * 1e3)"),
    "a number at a jump": _of_arrays("jnp.floor(1 - {0} / n)", first=Step("t0", "x")),
    "an index between orders": _of_arrays("jnp.argmax({0} - 0.9 * n) * jnp.ones(3)"),
    "entries of a softmax": _of_arrays("jax.nn.softmax({0} / n) - 1 / 3"),
    "a bound at infinity": _of_arrays("jnp.minimum({0}, y)", "jnp.nan_to_num({0})"),
    "bounds of which some are infinite": _of_arrays(
        "jnp.clip({0}, -1.0, jnp.array([jnp.inf, 1.0, jnp.inf]))"
    ),
    "compared with infinity": _of_arrays("{0} < jnp.array([jnp.inf, 1.0, jnp.inf])"),
    "saturated beside others": _of_arrays("jnp.tanh(2 * {0}) - jnp.tanh({0})"),
    "faster than any power": _of_arrays("jax.nn.softmax({0})", first=_GROWING),
    "all faster than any power": _of_arrays("jnp.exp(-jnp.abs({0}))", first=Step("t0", "x * n")),
    "a bound below what grows": _of_arrays("jnp.minimum({0}, y)", "jnp.outer({0}, {0}).sum(0)"),
    "a power of what need not grow": _of_arrays("jax.nn.softplus({0})**3", first=_GROWING),
    "an inverse of what need not grow": _of_arrays(
        "jnp.maximum({0}, 0.7)", "jnp.sort({0})", "1 / (1 + jnp.abs({0}))", first=_GROWING
    ),
    "a root of what need not grow": _of_arrays(
        "jnp.minimum({0}, 0.3 * x)", "jnp.cbrt({0})", first=_GROWING
    ),
    "a logarithm of what need not grow": _of_arrays(
        "jnp.maximum({0}, 0.7)", "jnp.log({0}) - jnp.log(2 * {0})", first=_GROWING
    ),
    "an exponential of what need not grow": _of_arrays(
        "jnp.minimum({0}, 0.3 * x)", "jnp.exp(-jnp.abs({0}))", first=_GROWING
    ),
    "the sign of a small logarithm": _of_arrays(
        "jnp.log(1 + {0}**2)", "jnp.sign({0})", first=Step("t0", "x * n**-0.5")
    ),
    "a choice by a small logarithm": _of_arrays(
        "jnp.log(1 + {0}**2)",
        "jnp.where({0} > x * n**-0.5, {0}, x * n**-0.5)",
        first=Step("t0", "y / n"),
    ),
    "a root of a small difference": _of_arrays(
        "1 - jnp.cos({0})", "jnp.cbrt({0})", first=Step("t0", "y / n")
    ),
    "a cube root of a negative number beside others": _of_arrays(
        "jnp.minimum({0}, y)", "jnp.cbrt({0})", first=Step("t0", "jnp.stack([x[0] * n, y[1], 0.9])")
    ),
    "a root that vanishes slowly": _of_arrays(
        "jnp.sqrt(jnp.abs({0})) + 0 * (y * n**2).sum()", first=Step("t0", "x * n**-0.5")
    ),
    "ties of some entries": _of_arrays(
        "jnp.where({0} > y, {0}, y)", first=Step("t0", "jnp.stack([x[0] * n, y[1], 0.9 / n])")
    ),
}
VECTORS: dict[str, Program] = {
    "a tie that the next term decides": _of_vectors(
        "v", "jnp.maximum({0}, {0} + w * n**-0.5)", "n**0.5 * jnp.mean(w * ({0} - {1}))"
    ),
    "a sum of thirds": _of_vectors(
        "v + w", "jnp.sign({0} / 3 - v / 3 - w / 3 + v * n**-0.5)", "jnp.mean({0} * v)"
    ),
    "what a step moves": _of_vectors(
        "v", "jnp.tanh({0} - w * n**-0.5) - jnp.tanh({0})", "n * jnp.mean({0}**2)"
    ),
    "an index of a tie": _of_vectors(
        "v", "jnp.argmax(jnp.stack([{0}, {0} + w * n**-0.5]), 0)", "jnp.mean({0})"
    ),
    "a difference below single precision": _of_vectors(
        "w * n**-0.5",
        "jnp.argmax(jnp.stack([v / jnp.cosh({0})**2, v, w]), 0)",
        "jnp.mean({0} * v)",
    ),
    "a small difference and its square": _of_vectors(
        "v", "{0} + w * n**-0.5 - {0}", "jnp.mean(jnp.abs({0}))"
    ),
}
