"""``ignite-prune inspect``: the layers of a model or of a file, and how sparse they are."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from ignite_prune.cli.failures import guarded
from ignite_prune.cli.options import Example, Json
from ignite_prune.cli.output import show, show_json, show_table
from ignite_prune.cli.user_code import is_user_code, model_and_inputs
from ignite_prune.report.checkpoint_file import read_file
from ignite_prune.report.layers import is_buffer, parameters_of

Target = Annotated[
    str, typer.Argument(metavar="FILE|MODULE:CALLABLE", help="A checkpoint, or code that returns a model.")
]


@guarded
def inspect(target: Target, example: Example = None, as_json: Json = False) -> None:
    """Show the layers of a checkpoint, state_dict or model, with masks or zeros.

    A file is only read. MODULE:CALLABLE imports MODULE and runs its code.
    """
    if is_user_code(target):
        _show_model(target, example, as_json)
        return
    found = read_file(Path(target))
    rows: list[dict[str, Any]] = []
    for name, tensor, mask in parameters_of(found):
        kept = tensor.numel() if mask is None else int(mask.count_nonzero())
        row = {"name": name, "shape": list(tensor.shape), "dtype": str(tensor.dtype).removeprefix("torch.")}
        rows.append({**row, "entries": tensor.numel(), "kept": kept, "sparsity": _sparsity(kept, tensor.numel())})
    total = {key: sum(row[key] for row in rows) for key in ("entries", "kept")}
    if as_json:
        whole = {**total, "sparsity": _sparsity(total["kept"], total["entries"])}
        show_json({"file": target, "sparsity_of": found.sparsity_of, "tensors": rows, "total": whole})
        return
    head = ["tensor", "shape", "dtype", "entries", "kept", "sparsity"]
    shown = [
        [
            r["name"],
            "×".join(map(str, r["shape"])),
            r["dtype"],
            f"{r['entries']:,}",
            f"{r['kept']:,}",
            f"{r['sparsity']:.2%}",
        ]
        for r in rows
    ]
    whole_row = ["total", "", "", f"{total['entries']:,}", f"{total['kept']:,}"]
    show_table(head, shown, [*whole_row, f"{_sparsity(total['kept'], total['entries']):.2%}"])
    buffers = sum(is_buffer(name, each) for name, each in found.state.items())
    show(f"sparsity by {found.sparsity_of}" + (f"; {buffers} buffers are left out" if buffers else ""))


def _sparsity(kept: int, entries: int) -> float:
    return 1 - kept / entries if entries else 0.0


def _show_model(target: str, example: str | None, as_json: bool) -> None:
    from ignite_prune.measure import summary

    model, inputs = model_and_inputs(target, example)
    found = summary(model, None, inputs)
    if not as_json:
        show(str(found))
        return
    rows = [{**vars(layer), "sparsity": layer.sparsity} for layer in found.layers]
    whole = {key: value for key, value in vars(found).items() if key != "layers"}
    show_json({"model": target, "layers": rows, "total": {**whole, "sparsity": found.sparsity}})
