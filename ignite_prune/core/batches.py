"""Batch: one batch of data with its model and loss; and iteration over the batches of a loader."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from ignite_prune._utils.nested import mapped, tensors_in
from ignite_prune.core.endless import warned_if_endless

PrepareBatch = Callable[..., tuple[Any, Any]]
"""Ignite's: ``(batch, device=None, non_blocking=False) -> (x, y)``."""
LossFn = Callable[[Any, Any], Tensor]


@dataclass(frozen=True)
class Batch:
    """A batch, the model and the loss."""

    model: nn.Module  # unwrapped
    x: Any  # a tensor, or tensors in a mapping, list or tuple
    y: Any  # the target
    loss_fn: LossFn | None  # None if no loss is needed

    @property
    def size(self) -> int:
        """The number of samples."""
        first = next(tensors_in(self.x), None)
        return 1 if first is None or first.ndim == 0 else first.shape[0]

    def given(self, x: Any) -> Batch:
        """Return the batch with another input."""
        return replace(self, x=x)

    @property
    def arguments(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Positional and keyword arguments of the model.

        A mapping is passed as keywords if the model's ``forward`` takes its keys, and whole otherwise.
        """
        if isinstance(self.x, Mapping) and takes(self.model.forward, self.x):
            return (), dict(self.x)
        return (self.x,), {}

    def output(self) -> Any:
        """Run the model."""
        args, kwargs = self.arguments
        return self.model(*args, **kwargs)

    def loss(self, output: Any = None, finite: bool = True) -> Tensor:
        """Return the loss of an output, by default of a new pass; with ``finite`` check that it is finite.

        Raises:
            TypeError: the loss is not a scalar tensor.
            ValueError: there is no ``loss_fn``, or the loss is not finite.
        """
        if self.loss_fn is None:
            raise ValueError("Argument loss_fn should be given: this evidence needs the loss, loss_fn(output, target)")
        loss = self.loss_fn(self.output() if output is None else output, self.y)
        if not isinstance(loss, Tensor) or loss.numel() != 1:
            form = f"a tensor of shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else f"{type(loss)}"
            raise TypeError(f"Argument loss_fn should return a scalar tensor (reduction='mean'), but it gave {form}")
        if finite and not torch.isfinite(loss.detach()).all():
            raise ValueError(f"The loss of a calibration batch is {loss.detach().item()}: nothing can be judged by it")
        return loss.reshape(())

    def samples(self) -> Iterator[Batch]:
        """Yield each sample as a batch of one."""
        n = self.size
        for i in range(n):
            yield Batch(self.model, _sliced(self.x, i, n), _sliced(self.y, i, n), self.loss_fn)


def batches(
    model: nn.Module, data: Any, loss_fn: LossFn | None, prepare_batch: PrepareBatch | None, device: torch.device
) -> Iterator[Batch]:
    """Yield the batches of ``data``, on the model's device.

    Raises:
        TypeError: ``data`` cannot be iterated over, or a batch has a form that needs ``prepare_batch``.
        ValueError: ``data`` is empty.
    """
    if isinstance(data, Tensor) or (type(data) is tuple and any(isinstance(each, Tensor) for each in data)):
        raise TypeError("Argument data should be an iterable of batches, but given what looks like one batch: [batch]?")
    try:
        iterator = iter(data)
    except TypeError:
        raise TypeError(
            f"Argument data should be an iterable of batches (a DataLoader, a list of (x, y)), but given {type(data)}"
        ) from None
    found = False
    for batch in warned_if_endless(data, iterator):
        found = True
        x, y = prepare_batch(batch, device=device, non_blocking=False) if prepare_batch else _prepared(batch, device)
        yield Batch(model, x, y, loss_fn)
    if not found:
        raise ValueError("Argument data gave no batch; is the loader empty, or an iterator that was used up?")


def takes(forward: Callable[..., Any], given: Mapping[Any, Any]) -> bool:
    """Return whether a function can be called with these keywords."""
    if not all(isinstance(key, str) for key in given):
        return False
    try:
        signature = inspect.signature(forward)
    except (TypeError, ValueError):  # it has none, as in a scripted module
        return True
    try:
        signature.bind(**given)
    except TypeError:
        return False
    return True


def _prepared(batch: Any, device: torch.device) -> tuple[Any, Any]:
    if isinstance(batch, (Tensor, Mapping)):
        batch = (batch,)
    if isinstance(batch, (tuple, list)) and len(batch) in (1, 2):
        x, y = (*batch, None)[:2]
        return mapped(x, lambda tensor: tensor.to(device)), mapped(y, lambda tensor: tensor.to(device))
    raise TypeError(
        "Argument data should give batches (x, y), or x alone: a tensor or a mapping of tensors; other forms need "
        f"prepare_batch=, but a batch was {type(batch)}"
    )


def _sliced(value: Any, i: int, n: int) -> Any:
    return mapped(value, lambda tensor: tensor[i : i + 1] if tensor.ndim and tensor.shape[0] == n else tensor)
