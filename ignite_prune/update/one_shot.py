"""Pruning and scoring a model in one shot, without an engine: :func:`prune_model` and :func:`score`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal, overload

import torch
from torch import Tensor, nn

from ignite_prune._utils.arguments import check_generator
from ignite_prune._utils.copies import copy_of
from ignite_prune._utils.distributed import raise_together
from ignite_prune._utils.shard import is_sharded
from ignite_prune.allocation import Allocation, Global
from ignite_prune.core.batches import LossFn, PrepareBatch
from ignite_prune.core.mask_store import MaskStore, warn_of_nearly_empty
from ignite_prune.core.selection import inputs_first, named_parameters, select, unwrap
from ignite_prune.pattern import Pattern, Unstructured
from ignite_prune.repair.base import Repair
from ignite_prune.saliency import Informed, Magnitude, NonFiniteSaliency, Saliency, as_saliency
from ignite_prune.update.agreement import REFUSED, announced
from ignite_prune.update.calibration import Calibration, as_calibration, calibrate
from ignite_prune.update.left_out import leave_out, warn_of_left_out
from ignite_prune.update.param_group import ParamGroup
from ignite_prune.update.param_groups import build
from ignite_prune.update.plan import (
    GroupUpdate,
    UpdatePlan,
    bind,
    bound_scores,
    drawn,
    evidence_of,
    merge,
    plan_masks,
    repaired,
    write_values,
)
from ignite_prune.update.scores import all_finite, check_real

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
    calibration: Calibration | None = ...,
    repair: Repair | Sequence[Repair] | None = ...,
    structure: Structure | None = ...,
    target: Cost | None = ...,
    unreached: Literal["raise", "keep"] = ...,
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
    calibration: Calibration | None = ...,
    repair: Repair | Sequence[Repair] | None = ...,
    structure: Structure | None = ...,
    target: Cost | None = ...,
    unreached: Literal["raise", "keep"] = ...,
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
    calibration: Calibration | None = None,
    repair: Repair | Sequence[Repair] | None = None,
    structure: Structure | None = None,
    target: Cost | None = None,
    unreached: Literal["raise", "keep"] = "raise",
    inplace: bool = True,
) -> MaskStore | tuple[nn.Module, MaskStore]:
    """Prune a model in one shot, without an engine: its weights are zeroed, and the masks returned.

    The model stays an ordinary one. To train on with the zeros kept, pass the masks to ``PruneHandler(masks=...)``.

    Args:
        model: bare, or wrapped in DDP or ``torch.compile``.
        params_or_groups: None, rules, group dicts, or ``{"features.0.weight": {"sparsity": 0.8}}``.
        sparsity: of every group that has none of its own, in [0, 1].
        saliency: scores the entries, larger = kept.
        pattern: which entries are pruned together.
        allocation: divides the sparsity over the parameters of each group.
        exclude: rules for parameters to leave out.
        generator: for random saliencies; None uses torch's default generator (with several ranks, give each the same).
        data: batches as Ignite's supervised trainer takes them, for a saliency or repair that needs evidence. The model
            runs in eval mode over them (BatchNorm with the batch's statistics for saliencies made for initialisation)
            and is left as it was. Under ``torch.distributed`` each rank gives its own data, and all ranks call this
            function together.
        loss_fn: ``(output, target) -> scalar``, a mean over the batch; for evidence that is made of gradients.
        prepare_batch: Ignite's ``(batch, device, non_blocking) -> (x, y)``.
        calibration: ``data``, ``loss_fn`` and ``prepare_batch`` as one value, instead of the three.
        repair: one of ``ignite_prune.repair``, or several in order: compensates for what was pruned.
        structure: from :func:`ignite_prune.trace`: whole units are pruned, in all parameters that they lie in.
        target: what the sparsity is a fraction of, instead of units: ``structure.Parameters()``, ``Flops()``, ...
        unreached: as of :class:`~ignite_prune.PruneHandler`.
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
    settings = {
        "sparsity": sparsity,
        "saliency": saliency,
        "pattern": pattern,
        "allocation": allocation,
        "exclude": exclude,
        "generator": generator,
        "repair": repair,
        "structure": structure,
        "target": target,
        "unreached": unreached,
        "schedule": None,
        "keep_dense": False,
    }
    if any(map(is_sharded, unwrap(model).parameters())):
        given = as_calibration(calibration, data, loss_fn, prepare_batch)
        return _prune_shards(unwrap(model), params_or_groups, settings, given, inplace)
    with _met(data is not None or calibration is not None):
        calibration = as_calibration(calibration, data, loss_fn, prepare_batch)
        pruned = unwrap(model) if inplace else copy_of(unwrap(model))
        groups = build(pruned, params_or_groups, False, **settings)
        _check_sparsities(groups)
        parameters = named_parameters(pruned)
        masks = MaskStore({name: parameters[name] for group in groups for name in group["params"]})
        plan = _planned(pruned, groups, masks, calibration)
    masks.put(masks.replaced(plan.masks))
    write_values(pruned, plan.values)
    masks.apply_()
    warn_of_nearly_empty(masks, set())
    return masks if inplace else (pruned, masks)


def _check_sparsities(groups: Sequence[ParamGroup]) -> None:
    for group in groups:
        if group["sparsity"] is None and not group["allocation"].sets_own:
            raise ValueError(f"Argument sparsity should be given for the group of {group['params'][0]!r}")


def _prune_shards(
    model: nn.Module, params: Any, settings: Mapping[str, Any], calibration: Calibration, inplace: bool
) -> MaskStore:
    """Prune a model whose parameters are sharded, where they lie; every rank calls it."""
    from ignite_prune.update.pruner import Pruner  # not needed otherwise

    if not inplace:
        raise ValueError("Argument inplace=False copies the model, which a sharded one (DTensors) does not allow")
    pruner = Pruner(model, [], params, settings, calibration)
    _check_sparsities(pruner.groups)
    if pruner.evidence is not None and calibration.data is None:
        raise ValueError(f"{pruner.groups[0]['saliency']} needs evidence: give data= and loss_fn=")
    own = [group["pattern"].share if group["allocation"].sets_own else 0.0 for group in pruner.groups]
    pruner.update([most if group["sparsity"] is None else group["sparsity"] for most, group in zip(own, pruner.groups)])
    pruner.enforcer.remove()
    warn_of_nearly_empty(pruner.masks, set())
    return pruner.masks


def _planned(model: nn.Module, groups: Sequence[ParamGroup], masks: MaskStore, calibration: Calibration) -> UpdatePlan:
    updates = [GroupUpdate(group, group["sparsity"], drawn(group, group["generator"])) for group in groups]
    if any(repair.passes for group in groups for repair in group["repair"]):
        calibration = calibration.repeatable()
    evidence = evidence_of(model, groups, masks.parameters)
    if evidence is not None:
        evidence.reset(start=True)
        if calibration.data is not None:
            calibrate(evidence, calibration, [group["saliency"] for group in groups])
        evidence.sum_over_ranks()
    before, plan = masks.so_far(), UpdatePlan()
    for update in updates:
        update.scores = bound_scores(update.group, update.saliency, masks, before, evidence)
        if update.saliency.needs:
            training = masks if update.group["unreached"] == "keep" else None
            warn_of_left_out(update.group, leave_out(update, training, evidence), set())
        merge(plan.masks, plan_masks(update, masks, before, evidence))
    passes = None if calibration.data is None else lambda: calibration.batches(model)
    return repaired(model, groups, masks, before, plan, evidence, passes)


@contextmanager
def _met(together: bool) -> Iterator[None]:
    """Raise an error of the ``with`` statement on all ranks, if they are together: each has given its data."""
    if not together:
        yield
        return
    with announced():
        yield
        raise_together(None, REFUSED)


def score(
    model: nn.Module,
    params: Any = None,
    *,
    saliency: Saliency | Callable[[str, Tensor], Tensor],
    data: Iterable[Any] | None = None,
    loss_fn: LossFn | None = None,
    generator: torch.Generator | None = None,
    prepare_batch: PrepareBatch | None = None,
    exclude: Any = (),
    calibration: Calibration | None = None,
) -> dict[str, Tensor]:
    """Return the scores of a model's parameters by a saliency; the model is left as it was.

    Args:
        model: bare, or wrapped in DDP or ``torch.compile``.
        params: None, or rules, see :func:`~ignite_prune.core.selection.select`. With None, saliencies that score some
            layers only (``BatchNormScale``, ``HRank``, ``HeadImportance``) leave the others out.
        saliency: the formula, or a callable ``(name, parameter) -> scores``.
        data: batches as Ignite's supervised trainer takes them, for a saliency that needs evidence. The model runs in
            eval mode over them. Under ``torch.distributed`` each rank gives its own data, all ranks call this function
            together, and all get the scores of all the data.
        loss_fn: ``(output, target) -> scalar``, a mean over the batch; for evidence that is made of gradients.
        generator: for random saliencies; None uses torch's default generator.
        prepare_batch: Ignite's ``(batch, device, non_blocking) -> (x, y)``.
        exclude: rules for parameters to leave out.
        calibration: ``data``, ``loss_fn`` and ``prepare_batch`` as one value, instead of the three.

    Returns:
        ``{name: scores}``, larger = kept, each in the parameter's shape, or 1-D: one for each unit of dim 0,
        or for each head.

    Raises:
        MissingEvidence: the data is missing, or never reached a parameter, which is named.
        NonFiniteSaliency: a score is NaN or infinite.
        TypeError, ValueError: a bad argument.

    Example:
        >>> from ignite_prune import saliency
        >>> net = nn.Linear(3, 2)
        >>> data = [(torch.randn(4, 3), torch.randn(4, 2))]
        >>> scores = score(net, saliency=saliency.Taylor(), data=data, loss_fn=nn.functional.mse_loss)
        >>> scores["weight"].shape
        torch.Size([2, 3])
    """
    with _met(data is not None or calibration is not None):
        check_generator(generator)
        calibration = as_calibration(calibration, data, loss_fn, prepare_batch)
        model, formula = unwrap(model), as_saliency(saliency)
        parameters = select(model, params, exclude)
        if formula.randomised:
            formula = formula.draw(torch.default_generator if generator is None else generator)
        if formula.needs and isinstance(formula, Informed):
            from ignite_prune.evidence import Evidence  # slow to import

            evidence = Evidence(model, {formula.need: parameters})
            evidence.reset(start=True)
            if calibration.data is not None:
                evidence.calibrate(
                    calibration.passes or (), calibration.loss_fn, calibration.prepare_batch, formula.at_init
                )
            evidence.sum_over_ranks()
            bound = bind(formula, list(parameters), evidence, dict.fromkeys(parameters))
            if formula.some_layers and params is None:
                found = evidence.found(formula.need, dict.fromkeys(parameters))
                parameters = {name: p for name, p in parameters.items() if name in found} or parameters
            formula = bound
        scores = {}
        for name, parameter in parameters.items():
            turned = parameter.transpose(0, 1) if name in inputs_first(model) else parameter
            scores[name] = _checked(name, parameter, turned, formula(name, turned if formula.by_slice else parameter))
    return scores


def _checked(name: str, parameter: Tensor, turned: Tensor, scores: Tensor) -> Tensor:
    check_real(name, scores)
    units = turned.shape[0] if turned.ndim else 0
    by_unit = scores.ndim == 1 and (len(scores) == units or (len(scores) and units % len(scores) == 0))
    if scores.shape != parameter.shape and not by_unit:
        raise ValueError(
            f"The saliency of parameter {name!r} should have its shape {tuple(parameter.shape)}, or be 1-D with one an "
            f"output ({units} of them), but given {tuple(scores.shape)}"
        )
    if not all_finite(scores):
        raise NonFiniteSaliency(f"The saliency of parameter {name!r} has values that are NaN or infinite")
    return scores.detach()
