"""``ignite-prune export``: a model to a compressed file or to ONNX."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ignite_prune import export as exports
from ignite_prune.cli.failures import guarded
from ignite_prune.cli.options import Example, Json, Model, State
from ignite_prune.cli.output import show, show_json
from ignite_prune.cli.saving import save_model
from ignite_prune.cli.user_code import inputs_needed, model_and_inputs

Output = Annotated[Path, typer.Argument(metavar="OUTPUT", help="A new .safetensors, .onnx, .pt or .pth file.")]


@guarded
def export(model: Model, output: Output, state: State = None, example: Example = None, as_json: Json = False) -> None:
    """Write a model: .safetensors is compressed and sparse, .onnx takes --example, .pt is a state_dict.

    MODULE:CALLABLE and --example import MODULE and run its code.
    """
    net, inputs = model_and_inputs(model, example, state)
    if output.suffix == ".onnx":
        exports.to_onnx(net, inputs_needed(inputs), output)
    else:
        save_model(net, output)
    dense = sum(each.nbytes for each in net.state_dict().values())
    size = output.stat().st_size
    if as_json:
        show_json({"output": output, "bytes": size, "dense_bytes": dense})
    else:
        show(f"{output}: {size:,} bytes, {size / max(dense, 1):.3f} of the {dense:,} bytes of its tensors")
