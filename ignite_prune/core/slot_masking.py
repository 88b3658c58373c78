"""SlotMasking: makes the optimizers' slots of pruned weights 0, of optimizers that are known and others.

Momentum moves a weight whose gradient is 0, so slots are masked when the masks change, and after a step those that the
optimizer moves although gradient, weight and slot are 0; ``moments`` knows which. An optimizer that it does not know is
watched: where a step moves pruned weights although all of these are 0, it does not treat entries one by one (it
projects, rotates or orthogonalises), and its slots but the momentum are left alone from then on.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from weakref import WeakKeyDictionary

from torch import Tensor, nn
from torch.optim import Optimizer

from ignite_prune._utils.shard import local
from ignite_prune.core.moments import MOMENTUM, masks_changed, zero_slots_
from ignite_prune.core.probes import Probes


@dataclass(eq=False)
class SlotMasking:
    """The slots of a store's parameters.

    Args:
        probes: which entries are read.
    """

    probes: Probes
    _mixing: dict[tuple[int, str], Tensor] = field(
        default_factory=dict, init=False
    )  # whether steps move pruned weights
    _seen: WeakKeyDictionary[Optimizer, int] = field(default_factory=WeakKeyDictionary, init=False)

    def zero(self, optimizer: Optimizer, name: str, parameter: nn.Parameter, mask: Tensor) -> None:
        """Mask the slots of a parameter, after its mask has changed."""
        mixes = bool(self._mixing.get((id(optimizer), name), False))
        zero_slots_(optimizer, parameter, mask, MOMENTUM if mixes else None)

    def is_new(self, optimizer: Optimizer, changes: int) -> bool:
        """Return, once for each state of the masks, whether an optimizer that was not given has not met it yet."""
        if self._seen.get(optimizer) == changes:
            return False
        self._seen[optimizer] = changes
        masks_changed(optimizer)
        return True

    def watch(self, optimizer: Optimizer, name: str, parameter: nn.Parameter, mask: Tensor) -> Tensor | None:
        """Return the mask for the slots of an optimizer that is not known, after its step.

        Returns:
            None or all True if they are left alone.
        """
        key = id(optimizer), name
        moved = local(parameter).detach().take(self.probes(name, mask)).nan_to_num(0, 0, 0).any()
        self._mixing[key] = moved | self._mixing[key] if key in self._mixing else moved
        if moved.device.type != "cpu":  # without waiting for the device
            return mask | self._mixing[key]
        if self._mixing[key]:
            zero_slots_(optimizer, parameter, mask, MOMENTUM)
            return None
        return mask
