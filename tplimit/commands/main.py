"""The command `tplimit`: a thin layer over `tplimit.compare` and `tplimit.reproduce`."""

import ast
import functools
import inspect
import json
import re
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from enum import StrEnum
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, Literal, get_type_hints

import jax
import jax.numpy as jnp
import typer
from rich.console import Console
from rich.table import Table

from tplimit import arguments, parameterizations
from tplimit.commands import kernels
from tplimit.commands.data import SOURCES, Data, varying
from tplimit.commands.optimizers import Optimizer
from tplimit.errors import LimitError
from tplimit.networks.models import mlp
from tplimit.output.files import write_text
from tplimit.parameterizations import Parameterization
from tplimit.regimes import counted
from tplimit.regimes.measured import classify_step
from tplimit.reproduction.reproduce import Experiment, experiments, rows_of
from tplimit.reproduction.verdicts import summary
from tplimit.training.compare import compare as compare_widths
from tplimit.training.comparison import Comparison

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


class Bias(StrEnum):
    """Layers that have a bias."""

    none = "none"
    first = "first"
    all = "all"


class Source(StrEnum):
    """Data that the command line offers."""

    digits = "digits"
    random = "random"


_BIASES: dict[Bias, bool | Literal["first"]] = {
    Bias.none: False,
    Bias.first: "first",
    Bias.all: True,
}


class Widths(tuple[int, ...]):
    """Finite widths, on the command line with commas."""

    def __str__(self) -> str:
        return ",".join(map(str, self))


def _parse_widths(text: Any) -> Widths:
    if isinstance(text, Widths):
        return text
    try:
        widths = Widths(int(part) for part in text.split(","))
    except ValueError:
        raise typer.BadParameter(f"{text!r}: give integers with commas, as in 64,128,256") from None
    if min(widths) < 1 or len(set(widths)) < len(widths):
        raise typer.BadParameter(f"{text!r}: widths are positive and all different")
    return widths


def _checked_parameterization(text: str) -> str:
    try:
        parse_parameterization(text)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    return text


_WIDTHS = Widths((64, 128, 256, 512, 1024, 2048, 4096))
_OPTIMIZER = "An optimizer of optax, with its defaults (momentum 0.9); default: gradient descent."
_POWERS = "Powers of the width: a name in tplimit.parameterizations, or 'golikov(-0.5, 0)'."


@dataclass(frozen=True)
class Study:
    """A comparison of widths; its fields are the options of the command line."""

    depth: Annotated[int, typer.Option(min=1, help="Hidden layers.")] = 2
    activation: Annotated[str, typer.Option(help="A name, as in tplimit.mlp.")] = "tanh"
    parameterization: Annotated[
        str, typer.Option(callback=_checked_parameterization, help=_POWERS)
    ] = "mup"
    bias: Annotated[Bias, typer.Option(help="Layers with a bias.")] = Bias.none
    data: Annotated[Source, typer.Option(help="Where the points come from.")] = Source.digits
    train: Annotated[int, typer.Option(min=1, help="Training points.")] = 32
    test: Annotated[int, typer.Option(min=1, help="Test points.")] = 8
    steps: Annotated[int, typer.Option(min=1, help="Steps of training.")] = 20
    batch_size: Annotated[
        int | None, typer.Option(min=1, help="A divisor of --train; default: all.")
    ] = None
    lr: Annotated[float, typer.Option(help="Base learning rate.")] = 0.5
    optimizer: Annotated[Optimizer | None, typer.Option(help=_OPTIMIZER)] = None
    widths: Annotated[
        Widths,
        typer.Option(parser=_parse_widths, metavar="N,N,...", help="Finite widths, with commas."),
    ] = _WIDTHS
    seeds: Annotated[int, typer.Option(min=2, help="Independent networks per width.")] = 8
    samples: Annotated[
        int | None,
        typer.Option(
            min=2, help="Monte Carlo particles of the limit; default: as in tplimit.train."
        ),
    ] = None
    replicates: Annotated[int, typer.Option(min=1, help="Independent samplings of the limit.")] = 4
    seed: Annotated[int, typer.Option(min=0, help="Of the data and of all keys.")] = 0


