"""Planes of regimes: the areas, lines and points are those of the theory, and are drawn."""

from fractions import Fraction

import numpy as np
import pytest

import tplimit as tp
from tplimit import parameterizations as scalings
from tplimit.parameterizations import Parameterization
from tplimit.regimes.counted import classify, effective_exponents, region
from tplimit.regimes.planes import Plane, located

HALF = Fraction(1, 2)
ONE_LAYER = tp.mlp(1, inputs=3)


def golikov_region(q_sigma, q_tilde):
    return region(q_sigma + HALF, q_sigma + q_tilde)


def length(pieces):
    """Of the pieces of a line, in x (in y where it is vertical)."""
    steps = [(end[0] - start[0], end[1] - start[1]) for start, end in pieces]
    return sum(abs(dx) or abs(dy) for dx, dy in steps)


def test_the_plane_of_one_hidden_layer_is_golikovs():
    """Five areas, seven lines, three points, at their exact places."""
    names = []
    ends = (Fraction(-3, 2), HALF), (Fraction(-1), Fraction(3, 2))

    def name_at(x, y):
        names.append(classify(scalings.golikov(x, y), ONE_LAYER).name)
        assert names[-1] == golikov_region(x, y)
        return names[-1]

    plane = Plane(name_at, *ends, Fraction(1, 4))
    assert set(plane.areas.flat) == {
        "diverging", "stagnating", "post-MF–NTK", "triangle", "pre-NTK–sym-def",
    }  # fmt: skip
    lines = {
        "post-MF": HALF,  # q_tilde = -q_sigma from -3/2 to -1
        "sym-def–MF": HALF,
        "pre-sym-default": 1,
        "post-NTK": 1,  # half an exponent below, from -3/2 to -1/2
        "pre-NTK": 1,
        "MF–NTK": HALF,  # e_K = 0 between the points
        "NTK–sym-def": HALF,
    }
    assert {name: length(pieces) for name, pieces in plane.lines.items()} == lines
    assert plane.points == {(-1, 1): "MF", (-HALF, 0): "NTK", (-HALF, HALF): "sym-default"}
    assert len(names) < 2500
    pixel = Fraction(1, 24)
    for row, column in [(3, 4), (30, 40), (59, 0), (31, 14)]:
        place = ends[0][0] + (column + HALF) * pixel, ends[1][0] + (row + Fraction(4, 9)) * pixel
        assert plane.areas[row, column] == golikov_region(*place)


def test_the_polytope_of_a_deep_network():
    """Of one rate for all layers and muP's hidden weights: stable networks that are not trivial.

    They are on the edge c = 1 - 2 α from NTK at (1/2, 0) to muP at (1, -1), and all but muP are
    kernel regimes (Tensor Programs IV).
    """
    model = tp.mlp(3, inputs=3)
    family = lambda x, y: Parameterization((0, HALF, x), 0, y)
    plane = Plane(
        lambda *at: classify(family(*at), model).name,
        (Fraction(1, 4), Fraction(5, 4)),
        (Fraction(-3, 2), HALF),
        Fraction(1, 8),
    )
    assert set(plane.areas.flat) == {"unstable", "trivial"}
    assert set(plane.lines) == {"kernel"}
    for ends in plane.lines["kernel"]:
        for alpha, c in ends:
            assert c == 1 - 2 * alpha
            assert HALF <= alpha <= 1
    assert length(plane.lines["kernel"]) == HALF
    assert plane.points == {(1, -1): "muP-like"}


def test_lines_that_cross_are_not_taken_for_others():
    """Two crossing lines, one of them on one side only, and a point where they meet."""

    def name_at(x, y):
        if x == y:
            return "point" if x == 0 else "rising"
        if x == -2 * y and x > 0:
            return "falling"
        return "above" if y > x else "below"

    ends = Fraction(-1), Fraction(1)
    plane = Plane(name_at, ends, ends, Fraction(1, 4))
    assert {name: length(pieces) for name, pieces in plane.lines.items()} == {
        "rising": 2, "falling": 1,
    }  # fmt: skip
    assert plane.points == {(0, 0): "point"}
    for name, (x, y) in plane.middles().items():
        assert (name == "above") == (y > x)
        assert abs(y - x) > 0.5


