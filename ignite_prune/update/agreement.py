"""What makes every rank agree: averaged scores, one outcome, one set of masks."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import cast

import ignite.distributed as idist
import torch
from torch import Tensor

from ignite_prune._utils.bits import pack, packed_size, unpack
from ignite_prune.core.mask_store import MaskStore
from ignite_prune.update.plan import Plan
from ignite_prune.update.scores import ParameterScores


def several() -> bool:
    """Whether there is more than one rank."""
    return idist.get_world_size() > 1


def any_of(value: bool) -> bool:
    """Whether it is so on any rank; the same answer on all."""
    return bool(idist.all_reduce(int(value))) if several() else value


def average(scorers: Sequence[ParameterScores], error: Exception | None = None) -> None:
    """Ask every rank's scorers, and make scores that depend on data the mean of all ranks'.

    Args:
        scorers: this rank's.
        error: what has gone wrong on this rank already.

    Raises:
        ValueError: a rank's saliency failed, or gave other shapes than another's; on all ranks.
    """
    try:
        for scorer in scorers if error is None else ():
            scorer.ask()
    except Exception as raised:  # told to the others first: none must wait for this rank
        error = raised
    _agree_on(error)
    held = [scorer.held for scorer in scorers if scorer.held is not None]
    _agree_on_forms([(tuple(scores.shape), scores.dtype) for scores in held])
    for scorer in scorers:
        scorer.average(lambda scores: cast(Tensor, idist.all_reduce(scores)) / idist.get_world_size())


def _agree_on(error: Exception | None) -> None:
    failed = idist.all_reduce(int(error is not None))
    if error is not None:
        raise error
    if failed:
        raise ValueError("The mask update was refused on another rank; nothing was pruned on this one")


def _agree_on_forms(forms: Sequence[object]) -> None:
    mine = zlib.crc32(repr(forms).encode())
    if idist.all_reduce(mine, op="MAX") != idist.all_reduce(mine, op="MIN"):
        raise ValueError(f"The saliency gave other shapes or types on another rank; on this one {forms}")


def agree(plan: Callable[[], Plan], masks: MaskStore) -> Plan:
    """Return rank 0's plan on every rank, bit for bit, or raise on all where any rank's plan fails.

    Scores are equal already where they depend on data; this holds even where the ranks' weights have drifted apart.

    Raises:
        ValueError: another rank failed; a rank's own error is raised as it is.
    """
    error: Exception | None = None
    planned = Plan()
    try:
        planned = plan()
    except Exception as raised:
        error = raised
    _agree_on(error)
    values = {name: cast(Tensor, idist.broadcast(value.clone(), src=0)) for name, value in planned.values.items()}
    agreed = _of_rank_0(planned.masks, masks)
    return Plan({name: mask for name, mask in agreed.items() if not torch.equal(mask, masks[name])}, values)


def _of_rank_0(planned: Mapping[str, Tensor], masks: MaskStore) -> dict[str, Tensor]:
    bits = torch.cat([pack(planned.get(name, masks[name])) for name in masks])
    bits = cast(Tensor, idist.broadcast(bits.to(idist.device()), src=0)).cpu()
    agreed, start = {}, 0
    for name, parameter in masks.parameters.items():
        size = packed_size(parameter.numel())
        flat = unpack(bits[start : start + size].to(parameter.device), parameter.numel())
        agreed[name] = flat.view(parameter.shape)
        start += size
    return agreed
