"""Calibration passes of a model whose parameters are sharded: gradients come by ``backward()``, on all ranks at once.

``torch.autograd.grad`` does not reach them: ``fully_shard`` reduces gradients in hooks of the backward pass, and puts
this rank's part into ``.grad``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TypeVar

import torch
from torch import Tensor, nn

from ignite_prune._utils.exchange import Exchange
from ignite_prune._utils.shard import local, reshard

T = TypeVar("T")


def gradients_of_parts(loss: Tensor, model: nn.Module, parameters: Mapping[str, nn.Parameter]) -> dict[str, Tensor]:
    """Return the gradients of this rank's parts, means over ranks; ``.grad`` does not change."""
    if not loss.requires_grad:
        return {}
    reshard(model)
    every = {id(each): each for each in (*model.parameters(), *parameters.values())}.values()
    before = [(each, each.grad) for each in every]
    try:
        for each, _ in before:
            each.grad = None
        loss.backward()  # type: ignore[no-untyped-call]
        return {name: local(each.grad) for name, each in parameters.items() if each.grad is not None}
    finally:
        for each, grad in before:
            each.grad = grad


def in_step(batches: Iterable[T], run: Callable[[T], object]) -> None:
    """Run over batches as long as every rank has one: a pass of a sharded model takes all ranks.

    Raises:
        ValueError: on every rank: some have run out of data and others have not, or a rank's pass failed.
    """
    exchange, iterator, done, error = Exchange(), iter(batches), 0, None
    while True:
        batch = None
        try:
            batch = next(iterator, None) if error is None else None
        except Exception as raised:
            error = raised
        exchange.raise_together(error)
        has = exchange.collect(torch.tensor(batch is not None)).tolist()
        if batch is None and not any(has):
            return
        if batch is None or not all(has):
            raise ValueError(
                f"Argument data gave rank {has.index(True)} more than {done} batches, and rank {has.index(False)} no "
                "more: with sharded parameters every rank needs as many batches (drop_last=True in a DataLoader)"
            )
        done += 1
        try:
            run(batch)
        except Exception as raised:  # the others are told before their next batch
            error = raised
