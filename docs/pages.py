"""Runs the code of the pages; what it prints and draws stands beside it.

A block ``python`` is run; a block ``text`` that follows it is what it prints; a picture that it
saves is in docs/figures and carries the hash of all code of its page up to there. So a test can
tell, without running anything, that a figure is that of the code which is shown with it.

``python docs/pages.py`` runs the pages that have figures of other code, and writes figures and
printed text anew; ``python docs/pages.py --all`` runs all, or name pages.
"""

import contextlib
import hashlib
import io
import re
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import matplotlib
from PIL import Image, PngImagePlugin

DOCS = Path(__file__).parent
ROOT = DOCS.parent
FIGURES = DOCS / "figures"
_BLOCK = re.compile(r"^```python\n(.*?)^```\n(?:\n```text\n(.*?)^```\n)?", re.DOTALL | re.MULTILINE)
_HASH = "code"


@dataclass(frozen=True)
class Block:
    """Code, what it prints if the page shows that (else None), and the line where it begins."""

    code: str
    printed: str | None
    line: int


def pages() -> list[Path]:
    """The README and all pages with code."""
    found = [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]
    return [page for page in found if "_build" not in page.parts and blocks(page)]


def name(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def blocks(page: Path) -> list[Block]:
    text = page.read_text()
    return [
        Block(found[1], found[2], text.count("\n", 0, found.start(1)) + 1)
        for found in _BLOCK.finditer(text)
    ]


def figures(page: Path) -> list[Path]:
    """The figures that a page shows with the code that draws them."""
    shown = re.findall(r"\]\(([^)]*\.png)\)", page.read_text())
    code = "".join(block.code for block in blocks(page))
    found = [(page.parent / path).resolve() for path in shown]
    return [path for path in found if path.parent == FIGURES and f'"{path.name}"' in code]


def digest(page: Path, figure: str) -> str:
    """A hash of the code of a page up to the block that saves the figure."""
    code = [block.code for block in blocks(page)]
    last = next(i for i, part in enumerate(code) if f'"{figure}"' in part)
    return hashlib.sha256("\n".join(code[: last + 1]).encode()).hexdigest()[:16]


def stale(page: Path) -> bool:
    """Whether a figure of the page is missing, or that of other code."""
    return any(written(figure) != digest(page, figure.name) for figure in figures(page))


def written(figure: Path) -> str | None:
    """The hash that a figure carries."""
    if not figure.exists():
        return None
    with Image.open(figure) as image:
        found: str | None = image.info.get(_HASH)
        return found


def run(page: Path, names: dict[str, Any] | None = None) -> Iterator[str]:
    """Run the blocks of a page one after the other in the current folder: what each prints."""
    matplotlib.use("Agg")
    names = {"__name__": page.stem} if names is None else names
    for block in blocks(page):
        # Lines count from the top of the page, so that errors name them.
        code = compile("\n" * (block.line - 1) + block.code, name(page), "exec", dont_inherit=True)
        out = io.StringIO()
        with contextlib.redirect_stdout(out), mock.patch.object(sys, "argv", [page.stem]):
            exec(code, names)
        yield out.getvalue()


def record(page: Path) -> None:
    """Run a page, and write its figures and what it prints.

    Errors that a page shows name its lines: where these have moved it is run once more.
    """
    before = page.read_text()
    _record(page)
    after = page.read_text()
    if f"{name(page)}:" in after and before.count("\n") != after.count("\n"):
        _record(page)


def _record(page: Path) -> None:
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        printed = list(run(page))
        for figure in figures(page):
            _keep(Path(folder) / figure.name, figure, digest(page, figure.name))
    texts = iter(printed)

    def with_text(found: re.Match[str]) -> str:
        text = next(texts)
        shown = "" if found[2] is None else f"\n```text\n{_without_ends(text)}```\n"
        return f"```python\n{found[1]}```\n{shown}"

    page.write_text(_BLOCK.sub(with_text, page.read_text()))


def _without_ends(text: str) -> str:
    return "".join(line.rstrip() + "\n" for line in text.splitlines())


def _keep(drawn: Path, figure: Path, code: str) -> None:
    """Copy a picture with the hash of its code, and few colours: pages are read over networks."""
    FIGURES.mkdir(exist_ok=True)
    facts = PngImagePlugin.PngInfo()
    facts.add_text(_HASH, code)
    with Image.open(drawn) as image:
        small = image.convert("RGB").quantize(128, dither=Image.Dither.NONE)
        small.save(figure, pnginfo=facts, optimize=True)


def main(arguments: list[str]) -> None:
    chosen = [page for page in pages() if stale(page)]
    if "--all" in arguments:
        chosen = pages()
    elif arguments:
        chosen = [Path(argument).resolve() for argument in arguments]
    for page in chosen:
        print(name(page), flush=True)
        record(page)


if __name__ == "__main__":
    main(sys.argv[1:])
