"""``ignite-prune convert``: recipes of other tools to recipes of this package."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ignite_prune import recipe
from ignite_prune.cli.failures import MISTAKE, guarded
from ignite_prune.cli.options import Json
from ignite_prune.cli.output import say, show, show_json

Source = Annotated[Path, typer.Argument(metavar="RECIPE", help="YAML, Markdown, JSON, or a masked checkpoint.")]
Dialect = Annotated[str | None, typer.Option("--dialect", help="sparseml, neural_compressor, tfmot or torch.")]
Output = Annotated[Path | None, typer.Option("--output", "-o", help="The file to write; stdout without it.")]


@guarded
def convert(source: Source, output: Output = None, dialect: Dialect = None, as_json: Json = False) -> None:
    """Convert a recipe of SparseML, llm-compressor, Neural Compressor or TFMOT, and report what became of each part.

    Nothing in the file is executed. The recipe goes to stdout or --output, the report to stderr. Exit code 2 if nothing
    in the file prunes.
    """
    found = recipe.read(source, dialect)
    if found.state_dict and output is not None and output.suffix in (".pt", ".pth"):
        import torch

        torch.save(found.state_dict, output)
    text = None if found.recipe is None else found.recipe.dump()
    if as_json:
        items = [vars(each) for each in found.report]
        data = None if found.recipe is None else found.recipe.data()
        show_json({"dialect": found.report.dialect, "report": items, "recipe": data})
    else:
        say(str(found.report))
        if text is not None and output is None:
            show(text)
    if text is not None and output is not None and output.suffix not in (".pt", ".pth"):
        output.write_text(text, encoding="utf-8")
    if text is None:
        raise typer.Exit(MISTAKE)
