"""In-place slicing of a model, with its gradients and optimizer state, that can be undone.

A slicing touches parameters, gradients, optimizer slots and param groups, buffers and width attributes, and it can
fail at any of them: a tensor may be shared with code that was never traced, or the sliced model may not run. A model
that is half sliced cannot be trained, saved or repaired. So every change first appends its inverse to a list;
``undone_on_error`` runs that list backwards, also when the user interrupts. Undoing restores the original ``Parameter``
objects rather than copies, because optimizers, DDP and the user's own variables refer to them by identity.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import MappingProxyType
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ignite_prune._utils.arguments import near
from ignite_prune._utils.kept import kept_of
from ignite_prune.core.optimizer_state import exchange
from ignite_prune.core.optimizers import Optimizers, as_optimizers
from ignite_prune.structure.kept_indices import attributes_of, value_at, with_entry
from ignite_prune.structure.slicing.module_attributes import counts, widths
from ignite_prune.structure.slicing.slots import cut_slot
from ignite_prune.structure.tracing.heads_attention import HeadsAttention

Indices = Mapping[str, Mapping[int, Tensor]]
"""The kept indices by name of a parameter or buffer and by dimension."""


class Undoable(Protocol):
    """A change that can be undone."""

    def undo(self) -> None:
        """Take the change back."""


class ModelEdit:
    """Changes to one model, which :meth:`undo` takes back together.

    Args:
        model: the unwrapped model.
        optimizers: the optimizers that train it.
    """

    def __init__(self, model: nn.Module, optimizers: Sequence[Optimizer] = ()) -> None:
        self._model, self._optimizers = model, optimizers
        self._undo: list[Callable[[], object]] = []

    @torch.no_grad()
    def slice(self, indices: Indices, rates: Mapping[str, float] = MappingProxyType({})) -> None:
        """Slice parameters, their gradients and optimizer slots, and buffers, and update the width attributes.

        Args:
            indices: the indices to keep.
            rates: new rates of Dropout modules, by module path.
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
        for path, values in attributes_of(indices).items():
            for name, value in values.items():
                owner = value_at(self._model, path)
                self._set(owner, *with_entry(owner, name, value))
        for path, rate in rates.items():
            self._set(self._model.get_submodule(path), "p", rate)

    def undo(self) -> None:
        """Restore the model and the optimizers."""
        while self._undo:
            self._undo.pop()()

    def _cut(self, tensor: Tensor, dims: Mapping[int, Tensor]) -> Tensor:
        sliced = _with_layout_of(tensor, kept_of(tensor.detach(), dims))
        if not isinstance(tensor, nn.Parameter):
            return sliced
        parameter = nn.Parameter(sliced, requires_grad=tensor.requires_grad)
        parameter.__dict__.update(tensor.__dict__)  # attributes that users set on it
        if tensor.grad is not None:
            parameter.grad = kept_of(tensor.grad, dims)
        wrappers = self._optimizers.wrappers if isinstance(self._optimizers, Optimizers) else ()
        for optimizer in (*self._optimizers, *wrappers):
            exchange(
                optimizer, tensor, parameter, lambda name, slot: cut_slot(name, slot, tensor, dims), self._undo.append
            )
        return parameter

    def _exchange(self, module: nn.Module, new: Mapping[int, Tensor]) -> bool:
        """Replace the tensors of a module, so that tied ones stay tied; return whether there were any."""
        found = False
        for held in (module._parameters, module._buffers):
            for name, tensor in held.items():
                if id(tensor) in new:
                    self._undo.append(lambda held=held, name=name, tensor=tensor: held.update({name: tensor}))  # type: ignore[misc]
                    held[name] = new[id(tensor)]  # type: ignore[assignment]
                    found = True
        return found

    def _set(self, owner: Any, name: str, value: Any) -> None:
        before = getattr(owner, name)
        if before != value:
            self._undo.append(lambda: setattr(owner, name, before))
            setattr(owner, name, value)

    def _refresh(self, module: nn.RNNBase) -> None:
        """Rebuild a recurrent layer's list of flat weights from the new parameters."""
        self._undo.insert(0, module._init_flat_weights)  # runs last in undo, after the old weights are restored
        module._init_flat_weights()


