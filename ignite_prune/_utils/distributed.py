"""Collectives over the ranks of ``torch.distributed``; without a process group there is one rank."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

KNOWN = "raised_on_every_rank"  # an entry of the error's own dict


def world_size() -> int:
    """Return the number of ranks."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Return this process's rank."""
    return dist.get_rank() if world_size() > 1 else 0


def raise_together(error: Exception | None, message: str) -> None:
    """Raise on every rank if any rank has an error: ``error`` on a rank that has one, ``message`` on the others.

    All ranks meet here, so one that fails between two meetings must come to the next, or the others would wait for it:
    it calls this with its error where the others call it without. Every other collective of an update follows a
    meeting directly, with nothing in between that may fail on one rank alone. An error that all ranks know, because a
    meeting has raised it, is raised again without another meeting.

    Raises:
        ValueError: another rank failed; the text ends with its number, and the type and message of its error.
    """
    meets = world_size() > 1 and (error is None or not vars(error).get(KNOWN))
    if meets and all_reduce(torch.tensor(float(error is not None))).item():
        causes = all_gather(None if error is None else cause_of(error))
        failed = next(each for each, cause in enumerate(causes) if cause)
        error = error or ValueError(f"{message}: rank {failed} raised {causes[failed]}")
        vars(error)[KNOWN] = True
    if error is not None:
        raise error


def cause_of(error: Exception) -> str:
    """Return the type and message of an error in one line."""
    text = traceback.format_exception_only(error)[-1].strip()  # an error's own __str__ may fail
    return f"{type(error).__name__}: {text.partition(': ')[2] or text}"[:1000]


def all_reduce(tensor: Tensor) -> Tensor:
    """Return the sum of a tensor over ranks."""
    return tensor if world_size() == 1 else _exchanged(tensor, dist.all_reduce)


def mean_over_ranks(tensor: Tensor) -> Tensor:
    """Return the mean of a tensor over ranks."""
    return all_reduce(tensor) / world_size()


def broadcast(tensor: Tensor, source: int = 0) -> Tensor:
    """Return the tensor of rank ``source``."""
    return tensor if world_size() == 1 else _exchanged(tensor, lambda held: dist.broadcast(held, src=source))


def all_gather(value: Any) -> list[Any]:
    """Return the values of all ranks, in rank order."""
    if world_size() == 1:
        return [value]
    gathered: list[Any] = [None] * world_size()
    dist.all_gather_object(gathered, value)
    return gathered


def any_rank(value: bool) -> bool:
    """Return whether a value is true on any rank."""
    return bool(all_reduce(torch.tensor(float(value))).item())


def _exchanged(tensor: Tensor, exchange: Callable[[Tensor], object]) -> Tensor:
    held = tensor.detach().clone(memory_format=torch.contiguous_format)
    if dist.get_backend() == "nccl" and held.device.type == "cpu":
        held = held.cuda()
    exchange(held)
    return held.to(tensor.device)
