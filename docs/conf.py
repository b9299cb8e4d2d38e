"""Sphinx configuration: `make docs` builds the pages with warnings as errors."""

project = "tplimit"
author = "The tplimit authors"
extensions = ["myst_parser", "sphinx.ext.mathjax", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
myst_enable_extensions = ["dollarmath", "amsmath"]
myst_heading_anchors = 3
html_theme = "furo"
html_title = "tplimit"
exclude_patterns = ["_build"]
