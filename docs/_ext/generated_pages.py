"""Pages made before each build: the notebooks, and the API with every public name."""

from importlib import import_module
from inspect import isclass, isfunction, ismodule
from pathlib import Path
from pkgutil import iter_modules
from typing import Any

from repository_links import from_tutorials

import ignite_prune

INTRO = """API
===

Every public name, by module. What is not listed here, or begins with an underscore, is private.

.. toctree::
   :hidden:
   :maxdepth: 1

"""
TABLE = """.. autosummary::
   :toctree: names
   :nosignatures:

"""


def packages() -> list[str]:
    """Return the package and those below it that have public names."""
    below = [
        f"ignite_prune.{each.name}" for each in iter_modules(ignite_prune.__path__) if not each.name.startswith("_")
    ]
    return ["ignite_prune", *(name for name in below if hasattr(import_module(name), "__all__"))]


def public_names(package: str) -> list[str]:
    """Return a package's public names, other than those of modules."""
    module = import_module(package)
    names = [name for name in module.__all__ if not ismodule(getattr(module, name))]
    return sorted(names, key=lambda name: (not isclass(getattr(module, name)), name.lower()))


def homes(package: str) -> dict[str, str]:
    """Return the package that documents each name which the main package only hands on."""
    if package != "ignite_prune":
        return {}
    top, found = import_module(package), dict[str, str]()
    for below in packages()[1:]:
        module = import_module(below)
        found |= {n: below for n in public_names(below) if n in top.__all__ and getattr(top, n) is getattr(module, n)}
    return dict(sorted(found.items(), key=lambda pair: pair[0].lower()))


def page(package: str) -> str:
    """Return the page of one package: its docstring and tables of its classes, functions and constants."""
    module = import_module(package)
    short = package.removeprefix("ignite_prune.")
    lines = [short, "=" * len(short), "", f".. automodule:: {package}", "   :no-members:", "   :no-index:", ""]
    lines += [f".. currentmodule:: {package}", ""]
    elsewhere = homes(package)
    if elsewhere:
        lines += ["Imported here from other modules:", ""]
        lines += [f"- :py:obj:`{name} <{home}.{name}>`" for name, home in elsewhere.items()] + [""]
    kinds = {
        "Classes": isclass,
        "Functions": isfunction,
        "Other": lambda each: not isclass(each) and not isfunction(each),
    }
    for title, is_kind in kinds.items():
        names = [name for name in public_names(package) if name not in elsewhere and is_kind(getattr(module, name))]
        if names:
            lines += [title, "-" * len(title), "", TABLE + "\n".join(f"   {name}" for name in names), ""]
    return "\n".join(lines)


def write(path: Path, text: str) -> None:
    """Write a page if it has changed, so that a second build is quick."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists() or path.read_text(encoding="utf-8") != text:
        path.write_text(text, encoding="utf-8")


def generate(app: Any, config: Any) -> None:
    """Write ``api/`` and ``tutorials/``; autosummary makes the pages of names from those of ``api/``."""
    docs = Path(app.srcdir)
    listed = packages()
    lines = [f"   {name}" for name in listed] + [""]
    for name in listed:
        summary = (import_module(name).__doc__ or "").strip().partition("\n")[0].removeprefix("ignite_prune: ")
        lines.append(f"- :doc:`{name.removeprefix('ignite_prune.')} <{name}>`: {summary}")
    write(docs / "api" / "index.rst", INTRO + "\n".join(lines) + "\n")
    known = {f"{name}.{each}" for name in listed for each in public_names(name) if each not in homes(name)}
    for stale in (docs / "api" / "names").glob("*.rst"):
        if stale.stem not in known:
            stale.unlink()
    for name in listed:
        write(docs / "api" / f"{name}.rst", page(name))
    config.autosummary_generate = [f"api/{name}.rst" for name in listed]
    tutorials = docs / "tutorials"
    tutorials.mkdir(exist_ok=True)
    notebooks = sorted((docs.parent / "notebooks").glob("*.ipynb"))
    for notebook in notebooks:
        write(tutorials / notebook.name, from_tutorials(notebook.read_text(encoding="utf-8")))
    listing = "\n".join(each.stem for each in notebooks)
    head = "# Tutorials\n\nNotebooks that run on a laptop; each takes a few minutes to read.\n\n"
    write(tutorials / "index.md", f"{head}```{{toctree}}\n:maxdepth: 1\n\n{listing}\n```\n")


def list_the_rest(app: Any, docname: str, source: list[str]) -> None:
    """Add pages that no list names yet to the how-tos."""
    if docname == "howto/index":
        docs = Path(app.srcdir)
        lists = [docs / "index.md", *docs.glob("*/index.md")]
        text = "".join(path.read_text(encoding="utf-8") for path in lists)
        pages = [path.stem for path in sorted(docs.glob("*.md")) if path.stem != "index"]
        rest = [f"../{name}" for name in pages if f"{name}\n" not in text]
        source[0] = source[0].replace("<!-- the rest -->", "\n".join(rest))


def setup(app: Any) -> dict[str, bool]:
    """Connect the generation to Sphinx."""
    app.connect("config-inited", generate)
    app.connect("env-get-outdated", lambda *_: ["howto/index"])  # new pages have to be listed
    app.connect("source-read", list_the_rest)
    return {"parallel_read_safe": True}
