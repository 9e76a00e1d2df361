"""How the documentation site is built: ``make docs``.

Sphinx with furo and MyST, for these reasons:

- Autodoc renders the docstrings, which are the reference, and with ``-n -W`` every name, link and anchor
  that leads nowhere is an error of the build. MkDocs has no such check of what docstrings refer to.
- MyST lets the pages be Markdown that reads well on a code host, too, with links between files.
- furo is readable on phones, in light and dark, and needs nothing from other hosts.

The build needs no network: what docstrings say of other packages leads to the pages in
``_extensions/elsewhere.py``.
"""

from __future__ import annotations

import sys
from pathlib import Path

from pygments.lexers.special import TextLexer
from sphinx.application import Sphinx

import asyncserver

sys.path.insert(0, str(Path(__file__).parent / "_extensions"))

project = "asyncserver"
author = "The asyncserver authors"
project_copyright = author
release = version = asyncserver.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.graphviz",
    "sphinx_copybutton",
    # Those of this directory.
    "api",
    "diagrams",
    "elsewhere",
    "examples",
    "front_pages",
    "names",
    "outside",
    "pictures",
]

# --- sources ---

source_suffix = {".md": "markdown", ".py": "example"}
include_patterns = ["**/*.md", "*.md", "examples/*.py"]
exclude_patterns = ["_*/**"]
nitpicky = True

# --- Markdown ---

myst_enable_extensions = ["colon_fence", "deflist"]
# As code hosts make them of headings, so that `page.md#anchor` leads to the same place there and here.
myst_heading_anchors = 6

# --- docstrings ---

autodoc_default_options = {"members": True}
# The docstring of `__init__` says what the arguments mean.
autoclass_content = "both"
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
# As they stand in the source: a name says more than a number, and `1_000_000` reads better than 1000000.
autodoc_preserve_defaults = True
# What a method says of itself; the docstrings of other packages are in no markup that is known here.
autodoc_inherit_docstrings = False
add_module_names = False
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 88
toc_object_entries_show_parents = "hide"

# --- code ---

highlight_language = "text"
# Quotes and dashes stay what they are: "" is an empty string, and --grace an option.
smartquotes = False


def setup(app: Sphinx) -> None:
    """Called by Sphinx. Pygments knows nothing of HAProxy's files."""
    app.add_lexer("haproxy", TextLexer)


# Of a shell session what is typed.
copybutton_exclude = ".linenos, .gp, .go"

# --- diagrams: _extensions/diagrams.py ---

graphviz_output_format = "svg"
graphviz_dot_args = [
    "-Gbgcolor=transparent",
    "-Gfontname=Helvetica",
    "-Gfontsize=10",
    "-Gnodesep=0.25",
    "-Granksep=0.4",
    "-Gpad=0.2",
    "-Nshape=box",
    "-Nstyle=rounded",
    "-Nfontname=Helvetica",
    "-Nfontsize=10",
    "-Nmargin=0.12,0.06",
    "-Nheight=0.3",
    "-Efontname=Helvetica",
    "-Efontsize=9",
    "-Earrowsize=0.7",
]

# --- HTML ---

html_theme = "furo"
# The theme's own style for dark underlines names, as if they were links.
pygments_dark_style = "a11y-high-contrast-dark"
html_title = f"asyncserver {release}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_logo = "_static/logo.svg"
html_favicon = "_static/logo.svg"
html_copy_source = False
html_show_sphinx = False
html_theme_options = {
    "navigation_with_keys": True,
}
