"""Equal updates on every rank: averaged scores, one outcome, one set of masks.

An error on one rank is raised on all: whatever fails between two collectives is raised by its rank at the next meeting
of :func:`~ignite_prune._utils.distributed.raise_together`, and each function here begins with one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import zip_longest
from types import MappingProxyType

import torch
from torch import Tensor

from ignite_prune._utils.bits import pack, packed_size, unpack
from ignite_prune._utils.distributed import all_gather, all_reduce, broadcast, raise_together, rank, world_size
from ignite_prune.core.mask_store import MaskStore
from ignite_prune.update.plan import UpdatePlan
from ignite_prune.update.scores import ParameterScores

REFUSED = "The mask update was refused on another rank; nothing was pruned on this one"
NOT_ATTACHED = "attach() was refused on another rank; nothing is attached on this one"
NOT_MADE = "The handler was refused on another rank; nothing was changed on this one"


@contextmanager
def announced(refused: str = REFUSED) -> Iterator[None]:
    """Raise an error of the ``with`` statement on all ranks: the others are on their way to a meeting."""
    try:
        yield
    except Exception as error:
        raise_together(error, refused)
        raise


def check_same_parameters(
    masks: MaskStore, settings: Mapping[str, str] = MappingProxyType({}), refused: str = REFUSED
) -> None:
    """Raise unless every rank prunes parameters of the same names and shapes, which collectives would mix up, and has
    the same settings.

    Args:
        masks: this rank's.
        settings: texts that are the same in every process, by name.
        refused: what is not done where another rank has failed.

    Raises:
        ValueError: on every rank, with the first difference; or another rank has failed before.
    """
    if world_size() == 1:
        return
    raise_together(None, refused)
    mine = [f"{name!r} of shape {tuple(parameter.shape)}" for name, parameter in masks.parameters.items()]
    digest = hashlib.sha256("\n".join([*mine, repr(list(settings.items()))]).encode()).hexdigest()
    if len(set(all_gather(digest))) == 1:
        return
    ranks = all_gather((mine, dict(settings)))
    other = next(each for each, theirs in enumerate(ranks) if theirs != ranks[0])
    (names, values), (other_names, other_values) = ranks[0], ranks[other]
    for key in (*values, *other_values) if names == other_names else ():
        if values.get(key) != other_values.get(key):
            raise ValueError(
                f"Every rank should prune in the same way, but rank {other} has {key} {other_values.get(key)} where "
                f"rank 0 has {values.get(key)}"
            )
    pairs = zip_longest(names, other_names, fillvalue="no further parameter")
    first, differing = next(pair for pair in pairs if pair[0] != pair[1])
    raise ValueError(
        f"Every rank should prune the same parameters, but rank {other} has {differing} where rank 0 has {first}. "
        "Parameters that are on one rank alone (pipeline stages, experts) are left out with exclude="
    )


def average_scores(scores: Sequence[ParameterScores]) -> None:
    """Compute the scores that depend on data, and replace them by their mean over all ranks.

    Raises:
        ValueError: a rank's saliency failed, or returned other shapes than another rank's; on all ranks.
    """
    for each in scores:
        each.cache()
    raise_together(None, REFUSED)
    cached = [each for each in scores if each.cached is not None]
    forms = [
        (each.name, tuple(each.cached.shape), str(each.cached.dtype)) for each in cached if each.cached is not None
    ]
    ranks = all_gather(forms)
    other = next((each for each, theirs in enumerate(ranks) if theirs != ranks[0]), 0)
    if other:
        first, differing = next(pair for pair in zip_longest(ranks[0], ranks[other]) if pair[0] != pair[1])
        raise ValueError(
            f"The saliency gave other shapes or types on another rank: rank {other} {differing}, rank 0 {first}"
        )
    for each in cached:
        each.average(lambda tensor: all_reduce(tensor) / world_size())


def agree(plan: UpdatePlan, masks: MaskStore, repaired: bool = False) -> UpdatePlan:
    """Return rank 0's plan on every rank, bit for bit; raise on all ranks if one has failed.

    Scores that depend on data are equal already; this also holds where the weights of the ranks have drifted apart.

    Args:
        plan: this rank's; a parameter that it leaves out keeps its mask.
        masks: the masks so far.
        repaired: whether plans may have values; equal on all ranks.

    Raises:
        ValueError: another rank failed.
    """
    raise_together(None, REFUSED)
    if world_size() == 1:
        return plan
    values = _values_of_rank_0(plan.values, next(iter(masks.parameters.values())).device) if repaired else {}
    agreed = _masks_of_rank_0(plan.masks, masks)
    return UpdatePlan({name: mask for name, mask in agreed.items() if not torch.equal(mask, masks[name])}, values)


def agreed(plan: Callable[[], UpdatePlan], masks: MaskStore) -> UpdatePlan:
    """Call ``plan`` and :func:`agree` on what it returns; an error is raised on all ranks."""
    with announced():
        planned = plan()
    return agree(planned, masks)


def _values_of_rank_0(values: Mapping[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    """Return rank 0's values; ranks whose weights have drifted apart may have repaired other parameters."""
    forms = all_gather({name: (value.shape, value.dtype) for name, value in values.items()})
    if any(theirs != forms[0] for theirs in forms):
        mine = forms[rank()]
        values = {
            name: values[name] if mine.get(name) == (shape, dtype) else torch.empty(shape, dtype=dtype, device=device)
            for name, (shape, dtype) in forms[0].items()
        }
        raise_together(None, REFUSED)
    return {name: broadcast(values[name]) for name in forms[0]}


def _masks_of_rank_0(planned: Mapping[str, Tensor], masks: MaskStore) -> dict[str, Tensor]:
    bits = broadcast(torch.cat([pack(planned.get(name, masks[name])) for name in masks]))
    agreed, start = {}, 0
    for name, parameter in masks.parameters.items():
        size = packed_size(parameter.numel())
        flat = unpack(bits[start : start + size].to(parameter.device), parameter.numel())
        agreed[name] = flat.view(parameter.shape)
        start += size
    return agreed
