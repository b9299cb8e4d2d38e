"""The oracles agree with each other and with published numbers, before anything is tested by them.

Statistical tests bound the largest |z| by `statistics.threshold`: each fails by chance with
probability `SUITE_FALSE_ALARM`. Seeds are fixed.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import dense, dmft, golden, integrable, linear, statistics

ROUND_OFF = 1e-12


def regression_data(steps=10, batch=3, inputs=4, outputs=None, seed=0):
    """Minibatches that differ per step, and points of which the last was also trained on."""
    random = np.random.default_rng(seed)
    x = random.standard_normal((steps, batch, inputs))
    y = random.standard_normal((steps, batch) if outputs is None else (steps, batch, outputs))
    points = np.vstack([random.standard_normal((3, inputs)), x[0, :1]])
    return list(zip(x, y, strict=True)), points


class TestLinear:
    @pytest.mark.parametrize(("eta", "gamma"), linear.TWO_LAYER_GOLDEN)
    def test_recursion_has_its_golden_numbers(self, eta, gamma):
        run = linear.two_layer_recursion(eta, gamma, 20)
        for step, (f, kernel) in linear.TWO_LAYER_GOLDEN[eta, gamma].items():
            assert abs(run.f[step] - f) < 1e-8
            assert kernel is None or abs(run.kernel[step] - kernel) < 1e-8

    @pytest.mark.parametrize(("eta", "gamma"), [(0.05, 1.0), (0.003, 0.25), (1.2, 0.5)])
    def test_one_layer_follows_the_recursion(self, eta, gamma):
        x = np.random.default_rng(1).standard_normal((1, 3))
        x *= np.sqrt(3) / np.linalg.norm(x)
        run = linear.deep_linear(
            1, [(x, [1.0])] * 20, x, eta=eta * gamma**2, readout_multiplier=1 / gamma
        )
        expected = linear.two_layer_recursion(eta, gamma, 20)
        np.testing.assert_allclose(run.f[:, 0], expected.f, rtol=0, atol=ROUND_OFF)

    @pytest.mark.parametrize("outputs", [None, 2])
    @pytest.mark.parametrize("batch", [1, 3, 8])
    def test_one_layer_is_a_finite_network(self, batch, outputs):
        batches, points = regression_data(batch=batch, outputs=outputs)
        stds = {"first_std": 0.8, "readout_std": 1.3}
        run = linear.deep_linear(1, batches, points, eta=0.4, **stds)
        expected = linear.finite_representation(batches, points, eta=0.4, **stds)
        assert np.abs(expected.f[-1]).max() > 0.1
        np.testing.assert_allclose(run.f, expected.f, rtol=0, atol=ROUND_OFF)
        np.testing.assert_allclose(run.losses, expected.losses, rtol=0, atol=ROUND_OFF)

    def test_momentum_and_decay_of_the_finite_representation(self):
        """Against wide networks trained by the same optimizer, hidden units written out."""
        batches, points = regression_data(steps=5)
        options = {"eta": 0.3, "momentum": 0.6, "weight_decay": 0.1}
        limit = linear.finite_representation(batches, points, **options)
        x, y = (jnp.asarray(np.stack(part)) for part in zip(*batches, strict=True))

        def predict(state, points):
            (first, readout), _ = state
            return points @ first @ readout / 2 / readout.shape[0]

        def sampler(key, width):
            keys = jax.random.split(key)
            theta = (jax.random.normal(keys[0], (4, width)), jax.random.normal(keys[1], (width,)))
            return theta, jax.tree.map(jnp.zeros_like, theta)

        def step(state, batch):
            theta, velocity = state
            n = theta[1].shape[0]

            def loss(t):
                return 0.5 * jnp.mean((predict((t, None), batch[0]) - batch[1]) ** 2)

            value, gradient = jax.value_and_grad(loss)(theta)
            velocity = jax.tree.map(
                lambda m, g, p: 0.6 * m + n * g + 0.1 * p, velocity, gradient, theta
            )
            return (jax.tree.map(lambda p, m: p - 0.3 * m, theta, velocity), velocity), value

        runs = dense.train_dense(
            predict, sampler, step, (x, y), points, widths=[2048], seeds=60, x64=True
        )
        z = statistics.z_score_to(runs[2048].f, limit.f)
        assert np.abs(z).max() < statistics.threshold(z.size, degrees=59)

    @pytest.mark.parametrize("hidden", [1, 2, 3, 4])
    def test_observing_changes_nothing(self, hidden):
        """Extra, repeated and dependent points are combinations of what is already known."""
        batches, points = regression_data(batch=2)
        plain = linear.deep_linear(hidden, batches, points, eta=0.3)
        mixed = np.vstack([points, points[0], points[0] - 2 * points[1], 0 * points[0]])
        more = linear.deep_linear(hidden, batches, mixed, eta=0.3)
        expected = np.concatenate(
            [plain.f, plain.f[:, :1], plain.f[:, :1] - 2 * plain.f[:, 1:2], 0 * plain.f[:, :1]], 1
        )
        np.testing.assert_allclose(more.f, expected, rtol=0, atol=ROUND_OFF)

    @pytest.mark.parametrize("hidden", [1, 2, 3, 4])
    def test_repeated_samples(self, hidden):
        """A batch given twice over has the same mean loss, at any tolerance near round-off."""
        batches, points = regression_data(batch=2)
        plain = linear.deep_linear(hidden, batches, points, eta=0.3)
        twice = [(np.vstack([x, x]), np.concatenate([y, y])) for x, y in batches]
        for tolerance in (0.0, 1e-14, 1e-13):
            run = linear.deep_linear(hidden, twice, points, eta=0.3, tolerance=tolerance)
            np.testing.assert_allclose(run.f, plain.f, rtol=0, atol=ROUND_OFF)
            np.testing.assert_allclose(run.losses, plain.losses, rtol=0, atol=ROUND_OFF)

    @pytest.mark.parametrize("hidden", [1, 2, 3])
    def test_agrees_with_dense_networks(self, hidden):
        batches, points = regression_data(steps=6)
        limit = linear.deep_linear(hidden, batches, points, eta=0.2)
        widths = {128: 60, 256: 40}
        f, error = statistics.extrapolate(
            {
                n: np.stack(
                    [
                        linear.dense_linear(hidden, batches, points, eta=0.2, width=n, seed=s).f
                        for s in range(1000 * n, 1000 * n + seeds)
                    ]
                )
                for n, seeds in widths.items()
            }
        )
        z = (f - limit.f) / error
        assert np.abs(z).max() < statistics.threshold(z.size)

    def test_correction_matters(self):
        batches, points = regression_data()
        right = linear.deep_linear(3, batches, points, eta=0.1)
        wrong = linear.deep_linear(3, batches, points, eta=0.1, correction=False)
        assert np.abs(right.f - wrong.f).max() > 0.1

    @pytest.mark.slow
    @pytest.mark.parametrize("hidden", [1, 2, 3, 4])
    def test_agrees_with_dense_networks_of_width_4096(self, hidden):
        batches, points = regression_data()
        limit = linear.deep_linear(hidden, batches, points, eta=0.1)
        runs = [
            linear.dense_linear(
                hidden, batches, points, eta=0.1, width=4096, seed=s, precision=np.float32
            ).f
            for s in range(16)
        ]
        z = statistics.z_score_to(runs, limit.f)
        assert np.abs(z).max() < statistics.threshold(z.size, degrees=15)


class TestDmft:
    def test_golden_mup(self):
        runs = [
            dmft.mup_limit(golden.BATCHES, golden.POINTS, samples=200_000, seed=seed).f
            for seed in range(4)
        ]
        assert np.abs(runs[0][0]).max() < 3e-3
        mean = np.mean(runs, axis=0)[1:]
        assert np.abs(mean - golden.table(golden.MUP_TANH)).max() < golden.MUP_TANH.error
        np.testing.assert_allclose(mean, golden.table(golden.MUP_TANH_REFINED), rtol=0, atol=3e-3)

    def test_without_correction_is_wrong_as_published(self):
        run = dmft.mup_limit(golden.BATCHES, golden.POINTS, correction=False)
        known = golden.MUP_TANH_WITHOUT_CORRECTION
        assert np.abs(run.f[1] - golden.table(known)[0]).max() < known.error
        assert np.abs(run.f[1] - golden.table(golden.MUP_TANH)[0]).min() > 0.1

    @pytest.mark.parametrize("hidden", [1, 2, 3, 4])
    def test_linear_networks_are_exact(self, hidden):
        """With matched noise the particles reproduce the algebra of sources exactly."""
        batches, points = regression_data(steps=5)
        x, y = (np.stack(part) for part in zip(*batches, strict=True))
        expected = linear.deep_linear(hidden, batches, points, eta=0.2)
        run = dmft.mup_limit(
            (x, y),
            points,
            hidden=hidden,
            activation="linear",
            eta=0.2,
            samples=500,
            input_scale=0.5,
            bias=False,
        )
        np.testing.assert_allclose(run.f, expected.f, rtol=0, atol=1e-9)
        np.testing.assert_allclose(run.losses, expected.losses, rtol=0, atol=1e-9)

    @pytest.mark.slow
    @pytest.mark.parametrize("activation", ["tanh", "relu"])
    def test_three_layers_with_batches_agree_with_dense_networks(self, activation):
        batches, points = regression_data(steps=4)
        data = tuple(np.stack(part) for part in zip(*batches, strict=True))
        limit = np.stack(
            [
                dmft.mup_limit(
                    data, points, hidden=3, activation=activation, eta=0.7, samples=10**5, seed=s
                ).f[1:]
                for s in range(8)
            ]
        )
        program = golden.mup(activation, hidden=3, eta=0.7, inputs=4)

        runs = dense.train_dense(
            program.predict,
            program.sampler,
            program.step,
            data,
            points,
            widths=(256, 512, 1024),
            seeds={256: 200, 512: 80, 1024: 40},
        )
        f, error = statistics.extrapolate({n: run.f[:, 1:] for n, run in runs.items()})
        z = (f - limit.mean(0)) / np.hypot(error, statistics.standard_error(limit))
        assert np.abs(z).max() < statistics.threshold(z.size, degrees=30)


def train(program, widths, seeds, batches=golden.BATCHES, **options):
    return dense.train_dense(
        program.predict,
        program.sampler,
        program.step,
        batches,
        golden.POINTS,
        widths=tuple(widths),
        seeds=seeds,
        first_step=program.first_step,
        **options,
    )


class TestGoldenPrograms:
    def test_mup_is_near_the_table(self):
        runs = train(golden.mup(), (512,), 48)[512].f[:, 1:]
        z = statistics.z_score_to(runs, golden.table(golden.MUP_TANH_REFINED))
        assert statistics.standard_error(runs).max() < 0.015
        assert np.abs(z).max() < statistics.threshold(z.size, degrees=47)

    def test_integrable_network_decays_as_predicted(self):
        measured = integrable.measure_ip((512,), seeds=24)[512]
        z = statistics.z_score_to(measured.runs, integrable.leading_coefficients())
        assert measured.stderr.max() < 0.04
        assert np.abs(z).max() < statistics.threshold(z.size, degrees=23)

    def test_first_coefficient_of_the_integrable_network(self):
        kernel = integrable.tanh_kernel(np.vstack([golden.INPUTS[:1], golden.POINTS]))
        expected = 2 * golden.TARGETS[0] * kernel[0, 1:]
        right = integrable.leading_coefficients()
        wrong = integrable.leading_coefficients(correction=False)
        np.testing.assert_allclose(right[0], expected, rtol=0, atol=ROUND_OFF)
        np.testing.assert_allclose(wrong[0], expected / 2, rtol=0, atol=ROUND_OFF)
        np.testing.assert_allclose(right, integrable.KNOWN, rtol=0, atol=1e-8)

    @pytest.mark.slow
    @pytest.mark.parametrize("known", golden.IP_LLR_FIRST_STEP[:2], ids=lambda k: f"L={k.hidden}")
    def test_ip_llr_with_relu_approaches_the_closed_form(self, known):
        """The bias falls as n^-1/2 at L = 2: fit f_n = f + b n^-1/2. At L = 3 only the approach."""
        program = golden.ip_llr(known.activation, known.hidden, known.eta)
        data = tuple(part[:1] for part in golden.BATCHES)
        seeds = {128: 400, 512: 100, 1024: 50}
        runs = train(program, seeds, seeds, batches=data, x64=True)
        expected = golden.table(known)[0]
        f, error = statistics.extrapolate({n: run.f[:, 1] for n, run in runs.items()}, power=0.5)
        assert (error / expected).max() < 0.15
        assert np.abs((f - expected) / error).max() < statistics.threshold(2, degrees=40)

    @pytest.mark.slow
    def test_smooth_ip_llr_approaches_the_table(self):
        known = golden.IP_LLR_LATER_STEPS[-1]
        program = golden.ip_llr(known.activation, known.hidden, known.eta)
        seeds = {128: 128, 512: 32}
        runs = train(program, seeds, seeds, x64=True)
        first = [statistics.rms(run.f[:, 1]) for run in runs.values()]
        assert first[1] < 0.7 * first[0]  # f_1 -> 0
        z = statistics.z_score_to(runs[512].f[:, 2:4], golden.table(known)[1:], known.error)
        assert np.abs(z).max() < statistics.threshold(z.size, degrees=31)

    @pytest.mark.slow
    def test_mup_at_width_4096(self):
        runs = train(golden.mup(), (4096,), 12)[4096].f[:, 1:]
        z = statistics.z_score_to(runs, golden.table(golden.MUP_TANH_REFINED))
        assert statistics.standard_error(runs).max() < 0.01
        assert np.abs(z).max() < statistics.threshold(z.size, degrees=11)

    @pytest.mark.slow
    def test_integrable_network_at_width_4096(self):
        measured = integrable.measure_ip((4096,), seeds=10)[4096]
        z = statistics.z_score_to(measured.runs, integrable.leading_coefficients())
        assert np.abs(z).max() < statistics.threshold(z.size, degrees=9)


class TestDense:
    @pytest.mark.slow
    def test_chunks_change_nothing(self):
        program = golden.mup()
        at_once = train(program, (16,), 7, x64=True)[16]
        in_turn = train(program, (16,), 7, x64=True, memory=3 * 2800)[16]
        np.testing.assert_allclose(at_once.f, in_turn.f, rtol=0, atol=ROUND_OFF)
        assert at_once.f.shape == (7, 5, 2)
        assert at_once.losses.shape == (7, 4)

    def test_jax_and_numpy_networks_have_one_law(self):
        batches, points = regression_data(steps=3, batch=2)
        by_hand = np.stack(
            [
                linear.dense_linear(2, batches, points, eta=0.3, width=16, seed=s).f
                for s in range(1500)
            ]
        )

        def predict(theta, x):
            n = theta["v"].shape[0]
            return x @ theta["U"] / x.shape[-1] ** 0.5 @ theta["W"] @ theta["v"] / n

        def sampler(key, width):
            keys = jax.random.split(key, 3)
            return {
                "U": jax.random.normal(keys[0], (4, width)),
                "W": jax.random.normal(keys[1], (width, width)) / width**0.5,
                "v": jax.random.normal(keys[2], (width,)),
            }

        def step(theta, batch):
            n = theta["v"].shape[0]

            def loss(t):
                return 0.5 * jnp.mean((predict(t, batch[0]) - batch[1]) ** 2)

            value, gradient = jax.value_and_grad(loss)(theta)
            rates = {"U": 0.3 * n, "W": 0.3, "v": 0.3 * n}
            return jax.tree.map(lambda p, r, g: p - r * g, theta, rates, gradient), value

        data = tuple(np.stack(part) for part in zip(*batches, strict=True))
        runs = dense.train_dense(
            predict, sampler, step, data, points, widths=[16], seeds=1500, x64=True
        )[16].f
        bound = statistics.threshold(3 * runs[0].size)
        assert np.abs(statistics.z_score(runs, by_hand)).max() < bound
        assert np.abs(statistics.variance_z_score(runs, by_hand)).max() < bound
        for t, point in np.ndindex(runs.shape[1:]):
            assert (
                statistics.ks_p_value(runs[:, t, point], by_hand[:, t, point]) > 1e-3 / runs[0].size
            )


class TestStatistics:
    def test_z_scores_are_standard(self):
        random = np.random.default_rng(0)
        a, b = random.standard_normal((40, 2000)), 3 + 2 * random.standard_normal((30, 2000))
        assert abs(np.std(statistics.z_score(a, b - 3)) - 1) < 0.1
        assert abs(np.std(statistics.z_score_to(a, 0.0)) - 1) < 0.1
        assert np.abs(statistics.z_score(a, b)).min() > 3

    def test_variance_and_covariance(self):
        random = np.random.default_rng(1)
        a, b = random.standard_normal((2, 500, 40))
        assert np.abs(statistics.variance_z_score(a, b)).max() < 4.5
        assert statistics.variance_z_score(2 * a, b).min() > 5
        assert np.abs(statistics.covariance_z_score(a[:, :5], b[:, :5])).max() < 4.5
        mixed = b[:, :2] + b[:, :1]
        assert abs(statistics.covariance_z_score(a[:, :2], mixed)[0, 1]) > 5

    def test_threshold(self):
        assert statistics.threshold(12) == pytest.approx(3.93, abs=0.01)
        assert statistics.threshold(12, degrees=11) == pytest.approx(6.05, abs=0.01)
        random = np.random.default_rng(2)
        z = random.standard_normal((4000, 10))
        alarms = np.mean(np.abs(z).max(1) > statistics.threshold(10, false_alarm=0.1))
        assert abs(alarms - 0.1) < 0.02

    def test_slopes_and_extrapolation(self):
        random = np.random.default_rng(3)
        widths = (256, 512, 1024, 2048, 4096)
        noise = {n: random.standard_normal((64, 6)) / n**0.5 for n in widths}
        slope = statistics.log_log_slope(noise)
        assert slope.stderr < 0.04
        assert abs(slope.value + 0.5) < 4 * slope.stderr
        biased = {n: 1e-3 * x + 5 / n for n, x in noise.items()}
        assert abs(statistics.bias_slope(biased).value + 1) < 0.01
        f, error = statistics.extrapolate({n: 2 + 5 / n + x for n, x in noise.items()})
        assert np.abs((f - 2) / error).max() < 4
