"""DenseValues: the values of pruned entries, kept so that they can come back."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ignite_prune._utils.shard import is_sharded, like, local, part_of
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

    def remembered(self, masks: Mapping[str, Tensor], all_new: bool = False) -> dict[str, Tensor]:
        """Return the values to :meth:`load` for other masks, with those of newly pruned entries; nothing is changed.

        Args:
            masks: of the parameters of which something will be pruned.
            all_new: take the values of all entries that ``masks`` prune, not only of those that are kept now.
        """
        values = dict(self._values)
        for name in self.names:
            if name in masks:
                parameter, mask = local(self._masks.parameters[name]).detach(), local(masks[name])
                before = None if all_new else self._masks.pruned(name)
                held = values[name].to(parameter.device) if name in values else torch.zeros_like(parameter)
                values[name] = torch.where(~mask if before is None else before & ~mask, parameter, held)
        return values

    def remember_all(self) -> None:
        """Store the values of all entries that are pruned; call before zeroing them."""
        names = [name for name in self.names if self._masks.pruned(name) is not None]
        self._values = self.remembered({name: self._masks[name] for name in names}, all_new=True)

    def revived(self, masks: Mapping[str, Tensor], values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return new values of parameters: pruned entries that ``masks`` keep have their stored values.

        Args:
            masks: the new masks by name; a parameter that is absent keeps all of its entries.
            values: new values of parameters by name, which replace the present ones before stored values are filled in.
        """
        found = {}
        for name, held in self._values.items():
            before, parameter = self._masks.pruned(name), local(self._masks.parameters[name]).detach()
            back = torch.zeros((), dtype=torch.bool) if before is None else ~before & masks.get(name, ~before)
            if bool(back.any()):
                found[name] = torch.where(back, held.to(parameter.device), values.get(name, parameter).to(parameter))
        return found

    def state_dict(self) -> dict[str, Tensor]:
        """Return the pruned values of each parameter in order, 1-D; of sharded ones at their places, as DTensors."""
        if self._masks.is_sharded:  # pruned values at their places, as each rank holds a part
            parameters = self._masks.parameters
            return {
                name: like(values.clone(), parameters[name]) if is_sharded(parameters[name]) else values.clone()
                for name, values in self._values.items()
            }
        return {name: values[~self._masks[name].to(values.device)] for name, values in self._values.items()}

    def unpacked(
        self, state: Any, masks: Mapping[str, Tensor], whole: Callable[[], Iterable[tuple[str, Tensor]]] = tuple
    ) -> dict[str, Tensor]:
        """Check the values of a checkpoint with its masks and return them; nothing is changed.

        Args:
            state: of the values.
            masks: the checkpoint's, of sharded parameters this rank's parts.
            whole: returns the checkpoint's masks of whole parameters, one after another.

        Raises:
            TypeError: not a mapping of tensors.
            ValueError: of other parameters, or not as many values as are pruned.
        """
        if not isinstance(state, Mapping) or not all(isinstance(v, Tensor) and is_plain(v) for v in state.values()):
            raise TypeError(
                "The dense values of a pruner's state_dict should be a mapping of tensors, dense and with data"
            )
        counts = {name: int(mask.logical_not().count_nonzero()) for name, mask in masks.items() if name in self.names}
        pruned = {name for name, count in self._masks.over_ranks(counts).items() if count} & set(self.names)
        if not pruned <= set(state) <= set(self.names):
            raise ValueError(
                "The checkpoint's pruner and this one should keep dense values of the same parameters (keep_dense=)"
            )
        full = dict[str, Tensor]()
        if self._masks.is_sharded and any(self._is_listed(name, values) for name, values in state.items()):
            full |= self._parts_of(state, whole())
        for name, values in state.items():
            if name in full:
                continue
            if not self._is_listed(name, values):
                full[name] = self._part(name, values)
                continue
            parameter, gone = local(self._masks.parameters[name]), ~masks[name]
            self._check_number(name, values, int(gone.sum()))
            full[name] = torch.zeros_like(parameter, requires_grad=False)
            full[name][gone] = values.detach().to(parameter.device)
        return full

    def _is_listed(self, name: str, values: Tensor) -> bool:
        """Return whether values are those of pruned entries in their order, not of all entries at their places."""
        return values.ndim == 1 and tuple(values.shape) != tuple(self._masks.parameters[name].shape)

    def _check_number(self, name: str, values: Tensor, pruned: int) -> None:
        if values.ndim != 1 or values.numel() != pruned or values.dtype != self._masks.parameters[name].dtype:
            raise ValueError(f"The checkpoint's dense values of {name!r} are not as many as its mask prunes")

    def _parts_of(self, state: Mapping[str, Tensor], whole: Iterable[tuple[str, Tensor]]) -> dict[str, Tensor]:
        """Return this rank's parts of values that are listed in the order of whole masks, one parameter at a time."""
        full = {}
        for name, mask in whole:
            if name not in state or not self._is_listed(name, state[name]):
                continue
            parameter, gone = self._masks.parameters[name], ~mask
            self._check_number(name, state[name], int(gone.sum()))
            values = torch.zeros(mask.shape, dtype=parameter.dtype, device=gone.device)
            values[gone] = state[name].detach().to(gone.device)
            full[name] = self._part(name, values)
        return full

    def _part(self, name: str, values: Tensor) -> Tensor:
        """Return this rank's part of the values of a sharded run, which lie at their places."""
        parameter = self._masks.parameters[name]
        if values.shape != parameter.shape or values.dtype != parameter.dtype:
            raise ValueError(
                f"The checkpoint's dense values of {name!r} should have its shape {tuple(parameter.shape)}"
            )
        part = local(values) if is_sharded(values) else part_of(name, parameter).of(values)
        return part.detach().to(parameter.device, copy=True, memory_format=torch.contiguous_format)

    def load(self, values: dict[str, Tensor]) -> None:
        """Replace all values by checked ones."""
        self._values = values
