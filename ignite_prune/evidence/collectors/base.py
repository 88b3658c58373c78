"""The interface of the collectors of evidence, and their subscription to a model's forward passes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Generic, TypeVar

import torch
from torch import Tensor, nn

from ignite_prune._utils.kept import Kept, kept_of
from ignite_prune.core.batches import Batch
from ignite_prune.evidence.forward.observer import ForwardObserver
from ignite_prune.evidence.running_sums import RunningSums, zeros_over
from ignite_prune.evidence.version_2 import key_in_version_2
from ignite_prune.saliency.needs import Need

N = TypeVar("N", bound=Need)
Scale = Callable[[], float]
"""Returns the scale of gradients (of a GradScaler), called when a forward pass runs."""


class Collector(Generic[N]):
    """Adds one kind of evidence over some parameters to :attr:`record`.

    Training or a calibration pass calls :meth:`on_gradients`, :meth:`on_batch` and the callbacks of :meth:`subscribe`.

    Attributes:
        probes: whether it runs passes of its own, in :meth:`on_batch`.
        replicated: whether all ranks collect the same values in training, because gradients are averaged there.
        shared: whether all ranks always collect the same values, because they are the model's own.
        by_part: whether the sums over sharded parameters are of this rank's parts, complete there.
        initial: whether it is collected at construction, in :meth:`prepare`.
        of_gradients: whether there is nothing for a parameter without ``requires_grad``.
        unreached: the reason why there is nothing for a parameter while there is for others; ``unseen``: for none.
        backward: whether it needs a backward pass.
        lasting: whether it goes on over mask updates.
        per_sample: whether a calibration pass should run each sample separately.
        goes_on: whether :meth:`extras` go on over resets, such as the state of a generator.
        differentiated: the parameters whose gradients it needs, in :meth:`on_gradients`.
        record: the running sums.
        refused: by parameter, the reason why the model's use of it makes its evidence impossible, whatever the data.
        missed: by parameter, the reason why the data so far had nothing for it, where more than that is known.
    """

    probes: ClassVar[bool] = False
    replicated: ClassVar[bool] = False
    shared: ClassVar[bool] = False
    by_part: ClassVar[bool] = False
    initial: ClassVar[bool] = False
    of_gradients: ClassVar[bool] = False
    unreached: ClassVar[str] = "the data never reached it"
    unseen: ClassVar[str] = "no forward has been seen: in training the model's own is, in train mode and not compiled"
    backward = lasting = per_sample = goes_on = False

    def __init__(self, need: N, parameters: Mapping[str, nn.Parameter], model: nn.Module) -> None:
        self.need, self.parameters, self.model = need, dict(parameters), model
        self.differentiated: Mapping[str, nn.Parameter] = {}
        self.record = RunningSums(self.parameters, self.by_part)
        self.refused: dict[str, str] = {}
        self.missed: dict[str, str] = {}
        self.prepare()

    @property
    def alike(self) -> bool:
        """Whether all ranks collect the same values in training."""
        return self.replicated or self.shared

    def prepare(self) -> None:
        """Set up what depends on the need and the model, at construction."""

    def zeros(self, name: str) -> Tensor:
        """Return zeros in the form of a parameter's sum."""
        return zeros_over(self.parameters[name])

    def running(self, name: str) -> Tensor:
        """Return a parameter's running sum, to add to in place."""
        return self.record.at(name, self.zeros)

    def on_gradients(self, gradients: Mapping[str, Tensor]) -> None:
        """Called with the unscaled gradients of a step, of some of the parameters in ``differentiated``."""

    def on_batch(self, batch: Batch) -> None:
        """Run passes over a batch."""

    def subscribe(self, observer: ForwardObserver, scale: Scale) -> None:
        """Subscribe to the events of forward passes that it needs."""

    def on_forward_end(self, observer: ForwardObserver) -> None:
        """Called at the end of each observed forward pass."""
        for name, used in observer.unknown.items():
            why = f"it is used by {used}, not by a linear layer or a convolution: leave it out with exclude="
            self.refused.setdefault(name, why)

    def settle(self) -> None:
        """Add up what is pending, before the record is read."""

    def results(
        self, sums: Mapping[str, Tensor], counts: Mapping[str, float], masks: Mapping[str, Tensor | None]
    ) -> dict[str, Any]:
        """Return the evidence by parameter name, from sums and counts over all ranks, under these masks."""
        return {name: self.result(name, sums[name], counts[name]) for name in sums if counts.get(name)}

    def result(self, name: str, total: Tensor, count: float) -> Any:
        """Return a parameter's evidence from its sum over all ranks: the mean, unless overridden."""
        return total / count

    def is_frozen(self, name: str) -> bool:
        """Return whether there is nothing for a parameter because it has no gradient."""
        return self.of_gradients and not self.parameters[name].requires_grad

    def reason(self, name: str) -> str:
        """Return the reason why a parameter has no evidence."""
        if self.is_frozen(name):
            return "it is frozen (requires_grad=False) and has no gradient: leave it out with exclude="
        known = self.refused.get(name) or self.missed.get(name)
        return known or (self.unreached if self.record.counts else self.unseen)

    def reset(self) -> None:
        """Drop everything collected."""
        self.record.reset()

    def state_dict(self, sums: bool = True) -> dict[str, Any]:
        """Return everything collected as plain data; without ``sums`` only what goes on over resets, empty if none."""
        if not (sums or self.goes_on):
            return {}
        record = self.record if sums else RunningSums(self.parameters, self.by_part)
        return {"need": self.need.key, **record.state_dict(), **self.extras()}

    def sliced_state(self, indices: Mapping[str, Kept], sums: bool = True) -> dict[str, Any]:
        """Return the state for parameters that keep these indices, by name and dimension."""
        state = self.state_dict(sums)
        left = {name: self.cut(name, total, indices.get(name, {})) for name, total in state.get("sums", {}).items()}
        kept = {name: total for name, total in left.items() if total is not None}
        return {**state, "sums": kept, "counts": {name: state["counts"][name] for name in kept}} if state else state

    def cut(self, name: str, total: Tensor, kept: Kept) -> Tensor | None:
        """Return the part of a parameter's sum that is kept, or None if the rest is meaningless."""
        return None if kept and total.shape != self.parameters[name].shape else kept_of(total, kept)

    def checked(self, state: Any) -> dict[str, Any]:
        """Return a state that fits, or raise TypeError or ValueError."""
        if not isinstance(state, Mapping):
            raise TypeError("The evidence of a pruner's state_dict should be a mapping with 'sums' and 'counts'")
        written = state.get("need", self.need.key)
        if written not in (self.need.key, key_in_version_2(self.need)):
            raise ValueError(
                f"The checkpoint's evidence is {written!r}, but this pruner gathers {self.need.key!r}; make the pruner "
                "with the saliency and repair of the one that wrote the checkpoint"
            )
        checked = self.record.checked(state, self.checked_forms(state), self.zeros)
        self.check_extras(checked)
        return checked

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Load a checked state."""
        self.record.load_state_dict(state, self.checked_forms(state))
        self.load_extras(state)

    def checked_forms(self, state: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
        """Return the forms that the sums of a state depend on, or raise TypeError or ValueError."""
        return {}

    def extras(self) -> dict[str, Any]:
        """Return what the state holds besides the record."""
        return {}

    def check_extras(self, state: Mapping[str, Any]) -> None:
        """Raise TypeError or ValueError unless the extras of a state fit, whose sums are checked already."""

    def load_extras(self, state: Mapping[str, Any]) -> None:
        """Load the extras of a checked state."""


def observer_of(
    collectors: Sequence[Collector], scale: Scale = lambda: 1.0, is_enabled: Callable[[], bool] | None = None
) -> ForwardObserver:
    """Return an observer that calls each collector with its events, while ``is_enabled`` returns True."""
    observer = ForwardObserver(is_enabled)
    for collector in collectors:
        collector.subscribe(observer, scale)
    return observer


def on_gradient(tensor: Tensor, scale: float, run: Callable[[Tensor], object]) -> None:
    """Call ``run`` with a tensor's scaled gradient in the backward pass, unless the scaled loss overflowed.

    A GradScaler skips a step in which a scaled gradient is not finite.
    """

    @torch.no_grad()
    def hook(gradient: Tensor) -> None:
        if scale == 1.0 or bool(torch.isfinite(gradient).all()):
            run(gradient.detach())

    tensor.register_hook(hook)  # type: ignore[no-untyped-call]
