"""Export to a ``torch.export.ExportedProgram``, compared with the model."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ignite_prune.core.selection import unwrap
from ignite_prune.core.undisturbed import undisturbed
from ignite_prune.export.sparse_weight import check_dense
from ignite_prune.structure.model_io import as_arguments, checked_device, tensors_of
from ignite_prune.structure.slicing.compare import relative_difference, run, tolerance

if TYPE_CHECKING:
    from torch.export import ExportedProgram


def to_exported_program(model: nn.Module, example_inputs: Any, *, dynamic_batch: bool = True) -> ExportedProgram:
    """Export a model by ``torch.export``, in eval mode, and compare the program with it.

    The program can be saved by ``torch.export.save``, compiled ahead of time, and lowered by ExecuTorch or other
    backends. Weights are stored as they are, with their zeros.

    Args:
        model: bare, wrapped or compiled.
        example_inputs: a tensor, a tuple of arguments or a dict of keyword arguments, on the model's device.
        dynamic_batch: let the first dimension of all inputs vary; the example has at least two samples then.

    Raises:
        TypeError: an argument is of another type.
        ValueError: the model has sparse layers, cannot be exported, or the program computes other outputs.

    Example:
        >>> from ignite_prune import export, prune_model
        >>> model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> masks = prune_model(model, sparsity=0.5)
        >>> program = export.to_exported_program(model, torch.randn(3, 8))
        >>> x = torch.randn(5, 8)
        >>> bool(torch.allclose(program.module()(x), model(x), atol=1e-6))
        True
    """
    model = unwrap(model)
    check_dense(model)
    checked_device(model, example_inputs)
    expected, _ = run(model, example_inputs)  # names the layer in which a forward pass fails
    program = exported(model, example_inputs, dynamic_batch)
    args, kwargs = as_arguments(model, example_inputs)
    with torch.no_grad():
        found = tensors_of(program.module()(*args, **kwargs))
    worst = relative_difference(found, expected) if expected else 0.0
    if worst > tolerance(model):
        raise ValueError(f"The exported program's outputs differ from the model's by {worst:.3g} of the largest")
    return program


def exported(model: nn.Module, example_inputs: Any, dynamic_batch: bool) -> ExportedProgram:
    """Return the program of a model.

    Raises:
        ValueError: it cannot be exported; the message says where.
    """
    args, kwargs = as_arguments(model, example_inputs)
    with undisturbed(model), torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            shapes = batch_dims(args, kwargs) if dynamic_batch else None
            return torch.export.export(model, args, kwargs, dynamic_shapes=shapes, strict=False)
        except Exception as error:
            raise ValueError(
                f"{type(model).__name__} cannot be exported{_place(model, error)}: "
                f"{str(error).strip().splitlines()[0]:.300}; try dynamic_batch=False, or another way of writing it"
            ) from error


def batch_dims(args: Any, kwargs: Any) -> Any:
    """Return the dynamic shapes of inputs whose first dimension varies, for ``torch.export``."""
    batch = torch.export.Dim("batch")

    def of(value: Any) -> Any:
        return torch.utils._pytree.tree_map(
            lambda each: {0: batch} if isinstance(each, Tensor) and each.dim() else None, value
        )

    return (*of(args), *of(tuple(kwargs.values())))


def _place(model: nn.Module, error: BaseException) -> str:
    """Return the innermost module whose forward an error came from, and its line."""
    classes = {type(each): name for name, each in model.named_modules()}
    place, frame = "", error.__traceback__
    while frame is not None:
        owner = frame.tb_frame.f_locals.get("self")
        if frame.tb_frame.f_code.co_name == "forward" and type(owner) in classes:
            names = [name for name, each in model.named_modules() if each is owner]
            name = names[0] if names else classes[type(owner)]
            where = f"module {name!r} ({type(owner).__name__})" if name else f"the forward of {type(owner).__name__}"
            place = f" because of {where}, line {frame.tb_lineno} of {frame.tb_frame.f_code.co_filename}"
        frame = frame.tb_next
    return place
