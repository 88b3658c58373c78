"""The interface of the collectors of evidence."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor, nn

from ignite_prune.evidence.calibration import Batch
from ignite_prune.evidence.forward.attention_tracker import Attention
from ignite_prune.evidence.forward.layer_calls import LayerCall
from ignite_prune.evidence.forward.observer import ForwardObserver
from ignite_prune.evidence.running_sums import Kept, RunningSums, kept_of
from ignite_prune.evidence.version_2 import key_in_version_2
from ignite_prune.saliency.needs import Need


class Collector(ABC):
    """Collects one kind of evidence over some parameters in :attr:`record`.

    Training or a calibration pass calls its methods ``on_...``.

    Args:
        need: the evidence.
        parameters: the parameters, by name.
        model: the unwrapped model.

    Attributes:
        listens_to: any of "model_input", "layer_call", "activation", "attention".
        probes: whether it runs passes of its own, in :meth:`on_batch`.
        replicated: whether all ranks collect the same values in training, because gradients are averaged there.
        shared: whether all ranks always collect the same values, because they are the model's own.
        initial: whether it is collected once, at construction.
        backward: whether it needs a backward pass.
        lasting: whether it goes on over mask updates.
        per_sample: whether a calibration pass should run each sample separately.
        differentiated: the parameters whose gradients it needs, in :meth:`on_gradients`.
        record: the running sums.
        unknown: by weight, the function that uses it if it is not a layer call.
        refused: by parameter, the reason why nothing can be collected.
    """

    listens_to: ClassVar[frozenset[str]] = frozenset()
    probes: ClassVar[bool] = False
    replicated: ClassVar[bool] = False
    shared: ClassVar[bool] = False
    initial: ClassVar[bool] = False
    backward: bool = False
    lasting: bool = False
    per_sample: bool = False

    def __init__(self, need: Need, parameters: Mapping[str, nn.Parameter], model: nn.Module) -> None:
        self.need, self.parameters, self.model = need, dict(parameters), model
        self.differentiated: Mapping[str, nn.Parameter] = {}
        self.record = RunningSums(self.parameters)
        self.unknown: dict[str, str] = {}
        self.refused: dict[str, str] = {}

    @abstractmethod
    def zeros(self, name: str) -> Tensor:
        """Return zeros in the form of a parameter's sum."""

    def running(self, name: str) -> Tensor:
        """Return a parameter's sum, to add to in place."""
        return self.record.at(name, self.zeros)

    # Events

    def on_gradients(self, gradients: Mapping[str, Tensor]) -> None:
        """Called with the unscaled gradients of a step, of some of the parameters in ``differentiated``."""

    def on_model_input(self, args: Any, kwargs: Any) -> None:
        """Called with the model's arguments at the start of a forward pass."""

    def on_layer_call(self, name: str, call: LayerCall) -> None:
        """Called before a layer runs."""

    def on_activation(self, name: str, z: Tensor, dims: tuple[int, int], scale: float) -> None:
        """Called with an activation, the dims of its samples and units, and the scale of gradients to come."""

    def on_attention(self, attention: Attention, scale: float) -> None:
        """Called with an attention, and the scale of gradients to come."""

    def on_forward_end(self, observer: ForwardObserver) -> None:
        """Called at the end of each forward pass."""
        self.unknown.update(observer.unknown)

    def on_batch(self, batch: Batch) -> None:
        """Run passes over a batch."""

    # Results

    def settle(self) -> None:
        """Add up what is pending, before the record is read."""

    def results(
        self, sums: Mapping[str, Tensor], counts: Mapping[str, float], masks: Mapping[str, Tensor | None]
    ) -> dict[str, Any]:
        """Return the evidence by parameter name.

        Args:
            sums: the sums over all ranks.
            counts: their counts.
            masks: the masks of the parameters.
        """
        return {name: self.result(name, sums[name], counts[name]) for name in sums if counts.get(name)}

    def result(self, name: str, total: Tensor, count: float) -> Any:
        """Return a parameter's evidence from its sum over all ranks: the mean, unless overridden."""
        return total / count

    def reason(self, name: str) -> str:
        """Return the reason why there is nothing for a parameter."""
        if name in self.refused:
            return self.refused[name]
        if name in self.unknown:
            return f"it is used by {self.unknown[name]}, not by a linear layer or a convolution"
        if self.record.counts:
            return "the data never reached it"
        if self.listens_to:
            return "no forward has been seen: in training the model's own is, in train mode and not compiled"
        return "nothing has been gathered yet"

    # State

    def reset(self) -> None:
        """Drop everything collected."""
        self.record.reset()

    def state_dict(self) -> dict[str, Any]:
        """Return everything collected as plain data."""
        return {"need": self.need.key, **self.record.state_dict()}

    def sliced_state(self, indices: Mapping[str, Kept]) -> dict[str, Any]:
        """Return the state for parameters that keep these indices, by name and dimension."""
        return {**self.state_dict(), **self.record.sliced(indices, self.cut)}

    def cut(self, name: str, total: Tensor, kept: Kept) -> Tensor | None:
        """Return the part of a parameter's sum that is kept, or None if the rest is meaningless."""
        return None if kept and total.shape != self.parameters[name].shape else kept_of(total, kept)

    def checked(self, state: Any) -> dict[str, Any]:
        """Return a state that fits.

        Raises:
            TypeError, ValueError: it is of another form, of other evidence, parameters or shapes.
        """
        written = state.get("need", self.need.key) if isinstance(state, Mapping) else self.need.key
        if written not in (self.need.key, key_in_version_2(self.need)):
            raise ValueError(
                f"The checkpoint's evidence is {written!r}, but this pruner gathers {self.need.key!r}; make the pruner "
                "with the saliency and repair of the one that wrote the checkpoint"
            )
        return self.record.checked(state, self.zeros)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Load a checked state."""
        self.record.load_state_dict(state)
