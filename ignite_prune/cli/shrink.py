"""``ignite-prune shrink``: units that are zero are sliced off."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import torch
import typer

from ignite_prune.cli.failures import guarded
from ignite_prune.cli.options import Example, Json, Model, State
from ignite_prune.cli.output import say, show, show_json
from ignite_prune.cli.user_code import inputs_needed, model_and_inputs
from ignite_prune.core.mask_store import MaskStore

Output = Annotated[Path | None, typer.Option("--output", "-o", help="A .pt file for structure.load_shrunk().")]


@guarded
def shrink(
    model: Model, example: Example = None, state: State = None, output: Output = None, as_json: Json = False
) -> None:
    """Slice off channels, neurons and heads whose weights are all zero; the smaller model computes the same.

    MODULE:CALLABLE and --example import MODULE and run its code.
    """
    from ignite_prune.measure import compare
    from ignite_prune.structure import shrink as shrunk
    from ignite_prune.structure import shrunk_state

    net, inputs = model_and_inputs(model, example, state)
    inputs = inputs_needed(inputs)
    import copy

    whole = copy.deepcopy(net)
    report = shrunk(net, MaskStore.from_nonzero(net), inputs)
    if output is not None:
        if output.exists():
            raise FileExistsError(f"--output: {output} exists; use another name")
        torch.save(shrunk_state(net, report.indices), output)
        say(f"wrote {output}")
    found = compare(whole, net, inputs)
    if as_json:
        names = ("parameters", "kept", "bytes", "flops", "seconds")
        show_json({
            part: {name: getattr(getattr(found, part), name) for name in names} for part in ("before", "after")
        })  # fmt: skip
    else:
        show(str(found))
