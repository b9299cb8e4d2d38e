"""Bad arguments are refused by name before any work; odd but meaningful ones are right."""

from collections.abc import Callable
from fractions import Fraction
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tplimit as tp
from tplimit import kernels

n, m = tp.Width("n"), tp.Width("m", ratio=2)
KEY, RAW = jax.random.key(0), jax.random.PRNGKey(0)
THETA = {"U": tp.normal((2, n)), "v": tp.normal((n,), std=1 / n)}
NTK = {"U": tp.normal((2, n)), "v": tp.normal((n,))}
X = jnp.asarray([[1.0, -0.5], [0.4, 1.2]])
NAN, INF = float("nan"), float("inf")
WIDTHS = (8, tp.Deferred(16), tp.inf)

Call = Callable[[], Any]


def untouched(*_: Any) -> Any:
    """A function of the user's that must not be called before the arguments are checked."""
    pytest.fail("work was done before the arguments were checked")


def step(theta: Any, batch: Any) -> Any:
    return theta, (jnp.tanh(X @ theta["U"]) @ theta["v"]).sum()


def apply(theta: Any, x: Any) -> Any:
    return jnp.tanh(x @ theta["U"]) @ theta["v"] / theta["v"].shape[0] ** 0.5


def sample(**options: Any) -> Any:
    given = {"theta": THETA, "key": KEY, "width": tp.inf, "samples": 64} | options
    return tp.sample(given.pop("theta"), given.pop("key"), **given)


def train(**options: Any) -> Any:
    given = {"step": untouched, "theta": THETA, "batches": [0, 1], "width": tp.inf, "key": KEY}
    return tp.train(**given | {"samples": 64, "progress": False} | options)


def compare(**options: Any) -> Any:
    given = {"step": untouched, "theta": THETA, "batches": [0], "widths": [8, 16], "seeds": 2}
    return tp.compare(**given | {"key": KEY, "samples": 64, "progress": False} | options)


def classify(**options: Any) -> Any:
    given = {"step": untouched, "theta": THETA, "batch": X} | options
    return tp.classify_step(given.pop("step"), given.pop("theta"), given.pop("batch"), **given)


def nngp(x1: Any = X, x2: Any = None, **options: Any) -> Any:
    return tp.nngp(untouched, THETA, x1, x2, **options)


def descent(**options: Any) -> Any:
    given = {"kernel_tt": np.eye(2), "kernel_st": None, "y": np.ones(2), "loss": "mse"}
    return kernels.train(**given | {"lr": 0.1, "steps": 3} | options)


def everywhere(
    text: str, error: type[Exception], options: dict[str, Any], *calls: Callable[..., Any]
) -> list[Any]:
    """The same options for several functions."""
    value = ",".join(f"{k}={str(v)[:24]}" for k, v in options.items())
    return [
        pytest.param(lambda call=call: call(**options), error, text, id=f"{call.__name__}-{value}")
        for call in calls
    ]


def one(text: str, error: type[Exception], call: Call, name: str) -> Any:
    return pytest.param(call, error, text, id=name)


BAD: list[Any] = []

# Numbers of things: never rounded, never a truth value.
for name, calls in {
    "samples": (sample, classify, nngp),
    "replicates": (train, compare, nngp),
    "seeds": (compare,),
    "steps": (classify,),
}.items():
    for value in (None, 1024.0, "a", True, NAN, np.ones(2)):
        # None is the default of tp.compare, for a limit that is there has its own.
        asked = [c for c in calls if not (value is None and name == "replicates" and c is compare)]
        BAD += everywhere(f"{name}=.* is no integer", TypeError, {name: value}, *asked)
    for value in (0, -4, 2**40):
        BAD += everywhere(rf"{name}={value} is out of range", ValueError, {name: value}, *calls)
for value in (1.5, "2", True):
    BAD += everywhere("terms=.* is no integer", TypeError, {"terms": value}, sample, train)
for value in (0, 100, -1):
    BAD += everywhere(f"terms={value} is out of range", ValueError, {"terms": value}, sample, train)

# Widths.
for value in (0, -3, 8.5, 8.0, 2**33, True, "a", None, NAN, -INF, [8], np.ones(2), 8j, n):
    BAD += everywhere("width=.* is not a width", tp.WidthError, {"width": value}, sample, train)
