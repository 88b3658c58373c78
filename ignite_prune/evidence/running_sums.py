"""Running sums by parameter name, with their counts: added to, saved, checked and loaded."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ignite_prune._utils.shard import is_sharded, like, local, part_of
from ignite_prune._utils.state import checked_mapping, checked_tensor

Totals = tuple[Mapping[str, Tensor], Mapping[str, float]]
"""Sums and counts by parameter name."""
Forms = dict[str, tuple[int, ...]]
"""What the shape of a parameter's sum depends on, by its name."""
Zeros = Callable[[str], Tensor]
"""Returns zeros in the form of a parameter's sum, by its name."""


class RunningSums:
    """Sums over parameters by name, and how much was added up.

    Args:
        parameters: by name.
        by_part: whether the sums over sharded parameters are of this rank's parts, complete there.

    Attributes:
        forms: what the shape of a sum depends on if only data shows it; ranks without data get it from the others.
        stale: whether a mask update has used the sums; the next addition starts from zeros then.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter], by_part: bool = False) -> None:
        self.parameters, self.stale, self.by_part = parameters, False, by_part
        self.sums: dict[str, Tensor] = {}
        self.counts: dict[str, float] = {}
        self.forms: Forms = {}

    def at(self, name: str, zeros: Zeros) -> Tensor:
        """Return the sum of a parameter, to add to in place, on the parameter's device; at first it is zeros.

        Args:
            name: the parameter's.
            zeros: not stored: it is a method of what holds these sums, and a reference cycle would keep gigabytes in
                memory until Python's garbage collector runs.
        """
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

    def state_dict(self) -> dict[str, Any]:
        """Return copies of the sums, the counts and staleness."""
        sums = {name: self._as_sharded(name, held.detach().clone()) for name, held in self.sums.items()}
        return {"sums": sums, "counts": dict(self.counts), "stale": self.stale}

    def _as_sharded(self, name: str, held: Tensor) -> Tensor:
        """Return a sum over this rank's part of a sharded parameter as a DTensor, any other as it is."""
        parameter = self.parameters[name]
        is_part = self.by_part and is_sharded(parameter) and held.shape == local(parameter).shape
        return like(held, parameter) if is_part else held

    def checked(self, state: Mapping[str, Any], forms: Forms, zeros: Zeros) -> dict[str, Any]:
        """Return a state whose sums fit the parameters and these forms, or raise TypeError or ValueError."""
        before, self.forms = self.forms, forms
        try:
            given = checked_mapping("evidence 'sums'", state.get("sums"), self.parameters, whole=False)
            sums = {name: self._checked_sum(name, held, zeros) for name, held in given.items()}
        finally:
            self.forms = before
        counts = checked_mapping("evidence 'counts'", state.get("counts"), sums)
        if not all(type(n) in (int, float) and 0 <= n < math.inf and n < 2**63 for n in counts.values()):
            raise ValueError("The checkpoint's evidence is damaged: its counts should be finite numbers of at least 0")
        stale = state.get("stale", False)
        if not isinstance(stale, bool):
            raise TypeError(f"The checkpoint's evidence 'stale' should be a bool, but is {type(stale)}")
        return {**state, "sums": sums, "stale": stale}

    def _checked_sum(self, name: str, held: Any, zeros: Zeros) -> Tensor:
        what, parameter = f"evidence of {name!r}", self.parameters[name]
        held, wanted = checked_tensor(what, held), zeros(name)
        if self.by_part and is_sharded(parameter) and held.shape == parameter.shape:
            part = local(held) if is_sharded(held) else part_of(name, parameter).of(held)
            held = part.clone(memory_format=torch.contiguous_format)
        return checked_tensor(what, held, shape=wanted.shape, dtype=wanted.dtype)

    def load_state_dict(self, state: Mapping[str, Any], forms: Forms) -> None:
        """Load a checked state, whose sums are this object's from now on."""
        self.sums, self.forms, self.stale = dict(state["sums"]), forms, state["stale"]
        self.counts = {name: float(number) for name, number in state["counts"].items()}


def sum_dtype(parameter: Tensor, dtype: torch.dtype | None = None) -> torch.dtype:
    """Return the type of running sums over a parameter: at least float32, as half precision would lose small terms."""
    return dtype or (torch.float32 if parameter.itemsize < 4 else parameter.dtype)


def zeros_over(parameter: Tensor, shape: Sequence[int] | None = None, dtype: torch.dtype | None = None) -> Tensor:
    """Return zeros for a sum over a parameter, by default of one number an entry."""
    if shape is None:
        return torch.zeros_like(local(parameter), dtype=sum_dtype(parameter, dtype), requires_grad=False)
    return torch.zeros(shape, dtype=sum_dtype(parameter, dtype), device=parameter.device)
