"""Golden numbers of muP and of integrable parameterizations, from the programs as they are written.

The programs and their known limits are those of `oracles.golden` and `oracles.integrable`: one
sample per step, squared loss, inputs of dimension 3, a bias in the first layer only. Here the same
plain JAX is run by `tp.limit` and `tp.leading`; nothing in it knows of a limit.

Statistical tests compare the mean over independent replicates with the known number, the largest
|z| of all steps and points being bounded by `statistics.threshold` (Student's t, false alarm
1e-3 for each test function).
"""

from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import dense, golden, integrable, statistics
from scipy import stats

import tplimit as tp
from tplimit.gaussian import deferred
from tplimit.transforms.limits import raw, to_leading

N = tp.Width("n")
Array = np.ndarray


def declared(
    hidden: int,
    std: Any,
    first: Callable[..., Any] = tp.normal,
    inner: Callable[..., Any] = tp.normal,
) -> dict[str, Any]:
    """`first` is the law of the entries of layer 1 (weights and bias), `inner` of the hidden W."""
    return {
        "U": first((3, N), 1.0),
        "b": first((N,), 1.0),
        "W": tuple(inner((N, N), std) for _ in range(hidden - 1)),
        "v": tp.normal((N,)),
    }


def observed(
    program: golden.Program,
    theta: dict[str, Any],
    *,
    replicates: int,
    samples: int,
    steps: int = 4,
    terms: int = 1,
    transform: Callable[..., Any] = tp.limit,
) -> list[list[Any]]:
    """What `transform(predict)` says at the points A and B after each step, per replicate."""
    runs = []
    for seed in range(replicates):
        key = jax.random.key(seed)
        state = tp.sample(theta, key, width=tp.inf, samples=samples, terms=terms)
        seen = []
        for t in range(steps):
            first = t == 0 and program.first_step is not None
            step = program.first_step if first else program.step
            state, _ = tp.limit(step)(state, (golden.INPUTS[t], golden.TARGETS[t]))
            seen.append(transform(program.predict)(state, golden.POINTS))
        runs.append(seen)
    return runs


def assert_close(runs: Array, expected: Array, error: float = 0.0) -> None:
    """Means of replicates (axis 0) against known numbers of standard error at most `error`."""
    z = statistics.z_score_to(runs, expected, error)
    assert np.abs(z).max() < statistics.threshold(z.size, degrees=len(runs) - 1)


# muP, tanh, two hidden layers ---------------------------------------------------------------------

MUP = golden.mup("tanh", hidden=2, eta=1.0)
THETA = declared(2, N**-0.5)


@pytest.fixture(scope="module")
def mup_runs() -> Array:
    """(replicates, steps, points)."""
    return np.array(observed(MUP, THETA, replicates=12, samples=2**13))


@pytest.mark.slow
def test_mup_has_its_golden_numbers(mup_runs: Array) -> None:
    """f_1 .. f_4 at A, B: 8 comparisons with the refined table, |z| < 6.0; and to 0.003."""
    mean = mup_runs.mean(axis=0)
    assert np.abs(mean - golden.table(golden.MUP_TANH)).max() < golden.MUP_TANH.error
    assert statistics.standard_error(mup_runs).max() < 2.5e-3
    assert_close(mup_runs, golden.table(golden.MUP_TANH_REFINED), 1e-4)


@pytest.mark.usefixtures("unshared")
@pytest.mark.slow
def test_without_the_correction_mup_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    """Negative control: `P^T b` dropped from every query gives (0.278, 0.376), not (0.397, 0.516).

    A query that sees the store without its fresh parts `H` has `b = <H, x> = 0`.
    """
    query = deferred.query

    def forgetful(store: deferred.Store, *args: Any, **kwargs: Any) -> deferred.Answer:
        hidden = jnp.where(store.transposed[:, None], 0, store.X)
        answer = query(replace(store, X=hidden), *args, **kwargs)
        return answer._replace(store=replace(answer.store, X=answer.store.X + store.X - hidden))

    monkeypatch.setattr(deferred, "query", forgetful)
    program = golden.mup("tanh", hidden=2, eta=1.0)
    runs = observed(program, THETA, replicates=6, samples=2**13, steps=1)
    known = golden.MUP_TANH_WITHOUT_CORRECTION
    mean = np.mean(runs, axis=0)
    assert np.abs(mean - golden.table(known)).max() < known.error
    assert np.abs(mean - golden.table(golden.MUP_TANH)[:1]).min() > 0.1


@pytest.mark.slow
def test_first_layer_keeps_its_law() -> None:
    """Rademacher weights and biases in layer 1 (not a hidden matrix): f_1 is (0.48, 0.56)."""
    theta = declared(2, N**-0.5, first=tp.rademacher)
    runs = observed(MUP, theta, replicates=6, samples=2**13, steps=1)
    np.testing.assert_allclose(np.mean(runs, axis=0)[0], [0.479, 0.564], rtol=0, atol=5e-3)