def check_optimizers(model: nn.Module, optimizers: Sequence[Optimizer]) -> None:
    """Raise ValueError if an optimizer holds no parameter of the model."""
    parameters = set(model.parameters())
    for optimizer in optimizers:
        held = {each for group in optimizer.param_groups for each in group["params"]}
        if not held & parameters:
            raise ValueError("Argument optimizer holds none of the model's parameters")


def check_free(model: nn.Module, names: Iterable[str], hooked: Container[str] = ()) -> None:
    """Raise ValueError if parameters have hooks, which would refer to the ones that slicing replaces.

    Args:
        model: the unwrapped model.
        names: of the parameters; names of buffers are skipped.
        hooked: names of those with the two hooks of a pruner that follows the slicing.
    """
    parameters = dict(model.named_parameters(remove_duplicate=False))
    for name in names:
        parameter = parameters.get(name)
        if parameter is None:
            continue
        hooks = len(parameter._post_accumulate_grad_hooks or ()) + len(parameter._backward_hooks or ())
        if hooks > 2 * (name in hooked):
            whose = "has hooks of others, such as" if name in hooked else "has hooks, as"
            raise ValueError(
                f"Parameter {name!r} {whose} of a PruneHandler; finalize() that first, or remove them: slicing would "
                "lose them"
            )


def _with_layout_of(before: Tensor, tensor: Tensor) -> Tensor:
    """Return ``tensor`` in the memory format of ``before``: channels last, or contiguous."""
    for kind, rank in ((torch.channels_last, 4), (torch.channels_last_3d, 5)):
        if before.dim() == rank and before.is_contiguous(memory_format=kind) and not before.is_contiguous():
            return tensor.contiguous(memory_format=kind)
    return tensor


def slice_(module: nn.Module, indices: Mapping[str, Mapping[int, Sequence[int]]], *, optimizer: Any = None) -> None:
    """Keep only the given indices of a module's tensors, in place.

    Gradients, optimizer slots and param groups, tied weights and width attributes such as ``in_features`` are updated
    too. Other layers are not: the caller slices whatever is coupled to these dimensions. :func:`~ignite_prune.shrink`
    finds coupled dimensions and compares the outputs.

    Args:
        module: one layer, or any module.
        indices: the indices to keep, in their new order, by tensor name and dimension.
        optimizer: the optimizer or optimizers that train it.

    Raises:
        TypeError: the indices are not integers.
        ValueError: an unknown name or dimension, an index out of range, or nothing would be left. The module is left
            unchanged.

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
    check_optimizers(module, optimizers)
    edit = ModelEdit(module, optimizers)
    with undone_on_error([edit]):
        edit.slice(stay)


def _as_indices(name: str, dim: int, stay: Sequence[int], tensor: Tensor) -> Tensor:
    if type(dim) is not int or not 0 <= dim < tensor.dim():
        raise ValueError(f"{name!r} has {tensor.dim()} dimensions, and no dimension {dim!r}")
    if not len(stay):
        raise ValueError(f"Nothing would be left of dimension {dim} of {name!r}")
    found = torch.as_tensor(stay)
    if found.dtype != torch.int64 or found.dim() != 1:
        raise TypeError(f"Argument indices[{name!r}] should hold lists of ints, but given {stay!r:.60}")
    if not 0 <= int(found.min()) <= int(found.max()) < tensor.shape[dim]:
        raise ValueError(f"Argument indices[{name!r}][{dim}] should hold indices in [0, {tensor.shape[dim]})")
    return found


@contextmanager
def undone_on_error(edits: Sequence[Undoable], undo: Sequence[Callable[[], object]] = ()) -> Iterator[None]:
    """Undo the edits, and call the functions in ``undo``, if the body of the ``with`` statement raises."""
    try:
        yield
    except BaseException:  # KeyboardInterrupt too
        for edit in reversed(edits):
            edit.undo()
        for call in undo:
            call()
        raise
