"""Sparsifiers after the activation function that follows a layer, a module or a call in ``forward``.

An observer of the model's forward pass follows each layer's output, through norms, arithmetic and pooling, to the first
activation function that takes it alone, and replaces that function's result by a sparse one. Where the place is
ambiguous it raises, and never leaves a layer dense.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ignite_prune._utils.inert_hook import InertHook
from ignite_prune.activation.output_hook import OutputHook
from ignite_prune.core.selection import unwrap
from ignite_prune.evidence.forward.evaluation_points import UnitPath
from ignite_prune.evidence.forward.observer import ForwardObserver
from ignite_prune.evidence.forward.op_tables import ACTIVATIONS, READING, Call


class AfterActivation:
    """Makes the activations of some layers sparse, as the editor of a :class:`.ForwardObserver`.

    Args:
        model: bare or wrapped in DDP.
        inserted: the sparsifiers, on layers that have a ``weight`` and use it once a call.

    Raises:
        ValueError: a layer without a weight or with a shared one, or a compiled model, which cannot be observed.
    """

    def __init__(self, model: nn.Module, inserted: Sequence[OutputHook]) -> None:
        _check(model, inserted)
        self._by_weight = {f"{each.name}.weight": each for each in inserted}
        self._root = unwrap(model)
        self._observer = ForwardObserver(editor=self)
        self._observer.subscribe({name: each.layer.get_parameter("weight") for name, each in self._by_weight.items()})
        self._points = self._observer.follow_units()
        self._running = False
        self._written: dict[int, UnitPath] = {}
        self._before: dict[str, int] = {}
        self._guards: list[Any] = []

    def install(self) -> None:
        """Put the hooks on; a second call does nothing."""
        if not self._guards:
            for each in self._by_weight.values():
                each.restart()
                self._guards.append(each.layer.register_forward_pre_hook(InertHook(self._check_layer)))
            self._observer.install(self._root)

    def remove(self) -> None:
        """Remove the hooks."""
        for guard in self._guards:
            guard.remove()
        self._guards.clear()
        self._observer.remove()

    def _check_layer(self, layer: nn.Module, *_: Any) -> None:
        """Raise if a layer runs in a forward pass that is not observed."""
        if not self._running:
            name = next(each.name for each in self._by_weight.values() if each.layer is layer)
            raise ValueError(
                f"Layer {name!r} runs outside its model's forward (called by itself, compiled, exported, or computed "
                "again in backward by torch.utils.checkpoint), where the activation function that follows it cannot be "
                "seen; use after_activation=False, or detach() first"
            )

    # A forward pass

    def begin(self) -> None:
        """Start a forward pass."""
        self._running, self._before = True, dict(self._observer.uses)

    def end(self) -> None:
        """End a forward pass.

        Raises:
            ValueError: no activation function follows a layer's output.
        """
        done = [path.name for path in self._written.values()]
        for name, count in self._observer.uses.items():
            if count - self._before.get(name, 0) != done.count(name):
                raise ValueError(
                    f"No activation function follows layer {self._by_weight[name].name!r} alone: its output is "
                    "added to something, goes into another layer, a custom function, or out of the model; use "
                    "after_activation=False, or put the sparsifier into the model"
                )

    def clear(self) -> None:
        """Forget the forward pass."""
        self._running = False
        self._written.clear()

    def run(self, call: Call, proceed: Callable[[Call], Any]) -> Any:
        """Run a call; return the sparse result of a layer's first activation function."""
        self._check_used_once(call)
        target = self._set_apart(call)
        result = proceed(call)
        path = self._arrived(call, result)
        if path is None:
            return result
        self._written[id(path)] = path
        self._points.end(path)  # which releases the dense activation
        sparse = self._by_weight[path.name](result)
        if target is not None:
            sparse = target.copy_(sparse)
        self._observer.tags.drop(sparse)  # from here on it is an ordinary tensor of the model
        return sparse

    def _check_used_once(self, call: Call) -> None:
        """Raise if an input of a sparse activation is used again, by a custom gate or a skip connection."""
        if not self._written or call.op in READING:
            return
        for tensor in call.tensors:
            tag = self._observer.tags.of(tensor)
            if tag is not None and id(tag.path) in self._written:
                raise ValueError(
                    f"What layer {self._by_weight[tag.path.name].name!r} gives is used by {call.op}() as well as by "
                    "its activation function, so it is not clear what should be sparse; use after_activation=False, "
                    "or put the sparsifier into the model"
                )

    def _set_apart(self, call: Call) -> Tensor | None:
        """Let an in-place activation work on a copy; return the tensor that the sparse result is written to.

        Autograd may keep the function's own result, which must not be written over.
        """
        tag = self._observer.tags.of(call.input) if isinstance(call.input, Tensor) else None
        if call.op not in ACTIVATIONS or not call.in_place or tag is None or tag.path is None:
            return None
        target: Tensor = call.input
        apart = target.clone()
        copied = self._observer.tags.at(apart)
        copied.path, copied.active = tag.path, tag.active
        if call.args:
            call.args = (apart, *call.args[1:])
        else:
            call.kwargs = {**call.kwargs, "input": apart}
        call.tensors = [apart if tensor is target else tensor for tensor in call.tensors]
        return target

    def _arrived(self, call: Call, result: Any) -> UnitPath | None:
        """Return the path whose first activation this is."""
        tag = self._observer.tags.of(result) if call.op in ACTIVATIONS and isinstance(result, Tensor) else None
        if tag is None or not tag.active or tag.path is None or id(tag.path) in self._written:
            return None
        path: UnitPath = tag.path
        if not torch.is_grad_enabled() and any(tensor.requires_grad for tensor in call.tensors):
            raise ValueError(
                f"The activation function behind layer {self._by_weight[path.name].name!r} runs without gradients, "
                "inside an autograd.Function or no_grad(), where its winners cannot be told to autograd; use "
                "after_activation=False, or put the sparsifier into the model"
            )
        return path if path.best is result else None


def _check(model: nn.Module, inserted: Sequence[OutputHook]) -> None:
    root = unwrap(model)
    if root._compiled_call_impl is not None or any("_orig_mod" in name for name, _ in model.named_modules()):
        raise ValueError("Argument after_activation: the model is compiled, and compiled code shows no functions")
    names: dict[int, list[str]] = {}
    for name, parameter in root.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    for each in inserted:
        weight = each.layer._parameters.get("weight")
        if weight is None:
            raise ValueError(
                f"Argument after_activation: layer {each.name!r} ({type(each.layer).__name__}) has no weight of its "
                "own by which its output could be known; name the linear or convolutional layer, or the activation "
                "module itself with after_activation=False"
            )
        if len(names[id(weight)]) > 1:
            raise ValueError(
                f"Argument after_activation: the weight of layer {each.name!r} is shared "
                f"({', '.join(names[id(weight)])}), so its uses cannot be told apart"
            )
