"""Values of pruned entries, remembered so that they can come back."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ignite_prune.core.mask_store import MaskStore


class DenseValues:
    """The last value of every entry that was pruned, for some parameters (one copy of them in memory).

    Args:
        parameters: ``{name: Parameter}`` to remember; may be empty.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter]) -> None:
        self._parameters = dict(parameters)
        self._values: dict[str, Tensor] = {}

    def __iter__(self) -> Iterator[str]:
        return iter(self._parameters)

    @torch.no_grad()
    def remember(self, before: Mapping[str, Tensor], masks: MaskStore) -> None:
        """Take the values of what ``masks`` prune and ``before`` did not; call it before they are zeroed."""
        for name, parameter in self._parameters.items():
            mask = masks.pruned(name)
            if mask is None:
                continue
            if name not in self._values:
                self._values[name] = torch.zeros_like(parameter)
            newly = ~mask if name not in before else before[name] & ~mask
            self._values[name] = torch.where(newly, parameter.detach(), self._values[name].to(parameter.device))

    @torch.no_grad()
    def bring_back(self, before: Mapping[str, Tensor], masks: MaskStore | None = None) -> None:
        """Give entries pruned in ``before`` and kept in ``masks`` (None: all kept) their values again."""
        for name, earlier in before.items():
            revived = ~earlier if masks is None else ~earlier & masks[name]
            if name in self._values and bool(revived.any()):
                parameter = self._parameters[name]
                parameter.copy_(torch.where(revived, self._values[name].to(parameter.device), parameter))

    def state_dict(self, masks: MaskStore) -> dict[str, Tensor]:
        """Return each parameter's pruned values in order, 1-D."""
        return {name: values[~masks[name].to(values.device)] for name, values in self._values.items()}

    def unpacked(self, state: Any, masks: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the values of a checkpoint without taking them.

        Raises:
            TypeError: not a mapping of tensors.
            ValueError: of other parameters, or not as many values as are pruned.
        """
        if not isinstance(state, Mapping) or not all(isinstance(values, Tensor) for values in state.values()):
            raise TypeError("The dense values of a pruner's state_dict should be a mapping of tensors")
        pruned = {name for name in self._parameters if not bool(masks[name].all())}
        if not pruned <= set(state) <= set(self._parameters):
            raise ValueError(
                "The checkpoint's pruner and this one should keep dense values of the same parameters (keep_dense=)"
            )
        full = {}
        for name, values in state.items():
            parameter, gone = self._parameters[name], ~masks[name]
            if values.ndim != 1 or values.numel() != int(gone.sum()) or values.dtype != parameter.dtype:
                raise ValueError(f"The checkpoint's dense values of {name!r} are not as many as its mask prunes")
            full[name] = torch.zeros_like(parameter, requires_grad=False)
            full[name][gone] = values.to(parameter.device)
        return full

    def take(self, values: dict[str, Tensor]) -> None:
        """Replace all values."""
        self._values = values
