"""What to cite: BibTeX of the method, and of what a result used."""

from collections.abc import Iterable
from importlib import metadata
from typing import Any

__all__ = ["BibTeX", "cite"]


class BibTeX(str):
    """Entries of a bibliography; shown as they are, not quoted, where a session shows values."""

    __slots__ = ()

    def __repr__(self) -> str:
        return str(self)


def _preprint(authors: str, title: str, arxiv: str, year: int) -> dict[str, Any]:
    return {
        "kind": "misc",
        "author": authors,
        "title": f"{{{title}}}",
        "year": year,
        "eprint": arxiv,
        "archivePrefix": "arXiv",
    }


def _article(authors: str, title: str, year: int, **where: str) -> dict[str, Any]:
    return {"kind": "article", "author": authors, "title": f"{{{title}}}", "year": year, **where}


#: The mathematics that every limit rests on.
METHOD = ("yang2020ntk", "yang2020matrix", "yang2021feature", "yang2023adaptive", "hajjar2021",
          "golikov2020dynamically", "golikov2020towards")  # fmt: skip

ENTRIES: dict[str, dict[str, Any]] = {
    "jax2018": {
        "kind": "software",
        "author": "James Bradbury and Roy Frostig and Peter Hawkins and Matthew James Johnson and "
        "Chris Leary and Dougal Maclaurin and George Necula and Adam Paszke and Jake VanderPlas "
        "and Skye Wanderman-Milne and Qiao Zhang",
        "title": "{{JAX}: composable transformations of {Python+NumPy} programs}",
        "year": 2018,
        "url": "https://github.com/jax-ml/jax",
    },
    "yang2020ntk": _preprint(
        "Greg Yang",
        "Tensor Programs II: Neural Tangent Kernel for Any Architecture",
        "2006.14548",
        2020,
    ),
    "yang2020matrix": _preprint(
        "Greg Yang", "Tensor Programs III: Neural Matrix Laws", "2009.10685", 2020
    ),
    "yang2021feature": _preprint(
        "Greg Yang and Edward J. Hu",
        "Feature Learning in Infinite-Width Neural Networks",
        "2011.14522",
        2020,
    ),
    "yang2023adaptive": _preprint(
        "Greg Yang and Etai Littwin",
        "Tensor Programs IVb: Adaptive Optimization in the Infinite-Width Limit",
        "2308.01814",
        2023,
    ),
    "hajjar2021": _preprint(
        r"Karl Hajjar and L{\'e}na{\"\i}c Chizat and Christophe Giraud",
        "Training Integrable Parameterizations of Deep Neural Networks in the Infinite-Width Limit",
        "2110.15596",
        2021,
    ),
    "golikov2020dynamically": _preprint(
        "Eugene A. Golikov",
        "Dynamically Stable Infinite-Width Limits of Neural Classifiers",
        "2006.06574",
        2020,
    ),
    "golikov2020towards": _preprint(
        "Eugene A. Golikov",
        "Towards a General Theory of Infinite-Width Limits of Neural Classifiers",
        "2003.05884",
        2020,
    ),
    "jacot2018": _preprint(
        r"Arthur Jacot and Franck Gabriel and Cl{\'e}ment Hongler",
        "Neural Tangent Kernel: Convergence and Generalization in Neural Networks",
        "1806.07572",
        2018,
    ),
    "lee2018": _preprint(
        "Jaehoon Lee and Yasaman Bahri and Roman Novak and Samuel S. Schoenholz and Jeffrey "
        "Pennington and Jascha Sohl-Dickstein",
        "Deep Neural Networks as Gaussian Processes",
        "1711.00165",
        2017,
    ),
    "lee2019": _preprint(
        "Jaehoon Lee and Lechao Xiao and Samuel S. Schoenholz and Yasaman Bahri and Roman Novak "
        "and Jascha Sohl-Dickstein and Jeffrey Pennington",
        "Wide Neural Networks of Any Depth Evolve as Linear Models Under Gradient Descent",
        "1902.06720",
        2019,
    ),
    "joe2008": _article(
        "Stephen Joe and Frances Y. Kuo",
        "Constructing Sobol' Sequences with Better Two-Dimensional Projections",
        2008,
        journal="SIAM Journal on Scientific Computing",
        volume="30",
        number="5",
        pages="2635--2654",
    ),
    "matousek1998": _article(
        r"Ji{\v{r}}{\'i} Matou{\v{s}}ek",
        "On the L2-Discrepancy for Anchored Boxes",
        1998,
        journal="Journal of Complexity",
        volume="14",
        number="4",
        pages="527--556",
    ),
}  # fmt: skip


def cite(result: Any = None) -> BibTeX:
    """BibTeX of tplimit, of the mathematics it runs, of JAX, and of what a result used besides.

    The mathematics: G. Yang's *Tensor Programs* II, III, IV (with E. Hu) and IVb (with E. Littwin);
    Hajjar, Chizat and Giraud, and Golikov, for the scalings beyond the standard ones. A result
    adds, for instance, the Sobol' points of its particles, or the sources of its kernels.

    Args:
        result: a run of `tplimit.train`, a `tplimit.Comparison`, a kernel of `tplimit.ntk` or
            `tplimit.nngp`, a run or an ensemble of `tplimit.kernels`; None: of the method.

    Returns:
        The entries as one text, to be printed or written to a file.

    Raises:
        TypeError: something else, which does not say what it used.

    >>> import tplimit as tp
    >>> print(tp.cite().splitlines()[1])
      author = {{The tplimit authors}},
    """
    used = () if result is None else getattr(result, "cites", None)
    if used is None or isinstance(result, type):
        raise TypeError(
            f"a {type(result).__name__} does not say what it used: pass a run, a comparison or a "
            "kernel of tplimit, or nothing for the method itself"
        )
    return BibTeX("\n\n".join(_entries([*METHOD, "jax2018", *used])))


def _entries(keys: Iterable[str]) -> Iterable[str]:
    own = {
        "kind": "software",
        "author": "{The tplimit authors}",
        "title": "{tplimit: the infinite-width limit of plain {JAX} programs, as a transformation}",
        "version": metadata.version("tplimit"),
        "year": 2026,
    }
    for key, entry in {"tplimit": own, **{key: ENTRIES[key] for key in keys}}.items():
        lines = [f"  {name} = {{{value}}}," for name, value in entry.items() if name != "kind"]
        yield "\n".join([f"@{entry['kind']}{{{key},", *lines, "}"])
