"""`tp.observables` on networks by explicit matrices, in the limit beside networks, closed forms.

Limits are compared with networks in standard errors, all entries of a test together by their
largest |z|: false-alarm rate 1e-3 (Bonferroni, Student's t), and a bias of 6/n of each entry's size
is allowed for.
"""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import networks, statistics

import tplimit as tp
from tplimit import observables as obs

NET = networks.mup("tanh", hidden=2, eta=1.2)
X, Y = jnp.asarray(networks.POINTS), jnp.asarray([1.0, -1.0, 0.5])
KEY = jax.random.key(4)


def rates(theta):
    n = theta["v"].shape[0]
    return {"U": 1.2 * n, "W": 1.2, "v": 1.2 * n}


def features(theta):
    return jnp.tanh(X @ theta["U"] / jnp.sqrt(3.0)) @ theta["W"][0]


def head(theta):
    return lambda h: jnp.tanh(h) @ theta["v"] / theta["v"].shape[0]


KERNEL = obs.tangent_kernel(NET.predict, rates)
GAUSS_NEWTON = obs.gauss_newton_sharpness(NET.predict, "mse", rates)


def everything(before, now):
    scale = {"U": 1.0, "W": now["v"].shape[0] ** 2, "v": 1.0}
    return numbers(before, now) | {"weights": obs.movement(now, before, scale)}


def numbers(before, now):
    h, tangent = features(now), KERNEL(now, X)
    feature = obs.feature_kernel(h)
    return {
        "feature": feature,
        "gradient": obs.gradient_kernel(head(now), h),
        "tangent": tangent,
        "aligned": obs.alignment(feature, obs.target_kernel(Y)),
        "cosine": obs.alignment(tangent, obs.target_kernel(Y), centred=False),
        "kept": obs.alignment(tangent, KERNEL(before, X), centred=False),
        "largest": obs.largest_eigenvalue(tangent) / len(X),
        "gauss_newton": GAUSS_NEWTON(now, X, Y),
        "moved": obs.movement(h, features(before)),
    }


def trained(width, replicates, steps=3, **options):
    return tp.train(
        NET.step, NET.theta, [(X, Y)] * steps, width=width, key=KEY, replicates=replicates,
        keep=[0, -1], progress=False, **options,
    )  # fmt: skip


def compare(limit, finite, width):
    """Largest excess over what chance and 6/n allow, as a share of it; entries are leaves."""
    one, two = (
        np.concatenate(
            [np.reshape(leaf, (len(leaf), -1)) for leaf in jax.tree.leaves(r.replicates)], axis=1
        )
        for r in (limit, finite)
    )
    error = np.hypot(statistics.standard_error(one), statistics.standard_error(two))
    bound = statistics.threshold(one.shape[1], degrees=len(one) - 1) * error
    bound = bound + 6 / width * (np.abs(two.mean(axis=0)) + 0.1)
    return np.max(np.abs(one.mean(axis=0) - two.mean(axis=0)) / bound)


def test_the_limit_beside_networks():
    finite = trained(256, 32).evaluate(everything, step=[0, -1])
    limit = trained(tp.inf, 6, samples=2**11).evaluate(everything, step=[0, -1])
    assert compare(limit, finite, 256) < 1
    # The comparison sees something: features and kernels have moved.
    assert limit.mean["moved"] > 0.01 < limit.mean["weights"]["W"][0]
    assert limit.mean["kept"] < 0.999
    assert np.all(np.asarray(limit.stderr["tangent"]) < 0.05)


def test_deferred_networks():
    run = trained(tp.Deferred(64), 16)
    finite = trained(64, 64).evaluate(numbers, step=[0, -1])
    assert compare(run.evaluate(numbers, step=[0, -1]), finite, 1e9) < 1
    with pytest.raises(tp.UnsupportedOperationError, match="Use a dense network"):
        run.evaluate(everything, step=[0, -1])


# --- by explicit matrices


