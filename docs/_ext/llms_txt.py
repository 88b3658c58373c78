"""``llms.txt`` of the site: the file in ``docs/``, and a list of all pages as Markdown."""

from pathlib import Path
from typing import Any


def write(app: Any, error: Exception | None) -> None:
    """Write the file next to the site's first page."""
    if error is None and app.builder.format == "html":
        intro = (Path(app.srcdir) / "llms.txt").read_text(encoding="utf-8").rstrip()
        pages = sorted(name for name in app.env.found_docs if not name.startswith("api/names"))
        lines = [f"- [{app.env.titles[name].astext()}](_sources/{_source(app, name)})" for name in pages]
        text = f"{intro}\n\n## Pages\n\n" + "\n".join(lines) + "\n"
        (Path(app.outdir) / "llms.txt").write_text(text, encoding="utf-8")


def _source(app: Any, name: str) -> str:
    suffix = Path(app.env.doc2path(name)).suffix
    return f"{name}{suffix}.txt"


def setup(app: Any) -> dict[str, bool]:
    """Connect to Sphinx."""
    app.connect("build-finished", write)
    return {"parallel_read_safe": True}
