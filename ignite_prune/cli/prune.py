"""``ignite-prune prune``: one-shot pruning of a model."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Annotated, Any

import typer
from torch import nn

from ignite_prune import recipe as recipes
from ignite_prune.cli.failures import guarded
from ignite_prune.cli.options import (
    Allocation,
    Data,
    Example,
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
from ignite_prune.cli.output import progress, say, show, show_json
from ignite_prune.cli.saving import save_model
from ignite_prune.cli.user_code import called, model_and_inputs
from ignite_prune.recipe.rules import resolved
from ignite_prune.update.one_shot import prune_model

Sparsity = Annotated[float | None, typer.Option("--sparsity", "-s", help="The pruned fraction, in [0, 1].")]
Recipe = Annotated[
    Path | None, typer.Option("--recipe", help="Groups, saliency, pattern and final sparsities of a recipe.")
]
Output = Annotated[Path | None, typer.Option("--output", "-o", help="A .pt file, or a compressed .safetensors file.")]


@guarded
def prune(
    model: Model,
    sparsity: Sparsity = None,
    recipe: Recipe = None,
    output: Output = None,
    saliency: Saliency = "Magnitude",
    pattern: Pattern = "Unstructured",
    allocation: Allocation = "Global",
    params: Params = None,
    exclude: Exclude = None,
    data: Data = None,
    loss: Loss = None,
    state: State = None,
    example: Example = None,
    as_json: Json = False,
) -> None:
    """Prune a model in one shot, with calibration data where the saliency needs it.

    MODULE:CALLABLE, --data and --example import MODULE and run its code.
    """
    if (sparsity is None) == (recipe is None):
        raise ValueError("give --sparsity or --recipe, one of them")
    if output is not None and output.exists():
        raise FileExistsError(f"--output: {output} exists; use another name")
    net, _ = model_and_inputs(model, example, state)
    options: dict[str, Any] = {"loss_fn": loss_of(loss)}
    if recipe is None:
        options |= {kind: piece(kind, text) for kind, text in _pieces(saliency, pattern, allocation)}
        options |= {"params_or_groups": params or None, "sparsity": sparsity, "exclude": tuple(exclude or ())}
    else:
        options |= _of_recipe(recipe, net)
    batches = None if data is None else called(data)
    with nullcontext(None) if batches is None else progress("calibration", batches) as tracked:
        masks = prune_model(net, data=tracked, **options)
    if output is not None:
        save_model(net, output, masks)
        say(f"wrote {output}")
    if as_json:
        rows = {name: 1 - masks.kept(name) / masks.parameters[name].numel() for name in masks}
        show_json({"sparsity": masks.sparsity, "parameters": rows, "output": output})
        return
    from ignite_prune.measure import summary

    show(str(summary(net, masks)))


def _pieces(saliency: str, pattern: str, allocation: str) -> list[tuple[str, str]]:
    return [("saliency", saliency), ("pattern", pattern), ("allocation", allocation)]


def _of_recipe(path: Path, model: nn.Module) -> dict[str, Any]:
    """Return what ``prune_model`` takes of a recipe, with each group's final sparsity."""
    found = recipes.load(path)
    if found.prune is None:
        raise ValueError(f"{path} has no prune; its handlers act in training")
    given = {
        name: each
        for name, each in found.prune.handler.given().items()
        if name not in ("keep_dense", "shared", "strict")
    }
    if found.prune.structure is not None:
        raise ValueError(f"{path} prunes a traced structure; attach it to a trainer")
    params, schedule = given.pop("params", None), given.pop("schedule", None)
    several = isinstance(params, list) and any(isinstance(each, dict) for each in params)
    groups = []
    for group in params if several and params is not None else [{"params": params}]:
        chosen = group.get("schedule", schedule)
        if chosen is None:
            raise ValueError(f"{path}: a group has no schedule, so that its sparsity is not known")
        rest = {key: each for key, each in group.items() if key != "schedule"}
        groups.append({**rest, "params": resolved(rest["params"], model), "sparsity": chosen(chosen.horizon)})
    return {"params_or_groups": groups, **given}
