"""Training that grows with the width: the record, the step, the parameter, and what mends it."""

import jax
import jax.numpy as jnp
import optax
import pytest

import tplimit as tp

N = tp.Width("n")
BATCH = jnp.array([[0.3, -1.0, 0.5], [1.2, 0.4, -0.1]]), jnp.array([1.0, -0.5])
HOW = {"key": jax.random.key(0), "samples": 2**10, "progress": False}


def predict(t, x):
    return jnp.tanh(x @ t["U"]) @ t["v"]


def program(rates, optimizer=None):
    """muP by initial scales: entries of gradients are of order 1/n for U, of order 1 for v."""
    theta = {"U": tp.normal((3, N)), "v": tp.normal((N,), std=N**-1)}

    def step(state, batch):
        t, memory = state if optimizer else (state, None)
        n = t["v"].shape[0]
        loss = lambda t: 0.5 * jnp.mean((predict(t, batch[0]) - batch[1]) ** 2)
        value, g = jax.value_and_grad(loss)(t)
        if optimizer:
            g, memory = optimizer.update(g, memory, t)
        new = {k: t[k] - 0.1 * n ** rates[k] * g[k] for k in t}
        return ((new, memory) if optimizer else new), {"loss": value}

    return step, theta, (lambda t: (t, optimizer.init(t))) if optimizer else None


MOMENTUM, ADAM = optax.sgd(-1.0, momentum=0.9), optax.adam(-1.0, eps=0.0)


@pytest.mark.parametrize(
    ("rates", "optimizer", "power", "named", "advice"),
    [
        # The standard rates: the same for all, whatever the width.
        ({"U": 0, "v": 0}, None, 2, "theta['v']", "n^(-1)"),
        ({"U": 1, "v": -0.5}, None, 1, "theta['v']", "n^(-1/2)"),
        ({"U": 1, "v": -0.5}, MOMENTUM, 1, "state[0]['v']", "n^(-1/2)"),
        pytest.param(
            {"U": 0, "v": -0.5}, ADAM, 1, "state[0]['v']", "n^(-1/2)", marks=pytest.mark.slow
        ),
    ],
    ids=["standard", "one", "momentum", "adam"],
)
def test_the_parameter_is_named_whose_rate_is_too_large(rates, optimizer, power, named, advice):
    """The loss grows like the square of the outputs; the rate is told from the outputs."""
    step, theta, init = program(rates, optimizer)
    with pytest.raises(tp.DivergenceError) as caught:
        tp.train(step, theta, [BATCH] * 3, width=tp.inf, init=init, **HOW)
    text = str(caught.value)
    assert text.startswith(f"outputs['loss'] at step 1 grows like n^{power}.\n")
    assert "After step 1 the outputs at " in text and "test_growth.py:" in text
    assert f"by the update of {named}: lower its learning rate by {advice}." in text


def test_hidden_layers_are_named_before_what_stands_above():
    """The order of a saturated network is not known here; by which parameter it grows is."""
    step, theta, _ = program({"U": 1.5, "v": -0.5})
    observe = lambda t: {"f": predict(t, BATCH[0])}
    with pytest.raises(tp.CancellationError) as caught:
        tp.train(step, theta, [BATCH] * 2, width=tp.inf, observe=observe, **HOW)
    text = str(caught.value)
    assert text.startswith("observations['f'] at step 1 ")
    assert (
        "the preactivations at" in text
        and "theta['U']: lower its learning rate by n^(-1/2)" in text
    )


def test_initial_values_are_named_where_nothing_was_trained():
    step, theta, _ = program({"U": 1, "v": -1})
    theta |= {"v": tp.full((N,), 1.0)}
    with pytest.raises(tp.DivergenceError, match=r"At the start the outputs at") as caught:
        tp.train(step, theta, [BATCH], width=tp.inf, **HOW)
    assert "initial values of theta['v']: lower them by n^(" in str(caught.value)


def test_what_is_no_part_of_a_network_has_the_general_advice():
    """A norm that is observed grows, the network does not."""
    step, theta, _ = program({"U": 1, "v": -1})
    observe = lambda t: jnp.sum(t["U"] ** 2)
    with pytest.raises(
        tp.DivergenceError, match=r"observations at step 0 grows like n\^1"
    ) as caught:
        tp.train(step, theta, [BATCH], width=tp.inf, observe=observe, **HOW)
    assert "A power of the width is missing" in str(caught.value)


def test_compare_says_so_too():
    step, theta, _ = program({"U": 1, "v": -0.5})
    with pytest.warns(tp.LimitWarning, match=r"lower its learning rate by n\^\(-1/2\)"):
        result = tp.compare(step, theta, [BATCH] * 2, widths=[16, 64], seeds=2, replicates=1, **HOW)
    assert "theta['v']" in result.error.advice


@pytest.mark.parametrize("power", [-1, -0.5])
def test_what_was_refused_with_one_term_is_told_with_two(power):
    """A readout of n^-1/2 has gradients of n^-1/2, exactly 0 in units that no point finds alive.

    Beside an eps of 1/n they are divided by 0, by one of their own power they are not.
    """
    x = BATCH[0]
    theta = {
        "U": tp.normal((3, N)),
        "W": tp.normal((N, N), std=N**-0.5),
        "v": tp.normal((N,), std=N**-0.5),
    }

    def step(t, _):
        n = t["v"].shape[0]
        f = lambda t: jax.nn.relu(jax.nn.relu(x @ t["U"]) @ t["W"]) @ t["v"] / n**0.5
        g = jax.grad(lambda t: 0.5 * jnp.mean((f(t) - BATCH[1]) ** 2))(t)
        rates = {"U": 1, "W": 1 / n, "v": n**-0.5}
        eps = {"U": 1 / n, "W": 1 / n, "v": n**power}
        sign = {k: g[k] / (jnp.abs(g[k]) + 1e-8 * eps[k]) for k in t}
        new = {k: t[k] - 0.1 * rates[k] * sign[k] for k in t}
        return new, jnp.mean((f(new) - BATCH[1]) ** 2)

    run = lambda: tp.train(step, theta, [None] * 2, width=tp.inf, **HOW | {"samples": 128})
    if power == -0.5:
        loss = run().outputs
        assert loss[1] < loss[0] < jnp.mean(BATCH[1] ** 2)
        return
    with pytest.raises(tp.CancellationError) as caught:
        run()
    text = str(caught.value)
    assert text.startswith("A division needs the leading term")
    assert "With one term it was: Division by a value whose leading coefficient is zero" in text
