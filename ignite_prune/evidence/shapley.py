"""Shapley values of layers' units, with their standard errors."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ignite_prune.core.selection import select, unwrap
from ignite_prune.evidence.evidence import Evidence
from ignite_prune.saliency.needs import UnitRemoval


class ShapleyValues(NamedTuple):
    """Shapley values and their uncertainty.

    Attributes:
        values: ``(units,)``: a unit's fair share of the rise of the mean loss.
        standard_error: ``(units,)``: of the values, from the spread over orders (over pairs of an order and its
            reverse); 0 where every coalition was evaluated, NaN for a single order or pair.
    """

    values: Tensor
    standard_error: Tensor


def shapley_values(
    model: nn.Module,
    params: Any,
    data: Any,
    loss_fn: Callable[[Any, Any], Tensor],
    *,
    samples: int = 10,
    seed: int = 0,
    prepare_batch: Any = None,
) -> dict[str, ShapleyValues]:
    """Return the Shapley values of layers' units with their standard errors.

    Args:
        model: bare, or wrapped in DDP or ``torch.compile``; it is left unchanged.
        params: rules, see :func:`~ignite_prune.core.selection.select`.
        data: batches, as for Ignite's supervised trainer.
        loss_fn: ``(output, target) -> scalar``, a mean over the batch.
        samples: the number of orders of the units.
        seed: of the orders.
        prepare_batch: Ignite's ``(batch, device, non_blocking) -> (x, y)``.

    Raises:
        TypeError, ValueError: as :func:`ignite_prune.score`.

    Example:
        >>> net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 1))
        >>> data = [(torch.ones(2, 3), torch.zeros(2, 1))]
        >>> found = shapley_values(net, "0.weight", data, nn.functional.mse_loss)["0.weight"]
        >>> found.values.shape, bool((found.standard_error == 0).all())  # of 4 units every coalition is evaluated
        (torch.Size([4]), True)

    References:
        Ancona, Öztireli, Gross, 2020, arXiv 2006.01795.
    """
    model = unwrap(model)
    need = UnitRemoval(samples, seed)
    evidence = Evidence(model, {need: select(model, params)})
    evidence.calibrate(data, loss_fn, prepare_batch)
    evidence.sum_over_ranks()
    sums, counts = evidence.totals(need)
    found = {}
    for name, values in evidence.found(need, {}).items():
        rows, exact = sums[name] / counts[name], len(values) <= need.exact
        found[name] = ShapleyValues(values, torch.zeros_like(values) if exact else _standard_error(rows).to(values))
    return found


def _standard_error(rows: Tensor) -> Tensor:
    pairs = rows[: len(rows) // 2 * 2].view(-1, 2, rows.shape[1]).mean(1) if len(rows) > 1 else rows
    return pairs.std(0) / math.sqrt(len(pairs))
