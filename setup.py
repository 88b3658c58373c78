"""What pyproject.toml cannot say: project URLs, and README with links that lead to the repository.

PyPI shows README without the files next to it, so relative links and pictures are made absolute when the package is
built. The address comes from ``REPOSITORY_URL``, from git's ``origin``, or in an sdist from its PKG-INFO. A clone that
has none of them (its origin is a path) gives a package without project URLs, and README as it is.
"""

import email
import os
import re
import shutil
import subprocess
from pathlib import Path
from urllib.parse import urlsplit

from setuptools import setup

ROOT = Path(__file__).parent
LINK = re.compile(r"\]\((?!\w+:|#)([^)\s]+)\)")
PICTURES = (".png", ".svg", ".gif", ".jpg")


def web_address(remote: str) -> str:
    """Return a git remote as an https address without credentials and ``.git``; empty if it is no host's."""
    remote = re.sub(r"^[\w.-]+@([\w.-]+):", r"https://\1/", remote.strip())
    parts = urlsplit(remote)
    if parts.scheme not in {"http", "https", "ssh"} or not parts.hostname:
        return ""
    return f"https://{parts.hostname}{parts.path.rstrip('/').removesuffix('.git')}"


def repository() -> str:
    """Return the repository's address; empty if it is not known."""
    if given := os.environ.get("REPOSITORY_URL"):
        return web_address(given)
    if (ROOT / ".git").exists() and shutil.which("git"):
        command = ["git", "-C", str(ROOT), "remote", "get-url", "origin"]
        return web_address(subprocess.run(command, capture_output=True, text=True, check=False).stdout)
    if (ROOT / "PKG-INFO").exists():
        fields = email.message_from_string((ROOT / "PKG-INFO").read_text(encoding="utf-8"))
        urls = dict(each.split(", ", 1) for each in fields.get_all("Project-URL", []))
        return urls.get("Source", "")
    return ""


def urls(address: str) -> dict[str, str]:
    """Return the project's links, by the labels that PyPI knows."""
    if not address:
        return {}
    pages = {"Homepage": "", "Source": "", "Issues": "/issues"}
    files = {"Documentation": "docs/index.md", "Changelog": "CHANGELOG.md"}
    return {
        **{label: address + page for label, page in pages.items()},
        **{label: f"{address}/blob/HEAD/{file}" for label, file in files.items()},
    }


def with_absolute_links(text: str, address: str) -> str:
    """Return Markdown whose relative links and pictures lead to the repository; links within the page stay."""
    if not address:
        return text
    return LINK.sub(lambda m: f"]({address}/{'raw' if m[1].endswith(PICTURES) else 'blob'}/HEAD/{m[1]})", text)


if __name__ == "__main__":
    address = repository()
    setup(
        long_description=with_absolute_links((ROOT / "README.md").read_text(encoding="utf-8"), address),
        long_description_content_type="text/markdown",
        project_urls=urls(address),
    )