def run_study(study: Study) -> Comparison:
    """Squared error on two classes, labels ±1; the outputs at the test points are observed.

    Full-batch training, or minibatches in a fixed order where `batch_size` is given. An optimizer
    is given the inputs that vary over the training points only.

    Raises:
        ValueError: sizes that do not fit, a rate that is not positive, no such parameterization;
            LimitError: the program has no limit.
    """
    lr = arguments.positive("--lr", study.lr)
    data = SOURCES[study.data](study.train, study.test, seed=study.seed)
    if study.optimizer is not None:
        # Weights of inputs that are always 0 have no gradient, and its sign, or 0 / 0, no limit.
        data = varying(data)
    parameterization = parse_parameterization(study.parameterization)
    if parameterization.biases is not None and study.bias is not Bias.all:
        raise ValueError(f"{study.parameterization} scales biases: give --bias all")
    model = mlp(
        study.depth,
        inputs=data.x.shape[1],
        activation=study.activation,
        bias=_BIASES[study.bias],
    )
    points = jnp.asarray(data.x_test)
    predict = parameterization.predict(model)
    return compare_widths(
        parameterization.step(model, "mse", lr, _transformation(study.optimizer)),
        parameterization.theta(model),
        _minibatches(data, study.batch_size, study.steps),
        widths=study.widths,
        seeds=study.seeds,
        key=jax.random.key(study.seed),
        samples=study.samples,
        replicates=study.replicates,
        observe=lambda state: predict(state, points),
    )


def _transformation(optimizer: Optimizer | None) -> Any:
    return None if optimizer is None else optimizer.transformation()


def parse_parameterization(text: str) -> Parameterization:
    """The parameterization of a name such as "ip_llr", or of a call, "golikov(-0.5, q_a=1, q_w=0)".

    Raises:
        ValueError: there is none of this name, or its arguments are missing or do not fit.

    >>> parse_parameterization("intermediate(0.75)").name
    'intermediate(0.75)'
    """
    name, call, _ = text.partition("(")
    found = getattr(parameterizations, name, None) if name in _PARAMETERIZATIONS else None
    if found is None:
        raise ValueError(
            f"unknown parameterization {name!r}: use one of {', '.join(_PARAMETERIZATIONS)}"
        )
    if isinstance(found, Parameterization) and not call:
        return found
    if not call:
        raise ValueError(f"{name} needs its exponents: write for instance {_CALLS[name]!r}")
    try:
        expression = ast.parse(text, mode="eval").body
        assert isinstance(expression, ast.Call)
        numbers = [ast.literal_eval(a) for a in expression.args]
        named = {str(k.arg): ast.literal_eval(k.value) for k in expression.keywords}
        made: Parameterization = found(*numbers, **named)
        return made
    except (AssertionError, SyntaxError, TypeError, ValueError) as error:
        raise ValueError(f"{text!r} is no call of {name}: {error}") from error


_CALLS = {"golikov": "golikov(-0.5, 0)", "intermediate": "intermediate(0.75)"}
_PARAMETERIZATIONS = [
    name
    for name in parameterizations.__all__
    if isinstance(getattr(parameterizations, name), Parameterization) or name in _CALLS
]


def _minibatches(data: Data, size: int | None, steps: int) -> list[Any]:
    count = len(data.x)
    size = count if size is None else size
    if not 1 <= size <= count or count % size:
        raise ValueError(f"the batch size {size} has to divide the {count} training points")
    slices = [slice(i, i + size) for i in range(0, count, size)]
    return [(data.x[s], data.y[s]) for t in range(steps) for s in [slices[t % len(slices)]]]


def _report(study: Study, out: Path) -> None:
    console = Console()
    try:
        start = time.monotonic()
        comparison = run_study(study)
        seconds = time.monotonic() - start
    except (LimitError, ValueError, ModuleNotFoundError) as error:
        raise _failed(error) from error
    console.print(comparison.table())
    figure = comparison.plot(out / "comparison.png", label="f at test point")
    result = comparison.save(out / "result.json")
    record = {"study": asdict(study), "seconds": round(seconds, 1), **comparison.to_dict()}
    write_text(result, json.dumps(record, indent=1, allow_nan=False) + "\n")
    console.print(
        f"{seconds:.0f} s; figure: {figure}; numbers: {result}", markup=False, soft_wrap=True
    )
    if comparison.limit is None:
        raise typer.Exit(1)


