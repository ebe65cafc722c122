"""How Sphinx builds these pages: `make docs`, or `python -m sphinx -W --keep-going -n docs build/docs`."""

import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "docs")]

from ssd import __version__  # noqa: E402

project = "ssd-dali"
release = version = __version__
extensions = ["sphinx.ext.autodoc", "myst_parser", "from_the_code"]  # the last lies beside this file

# Docstrings are plain text in which `ticks` mean code.
default_role = "code"
autodoc_default_options = {"members": True, "undoc-members": True}
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
autodoc_inherit_docstrings = False  # those of torch are no plain text
autodoc_preserve_defaults = True
autodoc_use_type_comments = False  # there are none to look for
python_use_unqualified_type_names = True
add_module_names = False
toc_object_entries = False
maximum_signature_line_length = 100
# Other projects' names are no links, because pages are built without the network; nor are private ones.
nitpick_ignore_regex = [("py:.*", r"(?!(ssd|pipelines)\.).*|.*\._[A-Z]\w*")]

html_theme = "furo"
html_title = "ssd-dali"
html_static_path = ["_static"]
html_css_files = ["flags.css"]
html_copy_source = False
html_show_copyright = False
highlight_language = "console"
