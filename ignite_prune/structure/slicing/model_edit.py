"""Cutting slices out of a model and of what hangs on it, in place, in a way that can be undone."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ignite_prune._utils.arguments import near
from ignite_prune.core.optimizer_state import as_optimizers, exchange
from ignite_prune.evidence.running_sums import kept_of
from ignite_prune.structure.slicing.module_attributes import counts, widths
from ignite_prune.structure.tracing.heads_attention import HeadsAttention

Indices = Mapping[str, Mapping[int, Tensor]]
"""Which indices of which dimensions stay, by the name of a parameter or buffer."""


def cut(tensor: Tensor, dims: Mapping[int, Tensor]) -> Tensor:
    """Return a copy of what stays of a tensor, ``(dims: which indices stay)``.

    Example:
        >>> cut(torch.arange(6).view(2, 3), {1: torch.tensor([0, 2])})
        tensor([[0, 2],
                [3, 5]])
    """
    return kept_of(tensor, dims)


class ModelEdit:
    """Changes to a model that can be undone, all together.

    Args:
        model: the unwrapped model.
        optimizers: those that train it.
    """

    def __init__(self, model: nn.Module, optimizers: Sequence[Optimizer] = ()) -> None:
        self._model, self._optimizers = model, optimizers
        self._undo: list[Callable[[], object]] = []

    @torch.no_grad()
    def slice(self, indices: Indices, rates: Mapping[str, float] = MappingProxyType({})) -> None:
        """Cut parameters, their gradients and optimizer slots, buffers, and the attributes that tell widths.

        Args:
            indices: which stay.
            rates: what Dropout modules are to drop, by path.
        """
        named = {**dict(self._model.named_parameters()), **dict(self._model.named_buffers())}
        new = {id(named[name]): self._cut(named[name], dims) for name, dims in indices.items()}
        changed = [module for module in self._model.modules() if self._exchange(module, new)]
        for module in changed:
            if type(module) is nn.MultiheadAttention:
                self._set(module, "__class__", HeadsAttention)
            for name, value in widths(module).items():
                self._set(module, name, value)
            if isinstance(module, nn.RNNBase):
                self._refresh(module)
        for owner, name, value in counts(self._model):
            self._set(owner, name, value)
        for path, rate in rates.items():
            self._set(self._model.get_submodule(path), "p", rate)

    def undo(self) -> None:
        """Put everything back."""
        while self._undo:
            self._undo.pop()()

    def _cut(self, tensor: Tensor, dims: Mapping[int, Tensor]) -> Tensor:
        made = _laid_as(tensor, cut(tensor.detach(), dims))
        if not isinstance(tensor, nn.Parameter):
            return made
        parameter = nn.Parameter(made, requires_grad=tensor.requires_grad)
        parameter.__dict__.update(tensor.__dict__)  # what users note on it
        if tensor.grad is not None:
            parameter.grad = cut(tensor.grad, dims)
        for optimizer in self._optimizers:
            self._undo.append(exchange(optimizer, tensor, parameter, lambda slot: _cut_slot(slot, tensor, dims)))
        return parameter

    def _exchange(self, module: nn.Module, new: Mapping[int, Tensor]) -> bool:
        """Put new tensors where old ones were; tied ones stay tied."""
        found = False
        for held in (module._parameters, module._buffers):
            for name, tensor in held.items():
                if id(tensor) in new:
                    held[name] = new[id(tensor)]  # type: ignore[assignment]
                    self._undo.append(lambda held=held, name=name, tensor=tensor: held.update({name: tensor}))  # type: ignore[misc]
                    found = True
        return found

    def _set(self, owner: Any, name: str, value: Any) -> None:
        before = getattr(owner, name)
        if before != value:
            setattr(owner, name, value)
            self._undo.append(lambda: setattr(owner, name, before))

    def _refresh(self, module: nn.RNNBase) -> None:
        """Let a recurrent layer's flat list hold the new weights."""
        self._undo.insert(0, module._init_flat_weights)  # undone last, when the old weights are back
        module._init_flat_weights()