def hidden_law(law: str) -> Any:
    """Hidden matrices of variance 1/n with this law of their entries."""
    scale = 3**0.5 * N**-0.5 if law == "uniform" else N**-0.5
    return declared(2, scale, inner=getattr(tp, law))


@pytest.mark.slow
@pytest.mark.parametrize("law", ["uniform", "rademacher"])
def test_hidden_matrices_may_have_any_law(law: str, mup_runs: Array) -> None:
    """The limit is the Gaussian one (Golikov & Yang, Theorem 2): the very same numbers.

    That says nothing of networks, which have to have the law for the theorem to be tested; see the
    next two tests.
    """
    runs = observed(MUP, hidden_law(law), replicates=1, samples=2**13)
    np.testing.assert_allclose(runs[0], mup_runs[0], rtol=0, atol=1e-5)


@pytest.mark.parametrize("law", ["normal", "uniform", "rademacher"])
def test_networks_have_the_hidden_law(law: str) -> None:
    """Entries at width 256; false alarms of each of the two comparisons in 1 of 10^4 runs."""
    W = np.asarray(tp.sample(hidden_law(law), jax.random.key(0), width=256)["W"][0], float)
    entries = W.ravel() * 256**0.5
    # Independent entries of variance 1: the mean, and the mean of products of neighbours.
    for products in (entries, entries[1:] * entries[:-1]):
        assert abs(products.mean()) * len(products) ** 0.5 < stats.norm.isf(0.5e-4 / 2)
    root = 3**0.5
    fits = {
        "normal": stats.kstest(entries, "norm").pvalue,
        "uniform": stats.kstest(entries, "uniform", (-root, 2 * root)).pvalue,
        "rademacher": float(np.allclose(np.abs(entries), 1, rtol=1e-6)),
    }
    assert {name for name, p in fits.items() if p > 1e-4} == {law}
    if law == "uniform":
        assert np.abs(entries).max() <= root * (1 + 1e-6)


def slope_of_the_difference(theta: Any, seeds: dict[int, int]) -> statistics.Estimate:
    """Of `f_1 .. f_4` of networks from the refined table, RMS against width."""
    runs = dense.train_dense(
        MUP.predict, lambda key, n: tp.sample(theta, key, width=n), MUP.step, golden.BATCHES,
        golden.POINTS, widths=list(seeds), seeds=seeds, key=5,
    )  # fmt: skip
    expected = golden.table(golden.MUP_TANH_REFINED)
    return statistics.log_log_slope({n: run.f[:, 1:] - expected for n, run in runs.items()})


@pytest.mark.slow
@pytest.mark.parametrize("law", ["uniform", "rademacher"])
def test_networks_of_any_hidden_law_converge_like_the_root_of_the_width(law: str) -> None:
    """Slope -0.5 +- 0.1 at widths 256 to 2048.

    The standard error is 0.02 and the slope at these widths about -0.555, as with Gaussian
    entries: another key would fail in 1 of 80 runs.
    """
    slope = slope_of_the_difference(hidden_law(law), {256: 512, 512: 256, 1024: 128, 2048: 64})
    assert slope.stderr < 0.04
    assert abs(slope.value + 0.5) < 0.1


@pytest.mark.slow
def test_networks_of_another_first_law_do_not_converge() -> None:
    """Negative control of the slope: layer 1 keeps its law, so the limit is another one."""
    theta = declared(2, N**-0.5, first=tp.rademacher)
    assert slope_of_the_difference(theta, {256: 64, 2048: 16}).value > -0.25


@pytest.mark.slow
def test_mup_at_high_precision() -> None:
    """The refined table (its error: 3e-4 at most, standard errors 4e-5 to 8e-5), 8 comparisons."""
    runs = np.array(observed(MUP, THETA, replicates=16, samples=2**16))
    expected = golden.table(golden.MUP_TANH_REFINED)
    assert np.abs(runs.mean(axis=0) - expected).max() < 1e-3
    assert_close(runs, expected, 8e-5)


@pytest.mark.slow
@pytest.mark.parametrize("law", ["normal", "uniform", "rademacher"])
def test_finite_networks_agree_whatever_the_hidden_law(law: str) -> None:
    """`tp.sample` at width 2048, 8 seeds, hidden matrices of each law: 8 comparisons, |z| < 9.1."""
    theta, step, runs = hidden_law(law), jax.jit(MUP.step), []
    for seed in range(8):
        state = tp.sample(theta, jax.random.key(seed), width=2048)
        seen = []
        for batch in zip(*golden.BATCHES, strict=True):
            state, _ = step(state, batch)
            seen.append(MUP.predict(state, golden.POINTS))
        runs.append(seen)
    assert statistics.standard_error(runs).max() < 0.015
    assert_close(np.array(runs), golden.table(golden.MUP_TANH_REFINED))


