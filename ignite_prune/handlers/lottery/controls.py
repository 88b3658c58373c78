"""Control masks and weights for lottery-ticket experiments."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ignite_prune._utils.topk import keep_top
from ignite_prune.core.mask_store import MaskStore
from ignite_prune.saliency import Random
from ignite_prune.update.param_group import ParamGroup
from ignite_prune.update.param_groups import pattern_of


def shuffled(groups: Sequence[ParamGroup], masks: MaskStore, seed: int) -> dict[str, Tensor]:
    """Return random masks that keep the same number of units in each layer as ``masks``.

    Example:
        >>> from ignite_prune.pattern import Unstructured
        >>> layer = nn.Linear(2, 2)
        >>> store = MaskStore(layer, {"weight": torch.tensor([[True, False], [False, False]])})
        >>> mask = shuffled([{"params": ["weight"], "pattern": Unstructured()}], store, seed=0)["weight"]
        >>> mask.sum().item(), torch.equal(mask, store["weight"])
        (1, False)
    """
    random = Random(seed)
    return _for_each_layer(groups, masks, {name: random(name, p) for name, p in masks.parameters.items()})


def inverted(groups: Sequence[ParamGroup], masks: MaskStore, scores: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return masks that keep the same number of units in each layer as ``masks``, those of least score."""
    return _for_each_layer(groups, masks, scores, -1)


def random_masks(groups: Sequence[ParamGroup], masks: MaskStore, seed: int) -> dict[str, Tensor]:
    """Return random masks that keep, in each group over all of its layers, as many units as ``masks`` does."""
    random, found = Random(seed), dict[str, Tensor]()
    for group in groups:
        found |= _best(group, masks, {name: random(name, masks.parameters[name]) for name in group["params"]})
    return found


def _for_each_layer(
    groups: Sequence[ParamGroup], masks: MaskStore, scores: Mapping[str, Tensor], sign: int = 1
) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for group in groups:
        for name in group["params"]:
            found |= _best(group, masks, {name: scores[name]}, sign)
    return found


def _best(group: ParamGroup, masks: MaskStore, scores: Mapping[str, Tensor], sign: int = 1) -> dict[str, Tensor]:
    """Return masks with the best units of some layers; their total number is that of ``masks``."""
    patterns = {name: pattern_of(group, name) for name in scores}
    units, spreading = [], []
    for name, each in scores.items():
        pattern = patterns[name]
        by_unit = each.shape != masks.parameters[name].shape
        spreading.append(masks.parameters[name].detach() if by_unit else sign * each)
        if by_unit:
            units.append(sign * each)
        else:  # a norm ignores signs, so the sign is applied to the norm
            units.append(sign * pattern.group(each, None) if pattern.by_unit else pattern.group(sign * each, None))
    keep = sum(int(patterns[name].alive(masks[name]).count_nonzero()) for name in scores)
    kept = keep_top([partial(_itself, unit) for unit in units], [None] * len(units), [u.numel() for u in units], keep)
    return {name: patterns[name].spread(*pair, None) for name, pair in zip(scores, zip(kept, spreading))}


def _itself(values: Tensor) -> Tensor:
    return values


def reinitialise(model: nn.Module, seed: int, reset: Callable[[nn.Module], None] | None = None) -> None:
    """Reinitialise all trainable weights; the global random state is not changed.

    The seed is hashed, because ``torch.manual_seed(seed)`` could reproduce the original weights, if the model was
    created under this seed.

    Args:
        model: the model, changed in place.
        seed: seed of the new weights.
        reset: function that reinitialises the model; None calls ``reset_parameters()`` of every module, as its
            constructor did, except of frozen ones.

    Raises:
        ValueError: a module has parameters but no ``reset_parameters()``; the model is left unchanged.
    """
    resets = [partial(reset, model)] if reset is not None else _resets(model)
    with torch.random.fork_rng():
        torch.manual_seed(zlib.crc32(f"reinitialise {seed}".encode()))
        for each in resets:
            each()


def _resets(model: nn.Module) -> list[Callable[[], Any]]:
    found: list[Callable[[], Any]] = []
    for name, module in model.named_modules():
        direct = list(module.parameters(recurse=False))
        if direct and not any(parameter.requires_grad for parameter in direct):
            continue
        # By name, because torch's modules have no common base class with this method.
        reset = getattr(module, "reset_parameters", None) or getattr(module, "_reset_parameters", None)
        if callable(reset):
            found.append(reset)
        elif direct:
            raise ValueError(
                f"Module {name!r} ({type(module).__name__}) has parameters and no reset_parameters(): give reset=, a "
                "function that reinitialises the model"
            )
    return found
