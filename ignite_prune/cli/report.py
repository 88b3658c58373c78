"""``ignite-prune report``: a page about a pruned model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from ignite_prune.cli.failures import guarded
from ignite_prune.cli.options import RUNS, Example, Json
from ignite_prune.cli.output import show, show_json
from ignite_prune.cli.user_code import is_user_code, model_and_inputs

Source = Annotated[
    str, typer.Argument(metavar="FILE|FOLDER|MODULE:CALLABLE", help="A checkpoint, a run's folder, or code.")
]
Output = Annotated[Path, typer.Option("--output", "-o", help="An .html or .md file.")]
Of = Annotated[
    str | None, typer.Option("--model", metavar="MODULE:CALLABLE", help=f"The model of a checkpoint. {RUNS}")
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace a file that is no report.")]


@guarded
def report(
    source: Source,
    output: Output = Path("report.html"),
    model: Of = None,
    example: Example = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Write one page about a pruned model: curves, layers, masks, sizes.

    A file is only read. MODULE:CALLABLE, --model and --example import MODULE and run its code.
    """
    from ignite_prune.report.page import report as page  # slow to import

    net, inputs = (None, None) if model is None else model_and_inputs(model, example)
    given: Any = source
    if is_user_code(source):
        given, inputs = model_and_inputs(source, example)
    written = page(given, output, model=net, example_inputs=inputs, overwrite=overwrite)
    show_json({"output": written}) if as_json else show(f"wrote {written}")