def flat_jacobian(theta, f=NET.predict):
    """Jacobian (outputs, parameters), and the rate of each parameter."""
    jacobian = jax.jacrev(f)(theta, X)
    every = jax.tree.map(
        lambda leaf, rate: jnp.full(leaf.shape, rate),
        theta, jax.tree.broadcast(rates(theta), theta),
    )  # fmt: skip
    rows = [leaf.reshape(len(X), -1) for leaf in jax.tree.leaves(jacobian)]
    return np.concatenate(rows, axis=1), np.concatenate(
        [np.ravel(leaf) for leaf in jax.tree.leaves(every)]
    )


def test_a_network_by_matrices():
    theta = tp.sample(NET.theta, KEY, width=12)
    J, r = flat_jacobian(theta)
    np.testing.assert_allclose(KERNEL(theta, X), J * r @ J.T, rtol=2e-4)
    np.testing.assert_allclose(KERNEL(theta, X, X[:1]), (J * r @ J.T)[:, :1], rtol=2e-4)
    h = features(theta)
    g = jax.vmap(jax.grad(lambda one: head(theta)(one[None])[0]))(h)
    np.testing.assert_allclose(obs.feature_kernel(h, h[:2]), h @ h[:2].T / 12, rtol=1e-4)
    np.testing.assert_allclose(obs.gradient_kernel(head(theta), h), 12 * g @ g.T, rtol=1e-4)
    # The tangent kernel of one matrix is the product of the two kernels.
    only = obs.tangent_kernel(NET.predict, {"U": 0.0, "W": 1.0, "v": 0})(theta, X)
    below = obs.feature_kernel(jnp.tanh(X @ theta["U"] / jnp.sqrt(3.0)))
    product = below * obs.gradient_kernel(head(theta), h)
    np.testing.assert_allclose(only, product, rtol=1e-4)


def test_alignment_by_its_definition():
    random = np.random.default_rng(0)
    A, B = (a @ a.T for a in random.normal(size=(2, 5, 3)))
    H = np.eye(5) - 1 / 5
    for centre, centred in ((H, True), (np.eye(5), False)):
        K, L = (centre @ M @ centre for M in (A, B))
        exact = np.trace(K @ L) / np.linalg.norm(K) / np.linalg.norm(L)
        found = obs.alignment(A, B, centred=centred)
        np.testing.assert_allclose(found, exact, rtol=1e-5)
    y = random.normal(size=(5, 2))
    np.testing.assert_allclose(obs.target_kernel(y), y @ y.T, rtol=1e-5)


def classes(theta, x):
    """Three outputs of the network, that share all but the readout's rows."""
    h = jnp.tanh(x @ theta["U"] / jnp.sqrt(3.0)) @ theta["W"][0]
    return jnp.tanh(h) @ theta["v"] / theta["v"].shape[0]


