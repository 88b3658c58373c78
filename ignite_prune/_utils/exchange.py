"""Exchange: the few collectives of a mask update over shards, with a count of messages and bytes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from ignite_prune._utils.distributed import KNOWN

LOST = (
    "The ranks could not exchange {what}, so this mask update was not made: masks and weights are as they were. If a "
    "rank has ended, start all of them again (torchrun --max-restarts does) and load the last checkpoint; nothing "
    "that it holds is lost. The cause: {cause}"
)


@dataclass(frozen=True)
class Traffic:
    """What the ranks exchanged in a mask update.

    Args:
        messages: number of collectives.
        bytes: what one rank received from them.
    """

    messages: int
    bytes: int


class Exchange:
    """Sums and collects small CPU tensors over all ranks of the default process group.

    Raises:
        ValueError: there is no process group.

    Attributes:
        messages: number of collectives so far.
        bytes: what this rank has received from them, in bytes.
    """

    def __init__(self) -> None:
        self.messages = self.bytes = 0
        if not (dist.is_available() and dist.is_initialized()):
            raise ValueError(
                "There is no process group (it was destroyed, or never initialised), so sharded parameters cannot be "
                "counted over their ranks; call torch.distributed.init_process_group() before, and "
                "destroy_process_group() after the last use of the model"
            )
        self.ranks, self.rank = dist.get_world_size(), dist.get_rank()

    @property
    def traffic(self) -> Traffic:
        """What was exchanged so far."""
        return Traffic(self.messages, self.bytes)

    def sum(self, tensor: Tensor, what: str = "counts") -> Tensor:
        """Return the sum of a tensor over ranks, in the tensor's own dtype."""
        if self.ranks == 1:
            return tensor
        held = _on_device(tensor)
        self._run(lambda: dist.all_reduce(held), what, tensor)
        return held.to(tensor.device)

    def collect(self, tensor: Tensor, what: str = "counts") -> Tensor:
        """Return the tensors of all ranks, of equal shapes, stacked in their order."""
        if self.ranks == 1:
            return tensor.unsqueeze(0)
        held = _on_device(tensor)
        found = held.new_empty((self.ranks, *held.shape))
        self._run(lambda: dist.all_gather(list(found.unbind()), held), what, found)
        return found.to(tensor.device)

    def objects(self, value: Any, what: str = "settings") -> list[Any]:
        """Return the values of all ranks, any that can be pickled; their bytes are not counted."""
        if self.ranks == 1:
            return [value]
        found: list[Any] = [None] * self.ranks
        self._run(lambda: dist.all_gather_object(found, value), what, torch.empty(0))
        return found

    def raise_together(self, error: Exception | None, agreed: int = 0, what: str = "") -> None:
        """Raise on every rank if one has an error, or if they were asked for different things.

        Args:
            error: this rank's.
            agreed: a number that should be equal on all ranks.
            what: what it stands for, for the message.

        Raises:
            ValueError: another rank failed: names it and its error; or the numbers differ.
        """
        flags = self.collect(torch.tensor([error is not None, agreed], dtype=torch.int64), "whether all are ready")
        failed = flags[:, 0].nonzero().flatten().tolist()
        if failed:
            texts = self.objects(None if error is None else f"{type(error).__name__}: {error}", "errors")
            if error is not None:
                vars(error)[KNOWN] = True
                raise error
            raise _known(
                ValueError(
                    f"The mask update was refused on rank {failed[0]} of {self.ranks}, so nothing was pruned on any: "
                    f"{texts[failed[0]]}"
                )
            )
        if len(set(flags[:, 1].tolist())) > 1:
            other = next(rank for rank in range(self.ranks) if flags[rank, 1] != flags[0, 1])
            raise _known(ValueError(f"Every rank should have the same {what}, but rank {other} has others than rank 0"))

    def _run(self, call: Callable[[], object], what: str, received: Tensor) -> None:
        self.messages += 1
        self.bytes += received.numel() * received.element_size()
        try:
            call()
        except RuntimeError as error:  # a rank has ended, or the group's timeout is over
            raise _known(RuntimeError(LOST.format(what=what, cause=str(error).strip().partition("\n")[0]))) from error


def _known(error: Exception) -> Exception:
    """Mark an error as one that is raised on every rank."""
    vars(error)[KNOWN] = True
    return error


def _on_device(tensor: Tensor) -> Tensor:
    held = tensor.detach().clone(memory_format=torch.contiguous_format)
    return held.cuda() if dist.get_backend() == "nccl" and held.device.type == "cpu" else held
