"""Learning curves and convergence in pictures: lines, bands and labels are those of the records."""

import numpy as np
import pytest

import tplimit as tp
from tplimit.training.comparison import Comparison
from tplimit.training.records import Records
from tplimit.training.trajectory import Trajectory


def a_run(width, count=5, seed=0, **records):
    """A run whose records have the shapes given."""
    random = np.random.default_rng(seed)
    values = {
        name: random.normal(size=(count, 8, *shape)).cumsum(axis=1)
        for name, shape in records.items()
    }
    return Trajectory(Records(None, values), Records(None, dict.fromkeys(values, 0)), width)


def lines(axes):
    return [line for line in axes.lines if len(line.get_xdata()) > 0]


def edges(band):
    """The lower and the upper edge of a band over the steps."""
    vertices = band.get_paths()[0].vertices
    steps = np.unique(vertices[:, 0])
    inside = vertices[1:-1] if len(vertices) % 2 else vertices
    per_step = [inside[inside[:, 0] == t, 1] for t in steps]
    return np.array([[v.min(), v.max()] for v in per_step]).T


def test_lines_are_means_and_bands_are_intervals():
    run = a_run(tp.inf, f=(3,), kernel=(2, 2))
    axes = tp.plot_curves(run, "kernel", [(0, 1), (1, -1)], level=0.9)
    low, high = run.interval(0.9)
    for line, band, index in zip(lines(axes), axes.collections, [(0, 1), (1, 1)], strict=True):
        at = (slice(None), *index)
        np.testing.assert_allclose(line.get_ydata(), run.observations["kernel"][at])
        bounds = [end.observations["kernel"][at] for end in (low, high)]
        np.testing.assert_allclose(edges(band), bounds)
    legend = axes.get_legend()
    assert [text.get_text() for text in legend.get_texts()] == ["kernel[0,1]", "kernel[1,1]"]
    assert legend.get_title().get_text() == "bands: 90 % intervals"
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("step", "kernel")


def test_runs_differ_in_colour_or_in_style():
    runs = {"n = ∞": a_run(tp.inf, f=(3,)), "n = 64": a_run(64, 1, seed=1, f=(3,))}
    one = tp.plot_curves(runs, entries=[2])
    assert one.get_ylabel() == "f[2]"
    assert [text.get_text() for text in one.get_legend().get_texts()] == ["n = ∞", "n = 64"]
    assert len({line.get_color() for line in lines(one)}) == 2
    several = tp.plot_curves(runs, entries=[0, 2])
    looks = [(line.get_color(), str(line.get_linestyle())) for line in lines(several)]
    assert len(set(looks)) == 4
    assert len({colour for colour, _ in looks}) == 2
    names = [text.get_text() for text in several.get_legend().get_texts()]
    assert names == ["f[0]", "f[2]", "n = ∞", "n = 64"]
    # One replicate has no interval.
    alone = tp.plot_curves(runs["n = 64"], entries=[0])
    assert alone.get_legend().get_title().get_text() == ""
    assert not any(len(path.vertices) for path in alone.collections[0].get_paths())


def test_what_is_shown_unasked():
    """The first real record, and of it what moves most."""
    random = np.random.default_rng(0)
    moves = np.zeros((3, 8, 6))
    moves[:, :, [1, 4]] = random.normal(size=(3, 8, 2)).cumsum(axis=1)
    tree = {"count": np.ones((3, 8), int), "f": moves, "loss": np.ones((3, 8))}
    run = Trajectory(Records(None, tree), Records(None, dict.fromkeys(tree, 0)), 64)
    axes = tp.plot_curves(run)
    assert axes.get_ylabel() == "f"
    shown = [text.get_text() for text in axes.get_legend().get_texts()]
    assert {"f[1]", "f[4]"} < set(shown)
    assert len(shown) == 4
    assert tp.plot_curves(run, "count").get_ylabel() == "count"
    outputs = Trajectory(Records(np.ones((3, 8)), None), Records(0, None), 64)
    assert tp.plot_curves(outputs).get_ylabel() == "outputs"


def test_a_comparison_from_light_to_dark(tmp_path):
    from matplotlib.figure import Figure

    finite = {n: a_run(n, seed=n, f=(2,)) for n in (256, 64)}
    both = Comparison(a_run(tp.inf, f=(2,)), finite)
    given = Figure(figsize=(3.3, 2.5)).subplots()
    axes = tp.plot_curves(both, entries=[0], axes=given)
    assert axes is given
    names = [text.get_text() for text in axes.get_legend().get_texts()]
    assert names == ["n = 64", "n = 256", "n = ∞"]
    lightness = [sum(line.get_color()[:3]) for line in lines(axes)[:2]]
    assert lightness[0] > lightness[1]
    assert lines(axes)[2].get_color() == "#222222"
    axes.figure.savefig(tmp_path / "curves.png")


