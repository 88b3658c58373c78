"""Base class of sparsifiers: selection of winners, duty cycles, state."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import has_torch_function

from ignite_prune._utils.arguments import check_positive
from ignite_prune._utils.distributed import all_reduce
from ignite_prune._utils.recorded_arguments import RecordedArguments
from ignite_prune.schedule import Schedule
from ignite_prune.schedule.base import check_sparsity


class Sparsifier(RecordedArguments, nn.Module, ABC):
    r"""Passes some entries of an activation (the winners) and sets the others to 0; gradients flow to winners only.

    In training it records the duty cycle of each unit, a running mean of how often it wins:
    :math:`d \leftarrow (d (P - B) + won) / P`, with B the samples of the batch (on all ranks), P = min(period, samples
    seen), and ``won`` the mean over the unit's positions, summed over samples.

    NaN is treated as infinity: it wins over every finite number, and so is not hidden.

    Args:
        sparsity: fraction of entries to drop, or a schedule of it, which a handler evaluates.
        period: number of samples over which duty cycles are averaged, at least 1.
        dim: the dimension of the units.

    Attributes:
        schedule: schedule of the sparsity; None if it is a number.
        duty: duty cycle of each unit, in [0, 1]; empty before the first batch.
        seen: number of samples seen in training.
    """

    duty: Tensor
    seen: Tensor
    held_sparsity: Tensor

    def __init__(self, sparsity: float | Schedule, period: int = 1000, dim: int = 1) -> None:
        super().__init__()
        check_positive("period", period, whole=True)
        if type(dim) is not int:
            raise TypeError(f"Argument dim should be an int, but given {dim!r}")
        self.schedule = sparsity if isinstance(sparsity, Schedule) else None
        self.period, self.dim = period, dim
        self.register_buffer("duty", torch.zeros(0))
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))
        self.register_buffer("held_sparsity", torch.zeros((), dtype=torch.float64))
        self.sparsity = sparsity(0) if isinstance(sparsity, Schedule) else sparsity

    @property
    def sparsity(self) -> float:
        """Fraction of entries that are dropped: given, last set by the schedule, or computed from a number of units."""
        return self._sparsity

    @sparsity.setter
    def sparsity(self, value: float) -> None:
        check_sparsity("sparsity", value)
        self._sparsity = float(value)  # read in each forward, where reading a CUDA tensor would synchronise
        self.held_sparsity.fill_(self._sparsity)

    def reach(self, sparsity: float) -> None:
        """Set the sparsity that a number of units corresponds to."""
        if sparsity != self._sparsity:
            self.sparsity = sparsity

    @abstractmethod
    def select(self, x: Tensor) -> Tensor:
        """Return which entries win: bool, in the shape of ``x``."""

    def forward(self, x: Tensor) -> Tensor:
        """Return ``x`` with all entries but the winners exactly 0."""
        self.check(x)
        return torch.where(self.decide(x, lambda: (self.select(x),))[0], x, 0)

    def decide(self, x: Tensor, select: Callable[[], Sequence[Tensor]]) -> list[Tensor]:
        """Return masks in the memory format of ``x``, so that results keep channels_last; in training count the first.

        The computation is hidden from function modes: an observer of the forward pass only sees masks derived from
        ``x``.
        """
        with torch.no_grad(), nullcontext() if torch.compiler.is_compiling() else torch._C.DisableTorchFunction():
            chosen = select()
            if self.training and not recomputing():  # recomputed passes have already been counted
                self.count(chosen[0])
        return [_laid_out(mask, x) for mask in chosen]

    def check(self, x: Tensor) -> None:
        """Raise if ``x`` cannot be sparsified.

        Raises:
            TypeError: ``x`` is not a floating-point tensor.
            ValueError: ``x`` lacks a sample or unit dimension, or has another number of units than before.
        """
        if not isinstance(x, Tensor) or not x.is_floating_point():
            raise TypeError(f"{self} should be given a floating-point tensor, but given {x!r:.80}")
        if x.ndim < 2 or not -x.ndim < self.dim < x.ndim or self.dim == 0:
            raise ValueError(
                f"{self} should be given samples along dimension 0 and units along {self.dim}, but given "
                f"{tuple(x.shape)}"
            )
        if self.duty.numel() not in (0, x.shape[self.dim]):
            raise ValueError(
                f"{self} has seen {self.duty.numel()} units, but now given {x.shape[self.dim]} in {tuple(x.shape)}"
            )

    # Duty cycles

    def count(self, won: Tensor) -> None:
        """Update the duty cycles with the kept units (winners) of a batch."""
        units = won.shape[self.dim]
        wins = won.sum(dim=[dim for dim in range(won.ndim) if dim != self.dim % won.ndim])
        # An all-reduce of integers is exact, so duty cycles are bit-identical on all ranks.
        counts = torch.cat([wins, wins.new_tensor([won.numel() // max(units, 1), won.shape[0]])])
        counts = all_reduce(counts)
        if self.duty.numel() == 0:
            with torch.inference_mode(False):  # an inference tensor could not be updated in training
                self.duty = torch.zeros(units, device=won.device)
        places, batch = counts[-2], counts[-1]
        self.seen += batch
        # With a period below the batch size, the weight of the old value would be negative.
        period = torch.maximum(self.seen.clamp(max=self.period), batch).clamp(min=1)
        self.duty.mul_(period - batch).add_(counts[:-2] * batch / places.clamp(min=1)).div_(period)

    @property
    def dead(self) -> int:
        """Number of units whose duty cycle is at most 1 % of the mean."""
        return int((self.duty <= self.duty.mean() / 100).sum())

    @property
    def entropy(self) -> float:
        """Entropy of the duty cycles relative to its maximum: 1 if all are equal, NaN before the first batch."""
        d = self.duty.double().clamp(0, 1)
        mean = d.mean()
        most = float(d.numel() * (torch.special.entr(mean) + torch.special.entr(1 - mean)))
        if not d.numel():
            return math.nan
        return min(float((torch.special.entr(d) + torch.special.entr(1 - d)).sum()) / most, 1.0) if most > 0 else 1.0

    # State

    def _apply(self, fn: Any, recurse: bool = True) -> Sparsifier:
        """Move buffers without changing their dtypes: running means need more than half precision."""
        held = dict(self._buffers)
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name, buffer in held.items():
            moved = self._buffers[name]
            if buffer is not None and moved is not None and moved.dtype != buffer.dtype:
                self._buffers[name] = buffer.to(moved.device)
        return self

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any) -> None:
        duty = state_dict.get(f"{prefix}duty")
        if isinstance(duty, Tensor) and duty.ndim == 1 and 0 in (duty.numel(), self.duty.numel()):
            self.duty = self.duty.new_zeros(duty.numel())  # the size in the state dict
        super()._load_from_state_dict(state_dict, prefix, *args)
        self.reread_buffers()

    def reread_buffers(self) -> None:
        """Update the sparsity from its buffer, after the buffer was written."""
        self._sparsity = float(self.held_sparsity)

    def check_state(self) -> None:
        """Check buffers that were loaded.

        Raises:
            ValueError: a value is out of its range.
        """
        check_sparsity("held_sparsity", float(self.held_sparsity))
        if self.seen < 0 or not bool(((self.duty >= 0) & (self.duty <= 1)).all()):
            raise ValueError("duty cycles should be in [0, 1], and the number of samples seen at least 0")


def recomputing() -> bool:
    """Return whether a forward pass runs inside a backward pass, as under activation checkpointing."""
    return not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1


def _laid_out(mask: Tensor, x: Tensor) -> Tensor:
    """Return the mask in the memory format of ``x``, derived from ``x`` if a function mode is active."""
    if mask.stride() == x.stride() and not has_torch_function((x,)):
        return mask
    like = torch.zeros_like(x, dtype=torch.bool)
    with nullcontext() if torch.compiler.is_compiling() else torch._C.DisableTorchFunction():
        return like.copy_(mask)


def as_sparsity_of(density: Any) -> float | Schedule:
    """Return 1 - density; a schedule (of the sparsity) is returned unchanged.

    Raises:
        TypeError, ValueError: ``density`` is neither a number in (0, 1] nor a schedule.
    """
    if isinstance(density, Schedule):
        return density
    check_sparsity("density", density)
    if density == 0:
        raise ValueError("Argument density should be in (0, 1], but given 0")
    return 1 - float(density)
