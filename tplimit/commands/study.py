"""A comparison of widths as the command line describes it: of built-in networks, or one's own."""

import ast
from dataclasses import dataclass, fields
from enum import StrEnum
from typing import Annotated, Any, Literal

import jax
import jax.numpy as jnp
import typer

from tplimit import arguments, parameterizations
from tplimit.commands import programs
from tplimit.commands.data import SOURCES, Data, of_file, varying
from tplimit.commands.optimizers import Optimizer
from tplimit.networks.models import mlp
from tplimit.parameterizations import Parameterization
from tplimit.training.compare import compare
from tplimit.training.comparison import Comparison

__all__ = [
    "BIASES",
    "OPTIMIZER",
    "Bias",
    "Study",
    "parse_parameterization",
    "run_study",
    "transformation",
]


class Bias(StrEnum):
    """Layers that have a bias."""

    none = "none"
    first = "first"
    all = "all"


BIASES: dict[Bias, bool | Literal["first"]] = {
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
OPTIMIZER = "An optimizer of optax, with its defaults (momentum 0.9); default: gradient descent."
_DATA = (
    "digits, random, or a file: .csv (the label in the last column), .npz (x, y, perhaps x_test, "
    "y_test), or file.py:name, the batches of --step."
)
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
    data: Annotated[str, typer.Option(help=_DATA)] = "digits"
    train: Annotated[int, typer.Option(min=1, help="Training points.")] = 32
    test: Annotated[int, typer.Option(min=1, help="Test points.")] = 8
    steps: Annotated[int, typer.Option(min=1, help="Steps of training.")] = 20
    batch_size: Annotated[
        int | None, typer.Option(min=1, help="A divisor of --train; default: all.")
    ] = None
    lr: Annotated[float, typer.Option(help="Base learning rate.")] = 0.5
    optimizer: Annotated[Optimizer | None, typer.Option(help=OPTIMIZER)] = None
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
    step: Annotated[
        str | None,
        typer.Option(metavar="FILE.PY:NAME", help="Your own step(state, batch), for --theta."),
    ] = None
    theta: Annotated[
        str | None,
        typer.Option(
            metavar="FILE.PY:NAME", help="Your declared parameters, or make(n) that returns them."
        ),
    ] = None
    init: Annotated[
        str | None,
        typer.Option(metavar="FILE.PY:NAME", help="Your init(theta) of the state; default: theta."),
    ] = None
    observe: Annotated[
        str | None,
        typer.Option(
            metavar="FILE.PY:NAME", help="Your observe(state), or predict(state, x) of test points."
        ),
    ] = None


#: What describes a built-in network, and so nothing beside a program of one's own.
_BUILT_IN = ("depth", "activation", "parameterization", "bias", "lr", "optimizer")


def run_study(study: Study) -> Comparison:
    """A built-in network with squared error, or the user's program; full batches or minibatches.

    Minibatches are taken in a fixed order. An optimizer of a built-in network is given the inputs
    that vary over the training points only.

    Raises:
        ValueError: sizes that do not fit, a rate that is not positive, no such parameterization,
            no such file or name in it, options that do not go together;
            LimitError: the program has no limit.
    """
    own = study.step is not None
    program = _own(study) if own else _built_in(study)
    step, theta, batches, more = program
    return compare(
        step,
        theta,
        batches,
        widths=study.widths,
        seeds=study.seeds,
        key=jax.random.key(study.seed),
        samples=study.samples,
        replicates=study.replicates,
        **more,
    )


def _built_in(study: Study) -> tuple[Any, Any, Any, dict[str, Any]]:
    """Step, parameters, batches of a network with squared error; its outputs at test points."""
    for name in ("theta", "init", "observe"):
        if getattr(study, name) is not None:
            raise ValueError(f"--{name} is of a program of your own: write --step file.py:step too")
    lr = arguments.positive("--lr", study.lr)
    data = _points(study)
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
        bias=BIASES[study.bias],
    )
    points = jnp.asarray(data.x_test)
    predict = parameterization.predict(model)
    step = parameterization.step(model, "mse", lr, transformation(study.optimizer))
    batches = minibatches(data, study.batch_size, study.steps)
    observe = lambda state: predict(state, points)
    return step, parameterization.theta(model), batches, {"observe": observe}


def _own(study: Study) -> tuple[Any, Any, Any, dict[str, Any]]:
    """Step, parameters, batches, functions of the user's files."""
    if study.theta is None:
        raise ValueError("--step needs parameters: write --theta file.py:theta too")
    default = {one.name: one.default for one in fields(Study)}
    for name in _BUILT_IN:
        if getattr(study, name) != default[name]:
            raise ValueError(f"--{name} is of the built-in networks: leave it out beside --step")
    step = programs.function(str(study.step), "--step")
    theta = programs.load(study.theta, "--theta")
    points = None
    if ".py:" in study.data:
        given = programs.load(study.data, "--data")
        batches: Any = given() if callable(given) else given
    else:
        data = _points(study)
        points = jnp.asarray(data.x_test)
        batches = minibatches(data, study.batch_size, study.steps)
    more = {}
    if study.init is not None:
        more["init"] = programs.function(study.init, "--init")
    if study.observe is not None:
        more["observe"] = programs.observer(study.observe, "--observe", points)
    return step, theta, batches, more


def _points(study: Study) -> Data:
    """Training and test points."""
    if study.data in SOURCES:
        return SOURCES[study.data](study.train, study.test, seed=study.seed)
    if study.data.endswith((".csv", ".npz")):
        return of_file(study.data, study.train, study.test)
    own = ", or batches as --data file.py:name" if study.step is not None else ""
    raise ValueError(
        f"--data {study.data}: write digits, random, or a file that ends in .csv or .npz{own}"
    )


def transformation(optimizer: Optimizer | None) -> Any:
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


def minibatches(data: Data, size: int | None, steps: int) -> list[Any]:
    count = len(data.x)
    size = count if size is None else size
    if not 1 <= size <= count or count % size:
        raise ValueError(f"the batch size {size} has to divide the {count} training points")
    slices = [slice(i, i + size) for i in range(0, count, size)]
    return [(data.x[s], data.y[s]) for t in range(steps) for s in [slices[t % len(slices)]]]
