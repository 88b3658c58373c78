"""Equal updates on every rank: averaged scores, one outcome, one set of masks."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from itertools import zip_longest

import torch
from torch import Tensor

from ignite_prune._utils.bits import pack, packed_size, unpack
from ignite_prune._utils.distributed import all_gather, all_reduce, broadcast, raise_together, world_size
from ignite_prune.core.mask_store import MaskStore
from ignite_prune.update.plan import UpdatePlan
from ignite_prune.update.scores import ParameterScores

_REFUSED = "The mask update was refused on another rank; nothing was pruned on this one"


def check_alike(masks: MaskStore) -> None:
    """Raise unless every rank prunes parameters of the same names and shapes: collectives would mix them up.

    Raises:
        ValueError: on every rank, with the first difference.
    """
    if world_size() == 1:
        return
    mine = [f"{name!r} of shape {tuple(parameter.shape)}" for name, parameter in masks.parameters.items()]
    digest = hashlib.sha256("\n".join(mine).encode()).hexdigest()
    if len(set(all_gather(digest))) == 1:
        return
    ranks = all_gather(mine)
    other = next(each for each, theirs in enumerate(ranks) if theirs != ranks[0])
    pairs = zip_longest(ranks[0], ranks[other], fillvalue="no further parameter")
    first, differing = next(pair for pair in pairs if pair[0] != pair[1])
    raise ValueError(
        f"Every rank should prune the same parameters, but rank {other} has {differing} where rank 0 has {first}. "
        "Parameters that are on one rank alone (pipeline stages, experts) are left out with exclude="
    )


def average_scores(scores: Sequence[ParameterScores], error: Exception | None = None) -> None:
    """Compute the scores that depend on data, and replace them by their mean over all ranks.

    Args:
        scores: this rank's.
        error: an error that this rank has met already.

    Raises:
        ValueError: a rank's saliency failed, or returned other shapes than another rank's; on all ranks.
    """
    try:
        for each in scores if error is None else ():
            each.cache()
    except Exception as raised:  # exchanged with the others first, so that no rank waits for this one
        error = raised
    raise_together(error, _REFUSED)
    cached = [each for each in scores if each.cached is not None]
    forms = [
        (each.name, tuple(each.cached.shape), str(each.cached.dtype)) for each in cached if each.cached is not None
    ]
    if any(other != forms for other in all_gather(forms)):
        raise ValueError(f"The saliency gave other shapes or types on another rank; on this one {forms}")
    for each in cached:
        each.average(lambda tensor: all_reduce(tensor) / world_size())


def agree(plan: UpdatePlan, masks: MaskStore, error: Exception | None = None) -> UpdatePlan:
    """Return rank 0's plan on every rank, bit for bit; raise on all ranks if one has failed.

    Scores that depend on data are equal already; this also holds where the weights of the ranks have drifted apart.

    Args:
        plan: this rank's; a parameter that it leaves out keeps its mask.
        masks: the masks so far.
        error: an error that this rank has met in planning.

    Raises:
        ValueError: another rank failed; a rank's own error is raised as it is.
    """
    raise_together(error, _REFUSED)
    if world_size() == 1:
        return plan
    values = {name: broadcast(value) for name, value in plan.values.items()}
    agreed = _masks_of_rank_0(plan.masks, masks)
    return UpdatePlan({name: mask for name, mask in agreed.items() if not torch.equal(mask, masks[name])}, values)


def agreed(plan: Callable[[], UpdatePlan], masks: MaskStore) -> UpdatePlan:
    """Call ``plan`` and :func:`agree` on what it returns or raises."""
    planned, error = UpdatePlan(), None
    try:
        planned = plan()
    except Exception as raised:
        error = raised
    return agree(planned, masks, error)


def _masks_of_rank_0(planned: Mapping[str, Tensor], masks: MaskStore) -> dict[str, Tensor]:
    bits = broadcast(torch.cat([pack(planned.get(name, masks[name])) for name in masks]))
    agreed, start = {}, 0
    for name, parameter in masks.parameters.items():
        size = packed_size(parameter.numel())
        flat = unpack(bits[start : start + size].to(parameter.device), parameter.numel())
        agreed[name] = flat.view(parameter.shape)
        start += size
    return agreed
