"""Pruning a model in one shot, without an engine."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Literal, overload

import torch
from torch import Tensor, nn

from ignite_prune._utils.arguments import check_callable
from ignite_prune.allocation import Allocation, Global
from ignite_prune.core.mask_store import MaskStore
from ignite_prune.core.selection import named_parameters, unwrap
from ignite_prune.evidence.calibration import LossFn, PrepareBatch, batches
from ignite_prune.pattern import Pattern, Unstructured
from ignite_prune.repair.base import Passes, Repair
from ignite_prune.saliency import Magnitude, Saliency
from ignite_prune.update.param_groups import Group, build
from ignite_prune.update.plan import Plan, evidence_of, plan_masks, repaired


def warn_of_thin(masks: MaskStore, told: set[str]) -> None:
    """Warn once of parameters that are left less than 1 % dense; ``told`` are those named before."""
    thin = [name for name, sparsity in masks.sparsities().items() if sparsity > 0.99 and name not in told]
    if thin and masks.sparsity < 1:
        told.update(thin)
        named = ", ".join(f"{name} ({masks.kept(name)} of {masks.whole(name)} kept)" for name in thin)
        warnings.warn(
            f"Pruning left less than 1 % of {named}. If accuracy falls, divide the sparsity otherwise: "
            "allocation=LAMP(), ERK(), or Global(min_density=0.02)",
            stacklevel=3,
        )


if TYPE_CHECKING:
    from ignite_prune.structure import Cost, Structure


@overload
def prune_model(
    model: nn.Module,
    params_or_groups: Any = None,
    *,
    sparsity: float | None = ...,
    saliency: Saliency | Callable[[str, Tensor], Tensor] = ...,
    pattern: Pattern = ...,
    allocation: Allocation = ...,
    exclude: Any = ...,
    generator: torch.Generator | None = ...,
    data: Iterable[Any] | None = ...,
    loss_fn: LossFn | None = ...,
    prepare_batch: PrepareBatch | None = ...,
    repair: Repair | Sequence[Repair] | None = ...,
    structure: Structure | None = ...,
    target: Cost | None = ...,
    inplace: Literal[True] = ...,
) -> MaskStore: ...
@overload
def prune_model(
    model: nn.Module,
    params_or_groups: Any = None,
    *,
    sparsity: float | None = ...,
    saliency: Saliency | Callable[[str, Tensor], Tensor] = ...,
    pattern: Pattern = ...,
    allocation: Allocation = ...,
    exclude: Any = ...,
    generator: torch.Generator | None = ...,
    data: Iterable[Any] | None = ...,
    loss_fn: LossFn | None = ...,
    prepare_batch: PrepareBatch | None = ...,
    repair: Repair | Sequence[Repair] | None = ...,
    structure: Structure | None = ...,
    target: Cost | None = ...,
    inplace: Literal[False],
) -> tuple[nn.Module, MaskStore]: ...
def prune_model(
    model: nn.Module,
    params_or_groups: Any = None,
    *,
    sparsity: float | None = None,
    saliency: Saliency | Callable[[str, Tensor], Tensor] = Magnitude(),
    pattern: Pattern = Unstructured(),
    allocation: Allocation = Global(),
    exclude: Any = (),
    generator: torch.Generator | None = None,
    data: Iterable[Any] | None = None,
    loss_fn: LossFn | None = None,
    prepare_batch: PrepareBatch | None = None,
    repair: Repair | Sequence[Repair] | None = None,
    structure: Structure | None = None,
    target: Cost | None = None,
    inplace: bool = True,
) -> MaskStore | tuple[nn.Module, MaskStore]:
    """Prune a model in one shot, without an engine: its weights are zeroed, and the masks returned.

    The model stays an ordinary one. To train on with the zeros kept, hand the masks to a ``PruneHandler(masks=...)``.

    Args:
        model: bare, or wrapped in DDP or ``torch.compile``.
        params_or_groups: None, rules, group dicts, or ``{"features.0.weight": {"sparsity": 0.8}}``.
        sparsity: for every group that has none of its own, in [0, 1].
        saliency: what an entry is worth.
        pattern: which entries go together.
        allocation: how the sparsity is divided over each group's parameters.
        exclude: rules for what to leave alone.
        generator: for random saliencies; None draws from torch's default generator (under several ranks, give each
            the same).
        data: batches as Ignite's supervised trainer takes them, for a saliency or repair that needs evidence. The model
            runs in eval mode over them (BatchNorm with the batch's statistics for saliencies made for initialisation)
            and is left as it was. Under ``torch.distributed`` each rank gives its own, and all call together.
        loss_fn: ``(output, target) -> scalar``, a mean over the batch; for evidence that is made of gradients.
        prepare_batch: Ignite's ``(batch, device, non_blocking) -> (x, y)``.
        repair: one of ``ignite_prune.repair``, or several in order: what makes up for what was pruned.
        structure: from :func:`ignite_prune.structure.trace`: whole units go, with all that hangs on them.
        target: what the sparsity is a fraction of, instead of units: ``structure.Parameters()``, ``Flops()``, ...
        inplace: prune ``model`` itself; otherwise a deep copy.

    Returns:
        The masks; with ``inplace=False`` the pruned copy and its masks.

    Raises:
        TypeError, ValueError: a bad argument, or a saliency that is not finite. Nothing is changed then.

    Example:
        >>> model = nn.Sequential(nn.Linear(8, 4), nn.Linear(4, 2))
        >>> masks = prune_model(model, {"0.weight": {"sparsity": 0.75}, "1.weight": {"sparsity": 0.5}})
        >>> masks.kept("0.weight"), masks.kept("1.weight")
        (8, 4)
    """
    if not isinstance(inplace, bool):
        raise TypeError(f"Argument inplace should be a bool, but given {inplace!r}")
    check_callable("loss_fn", loss_fn)
    check_callable("prepare_batch", prepare_batch)
    pruned = unwrap(model) if inplace else copy.deepcopy(unwrap(model))
    groups = build(
        pruned,
        params_or_groups,
        sparsity=sparsity,
        saliency=saliency,
        pattern=pattern,
        allocation=allocation,
        exclude=exclude,
        generator=generator,
        repair=repair,
        structure=structure,
        target=target,
        schedule=None,
        keep_dense=False,
    )
    for group in groups:
        if group["sparsity"] is None and not group["allocation"].sets_own:
            raise ValueError(f"Argument sparsity should be given for the group of {group['params'][0]!r}")
        draw(group)
    parameters = named_parameters(pruned)
    masks = MaskStore({name: parameters[name] for group in groups for name in group["params"]})
    plan = _planned(pruned, groups, masks, data, loss_fn, prepare_batch)
    masks.update(plan.masks, copy=False)
    take_values(pruned, plan)
    masks.apply_()
    warn_of_thin(masks, set())
    return masks if inplace else (pruned, masks)


def _planned(
    model: nn.Module,
    groups: Sequence[Group],
    masks: MaskStore,
    data: Iterable[Any] | None,
    loss_fn: LossFn | None,
    prepare_batch: PrepareBatch | None,
) -> Plan:
    data = as_data(groups, data)
    evidence = evidence_of(model, groups, masks.parameters)
    evidence.reset(start=True)
    if evidence and data is not None:
        evidence.calibrate(data, loss_fn, prepare_batch, at_init(groups))
    evidence.sum_over_ranks()
    before, plan = masks.so_far(masks), Plan()
    for group in groups:
        plan.join(plan_masks(group, masks, {name: before[name] for name in group["params"]}, evidence))
    return repaired(model, groups, masks, before, plan, evidence, as_passes(model, data, loss_fn, prepare_batch))


def draw(group: Group) -> None:
    """Throw a group's dice."""
    if group["saliency"].randomised:
        source = torch.default_generator if group["generator"] is None else group["generator"]
        group["saliency"] = group["saliency"].draw(source)


def at_init(groups: Sequence[Group]) -> bool:
    """Whether every saliency that asks for evidence is made for a network whose BatchNorm has no statistics yet."""
    asking = [group["saliency"] for group in groups if group["saliency"].needs]
    return bool(asking) and all(saliency.at_init for saliency in asking)


def as_data(groups: Sequence[Group], data: Iterable[Any] | None) -> Iterable[Any] | None:
    """Return ``data``, an iterator that can be used once as a list where a repair goes over it again."""
    again = any(repair.passes for group in groups for repair in group["repair"])
    return list(data) if again and isinstance(data, Iterator) else data


def as_passes(
    model: nn.Module, data: Iterable[Any] | None, loss_fn: LossFn | None, prepare_batch: PrepareBatch | None
) -> Passes | None:
    """Return what runs over ``data`` for a repair."""
    if data is None:
        return None
    device = next(model.parameters()).device
    return lambda: batches(model, data, loss_fn, prepare_batch, device)


@torch.no_grad()
def take_values(model: nn.Module, plan: Plan) -> None:
    """Write a plan's values into a model's parameters and buffers."""
    parameters, buffers = named_parameters(model), dict(model.named_buffers())
    for name, value in plan.values.items():
        (parameters[name] if name in parameters else buffers[name]).copy_(value)
