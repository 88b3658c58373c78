"""Running sums by parameter name, with their counts: saved, checked, loaded, and reduced over ranks."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ignite_prune._utils.distributed import all_gather, all_reduce, broadcast, raise_together, rank, world_size
from ignite_prune._utils.shard import is_sharded, like, local, part_of
from ignite_prune._utils.state import checked_mapping, checked_tensor

FAILED = "Gathering evidence failed on another rank; nothing was changed on this one"
Totals = tuple[Mapping[str, Tensor], Mapping[str, float]]
"""Sums and counts by parameter name."""
Kept = Mapping[int, Tensor]
"""The indices that a parameter keeps, by dimension."""
Zeros = Callable[[str], Tensor]
"""Returns zeros in the form of a parameter's sum, by the parameter's name."""


class RunningSums:
    """Sums over parameters by name, and how much was added up.

    Attributes:
        forms: what the shape of a sum depends on if only data shows it; ranks without data get it from the others.
        stale: whether a mask update has used the sums; the next addition starts from zeros then.
        by_part: whether the sums over sharded parameters are of this rank's parts, complete there.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter], by_part: bool = False) -> None:
        self.parameters, self.stale, self.by_part = parameters, False, by_part
        self.sums: dict[str, Tensor] = {}
        self.counts: dict[str, float] = {}
        self.forms: dict[str, tuple[int, ...]] = {}

    def at(self, name: str, zeros: Zeros) -> Tensor:
        """Return the sum of a parameter, to add to in place, on the parameter's device; at first it is zeros."""
        if self.stale:
            self.reset()
        held = self.sums.get(name)
        if held is None:
            held = self.sums[name] = zeros(name)
        elif held.device != self.parameters[name].device:  # the model was moved
            held = self.sums[name] = held.to(self.parameters[name].device)
        return held

    def count(self, name: str, weight: float = 1.0, decay: float = 1.0) -> None:
        """Add to a count, after decay of what it was."""
        self.counts[name] = self.counts.get(name, 0.0) * decay + weight

    def reset(self) -> None:
        """Drop all sums and counts."""
        self.sums, self.counts, self.stale = {}, {}, False

    def totals(self, zeros: Zeros, key: str, replicated: bool, shared: bool) -> Totals:
        """Return sums and counts over all ranks; a rank without data for a parameter adds nothing.

        Args:
            zeros: returns zeros in the form of a parameter's sum.
            key: of the evidence, for the error if ranks use a parameter in ways that do not add up.
            replicated: all ranks have the same sums (of averaged gradients), so the result is their mean.
            shared: all ranks have the same sums (of the model's own values), so the result is one rank's.
        """
        if world_size() == 1 or (self.by_part and any(map(is_sharded, self.parameters.values()))):
            return self.sums, self.counts
        sums: dict[str, Tensor] = {}
        counts: dict[str, float] = {}
        ranks = self._counted()
        equals = len(ranks) if replicated else 1
        for name in self.parameters:
            having = [each for each, counted in enumerate(ranks) if name in counted]
            if not having:
                continue
            self._take_form(name, key, [ranks[each][name][1] for each in having])
            own = self._own_sum(name, zeros, having)
            if shared:  # a mean of equal values would be rounded
                sums[name], counts[name] = broadcast(own, having[0]), 1.0
            else:
                sums[name] = all_reduce(own).div_(equals)
                counts[name] = sum(ranks[each][name][0] for each in having) / equals
        return sums, counts

    def _counted(self) -> Sequence[Mapping[str, tuple[float, tuple[int, ...]]]]:
        """Return the counts and forms of each rank; stale sums count only if no rank has new ones."""
        mine = {n: (count, self.forms.get(n, ())) for n, count in self.counts.items() if count > 0}
        gathered = all_gather((self.stale, mine))
        none_new = all(stale for stale, _ in gathered)
        return [counted if none_new or not stale else {} for stale, counted in gathered]

    def _take_form(self, name: str, key: str, forms: Sequence[tuple[int, ...]]) -> None:
        if len(set(forms)) > 1:
            raise ValueError(
                f"{key} of parameter {name!r} cannot be added up: ranks use it in different ways (with other groups or "
                "heads, or the other way round)"
            )
        if forms[0]:
            self.forms[name] = forms[0]

    def _own_sum(self, name: str, zeros: Zeros, having: Sequence[int]) -> Tensor:
        """Return this rank's sum, or zeros if it has none."""
        own, error = self.sums.get(name) if rank() in having else None, None
        try:
            own = zeros(name) if own is None else own
        except Exception as raised:  # this rank may lack the memory
            error = raised
        if len(having) < world_size():
            raise_together(error, FAILED)
        assert own is not None
        return own

    def state_dict(self) -> dict[str, Any]:
        """Return copies of the sums, the counts and staleness."""
        sums = {name: self._as_sharded(name, held.detach().clone()) for name, held in self.sums.items()}
        return {"sums": sums, "counts": dict(self.counts), "stale": self.stale}

    def _as_sharded(self, name: str, held: Tensor) -> Tensor:
        """Return a sum over this rank's part of a sharded parameter as a DTensor, any other as it is."""
        parameter = self.parameters[name]
        is_part = self.by_part and is_sharded(parameter) and held.shape == local(parameter).shape
        return like(held, parameter) if is_part else held

    def checked(self, state: Any, zeros: Zeros | None) -> dict[str, Any]:
        """Return a state that fits, or raise TypeError or ValueError; without ``zeros`` sums may have any form."""
        if not isinstance(state, Mapping):
            raise TypeError("The evidence of a pruner's state_dict should be a mapping with 'sums' and 'counts'")
        given = checked_mapping("evidence 'sums'", state.get("sums"), self.parameters, whole=False)
        sums = {}
        for name, held in given.items():
            what, wanted = f"evidence of {name!r}", checked_tensor(f"evidence of {name!r}", held)
            wanted = wanted if zeros is None else zeros(name)
            parameter = self.parameters[name]
            if self.by_part and is_sharded(parameter) and held.shape == parameter.shape:
                part = local(held) if is_sharded(held) else part_of(name, parameter).of(held)
                sums[name] = part.clone(memory_format=torch.contiguous_format)
            sums[name] = checked_tensor(what, sums.get(name, held), shape=wanted.shape, dtype=wanted.dtype)
        counts = checked_mapping("evidence 'counts'", state.get("counts"), sums)
        if not all(type(n) in (int, float) and 0 <= n < math.inf and n < 2**63 for n in counts.values()):
            raise ValueError("The checkpoint's evidence is damaged: its counts should be finite numbers of at least 0")
        stale = state.get("stale", False)
        if not isinstance(stale, bool):
            raise TypeError(f"The checkpoint's evidence 'stale' should be a bool, but is {type(stale)}")
        return {**state, "sums": sums, "stale": stale}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Load a checked state, whose sums are this object's from now on."""
        self.sums = dict(state["sums"])
        self.counts = {name: float(number) for name, number in state["counts"].items()}
        self.stale = state["stale"]


def kept_of(tensor: Tensor, kept: Kept) -> Tensor:
    """Return the entries of a tensor that are kept."""
    for dim, indices in kept.items():
        tensor = tensor.index_select(dim, indices.to(tensor.device))
    return tensor


def wide(parameter: Tensor, dtype: torch.dtype | None = None) -> torch.dtype:
    """Return the type of running sums over a parameter: at least float32, as half precision would lose small terms."""
    return dtype or (torch.float32 if parameter.itemsize < 4 else parameter.dtype)


def zeros_over(parameter: Tensor, shape: Sequence[int] | None = None, dtype: torch.dtype | None = None) -> Tensor:
    """Return zeros for a sum over a parameter, by default of one number an entry."""
    if shape is None:
        return torch.zeros_like(local(parameter), dtype=wide(parameter, dtype), requires_grad=False)
    return torch.zeros(shape, dtype=wide(parameter, dtype), device=parameter.device)
