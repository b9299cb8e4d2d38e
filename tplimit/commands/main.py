"""The command `tplimit`: a thin layer over `tplimit.compare` and `tplimit.reproduce`."""

import functools
import inspect
import json
import time
from collections.abc import Callable
from dataclasses import asdict, fields
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import jax
import jax.numpy as jnp
import typer
from rich.console import Console
from rich.table import Table

from tplimit.commands import kernels
from tplimit.commands.console import failed, plain_warnings
from tplimit.commands.optimizers import Optimizer
from tplimit.commands.study import (
    BIASES,
    OPTIMIZER,
    Bias,
    Study,
    parse_parameterization,
    run_study,
    transformation,
)
from tplimit.errors import LimitError
from tplimit.networks.models import mlp
from tplimit.output.files import write_text
from tplimit.regimes import counted
from tplimit.regimes.measured import classify_step
from tplimit.regimes.regime import Regime, with_legend
from tplimit.reproduction.reproduce import Experiment, experiments, rows_of
from tplimit.reproduction.verdicts import summary

__all__ = ["Study", "app", "run_study"]

app = typer.Typer(
    name="tplimit",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def _print_version(asked: bool) -> None:
    if asked:
        typer.echo(f"tplimit {version('tplimit')}, jax {version('jax')}")
        raise typer.Exit


@app.callback()
def tplimit(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Which versions."),
    ] = False,
) -> None:
    """Infinite-width limits of neural networks, beside networks of finite width."""


def _report(study: Study, out: Path) -> None:
    console = Console()
    try:
        start = time.monotonic()
        with plain_warnings():
            comparison = run_study(study)
        seconds = time.monotonic() - start
    except (LimitError, TypeError, ValueError, OSError, ModuleNotFoundError) as error:
        raise failed(error) from error
    console.print(comparison.table())
    label = None if study.step else "f at test point"
    figure = comparison.plot(out / "comparison.png", label=label)
    result = comparison.save(out / "result.json")
    record = {"study": asdict(study), "seconds": round(seconds, 1), **comparison.to_dict()}
    write_text(result, json.dumps(record, indent=1, allow_nan=False) + "\n")
    console.print(
        f"{seconds:.0f} s; figure: {figure}; numbers: {result}", markup=False, soft_wrap=True
    )
    if comparison.limit is None:
        raise typer.Exit(1)


Out = Annotated[Path, typer.Option(help="Folder for the figure and the result file.")]


def _with_options(*names: str, out: str) -> Callable[[Any], Any]:
    """Decorator: a command of a study and a folder, whose options are these fields of `Study`."""

    def decorate(function: Callable[[Study, Path], None]) -> Callable[..., None]:
        hints = get_type_hints(Study, include_extras=True)
        chosen = [one for one in fields(Study) if not names or one.name in names]
        options = [
            inspect.Parameter(
                one.name, inspect.Parameter.KEYWORD_ONLY,
                default=one.default, annotation=hints[one.name],
            )
            for one in chosen
        ]  # fmt: skip
        options.append(
            inspect.Parameter(
                "out", inspect.Parameter.KEYWORD_ONLY, default=Path(out), annotation=Out
            )
        )

        @functools.wraps(function)
        def command(**given: Any) -> None:
            folder = given.pop("out")
            function(Study(**given), folder)

        command.__signature__ = inspect.Signature(options)  # type: ignore[attr-defined]
        command.__annotations__ = {one.name: one.annotation for one in options}
        return command

    return decorate


@app.command()
@_with_options("widths", "seeds", "steps", "samples", "replicates", out="tplimit-demo")
def demo(study: Study, out: Path) -> None:
    """Handwritten digits, 2 hidden layers, muP: networks of growing width close on their limit."""
    _report(study, out)


@app.command()
@_with_options(out="tplimit-compare")
def compare(study: Study, out: Path) -> None:
    """Networks of growing width close on their limit: built-in ones, or your own (--step)."""
    _report(study, out)


app.command()(kernels.kernels)


