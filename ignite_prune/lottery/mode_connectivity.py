"""Linear mode connectivity: how high the loss rises on the straight line between two models."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from ignite_prune._utils.arguments import check_callable, check_positive
from ignite_prune.core.selection import unwrap
from ignite_prune.evidence.calibration import LossFn, PrepareBatch, batches
from ignite_prune.lottery.rewind import reread_buffers
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

    Two trainings from one beginning that see their data in another order end in the same valley where it is about 0;
    then they are stable to SGD's noise, which is when rewinding finds tickets.

    Args:
        model_a: one end.
        model_b: the other, of the same form; neither is changed.
        data: batches, gone over once a point.
        loss_fn: ``(output, target) -> scalar``, the mean over a batch: a loss, or an error rate.
        points: on the line, both ends among them; at least 3.
        calibration: batches over which BatchNorm's statistics are estimated anew at each point between the ends; None:
            they are interpolated as the weights are, which for BatchNorm nets overstates the barrier.
        prepare_batch: takes a batch apart, as Ignite's.

    Returns:
        In the unit of ``loss_fn``.

    Raises:
        TypeError, ValueError: a bad argument, or models of different form.

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
        raise ValueError(f"Argument points should be at least 3: both ends and what lies between, but given {points}")
    check_callable("loss_fn", loss_fn)
    ends = [dict(_tensors(unwrap(model))) for model in (model_a, model_b)]
    forms = [{name: (tensor.shape, tensor.dtype) for name, tensor in end.items()} for end in ends]
    if forms[0] != forms[1]:
        other = sorted(n for n in forms[0].keys() | forms[1].keys() if forms[0].get(n) != forms[1].get(n))
        raise ValueError(f"model_a and model_b should be of one form, but {other[0]!r} differs")
    carrier = copy.deepcopy(unwrap(model_a)).eval()
    steps = [index / (points - 1) for index in range(points)]
    losses = []
    for alpha in steps:
        _place(carrier, ends[0], ends[1], alpha)
        if calibration is not None and 0 < alpha < 1:
            _estimate(carrier, calibration, prepare_batch)
        losses.append(_loss(carrier, data, loss_fn, prepare_batch))
    return losses


def _tensors(model: nn.Module) -> Iterable[tuple[str, Tensor]]:
    yield from model.named_parameters()
    yield from model.named_buffers()


@torch.no_grad()
def _place(carrier: nn.Module, a: dict[str, Tensor], b: dict[str, Tensor], alpha: float) -> None:
    """Put the carrier at a point of the line; the ends are the models to the bit."""
    for name, tensor in _tensors(carrier):
        first, second = a[name], b[name].to(a[name].device)
        between = first.is_floating_point() and 0 < alpha < 1
        tensor.copy_(torch.lerp(first, second, alpha) if between else second if alpha == 1 else first)
    reread_buffers(carrier)


@torch.no_grad()
def _estimate(carrier: nn.Module, data: Iterable[Any], prepare_batch: PrepareBatch | None) -> None:
    norms = {n: m for n, m in carrier.named_modules() if isinstance(m, Norm) and m.track_running_stats}
    for norm in norms.values():
        norm.reset_running_stats()
    with averaging(norms):
        for batch in batches(carrier, data, None, prepare_batch, _device(carrier)):
            batch.output()
    carrier.eval()


@torch.no_grad()
def _loss(carrier: nn.Module, data: Iterable[Any], loss_fn: LossFn, prepare_batch: PrepareBatch | None) -> float:
    total, samples = 0.0, 0
    for batch in batches(carrier, data, loss_fn, prepare_batch, _device(carrier)):
        total += float(batch.loss(finite=False)) * batch.size
        samples += batch.size
    return total / samples


def _device(model: nn.Module) -> torch.device:
    return next(model.parameters()).device
