"""Shrinking a pruned model: slice it, compare it with the masked model, and undo the slicing if they differ.

Tracing cannot prove that a slicing is right. A forward pass may branch on data, compare a size with a constant, or call
an operation whose rule is wrong for a case that was never met, and each of these gives a model that runs and answers
wrongly. The proof is cheap by comparison: two forward passes. So the masked model is run before slicing, the sliced
one after it (in training mode too, where ``forward`` may differ), and outputs that differ by more than rounding raise
an error that names the first differing layer. The model, its optimizers and its averaged copies are then restored.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DataParallel, DistributedDataParallel
from torch.optim import Optimizer
from torch.optim.swa_utils import AveragedModel

from ignite_prune.core.check_report import SparsityWarning
from ignite_prune.core.optimizers import as_optimizers
from ignite_prune.core.selection import unwrap
from ignite_prune.structure.slicing.compare import (
    difference_without_chance,
    first_difference,
    masked_copy,
    relative_difference,
    run,
    run_in_training,
    runs_in_training,
    tolerance,
)
from ignite_prune.structure.slicing.config_check import configs_of, refusal_of, warn_of_configs
from ignite_prune.structure.slicing.model_edit import Indices, ModelEdit, check_optimizers, undone_on_error
from ignite_prune.structure.slicing.module_attributes import dropout_rates
from ignite_prune.structure.slicing.trial_step import failing_step
from ignite_prune.structure.structure import Structure
from ignite_prune.structure.tracing.trace import misfit, trace
from ignite_prune.structure.unit_group import Kept


@dataclass(frozen=True, repr=False)
class Report:
    """Sizes of a model before and after shrinking.

    Args:
        units: numbers of units before and after, of each group that lost some.
        parameters: numbers of parameter elements before and after.
        flops: FLOPs of a forward pass before and after. A traced structure counts them for the inputs that it was
            traced with (:meth:`Structure.flops`); for a declared one ``torch.utils.flop_counter`` counts them for the
            example inputs.
        error: largest difference from the masked model's outputs, relative to the largest output.
        indices: the kept indices, by parameter or buffer name and dimension.
    """

    units: Mapping[str, tuple[int, int]]
    parameters: tuple[int, int]
    flops: tuple[int, int]
    error: float
    indices: Indices

    def __repr__(self) -> str:
        before, after = self.parameters
        return f"Report({before:,} → {after:,} parameters, {len(self.units)} groups smaller)"

    def __str__(self) -> str:
        lines = [
            f"{before:,} → {after:,} {what} ({after / max(before, 1):.1%})"
            for what, (before, after) in (("parameters", self.parameters), ("FLOPs", self.flops))
        ]
        lines += [f"  {name}: {old} → {new} units" for name, (old, new) in self.units.items()]
        return "\n".join(lines)


def shrink(
    model: nn.Module,
    masks: Any,
    example_inputs: Any,
    *,
    optimizer: Optimizer | Sequence[Optimizer] | None = None,
    ema: nn.Module | Sequence[nn.Module] | None = None,
    structure: Structure | None = None,
    scale_dropout: bool = False,
) -> Report:
    """Remove pruned units from a model, in place: its weights get smaller, its outputs equal the masked model's.

    Parameters, their gradients, buffers, optimizer slots and width attributes are sliced; tied weights stay tied,
    ``requires_grad`` and the training modes stay the same. The sliced model is run and compared with the masked one,
    and a copy of each optimizer takes a step; if outputs differ or a step fails, the slicing is undone.

    Args:
        model: bare, or wrapped in ``torch.compile``; for a DDP model give ``model.module``, and wrap it again.
        masks: a ``PruneHandler`` with ``structure=`` (its structure and optimizers are used, and it goes on with the
            sliced model, attached or not), a ``MaskStore`` or a mapping of masks that prune whole units; or the numbers
            of the units to remove, ``{"conv1.weight": [0, 3]}``, see :meth:`Structure.without`.
        example_inputs: inputs of the model: a tensor, a tuple of arguments, or a dict of keyword arguments.
        optimizer: the optimizers that train the model; they continue with the new parameters.
        ema: averaged copies of the model, sliced in the same way.
        structure: result of :func:`trace`; None traces the model.
        scale_dropout: multiply the rate of each Dropout module by the fraction of its units that is left.

    Returns:
        The sizes before and after.

    Raises:
        ValueError: masks do not prune whole units, a layer would be empty, an optimizer is of another model, the model
            cannot be exported, or the sliced outputs differ. The model is left unchanged.

    Example:
        >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> structure = trace(net, torch.zeros(1, 4))
        >>> kept = {"0.weight": torch.arange(8) < 3}
        >>> report = shrink(net, structure.masks(kept), torch.randn(1, 4), structure=structure)
        >>> net
        Sequential(
          (0): Linear(in_features=4, out_features=3, bias=True)
          (1): ReLU()
          (2): Linear(in_features=3, out_features=2, bias=True)
        )
    """
    if isinstance(model, (DistributedDataParallel, DataParallel)):
        raise ValueError(
            f"Argument model is wrapped in {type(model).__name__}, which holds on to the old parameters; give "
            "model.module, and wrap it again afterwards"
        )
    # A PruneHandler is recognised by its attribute, because this package may not import handlers.
    model, pruning = unwrap(model), getattr(masks, "pruning", None)
    if pruning is not None and pruning.model is not model:
        raise ValueError("Argument masks is a PruneHandler of another model")
    optimizers = as_optimizers(optimizer)
    if pruning is not None:
        structure = structure or pruning.structure
        optimizers += [each for each in pruning.optimizers if each not in optimizers]
    structure = trace(model, example_inputs) if structure is None else structure
    _check_shapes(model, structure)
    held, kept = _read(masks, structure)
    if pruning is not None and pruning.structure is None:
        _warn_of_no_units(kept)
        _warn_of_change(model, masked_copy(model, structure.masks(kept), {}), example_inputs)
    goes_on = pruning is not None and structure is pruning.structure and masks.can_follow
    undo = [masks.way_back()] if goes_on else []
    copies = as_copies(ema)
    with sliced(model, held, kept, example_inputs, structure, optimizers, copies, scale_dropout, undo) as report:
        if goes_on and report.indices:
            masks.follow(structure.sliced(kept), report.indices)
        return report


def _warn_of_no_units(kept: Kept) -> None:
    """Warn if a pruner without a structure has pruned no whole unit."""
    if all(bool(each.all()) for each in kept.values()):
        warnings.warn(
            "The pruner has pruned no whole unit, so nothing is sliced off; whole units are pruned by "
            "PruneHandler(model, structure=trace(model, example_inputs))",
            SparsityWarning,
            stacklevel=3,
        )


@contextmanager
def sliced(
    model: nn.Module,
    masks: Mapping[str, Tensor],
    kept: Kept,
    example_inputs: Any,
    structure: Structure,
    optimizers: Sequence[Optimizer],
    copies: Sequence[nn.Module],
    scale_dropout: bool,
    undo: Sequence[Callable[[], object]] = (),
) -> Iterator[Report]:
    """Slice a model and yield the report; undo the slicing if this or the body of the ``with`` statement raises.

    ``undo`` is called then as well.

    Arguments and errors are those of :func:`shrink`, with the arguments checked; ``kept`` holds the units that the
    masks keep.
    """
    _check_not_empty(structure, kept)
    check_optimizers(model, optimizers)
    indices = structure.indices(kept)
    rates = dropout_rates(model)
    rates = {path: rates[path] * left for path, left in structure.rates(kept).items()} if scale_dropout else {}
    before = parameter_count(model)
    rest = structure.masks(kept, without=masks)
    masked = masked_copy(model, {**masks, **rest}, structure.normalised(kept))
    counting = not structure.counts_flops
    expected, flops = run(masked, example_inputs, counting)
    trains = model.training and runs_in_training(masked, example_inputs)
    described = [config for config in configs_of(model) if not refusal_of(config)]
    stepping = [each for each in optimizers if not failing_step(each)]
    edits = [ModelEdit(model, optimizers), *(ModelEdit(each) for each in copies)]
    with undone_on_error(edits, undo):
        try:
            for edit in edits:
                edit.slice(indices, rates)
            found, fewer = run(model, example_inputs, counting)
            error, drawn = relative_difference(found, expected), list[str]()
            if not error <= tolerance(model):
                error, drawn = difference_without_chance(model, masked, lambda each: run(each, example_inputs)[0])
            if trains:
                run_in_training(model, example_inputs)
        except Exception as problem:
            raise ValueError(f"The sliced model does not run, so it was put back: {problem}") from problem
        if not error <= tolerance(model):
            raise ValueError(
                f"The sliced model's outputs differ from the masked model's by {error:.1e}, so it was put back; "
                f"{first_difference(masked, model, example_inputs)}"
                + (f". It draws random numbers in eval mode ({', '.join(drawn)}), which were held" if drawn else "")
            )
        _check_steps(stepping)
        warn_of_configs(described)
        units = {name: (len(each), int(each.sum())) for name, each in kept.items() if not each.all()}
        work = (flops, fewer) if counting else (structure.flops(), structure.flops(kept))
        yield Report(units, (before, parameter_count(model)), work, error, indices)


def _check_steps(optimizers: Sequence[Optimizer]) -> None:
    """Raise ValueError if one of the optimizers can no longer step."""
    for optimizer in optimizers:
        if why := failing_step(optimizer):
            raise ValueError(
                f"The sliced state does not fit {type(optimizer).__name__}, so it was put back; in a step {why}"
            )


def _warn_of_change(model: nn.Module, masked: nn.Module, example_inputs: Any) -> None:
    """Warn if pruned units still have an output because only weights are masked, not biases or norms."""
    change = relative_difference(run(masked, example_inputs)[0], run(model, example_inputs)[0])
    if not change <= tolerance(model):
        warnings.warn(
            f"The pruned units still have an output, by their biases or norms: without them the outputs change by "
            f"{change:.1e}. PruneHandler(structure=trace(model, inputs)) masks every parameter of a unit",
            stacklevel=3,
        )


def as_copies(ema: nn.Module | Sequence[nn.Module] | None) -> list[nn.Module]:
    """Return averaged copies as a list of models, with ``AveragedModel`` unwrapped."""
    listed = [ema] if isinstance(ema, nn.Module) else list(ema or ())
    return [unwrap(each.module if isinstance(each, AveragedModel) else each) for each in listed]


def _read(masks: Any, structure: Structure) -> tuple[Mapping[str, Tensor], Kept]:
    """Return the masks, and the units that they keep, from any form of the argument."""
    held = getattr(masks, "masks", masks)
    if not isinstance(held, Mapping):
        raise TypeError(f"Argument masks should be a PruneHandler, a MaskStore or a mapping, but given {type(masks)}")
    by_mask = [isinstance(each, Tensor) and each.dtype == torch.bool for each in held.values()]
    if all(by_mask):
        kept = structure.kept(held)
        if all(each.all() for each in kept.values()) and not all(mask.all() for mask in held.values()):
            raise ValueError("Argument masks prunes no whole unit of the structure, so there is nothing to slice off")
        return held, kept
    if any(by_mask):
        raise TypeError("Argument masks should hold bool masks alone, or alone the numbers of the units to remove")
    kept = structure.without({name: _numbers(name, each) for name, each in held.items()})
    return structure.masks(kept), kept


def _numbers(name: str, units: Any) -> list[int]:
    """Return unit numbers as a list, from a list, a set, a range or an integer tensor."""
    try:
        return units.tolist() if isinstance(units, Tensor) else list(units)
    except TypeError:
        raise TypeError(f"The units of {name!r} should be given as numbers, [0, 3], but given {units!r:.60}") from None


def _check_shapes(model: nn.Module, structure: Structure) -> None:
    """Raise if a structure is of another model, or of this one before it was sliced."""
    other = misfit(model, structure)
    if other is not None:
        raise ValueError(
            f"Argument structure does not fit the model, whose {other!r} has another shape; trace it as it is now"
        )


def _check_not_empty(structure: Structure, kept: Kept) -> None:
    for group in structure:
        if not kept[group.name].any():
            raise ValueError(f"All {group.size} units of {group.name!r} are pruned: the layer would be empty")


def parameter_count(model: nn.Module) -> int:
    """Return the number of a model's parameters' entries."""
    return sum(parameter.numel() for parameter in model.parameters())