@app.command()
def classify(
    parameterization: Annotated[str, typer.Argument(help='A name, or "golikov(-0.5, 0)".')],
    depth: Annotated[int, typer.Option(min=1, help="Hidden layers.")] = 2,
    activation: Annotated[str, typer.Option(help="A name, as in tplimit.mlp.")] = "tanh",
    bias: Annotated[Bias, typer.Option(help="Layers with a bias.")] = Bias.none,
    optimizer: Annotated[Optimizer | None, typer.Option(help=OPTIMIZER)] = None,
    run: Annotated[
        bool, typer.Option("--run", help="Also run three steps at infinite width (a minute).")
    ] = False,
    explain: Annotated[
        bool, typer.Option("--explain", help="Say what grows or does not move, and what mends it.")
    ] = False,
) -> None:
    """The regime of a parameterization: stable, trivial, kernel or feature learning; exponents."""
    console = Console()
    try:
        scaling = parse_parameterization(parameterization)
        if scaling.biases is not None:
            bias = Bias.all
        model = mlp(depth, inputs=3, activation=activation, bias=BIASES[bias])
        with_updates = transformation(optimizer)
        found = {"counted": counted.classify(scaling, model, with_updates)}
        if run:
            batch = jax.random.normal(jax.random.key(1), (2, 3)), jnp.array([1.0, -1.0])
            step = scaling.step(model, "mse", 0.5, with_updates)
            with plain_warnings(), console.status("three steps at infinite width"):
                found["measured"] = classify_step(step, scaling.theta(model), batch)
        how = "" if optimizer is None else f", {optimizer}"
        title = f"{parameterization}, {depth} hidden layers, {activation}{how}"
        console.print(with_legend(_exponents(title, found), _SIGNS))
        if explain:
            for way, regime in found.items():
                with plain_warnings(), console.status("what mends it"):
                    told = regime.explain()
                console.print(f"\n{way}", style="bold")
                console.print(told)
    except (LimitError, ValueError, TypeError) as error:
        raise failed(error) from error


_SIGNS = (
    "A positive power grows with the width n, a negative one vanishes. r = 0: features move; "
    "r > 0: they move by n^-r, not at all in the limit. Layers are numbered from the input."
)


def _exponents(title: str, found: dict[str, Regime]) -> Table:
    """The fields and exponents of regimes, side by side."""
    table = Table(title=title)
    table.add_column("", style="bold")
    for way in found:
        table.add_column(way)
    table.add_column("exponent of")
    for row in ("name", "stable", "trivial", "feature_learning", "kernel"):
        table.add_row(row.replace("_", " "), *(str(getattr(r, row)) for r in found.values()), "")
    meanings = {n: m for regime in found.values() for n, m in regime.meanings().items()}
    for name, meaning in meanings.items():
        table.add_row(name, *(_shown(regime, name) for regime in found.values()), meaning)
    return table


def _shown(regime: Regime, name: str) -> str:
    if name not in regime.exponents:
        return ""
    mark, power = regime.mark(name), regime.exponents[name]
    return f"{mark}{power}" if name == "r" else f"{mark}n^{power}"


@app.command()
def reproduce(
    name: Annotated[str, typer.Argument(help="An experiment; without it, what there is.")] = "",
    only: Annotated[str, typer.Option(help="Scripts, with commas; default: all.")] = "",
    quick: Annotated[bool, typer.Option("--quick", help="Seconds instead of minutes.")] = False,
    out: Annotated[Path, typer.Option(help="Folder for the page, figures and numbers.")] = (
        Path("tplimit-reproduce")
    ),
    folder: Annotated[Path, typer.Option(help="Where the experiments are.")] = Path("experiments"),
) -> None:
    """Claims of the literature: predicted, measured, verdict. Writes a page with figures."""
    console = Console()
    say = lambda text: console.print(text, markup=False, highlight=False, soft_wrap=True)
    try:
        known = experiments(folder)
        if not name:
            for experiment in known.values():
                _list(experiment, say)
            return
        if name not in known:
            raise ValueError(f"unknown experiment {name!r}: there are {', '.join(known) or 'none'}")
        experiment = known[name]
        scripts = experiment.choose([part.strip() for part in only.split(",") if part.strip()])
    except (ValueError, FileNotFoundError) as error:
        raise failed(error) from error
    broken = []
    for i, script in enumerate(scripts, start=1):
        say(f"[{i}/{len(scripts)}] {script}: {_title(experiment.scripts[script])}")
        record = experiment.run(script, out / name, quick)
        if "error" in record:
            broken.append(script)
            say(f"    failed: {record['error']}")
        else:
            say(f"    {record['seconds']:.0f} s: {summary(rows_of(record))}")
    page = out / f"{name}.md"
    write_text(page, experiment.page(out / name))
    say(f"page: {page}")
    if broken:
        raise typer.Exit(1)


def _list(experiment: Experiment, say: Callable[[str], None]) -> None:
    say(f"{experiment.name}: {_title(experiment.introduction)}")
    for script, text in experiment.scripts.items():
        say(f"    {script}: {_title(text)}")


def _title(docstring: str) -> str:
    return docstring.partition("\n")[0]