for value in (0, True, 8.5, "a", 2**33):
    text = r"width\['n'\]=.* is not a width"
    BAD += everywhere(text, tp.WidthError, {"width": {"n": value}}, sample, train)
for value, text in (
    ({"n": INF}, "has 'n' at inf.(.|\n)*pass width=tp.inf"),
    ({"n": tp.Deferred(8)}, "has 'n' at Deferred(.|\n)*pass width=tp.Deferred"),
    ({}, r"has no size of the width 'n'(.|\n)*width=\{'n': 64\}"),
    ({"k": 3}, "has no size of the width 'n'"),
    ({"n": 8, "k": 3}, "names, but no parameter has, the width 'k'"),
):
    BAD += everywhere(text, tp.WidthError, {"width": value}, sample, train)
for value in (1, 0, -2, 2.5, 2**40, True, "a", None, NAN):
    make = lambda value=value: tp.Deferred(value)
    BAD.append(
        one(r"n=.* is not a width(.|\n)*from 2 on", tp.WidthError, make, f"Deferred-{value}")
    )
for value in ([8, 8.5], [0], [INF], [2**33], [True], ["a"]):
    BAD += everywhere("widths: one=.* is not a width", tp.WidthError, {"widths": value}, compare)
for value in (8, None, "ab", {"n": 8}):
    BAD += everywhere("widths=.* is no list of integers", TypeError, {"widths": value}, compare)
for value in ([], [8, 8]):
    BAD += everywhere("at least one and all different", ValueError, {"widths": value}, compare)
half = {"v": tp.normal((n / 2,))}
BAD += everywhere(
    "3.5 .* no whole number", tp.WidthError, {"theta": half, "widths": [8, 7]}, compare
)
BAD += everywhere("3.5 .* no whole number", tp.WidthError, {"theta": half, "width": 7}, train)

for value in (1024.0, "a", True, NAN, np.ones(2)):
    BAD += everywhere("samples=.* is no integer", TypeError, {"samples": value}, train, compare)

# Options by name, flags, functions.
for name, wanted, calls in (
    ("noise", "'sobol' or 'random'", (sample, train)),
    ("init_output", "'sample' or 'zero'", (sample, train)),
    ("method", "'auto' or 'closed_form' or 'particles'", (nngp,)),
    ("method", "'auto' or 'spectral' or 'iterate'", (descent,)),
):
    for value in (None, 3):
        BAD += everywhere(f"{name}=.* is no name: pass {wanted}", TypeError, {name: value}, *calls)
    text = f"{name}='x' is not known: pass {wanted}"
    BAD += everywhere(text, ValueError, {name: "x"}, *calls)
for value in ("a", 1j, True):
    text = "rank_tolerance=.* is no real number: pass a number from 0"
    BAD += everywhere(text, TypeError, {"rank_tolerance": value}, sample, train)
for value in (NAN, INF, -1, 1):
    text = "rank_tolerance=.*pass a number from 0"
    BAD += everywhere(text, ValueError, {"rank_tolerance": value}, sample, train)
for name in ("progress", "bias_check", "fluctuations"):
    for value in ("yes", None, 1):
        BAD += everywhere(f"{name}=.* is neither True nor False", TypeError, {name: value}, train)
BAD += everywhere("progress='yes'", TypeError, {"progress": "yes"}, compare)
BAD += everywhere("mesh=3 is no mesh", TypeError, {"mesh": 3}, sample, train)
for name, calls in {"step": (train, compare, classify), "init": (train, compare, classify),
                    "observe": (train, compare)}.items():  # fmt: skip
    BAD += everywhere(f"{name}=3 is no function", TypeError, {name: 3}, *calls)

# Random keys.
for value in (3, "a", jnp.zeros(3, jnp.uint32), jnp.zeros(2), np.zeros(2, np.int32)):
    calls = (sample, train, compare, classify, nngp)
    BAD += everywhere("key=.* is no random key: pass jax", TypeError, {"key": value}, *calls)
for value in (jax.random.split(KEY, 3), jax.random.split(RAW, 3)):
    text = r"key=an array of shape \(3.* holds several random keys: pass one"
    BAD += everywhere(text, ValueError, {"key": value}, *calls)

