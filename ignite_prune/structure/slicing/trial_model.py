"""One copy of a model for many trials.

A trial slices a model, runs it, and looks whether that fails. Copying a model takes longer than running it on the meta
device, and a model of many layers needs many trials, so one copy is sliced and restored again and again.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from types import FunctionType
from typing import Any

import torch
from torch import Tensor, nn

from ignite_prune.structure.slicing.model_edit import Indices, ModelEdit, undone_on_error

_PLAIN = (int, float, str, type(None), Tensor, nn.Module, FunctionType, type, torch.dtype, torch.device)
_HELD = ("_parameters", "_buffers", "_modules")


class TrialModel:
    """A model that is as it was after each trial, whatever its forward pass stores on its modules.

    Example:
        >>> trial = TrialModel(nn.Linear(3, 4))
        >>> with trial.sliced({"weight": {0: torch.tensor([0])}, "bias": {0: torch.tensor([0])}}) as model:
        ...     model.out_features
        1
        >>> model.out_features
        4

    Args:
        model: a copy that nothing else uses. Values that a forward pass writes into parameters stay.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        modules = list(model.modules())
        self._values = [(module, dict(vars(module))) for module in modules]
        self._held = [(held, dict(held)) for each in modules for held in (vars(each)[name] for name in _HELD) if held]
        bare = [each for _, values in self._values for each in values.values() if isinstance(each, Tensor)]
        written = [each for each in (*model.buffers(), *bare) if not each.is_meta and not _is_expanded(each)]
        self._written = [(each, each.clone()) for each in written]
        self._same = {id(each): each for each in (*modules, *model.parameters(), *model.buffers())}
        others = [(k, name) for k, (_, values) in enumerate(self._values) for name in values if name not in _HELD]
        self._empty = [self._values[k][1][name] for k, name in others if _is_empty(self._values[k][1][name])]
        self._others = {
            (k, name): self._values[k][1][name] for k, name in others if _may_change(self._values[k][1][name])
        }
        self._others = copy.deepcopy(self._others, dict(self._same))

    @contextmanager
    def sliced(self, indices: Indices) -> Iterator[nn.Module]:
        """Slice the model within the ``with`` statement."""
        edit = ModelEdit(self._model)
        with undone_on_error([edit], [self._restore]):
            edit.slice(indices)
            yield self._model
        edit.undo()
        self._restore()

    @torch.no_grad()
    def _restore(self) -> None:
        for module, values in self._values:
            vars(module).clear()
            vars(module).update(values)
        for held, values in self._held:
            held.clear()
            held.update(values)
        for tensor, value in self._written:  # BatchNorm's statistics change without a new version
            tensor.copy_(value)
        for each in self._empty:
            each.clear()
        if self._others:
            for (k, name), value in copy.deepcopy(self._others, dict(self._same)).items():
                vars(self._values[k][0])[name] = value


def _is_expanded(tensor: Tensor) -> bool:
    """Return whether several entries are at one place in memory, so that none can be written; sparse tensors too."""
    strided = tensor.layout == torch.strided
    return not strided or any(stride == 0 and size > 1 for stride, size in zip(tensor.stride(), tensor.shape))


def _is_empty(value: Any) -> bool:
    return isinstance(value, (dict, list, set)) and not value


def _may_change(value: Any) -> bool:
    """Return whether a forward pass may change an attribute's value in place."""
    if isinstance(value, tuple):
        return any(map(_may_change, value))
    return not isinstance(value, _PLAIN) and not _is_empty(value)
