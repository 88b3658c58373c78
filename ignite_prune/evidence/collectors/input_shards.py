"""Inputs of layers that lie on several ranks, as tensor parallelism leaves them: what of them a rank adds to a sum."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ignite_prune._utils.shard import is_sharded, local, part_of
from ignite_prune.evidence.forward.layer_calls import LayerCall

ALL = slice(None)


def own_input(call: LayerCall, kernel: int, whole_columns: bool) -> tuple[LayerCall, slice, bool]:
    """Return a layer call with this rank's part of its input, so that the ranks together have each entry once.

    Args:
        call: the call; its input may be a DTensor.
        kernel: number of dimensions of a convolution's kernel, 0 for a linear layer.
        whole_columns: whether all inputs of an output are needed together; those that are split are exchanged then.

    Returns:
        The call; which of the layer's inputs the part has; and whether this rank adds it, as others may have it too.
    """
    given: Any = call.input
    if not is_sharded(given):
        return call, ALL, True
    from torch.distributed.tensor import Replicate  # slow to import

    rows = range(given.ndim - (kernel + 1 if kernel else whole_columns))  # dimensions that may be split
    placements = [each if each.is_shard() and each.dim in rows else Replicate() for each in given.placements]
    given = given.redistribute(placements=placements)
    coordinate = given.device_mesh.get_coordinate()
    adds = not any(at for at, each in zip(coordinate, placements) if each.is_replicate())
    columns = ALL
    if not kernel and not whole_columns:
        part = part_of("the input of a layer", given)
        columns = slice(part.start[-1], part.start[-1] + part.size[-1])
    return replace(call, input=local(given)), columns, adds


class InputShards:
    """Which layers of a model have inputs that lie on several ranks, and which have the same ones on all of these.

    A layer that a plan of tensor parallelism leaves out has whole inputs, equal on the ranks among which the others
    are divided: the first of these adds them.
    """

    def __init__(self) -> None:
        self._plain, self._is_first = set[str](), True

    def see(self, name: str, call: LayerCall) -> None:
        """Record a call of a layer."""
        given: Any = call.input
        if is_sharded(given):
            self._plain.discard(name)
            self._is_first = not any(given.device_mesh.get_coordinate())
        else:
            self._plain.add(name)

    def copies(self) -> set[str]:
        """Return the layers whose inputs another rank adds."""
        return set() if self._is_first else self._plain
