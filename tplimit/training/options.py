"""How a run is sampled: the options of ``tplimit.train`` and ``tplimit.sample`` as one object."""

from collections.abc import Callable
from dataclasses import dataclass, field, fields
from typing import Any

import jax
from jax.sharding import Mesh

from tplimit import arguments
from tplimit.arguments import Deferred, inf
from tplimit.gaussian import kinds
from tplimit.training.portable import encode_width
from tplimit.transforms.sampling import drawn, is_limit, law_of


def _checked(check: Callable[[Any], Any]) -> dict[str, Any]:
    """The metadata of an option: the function that checks its values."""
    return {"check": check}


def _perhaps(check: Callable[[Any], Any]) -> Callable[[Any], Any]:
    return lambda value: None if value is None else check(value)


def _flag(name: str) -> Callable[[Any], bool]:
    return lambda value: arguments.flag(name, value)


#: Particles of a run. One with functions of all pairs of them has fewer, see ``RoomError``.
SAMPLES = 2**14


@dataclass(frozen=True)
class Options:
    """The options of ``tplimit.train`` about sampling; checked when it is made.

    A new option is a field here, and an argument of ``train`` that is passed on. Where it is not
    compared, a checkpoint of a run with another value is one of the same run.

    Raises:
        TypeError, ValueError: a value of another kind, or out of range; options that do not go
            together.
    """

    width: Any
    samples: int | None = field(metadata=_checked(_perhaps(arguments.samples)))
    replicates: int = field(metadata=_checked(arguments.replicates))
    noise: str = field(metadata=_checked(kinds.named))
    rank_tolerance: float | None = field(metadata=_checked(arguments.rank_tolerance))
    terms: int | None = field(metadata=_checked(_perhaps(arguments.terms)))
    init_output: str = field(metadata=_checked(arguments.init_output))
    fluctuations: bool = field(metadata=_checked(_flag("fluctuations")))
    pair_samples: int | None = field(metadata=_checked(arguments.pair_samples))
    mesh: Mesh | None = field(compare=False, metadata=_checked(arguments.mesh))
    bias_check: bool = field(compare=False, metadata=_checked(_flag("bias_check")))

    def __post_init__(self) -> None:
        # What is no option is refused at every width.
        for one in fields(self):
            if "check" in one.metadata:
                object.__setattr__(self, one.name, one.metadata["check"](getattr(self, one.name)))
        arguments.pair_samples(self.pair_samples, self.kept_terms)
        if self.bias_check and self.replicates < 2:
            raise ValueError(
                "bias_check compares with the standard error: use replicates=2 or more"
            )
        if self.fluctuations and self.width != inf:
            raise ValueError("fluctuations are those around the limit: use width=tp.inf")
        if self.fluctuations and (self.terms == 1 or self.init_output == "zero"):
            raise ValueError(
                "fluctuations are the second of two terms: leave terms and init_output as they are"
            )

    def compared(self) -> dict[str, Any]:
        """What identifies a run."""
        return {one.name: getattr(self, one.name) for one in fields(self) if one.compare}

    def recorded(self) -> dict[str, Any]:
        """What a reader of the numbers has to know, ready for JSON (see ``Trajectory.record``)."""
        found: dict[str, Any] = {
            "width": encode_width(self.width), "replicates": self.replicates,
            "samples": None, "noise": None, "terms": None,
        }  # fmt: skip
        if is_limit(self.width):
            found["rank_tolerance"] = law_of(self.width, self.noise, self.rank_tolerance).tolerance
        if self.width == inf:
            found |= {
                "samples": self.particles, "noise": self.noise, "terms": self.kept_terms,
                "pair_samples": self.pair_samples, "init_output": self.init_output,
                "fluctuations": self.fluctuations,
            }  # fmt: skip
        return found

    @property
    def particles(self) -> int:
        """Monte Carlo particles per width axis."""
        return SAMPLES if self.samples is None else self.samples

    @property
    def kept_terms(self) -> int:
        """Terms that are kept at first."""
        return self.terms or (2 if self.fluctuations else 1)

    @property
    def deferred(self) -> bool:
        """Whether it is a network of finite width, drawn only where it is looked at."""
        return isinstance(self.width, Deferred)

    @property
    def coordinates(self) -> int:
        """Coordinates of a vector at the common width."""
        return self.width.n if isinstance(self.width, Deferred) else self.particles

    @property
    def series(self) -> bool:
        """Whether values have several terms."""
        return not self.deferred and self.kept_terms > 1

    @property
    def keeps_reveals(self) -> bool:
        """Whether what an observation reveals has to hold for all that follow.

        A network of finite width is one function, and so it is for the terms that tell how one
        wide network differs from another. In the limit averages do not depend on it.
        """
        return self.deferred or self.series

    def sample(self, theta: Any, key: jax.Array) -> Any:
        """Limit values of declared parameters, as ``tplimit.sample`` gives them."""
        return drawn(
            theta, key, width=self.width, samples=self.particles, noise=self.noise,
            rank_tolerance=self.rank_tolerance, mesh=self.mesh,
            terms=self.kept_terms, init_output=self.init_output, pair_samples=self.pair_samples,
        )  # fmt: skip
