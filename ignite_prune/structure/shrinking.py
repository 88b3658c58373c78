"""A pruned model made smaller: sliced, compared with its masked self, and put back where they differ."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DataParallel, DistributedDataParallel
from torch.optim import Optimizer
from torch.optim.swa_utils import AveragedModel

from ignite_prune.evidence.batch import undisturbed
from ignite_prune.optimizer_state import as_optimizers
from ignite_prune.select import named_parameters, unwrap
from ignite_prune.structure.attributes import dropout_rates
from ignite_prune.structure.slicing import Indices, Surgery, slice_, undone_on_error
from ignite_prune.structure.slots import Kept
from ignite_prune.structure.structure import Structure
from ignite_prune.structure.tracing import as_arguments, trace


@dataclass(frozen=True)
class Report:
    """What a model was and is.

    Args:
        units: of each group that lost some: how many there were and are.
        parameters: how many numbers before and after.
        flops: of a forward pass over the example inputs before and after, by ``torch.utils.flop_counter``.
        error: the greatest difference from the masked model's output, relative to its greatest number.
        indices: which indices of which dimensions were kept, by parameter and buffer.
    """

    units: Mapping[str, tuple[int, int]]
    parameters: tuple[int, int]
    flops: tuple[int, int]
    error: float
    indices: Indices

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
        masks: a ``PruneHandler``, a ``MaskStore`` or a mapping, made of whole units; or by hand the numbers of the
            units that go, ``{"conv1.weight": [0, 3]}``, see :meth:`Structure.without`.
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
    model = unwrap(model)
    structure = trace(model, example_inputs) if structure is None else structure
    masks, kept = _read(masks, structure)
    _check_not_empty(structure, kept)
    optimizers = as_optimizers(optimizer)
    _check_optimizers(model, optimizers)
    copies = as_copies(ema)
    indices = structure.indices(kept)
    rates = dropout_rates(model)
    rates = {path: rates[path] * left for path, left in structure.rates(kept).items()} if scale_dropout else {}
    before = _count(model)
    twin = _masked(model, {**masks, **structure.masks(kept)})
    _normalise_over(twin, structure.normalised(kept))
    expected, flops = _outputs(twin, example_inputs)
    trains = model.training and _trains(twin, example_inputs)
    surgeries = [Surgery(model, optimizers), *(Surgery(each) for each in copies)]
    with undone_on_error(surgeries):
        try:
            for surgery in surgeries:
                surgery.slice(indices, rates)
            found, fewer = _outputs(model, example_inputs)
            error = _difference(found, expected)
            if trains and not _trains(model, example_inputs):
                raise ValueError("in training mode it fails, where the masked model does not")
        except Exception as problem:
            raise ValueError(f"The sliced model does not run, so it was put back: {problem}") from problem
        if not error <= _tolerance(model):
            raise ValueError(
                f"The sliced model's outputs differ from the masked model's by {error:.1e}; it was put back"
            )
    units = {name: (len(each), int(each.sum())) for name, each in kept.items() if not each.all()}
    return Report(units, (before, _count(model)), (flops, fewer), error, indices)


def as_copies(ema: nn.Module | Sequence[nn.Module] | None) -> list[nn.Module]:
    """Return averaged copies as a list of models, out of torch's own wrapper."""
    listed = [ema] if isinstance(ema, nn.Module) else list(ema or ())
    return [unwrap(each.module if isinstance(each, AveragedModel) else each) for each in listed]


def _read(masks: Any, structure: Structure) -> tuple[Mapping[str, Tensor], Kept]:
    """Return masks, and which units they keep."""
    held = getattr(masks, "masks", masks)
    if not isinstance(held, Mapping):
        raise TypeError(f"Argument masks should be a PruneHandler, a MaskStore or a mapping, but given {type(masks)}")
    if held and all(isinstance(each, (list, tuple, range)) for each in held.values()):
        kept = structure.without(held)
        return structure.masks(kept), kept
    return held, structure.kept(held)


def _check_not_empty(structure: Structure, kept: Kept) -> None:
    for group in structure:
        if not kept[group.name].any():
            raise ValueError(f"All {group.size} units of {group.name!r} are pruned: the layer would be empty")


def _check_optimizers(model: nn.Module, optimizers: Sequence[Optimizer]) -> None:
    mine = set(model.parameters())
    for optimizer in optimizers:
        held = {each for group in optimizer.param_groups for each in group["params"]}
        if not held & mine:
            raise ValueError("Argument optimizer holds none of the model's parameters")


