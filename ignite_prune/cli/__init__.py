"""The command line ``ignite-prune``, also ``python -m ignite_prune`` (requires typer and rich)."""

from typing import TYPE_CHECKING

from ignite_prune._utils.lazy import importer

if TYPE_CHECKING:
    from ignite_prune.cli.entry_point import main

__all__ = ["main"]

if not TYPE_CHECKING:
    __getattr__, __dir__ = importer(__name__, {"main": "entry_point"})
