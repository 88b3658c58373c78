"""ShardedMaskStore: masks that lie on the ranks as their parameters do, with counts over all ranks."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import zip_longest
from types import MappingProxyType
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ignite_prune._utils.exchange import Exchange
from ignite_prune._utils.shard import Part, is_sharded, like, local, part_of
from ignite_prune.core.mask_store import MaskStore
from ignite_prune.core.selection import is_number, named_parameters, select


class ShardedMaskStore(MaskStore):
    """A :class:`.MaskStore` of which each rank holds its parts.

    ``store["fc.weight"]`` is a bool DTensor on the parameter's mesh and with its placements: its shape is that of the
    whole parameter, ``.to_local()`` is this rank's part, and ``.full_tensor()`` collects it where that is wanted. The
    mask of a parameter that is not sharded is a plain tensor. Counts and sparsities are those of the whole parameters.

    Every rank has to call :meth:`update`, :meth:`load_state_dict` and what changes masks otherwise, as they exchange
    counts. Masks may be given as DTensors, or as plain tensors of the whole shape, of which each rank takes its part.

    Attributes:
        parts: which part of each parameter lies on this rank.
        exchange: the collectives of the last change, with a count of messages and bytes.
    """

    is_sharded: ClassVar[bool] = True
    exchange: Exchange

    def __init__(
        self,
        parameters: Mapping[str, nn.Parameter] | nn.Module,
        masks: Mapping[str, Tensor] | None = None,
        whole: Mapping[str, int] = MappingProxyType({}),
    ) -> None:
        chosen = select(parameters, sharded=True) if isinstance(parameters, nn.Module) else parameters
        self.parts: dict[str, Part] = {name: part_of(name, parameter) for name, parameter in chosen.items()}
        self.exchange = Exchange()
        self._is_settled = False
        super().__init__(chosen, masks, whole)

    def __getitem__(self, name: str) -> Tensor:
        if name not in self.parameters:
            raise KeyError(name)
        mask, parameter = self.pruned(name), self.parameters[name]
        held = torch.ones_like(local(parameter), dtype=torch.bool) if mask is None else mask.clone()
        return like(held, parameter) if is_sharded(parameter) else held

    def sparsity_of(self, model: nn.Module) -> float:
        """Return the pruned fraction of all floating-point parameters of the model that holds the store's."""
        named = named_parameters(model).items()  # by name: a forward pass may have left whole parameters in the model
        rest = sum(p.numel() for name, p in named if is_number(p) and name not in self.parameters)
        whole = sum(self._whole.values()) + rest
        return (whole - rest - sum(self._kept.values())) / whole if whole else 0.0

    def _owned(self, name: str, mask: Tensor, copy: bool) -> Tensor:
        """Return this rank's part of a mask, given as a DTensor, as a whole or as the part."""
        parameter: Any = self.parameters[name]
        part = self.parts[name]
        if is_sharded(mask):
            given: Any = mask
            if is_sharded(parameter) and (given.device_mesh, given.placements) != (
                parameter.device_mesh,
                parameter.placements,
            ):
                given = given.redistribute(parameter.device_mesh, parameter.placements)
            mask = local(given)
        elif tuple(mask.shape) == part.shape:
            mask = part.of(mask)
        held = local(parameter)
        if not copy and mask.device == held.device and mask.stride() == held.stride():
            return mask
        return torch.empty_like(held, dtype=torch.bool).copy_(mask)

    def replaced(self, masks: Mapping[str, Tensor]) -> dict[str, Any]:
        """Return what :meth:`put` takes; every rank calls it with its parts of masks of the same parameters."""
        self.settle()
        held, kept, flips = dict(self._masks), dict(self._kept), dict.fromkeys(self.parameters, 0)
        names = [name for name in self.parameters if name in masks]  # in one order on all ranks
        counts, own = torch.zeros((len(names), 2), dtype=torch.int64), dict[str, Tensor]()
        for row, name in zip(counts, names):
            own[name] = self._owned(name, masks[name], copy=False)
            earlier, count = self.pruned(name), int(own[name].count_nonzero())
            changed = own[name].numel() - count if earlier is None else int((own[name] ^ earlier).count_nonzero())
            if self.parts[name].counted:
                row[0], row[1] = count, changed
        for (count, changed), name in zip(self.exchange.sum(counts).tolist() if names else (), names):
            kept[name], flips[name] = count, changed
            if count == self.parameters[name].numel():
                held.pop(name, None)
            else:
                held[name] = own[name]
        return {"_masks": held, "_kept": kept, "flips": flips, "changes": self.changes + bool(masks)}

    def for_model(self, model: nn.Module, rename: Any = None) -> MaskStore:
        """Not for sharded masks: their parts belong to the sharding of their own model.

        Raises:
            ValueError: always.
        """
        raise ValueError("for_model() takes masks that are not sharded; collect them: masks[name].full_tensor()")

    def state_dict(self, compress: bool = False) -> dict[str, Any]:
        """Return names, shapes and the masks as DTensors, which ``torch.distributed.checkpoint`` saves as they lie."""
        shapes = [list(parameter.shape) for parameter in self.parameters.values()]
        return {"names": list(self), "shapes": shapes, "shards": {name: self[name] for name in self}}

    def settle(self) -> None:
        """Find out, once, which rank counts which part; every rank calls it.

        Raises:
            ValueError: on every rank: the ranks have other parameters, or do not hold all of one.
        """
        if self._is_settled:
            return
        mine = [(name, part.shape, part.start, part.size) for name, part in self.parts.items()]
        ranks = self.exchange.objects(mine, "which parts they hold")
        _check_alike(ranks)
        for index, (name, part) in enumerate(self.parts.items()):
            held = [every[index][2:] for every in ranks]
            if sum(math.prod(size) for _, size in set(held)) != math.prod(part.shape):
                raise ValueError(
                    f"Parameter {name!r} of shape {part.shape} does not lie on the {len(ranks)} ranks of the process "
                    f"group as a whole, once or several times: they hold (start, size) {held[:4]}. Shard it over a "
                    "mesh of all ranks, or leave it out with exclude="
                )
            counted = held.index((part.start, part.size)) == self.exchange.rank
            self.parts[name] = replace(part, counted=counted)
        self._is_settled = True

    def over_ranks(self, counts: Mapping[str, int]) -> dict[str, int]:
        """Return the sums of counts of this rank's parts over all ranks; of equal parts one is taken."""
        self.settle()
        own = [counts.get(name, 0) if part.counted else 0 for name, part in self.parts.items()]
        return dict(zip(self.parts, self.exchange.sum(torch.tensor(own, dtype=torch.int64)).tolist()))


def _check_alike(ranks: Sequence[Sequence[tuple[Any, ...]]]) -> None:
    """Raise unless all ranks have parameters of the same names and shapes."""
    told = [[f"{name!r} of shape {shape}" for name, shape, *_ in parts] for parts in ranks]
    for rank, other in enumerate(told):
        for first, differing in zip_longest(told[0], other, fillvalue="no further parameter"):
            if first != differing:
                raise ValueError(
                    f"Every rank should prune the same parameters, but rank {rank} has {differing} where rank 0 has "
                    f"{first}. Parameters that are on one rank alone (pipeline stages, experts) are left out with "
                    "exclude="
                )
