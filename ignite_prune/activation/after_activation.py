"""Sparsifiers behind the activation function that follows a layer, be it a module or a call in ``forward``.

A watch over the model's forward pass follows each layer's output, through norms, arithmetic and pooling, to the first
activation function that it alone goes into, and gives the model that function's result made sparse instead. Where it
cannot tell what is meant it raises, and never leaves a layer as it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ignite_prune._utils.inert_hook import InertHook
from ignite_prune.activation.output_hook import OutputHook
from ignite_prune.core.selection import unwrap
from ignite_prune.evidence.forward.evaluation_points import Chain
from ignite_prune.evidence.forward.hooks import Installed, install
from ignite_prune.evidence.forward.observer import Watch
from ignite_prune.evidence.forward.op_tables import ACTIVATIONS, READING, Call


class AfterActivation(Watch):
    """A watch that makes the activations of some layers sparse.

    Args:
        model: bare or wrapped in DDP.
        inserted: the sparsifiers, with layers that have a ``weight`` and use it once a call.

    Raises:
        ValueError: a layer without a weight, with one that it shares, or a model that is compiled, which no watch sees.
    """

    def __init__(self, model: nn.Module, inserted: Sequence[OutputHook]) -> None:
        _check(model, inserted)
        self._by_weight = {f"{each.name}.weight": each for each in inserted}
        weights = {name: each.layer.get_parameter("weight") for name, each in self._by_weight.items()}
        super().__init__(weights, on_activation=lambda *_: None)
        self._root = unwrap(model)
        self._running = False
        self._written: dict[int, Chain] = {}
        self._before: dict[str, int] = {}
        self._installed: Installed | None = None
        self._guards: list[Any] = []

    def install(self) -> None:
        """Put the hooks on; again does nothing."""
        if self._installed is None:
            for each in self._by_weight.values():
                each.restart()
                self._guards.append(each.layer.register_forward_pre_hook(InertHook(self._check_layer)))
            self._installed = install(self._root, self)

    def remove(self) -> None:
        """Take them off."""
        for guard in self._guards:
            guard.remove()
        self._guards.clear()
        if self._installed is not None:
            self._installed.remove()
            self._installed = None

    def _check_layer(self, layer: nn.Module, *_: Any) -> None:
        """Raise where a layer runs and nobody watches what follows."""
        if not self._running:
            name = next(each.name for each in self._by_weight.values() if each.layer is layer)
            raise ValueError(
                f"Layer {name!r} runs outside its model's forward (called by itself, compiled, exported, or computed "
                "again in backward by torch.utils.checkpoint), where the activation function that follows it cannot be "
                "seen; use after_activation=False, or detach() first"
            )

    # A forward pass

    def begin(self, model: nn.Module) -> None:
        super().begin(model)
        self._running, self._before = True, dict(self.uses)

    def clear(self) -> None:
        super().clear()
        self._running = False
        self._written.clear()

    def finish(self) -> None:
        """End a forward pass.

        Raises:
            ValueError: a layer's output met no activation function.
        """
        done = [chain.name for chain in self._written.values()]
        super().finish()
        for name, count in self.uses.items():
            if count - self._before.get(name, 0) != done.count(name):
                raise ValueError(
                    f"No activation function follows layer {self._by_weight[name].name!r} alone: what it gives is "
                    "added to something, goes into another layer, a function by hand, or out of the model; use "
                    "after_activation=False, or put the sparsifier into the model"
                )

    def _see(self, call: Call) -> Any:
        self._check_used_once(call)
        target = self._set_apart(call)
        result = super()._see(call)
        chain = self._arrived(call, result)
        if chain is None:
            return result
        self._written[id(chain)] = chain
        assert self._points is not None
        self._points._end(chain)  # lets go of the dense activation
        sparse = self._by_weight[chain.name](result)
        if target is not None:
            sparse = target.copy_(sparse)
        self._notes.by_id.pop(id(sparse), None)  # from here on it is what the model works with
        return sparse

    def _check_used_once(self, call: Call) -> None:
        """Raise where what came before a sparse activation is used again: by a gate written by hand, or a skip."""
        if not self._written or call.op in READING:
            return
        for tensor in call.tensors:
            note = self._notes.of(tensor)
            if note is not None and id(note.chain) in self._written:
                raise ValueError(
                    f"What layer {self._by_weight[note.chain.name].name!r} gives is used by {call.op}() as well as by "
                    "its activation function, so it is not clear what should be sparse; use after_activation=False, "
                    "or put the sparsifier into the model"
                )

    def _set_apart(self, call: Call) -> Tensor | None:
        """Let an in-place activation work on a copy; return the tensor that the sparse result is written to.

        Autograd may keep the function's own result, which must not be written over.
        """
        note = self._notes.of(call.input) if isinstance(call.input, Tensor) else None
        if call.op not in ACTIVATIONS or not call.in_place or note is None or note.chain is None:
            return None
        target: Tensor = call.input
        apart = target.clone()
        copied = self._notes.at(apart)
        copied.chain, copied.active = note.chain, note.active
        if call.args:
            call.args = (apart, *call.args[1:])
        else:
            call.kwargs = {**call.kwargs, "input": apart}
        call.tensors = [apart if tensor is target else tensor for tensor in call.tensors]
        return target

    def _arrived(self, call: Call, result: Any) -> Chain | None:
        """Return the chain whose first activation this is."""
        note = self._notes.of(result) if call.op in ACTIVATIONS and isinstance(result, Tensor) else None
        if note is None or not note.active or note.chain is None or id(note.chain) in self._written:
            return None
        chain: Chain = note.chain
        if not torch.is_grad_enabled() and any(tensor.requires_grad for tensor in call.tensors):
            raise ValueError(
                f"The activation function behind layer {self._by_weight[chain.name].name!r} runs without gradients, "
                "inside an autograd.Function or no_grad(), where its winners cannot be told to autograd; use "
                "after_activation=False, or put the sparsifier into the model"
            )
        return chain if chain.best is result else None


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
