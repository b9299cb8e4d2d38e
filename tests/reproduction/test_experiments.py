"""Every script of the experiments runs in its quick setting, and committed pages are current."""

import json
from pathlib import Path

import pytest
from oracles.helpers import fast_compilation

from tplimit.reproduction.reproduce import Experiment, experiments

ROOT = Path(__file__).parents[2]
EXPERIMENTS = experiments(ROOT / "experiments")
# These compile nothing at infinite width that takes long; the others are left to the slow tests.
FAST = {"hajjar2021": {"hybrid"}}
# What quick settings decide without a doubt: these rows agree, whatever the rest does.
CERTAIN = {
    ("golikov2020", "decomposition"): "by the interpreter",
    ("golikov2020", "exponents"): "(δa/a)²",
    ("golikov2020", "trajectories"): "one network at width 128",
    ("hajjar2021", "hybrid"): "",
    ("hajjar2021", "first_step_exponents"): "counted:",
    ("hajjar2021", "kept_rates"): "counted",
    ("hajjar2021", "naive_ip"): "tp.leading",
    ("hajjar2021", "hybrid_zero"): "α ReLU²",
    ("hajjar2021", "naive_ip_sigmoid"): "n = ∞",
}


def scripts() -> list[object]:
    return [
        pytest.param(
            experiment,
            script,
            id=f"{name}-{script}",
            marks=[] if script in FAST.get(name, ()) else pytest.mark.slow,
        )
        for name, experiment in EXPERIMENTS.items()
        for script in experiment.scripts
    ]


@pytest.mark.parametrize(("experiment", "script"), scripts())
def test_script_runs_and_draws(experiment: Experiment, script: str, tmp_path: Path) -> None:
    with fast_compilation():
        record = experiment.run(script, tmp_path, quick=True)
    assert "error" not in record, record["error"]
    claims = [row["claim"] for row in record["rows"]]
    assert claims
    assert len(set(claims)) == len(claims)
    assert record["setting"]
    assert (tmp_path / f"{script}.png").is_file()
    part = CERTAIN.get((experiment.name, script))
    if part is not None:
        certain = [row for row in record["rows"] if part in row["claim"]]
        assert certain
        assert {row["verdict"] for row in certain} == {"agrees"}


@pytest.mark.parametrize("experiment", EXPERIMENTS.values(), ids=lambda e: e.name)
def test_pages_are_what_their_records_say(experiment: Experiment) -> None:
    records = ROOT / "docs" / experiment.name
    page = (ROOT / "docs" / f"{experiment.name}.md").read_text(encoding="utf-8")
    assert experiment.page(records) == page, f"tplimit reproduce {experiment.name} --out docs"
    for script in experiment.scripts:
        record = json.loads((records / f"{script}.json").read_text(encoding="utf-8"))
        assert not record["quick"], script
        assert "error" not in record, script
        assert (records / f"{script}.png").stat().st_size < 60_000, script
        assert (records / f"{script}.json").stat().st_size < 200_000, script
