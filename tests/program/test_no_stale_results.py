"""What a function has closed over is read at the start of every run, at every width.

A rate is a global variable, a variable of a closure, an attribute, an entry of an array that is
changed between two runs: the second gives the numbers of the new rate.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import tplimit as tp
from tplimit.networks.activations import orders
from tplimit.program.traits import TRAITS

n = tp.Width("n")
ONES = {"v": tp.full((n,), 1.0)}
WIDTHS = pytest.mark.parametrize("width", [64, tp.Deferred(64), tp.inf], ids=str)
RUN: dict[str, Any] = {"key": jax.random.key(0), "samples": 256, "progress": False}
POINT = jnp.array([[3.0, 4.0]])
rate = 0.0


# --- where a rate may be: each a function x -> rate * x and a function that sets the rate

Kind = tuple[Callable[[Any], Any], Callable[[float], None]]
KINDS: dict[str, Callable[[], Kind]] = {}


def kind(make: Callable[[], Kind]) -> Callable[[], Kind]:
    KINDS[make.__name__] = make
    return make


def set_global(value: float) -> None:
    global rate
    rate = value


def scaled(x: Any) -> Any:
    return rate * x


@kind
def global_variable() -> Kind:
    return scaled, set_global


@kind
def variable_of_a_closure() -> Kind:
    inner = 0.0

    def set_inner(value: float) -> None:
        nonlocal inner
        inner = value

    return lambda x: inner * x, set_inner


class Trainer:
    """Equal to everything, and without a hash, as modules of some libraries are."""

    __hash__ = None  # type: ignore[assignment]
    rate = 0.0

    def __eq__(self, other: object) -> bool:
        return True

    def __call__(self, x: Any) -> Any:
        return self.rate * x

    def method(self, x: Any) -> Any:
        return self.rate * x

    def scan(self, x: Any) -> Any:
        return lax.scan(self.body, x, None, length=1)[0]

    def body(self, x: Any, _: None) -> tuple[Any, None]:
        return self.rate * x, None


@kind
def bound_method() -> Kind:
    trainer = Trainer()
    return trainer.method, functools.partial(setattr, trainer, "rate")


@kind
def object_that_is_called() -> Kind:
    trainer = Trainer()
    return trainer, functools.partial(setattr, trainer, "rate")


@kind
def method_that_is_scanned() -> Kind:
    trainer = Trainer()
    return trainer.scan, functools.partial(setattr, trainer, "rate")


@kind
def settings_of_a_partial() -> Kind:
    settings: dict[str, float] = {}
    multiplied = lambda settings, x: settings["rate"] * x
    return functools.partial(multiplied, settings), functools.partial(settings.__setitem__, "rate")


@kind
def array_that_is_changed() -> Kind:
    rates = np.zeros(100, np.float32)
    return lambda x: rates[:1].sum() * x, lambda value: rates.fill(value)


@kind
def large_array_that_is_changed() -> Kind:
    rates = np.zeros(100, np.float32)
    return lambda x: jnp.mean(jnp.asarray(rates)) * x, lambda value: rates.fill(value)


@kind
def jitted_function() -> Kind:
    return jax.jit(scaled), set_global


@kind
def jitted_function_inside() -> Kind:
    inner = jax.jit(scaled)
    return lambda x: inner(x), set_global


def body(x: Any, _: None) -> tuple[Any, None]:
    return rate * x, None


@kind
def body_of_a_loop() -> Kind:
    return lambda x: lax.scan(body, x, None, length=1)[0], set_global


@kind
def branch() -> Kind:
    return lambda x: lax.cond(jnp.ones(()) > 0, scaled, jnp.negative, x), set_global


@kind
def rematerialised_function() -> Kind:
    return lambda x: jax.checkpoint(scaled)(x), set_global


@jax.custom_vjp
def custom(x: Any) -> Any:
    return rate * x


custom.defvjp(lambda x: (rate * x, None), lambda _, g: (rate * g,))


@kind
def custom_derivative() -> Kind:
    # The rule of the derivative reads the rate too.
    return lambda x: x * jax.grad(lambda s: jnp.sum(custom(s)))(jnp.ones(())), set_global


@WIDTHS
@pytest.mark.parametrize("make", KINDS.values(), ids=KINDS)
def test_a_step_is_traced_in_every_run(make: Callable[[], Kind], width: Any) -> None:
    """tp.train sees the new rate, wherever it is."""
    scale, set_rate = make()
    step = lambda t, _: (t, scale(jnp.mean(t["v"])))
    for value in (2.0, 3.0, 2.0):
        set_rate(value)
        assert tp.train(step, ONES, [None], width=width, **RUN).outputs == [value]


# --- entries: from a function x -> rate * x to a call with functions that are made once, whose
# result is proportional to a power of the rate

Entry = Callable[[Callable[[Any], Any]], Callable[[], Any]]
ENTRIES: list[Any] = []


def entry(power: int = 1, name: str = "", slow: bool = False) -> Callable[[Entry], Entry]:
    def enter(make: Entry) -> Entry:
        marks = [pytest.mark.slow] if slow else []
        ENTRIES.append(pytest.param(make, power, id=name or make.__name__, marks=marks))
        return make

    return enter


def mean(t: Any) -> Any:
    return jnp.mean(t["v"])


def still(t: Any, _: Any) -> Any:
    return t, mean(t)


def parameters() -> Any:
    return tp.sample(ONES, jax.random.key(0), width=tp.inf, samples=256)


for _width in (64, tp.Deferred(64), tp.inf):

    @entry(name=f"init-{_width}")
    def init(scale: Any, width: Any = _width) -> Any:
        start = lambda t: {"v": scale(t["v"])}
        return lambda: tp.train(still, ONES, [None], width=width, init=start, **RUN).outputs

    @entry(name=f"observe-{_width}")
    def observe(scale: Any, width: Any = _width) -> Any:
        look = lambda t: scale(mean(t))
        return lambda: tp.train(still, ONES, [None], width=width, observe=look, **RUN).observations


@entry()
def observe_with_two_terms(scale: Any) -> Any:
    options: Any = {"width": tp.inf, "terms": 2, "observe": lambda t: scale(mean(t))}
    return lambda: tp.train(still, ONES, [None], **options, **RUN).observations


@entry()
def compare(scale: Any) -> Any:
    step = lambda t, _: (t, scale(mean(t)))

    def run() -> Any:
        found = tp.compare(step, ONES, [None], widths=[64], seeds=2, replicates=2, **RUN)
        return np.concatenate([found.limit.outputs, found.finite[64].outputs])

    return run


@entry()
def limit(scale: Any) -> Any:
    function = lambda t: scale(mean(t))
    return lambda: tp.limit(function)(parameters())


@entry()
def leading(scale: Any) -> Any:
    function = lambda t: scale(mean(t))
    return lambda: tp.leading(function)(parameters()).coefficient


@entry()
def series(scale: Any) -> Any:
    function = lambda t: scale(mean(t))
    return lambda: tp.series(function)(parameters()).at(0)


NETWORK = {"U": tp.normal((2, n)), "v": tp.normal((n,))}


def network(scale: Any) -> Callable[[Any, Any], Any]:
    return lambda t, x: scale(x @ t["U"]) @ t["v"] / t["v"].shape[0] ** 0.5


for _method in ("closed_form", "particles"):
    for _kernel in (tp.kernels.nngp, tp.kernels.ntk):

        @entry(2, name=f"{_kernel.__name__}-{_method}", slow=_method == "particles")
        def kernel(scale: Any, kernel: Any = _kernel, method: Any = _method) -> Any:
            apply, options = network(scale), {"samples": 256, "replicates": 1}
            return lambda: kernel(apply, NETWORK, POINT, method=method, **options).value


@entry(2, slow=True)
def dual(scale: Any) -> Any:
    phi = lambda h: scale(jnp.tanh(h))
    return lambda: tp.kernels.dual(phi).value(0.5, 1.0, 1.0)


@entry()
def loss_in_function_space(scale: Any) -> Any:
    loss = lambda f, y: scale(jnp.mean((f - y) ** 2))
    return lambda: tp.kernels.train(np.eye(2), None, np.ones(2), loss, lr=0.1, steps=0).loss


@pytest.mark.parametrize(("make", "power"), ENTRIES)
def test_an_entry_traces_anew(make: Entry, power: int) -> None:
    """Every function of the library that takes the user's functions sees the new rate.

    Theirs are the same objects in all calls, and a function of theirs is jitted.
    """
    scale, set_rate = jitted_function()
    evaluate = make(scale)
    set_rate(2.0)
    first = np.asarray(evaluate())
    assert np.all(first != 0)
    for value in (3.0, 2.0):
        set_rate(value)
        expected = first * (value / 2.0) ** power
        np.testing.assert_allclose(evaluate(), expected, rtol=2e-6)


def test_the_same_function_object_is_traced_anew() -> None:
    """Of one function, limits, runs and what is known of an activation change together."""
    function = lambda t: scaled(mean(t))
    step = lambda t, _: (t, function(t))
    phi = lambda h: jnp.abs(h) ** int(rate)
    found = []
    for value in (1.0, 2.0):
        set_global(value)
        trained = tp.train(step, ONES, [None], width=tp.inf, **RUN).outputs[0]
        found.append((tp.limit(function)(parameters()), trained, orders(phi).value))
    assert found == [(1, 1, 1), (2, 2, 2)]


@pytest.mark.slow
def test_classification_sees_the_rate() -> None:
    """A step with rate 0 does not move, whatever it did before."""
    loss = lambda t, x: jnp.mean((jnp.tanh(x @ t["U"]) @ t["v"] / t["v"].shape[0] - 1) ** 2)

    def step(t: Any, x: Any) -> Any:
        value, g = jax.value_and_grad(loss)(t, x)
        return jax.tree.map(lambda p, d: p - rate * p.shape[-1] * d, t, g), value

    names = []
    for value in (0.1, 0.0):
        set_global(value)
        names.append(tp.classify_step(step, NETWORK, POINT).name)
    assert names[0] == "mean-field" != names[1]


def test_a_limited_function_keeps_its_trace() -> None:
    """As jax.jit does: what holds is that tp.limit(f), written again, sees the change."""
    limited = tp.limit(lambda t: scaled(mean(t)))
    set_global(2.0)
    assert limited(parameters()) == 2
    set_global(3.0)
    assert limited(parameters()) == 2
    assert tp.limit(lambda t: scaled(mean(t)))(parameters()) == 3


def test_a_rule_that_was_entered_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """A new rule changes what a program gives, although the program is the same."""
    function = lambda t: jnp.mean(jnp.tanh(t["v"]))
    before = tp.limit(function)(parameters())
    (tanh,) = (p for p in TRAITS if p.name == "tanh")
    (sine,) = (p for p in TRAITS if p.name == "sin")
    monkeypatch.setitem(TRAITS, tanh, TRAITS[sine])
    assert tp.limit(function)(parameters()) != before