@pytest.fixture(scope="module")
def converging():
    """Networks at a distance of 2 n^-1/2 (f) and n^-1 (g), with noise over seeds."""
    random = np.random.default_rng(0)

    def run(n):
        noise = random.normal(size=(2, 400, 3, 2)) if n != tp.inf else np.zeros((2, 2, 3, 2))
        size = [2 * n**-0.5, n**-1.0] if n != tp.inf else [0, 0]
        tree = {"f": 1 + size[0] * noise[0], "g": 2 + size[1] * noise[1][..., 0]}
        return Trajectory(Records(None, tree), Records(None, {"f": 0, "g": 0}), n)

    return Comparison(run(tp.inf), {n: run(n) for n in (64, 256, 1024)})


def points(axes):
    return [container.lines[0] for container in axes.containers]


def test_distances_are_those_of_the_comparison(converging):
    axes = tp.plot_convergence(converging)
    (drawn,) = points(axes)
    np.testing.assert_allclose(drawn.get_ydata(), list(converging.rms.values()))
    names = [text.get_text() for text in axes.get_legend().get_texts()]
    assert f"slope {converging.slope:.3f}".replace("-", "−") in names[1]
    assert (axes.get_xscale(), axes.get_yscale()) == ("log", "log")
    assert axes.get_ylabel() == "RMS distance to the limit"


def test_leaves_and_entries_are_chosen(converging):
    """400 seeds: errors of the distances are 2 to 4 %, of slopes 2 %; false alarm 1e-4 at 5 σ."""
    for leaf, slope, factor in (("f", -0.5, 2.0), ("g", -1.0, 1.0)):
        axes = tp.plot_convergence(converging, leaf)
        (drawn,) = points(axes)
        widths, values = map(np.array, drawn.get_data())
        np.testing.assert_allclose(values, factor * widths**slope, rtol=0.1)
        fitted = axes.get_legend().get_texts()[1].get_text()
        assert abs(float(fitted.split()[2].replace("−", "-")) - slope) < 0.06
    axes = tp.plot_convergence(converging, "f", [0, 1])
    by_entry = converging.rms_by_entry[64]["f"]
    drawn = [line.get_ydata()[0] for line in points(axes)]
    np.testing.assert_allclose(drawn, by_entry)
    names = [text.get_text().split(":")[0] for text in axes.get_legend().get_texts()]
    assert names == ["slope −1/2", "f[0]", "f[1]"]


def test_what_is_below_the_noise_has_no_point():
    flat = lambda n, x: Trajectory(Records(np.full((2, 1), x), None), Records(0, None), n)
    same = Comparison(flat(tp.inf, 1.0), {64: flat(64, 1.5), 128: flat(128, 1.0)})
    axes = tp.plot_convergence(same)
    (drawn,) = points(axes)
    assert list(drawn.get_xdata()) == [64]
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["slope −1/2", "outputs"]


def test_outputs_beside_observations():
    """The loss of a run that has observed something is asked for by name."""
    loss = np.array([[3.0, 2.0, 1.0], [3.0, 2.5, 2.0]])
    run = Trajectory(Records(loss, {"f": np.zeros((2, 4))}), Records(0, {"f": 0}), 64)
    assert tp.plot_curves(run).get_ylabel() == "f"
    axes = tp.plot_curves(run, "outputs")
    (curve,) = (line for line in axes.lines if len(line.get_xdata()))
    np.testing.assert_allclose(curve.get_ydata(), loss.mean(axis=0))
    with pytest.raises(ValueError, match="pass 'f' or 'outputs'"):
        tp.plot_curves(run, "loss")


def test_refusals(converging):
    run = a_run(tp.inf, f=(2, 2))
    for call, error, text in (
        (lambda: tp.plot_curves(3), TypeError, "runs=3 is no run"),
        (lambda: tp.plot_curves({}), ValueError, "has no run"),
        (lambda: tp.plot_curves(run, "g"), ValueError, "leaf='g' is not known: pass 'f'"),
        (lambda: tp.plot_curves(run, "f", [4]), ValueError, r"f\[4\] is no entry"),
        (lambda: tp.plot_curves(run, "f", [(0, 2)]), ValueError, r"no entry .*shape \(2, 2\)"),
        (lambda: tp.plot_curves(run, "f", [0]), ValueError, r"f\[0\] is no entry"),
        (lambda: tp.plot_curves({"a": a_run(2, g=()), "b": run}), ValueError, "a has not recorded"),
        (lambda: tp.plot_curves({"a": a_run(2, f=()), "b": run}), ValueError, "other shapes"),
        (lambda: tp.plot_curves(run, level=1), ValueError, "between 0 and 1"),
        (lambda: tp.plot_convergence(run), TypeError, "is no comparison"),
        (lambda: tp.plot_convergence(converging, entries=[0]), ValueError, "pass leaf, one of"),
        (lambda: tp.plot_convergence(converging, "h"), ValueError, "is not known"),
    ):
        with pytest.raises(error, match=text):
            call()
    complex_run = Trajectory(Records(np.ones((2, 2), complex), None), Records(0, None), 64)
    with pytest.raises(ValueError, match="no real number"):
        tp.plot_curves(complex_run)
    with pytest.raises(ValueError, match="complex"):
        tp.plot_curves(complex_run, "outputs")
