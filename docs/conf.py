"""Sphinx configuration: `make docs` builds the pages with warnings as errors, and no network."""

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
autodoc_typehints = "description"
html_theme = "furo"
html_title = "tplimit"
html_show_copyright = False
html_static_path = ["_static"]
html_css_files = ["pages.css"]
html_theme_options = {"navigation_with_keys": True}
exclude_patterns = ["_build"]