@pytest.mark.parametrize("theta", [0, HALF, Fraction(-1, 3)])
def test_parameterizations_are_found_in_a_plane(theta):
    """Up to (a, b, c) → (a + θ, b - θ, c - 2θ), which changes nothing."""
    model = tp.mlp(3, inputs=3)
    ends = (Fraction(0), Fraction(1)), (Fraction(-1), Fraction(1))

    def exponents(x, y):
        a = (theta, HALF + theta, x + theta)
        return effective_exponents(Parameterization(a, -theta, y - 2 * theta), model)

    find = lambda p: located(exponents, effective_exponents(p, model), *ends)
    assert find(scalings.mup) == ((1, -1), True)
    assert find(scalings.ntk) == ((HALF, 0), True)
    assert find(scalings.mean_field) == ((1, -1), False)  # other hidden weights
    assert not find(scalings.ip_llr)[1]  # another first step
    assert not find(scalings.hpz)[1]  # initial weights are removed


def test_planes_that_are_none():
    model = tp.mlp(1, inputs=3)
    for family in (
        lambda x, y: Parameterization((0, 0, x), 0, x),
        lambda x, y: Parameterization((0, 0, x * y), 0, x + y),
    ):
        with pytest.raises(ValueError, match=r"pass points=\{\}"):
            tp.plot_regimes(family, (0, 1), (0, 1), model, step=0.25)
    golikov = scalings.golikov
    with pytest.raises(ValueError, match=r"x=\(1, 0\) is empty"):
        tp.plot_regimes(golikov, (1, 0), (0, 1), model)
    with pytest.raises(TypeError, match="y=3 is no range"):
        tp.plot_regimes(golikov, (0, 1), 3, model)
    with pytest.raises(ValueError, match=r"step=0\.0 is not positive"):
        tp.plot_regimes(golikov, (0, 1), (0, 1), model, step=0)
    with pytest.raises(TypeError, match="needs a Parameterization"):
        tp.plot_regimes(lambda x, y: (x, y), (0, 1), (0, 1), model)


def test_the_picture_names_what_it_shows(tmp_path):
    from matplotlib.colors import same_color
    from matplotlib.figure import Figure

    given = Figure(figsize=(3.3, 3.1)).subplots()

    def family(output, hidden):  # rates at which every layer moves, where it can
        outer = 1 - 2 * output
        return Parameterization((0, hidden, output), 0, (outer, outer + 1 - 2 * hidden, outer))

    model = tp.mlp(2, inputs=3)
    axes = tp.plot_regimes(family, (0.25, 1.25), (0.25, 1.25), model, step=0.25, axes=given)
    assert axes is given
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("output", "hidden")
    legend = [text.get_text() for text in axes.get_legend().get_texts()]
    assert legend == ["mean-field", "not in the plane"]
    texts = {text.get_text(): text.xy for text in axes.texts}
    assert {"unstable", "kernel"} < set(texts)
    assert texts["NTK"] == (0.5, 0.5)
    assert texts["muP"] == (1, 0.5)
    assert texts["mean-field, integrable"] == (1, 1)
    dots = {
        tuple(np.ravel(line.get_data())): line for line in axes.lines if line.get_marker() == "o"
    }
    line = next(line for line in axes.lines if line.get_label() == "mean-field")
    assert same_color(dots[1, 1].get_markerfacecolor(), line.get_color())
    assert not same_color(dots[0.5, 0.5].get_markerfacecolor(), line.get_color())
    axes.figure.savefig(tmp_path / "plane.png")


def test_in_natural_units_optimizers_share_a_plane():
    """Sign descent has the areas, lines and points of gradient descent."""
    import optax

    model = tp.mlp(2, inputs=3)
    family = lambda x, y: Parameterization((0, HALF, x), 0, y)
    how = {"step": 0.5, "points": {"muP": scalings.mup}}
    pictures = [
        tp.plot_regimes(family, (0.5, 1.5), (-1.5, 0.5), model, optimizer=optimizer, **how)
        for optimizer in (None, optax.sign_sgd(1.0))
    ]
    one, other = ([(text.get_text(), text.xy) for text in axes.texts] for axes in pictures)
    assert one == other
    assert ("muP", (1, -1)) in one
    with pytest.raises(ValueError, match="clipping"):
        tp.plot_regimes(family, (0, 1), (0, 1), model, optimizer=optax.clip(1.0))
