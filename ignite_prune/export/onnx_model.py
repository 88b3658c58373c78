"""Export to ONNX, checked against the model."""

from __future__ import annotations

import os
import tempfile
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ignite_prune._utils.extras import needed
from ignite_prune._utils.quiet import quiet
from ignite_prune.core.selection import unwrap
from ignite_prune.core.undisturbed import undisturbed
from ignite_prune.export.sparse_weight import check_dense
from ignite_prune.structure.model_io import as_arguments, checked_device, tensors_of
from ignite_prune.structure.slicing.compare import run

_TOLERANCE = 1e-4


def to_onnx(
    model: nn.Module,
    example_inputs: Any,
    path: str | PathLike[str],
    *,
    dynamic_batch: bool = True,
    opset: int = 18,
    overwrite: bool = False,
) -> Path:
    """Write a model to an ONNX file, check it with onnx, and compare it with the model in onnxruntime.

    The model is exported in eval mode by ``torch.onnx.export(dynamo=True)``; weights are stored as they are, with their
    zeros. An ONNX runtime gains nothing from zeros: slice the model first (:func:`~ignite_prune.shrink`) if the file is
    to be faster.

    Args:
        model: bare, wrapped or compiled, on the CPU.
        example_inputs: a tensor, a tuple of arguments or a dict of keyword arguments.
        path: of the new file; it appears when all checks have passed.
        dynamic_batch: let the first dimension of all inputs vary; the example has at least two samples then.
        opset: version of the ONNX operators.
        overwrite: replace a file that exists.

    Returns:
        The path of the file.

    Raises:
        ImportError: onnx, onnxscript or onnxruntime is not installed.
        FileExistsError: ``path`` exists.
        ValueError: the model has sparse layers, cannot be exported, or the file computes other outputs.
    """
    for package in ("onnx", "onnxscript", "onnxruntime"):
        needed(package)
    import onnx

    model, path = unwrap(model), Path(path)
    if path.exists() and not overwrite:
        raise FileExistsError(f"Argument path: {str(path)!r} exists; use another name, or overwrite=True")
    check_dense(model)
    if checked_device(model, example_inputs).type != "cpu":
        raise ValueError("The model should be on the CPU: call model.cpu(), and move the example inputs too")
    expected, _ = run(model, example_inputs)  # names the layer in which a forward pass fails
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as folder:
        file = Path(folder) / path.name
        _export(model, example_inputs, file, dynamic_batch, opset)
        onnx.checker.check_model(str(file))
        _compare(file, tensors_of(as_arguments(model, example_inputs)), expected)
        os.replace(file, path)
    return path


def _export(model: nn.Module, example_inputs: Any, file: Path, dynamic_batch: bool, opset: int) -> None:
    args, kwargs = as_arguments(model, example_inputs)
    shapes: Any = None
    if dynamic_batch:
        batch = torch.export.Dim("batch")
        shapes = torch.utils._pytree.tree_map(
            lambda each: {0: batch} if isinstance(each, Tensor) and each.dim() else None, (*args, *kwargs.values())
        )
    with undisturbed(model), torch.no_grad(), quiet():
        try:
            program = torch.onnx.export(
                model, args, None, kwargs=kwargs, dynamo=True, opset_version=opset, dynamic_shapes=shapes, verbose=False
            )
        except Exception as error:
            cause = error.__cause__ or error
            raise ValueError(
                f"{type(model).__name__} cannot be exported to ONNX: {str(cause).strip().splitlines()[0]:.300}; "
                "try dynamic_batch=False, and torch.export.export(model, ...) for the place in its forward"
            ) from error
        assert program is not None  # with dynamo=True
        program.save(str(file), external_data=False)


def _compare(file: Path, inputs: list[Tensor], expected: list[Tensor]) -> None:
    """Run a file in onnxruntime.

    Raises:
        ValueError: its outputs differ from the model's.
    """
    import onnxruntime

    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    names = [each.name for each in session.get_inputs()]
    found = session.run(None, {name: each.detach().numpy() for name, each in zip(names, inputs)})
    for each, (one, two) in enumerate(zip(found, expected)):
        largest = float((torch.from_numpy(one) - two).abs().max()) if two.numel() else 0.0
        if one.shape != tuple(two.shape) or largest > _TOLERANCE * max(float(two.abs().max()), 1.0):
            raise ValueError(f"Output {each} of the ONNX file differs from the model's by up to {largest:.3g}")