def _count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def _masked(model: nn.Module, masks: Mapping[str, Tensor]) -> nn.Module:
    """Return a copy with masked weights; the others are over the same memory."""
    memo: dict[int, Any] = {}
    with torch.no_grad():
        for name, parameter in named_parameters(model).items():
            values = parameter * masks[name].to(parameter.device) if name in masks else parameter.detach()
            memo[id(parameter)] = nn.Parameter(values, parameter.requires_grad)
    return copy.deepcopy(model, memo)


def _normalise_over(twin: nn.Module, left: Mapping[str, Tensor]) -> None:
    """Let norms go over what is left alone, as they will in the sliced model."""
    for path, stay in left.items():
        if not stay.all():
            owner, _, name = path.rpartition(".")
            setattr(twin.get_submodule(owner), name, _NormOfSome(twin.get_submodule(path), stay))


class _NormOfSome(nn.Module):
    """A norm over some channels; the others are 0.

    Args:
        norm: of all of them.
        stay: which, bool.
    """

    def __init__(self, norm: nn.Module, stay: Tensor) -> None:
        super().__init__()
        self._stay, self._dim = stay.nonzero().squeeze(1), 1 if isinstance(norm, nn.GroupNorm) else -1
        self.norm = copy.deepcopy(norm)
        names = [name for name, _ in norm.named_parameters()]
        slice_(self.norm, {name: {0: self._stay.tolist()} for name in names})

    def forward(self, x: Tensor) -> Tensor:
        stay = self._stay.to(x.device)
        return torch.zeros_like(x).index_copy(self._dim, stay, self.norm(x.index_select(self._dim, stay)))


def _trains(model: nn.Module, example_inputs: Any) -> bool:
    """Whether a copy of a model runs in training mode, where its program may be another."""
    args, kwargs = as_arguments(example_inputs)
    try:
        with torch.no_grad(), torch.random.fork_rng():
            copy.deepcopy(model).train()(*args, **kwargs)
    except Exception:  # BatchNorm, of a batch of one, say
        return False
    return True


def _outputs(model: nn.Module, example_inputs: Any) -> tuple[list[Tensor], int]:
    """Run a model in eval mode, with its FLOPs counted; it is left as it was."""
    from torch.utils.flop_counter import FlopCounterMode  # slow to import

    args, kwargs = as_arguments(example_inputs)
    from torch.nn.attention import SDPBackend, sdpa_kernel

    kernel = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # which pads its answer otherwise than the layers themselves
    try:
        # The counter knows attention by its products.
        counted = sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False)
        with undisturbed(model), torch.no_grad(), counted[0], counted[1] as counter:
            torch.manual_seed(0)
            return _tensors(model(*args, **kwargs)), counter.get_total_flops()
    finally:
        torch.backends.mha.set_fastpath_enabled(kernel)


def _tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, Mapping):
        return [each for held in value.values() for each in _tensors(held)]
    if isinstance(value, (tuple, list)):
        return [each for held in value for each in _tensors(held)]
    return [each for held in getattr(value, "__dict__", {}).values() for each in _tensors(held)]


def _difference(found: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    worst = 0.0
    if not expected:
        raise ValueError("its outputs hold no tensor to compare")
    if len(found) != len(expected):
        raise ValueError(f"it gives {len(found)} outputs instead of {len(expected)}")
    for mine, its in zip(found, expected):
        if mine.shape != its.shape:
            raise ValueError(f"an output has the shape {tuple(mine.shape)} instead of {tuple(its.shape)}")
        worst = max(worst, _relative(mine, its))
    return worst


def _relative(mine: Tensor, its: Tensor) -> float:
    """Return the greatest difference over the greatest number; infinite where NaN and infinity are not alike."""
    if mine.is_complex():
        mine, its = torch.view_as_real(mine), torch.view_as_real(its)
    finite = its.isfinite()
    if not torch.equal(mine.isfinite(), finite) or not torch.allclose(mine[~finite], its[~finite], equal_nan=True):
        return math.inf
    mine, its = mine[finite].double(), its[finite].double()
    return float((mine - its).abs().max()) / max(float(its.abs().max()), 1e-12) if its.numel() else 0.0


def _tolerance(model: nn.Module) -> float:
    kinds = {parameter.dtype for parameter in model.parameters() if parameter.is_floating_point()}
    return min(max((torch.finfo(kind).eps for kind in kinds), default=1e-7) * 1e4, 0.05)