def _failed(error: Exception) -> typer.Exit:
    # The message is for the user; a traceback would only hide it.
    Console(stderr=True).print(
        f"tplimit: {error}", style="red", markup=False, highlight=False, soft_wrap=True
    )
    return typer.Exit(1)


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
    """Networks of growing width, of your choice, close on their limit."""
    _report(study, out)


app.command()(kernels.kernels)


@app.command()
def classify(
    parameterization: Annotated[str, typer.Argument(help='A name, or "golikov(-0.5, 0)".')],
    depth: Annotated[int, typer.Option(min=1, help="Hidden layers.")] = 2,
    activation: Annotated[str, typer.Option(help="A name, as in tplimit.mlp.")] = "tanh",
    bias: Annotated[Bias, typer.Option(help="Layers with a bias.")] = Bias.none,
    optimizer: Annotated[Optimizer | None, typer.Option(help=_OPTIMIZER)] = None,
    run: Annotated[
        bool, typer.Option("--run", help="Also run three steps at infinite width (a minute).")
    ] = False,
) -> None:
    """The regime of a parameterization: stable, trivial, kernel or feature learning; exponents."""
    console = Console()
    try:
        scaling = parse_parameterization(parameterization)
        if scaling.biases is not None:
            bias = Bias.all
        model = mlp(depth, inputs=3, activation=activation, bias=_BIASES[bias])
        transformation = _transformation(optimizer)
        found = {"counted": counted.classify(scaling, model, transformation)}
        if run:
            batch = jax.random.normal(jax.random.key(1), (2, 3)), jnp.array([1.0, -1.0])
            step = scaling.step(model, "mse", 0.5, transformation)
            with console.status("three steps at infinite width"):
                regime = classify_step(step, scaling.theta(model), batch)
            found["measured"] = regime
    except (LimitError, ValueError, TypeError) as error:
        raise _failed(error) from error
    how = "" if optimizer is None else f", {optimizer}"
    table = Table(title=f"{parameterization}, {depth} hidden layers, {activation}{how}")
    table.add_column("", style="bold")
    for way in found:
        table.add_column(way)
    table.add_column("exponent of")
    rows = ("name", "stable", "trivial", "feature_learning", "kernel")
    for row in rows:
        table.add_row(row.replace("_", " "), *(str(getattr(r, row)) for r in found.values()), "")
    names = dict.fromkeys(name for regime in found.values() for name in regime.exponents)
    for name in names:
        powers = [regime.exponents.get(name) for regime in found.values()]
        form = "{}" if name == "r" else "n^{}"
        meaning = counted.MEANINGS.get(re.sub(r"_\d+$", "_l", name), counted.MEANINGS.get(name, ""))
        table.add_row(name, *("" if e is None else form.format(e) for e in powers), meaning)
    console.print(table)


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
        raise _failed(error) from error
    failed = []
    for i, script in enumerate(scripts, start=1):
        say(f"[{i}/{len(scripts)}] {script}: {_title(experiment.scripts[script])}")
        record = experiment.run(script, out / name, quick)
        if "error" in record:
            failed.append(script)
            say(f"    failed: {record['error']}")
        else:
            say(f"    {record['seconds']:.0f} s: {summary(rows_of(record))}")
    page = out / f"{name}.md"
    write_text(page, experiment.page(out / name))
    say(f"page: {page}")
    if failed:
        raise typer.Exit(1)


def _list(experiment: Experiment, say: Callable[[str], None]) -> None:
    say(f"{experiment.name}: {_title(experiment.introduction)}")
    for script, text in experiment.scripts.items():
        say(f"    {script}: {_title(text)}")


def _title(docstring: str) -> str:
    return docstring.partition("\n")[0]
