"""One mask update, from saliency to masks, and pruning a model in one shot.

score → pattern.group → allocation → exact top-k → pattern.spread. Nothing is changed on the way: the new masks are the
only result.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal, overload

import torch
from torch import Tensor, nn

from ignite_prune.allocation import Allocation, Global, Layer
from ignite_prune.allocation.base import once
from ignite_prune.groups import Group, as_unit_fraction, build
from ignite_prune.masks import MaskStore
from ignite_prune.pattern import Pattern, Unstructured
from ignite_prune.saliency import Magnitude, Saliency
from ignite_prune.scorer import Scorer, scorers
from ignite_prune.select import named_parameters, unwrap
from ignite_prune.topk import keep_top


def divide(scorers: Mapping[str, Scorer], masks: Mapping[str, Tensor | None], group: Group) -> dict[str, Tensor]:
    """Return the masks that bring a group to its ``"sparsity"``, those so far nesting around them.

    Args:
        scorers: one for each parameter of the group.
        masks: the masks so far, None where nothing is pruned; not changed.
        group: from :func:`ignite_prune.groups.build`.

    Returns:
        Masks of the parameters that get sparser; the others are as sparse as asked already.

    Raises:
        NonFiniteSaliency: a score is NaN or infinite; names the parameter.
        TypeError, ValueError: scores of the wrong type or shape, an unreachable target.
    """
    pattern, allocation = group["pattern"], group["allocation"]
    layers = [_layer(scorer, pattern, masks[name]) for name, scorer in scorers.items()]
    ceiling = pattern.share if group["sparsity"] is None else group["sparsity"]
    planned: dict[str, Tensor] = {}
    for pool in allocation.divide(layers, as_unit_fraction(pattern, ceiling)):
        if pool.keep >= sum(layer.living for layer in pool.layers):
            continue
        kept = keep_top(
            [layer.scores for layer in pool.layers],
            [layer.alive for layer in pool.layers],
            [layer.living for layer in pool.layers],
            pool.keep,
            pool.floors,
        )
        for layer, units in zip(pool.layers, kept):
            planned[layer.name] = pattern.spread(units, scorers[layer.name].spreading(), masks[layer.name])
    return planned


def _layer(scorer: Scorer, pattern: Pattern, mask: Tensor | None) -> Layer:
    units = pattern.count(scorer.shape)
    alive = None if mask is None else pattern.alive(mask)
    if pattern.streams:
        scores: Callable[[], Tensor] = scorer.scores
    else:
        scores = once(lambda: scorer.units(mask))
    living = units if alive is None else int(alive.count_nonzero())
    return Layer(scorer.name, scorer.shape, units, scores, alive, living)


def warn_of_thin(masks: MaskStore, told: set[str]) -> None:
    """Warn once of parameters that are left less than 1 % dense; ``told`` are those named before."""
    thin = [name for name, sparsity in masks.sparsities().items() if sparsity > 0.99 and name not in told]
    if thin and masks.sparsity < 1:
        told.update(thin)
        named = ", ".join(f"{name} ({masks.kept(name)} of {masks.parameters[name].numel()} kept)" for name in thin)
        warnings.warn(
            f"Pruning left less than 1 % of {named}. If accuracy falls, divide the sparsity otherwise: "
            "allocation=LAMP(), ERK(), or Global(min_density=0.02)",
            stacklevel=3,
        )


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
    loss_fn: Callable[..., Tensor] | None = ...,
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
    loss_fn: Callable[..., Tensor] | None = ...,
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
    loss_fn: Callable[..., Tensor] | None = None,
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
        data: batches, for saliencies that gather evidence; none here needs them.
        loss_fn: likewise.
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
    target = unwrap(model) if inplace else copy.deepcopy(unwrap(model))
    groups = build(
        target,
        params_or_groups,
        sparsity=sparsity,
        saliency=saliency,
        pattern=pattern,
        allocation=allocation,
        exclude=exclude,
        generator=generator,
        schedule=None,
        keep_dense=False,
    )
    for group in groups:
        if group["sparsity"] is None and not group["allocation"].sets_own:
            raise ValueError(f"Argument sparsity should be given for the group of {group['params'][0]!r}")
        if group["saliency"].randomised:
            source = torch.default_generator if group["generator"] is None else group["generator"]
            group["saliency"] = group["saliency"].draw(source)
    parameters = named_parameters(target)
    masks = MaskStore({name: parameters[name] for group in groups for name in group["params"]})
    for group in groups:
        before = {name: masks.pruned(name) for name in group["params"]}
        masks.update(divide(scorers(group, masks), before, group), copy=False)
    masks.apply_()
    warn_of_thin(masks, set())
    return masks if inplace else (target, masks)
