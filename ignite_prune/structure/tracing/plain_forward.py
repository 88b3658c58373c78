"""A forward pass that takes and returns tensors alone, whatever the model's own takes and returns.

``torch.export`` knows containers that are registered with pytree and no others: a dataclass, a distribution and a cache
are refused, and so is a tensor that ``forward`` stores on a module.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from ignite_prune.structure.model_io import tensors_of


def with_plain_forward(model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[Tensor, ...]:
    """Replace a model's forward pass, in place, by one from the tensors in these arguments to those in its outputs.

    Tensors that the forward pass stores on modules, such as features for a loss, are outputs too.

    Returns:
        The tensors in the arguments: the arguments of the new forward pass.
    """
    given = tuple({id(each): each for each in tensors_of((args, dict(kwargs)), caches=True)}.values())
    kind, own = type(model), vars(model).pop("forward", None)  # some libraries put a forward on the object

    def forward(self: nn.Module, *tensors: Tensor) -> list[Tensor]:
        memo: dict[int, Any] = {id(before): now for before, now in zip(given, tensors)}
        inputs, keywords = copy.deepcopy((args, dict(kwargs)), memo)
        before = [dict(vars(module)) for module in self.modules()]
        found = kind.forward(self, *inputs, **keywords) if own is None else own(*inputs, **keywords)
        outputs = tensors_of(found)
        for module, held in zip(self.modules(), before):
            outputs += _stored(module, held)
        own_ids = {id(each) for each in (*self.parameters(), *self.buffers())}  # some layers list theirs
        return list({id(each): each for each in outputs if id(each) not in own_ids}.values())

    model.__class__ = type(kind.__name__, (kind,), {"forward": forward, "__module__": kind.__module__})
    return given


def _stored(module: nn.Module, before: Mapping[str, Any]) -> list[Tensor]:
    """Return the tensors that a module stores since ``before``, and restore its attributes."""
    hooks = [hook for hook in module._forward_pre_hooks.values() if isinstance(hook, (WeightNorm, SpectralNorm))]
    computed = {hook.name for hook in hooks}  # a weight that a hook computes for the module's own use
    found = list[Tensor]()
    for name, value in list(vars(module).items()):
        if value is not before.get(name):
            if name not in computed:
                found += tensors_of(value)
            if name in before:
                vars(module)[name] = before[name]
            else:
                del vars(module)[name]
    return found
