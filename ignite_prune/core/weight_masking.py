"""WeightMasking: makes pruned weights 0, and finds out with few reads whether something has written to them.

A pass over all weights after every step would cost as much as the optimizer's own. On the CPU it is left out where it
would change nothing: after the step of an optimizer that leaves a weight at 0 whose gradient and slots are 0, if some
hundred pruned entries, other ones each time, are 0. Before a step, a weight is only read as a whole if its version
counter says that something has written to it since. Writes through ``.data`` are not counted, so a few entries of one
parameter after the other are read there as well. What escapes this is found when all entries are read: at every mask
update, before a state is saved, at the end of an epoch (``weight_check``) and when the hooks are removed.

On an accelerator the host would have to wait for what it reads, and masking again costs less.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from ignite_prune._utils.bits import is_masked, zero_
from ignite_prune._utils.shard import PLAIN, local
from ignite_prune.core.mask_store import MaskStore
from ignite_prune.core.probes import Probes

_SMALL = 1 << 12  # entries of a weight that is masked as fast as probed

LENT: set[int] = set()
"""The ids of parameters to which another handler has written values of its own for the step that is running."""


@dataclass(eq=False)
class WeightMasking:
    """The weights of a store's parameters.

    Args:
        masks: of the weights.
        probes: which entries are read.

    Attributes:
        versions: the version at which each weight was masked.
        unread: names of weights that were left as they are after a step, because a few entries were 0.
    """

    masks: MaskStore
    probes: Probes
    versions: dict[str, int] = field(default_factory=dict, init=False)
    unread: set[str] = field(default_factory=set, init=False)

    def is_alive(self, name: str, parameter: Tensor, mask: Tensor, whole: bool = True) -> bool:
        """Return whether pruned weights are not 0; on an accelerator and without ``whole`` a few are read."""
        if id(parameter) in LENT:
            return False
        if whole and parameter.is_cpu:
            return not is_masked(parameter, mask)
        return _some_alive(parameter, self.probes(name, mask))

    def is_written(self, name: str, parameter: Tensor) -> bool:
        """Return whether a weight was written to since it was masked, as far as its version shows."""
        return parameter._version != self.versions.get(name)

    def is_untouched(self, name: str, parameter: Tensor, mask: Tensor) -> bool:
        """Return whether nothing has written to a weight since it was masked; a few entries are read."""
        return not self.is_written(name, parameter) and not _some_alive(parameter, self.probes(name, mask))

    def may_be_left(self, parameter: Tensor) -> bool:
        """Return whether reading a few entries of a weight costs less than masking it."""
        return parameter.is_cpu and parameter.numel() > _SMALL

    def after_step(self, name: str, parameter: nn.Parameter, mask: Tensor, keeps_zero: bool) -> bool:
        """Mask a weight after a step, or leave it if that would change nothing.

        Args:
            name: the parameter's.
            parameter: that was stepped.
            mask: its mask.
            keeps_zero: whether the step leaves pruned entries at 0, because their gradients and slots are 0.

        Returns:
            False if a step that keeps zeros has not: something else wrote to the weight.
        """
        positions = self.probes(name, mask) if keeps_zero else None
        is_zero = None if positions is None or not len(positions) else not _some_alive(parameter, positions)
        if is_zero:
            self.unread.add(name)
        else:
            zero_(parameter, mask)
            self.unread.discard(name)
        self.versions[name] = parameter._version
        return is_zero is not False

    @torch.no_grad()
    def mask_where_needed(self) -> None:
        """Mask the weights that have pruned entries other than 0; a weight that is as it should be is not written to.

        Each write to a weight makes autograd refuse the graphs that were built with it before.
        """
        for name, parameter in self.masks.parameters.items():
            mask = self.masks.pruned(name)
            if mask is not None and (name in self.unread or not self.is_untouched(name, parameter, mask)):
                if not is_masked(parameter, mask):
                    zero_(parameter, mask)
                self.versions[name] = parameter._version
        self.unread.clear()


def _some_alive(parameter: Tensor, positions: Tensor) -> bool:
    """Return whether one of some entries is not 0."""
    held = parameter if type(parameter) in PLAIN else local(parameter)
    return bool(held.detach().take(positions).any())
