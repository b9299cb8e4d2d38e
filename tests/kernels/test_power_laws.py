"""Power laws of the loss: the spectral statement, spectra of kernels, exponents of training."""

from fractions import Fraction

import jax
import numpy as np
import pytest
from numpy.polynomial.legendre import leggauss

from tplimit import kernels
from tplimit.kernels.recursions import power_laws

#: The NTK with biases has its only singularity on the diagonal (without them, at -x as well).
NETWORK = kernels.mlp(2, "relu", 2**0.5, 0.3)


def on_sphere(cosines, which="ntk"):
    """The kernel of two points on a sphere at angles with these cosines, float64."""
    with jax.enable_x64(True):
        x = 2**0.5 * np.array([[1.0, 0.0]])
        y = 2**0.5 * np.stack([cosines, np.sqrt(1 - cosines**2)], axis=1)
        return np.asarray(getattr(NETWORK(x, y), which))[0]


def circle_modes(kernel, points=2**15):
    """Eigenvalues of a kernel of the angle, on the circle with uniform density; m = 0, 1, ..."""
    angles = 2 * np.pi * np.arange(points) / points
    return np.fft.rfft(kernel(np.cos(angles))).real / points


def sphere_modes(kernel, degrees):
    """Eigenvalues (of 2 l + 1 harmonics each) on the sphere: ½ ∫ k(t) P_l(t) dt, with t = cos."""
    nodes, weights = leggauss(16)
    panels = np.pi * np.arange(degrees // 2 + 1) / (degrees // 2)
    width = np.diff(panels)[:, None] / 2
    angles = (panels[:-1, None] + width * (nodes + 1)).ravel()
    t = np.cos(angles)
    measure = (width * weights).ravel() * np.sin(angles) * kernel(t) / 2
    return np.array([p @ measure for p in legendre(t, degrees)])


def legendre(t, degrees):
    before, now = np.ones_like(t), t
    yield before
    for l in range(1, degrees):
        yield now
        before, now = now, ((2 * l + 1) * t * now - l * before) / (l + 1)


def slope_near_0(which="ntk"):
    """ψ in k ~ k(0) + ψ |angle|."""
    angle = 1e-5
    ends = on_sphere(np.cos([0.0, angle, 2 * angle]), which)
    return (4 * ends[1] - ends[2] - 3 * ends[0]) / (2 * angle)


def fitted(t, loss):
    return -np.polyfit(np.log(t), np.log(loss), 1)[0]


# --- the spectral statement


def test_sums_approach_the_formula():
    """ν = 2, κ = 1/2, Λ = 0.3, K = 0.7, 4e6 modes: ratios 0.990, 0.9990, 0.9999."""
    law = power_laws.PowerLaw(scale=0.3, decay=2.0, tail=0.7, tail_decay=0.5)
    n = np.arange(1, 4 * 10**6 + 1, dtype=float)
    tails = 0.7 * np.arange(1, 4 * 10**6 + 2, dtype=float) ** -0.5
    tails[-1] = 0.0  # the last mode stands for all beyond, which learn nothing in this time
    coefficients = np.sqrt(-np.diff(tails))
    t = np.array([1e3, 1e5, 1e7])
    ratio = power_laws.spectral_loss(t, 0.3 * n**-2, coefficients) / law.loss(t)
    assert law.exponent == 0.25
    assert np.all(np.abs(ratio - [0.990, 0.9990, 0.9999]) < [1e-3, 1e-4, 1e-4])


def test_exponents_of_the_source():
    assert power_laws.kernel_exponent(1) == 2
    assert power_laws.kernel_exponent(3) == Fraction(4, 3)
    assert [power_laws.loss_exponent(d) for d in (1, 2, 5)] == [
        Fraction(1, 2), Fraction(1, 3), Fraction(1, 6),
    ]  # fmt: skip
    assert power_laws.loss_exponent(4, target=3) == Fraction(3, 5)
    assert power_laws.loss_exponent(1, singularity=3) == Fraction(1, 4)


# --- spectra


def test_distance_on_the_interval():
    """Λ = 2/π² for -|x - y| on [0, 1], from the matrix of 800 points."""
    points = (np.arange(800) + 0.5) / 800
    values = np.linalg.eigvalsh(-np.abs(points[:, None] - points) / 800)[::-1]
    n = np.arange(30, 60)
    expected = power_laws.spectrum_coefficient(-1.0, 1, domain=[(0, 1)])
    assert expected == pytest.approx(2 / np.pi**2, rel=1e-12)
    assert np.mean(values[n - 1] * n**2.0) == pytest.approx(expected, rel=0.01)


def test_distance_on_the_sphere():
    """d = 2, on a manifold: the eigenvalues of -|x - y| are 4/((2l - 1)(2l + 1)(2l + 3))."""
    values = sphere_modes(lambda t: -np.sqrt(np.maximum(2 - 2 * t, 0)), 60)
    l = np.arange(1, 60)
    np.testing.assert_allclose(values[1:], 4 / ((2 * l - 1) * (2 * l + 1) * (2 * l + 3)), rtol=1e-6)
    # There are n = l² harmonics up to degree l, ν = 3/2.
    expected = power_laws.spectrum_coefficient(-1.0, 2, volume=4 * np.pi)
    assert expected == pytest.approx(0.5)
    assert values[-1] * 59.5**3 == pytest.approx(expected, rel=1e-3)


def test_uneven_density_and_strength():
    """-|x - y| with density 2 x, and a kernel ψ(x) ψ(y) |x - y|, on [0, 1]."""
    size = 800
    points = (np.arange(size) + 0.5) / size
    distance = np.abs(points[:, None] - points)
    weight = np.sqrt(2 * points)
    strength = 1 + points
    cases = [
        (-distance * np.outer(weight, weight), -1.0, lambda x: 2 * x),
        (-distance * np.outer(strength, strength), lambda x: -((1 + x) ** 2), None),
    ]
    n = np.arange(30, 60)
    for matrix, psi, density in cases:
        values = np.linalg.eigvalsh(matrix / size)[::-1]
        expected = power_laws.spectrum_coefficient(psi, 1, density=density, domain=[(0, 1)])
        assert np.mean(values[n - 1] * n**2.0) == pytest.approx(expected, rel=0.02)


def test_spectrum_of_relu_networks():
    """ν = 1 + 1/d with the coefficient of the kernel's slope at 0; NNGP: ν = 1 + 3/d."""
    m = np.array([200, 400, 800])
    modes = circle_modes(on_sphere)[m]
    assert fitted(m, modes) == pytest.approx(power_laws.kernel_exponent(1), abs=0.01)
    # Each eigenvalue is double: n = 2 m.
    expected = power_laws.spectrum_coefficient(slope_near_0(), 1, volume=2 * np.pi)
    np.testing.assert_allclose(modes * (2 * m) ** 2.0, expected, rtol=0.01)
    modes = sphere_modes(on_sphere, 401)[m[:2]]
    assert fitted(m[:2] + 0.5, modes) * 0.5 == pytest.approx(
        power_laws.kernel_exponent(2), abs=0.02
    )
    expected = power_laws.spectrum_coefficient(slope_near_0(), 2, volume=4 * np.pi)
    np.testing.assert_allclose(modes * (m[:2] + 0.5) ** 3.0, expected, rtol=0.02)
    m = np.array([50, 100, 200])
    modes = circle_modes(lambda t: on_sphere(t, "nngp"))[m]
    assert fitted(m, modes) == pytest.approx(power_laws.kernel_exponent(1, 3), abs=0.02)


# --- training


def decay(t, modes, coefficients, share):
    """The loss for the indicator of a set of this share; harmonics left out learn nothing yet."""
    rest = share - share**2 - np.sum(coefficients**2)
    return power_laws.spectral_loss(t, modes, coefficients) + rest / 2


def test_indicator_of_an_arc():
    """d = 1: exponent 1/2 and coefficient; modes of the arc |angle| < 1."""
    modes = circle_modes(on_sphere)[1:-1]
    m = np.arange(1, len(modes) + 1)
    t = np.geomspace(1e3, 1e6, 7)
    # Both harmonics of a mode have the coefficient sin(m)/(π m).
    loss = decay(t, modes, 2**0.5 * np.sin(m) / (np.pi * m), 1 / np.pi)
    assert fitted(t, loss) == pytest.approx(power_laws.loss_exponent(1), rel=0.1)
    scale = power_laws.spectrum_coefficient(slope_near_0(), 1, volume=2 * np.pi)
    law = power_laws.PowerLaw(scale, 2.0, 2 / np.pi**2, 1.0)
    np.testing.assert_allclose(loss, law.loss(t), rtol=0.02)


def test_indicator_of_a_cap():
    """d = 2: exponent 1/3, from harmonics up to degree 800; the cap of angle 1."""
    degrees = 800
    modes = sphere_modes(on_sphere, degrees)
    p = np.array(list(legendre(np.array([np.cos(1.0)]), degrees + 1)))[:, 0]
    l = np.arange(1, degrees)
    coefficients = (p[:-2] - p[2:]) / (2 * np.sqrt(2 * l + 1))
    t = np.geomspace(1e4, 1e6, 5)
    loss = decay(t, modes[1:], coefficients, (1 - np.cos(1.0)) / 2)
    assert fitted(t, loss) == pytest.approx(power_laws.loss_exponent(2), rel=0.1)


def test_random_network_as_target():
    """d = 1, target drawn from the NNGP (β = 3): exponent 3/2, in expectation."""
    modes = circle_modes(on_sphere)[1:2000]
    power = circle_modes(lambda t: on_sphere(t, "nngp"))[1:2000]
    t = np.geomspace(1e2, 1e4, 5)
    loss = power_laws.spectral_loss(t, modes, np.sqrt(2 * power))
    assert fitted(t, loss) == pytest.approx(power_laws.loss_exponent(1, target=3), rel=0.05)


def test_trained_points_follow_the_law():
    """The flow on 512 points of the circle, by the kernel's matrix."""
    angles = 2 * np.pi * np.arange(512) / 512
    x = 2**0.5 * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    y = np.where(np.abs(angles - np.pi) < 1, 1.0, 0.0)
    t = np.geomspace(30, 3e3, 5)
    run = kernels.flow(NETWORK, None, y, "mse", t, x=x, dtype=np.float64, progress=False)
    assert fitted(t, run.loss) == pytest.approx(power_laws.loss_exponent(1), rel=0.1)


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: power_laws.kernel_exponent(0), "dimension is a positive integer"),
        (lambda: power_laws.kernel_exponent(2, 2), "no even integer"),
        (lambda: power_laws.kernel_exponent(2, -1), "no even integer"),
        (lambda: power_laws.loss_exponent(2, target="step"), "target is"),
        (lambda: power_laws.spectrum_coefficient(1.0, 2, domain=[(0, 1)]), "2 pairs of ends"),
        (lambda: power_laws.spectrum_coefficient(abs, 1, volume=1.0), "needs a domain"),
        (lambda: power_laws.PowerLaw(1.0, 2.0, -1.0, 1.0).loss(1.0), "have to be positive"),
        (lambda: power_laws.spectral_loss(1.0, [1.0], [1.0, 2.0]), "are not"),
        (lambda: power_laws.spectral_loss(-1.0, [1.0], [1.0]), "0 or larger"),
    ],
)
def test_bad_input(call, text):
    with pytest.raises(ValueError, match=text):
        call()
