"""The entry point of the command line."""

from __future__ import annotations

import sys

from ignite_prune._utils.extras import needed


def main() -> None:
    """Run the command line; the process ends with its exit code.

    0: done. 1: code of the user's own raised. 2: a mistake in arguments, files or recipes. 130: interrupted.
    """
    try:
        for package in ("typer", "rich", "yaml", "pydantic"):
            needed(package, "The command line", "cli")
    except ImportError as error:
        sys.exit(f"error: {error}")
    from ignite_prune.cli.app import app

    app(prog_name="ignite-prune")
