"""The commands, as a typer app."""

from __future__ import annotations

import typer

from ignite_prune import __version__
from ignite_prune.cli.bench import bench
from ignite_prune.cli.convert import convert
from ignite_prune.cli.export import export
from ignite_prune.cli.inspect import inspect
from ignite_prune.cli.output import show
from ignite_prune.cli.plan import plan
from ignite_prune.cli.prune import prune
from ignite_prune.cli.report import report
from ignite_prune.cli.sensitivity import sensitivity
from ignite_prune.cli.shrink import shrink

app = typer.Typer(
    help="Pruning for PyTorch-Ignite. Commands that take MODULE:CALLABLE import MODULE and run its code.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
for command in (inspect, plan, prune, shrink, sensitivity, export, report, convert, bench):
    app.command()(command)


def _version(value: bool) -> None:
    if value:
        show(f"ignite-prune {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: bool = typer.Option(False, "--version", callback=_version, is_eager=True, help="Show it."),
) -> None:
    """Pruning for PyTorch-Ignite. Commands that take MODULE:CALLABLE import MODULE and run its code."""
