"""``ignite-prune sensitivity``: the quality of a model with each layer pruned alone."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from ignite_prune import measure
from ignite_prune.cli.failures import guarded
from ignite_prune.cli.options import (
    RUNS,
    Data,
    Exclude,
    Json,
    Loss,
    Model,
    Params,
    Pattern,
    Saliency,
    State,
    loss_of,
    piece,
)
from ignite_prune.cli.output import show, show_json
from ignite_prune.cli.user_code import called, imported, model_and_inputs

Evaluate = Annotated[
    str, typer.Option("--evaluate", metavar="MODULE:CALLABLE", help=f"Takes the model, returns a number. {RUNS}")
]
Sparsities = Annotated[list[float] | None, typer.Option("--sparsity", "-s", help="To scan; may be repeated.")]
Lower = Annotated[bool, typer.Option("--lower-is-better", help="The number is a loss or an error.")]
Path_ = Annotated[Path | None, typer.Option("--path", help="A file to continue from after an interruption.")]


@guarded
def sensitivity(
    model: Model,
    evaluate: Evaluate,
    sparsities: Sparsities = None,
    params: Params = None,
    exclude: Exclude = None,
    saliency: Saliency = "Magnitude",
    pattern: Pattern = "Unstructured",
    data: Data = None,
    loss: Loss = None,
    state: State = None,
    lower: Lower = False,
    path: Path_ = None,
    as_json: Json = False,
) -> None:
    """Prune each layer alone to several sparsities, and evaluate; the model is restored.

    MODULE:CALLABLE, --evaluate and --data import MODULE and run its code.
    """
    net, _ = model_and_inputs(model, None, state)
    options: dict[str, Any] = {"sparsities": sparsities} if sparsities else {}
    found = measure.sensitivity(
        net,
        imported(evaluate),
        params=params or None,
        exclude=tuple(exclude or ()),
        saliency=piece("saliency", saliency),
        pattern=piece("pattern", pattern),
        data=None if data is None else called(data),
        loss_fn=loss_of(loss),
        higher_is_better=not lower,
        path=path,
        progress=not as_json,
        **options,
    )
    if not as_json:
        show(str(found))
        return
    rows = [{"layer": layer.name, "points": [vars(point) for point in layer.points]} for layer in found.layers]
    show_json({"baseline": found.baseline, "layers": rows})
