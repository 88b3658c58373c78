"""Links to files outside of the site lead to the repository, or are plain text where its address is not known."""

import os
import re
import runpy
from pathlib import Path
from typing import Any

LINK = re.compile(r"\[([^\]]*)\]\((?!\w+:|#)([^)\s#]+)(#[^)\s]*)?\)")


def within(docs: Path, here: Path, target: str) -> Path | None:
    """Return a link's target as a path relative to the site; None if it is outside."""
    path = (here / target).resolve()
    return path.relative_to(docs) if path.is_relative_to(docs) else None


def address() -> str:
    """Return the repository's address, as setup.py knows it."""
    found: str = runpy.run_path(str(Path(__file__).parents[2] / "setup.py"), run_name="setup_file")["repository"]()
    return found


def from_tutorials(text: str) -> str:
    """Return a notebook whose links to pages and examples lead there from the site."""
    text = re.sub(r"\]\(\.\./docs/", "](../", text)
    home = address()
    whole = rf"[\1]({home}/blob/HEAD/\2)" if home else r"\1"
    return re.sub(r"\[([^\]\n\"]*)\]\(\.\./((?:examples|tests|benchmarks|README)[^)]*)\)", whole, text)


def setup(app: Any) -> dict[str, bool]:
    """Connect to Sphinx."""
    docs = Path(app.srcdir).resolve()
    home = address()
    moved = {
        docs.parent / "benchmarks" / "README.md": docs / "benchmarks.md",
        docs.parent / "CHANGELOG.md": docs / "changelog.md",
        docs.parent / "CONTRIBUTING.md": docs / "contributing.md",
        **{each: docs / "tutorials" / each.name for each in (docs.parent / "notebooks").glob("*.ipynb")},
    }

    def change(docname: str, source: str) -> str:
        here = (docs / docname).parent

        def replace(match: re.Match[str]) -> str:
            text, target, anchor = match[1], match[2], match[3] or ""
            path = (here / target).resolve()
            if path in moved:
                depth = len(Path(docname).parents) - 1
                return f"[{text}]({'../' * depth}{moved[path].relative_to(docs)})"
            if within(docs, here, target) is not None:
                return match[0]
            inside = path.relative_to(docs.parent) if path.is_relative_to(docs.parent) else Path(target)
            return f"[{text}]({home}/blob/HEAD/{inside}{anchor})" if home else text

        return LINK.sub(replace, source)

    def read(app: Any, docname: str, source: list[str]) -> None:
        if not docname.startswith(("api/", "tutorials/")):
            source[0] = change(docname, source[0])

    def include(app: Any, relative_path: Path, parent: str, content: list[str]) -> None:
        file = (docs / relative_path).resolve()
        if file.is_relative_to(docs.parent) and not file.is_relative_to(docs):
            nearby = re.compile(r"(\]\()(?!\w+:|#)([^)\s]+\))")
            content[0] = change(parent, nearby.sub(lambda m: f"{m[1]}{_from(docs, parent, file)}/{m[2]}", content[0]))

    app.connect("source-read", read)
    app.connect("include-read", include)
    return {"parallel_read_safe": True}


def _from(docs: Path, parent: str, file: Path) -> str:
    """Return the folder of an included file relative to the page that includes it."""
    return os.path.relpath(file.parent, (docs / parent).parent)
