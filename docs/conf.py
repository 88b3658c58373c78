"""Sphinx configuration; ``make docs`` builds the site, offline too."""

import sys
from pathlib import Path

DOCS = Path(__file__).parent
sys.path[:0] = [str(DOCS / "_ext"), str(DOCS.parent)]

import ignite_prune  # noqa: E402

project = "ignite_prune"
author = copyright = "The ignite_prune authors"
version = release = ignite_prune.__version__

extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.intersphinx",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "myst_nb",
    "sphinx_copybutton",
    "sphinx_design",
    "generated_pages",
    "repository_links",
    "llms_txt",
    "mathml",
]
exclude_patterns = ["_build", "_ext", "_templates", "inventories", "**.ipynb_checkpoints"]
nb_execution_mode = "off"  # notebooks are stored with their outputs; tests/test_examples.py runs them
myst_enable_extensions = ["colon_fence", "dollarmath", "deflist"]
myst_heading_anchors = 3
html_math_renderer = "mathml"
templates_path = ["_templates"]

autosummary_ignore_module_all = False
autosummary_imported_members = True
autodoc_member_order = "bysource"
autodoc_typehints = "none"  # docstrings say shapes and units; signatures are shown as written
autodoc_default_options = {"members": True, "show-inheritance": True}
napoleon_google_docstring, napoleon_numpy_docstring = True, False
napoleon_custom_sections = [("Attributes", "params_style")]
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True

# The library's own inventory, or without a network a small one with the names that the docs refer to
intersphinx_mapping = {
    "python": ("https://docs.python.org/3", (None, "inventories/python.inv")),
    "torch": ("https://docs.pytorch.org/docs/stable", (None, "inventories/torch.inv")),
    "ignite": ("https://docs.pytorch.org/ignite", (None, "inventories/ignite.inv")),
}
intersphinx_timeout = 5

html_theme = "furo"
html_title = f"ignite_prune {release}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_theme_options = {
    "light_css_variables": {"color-brand-primary": "#14145a", "color-brand-content": "#2c3fb0"},
    "dark_css_variables": {"color-brand-primary": "#fad43d", "color-brand-content": "#9db4ff"},
    "top_of_page_buttons": [],
}
