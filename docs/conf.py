"""How Sphinx builds the documentation: `make docs`. Nothing is fetched, and a warning is an error."""

from __future__ import annotations

import mpocompress
from mpocompress._version import __version__

for public in mpocompress.__all__:  # imported on first use, which autodoc does not wait for
    vars(mpocompress)[public] = getattr(mpocompress, public)

project = "mpocompress"
author = "the mpocompress authors"
project_copyright = author
version = release = __version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build"]
default_role = "code"  # so that `name` in a docstring reads as in Markdown

html_theme = "furo"
html_title = f"mpocompress {__version__}"
html_copy_source = False

myst_enable_extensions = ["colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
napoleon_custom_sections = ["Source"]