# Declarations.
for value, error in (
    (NAN, ValueError), (INF, ValueError), ("a", TypeError), (None, TypeError), (1j, TypeError),
    (True, TypeError), (jnp.ones(2), TypeError), ([1], TypeError),
):  # fmt: skip
    for name, make in {
        "std": lambda value: tp.normal((n,), std=value),
        "mean": lambda value: tp.normal((n,), mean=value),
        "scale": lambda value: tp.uniform((n,), value),
        "value": lambda value: tp.full((n,), value),
    }.items():
        call = lambda make=make, value=value: make(value)
        BAD.append(one(f"{name}=.* is (no real number|not finite)", error, call, f"{name}-{value}"))
for value in (-1, -0.5 / n):
    normal = lambda value=value: tp.normal((n,), std=value)
    BAD.append(one("std=-.* is negative", ValueError, normal, f"std-{value}"))
    signs = lambda value=value: tp.rademacher((n,), value)
    BAD.append(one("scale=-.* is negative", ValueError, signs, f"rademacher-{value}"))
for dim in (0, -1, 2.5, "a", None, True, 2**40, NAN, np.ones(2)):
    shape = lambda dim=dim: tp.normal((3, dim))
    text = "shape has an axis of length .*(.|\n)*positive integers and widths"
    BAD.append(one(text, tp.WidthError, shape, f"shape-{dim}"))
for name, make in {
    "n*0": lambda: n * 0, "-n": lambda: -n, "n**2": lambda: n**2, "n**.5": lambda: n**0.5,
    "n/2n": lambda: n / (2 * n),
}.items():  # fmt: skip
    call = lambda make=make: tp.normal((3, make()))
    BAD.append(one("An axis of length .* is not a width", tp.WidthError, call, f"shape-{name}"))
for name, make in {
    "n-1": lambda: n - 1, "3-n": lambda: 3 - n, "n+m": lambda: n + m, "n+0.5": lambda: n + 0.5,
    "n^2+1": lambda: n**2 + 1, "n+0": lambda: n + 0, "3+n+n": lambda: (3 + n) + n,
}.items():  # fmt: skip
    text = r"A sum or difference of .*(n|m)(.|\n)*sums of the two, 3 \+ n or n \+ 3"
    BAD.append(one(text, tp.WidthError, make, f"sum-{name}"))
