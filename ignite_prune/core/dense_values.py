"""DenseValues: the values of pruned entries, kept so that they can come back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ignite_prune._utils.state import is_plain
from ignite_prune.core.mask_store import MaskStore


class DenseValues:
    """The last value of every pruned entry of some parameters; takes one copy of them in memory.

    Args:
        masks: the store of the parameters.
        names: the parameters whose values are kept.
    """

    def __init__(self, masks: MaskStore, names: Sequence[str]) -> None:
        self._masks, self.names = masks, list(names)
        self._values: dict[str, Tensor] = {}

    def masks_before(self) -> dict[str, Tensor]:
        """Return copies of the masks as they are, for :meth:`remember` and :meth:`bring_back` after an update."""
        return {name: self._masks[name] for name in self.names}

    @torch.no_grad()
    def remember(self, before: Mapping[str, Tensor]) -> None:
        """Store the values of the entries that are pruned now and were not in ``before``; call before zeroing them."""
        for name in self.names:
            parameter, mask = self._masks.parameters[name], self._masks.pruned(name)
            if mask is None:
                continue
            if name not in self._values:
                self._values[name] = torch.zeros_like(parameter)
            newly = ~mask if name not in before else before[name] & ~mask
            self._values[name] = torch.where(newly, parameter.detach(), self._values[name].to(parameter.device))

    @torch.no_grad()
    def bring_back(self, before: Mapping[str, Tensor]) -> None:
        """Restore the values of the entries that were pruned in ``before`` and are kept now."""
        for name, earlier in before.items():
            revived = ~earlier & self._masks[name]
            if name in self._values and bool(revived.any()):
                parameter = self._masks.parameters[name]
                parameter.copy_(torch.where(revived, self._values[name].to(parameter.device), parameter))

    def state_dict(self) -> dict[str, Tensor]:
        """Return the pruned values of each parameter in order, 1-D."""
        return {name: values[~self._masks[name].to(values.device)] for name, values in self._values.items()}

    def unpacked(self, state: Any, masks: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Check the values of a checkpoint with its masks and return them; nothing is changed.

        Raises:
            TypeError: not a mapping of tensors.
            ValueError: of other parameters, or not as many values as are pruned.
        """
        if not isinstance(state, Mapping) or not all(isinstance(v, Tensor) and is_plain(v) for v in state.values()):
            raise TypeError(
                "The dense values of a pruner's state_dict should be a mapping of tensors, dense and with data"
            )
        pruned = {name for name in self.names if not bool(masks[name].all())}
        if not pruned <= set(state) <= set(self.names):
            raise ValueError(
                "The checkpoint's pruner and this one should keep dense values of the same parameters (keep_dense=)"
            )
        full = {}
        for name, values in state.items():
            parameter, gone = self._masks.parameters[name], ~masks[name]
            if values.ndim != 1 or values.numel() != int(gone.sum()) or values.dtype != parameter.dtype:
                raise ValueError(f"The checkpoint's dense values of {name!r} are not as many as its mask prunes")
            full[name] = torch.zeros_like(parameter, requires_grad=False)
            full[name][gone] = values.detach().to(parameter.device)
        return full

    def load(self, values: dict[str, Tensor]) -> None:
        """Replace all values by checked ones."""
        self._values = values
