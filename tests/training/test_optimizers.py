"""Adaptive optimizers of optax, unmodified, on matrices between widths: networks beside the limit.

Rates are those of muP for updates that do not shrink with the gradients (Tensor Programs IVb):
order one for vectors, ``1 / n`` for matrices; ``eps`` is scaled as the gradients are.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import tplimit as tp

n = tp.Width("n")
X = jax.random.normal(jax.random.key(7), (4, 3))
Y = jnp.sin(2 * X[:, 0])
STEPS = 4


def declared(hidden):
    theta = {"U": tp.normal((3, n)), "v": tp.normal((n,))}
    return theta | {f"W{l}": tp.normal((n, n), std=n**-0.5) for l in range(hidden - 1)}


def predict(theta):
    h = jnp.tanh(X @ theta["U"])
    for l in range(len(theta) - 2):
        h = jnp.tanh(h @ theta[f"W{l}"])
    return h @ theta["v"] / theta["v"].shape[0]


#: Of rate and size of the gradients.
OPTIMIZERS = {
    "adam": lambda rate, g: optax.adam(rate, eps=1e-3 * g),
    "adamw": lambda rate, g: optax.adamw(rate, eps=1e-3 * g, weight_decay=0.3),
    "nadam": lambda rate, g: optax.nadam(rate, eps=1e-3 * g),
    "amsgrad": lambda rate, g: optax.amsgrad(rate, eps=1e-3 * g),
    "adamax": lambda rate, g: optax.adamax(rate, eps=1e-3 * g),
    "adabelief": lambda rate, g: optax.adabelief(rate, eps=1e-3 * g, eps_root=0.0),
    "adan": lambda rate, g: optax.adan(rate, eps=1e-3 * g, eps_root=0.0),
    "rmsprop": lambda rate, g: optax.rmsprop(rate, eps=1e-4 * g**2, initial_scale=0.0),
    "adagrad": lambda rate, g: optax.adagrad(
        rate, initial_accumulator_value=1e-2 * g**2, eps=1e-4 * g**2
    ),
    "lion": lambda rate, g: optax.lion(rate),
    "sign_sgd": lambda rate, g: optax.sign_sgd(rate),
    "adafactor": lambda rate, g: optax.adafactor(
        rate, multiply_by_parameter_scale=False, eps=1e-6 * g**2
    ),
    "muon": lambda rate, g: optax.contrib.muon(rate / g, eps=0.0),
    "clipped": lambda rate, g: optax.chain(
        optax.clip(0.3 * g), optax.sgd(2 * rate / g, momentum=0.5)
    ),
    "clipped by norm": lambda rate, g: optax.sgd(16 * rate / g),
}
#: What is for matrices between widths alone has another one for vectors.
VECTORS = {"muon": OPTIMIZERS["adam"]}
#: Newton and Schulz's iteration takes long in networks.
WIDTHS = {"muon": (64, 256, 1024)}
#: What acts on all gradients together, of which those of matrices have a norm of order one.
BEFORE = {"clipped by norm": optax.clip_by_global_norm(0.05)}


def run(name, hidden, width, replicates, **options):
    def optimizer(theta):
        size = theta["v"].shape[0]
        make = OPTIMIZERS[name]
        others = VECTORS.get(name, make)
        kinds = {"matrix": make(0.1 / size, 1 / size), "vector": others(0.1, 1 / size)}
        labels = {key: "matrix" if key[0] == "W" else "vector" for key in theta}
        return optax.chain(BEFORE.get(name, optax.identity()), optax.partition(kinds, labels))

    def step(state, batch):
        theta, inner = state
        loss, gradient = jax.value_and_grad(lambda t: jnp.mean((predict(t) - Y) ** 2))(theta)
        updates, inner = optimizer(theta).update(gradient, inner, theta)
        return (optax.apply_updates(theta, updates), inner), loss

    return tp.train(
        step,
        declared(hidden),
        jnp.zeros(STEPS),
        init=lambda theta: (theta, optimizer(theta).init(theta)),
        observe=lambda state: predict(state[0]),
        width=width,
        key=jax.random.key(0),
        replicates=replicates,
        progress=False,
        **options,
    )


# Whether the norm is above the bound is not sure within the cautious errors of one replicate.
@pytest.mark.filterwarnings("ignore:A record hangs on a decision")
@pytest.mark.parametrize(
    ("name", "hidden"),
    [
        (name, hidden)
        for name in OPTIMIZERS
        for hidden in (1, 2, 3)
        if name not in {*BEFORE, *VECTORS} or hidden > 1
    ],
)
def test_beside_networks(name, hidden):
    """Distance of single networks like ``n^(-1/2)``; their mean within the errors, at a level of
    10^-4 for the 16 numbers of the last steps together."""
    limit = run(name, hidden, tp.inf, 4, samples=2048)
    distances, widths = [], WIDTHS.get(name, (128, 512, 2048))
    for width in widths:
        networks = run(name, hidden, width, 8)
        records = networks.replicates.observations - limit.observations
        distances.append(np.sqrt(np.mean(records[:, 1:] ** 2)))
    slope = np.polyfit(np.log(widths), np.log(distances), 1)[0]
    assert slope == pytest.approx(-0.5, abs=0.2)
    moved = np.sqrt(np.mean((limit.observations[-1] - limit.observations[0]) ** 2))
    assert moved > 0.1 and distances[-1] < 0.1 * moved
    last = networks.observations[1:] - limit.observations[1:]
    error = np.hypot(networks.stderr.observations[1:], limit.stderr.observations[1:])
    # Student's t of 7 degrees of freedom, and a bias of order 1/n.
    assert np.all(np.abs(last) < 7.5 * error + 4 / widths[-1])


NATURAL = {
    "adamw": optax.adamw(1.0, eps=1e-3, weight_decay=0.3),
    "lion": optax.lion(1.0),
    "sign": optax.sign_sgd(1.0),
}


@pytest.mark.parametrize(
    ("name", "depth", "activation"),
    [
        ("adamw", 1, "tanh"),
        ("adamw", 2, "tanh"),
        ("adamw", 2, "relu"),
        ("lion", 2, "tanh"),
        ("sign", 2, "relu"),
    ],
)
def test_natural_units_beside_networks(name, depth, activation):
    """muP of `tplimit.parameterizations` with an optimizer of constants of order one. Of ReLU
    networks the entries of units that are never alive at one point do not move."""
    mup, model = tp.parameterizations.mup, tp.mlp(depth, inputs=3, activation=activation)
    predict = mup.predict(model)
    step = mup.step(model, "mse", 0.1, NATURAL[name])

    def records(width, replicates):
        return tp.train(
            step,
            mup.theta(model),
            [(X, Y)] * STEPS,
            observe=lambda state: predict(state, X),
            width=width,
            key=jax.random.key(0),
            replicates=replicates,
            progress=False,
        )

    limit, distances = records(tp.inf, 4), []
    for width in (128, 512, 2048):
        networks = records(width, 8)
        moves = networks.replicates.observations - limit.observations
        distances.append(np.sqrt(np.mean(moves[:, 1:] ** 2)))
    slope = np.polyfit(np.log([128, 512, 2048]), np.log(distances), 1)[0]
    assert slope == pytest.approx(-0.5, abs=0.2)
    last = networks.observations[1:] - limit.observations[1:]
    error = np.hypot(networks.stderr.observations[1:], limit.stderr.observations[1:])
    assert np.all(np.abs(last) < 7.5 * error + 4 / 2048)


def test_fewer_samples_by_default():
    """2^14 particles have 2^28 pairs: a run that is not told how many takes 2^11."""
    limit = run("adam", 2, tp.inf, 1)
    few = run("adam", 2, tp.inf, 1, samples=2**11)
    np.testing.assert_array_equal(limit.observations, few.observations)


def test_no_room():
    with pytest.raises(tp.RoomError, match="A function of pairs of 262144") as caught:
        run("adam", 2, tp.inf, 1, samples=2**18)
    assert "samples=2048" in str(caught.value)


def test_resumed(tmp_path):
    """Functions of pairs are saved and read."""
    whole = run("adam", 2, tp.inf, 1, samples=256)
    checkpoint = tp.Checkpoint(tmp_path / "run", every=2)
    saved = run("adam", 2, tp.inf, 1, samples=256, checkpoint=checkpoint)
    np.testing.assert_array_equal(saved.observations, whole.observations)


def test_moments_of_units_that_are_never_alive_together_stay_zero():
    """Of ReLU networks a third of the entries; round-off there would be divided by ``eps``."""
    mup, model = tp.parameterizations.mup, tp.mlp(2, inputs=3, activation="relu")
    step = tp.limit(mup.step(model, "mse", 0.1, optax.adam(1.0)))
    state = tp.sample(mup.theta(model), jax.random.key(0), width=tp.inf, samples=256)
    for _ in range(4):
        state, _ = step(state, (X, Y))

    def moved(state):
        first, second = (moments["W2"] for moments in state["optimizer"][0][1:])
        zero = second < 1e-30
        return jnp.mean(zero.astype(float)), jnp.mean(jnp.where(zero, jnp.abs(first), 0.0))

    share, moment = tp.limit(moved)(state)
    assert 0.2 < share < 0.5 and moment == 0
