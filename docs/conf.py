"""Sphinx: `make docs` builds these pages into build/docs. Nothing in them is loaded from the network."""

import sys
from pathlib import Path

import fusedrnn

sys.path.insert(0, str(Path(__file__).parent / "_extensions"))

project = "fusedrnn"
author = "the fusedrnn developers"
copyright = author
version = release = fusedrnn.__version__

extensions = ["sphinx.ext.autodoc", "sphinx.ext.napoleon", "myst_parser", "mathml", "benchmark_table"]
exclude_patterns = ["_extensions"]
myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3

autodoc_typehints = "none"  # the docstrings give shapes, which say more
autodoc_preserve_defaults = True
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
napoleon_custom_sections = [("Attributes", "params_style")]

html_theme = "furo"
html_title = f"fusedrnn {version}"
html_static_path = ["_static"]
html_css_files = ["fusedrnn.css"]
html_copy_source = False
html_show_sphinx = False
html_theme_options = {"navigation_with_keys": True}
