"""Sphinx builds the documentation from these pages and the docstrings: make docs."""

from __future__ import annotations

import tss

project = "TSS"
copyright = "the TSS authors"
version = release = tss.__version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_copybutton"]
html_theme = "furo"
html_title = f"TSS {release}"
myst_heading_anchors = 3
exclude_patterns = ["images"]
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
python_use_unqualified_type_names = True
napoleon_numpy_docstring = False