@pytest.mark.parametrize("loss", ["mse", "cross_entropy"])
def test_sharpness_by_the_hessian(loss, float64):
    """A lower bound that grows with the steps; the Gauss-Newton part exactly."""
    theta = tp.sample(networks.mup("tanh", hidden=2, outputs=3).theta, KEY, width=6)
    theta = jax.tree.map(lambda a: 1.5 * a.astype(jnp.float64), theta)
    y = jnp.asarray([[0.0, 0.5, 0.5], [1.0, 0.0, 0.0], [0.2, 0.3, 0.5]])
    loss_of = getattr(tp.parameterizations, loss)
    leaves, tree = jax.tree.flatten(theta)
    sizes = np.cumsum([leaf.size for leaf in leaves])[:-1]

    def of_flat(flat, x):
        parts = jnp.split(flat, sizes)
        parts = [p.reshape(leaf.shape) for p, leaf in zip(parts, leaves, strict=True)]
        return classes(jax.tree.unflatten(tree, parts), x)

    flat = jnp.concatenate([leaf.ravel() for leaf in leaves])
    roots = jax.tree.map(
        lambda leaf, rate: jnp.full(leaf.size, rate**0.5),
        theta, jax.tree.broadcast(rates(theta), theta),
    )  # fmt: skip
    r = jnp.concatenate(jax.tree.leaves(roots))
    hessian = jax.hessian(lambda flat: loss_of(of_flat(flat, X), y))(flat)
    exact = np.linalg.eigvalsh(np.asarray(r[:, None] * hessian * r))[-1]
    found = [obs.sharpness(classes, loss, rates, steps=k)(theta, X, y) for k in (1, 3, 8, 12)]
    assert all(a <= b + 1e-6 for a, b in itertools.pairwise(found))
    assert found[-1] <= exact * (1 + 1e-6)
    np.testing.assert_allclose(found[-2:], exact, rtol=0.01)
    J = jax.jacrev(of_flat)(flat, X).reshape(9, -1) * r
    curvature = jax.hessian(lambda f: loss_of(f, y))(classes(theta, X)).reshape(9, 9)
    exact = np.linalg.eigvalsh(np.asarray(J.T @ curvature @ J))[-1]
    found = obs.gauss_newton_sharpness(classes, loss, rates)(theta, X, y)
    np.testing.assert_allclose(found, exact, rtol=1e-5)


# --- closed forms


def test_sharpness_of_a_linear_network(float64):
    """At initialisation the Hessian acts on few vectors of the limit, as a small matrix.

    With f = x·(U v)/n, z_U = α ⊗ v + Σ_b B_b ⊗ U_b and z_v = γ v + Σ_b δ_b U_b, rows of U and v
    being orthonormal, S = Σ x x^T / P and q = -Σ y x / P it maps

        α -> S (α + δ) + q γ,    B -> q δ^T,    γ -> q·α,    δ -> S (α + δ) + B^T q.
    """
    d, n = 2, tp.Width("n")
    x = jnp.asarray([[1.0, 0.4], [-0.3, 0.9], [0.2, -1.1]])
    theta = {"U": tp.normal((d, n)), "v": tp.normal((n,))}
    f = lambda t, x: x @ t["U"] @ t["v"] / t["v"].shape[0]
    rate = lambda t: t["v"].shape[0]
    S, q = np.asarray(x.T @ x) / 3, -np.asarray(Y @ x) / 3

    def maps(z):
        a, B, c, e = z[:d], z[d : d + d * d].reshape(d, d), z[d + d * d], z[-d:]
        return np.concatenate(
            [S @ (a + e) + q * c, np.outer(q, e).ravel(), [q @ a], S @ (a + e) + B.T @ q]
        )

    exact = np.linalg.eigvalsh(np.array([maps(e) for e in np.eye(d + d * d + 1 + d)]))[-1]
    limit = tp.sample(theta, KEY, width=tp.inf, samples=256)
    found = tp.limit(obs.sharpness(f, "mse", rate, steps=4))(limit, x, Y)
    np.testing.assert_allclose(found, exact, rtol=2e-3)
    assert found <= exact * (1 + 1e-6)
    gauss_newton = tp.limit(obs.gauss_newton_sharpness(f, "mse", rate))(limit, x, Y)
    np.testing.assert_allclose(gauss_newton, 2 * np.linalg.eigvalsh(S)[-1], rtol=1e-6)
    assert exact > 1.02 * gauss_newton


def test_the_kernel_of_a_kernel_regime_stays():
    """It is the one of `tp.ntk`, and the movement of features is of order 1/n."""
    p, model = tp.parameterizations.ntk, tp.mlp(1, inputs=3)
    apply = p.predict(model)
    run = tp.train(
        p.step(model, "mse", 0.5), p.theta(model), [(X, Y)] * 2, width=tp.inf, key=KEY,
        samples=2**10, replicates=4, keep=[0, -1], progress=False,
    )  # fmt: skip
    kernel = obs.tangent_kernel(apply)
    exact = tp.ntk(apply, p.theta(model), X)
    assert exact.method == "closed_form"
    before, now = (run.evaluate(lambda t: kernel(t, X), step=step) for step in (0, -1))
    for found in (before, now):
        z = (found.mean - exact.value) / (found.stderr + 1e-5)
        assert np.abs(z).max() < statistics.threshold(9, degrees=3)
    kept = run.evaluate(lambda a, b: obs.alignment(kernel(a, X), kernel(b, X)), step=[0, -1])
    np.testing.assert_allclose(kept.mean, 1, atol=1e-5)


