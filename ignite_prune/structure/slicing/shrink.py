"""A pruned model made smaller: sliced, compared with its masked self, and put back where they differ."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DataParallel, DistributedDataParallel
from torch.optim import Optimizer
from torch.optim.swa_utils import AveragedModel

from ignite_prune.core.optimizer_state import as_optimizers
from ignite_prune.core.selection import unwrap
from ignite_prune.structure.slicing.compare import (
    difference,
    first_difference,
    masked_twin,
    run,
    run_in_training,
    runs_in_training,
    tolerance,
)
from ignite_prune.structure.slicing.model_edit import Indices, ModelEdit, check_mine, undone_on_error
from ignite_prune.structure.slicing.module_attributes import dropout_rates
from ignite_prune.structure.structure import Structure
from ignite_prune.structure.tracing.trace import misfit, trace
from ignite_prune.structure.unit_group import Kept


@dataclass(frozen=True, repr=False)
class Report:
    """What a model was and is.

    Args:
        units: of each group that lost some: how many there were and are.
        parameters: how many numbers before and after.
        flops: of a forward pass before and after, over the inputs that the model was traced with: see
            :meth:`Structure.flops`; of a structure declared by hand over the example inputs, by
            ``torch.utils.flop_counter``.
        error: the greatest difference from the masked model's output, relative to its greatest number.
        indices: which indices of which dimensions were kept, by parameter and buffer.
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
    """Take pruned units out of a model, in place: its weights get smaller, its outputs stay as the masked model's.

    Parameters, their gradients, buffers, the optimizers' slots and the attributes that tell widths are cut; tied
    weights stay tied, frozen ones frozen, and the modes as they are. The sliced model is run and compared with the
    masked one; where they differ, everything is put back.

    Args:
        model: bare, or wrapped in ``torch.compile``; of a DDP model give the module inside, and wrap it anew.
        masks: a ``PruneHandler`` (whose structure and optimizers are taken then), a ``MaskStore`` or a mapping, made of
            whole units; or by hand the numbers of the units that go, ``{"conv1.weight": [0, 3]}``, see
            :meth:`Structure.without`.
        example_inputs: what the model takes: a tensor, a tuple of arguments, or a dict of keyword arguments.
        optimizer: those that train the model; they go on with the new parameters.
        ema: copies of the model to be cut alike.
        structure: from :func:`trace`; None: traced here.
        scale_dropout: lower the rate of each Dropout module by the fraction of units that it has lost.

    Returns:
        What the model was and is.

    Raises:
        ValueError: masks that are not made of whole units, a layer that would be emptied, an optimizer of another
            model, a model that cannot be exported, or whose sliced outputs differ. The model is left whole.

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
    model, pruning = unwrap(model), getattr(masks, "pruning", None)  # a PruneHandler's parts, from a floor above
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
        _warn_of_change(model, masked_twin(model, structure.masks(kept), {}), example_inputs)
    with sliced(model, held, kept, example_inputs, structure, optimizers, as_copies(ema), scale_dropout) as report:
        return report


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
) -> Iterator[Report]:
    """Slice a model; where something is raised, inside too, everything is put back.

    Args and raises as :func:`shrink`'s, checked; ``kept`` are the units that the masks keep.
    """
    _check_not_empty(structure, kept)
    check_mine(model, optimizers)
    indices = structure.indices(kept)
    rates = dropout_rates(model)
    rates = {path: rates[path] * left for path, left in structure.rates(kept).items()} if scale_dropout else {}
    before = _count(model)
    rest = structure.masks(kept, without=masks)
    twin = masked_twin(model, {**masks, **rest}, structure.normalised(kept))
    counting = not structure.counts_flops
    expected, flops = run(twin, example_inputs, counting)
    trains = model.training and runs_in_training(twin, example_inputs)
    surgeries = [ModelEdit(model, optimizers), *(ModelEdit(each) for each in copies)]
    with undone_on_error(surgeries):
        try:
            for surgery in surgeries:
                surgery.slice(indices, rates)
            found, fewer = run(model, example_inputs, counting)
            error = difference(found, expected)
            if trains:
                run_in_training(model, example_inputs)
        except Exception as problem:
            raise ValueError(f"The sliced model does not run, so it was put back: {problem}") from problem
        if not error <= tolerance(model):
            raise ValueError(
                f"The sliced model's outputs differ from the masked model's by {error:.1e}, so it was put back; "
                f"{first_difference(twin, model, example_inputs)}"
            )
        units = {name: (len(each), int(each.sum())) for name, each in kept.items() if not each.all()}
        work = (flops, fewer) if counting else (structure.flops(), structure.flops(kept))
        yield Report(units, (before, _count(model)), work, error, indices)


def _warn_of_change(model: nn.Module, twin: nn.Module, example_inputs: Any) -> None:
    """Warn where masks over weights alone have left something of a unit: a bias, a norm's shift."""
    change = difference(run(twin, example_inputs)[0], run(model, example_inputs)[0])
    if not change <= tolerance(model):
        warnings.warn(
            f"The pruned units still give something, by their biases or norms: without them the outputs change by "
            f"{change:.1e}. PruneHandler(structure=trace(model, inputs)) masks all that goes with a unit",
            stacklevel=3,
        )


def as_copies(ema: nn.Module | Sequence[nn.Module] | None) -> list[nn.Module]:
    """Return averaged copies as a list of models, out of torch's own wrapper."""
    listed = [ema] if isinstance(ema, nn.Module) else list(ema or ())
    return [unwrap(each.module if isinstance(each, AveragedModel) else each) for each in listed]


def _read(masks: Any, structure: Structure) -> tuple[Mapping[str, Tensor], Kept]:
    """Return masks, and which units they keep."""
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
        raise TypeError("Argument masks should hold bool masks alone, or the numbers of units that go alone")
    kept = structure.without({name: _numbers(name, each) for name, each in held.items()})
    return structure.masks(kept), kept


def _numbers(name: str, units: Any) -> list[int]:
    """Return numbers of units as a list, from a list, a set, a range or an integer tensor."""
    try:
        return units.tolist() if isinstance(units, Tensor) else list(units)
    except TypeError:
        raise TypeError(f"The units of {name!r} should be told as numbers, [0, 3], but given {units!r:.60}") from None


def _check_shapes(model: nn.Module, structure: Structure) -> None:
    """Raise where a structure is of another model, or of this one before it was sliced."""
    other = misfit(model, structure)
    if other is not None:
        raise ValueError(
            f"Argument structure does not fit the model, whose {other!r} has another shape; trace it as it is now"
        )


def _check_not_empty(structure: Structure, kept: Kept) -> None:
    for group in structure:
        if not kept[group.name].any():
            raise ValueError(f"All {group.size} units of {group.name!r} are pruned: the layer would be empty")


def _count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())
