"""The command `tplimit`: a thin layer over `tplimit.compare`."""

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import jax
import typer
from rich.console import Console

from tplimit import cli_kernels, parameterizations
from tplimit.comparison import Comparison, compare as compare_widths
from tplimit.data import Data, digits, random_points
from tplimit.errors import LimitError
from tplimit.models import mlp

__all__ = ["Study", "app", "main", "run_study"]

app = typer.Typer(
    name="tplimit",
    help="Infinite-width limits of neural networks, beside networks of finite width.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


class Scaling(StrEnum):
    """Parameterizations that the command line offers."""

    mup = "mup"
    mean_field = "mean_field"
    naive_ip = "naive_ip"
    ntk = "ntk"
    standard = "standard"


class Source(StrEnum):
    """Data that the command line offers."""

    digits = "digits"
    random = "random"


_SOURCES: dict[Source, Callable[..., Data]] = {
    Source.digits: digits,
    Source.random: random_points,
}


@dataclass(frozen=True)
class Study:
    """A comparison of widths, as asked for on the command line."""

    depth: int = 2
    activation: str = "tanh"
    parameterization: Scaling = Scaling.mup
    data: Source = Source.digits
    train: int = 32
    test: int = 8
    steps: int = 20
    batch_size: int | None = None
    lr: float = 0.5
    widths: tuple[int, ...] = (64, 128, 256, 512, 1024, 2048, 4096)
    seeds: int = 8
    samples: int = 2**14
    replicates: int = 4
    seed: int = 0


def run_study(study: Study) -> Comparison:
    """Squared error on two classes, labels ±1; the outputs at the test points are observed.

    Full-batch gradient descent, or minibatches in a fixed order where `batch_size` is given.

    Raises:
        ValueError: sizes that do not fit; LimitError: the program has no limit.
    """
    data = _SOURCES[study.data](study.train, study.test, seed=study.seed)
    parameterization = getattr(parameterizations, study.parameterization)
    model = mlp(study.depth, inputs=data.x.shape[1], activation=study.activation)
    predict = parameterization.predict(model)
    return compare_widths(
        parameterization.step(model, "mse", study.lr),
        parameterization.theta(model),
        _minibatches(data, study.batch_size, study.steps),
        widths=study.widths,
        seeds=study.seeds,
        key=jax.random.key(study.seed),
        samples=study.samples,
        replicates=study.replicates,
        observe=lambda state: predict(state, data.x_test),
    )


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
        # The message is for the user; a traceback would only hide it.
        Console(stderr=True).print(
            f"tplimit: {error}", style="red", markup=False, highlight=False, soft_wrap=True
        )
        raise typer.Exit(1) from error
    console.print(comparison.table())
    figure = comparison.plot(out / "comparison.png", label="f at test point")
    result = out / "result.json"
    record = {"study": asdict(study), "seconds": round(seconds, 1), **comparison.summary()}
    result.write_text(json.dumps(record, indent=1, allow_nan=False) + "\n")
    console.print(
        f"{seconds:.0f} s; figure: {figure}; numbers: {result}", markup=False, soft_wrap=True
    )


def _parse_widths(text: str) -> tuple[int, ...]:
    try:
        widths = tuple(int(part) for part in text.split(","))
    except ValueError:
        raise typer.BadParameter(f"{text!r}: give integers with commas, as in 64,128,256") from None
    if min(widths) < 1 or len(set(widths)) < len(widths):
        raise typer.BadParameter(f"{text!r}: widths are positive and all different")
    return widths


_DEFAULT = Study()
_WIDTHS = ",".join(map(str, _DEFAULT.widths))
Widths = Annotated[str, typer.Option(help="Finite widths, with commas.")]
Positive = Annotated[int, typer.Option(min=1)]
Seeds = Annotated[int, typer.Option(min=2, help="Independent networks per width.")]
Samples = Annotated[int, typer.Option(min=2, help="Monte Carlo particles of the limit.")]
Replicates = Annotated[int, typer.Option(min=1, help="Independent samplings of the limit.")]
Out = Annotated[Path, typer.Option(help="Folder for the figure and the result file.")]


@app.command()
def demo(
    widths: Widths = _WIDTHS,
    seeds: Seeds = _DEFAULT.seeds,
    steps: Positive = _DEFAULT.steps,
    samples: Samples = _DEFAULT.samples,
    replicates: Replicates = _DEFAULT.replicates,
    out: Out = Path("tplimit-demo"),
) -> None:
    """Handwritten digits, 2 hidden layers, muP: networks of growing width close on their limit."""
    study = Study(
        widths=_parse_widths(widths),
        seeds=seeds,
        steps=steps,
        samples=samples,
        replicates=replicates,
    )
    _report(study, out)


@app.command()
def compare(
    depth: Annotated[int, typer.Option(min=1, help="Hidden layers.")] = _DEFAULT.depth,
    activation: Annotated[str, typer.Option(help="A name, as in tplimit.models.ACTIVATIONS.")] = (
        _DEFAULT.activation
    ),
    parameterization: Annotated[
        Scaling, typer.Option(help="Powers of the width.")
    ] = _DEFAULT.parameterization,
    data: Annotated[Source, typer.Option(help="Where the points come from.")] = _DEFAULT.data,
    train: Annotated[int, typer.Option(min=1, help="Training points.")] = _DEFAULT.train,
    test: Annotated[int, typer.Option(min=1, help="Test points.")] = _DEFAULT.test,
    steps: Positive = _DEFAULT.steps,
    batch_size: Annotated[
        int | None, typer.Option(min=1, help="A divisor of --train; default: all.")
    ] = None,
    lr: Annotated[float, typer.Option(help="Base learning rate.")] = _DEFAULT.lr,
    widths: Widths = _WIDTHS,
    seeds: Seeds = _DEFAULT.seeds,
    samples: Samples = _DEFAULT.samples,
    replicates: Replicates = _DEFAULT.replicates,
    seed: Annotated[int, typer.Option(help="Of the data and of all keys.")] = _DEFAULT.seed,
    out: Out = Path("tplimit-compare"),
) -> None:
    """The same for a network, a parameterization and data of your choice."""
    study = Study(
        depth=depth,
        activation=activation,
        parameterization=parameterization,
        data=data,
        train=train,
        test=test,
        steps=steps,
        batch_size=batch_size,
        lr=lr,
        widths=_parse_widths(widths),
        seeds=seeds,
        samples=samples,
        replicates=replicates,
        seed=seed,
    )
    _report(study, out)


app.command()(cli_kernels.kernels)


def main() -> None:
    """Entry point for `python -m tplimit.cli`."""
    app()


if __name__ == "__main__":
    main()