def test_density_of_preactivations():
    """A Gaussian at initialisation, blurred by the bandwidth; of networks the same."""
    h = tp.particles(lambda t: X @ t["U"] / jnp.sqrt(3.0))
    draws = np.array(
        [
            h(tp.sample(NET.theta, key, width=tp.inf, samples=2**12))
            for key in jax.random.split(KEY, 4)
        ]
    )
    at, values = obs.density(draws, at=np.linspace(-2, 2, 9), bandwidth=0.2)
    variance = np.sum(np.asarray(X) ** 2, axis=1) / 3 + 0.04
    exact = np.exp(-0.5 * at**2 / variance[:, None]) / np.sqrt(2 * np.pi * variance[:, None])
    assert values.shape == (4, 3, 9)
    np.testing.assert_allclose(values.mean(axis=0), exact, atol=4e-3)
    units = np.array([h(tp.sample(NET.theta, key, width=512)) for key in jax.random.split(KEY, 40)])
    _, finite = obs.density(units, at=at, bandwidth=0.2)
    z = (finite.mean(axis=0) - exact) / statistics.standard_error(finite)
    assert np.abs(z).max() < statistics.threshold(z.size, degrees=39)
    places, p = obs.density(draws[:, 0])
    np.testing.assert_allclose(np.trapezoid(p, places, axis=-1), 1, atol=1e-2)


# --- what is refused


def test_wrong_requests():
    h, square = jnp.ones((3, 4)), jnp.eye(3)
    for call, text in (
        (lambda: obs.feature_kernel(h[0]), r"h of shape \(4,\) is not \(points, width\)"),
        (lambda: obs.feature_kernel(h, h[:, :2]), "of two widths"),
        (lambda: obs.gradient_kernel(lambda h: h, h), r"shape \(3, 4\) for 3 points"),
        (lambda: obs.movement(h, h[:2]), "shapes differ"),
        (lambda: obs.alignment(h, square), "is no kernel over points"),
        (lambda: obs.alignment(square, square[:2, :2]), "different points"),
        (lambda: obs.target_kernel(square[None]), "neither"),
        (lambda: obs.largest_eigenvalue(h), "is not square"),
        (lambda: obs.sharpness(NET.predict, "mse", steps=0), "steps=0 is out of range"),
        (lambda: obs.sharpness(NET.predict, "hinge"), "unknown loss 'hinge'"),
        (lambda: obs.tangent_kernel(lambda t, x: x * t, -1.0)(1.0, square), "is negative"),
        (lambda: obs.tangent_kernel(lambda t, x: x * t["a"], {"b": 1.0})({"a": 1.0}, h), "a"),
        (lambda: obs.density(np.maximum(np.linspace(-1, 1, 100), 0)), "50% of the draws are 0"),
        (lambda: obs.density([1.0, np.nan]), "not finite"),
        (lambda: obs.density([1.0]), "less than two"),
        (lambda: obs.density([1.0, 2.0], bandwidth=0), "bandwidth=0.0 is not positive"),
        (lambda: obs.plot_kernels(square), "are not"),
        (lambda: obs.plot_kernels(square[None], ["a", "b"]), "2 titles for 1 kernels"),
        (lambda: obs.plot_sharpness({"a": square[None]}), "neither"),
    ):
        with pytest.raises(ValueError, match=text):
            call()


