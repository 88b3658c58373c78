"""Whether a model runs with a unit less: a size that is written in its program is told from one that it computes."""

from __future__ import annotations

import copy
from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from ignite_prune.structure.slicing import Surgery
from ignite_prune.structure.structure import Structure


class Trial:
    """Runs slices of a model without data, on the meta device.

    Args:
        model: unwrapped; it is left as it is.
        args: its positional arguments.
        kwargs: its keyword arguments.
    """

    def __init__(self, model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        self._model = _without_data(model).eval()
        self._inputs = tree_map_only(Tensor, lambda each: each.to("meta"), (args, dict(kwargs)))

    def failing(self, structure: Structure, groups: Collection[str]) -> list[str]:
        """Return the groups without one of whose units the model does not run."""
        if not groups or self._runs(structure, groups) or not self._runs(structure, ()):
            return []  # where it does not run whole either, nothing is known
        failing = [name for name in groups if not self._runs(structure, [name])]
        return failing or list(groups)

    def _runs(self, structure: Structure, groups: Collection[str]) -> bool:
        kept = {name: torch.arange(structure.groups[name].size) > 0 for name in groups}
        model = copy.deepcopy(self._model)
        args, kwargs = self._inputs
        try:
            with torch.no_grad():
                Surgery(model).slice(structure.indices(kept))
                model(*args, **kwargs)
        except Exception:
            return False
        return True


def _without_data(model: nn.Module) -> nn.Module:
    memo: dict[int, Any] = {}
    for tensor in [*model.parameters(), *model.buffers()]:
        empty = tensor.detach().to("meta")
        memo[id(tensor)] = nn.Parameter(empty, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else empty
    return copy.deepcopy(model, memo)
