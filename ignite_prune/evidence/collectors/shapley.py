"""Evidence from removing units: Shapley values by sampled orders, or by every coalition of a small layer."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ignite_prune.evidence.calibration import Batch
from ignite_prune.evidence.collectors.base import Gatherer, wide
from ignite_prune.evidence.forward.observer import Watch, watching
from ignite_prune.evidence.forward.tape import Cut, Tape
from ignite_prune.saliency.needs import UnitRemoval

LossWith = Callable[[Tensor], float]
"""The loss with some units kept: takes a bool tensor ``(units,)``, True = kept."""


class RemovalValues(Gatherer):
    """Gathers :class:`~ignite_prune.saliency.needs.UnitRemoval`: a row of values an order, ``(orders, units)``."""

    probes = True

    def __init__(self, need: UnitRemoval, parameters: Mapping[str, nn.Parameter], model: nn.Module) -> None:
        super().__init__(need, parameters, model)
        self._need = need
        self._refused: dict[str, str] = {}

    def orders(self, name: str) -> Tensor | None:
        """Return the orders in which a layer's units go, ``(orders, units)``; None where all coalitions are tried."""
        units = self.parameters[name].shape[0]
        if units <= self._need.exact:
            return None
        # Each layer has dice of its own, so that its values do not depend on what else is judged.
        seed = (self._need.seed + sum(name.encode()) * 1_000_003) % 2**62
        return antithetic_orders(units, self._need.samples, torch.Generator().manual_seed(seed))

    def empty(self, name: str) -> Tensor:
        parameter = self.parameters[name]
        rows = 1 if parameter.shape[0] <= self._need.exact else self._need.samples
        return torch.zeros(rows, parameter.shape[0], dtype=torch.float64)

    @torch.no_grad()
    def probe(self, batch: Batch) -> None:
        cuts: dict[str, tuple[Cut, int]] = {}

        def cut(name: str, z: Tensor, dim: int, samples: int) -> None:
            if name in cuts:
                self._refused[name] = "its layer is used more than once in a forward pass"
            cuts[name] = (Cut.of(z), dim)

        with watching(batch.model, Watch(self.parameters, on_activation=cut)):
            # A check in Python would end the tape: the value is looked at here, afterwards.
            tape = Tape.record(batch.model, lambda: batch.loss(finite=False))
        if not torch.isfinite(tape.result).all():
            raise ValueError(f"The loss of a calibration batch is {tape.result.item()}: nothing can be judged by it")
        for name, (z, dim) in cuts.items():
            if z.value.shape[dim] != self.parameters[name].shape[0]:
                self._refused[name] = "its dim 0 does not number its outputs"
            if name in self._refused:
                continue
            evaluate = self._evaluator(tape, z, dim, name)
            running, orders = self.running(name), self.orders(name)
            values = exact_values(evaluate, z.value.shape[dim]) if orders is None else sampled_values(evaluate, orders)
            running += values * batch.size
            self.count(name, batch.size)

    def _evaluator(self, tape: Tape, z: Cut, dim: int, name: str) -> LossWith:
        """Return what runs the network with some units kept, from the cut onward where that gives the same."""
        run = tape.replay if tape.is_exact(z) else tape.rerun

        def loss(kept: Tensor) -> float:
            found = run(z, z.value * _along(kept, z.value, dim))
            if found is None:
                raise ValueError(
                    f"Shapley cannot remove units of {name!r}: the forward pass does not go the same way twice (it "
                    "depends on the data, or on random numbers)"
                )
            return float(found)

        return loss

    def answer(self, name: str, total: Tensor, count: float) -> Tensor:
        parameter = self.parameters[name]
        return (total.mean(0) / count).to(parameter.device, wide(parameter))

    def reason(self, name: str) -> str:
        return self._refused.get(name) or super().reason(name)


def _along(kept: Tensor, z: Tensor, dim: int) -> Tensor:
    return kept.to(z.device, z.dtype).view(-1, *(1,) * (-dim - 1))


def antithetic_orders(units: int, samples: int, generator: torch.Generator) -> Tensor:
    """Draw orders of units, each followed by its reverse.

    Example:
        >>> antithetic_orders(3, 2, torch.Generator().manual_seed(0)).tolist()
        [[2, 0, 1], [1, 0, 2]]
    """
    drawn = [torch.randperm(units, generator=generator) for _ in range(-(-samples // 2))]
    return torch.stack([order for one in drawn for order in (one, one.flip(0))][:samples])


def sampled_values(loss: LossWith, orders: Tensor) -> Tensor:
    """Return each order's increases of the loss as units go one after another, ``(orders, units)``, float64."""
    values = torch.zeros(orders.shape, dtype=torch.float64)
    kept = torch.ones(orders.shape[1], dtype=torch.bool)
    full, nothing = loss(kept), loss(~kept)
    for row, order in zip(values, orders.tolist()):
        kept.fill_(True)
        before = full
        for position, unit in enumerate(order):
            kept[unit] = False
            after = loss(kept) if position + 1 < len(order) else nothing
            row[unit] = after - before
            before = after
    return values


def exact_values(loss: LossWith, units: int) -> Tensor:
    """Return the Shapley values from all ``2^units`` coalitions, ``(1, units)``, float64."""
    losses = [
        loss(torch.tensor([bool(coalition >> unit & 1) for unit in range(units)])) for coalition in range(1 << units)
    ]
    values = torch.zeros(1, units, dtype=torch.float64)
    for unit in range(units):
        for coalition in range(1 << units):
            if coalition >> unit & 1:
                others = coalition.bit_count() - 1
                share = math.factorial(others) * math.factorial(units - others - 1) / math.factorial(units)
                values[0, unit] += share * (losses[coalition ^ 1 << unit] - losses[coalition])
    return values


class ShapleyValues(NamedTuple):
    """Shapley values and how sure they are.

    Attributes:
        values: ``(units,)``: by how much the mean loss rises, a unit's fair share of it.
        standard_error: ``(units,)``: of the values, by the spread over orders (over pairs of an order and its reverse);
            0 where every coalition was tried, NaN for a single order or pair.
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
        model: bare, or wrapped in DDP or ``torch.compile``; left as it was.
        params: rules, see :func:`~ignite_prune.core.selection.select`.
        data: batches, as Ignite's supervised trainer takes them.
        loss_fn: ``(output, target) -> scalar``, a mean over the batch.
        samples: orders of the units.
        seed: of the orders.
        prepare_batch: Ignite's ``(batch, device, non_blocking) -> (x, y)``.

    Raises:
        TypeError, ValueError: as :func:`ignite_prune.score`.

    Example:
        >>> net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 1))
        >>> data = [(torch.ones(2, 3), torch.zeros(2, 1))]
        >>> found = shapley_values(net, "0.weight", data, nn.functional.mse_loss)["0.weight"]
        >>> found.values.shape, bool((found.standard_error == 0).all())  # of 4 units every coalition is tried
        (torch.Size([4]), True)

    References:
        Ancona, Öztireli, Gross, 2020, arXiv 2006.01795.
    """
    from ignite_prune.core.selection import select, unwrap
    from ignite_prune.evidence.collection import Evidence

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
