"""Sphinx configuration: `make docs` builds the pages with warnings as errors, and no network."""

import re
from pathlib import Path
from typing import Any

from docutils import nodes
from PIL import Image

project = "tplimit"
author = "The tplimit authors"
extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.mathjax",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
    "sphinx_design",
    "sphinx-mathjax-offline",  # formulas are set by a script that is part of the pages
]
myst_enable_extensions = ["amsmath", "colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3
autodoc_member_order = "groupwise"
autodoc_typehints = "none"  # docstrings say what arguments are
default_role = "literal"  # `names` in docstrings are code
html_theme = "furo"
html_title = "tplimit"
html_show_copyright = False
html_static_path = ["_static"]
html_css_files = ["pages.css"]
html_theme_options = {"navigation_with_keys": True}
exclude_patterns = ["_build"]


def as_written(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Formulas of docstrings, paragraphs that are indented, keep their lines; bars are bars."""
    found: list[str] = []
    outer = kind = ""  # the last line that is not indented; what the paragraph is
    for line in lines:
        begins = not found or not found[-1]
        indented = line.startswith("    ")
        if line.lstrip().startswith(">>>"):
            kind = "example"
        elif begins and indented and not re.fullmatch(r"[A-Z]\w*:", outer):
            if kind != "formula" and not outer.endswith("::"):
                found += ["::", ""]
            kind = "formula"
        elif begins and line:
            kind = "text"
        if line and not indented:
            outer = line
        if kind in ("text", ""):
            line = re.sub(r"(`[^`]*`)|\|", lambda part: part[1] or r"\|", line)
        found.append(line)
    lines[:] = found


def wide(app: Any, doctree: nodes.document) -> None:
    """Pictures of several panels side by side are a class of their own, see `pages.css`."""
    for image in doctree.findall(nodes.image):
        path = Path(app.srcdir, image["uri"])
        if path.suffix == ".png" and path.exists():
            with Image.open(path) as picture:
                if picture.width > 2 * picture.height:
                    image["classes"].append("wide")


def setup(app: Any) -> None:
    app.connect("doctree-read", wide)
    # Before napoleon, which reads the sections of a docstring.
    app.connect("autodoc-process-docstring", as_written, priority=400)
