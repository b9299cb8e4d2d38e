"""One of several processes that train together: `python several_processes.py ADDRESS COUNT NUMBER`.

Prints its records as JSON. Run by `test_sharding.py`, which also imports what is trained.
"""

import json
import sys

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

import tplimit as tp

N = tp.Width("n")
THETA = {"u": tp.normal((2, N)), "w": tp.normal((N, N), std=N**-0.5), "v": tp.normal((N,))}
X = np.array([[1.0, 0.5], [-0.2, 0.7]], np.float32)
Y = np.array([1.0, -1.0], np.float32)


def predict(theta, x):
    hidden = jnp.tanh(jnp.tanh(x @ theta["u"]) @ theta["w"])
    return hidden @ theta["v"] / theta["v"].shape[0]


def step(theta, batch):
    x, y = batch
    loss, gradient = jax.value_and_grad(lambda t: jnp.mean((predict(t, x) - y) ** 2))(theta)
    n = theta["v"].shape[0]
    gradient = {k: g if k == "w" else n * g for k, g in gradient.items()}
    return jax.tree.map(lambda w, g: w - 0.1 * g, theta, gradient), loss


def observe(theta):
    return predict(theta, X)


def run(mesh, **options):
    return tp.train(
        step, THETA, [(X, Y)] * 4, width=tp.inf, samples=256, replicates=2, key=jax.random.key(5),
        observe=observe, mesh=mesh, progress=False, **options,
    )  # fmt: skip


def main(address, count, number):
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(address, int(count), int(number))
    mesh = Mesh(np.array(jax.devices()), ("particles",))
    trained = run(mesh)
    stack = trained.state["w"]._revealed.bank.stores[0].X
    try:
        run(mesh, checkpoint="refused")
    except ValueError as error:
        refusal = str(error)
    found = {
        "devices": [len(jax.local_devices()), mesh.size],
        "outputs": trained.replicates.outputs.tolist(),
        "observations": trained.replicates.observations.tolist(),
        "mean": trained.outputs.tolist(),
        "directions": list(trained.directions),
        "parts": [list(s.data.shape) for s in stack.addressable_shards],
        "stack": list(stack.shape),
        "refusal": refusal,
    }
    print(json.dumps(found))
    jax.distributed.shutdown()


if __name__ == "__main__":
    main(*sys.argv[1:])
