"""A small problem of training in function space: kernels of features, targets, optimizers."""

import jax.numpy as jnp
import numpy as np
import optax

RNG = np.random.default_rng(8)
TRAIN, TEST, FEATURES = 12, 5, 40
PHI = RNG.normal(size=(TRAIN + TEST, FEATURES)) / FEATURES**0.5
K = PHI @ PHI.T
TT, ST = K[:TRAIN, :TRAIN], K[TRAIN:, :TRAIN]
Y = RNG.normal(size=(TRAIN, 3))
F0 = RNG.normal(size=(TRAIN + TEST, 3))
SIGNS = np.sign(Y[:, 0])
CLASSES = Y.argmax(axis=1)


def huber(f, y):
    return jnp.mean(optax.huber_loss(f, y))


#: Loss, targets, and whether outputs have an axis.
LOSSES = {
    "mse": ("mse", Y, True),
    "one output": ("mse", Y[:, 0], False),
    "logistic": ("logistic", SIGNS, False),
    "cross-entropy": ("cross_entropy", CLASSES, True),
    "probabilities": ("cross_entropy", np.eye(3)[CLASSES], True),
    "user's own": (huber, Y, True),
}
#: Optimizers that are linear in the gradients.
LINEAR = {
    "none": None,
    "sgd": optax.sgd(1.0),
    "momentum": optax.sgd(1.0, momentum=0.8),
    "Nesterov": optax.sgd(1.0, momentum=0.8, nesterov=True),
    "weight decay": optax.chain(optax.add_decayed_weights(0.05), optax.sgd(1.0)),
    "schedule": optax.sgd(optax.cosine_decay_schedule(1.0, 20), momentum=0.5),
    "accumulated": optax.chain(optax.apply_every(3), optax.scale(-1.0)),
    "averaged": optax.chain(optax.ema(0.7), optax.sgd(1.0)),
    "injected": optax.inject_hyperparams(optax.sgd)(optax.linear_schedule(1.0, 0.2, 9)),
}
NONLINEAR = {
    "adam": optax.adam(1.0),
    "adam with a large epsilon": optax.adam(1.0, eps=1e3),
    "rmsprop": optax.rmsprop(1.0),
    "lion": optax.lion(1.0),
    "sign": optax.sign_sgd(1.0),
    "clip": optax.chain(optax.clip(1e-4), optax.sgd(1.0)),
    "clip rarely": optax.chain(optax.clip_by_global_norm(1e5), optax.sgd(1.0)),
    "normalised": optax.chain(optax.normalize_by_update_norm(), optax.sgd(1.0)),
    # Linear, but not the same for all parameters, or not without memory of chance.
    "centralised": optax.chain(optax.centralize(), optax.sgd(1.0)),
    "noise": optax.chain(optax.add_noise(0.1, 0.5, key=0), optax.sgd(1.0)),
    "Adam later": optax.chain(
        optax.conditionally_transform(optax.scale_by_adam(), lambda step: step > 15),
        optax.sgd(1.0),
    ),
}


def linear_kernel(a, b):
    return a @ b.T