# Integrable parameterizations ---------------------------------------------------------------------

IP = golden.naive_ip("tanh", hidden=3, eta=1.0)
IP_THETA = declared(3, 1.0)


@pytest.fixture(scope="module")
def ip_runs() -> list[list[tp.Leading]]:
    return observed(IP, IP_THETA, replicates=8, samples=2**13, steps=3, transform=tp.leading)


@pytest.mark.slow
def test_integrable_network_decays_like_one_over_n(ip_runs: list[list[tp.Leading]]) -> None:
    """`f_t = c_t / n`: exponent -1 and the exact coefficients for t = 1, 2, 3; 6 comparisons."""
    assert {seen.exponent for run in ip_runs for seen in run} == {Fraction(-1)}
    coefficients = np.array([[seen.coefficient for seen in run] for run in ip_runs])
    assert statistics.standard_error(coefficients).max() < 5e-3
    assert_close(coefficients, integrable.leading_coefficients(eta=1.0)[:3])
    # The error that one run states is cautious: it knows nothing of matching and of Sobol' points.
    stated = np.mean([[seen.stderr for seen in run] for run in ip_runs], axis=0)
    spread = coefficients.std(axis=0, ddof=1)
    assert np.all(stated > 0.3 * spread)
    assert np.all(stated < 60 * spread)


@pytest.mark.slow
def test_integrable_network_at_initialisation_is_not_a_number_times_1_over_n() -> None:
    """The mean of `n f_0` vanishes: refused with one term, and of order n^-3/2 with two."""
    state = tp.sample(IP_THETA, jax.random.key(0), width=tp.inf, samples=2**13)
    with pytest.raises(tp.CancellationError, match="leading"):
        to_leading(raw(IP.predict)(state, golden.POINTS))
    assert tp.leading(IP.predict)(state, golden.POINTS).exponent == Fraction(-3, 2)


@pytest.mark.slow
def test_integrable_network_against_width_4096(ip_runs: list[list[tp.Leading]]) -> None:
    """`n f_t` of dense networks of width 4096 in float64, 10 seeds: 6 comparisons."""
    measured = integrable.measure_ip((4096,), seeds=10)[4096].runs[:, :3]
    coefficients = np.array([[seen.coefficient for seen in run] for run in ip_runs])
    z = statistics.z_score(measured, coefficients)
    assert np.abs(z).max() < statistics.threshold(z.size, degrees=9)


@pytest.mark.slow
@pytest.mark.parametrize(
    "known", golden.IP_LLR_FIRST_STEP, ids=lambda k: f"{k.activation}-{k.hidden}"
)
def test_large_first_rates_have_the_closed_form(known: golden.Golden) -> None:
    """IP-LLR, homogeneous activations: `f_1` against the exact number; 2 comparisons each.

    Afterwards the sign of some preactivations is decided by terms that vanish. With one term the
    step is refused rather than computed with the wrong derivative; the error asks for two, with
    which it runs.
    """
    homogeneity = 2 if "squared" in known.activation else 1
    program = golden.ip_llr(known.activation, known.hidden, known.eta, homogeneity)
    theta = declared(known.hidden, 1.0)
    runs = np.array(observed(program, theta, replicates=12, samples=2**14, steps=1))
    assert_close(runs, golden.table(known), known.error)
    with pytest.raises(tp.CancellationError, match="comparison") as refused:
        observed(program, theta, replicates=1, samples=2**10, steps=2)
    assert "tp.sample(..., terms=2)" in str(refused.value)
    two = np.array(observed(program, theta, replicates=2, samples=2**12, steps=2, terms=2))
    np.testing.assert_allclose(two[:, 0], runs.mean(axis=0)[0] * np.ones((2, 1)), rtol=0.05)
    assert np.all(np.isfinite(two[:, 1]) & (two[:, 1] != 0))
    later = {(k.activation, k.hidden): k for k in golden.IP_LLR_LATER_STEPS}
    if (same := later.get((known.activation, known.hidden))) is not None:
        off = np.abs(two[:, 1] - golden.table(same)[0]).max()
        assert off < 0.1 * np.abs(golden.table(same)[0]).max()


@pytest.mark.slow
def test_large_first_rates_of_a_smooth_network() -> None:
    """IP-LLR, tanh, 3 hidden layers: f_1 = 0, then the table within its error of 0.003."""
    known = golden.IP_LLR_LATER_STEPS[-1]
    program = golden.ip_llr(known.activation, known.hidden, known.eta)
    runs = np.array(observed(program, declared(3, 1.0), replicates=8, samples=2**14, steps=3))
    assert np.abs(runs[:, 0]).max() < 1e-3
    assert np.abs(runs.mean(axis=0) - golden.table(known)).max() < known.error
