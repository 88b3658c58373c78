"""Calibration batches, put into a store, and the route that they take through a model."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from ignite_prune._utils.distributed import raise_together
from ignite_prune.core.selection import named_parameters
from ignite_prune.evidence.calibration import Batch, batches, undisturbed
from ignite_prune.evidence.running_sums import FAILED
from ignite_prune.update.blocks.activation_store import ActivationStore
from ignite_prune.update.blocks.block_plan import check_local, evidence_for_block
from ignite_prune.update.blocks.block_pruner import INPUT, Weights
from ignite_prune.update.blocks.survey import Route, survey
from ignite_prune.update.calibration import Calibration
from ignite_prune.update.param_groups import ParamGroup


def prepared(
    model: nn.Module,
    blocks: Mapping[str, nn.Module],
    groups: Mapping[str, ParamGroup],
    calibration: Calibration,
    store: ActivationStore,
    weights: Weights,
    device: torch.device,
) -> tuple[int, Route]:
    """Store the batches, and return their number and the route of blocks; nothing is changed.

    The number is 0 if no evidence is needed.

    Raises:
        TypeError, ValueError: bad data, blocks that are not called once each in their order, a saliency or repair that
            one block is not enough for; ValueError if another rank failed.
    """
    parameters, error, number, route = named_parameters(model), None, 0, None
    evidence = evidence_for_block(model, next(iter(groups.values())), parameters)
    check_local(next(iter(groups.values())), evidence)
    needs_data = evidence is not None
    del evidence
    if calibration.data is None:
        if needs_data:
            raise ValueError("Argument data should be given: the saliency or repair needs calibration batches")
        return 0, Route(dict(blocks), 0, (frozenset(),) * len(blocks), -1)
    try:
        number, first = _keep(store, calibration, model, device)
        with undisturbed(model), torch.no_grad(), weights.around():
            route = _surveyed(model, blocks, first, weights)
    except Exception as raised:  # the other ranks must not wait for this one
        error = raised
    raise_together(error, FAILED)
    assert route is not None
    return number if needs_data else 0, route


def _keep(
    store: ActivationStore, calibration: Calibration, model: nn.Module, device: torch.device
) -> tuple[int, Batch]:
    """Store all batches; return their number and the first one."""
    number, first = 0, None
    for batch in batches(model, calibration.data, None, calibration.prepare_batch, device):
        first = batch if first is None else first
        store.put(number, INPUT, batch.x)
        number += 1
    assert first is not None
    return number, first


def _surveyed(model: nn.Module, blocks: Mapping[str, nn.Module], first: Batch, weights: Weights) -> Route:
    """Survey by one sample of the first batch, or by all of it if the model does not take one alone."""
    if first.size > 1:
        try:
            return survey(model, blocks, next(first.samples()), weights.present)
        except Exception:
            return survey(model, blocks, first, weights.present)
    return survey(model, blocks, first, weights.present)
