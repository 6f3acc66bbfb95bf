"""The site: `make docs` builds it into out/site."""

import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE / "_ext"), str(HERE.parent / "src"), str(HERE.parent / "studies" / "src")]

import pages  # noqa: E402

from isobatch.installed import VERSION  # noqa: E402

project, author, copyright = "isobatch", "The isobatch authors", "The isobatch authors"
version = release = VERSION
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_ext", "_static", "results/**/*.md"]
myst_heading_anchors = 4
myst_links_external_new_tab = False
default_role = "code"

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_class_signature = "mixed"
autodoc_preserve_defaults = True
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 88
add_module_names = False
napoleon_numpy_docstring = False
napoleon_use_rtype = False

html_theme = "furo"
html_title = f"isobatch {VERSION}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_js_files = ["site.js"]
html_copy_source = False
html_show_sourcelink = False
html_show_sphinx = False
html_theme_options = {"navigation_with_keys": True}
pygments_style, pygments_dark_style = "a11y-light", "a11y-dark"


def setup(app):
    """Hang the project's own pages into the build."""
    app.connect("source-read", pages.expand)
    app.connect("autodoc-process-docstring", pages.plain_docstring, priority=400)
    app.connect("build-finished", pages.accessible)
    return {"parallel_read_safe": True}
