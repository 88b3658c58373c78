"""BatchNorm: re-estimation of running statistics after pruning."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.func import functional_call

from ignite_prune._utils.distributed import all_reduce, raise_together
from ignite_prune.core.batches import Batch
from ignite_prune.core.selection import named_parameters
from ignite_prune.core.undisturbed import undisturbed
from ignite_prune.repair.base import PrunedParameter, Repair, RepairContext

Norm = nn.modules.batchnorm._BatchNorm
_STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


@dataclass(frozen=True)
class BatchNorm(Repair):
    r"""Re-estimates the running mean and variance of every BatchNorm, as averages over the calibration data.

    Pruning changes the distribution of a BatchNorm's input, so its old statistics are wrong. Requires ``data=``, and
    one forward pass over it with BatchNorm in training mode and the rest in eval mode. A BatchNorm that no batch
    reaches keeps its statistics. Under ``torch.distributed`` every batch of every rank has the same weight.

    Args:
        variance_repair: also correct the effect of ``eps`` on channels whose variance is close to 0: with
            :math:`\sigma^2` before and :math:`\hat\sigma^2` after pruning, the input's signal is restored by
            :math:`\alpha = 1 + r (\sigma/\hat\sigma - 1)`, :math:`r = \min(1, \hat\sigma/\sigma)` (weak signals are
            mostly noise, and are amplified less), through the scale :math:`\gamma`. Costs a second pass.

    Raises:
        TypeError: ``variance_repair`` is not a bool.
        ValueError: (from an update) there is no data, the model has no BatchNorm with running statistics, or a batch
            has a single value per channel.

    References:
        After Zhan, Chen, Hu, "Adaptive signal resuscitation", 2026, arXiv 2605.21426 (the shrinkage is ours).
    """

    variance_repair: bool = False
    whole: ClassVar[bool] = True
    passes: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not isinstance(self.variance_repair, bool):
            raise TypeError(f"Argument variance_repair should be a bool, but given {self.variance_repair!r}")

    def __call__(self, context: RepairContext, pruned: Sequence[PrunedParameter]) -> None:
        norms = {
            name: module
            for name, module in context.model.named_modules()
            if isinstance(module, Norm) and module.track_running_stats
        }
        found = _over_ranks(context, norms)
        if self.variance_repair:
            context.values |= _scales(context, norms, found)
            found = _over_ranks(context, norms)
        context.values |= found


def _over_ranks(context: RepairContext, norms: Mapping[str, Norm]) -> dict[str, Tensor]:
    """Return the running statistics over the batches of all ranks, of the BatchNorms that a batch has reached."""
    own: dict[str, Tensor] = {}
    error: Exception | None = None
    try:
        own = _estimated(context, norms)
    except Exception as raised:  # raised on all ranks below, so that none waits for this one
        error = raised
    raise_together(error, "repair.BatchNorm() failed on another rank; nothing was changed on this one")
    found: dict[str, Tensor] = {}
    for norm in norms:
        mean, variance, passes = (f"{norm}.{leaf}".lstrip(".") for leaf in _STATISTICS)
        everywhere = all_reduce(own[passes])
        if everywhere > 0:
            share = int(own[passes]) / int(everywhere)
            found |= {
                mean: all_reduce(own[mean] * share),
                variance: all_reduce(own[variance] * share),
                passes: everywhere,
            }
    return found


@torch.no_grad()
def _estimated(context: RepairContext, norms: Mapping[str, Norm]) -> dict[str, Tensor]:
    """Return the running statistics of the model with the planned values, over this rank's batches."""
    if not norms:
        raise ValueError("repair.BatchNorm() found no BatchNorm with running statistics in the model")
    if context.passes is None:
        raise ValueError("repair.BatchNorm() needs batches to estimate the statistics from: give data=")
    names = {parameter: name for name, parameter in context.model.named_parameters()}
    parameters = named_parameters(context.model)
    planned = {names[p]: context.values[name] for name, p in parameters.items() if name in context.values}
    for name, mask in context.masks.items():
        actual = names[parameters[name]]
        planned[actual] = context.weight(name) * mask
    statistics = {
        f"{name}.{leaf}".lstrip("."): buffer.detach().clone()
        for name, module in norms.items()
        for leaf, buffer in module.named_buffers(recurse=False)
    }
    for name, value in statistics.items():
        value.fill_(1 if name.endswith("running_var") else 0)
    with undisturbed(context.model), averaging(norms):
        for batch in context.passes():
            _run(context.model, {**planned, **statistics}, *batch.arguments, batch)
    return statistics


def _run(model: nn.Module, state: dict[str, Tensor], args: tuple, kwargs: dict, batch: Batch) -> None:
    try:
        functional_call(model, state, args, kwargs)
    except ValueError as error:
        raise ValueError(
            f"repair.BatchNorm() cannot use a batch of {batch.size}: {error}; give larger batches"
        ) from error


@contextmanager
def averaging(norms: Mapping[str, Norm]) -> Iterator[None]:
    """Make BatchNorm compute cumulative averages inside the ``with`` statement, in training mode."""
    momenta = {module: module.momentum for module in norms.values()}
    try:
        for module in momenta:
            module.momentum = None
            module.train()
        yield
    finally:
        for module, momentum in momenta.items():
            module.momentum = momentum


def _scales(context: RepairContext, norms: Mapping[str, Norm], found: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the new scales of BatchNorms, which compensate the effect of ``eps``."""
    scales = {}
    for name, module in norms.items():
        after = found.get(f"{name}.running_var".lstrip("."))
        if module.weight is None or module.running_var is None or after is None:
            continue
        before, after = module.running_var.detach().double(), after.double()
        ratio = (after / before.clamp(min=1e-30)).sqrt()
        restored = 1 + ratio.clamp(max=1) * (1 / ratio.clamp(min=1e-15) - 1)
        factor = restored * ((after + module.eps) / (restored.square() * after + module.eps)).sqrt()
        parameter = f"{name}.weight".lstrip(".")
        scales[parameter] = module.weight.detach() * factor.to(module.weight.dtype)
    return scales
