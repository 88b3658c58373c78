"""Calibration batches, put into a store, and the route that they take through a model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from itertools import islice
from typing import Any

import torch
from torch import nn

from ignite_prune._utils.distributed import raise_together
from ignite_prune.core.batches import Batch, batches
from ignite_prune.core.selection import named_parameters
from ignite_prune.core.undisturbed import undisturbed
from ignite_prune.evidence.collectors.base import observer_of
from ignite_prune.evidence.ranks import FAILED
from ignite_prune.saliency import MissingEvidence
from ignite_prune.update.blocks.activation_store import ActivationStore
from ignite_prune.update.blocks.block_plan import check_local, evidence_for_block
from ignite_prune.update.blocks.block_pruner import INPUT, Weights
from ignite_prune.update.blocks.relay import Forward, observable
from ignite_prune.update.blocks.survey import Route, survey
from ignite_prune.update.calibration import Calibration
from ignite_prune.update.param_group import ParamGroup


def prepared(
    model: nn.Module,
    blocks: Mapping[str, nn.Module],
    groups: Mapping[str, ParamGroup],
    calibration: Calibration,
    store: ActivationStore,
    weights: Weights,
    device: torch.device,
    seen: Callable[[Any], object] = lambda x: None,
    known: Callable[[], Route | None] = lambda: None,
) -> tuple[int, Route]:
    """Store the batches, and return their number and the route of blocks; nothing is changed.

    The number is 0 if no evidence is needed.

    Args:
        model: unwrapped, in eval mode.
        blocks: by name.
        groups: by block.
        calibration: the data.
        store: of the batches.
        weights: of the blocks.
        device: where the model runs.
        seen: called with each batch.
        known: called once all batches are stored; returns the route if it is known already.

    Raises:
        TypeError, ValueError: bad data, blocks that are not called once each in their order, a saliency or repair that
            one block is not enough for; ValueError if another rank failed.
    """
    error, number, route = None, 0, None
    _check_device(device)
    needs_data = _needs_data(model, groups, weights)
    if calibration.data is None:
        if needs_data:
            raise ValueError("Argument data should be given: the saliency or repair needs calibration batches")
        return 0, Route(dict(blocks), 0, (frozenset(),) * len(blocks), -1)
    try:
        number, first = _keep(store, calibration, model, device, seen)
        store.batches = number
        route = known()
        with undisturbed(model), torch.no_grad(), weights.around():
            if route is None:
                observed = partial(_observed, model, blocks, groups)
                route = survey(model, blocks, [*islice(first.samples(), 1), first], weights, observed)
    except Exception as raised:  # the other ranks must not wait for this one
        error = raised
    raise_together(error, FAILED)
    assert route is not None
    return number if needs_data else 0, route


def _observed(
    model: nn.Module,
    blocks: Mapping[str, nn.Module],
    groups: Mapping[str, ParamGroup],
    name: str,
    forward: Forward,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
) -> Any:
    """Run a block; raise if it uses a weight in a way of which there is no evidence."""
    evidence = evidence_for_block(model, groups[name], named_parameters(model)) if name in groups else None
    if evidence is None:
        return forward(*args, **kwargs)
    root, collectors = observable(blocks[name]), list(evidence.collectors.values())
    with observer_of(collectors).installed(root):
        output = root(forward, args, kwargs)
    for collector in collectors:
        for unseen in collector.refused:
            if not collector.record.counts.get(unseen):
                raise MissingEvidence(f"There is no evidence for parameter {unseen!r}: {collector.reason(unseen)}")
    evidence.reset(start=True)  # collectors refer to themselves, and would live on
    return output


def _needs_data(model: nn.Module, groups: Mapping[str, ParamGroup], weights: Weights) -> bool:
    """Return whether evidence is needed, after a check that it can be had block by block."""
    name, group = next(iter(groups.items()))
    with weights.present(name):
        evidence = evidence_for_block(model, group, named_parameters(model))
        check_local(group, evidence)
    return evidence is not None


def _check_device(device: torch.device) -> None:
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"Argument device: {str(device)!r} cannot be used: {str(error).splitlines()[0]}") from error


def _keep(
    store: ActivationStore,
    calibration: Calibration,
    model: nn.Module,
    device: torch.device,
    seen: Callable[[Any], object],
) -> tuple[int, Batch]:
    """Store all batches; return their number and the first one."""
    number, first = 0, None
    for batch in batches(model, calibration.passes, None, calibration.prepare_batch, device):
        first = batch if first is None else first
        store.put(number, INPUT, batch.x)
        seen(batch.x)
        number += 1
    assert first is not None
    return number, first
