"""UnshardedWeights: the whole parameters that ``fully_shard`` puts into a model for its forward pass."""

from __future__ import annotations

import sys
from typing import Any

from torch import nn
from torch.utils.hooks import RemovableHandle

from ignite_prune._utils.inert_hook import InertHook
from ignite_prune._utils.shard import is_sharded, reshard
from ignite_prune.evidence.forward.tensor_tags import TensorTags, Weight


class UnshardedWeights:
    """Tags whole parameters as the selected weights that they stand for, until :meth:`remove`.

    The model has its DTensors between forward passes. In one, hooks of ``fully_shard`` put whole tensors in their
    places, other objects, before each module that was sharded runs; hooks of this class run after these.

    Args:
        model: in which the selected weights are.
        tags: of the selected weights.
    """

    def __init__(self, model: nn.Module, tags: TensorTags) -> None:
        self._tags, self._handles = tags, list[RemovableHandle]()
        loaded = sys.modules.get("torch.distributed.fsdp")
        kind: Any = () if loaded is None else vars(loaded).get("FSDPModule", ())
        sharded = [module for module in model.modules() if kind and isinstance(module, kind)]
        if sharded:
            reshard(model)
        for module in sharded:
            places = [
                (owner, attribute, tag.weight.name)
                for owner in module.modules()
                for attribute, parameter in owner._parameters.items()
                if is_sharded(parameter) and (tag := tags.of(parameter)) is not None and tag.weight is not None
            ]
            if places:
                hook = InertHook(lambda *_, places=places: self._tag(places))
                self._handles.append(module.register_forward_pre_hook(hook))

    def _tag(self, places: list[tuple[nn.Module, str, str]]) -> None:
        for owner, attribute, name in places:
            parameter = owner._parameters[attribute]
            if parameter is not None and self._tags.of(parameter) is None:
                self._tags.at(parameter).weight = Weight(name, parameter)

    def remove(self) -> None:
        """Remove the hooks."""
        for handle in self._handles:
            handle.remove()
