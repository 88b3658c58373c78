"""FullState: the state of a sharded pruner as one file, for Ignite's ``Checkpoint``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ignite_prune._utils.distributed import rank
from ignite_prune._utils.shard import collected
from ignite_prune.handlers.prune_handler import PruneHandler
from ignite_prune.update.sharded.state import whole


class FullState:
    """Stands for a :class:`~ignite_prune.PruneHandler` of a sharded model where a checkpoint is one file.

    ``Checkpoint({"pruner": FullState(pruner), ...}, DiskSaver(folder), ...)`` saves masks in the form of a run that is
    not sharded, so that both load it. Parameters are collected one at a time, and kept on rank 0 alone; every rank
    calls :meth:`state_dict`, as Ignite's ``Checkpoint`` does. Where a checkpoint may be several files, give the pruner
    itself to ``torch.distributed.checkpoint``, which collects nothing.

    Args:
        pruner: of a sharded model, or any other.

    Raises:
        TypeError: not a PruneHandler.
    """

    def __init__(self, pruner: PruneHandler) -> None:
        if not isinstance(pruner, PruneHandler):
            raise TypeError(f"Argument pruner should be a PruneHandler, but given {type(pruner)}")
        self.pruner = pruner

    def state_dict(self) -> dict[str, Any]:
        """Return the whole state on rank 0; on other ranks tensors that were collected are empty."""
        state = self.pruner.state_dict()
        return whole(state, _on_rank_0) if "shards" in state["masks"] else state

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Load a whole state, of which each rank takes its parts; see :meth:`.BaseHandler.load_state_dict`."""
        self.pruner.load_state_dict(state_dict)


def _on_rank_0(tensor: Tensor) -> Tensor:
    """Return a collected tensor on the CPU of rank 0, and an empty one on other ranks."""
    found = collected(tensor)
    return found.cpu() if rank() == 0 else found.new_empty(0, device="cpu")