def check_mine(model: nn.Module, optimizers: Sequence[Optimizer]) -> None:
    """Raise where an optimizer holds nothing of a model."""
    mine = set(model.parameters())
    for optimizer in optimizers:
        held = {each for group in optimizer.param_groups for each in group["params"]}
        if not held & mine:
            raise ValueError("Argument optimizer holds none of the model's parameters")


def _laid_as(before: Tensor, tensor: Tensor) -> Tensor:
    """Return a tensor laid out in memory as another: with channels last, where that is."""
    for kind, rank in ((torch.channels_last, 4), (torch.channels_last_3d, 5)):
        if before.dim() == rank and before.is_contiguous(memory_format=kind) and not before.is_contiguous():
            return tensor.contiguous(memory_format=kind)
    return tensor


def slice_(module: nn.Module, indices: Mapping[str, Mapping[int, Sequence[int]]], *, optimizer: Any = None) -> None:
    """Keep some indices of a module's own tensors, in place; what hangs on them elsewhere is left to the caller.

    Gradients, optimizer slots and parameter groups, tied weights and the attributes that tell widths follow. For what
    has to go together, and a check that nothing is forgotten, see :func:`~ignite_prune.shrink`.

    Args:
        module: one layer, or any module.
        indices: which stay, in their new order, by name and dimension.
        optimizer: the optimizer(s) that train it.

    Raises:
        TypeError: not of that form.
        ValueError: a name or dimension that there is not, an index out of range, nothing left. Nothing is changed then.

    Example:
        >>> layer = nn.Linear(3, 4)
        >>> slice_(layer, {"weight": {0: [0, 2]}, "bias": {0: [0, 2]}})
        >>> layer
        Linear(in_features=3, out_features=2, bias=True)
    """
    tensors = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    stay: dict[str, dict[int, Tensor]] = {}
    for name, dims in indices.items():
        if name not in tensors:
            raise ValueError(f"The module has no {name!r}; {near(name, list(tensors))}")
        stay[name] = {dim: _as_indices(name, dim, each, tensors[name]) for dim, each in dims.items()}
    optimizers = as_optimizers(optimizer)
    check_mine(module, optimizers)
    surgery = ModelEdit(module, optimizers)
    with undone_on_error([surgery]):
        surgery.slice(stay)


def _as_indices(name: str, dim: int, stay: Sequence[int], tensor: Tensor) -> Tensor:
    if type(dim) is not int or not 0 <= dim < tensor.dim():
        raise ValueError(f"{name!r} has {tensor.dim()} dimensions, and no dimension {dim!r}")
    if not len(stay):
        raise ValueError(f"Nothing would be left of dimension {dim} of {name!r}")
    found = torch.as_tensor(stay)
    if found.dtype != torch.int64 or found.dim() != 1:
        raise TypeError(f"What stays of {name!r} should be told as whole numbers, but given {stay!r:.60}")
    if not 0 <= int(found.min()) <= int(found.max()) < tensor.shape[dim]:
        raise ValueError(f"What stays of dimension {dim} of {name!r} should be in [0, {tensor.shape[dim]})")
    return found


@contextmanager
def undone_on_error(surgeries: Sequence[ModelEdit]) -> Iterator[None]:
    """Put everything back where what is inside raises."""
    try:
        yield
    except BaseException:  # an interrupted one too
        for surgery in reversed(surgeries):
            surgery.undo()
        raise


def _cut_slot(slot: Tensor, parameter: Tensor, dims: Mapping[int, Tensor]) -> Tensor:
    """Cut a slot as its parameter where it is as wide; a factor of it is of size 1 elsewhere."""
    if slot.dim() != parameter.dim():
        return slot
    return cut(slot, {dim: stay for dim, stay in dims.items() if slot.shape[dim] == parameter.shape[dim]})
