"""``ignite-prune plan``: what a recipe would do to a model."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from ignite.engine import CallableEventWithFilter, Engine

from ignite_prune import recipe
from ignite_prune._utils.plain_repr import plain_repr
from ignite_prune.cli.failures import guarded
from ignite_prune.cli.options import RUNS, Example, Json
from ignite_prune.cli.output import curve, show, show_json, show_table
from ignite_prune.cli.user_code import model_and_inputs
from ignite_prune.handlers.prune_handler import PruneHandler
from ignite_prune.handlers.run_check import counts_iterations

Recipe = Annotated[Path, typer.Argument(metavar="RECIPE", help="A recipe of this package.")]
Of = Annotated[
    str, typer.Option("--model", metavar="MODULE:CALLABLE", help=f"Returns a model, or (model, inputs). {RUNS}")
]
Epochs = Annotated[
    int | None,
    typer.Option("--epochs", min=1, help="Of the run; the recipe's by default. A schedule that ends later is refused."),
]
Steps = Annotated[int | None, typer.Option("--steps-per-epoch", min=1, help="Iterations of an epoch.")]
_WIDTH = 60


@guarded
def plan(
    source: Recipe,
    model: Of,
    epochs: Epochs = None,
    steps: Steps = None,
    example: Example = None,
    as_json: Json = False,
) -> None:
    """Show which parameters a recipe would prune, when, and the cost; nothing is trained or written.

    The recipe is attached to an engine that never runs. --model imports MODULE and runs its code.
    """
    found = recipe.load(source)
    net, inputs = model_and_inputs(model, example)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.0, momentum=0.9)
    engine = Engine(lambda engine, batch: None)
    given = {} if inputs is None else {"example_inputs": inputs}
    attached = found.attach(engine, model=net, optimizer=optimizer, steps_per_epoch=steps, max_epochs=epochs, **given)
    try:
        answer: dict[str, Any] = {"recipe": str(source), "model": model, "handlers": list(attached)}
        if "pruner" in attached:
            last = epochs or found.epochs
            answer |= _of_pruner(attached.pruner, int(last) if last else None, steps)
    finally:
        attached.detach()
    if as_json:
        show_json(answer)
    else:
        _show(answer)


def _of_pruner(pruner: PruneHandler, epochs: int | None, steps: int | None) -> dict[str, Any]:
    groups = []
    for index, group in enumerate(pruner.param_groups):
        schedule = group["schedule"]
        end = 0.0 if schedule is None else schedule.horizon
        values = [] if schedule is None else [schedule(end * n / (_WIDTH - 1)) for n in range(_WIDTH)]
        groups.append({
            "group": index, "saliency": plain_repr(group["saliency"]), "pattern": plain_repr(group["pattern"]),
            "allocation": plain_repr(group["allocation"]), "schedule": str(schedule), "end": end,
            "final": schedule(end) if schedule is not None else None, "curve": values,
        })  # fmt: skip
    rows = [
        {"name": name, "group": index, "shape": list(shape), "entries": torch.Size(shape).numel()}
        for index, group in enumerate(pruner.param_groups)
        for name, shape in group["shapes"].items()
    ]
    entries = sum(torch.Size(shape).numel() for group in pruner.param_groups for shape in group["shapes"].values())
    costs: dict[str, Any] = {"mask_bytes": entries, "checkpoint_bytes": -(-entries // 8)}
    costs["evidence"] = [need.key for group in pruner.param_groups for need in group["saliency"].needs]
    costs["updates_at"] = _updates(pruner, epochs, steps)
    costs["updates"] = None if costs["updates_at"] is None else len(costs["updates_at"])
    assert pruner._attachment is not None
    costs["unit"] = "iteration" if counts_iterations(pruner._attachment.events[0]) else "epoch"
    if not costs["evidence"] and not pruner.pruning.is_informed:
        began = time.perf_counter()
        pruner.scores()
        costs["seconds_of_scores"] = time.perf_counter() - began
    return {"groups": groups, "parameters": rows, "entries": entries, "costs": costs}


def _updates(pruner: PruneHandler, epochs: int | None, steps: int | None) -> list[int] | None:
    """Return the steps at which the run changes the sparsity; None where its length is not known."""
    assert pruner._attachment is not None
    event = pruner._attachment.events[0]
    counts = epochs if epochs is None or not counts_iterations(event) else epochs * steps if steps else None
    if counts is None:
        return None
    chosen = event.filter if isinstance(event, CallableEventWithFilter) else None
    found, now = [], [0.0] * len(pruner.param_groups)
    for step in range(1, counts + 1):
        if chosen is None or chosen(pruner.attached_to, step):
            targets = pruner.pruning.targets(step)
            if targets != now:
                found.append(step)
            now = targets
    return found


def _told(costs: dict[str, Any]) -> str:
    at, unit = costs["updates_at"], costs["unit"]
    if at is None:
        return "not known without --epochs" + (" and --steps-per-epoch" if unit == "iteration" else "")
    if not at:
        return "none: the run ends before the first"
    return f"{len(at)}, at {unit} {at[0]}" + (f" to {at[-1]}" if len(at) > 1 else "")


def _show(answer: dict[str, Any]) -> None:
    show(f"handlers: {', '.join(answer['handlers'])}")
    if "groups" not in answer:
        return
    rows = [[r["name"], r["group"], "×".join(map(str, r["shape"])), f"{r['entries']:,}"] for r in answer["parameters"]]
    show_table(["parameter", "group", "shape", "entries"], rows, ["total", "", "", f"{answer['entries']:,}"])
    for group in answer["groups"]:
        show(f"\ngroup {group['group']}: {group['saliency']}, {group['pattern']}, {group['allocation']}")
        if group["final"] is not None:
            show(f"  {curve(group['curve'])}")
            show(f"  0{'':{_WIDTH - 2}}{group['end']:g}   to {group['final']:.2%}: {group['schedule']}")
    costs = answer["costs"]
    show(f"\nmasks: {costs['mask_bytes']:,} bytes in memory, {costs['checkpoint_bytes']:,} in a checkpoint")
    show(f"evidence: {', '.join(dict.fromkeys(costs['evidence'])) or 'none'}")
    show(f"updates: {_told(costs)}")
    if "seconds_of_scores" in costs:
        show(f"scores of one update on this machine: {costs['seconds_of_scores'] * 1e3:.1f} ms")
