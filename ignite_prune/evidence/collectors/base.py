"""What every gatherer of evidence is: named sums with counts, that can be saved, loaded, reduced and forgotten."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ignite_prune.evidence.calibration import Batch
from ignite_prune.evidence.forward.attention_heads import Attention
from ignite_prune.evidence.forward.layer_calls import Use
from ignite_prune.evidence.version_2 import told
from ignite_prune.saliency.needs import Need


class Gatherer(ABC):
    """Gathers one kind of evidence over some parameters.

    It hears of gradients, uses, activations and heads from whoever runs the model, a trainer or a calibration pass, and
    adds them up: ``sums`` and ``counts`` by parameter name.

    Args:
        need: what to gather.
        parameters: over which, by name.
        model: the unwrapped model.

    Attributes:
        hears: what it wants to be told of: any of "inputs", "activations", "heads".
        backward: whether it listens to a backward pass, so that a calibration pass has to run one.
        probes: whether it runs passes of its own, :meth:`probe`.
        replicated: whether every rank gathers the same in training, as gradients are averaged there.
        shared: whether what it gathers is the model's own, the same on every rank wherever it comes from.
    """

    hears: ClassVar[frozenset[str]] = frozenset()
    probes: ClassVar[bool] = False
    replicated: ClassVar[bool] = False
    shared: ClassVar[bool] = False

    def __init__(self, need: Need, parameters: Mapping[str, nn.Parameter], model: nn.Module) -> None:
        self.need = need
        self.parameters = dict(parameters)
        self.model = model
        self.sums: dict[str, Tensor] = {}
        self.counts: dict[str, float] = {}
        self.forms: dict[str, tuple[int, ...]] = {}
        """What the form of a parameter's sums depends on, where its first use tells; a rank without one is told it."""
        self.unknown: dict[str, str] = {}
        """Functions that use a parameter in a way that is not understood, by its name."""
        self.stale = False
        """Whether an update has used all this: the next thing that is gathered starts anew."""

    @property
    def backward(self) -> bool:
        return False

    @property
    def lasting(self) -> bool:
        """Whether what is gathered goes on over mask updates."""
        return False

    @property
    def differentiated(self) -> Mapping[str, nn.Parameter]:
        """Parameters whose gradients it wants, :meth:`gradients`."""
        return {}

    @property
    def per_sample(self) -> bool:
        """Whether a calibration pass should differentiate each sample by itself."""
        return False

    # What it hears

    def gradients(self, gradients: Mapping[str, Tensor]) -> None:
        """Take the true gradients of a step, of some of the parameters it asked for."""

    def used(self, name: str, use: Use) -> None:
        """Take a layer's input and output."""

    def activation(self, name: str, z: Tensor, dims: tuple[int, int], scale: float) -> None:
        """Take an activation and the dims of its samples and units; gradients to come are ``scale`` times too large."""

    def heads(self, attention: Attention, scale: float) -> None:
        """Take an attention's context."""

    def probe(self, batch: Batch) -> None:
        """Run passes of its own over a batch."""

    # What it knows

    @abstractmethod
    def empty(self, name: str) -> Tensor:
        """Return zeros in the form of a parameter's sums."""

    def running(self, name: str) -> Tensor:
        """Return the sums of a parameter to add to, on its device."""
        self.fresh()
        held = self.sums.get(name)
        if held is None:
            held = self.sums[name] = self.empty(name)
        elif held.device != self.parameters[name].device:  # the model was moved
            held = self.sums[name] = held.to(self.parameters[name].device)
        return held

    def count(self, name: str, weight: float = 1.0, decay: float = 1.0) -> None:
        """Count a step, earlier ones having decayed."""
        self.counts[name] = self.counts.get(name, 0.0) * decay + weight

    def fresh(self) -> None:
        """Forget what an update has used."""
        if self.stale:
            self.reset()

    def reset(self) -> None:
        """Forget everything."""
        self.sums, self.counts, self.stale = {}, {}, False

    def settled(self) -> None:
        """Finish what waits to be added up; somebody is about to read the sums."""

    def answer(self, name: str, total: Tensor, count: float) -> Any:
        """Return a parameter's evidence from its sums over all ranks."""
        return total

    def reason(self, name: str) -> str:
        """Say why there is nothing for a parameter."""
        if name in self.unknown:
            return f"it is used by {self.unknown[name]}, not by a linear layer or a convolution"
        if self.counts:
            return "the data never reached it"
        if self.hears:
            return "no forward has been seen: in training the model's own is, in train mode and not compiled"
        return "nothing has been gathered yet"

    def state_dict(self) -> dict[str, Any]:
        """Return all that is gathered as plain data."""
        return {
            "need": self.need.key,
            "sums": dict(self.sums),
            "counts": dict(self.counts),
            "stale": self.stale,
        }

    def sliced_state(self, indices: Mapping[str, Mapping[int, Tensor]]) -> dict[str, Any]:
        """Return the state that is left of it where parameters keep these indices of their dimensions.

        Args:
            indices: by name and dimension; of the parameters as they are before slicing.
        """
        state = self.state_dict()
        left = {name: self._cut(name, total, indices.get(name, {})) for name, total in state["sums"].items()}
        sums = {name: total for name, total in left.items() if total is not None}
        return {**state, "sums": sums, "counts": {name: state["counts"][name] for name in sums}}

    def _cut(self, name: str, total: Tensor, stay: Mapping[int, Tensor]) -> Tensor | None:
        """Return what is left of a parameter's sum: its part, or None where the sum is worth nothing then."""
        if stay and total.shape != self.parameters[name].shape:
            return None
        return kept_of(total, stay)

    def checked(self, state: Any) -> dict[str, Any]:
        """Return a state that fits, or raise.

        Raises:
            TypeError, ValueError: of another form, other parameters or shapes.
        """
        if not isinstance(state, Mapping) or not all(isinstance(state.get(k), Mapping) for k in ("sums", "counts")):
            raise TypeError("The evidence of a pruner's state_dict should be mappings 'sums' and 'counts'")
        if state.get("need", self.need.key) not in (self.need.key, told(self.need)):
            raise ValueError(
                f"The checkpoint's evidence is {state['need']!r}, but this pruner gathers {self.need.key!r}; make the "
                "pruner with the saliency and repair of the one that wrote the checkpoint"
            )
        for name, held in state["sums"].items():
            if name not in self.parameters or not isinstance(held, Tensor):
                raise ValueError(f"The checkpoint's evidence is of another parameter: {name!r}")
            like = self.empty(name)
            if held.shape != like.shape or held.dtype != like.dtype:
                raise ValueError(
                    f"The checkpoint's evidence of {name!r} is {tuple(held.shape)} of {held.dtype}, but should be "
                    f"{tuple(like.shape)} of {like.dtype}"
                )
        if set(state["counts"]) != set(state["sums"]) or not all(
            isinstance(n, (int, float)) and n >= 0 for n in state["counts"].values()
        ):
            raise ValueError("The checkpoint's evidence is damaged: its counts do not fit its sums")
        return dict(state)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take a checked state."""
        self.sums = {name: held.to(self.parameters[name].device, copy=True) for name, held in state["sums"].items()}
        self.counts = {name: float(number) for name, number in state["counts"].items()}
        self.stale = bool(state.get("stale", False))


def kept_of(tensor: Tensor, stay: Mapping[int, Tensor]) -> Tensor:
    """Return what stays of a tensor, ``(dim: which indices)``."""
    for dim, indices in stay.items():
        tensor = tensor.index_select(dim, indices.to(tensor.device))
    return tensor


def wide(parameter: Tensor, dtype: torch.dtype | None = None) -> torch.dtype:
    """Return the type of running sums over a parameter: half precision has no room for them."""
    return dtype or (torch.float32 if parameter.itemsize < 4 else parameter.dtype)
