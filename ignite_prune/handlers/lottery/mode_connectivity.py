"""Linear mode connectivity: the loss along the straight line between two models."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from ignite_prune._utils.arguments import check_callable, check_positive
from ignite_prune._utils.copies import copy_of
from ignite_prune.core.batches import LossFn, PrepareBatch, batches
from ignite_prune.core.selection import unwrap
from ignite_prune.handlers.lottery.snapshot import reread_buffers
from ignite_prune.repair.batch_norm import Norm, averaging


def barrier(
    model_a: nn.Module,
    model_b: nn.Module,
    data: Iterable[Any],
    loss_fn: LossFn,
    *,
    points: int = 11,
    calibration: Iterable[Any] | None = None,
    prepare_batch: PrepareBatch | None = None,
) -> float:
    r"""Return the error barrier, :math:`\max_\alpha L((1-\alpha) a + \alpha b) - \frac{1}{2}(L(a) + L(b))`.

    A barrier of about 0 between two trainings that start from the same weights and differ in data order means that they
    reach the same minimum: training is stable to SGD noise, which is the condition for rewinding to find tickets.

    Args:
        model_a: one end of the line; not changed.
        model_b: the other end, with the same parameters and shapes; not changed.
        data: batches, iterated once per point.
        loss_fn: ``(output, target) -> scalar``, a mean over the batch of a loss or an error rate.
        points: number of points on the line, including both ends; at least 3.
        calibration: batches over which BatchNorm statistics are re-estimated at each point between the ends; None
            interpolates them like weights, which overestimates the barrier.
        prepare_batch: ``prepare_batch`` as in Ignite's ``create_supervised_trainer``.

    Returns:
        The barrier, in the unit of ``loss_fn``.

    Raises:
        TypeError, ValueError: an argument is out of range, or the models differ in parameters or shapes.

    Example:
        >>> a, b = nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False)
        >>> _ = nn.init.constant_(a.weight, 1.0), nn.init.constant_(b.weight, -1.0)
        >>> barrier(a, b, [(torch.ones(2, 1), torch.ones(2, 1))], lambda y, t: (y**2 - t**2).abs().mean())
        1.0

    References:
        Frankle, Dziugaite, Roy, Carbin, "Linear mode connectivity and the lottery ticket hypothesis", 2020,
        arXiv 1912.05671.
    """
    losses = losses_between(
        model_a, model_b, data, loss_fn, points=points, calibration=calibration, prepare_batch=prepare_batch
    )
    return max(losses) - (losses[0] + losses[-1]) / 2


def losses_between(
    model_a: nn.Module,
    model_b: nn.Module,
    data: Iterable[Any],
    loss_fn: LossFn,
    *,
    points: int = 11,
    calibration: Iterable[Any] | None = None,
    prepare_batch: PrepareBatch | None = None,
) -> list[float]:
    """Return the mean loss at evenly spaced points of the line from ``model_a`` to ``model_b``; see :func:`barrier`.

    Example:
        >>> a, b = nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False)
        >>> _ = nn.init.constant_(a.weight, 0.0), nn.init.constant_(b.weight, 2.0)
        >>> losses_between(a, b, [(torch.ones(1, 1), None)], lambda y, t: y.mean(), points=3)
        [0.0, 1.0, 2.0]
    """
    check_positive("points", points, whole=True)
    if points < 3:
        raise ValueError(f"Argument points should be at least 3: both ends and one between, but given {points}")
    check_callable("loss_fn", loss_fn)
    ends = [dict(_tensors(unwrap(model))) for model in (model_a, model_b)]
    forms = [{name: (tensor.shape, tensor.dtype) for name, tensor in end.items()} for end in ends]
    if forms[0] != forms[1]:
        other = sorted(n for n in forms[0].keys() | forms[1].keys() if forms[0].get(n) != forms[1].get(n))
        raise ValueError(f"model_a and model_b should be of one form, but {other[0]!r} differs")
    model = copy_of(unwrap(model_a)).eval()
    steps = [index / (points - 1) for index in range(points)]
    losses = []
    for alpha in steps:
        _interpolate(model, ends[0], ends[1], alpha)
        if calibration is not None and 0 < alpha < 1:
            _estimate(model, calibration, prepare_batch)
        losses.append(_loss(model, data, loss_fn, prepare_batch))
    return losses


def _tensors(model: nn.Module) -> Iterable[tuple[str, Tensor]]:
    yield from model.named_parameters()
    yield from model.named_buffers()


@torch.no_grad()
def _interpolate(model: nn.Module, a: dict[str, Tensor], b: dict[str, Tensor], alpha: float) -> None:
    """Set the tensors of a model to a point of the line; the ends are bit-identical to ``a`` and ``b``."""
    for name, tensor in _tensors(model):
        first, second = a[name], b[name].to(a[name].device)
        between = first.is_floating_point() and 0 < alpha < 1
        tensor.copy_(torch.lerp(first, second, alpha) if between else second if alpha == 1 else first)
    reread_buffers(model)


@torch.no_grad()
def _estimate(model: nn.Module, data: Iterable[Any], prepare_batch: PrepareBatch | None) -> None:
    """Re-estimate the statistics of every BatchNorm, in place."""
    norms = {n: m for n, m in model.named_modules() if isinstance(m, Norm) and m.track_running_stats}
    for norm in norms.values():
        norm.reset_running_stats()
    with averaging(norms):
        for batch in batches(model, data, None, prepare_batch, _device(model)):
            batch.output()
    model.eval()


@torch.no_grad()
def _loss(model: nn.Module, data: Iterable[Any], loss_fn: LossFn, prepare_batch: PrepareBatch | None) -> float:
    total, samples = 0.0, 0
    for batch in batches(model, data, loss_fn, prepare_batch, _device(model)):
        total += float(batch.loss(finite=False)) * batch.size
        samples += batch.size
    return total / samples


def _device(model: nn.Module) -> torch.device:
    return next(model.parameters()).device
