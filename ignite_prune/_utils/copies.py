"""Deep copies of modules."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, TypeVar

from torch import Tensor, nn

Module = TypeVar("Module", bound=nn.Module)


def copy_of(model: Module, memo: Mapping[int, Any] | None = None) -> Module:
    """Return a deep copy of a model; tensors of a graph that its modules keep are detached.

    ``copy.deepcopy`` refuses such tensors: a hidden state or an attention map that the last forward pass stored, the
    weight that the older ``weight_norm`` computes.

    Args:
        model: any module.
        memo: what to put in place of objects, by their ``id``.
    """
    known: dict[int, Any] = dict(memo or {})
    for module in model.modules():
        for value in vars(module).values():
            _detach(value, known)
    return copy.deepcopy(model, known)


def _detach(value: Any, known: dict[int, Any]) -> None:
    if isinstance(value, Tensor):
        if not value.is_leaf and id(value) not in known:
            known[id(value)] = value.detach().clone()
    elif isinstance(value, dict):
        for each in value.values():
            _detach(each, known)
    elif isinstance(value, (list, tuple)):
        for each in value:
            _detach(each, known)
