"""Constants folded by NumPy are those that JAX computes, bit for bit."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tplimit.interpreter import folding

X = np.array([[1.5, -0.3, 0.0], [np.inf, np.nan, 7.1]], np.float32)
Y = np.array([[-2.5, 0.7, 0.0], [np.inf, 1.0, np.nan]], np.float32)
K = np.array([[3, -7, 0], [2**31 - 1, -(2**31), 5]], np.int32)

PROGRAMS = {
    "arithmetic": (lambda x, y: (x + y) * (x - y) / y, (X, Y)),
    "roots": (lambda x: jnp.sqrt(jnp.abs(-x)), (X,)),
    "extrema": (lambda x, y: jnp.maximum(x, 1) - jnp.minimum(x, y), (X, Y)),
    "comparisons": (lambda x, y: (x < y) & (x != 1) | (x >= 2) & (x == y), (X, Y)),
    "integers": (lambda k: (k * k + jnp.abs(k)) // 3 - k, (K,)),
    "to floating point": (lambda k: k.astype(np.float32) + (k > 0).astype(np.float32), (K,)),
    "to integers": (lambda x: jnp.nan_to_num(x, posinf=9.0).astype(np.int32), (X,)),
    "shapes": (lambda x: jnp.broadcast_to(x.reshape(3, 1, 2), (3, 4, 2)).sum(1).ravel(), (X,)),
    "half precision": (lambda x: (x.astype(np.float16) * 3).astype(jnp.bfloat16), (X,)),
    "functions": (lambda x: jnp.tanh(x) + jnp.exp(-x), (X,)),
    "large": (lambda x: jnp.broadcast_to(x, (5000, 2, 3)), (X,)),
    "several results": (lambda x: jax.lax.top_k(x, 2), (X,)),
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_folded_as_by_jax(name):
    """Every equation of a program, on the arrays that come to it."""
    function, given = PROGRAMS[name]
    closed = jax.make_jaxpr(function)(*given)
    environment = dict(zip(closed.jaxpr.invars, given, strict=True))
    for equation in _flat(closed.jaxpr, environment):
        arrays = tuple(np.asarray(getattr(v, "val", None) if hasattr(v, "val") else environment[v])
                       for v in equation.invars)  # fmt: skip
        out = folding.folded(equation.primitive, arrays, equation.params)
        wanted = equation.primitive.bind(*map(jnp.asarray, arrays), **equation.params)
        several = equation.primitive.multiple_results
        outs, wanted = (out, wanted) if several else ([out], [wanted])
        for variable, one, other in zip(equation.outvars, outs, wanted, strict=True):
            assert isinstance(one, np.ndarray) == (other.size <= folding.LIMIT)
            assert one.dtype == other.dtype
            assert np.array_equal(np.float64(one), np.float64(other), equal_nan=True)
            environment[variable] = one


def _flat(jaxpr, environment):
    """Equations of a program and of the calls in it."""
    for equation in jaxpr.eqns:
        if equation.primitive.name != "jit":
            yield equation
            continue
        inner = equation.params["jaxpr"].jaxpr
        for inside, outside in zip(inner.invars, equation.invars, strict=True):
            environment[inside] = outside.val if hasattr(outside, "val") else environment[outside]
        yield from _flat(inner, environment)
        for inside, outside in zip(inner.outvars, equation.outvars, strict=True):
            environment[outside] = inside.val if hasattr(inside, "val") else environment[inside]


def test_nothing_is_compiled_for_it():
    compiled = []
    hear = lambda event, *_, **__: compiled.append(event)
    jax.monitoring.register_event_duration_secs_listener(hear)
    try:
        for equation in jax.make_jaxpr(lambda x: jnp.sqrt(x * 2 + 1) / 3)(X).eqns:
            arrays = (X[:, :2], X[:, :2])[: len(equation.invars)]
            folding.folded(equation.primitive, arrays, equation.params)
    finally:
        jax.monitoring.unregister_event_duration_listener(hear)
    assert not [event for event in compiled if "backend_compile" in event]