for name, make, error, text in (
    ("n*nan", lambda: n * NAN, ValueError, "a factor of a width=nan is not finite"),
    ("n*inf", lambda: n * INF, ValueError, "a factor of a width=inf is not finite"),
    ("n*1j", lambda: n * 1j, TypeError, "a factor of a width=1j is no real number"),
    ("n*'a'", lambda: n * "a", TypeError, "a factor of a width='a' is no real number"),
    ("n/0", lambda: n / 0, ValueError, "is no real number"),
    ("1/(0n)", lambda: 1 / (0 * n), ValueError, "is no real number"),
    ("(-n)**.5", lambda: (-n) ** 0.5, ValueError, r"\(-1 \* n\) \*\* 1/2 is no real number"),
    ("overflow", lambda: (1e300 * n) ** 2, ValueError, "a scale=inf is not finite"),
    ("n**'a'", lambda: n ** "a", TypeError, "exponent='a' is no real number"),
    ("n**nan", lambda: n**NAN, ValueError, "exponent=nan is not finite"),
    ("n**pi", lambda: n**3.14159, tp.WidthError, "exponent 3.14159 is not a rational number"),
    ("n//2", lambda: n // 2, tp.WidthError, "n is divided by 2"),
    ("ratio-nan", lambda: tp.Width("k", ratio=NAN), ValueError, "ratio=nan is not finite"),
    ("ratio-inf", lambda: tp.Width("k", ratio=INF), ValueError, "ratio=inf is not finite"),
    ("ratio-str", lambda: tp.Width("k", ratio="a"), TypeError, "ratio='a' is no real number"),
    ("ratio-bool", lambda: tp.Width("k", ratio=True), TypeError, "ratio=True is no real number"),
    ("ratio-0", lambda: tp.Width("k", ratio=0), tp.WidthError, "ratio=0 of width 'k' is not"),
    ("ratio--1", lambda: tp.Width("k", ratio=-1), tp.WidthError, "ratio=-1 of width 'k'"),
    ("ratio-tiny", lambda: tp.Width("k", ratio=1e-9), tp.WidthError, "ratio 1e-09 is not a rat"),
    ("name", lambda: tp.Width(3), tp.WidthError, "name=3 is no name of a width"),
):
    BAD.append(one(text, error, make, name))

# Trees of parameters and batches.
for theta in ({}, None, [3]):
    text = "sampled already, or declares no parameter"
    BAD += everywhere(text, tp.LimitError, {"theta": theta}, train, compare, classify)
for leaf in ("a", np.array(["a"]), object()):
    text = r"theta\['c'\] is .*which is no array"
    BAD += everywhere(text, TypeError, {"theta": THETA | {"c": leaf}}, train, compare, classify)
for batches, error, text in (
    ((1, 2), TypeError, "batches is a tuple"), ({"a": 1}, TypeError, "batches is a dict"),
    (None, TypeError, "batches=None"), (3, TypeError, "batches=3"), ("ab", TypeError, "batches='"),
    ([], ValueError, "batches is empty"), (np.ones((0, 3)), ValueError, "batches is empty"),
    ([{"a": "b"}], TypeError, r"batches\[0\]\['a'\] is 'b', of type str"),
    ([0, object()], TypeError, r"batches\[1\] is <object"),
    ([np.array([None])], TypeError, r"batches\[0\] is an array of .*dtype object"),
):  # fmt: skip
    BAD += everywhere(text, error, {"batches": batches}, train, compare)

# Kernels.
for x, text in (
    (np.ones((0, 2)), "holds no points|has to hold points"), ([], "has to hold points"),
    ("a", "x1|'a'"), (np.array(["a"]), "x1.*which is no array|dtype <U1"),
    ([[1.0, 2.0], [3.0]], "x1 is no array"), (X * NAN, "finite"), (1j * X, "complex64"),
):  # fmt: skip
    label = str(x)[:12]
    BAD.append(one(text, (ValueError, TypeError), lambda x=x: nngp(x), f"nngp-{label}"))
    network = lambda x=x: kernels.mlp(1)(x)
    text = text.replace("holds no points|has to hold points", "number of points")
    text = text.replace("has to hold points", "number of points")
    BAD.append(one(text, ValueError, network, f"mlp-{label}"))
BAD += [
    one("kernel_tt has shape", ValueError, lambda: descent(kernel_tt=np.ones((0, 0))), "no points"),
    one("kernel_tt is no array", ValueError, lambda: descent(kernel_tt=[[1], [1, 2]]), "ragged"),
    one("y has dtype <U1", ValueError, lambda: descent(y=["a", "b"]), "targets of letters"),
    one("lr=nan is not finite", ValueError, lambda: descent(lr=NAN), "lr-nan"),
    one("lr=-1.0 is not positive", ValueError, lambda: descent(lr=-1), "lr--1"),
    one("lr='a' is no real number", TypeError, lambda: descent(lr="a"), "lr-a"),
    one("steps=1.5 is no integer", TypeError, lambda: descent(steps=1.5), "steps-1.5"),
    one("depth=-1 is out of range", ValueError, lambda: kernels.mlp(-1), "depth--1"),
    one("depth='a' is no integer", TypeError, lambda: kernels.mlp("a"), "depth-a"),
    one("w_std=nan is not", ValueError, lambda: kernels.mlp(1, "relu", NAN), "w_std-nan"),
    one("b_std='a' is no", TypeError, lambda: kernels.mlp(1, "relu", 1, "a"), "b_std-a"),
    one("block=0 is out of", ValueError, lambda: kernels.mlp(1)(X, block=0), "block-0"),
    one("coefficients=-1 are", TypeError, lambda: kernels.hermite(-1), "hermite"),
    one("a coefficient=nan is", ValueError, lambda: kernels.hermite([NAN]), "hermite-nan"),
    one("degree=1.5 is no integer", TypeError, lambda: kernels.relu_power(1.5), "relu_power"),
    one("lr=nan is not finite", ValueError,
        lambda: tp.parameterizations.mup.step(tp.mlp(1, 2), "mse", NAN), "step-lr"),
    one("function=3 is no function", TypeError, lambda: tp.limit(3), "limit"),
]  # fmt: skip


@pytest.mark.parametrize(("call", "error", "text"), BAD)
def test_a_bad_argument_is_refused_by_name_before_any_work(call, error, text):
    with pytest.raises(error, match=text):
        call()


# What is odd but has a meaning -------------------------------------------------------------------


@pytest.mark.parametrize("width", WIDTHS, ids=str)
def test_keys_of_the_old_kind_give_the_same_draws(width):
    for raw in (RAW, np.asarray(RAW)):
        new, old = (
            train(step=step, key=key, width=width, replicates=2) for key in (jax.random.key(0), raw)
        )
        np.testing.assert_array_equal(new.replicates.outputs, old.replicates.outputs)


@pytest.mark.slow
def test_keys_of_the_old_kind_compare_and_classify():
    new, old = (compare(step=step, key=key) for key in (KEY, RAW))
    assert new.rms == old.rms
    f = lambda key: tp.ntk(apply, NTK, X, method="particles", samples=64, replicates=2, key=key)
    np.testing.assert_array_equal(f(KEY).value, f(RAW).value)
    scaling, model = tp.parameterizations.mup, tp.mlp(1, inputs=2)
    trained = scaling.step(model, "mse", 0.1), scaling.theta(model), (X, jnp.ones(2))
    assert tp.classify_step(*trained, key=RAW, samples=64).name == "mean-field"


@pytest.mark.parametrize("width", WIDTHS, ids=str)
@pytest.mark.parametrize("make", [jax.random.key, jax.random.PRNGKey])
def test_keys_live_in_states_and_batches(width, make):
    def noisy(state: Any, batch: Any) -> Any:
        theta, key = state
        key, own = jax.random.split(key)
        drawn = jax.random.normal(own) + jax.random.uniform(batch)
        return (theta, key), drawn + 0 * theta["v"].sum()

    run = train(step=noisy, width=width, init=lambda t: (t, make(1)), batches=[make(2), make(3)])
    keys = jax.random.split(jax.random.key(1))
    draws = [jax.random.normal(keys[1]), jax.random.normal(jax.random.split(keys[0])[1])]
    draws = [a + jax.random.uniform(jax.random.key(k)) for a, k in zip(draws, (2, 3), strict=True)]
    np.testing.assert_allclose(run.outputs, draws, rtol=1e-5)


@pytest.mark.parametrize(
    "std", [jnp.float32(2), np.float64(2), np.int8(2), Fraction(2), 2], ids=repr
)
def test_standard_deviations_may_be_any_real_scalar(std):
    draw = lambda value: tp.sample(tp.normal((n,), std=value), KEY, width=4)
    np.testing.assert_array_equal(draw(std), draw(2.0))
    thirds = tp.sample(tp.full((n,), Fraction(1, 3)), KEY, width=2)
    np.testing.assert_array_equal(thirds, np.float32([1 / 3, 1 / 3]))


def test_integers_may_be_those_of_numpy():
    options = {"samples": np.int32(64), "replicates": np.int64(2), "terms": np.int8(1)}
    given = train(step=step, **options)
    plain = train(step=step, samples=64, replicates=2, terms=1)
    np.testing.assert_array_equal(given.outputs, plain.outputs)
    assert tp.Deferred(np.int64(8)) == tp.Deferred(8)
    assert sample(width=np.int64(8))["v"].shape == sample(width={"n": np.int64(8)})["v"].shape


def test_nested_lists_are_arrays_of_inputs():
    rows = X.tolist()
    net = kernels.mlp(1)
    np.testing.assert_array_equal(net(rows).ntk, net(X).ntk)
    np.testing.assert_array_equal(tp.ntk(apply, NTK, rows).value, tp.ntk(apply, NTK, X).value)
    assert descent(kernel_tt=[[1.0, 0.0], [0.0, 1.0]], y=[1.0, 1.0]).train.shape == (4, 2)


def test_sampled_parameters_are_no_declarations():
    for call in (train, compare, classify):
        with pytest.raises(tp.LimitError, match="sampled already"):
            call(theta={"U": THETA["U"], "v": sample()["v"]})
