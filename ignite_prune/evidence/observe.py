"""Subscribes collectors to the forward passes of a model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from ignite_prune.evidence.collectors.base import Collector
from ignite_prune.evidence.forward.attention_tracker import Attention
from ignite_prune.evidence.forward.observer import ForwardObserver


def unscaled() -> float:
    """Return the scale of gradients in a calibration pass."""
    return 1.0


def observer_of(
    collectors: Sequence[Collector],
    scale: Callable[[], float] = unscaled,
    is_enabled: Callable[[], bool] | None = None,
) -> ForwardObserver:
    """Return an observer that calls each collector with its events.

    Args:
        collectors: the subscribers.
        scale: returns the scale of gradients (of a GradScaler), called when a forward pass runs.
        is_enabled: whether events are delivered, evaluated at each one; None: always.
    """
    observer = ForwardObserver(is_enabled)
    for collector in collectors:
        _subscribe(observer, collector, scale)
    return observer


def _subscribe(observer: ForwardObserver, collector: Collector, scale: Callable[[], float]) -> None:
    def on_activation(name: str, z: Tensor, dim: int, samples: int) -> None:
        collector.on_activation(name, z, (samples, dim), scale())

    def on_attention(attention: Attention) -> None:
        collector.on_attention(attention, scale())

    callbacks: dict[str, Callable[..., Any]] = {
        "layer_call": collector.on_layer_call,
        "activation": on_activation,
        "attention": on_attention,
    }
    if "model_input" in collector.listens_to:
        observer.subscribe({}, on_model_input=collector.on_model_input)
    chosen = {f"on_{event}": callbacks[event] for event in callbacks if event in collector.listens_to}
    if chosen:
        observer.subscribe(collector.parameters, on_end=collector.on_forward_end, **chosen)
