"""BatchNorm re-estimation: the cheapest large win there is."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.func import functional_call

from ignite_prune._utils.distributed import all_reduce, raise_together
from ignite_prune.core.selection import named_parameters
from ignite_prune.evidence.calibration import Batch, undisturbed
from ignite_prune.repair.base import PrunedParameter, Repair, RepairContext

Norm = nn.modules.batchnorm._BatchNorm
_STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


@dataclass(frozen=True)
class BatchNorm(Repair):
    r"""Estimate the running mean and variance of every BatchNorm anew, as averages over the calibration data.

    Pruning shifts what enters a BatchNorm; its old statistics are then simply wrong. Needs ``data=``; costs a forward
    pass over it, in training mode for BatchNorm and eval mode for the rest. A BatchNorm that no batch reaches keeps its
    statistics. Under ``torch.distributed`` every batch of every rank counts the same.

    Args:
        variance_repair: also undo what ``eps`` does to channels whose variance has all but vanished: with
            :math:`\sigma^2` before and :math:`\hat\sigma^2` after pruning, the input's signal is restored by
            :math:`\alpha = 1 + r (\sigma/\hat\sigma - 1)`, :math:`r = \min(1, \hat\sigma/\sigma)` (weak signals are
            mostly noise and are trusted less), by way of the scale :math:`\gamma`. Costs a second pass.

    Raises:
        TypeError: ``variance_repair`` is not a bool.
        ValueError: (from an update) there is no data, no BatchNorm with running statistics, or a batch that leaves a
            channel a single value.

    References:
        After Zhan, Chen, Hu, "Adaptive signal resuscitation", 2026, arXiv 2605.21426 (the shrinkage is ours).
    """

    variance_repair: bool = False
    whole: ClassVar[bool] = True
    passes: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not isinstance(self.variance_repair, bool):
            raise TypeError(f"Argument variance_repair should be a bool, but given {self.variance_repair!r}")

    def __call__(self, patient: RepairContext, cuts: Sequence[PrunedParameter]) -> None:
        norms = {
            name: module
            for name, module in patient.model.named_modules()
            if isinstance(module, Norm) and module.track_running_stats
        }
        found = _over_ranks(patient, norms)
        if self.variance_repair:
            patient.values |= _scales(patient, norms, found)
            found = _over_ranks(patient, norms)
        patient.values |= found


def _over_ranks(patient: RepairContext, norms: Mapping[str, Norm]) -> dict[str, Tensor]:
    """Return the running statistics over every rank's batches, of those BatchNorms that one has reached."""
    own: dict[str, Tensor] = {}
    error: Exception | None = None
    try:
        own = _estimated(patient, norms)
    except Exception as raised:  # told to the others first: none must wait for this rank
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
def _estimated(patient: RepairContext, norms: Mapping[str, Norm]) -> dict[str, Tensor]:
    """Return the running statistics of the model as planned, over this rank's batches."""
    if not norms:
        raise ValueError("repair.BatchNorm() found no BatchNorm with running statistics in the model")
    if patient.passes is None:
        raise ValueError("repair.BatchNorm() needs batches to estimate the statistics from: give data=")
    names = {parameter: name for name, parameter in patient.model.named_parameters()}
    planned = {names[p]: patient.values[name] for name, p in _everything(patient).items() if name in patient.values}
    for name, mask in patient.masks.items():
        actual = names[_everything(patient)[name]]
        planned[actual] = patient.weight(name) * mask
    statistics = {
        f"{name}.{leaf}".lstrip("."): buffer.detach().clone()
        for name, module in norms.items()
        for leaf, buffer in module.named_buffers(recurse=False)
    }
    for name, value in statistics.items():
        value.fill_(1 if name.endswith("running_var") else 0)
    with undisturbed(patient.model), averaging(norms):
        for batch in patient.passes():
            args, kwargs = ((), dict(batch.x)) if isinstance(batch.x, Mapping) else ((batch.x,), {})
            _run(patient.model, {**planned, **statistics}, args, kwargs, batch)
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
    """Let BatchNorm take plain averages over the passes inside."""
    momenta = {module: module.momentum for module in norms.values()}
    try:
        for module in momenta:
            module.momentum = None
            module.train()
        yield
    finally:
        for module, momentum in momenta.items():
            module.momentum = momentum


def _scales(patient: RepairContext, norms: Mapping[str, Norm], found: Mapping[str, Tensor]) -> dict[str, Tensor]:
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


def _everything(patient: RepairContext) -> Mapping[str, nn.Parameter]:
    return named_parameters(patient.model)