def test_wrong_powers_of_the_width_are_told():
    limit = tp.sample(NET.theta, KEY, width=tp.inf, samples=2**12)
    with pytest.raises(tp.DivergenceError, match=r"n\^1"):
        tp.limit(lambda t: obs.gradient_kernel(head(t), features(t), power=2))(limit)
    found = tp.leading(lambda t: obs.gradient_kernel(head(t), features(t), power=0))(limit)
    assert np.all(found.exponent == -1)
    with pytest.raises(tp.LimitError, match=r"opaque|limit value"):
        obs.feature_kernel(limit["U"])


# --- pictures


def test_pictures_take_and_return_axes(tmp_path):
    from matplotlib.figure import Figure

    first, second = Figure().subplots(1, 2)
    random = np.random.default_rng(0)
    draws = random.normal(size=(4, 256))
    assert obs.plot_density(draws, {"n = 64": draws[:, :64]}, axes=first) is first
    given = {"n = ∞": np.linspace([1, 0.9, 1.1], [2, 1.8, 2.2], 5).T, "n = 64": np.ones(5)}
    assert obs.plot_sharpness(given, axes=second, threshold=None) is second
    axes = obs.plot_kernels(random.normal(size=(3, 4, 4)), ["0", "5", "10"])
    assert len(axes) == 3
    assert len({image.get_clim() for a in axes for image in a.get_images()}) == 1
    axes[0].figure.savefig(tmp_path / "kernels.png")
    first.figure.savefig(tmp_path / "others.png")


def test_spectra_of_networks_beside_the_limit(tmp_path):
    """Lines are geometric means over replicates, bands their intervals; round-off is left out."""
    random = np.random.default_rng(0)
    factors = random.normal(size=(5, 6, 4))  # of rank 4
    kernels = np.einsum("rik,rjk->rij", factors, factors)
    kernels[0, 0] *= 1 + 1e-5  # not quite symmetric: sampled and rounded
    axes = obs.plot_spectrum(kernels, {"n = 4": np.diag([4.0, 2.0, 1.0])}, label="limit")
    drawn = [
        line
        for line in axes.lines
        if line.get_marker() not in ("None", "") and len(line.get_xdata())
    ]
    logs = np.log(np.linalg.eigvalsh(kernels)[:, :1:-1])
    np.testing.assert_allclose(drawn[0].get_ydata(), np.exp(logs.mean(axis=0)), rtol=1e-4)
    np.testing.assert_allclose(drawn[1].get_ydata(), [4, 2, 1])
    from scipy import stats

    vertices = axes.collections[0].get_paths()[0].vertices
    first = np.log(vertices[np.isclose(vertices[:, 0], 1), 1])
    half = stats.t.ppf(0.975, 4) * logs[:, 0].std(ddof=1) / 5**0.5
    np.testing.assert_allclose(
        [first.min(), first.max()], logs[:, 0].mean() + half * np.array([-1, 1]), rtol=1e-3
    )
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("number", "eigenvalue")
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["limit", "n = 4"]
    assert axes.get_legend().get_title().get_text() == "bands: 95 % intervals"
    axes.figure.savefig(tmp_path / "spectrum.png")
    for wrong, text in (
        (np.ones((2, 3)), "neither"),
        (np.triu(np.ones((3, 3))), "not symmetric"),
        (np.full((2, 2), np.nan), "not finite"),
        (-np.eye(2), "no positive"),
    ):
        with pytest.raises(ValueError, match=text):
            obs.plot_spectrum(wrong)


def test_figures_are_one_column_wide():
    for axes in (
        obs.plot_spectrum(np.eye(3)),
        obs.plot_sharpness({"a": np.ones(3)}),
        obs.plot_density(np.random.default_rng(0).normal(size=99)),
        obs.plot_kernels(np.zeros((2, 3, 3)))[0],
    ):
        assert axes.figure.get_size_inches()[0] == pytest.approx(3.3)
    (bar,) = [a for a in axes.figure.axes if a.get_ylabel() == "kernel"]
    assert bar.get_ylabel() == "kernel"
