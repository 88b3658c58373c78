"""Costs of a partly pruned model: parameters, FLOPs, or measured latency."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn

from ignite_prune._utils.copies import copy_of
from ignite_prune.core.selection import unwrap
from ignite_prune.core.undisturbed import undisturbed
from ignite_prune.structure.model_io import as_arguments
from ignite_prune.structure.slicing.model_edit import ModelEdit
from ignite_prune.structure.structure import Structure
from ignite_prune.structure.tracing.trace import misfit
from ignite_prune.structure.unit_group import Kept


class Cost(ABC):
    """Quantity that sparsity is a fraction of, instead of units: ``PruneHandler(structure=..., target=Flops())``."""

    measured: ClassVar[bool] = False
    """Whether the cost is measured by running the model: slow, and different at each call."""

    @abstractmethod
    def __call__(self, structure: Structure, kept: Kept) -> float:
        """Return the cost of the model with only the given units kept."""

    def whole(self, structure: Structure) -> float:
        """Return the cost of the original model, before any pruning or slicing."""
        return self(structure.origin, {})


@dataclass(frozen=True)
class Parameters(Cost):
    """Number of elements in all parameters of the model.

    Example:
        >>> from ignite_prune import prune_model, trace
        >>> net = nn.Sequential(nn.Linear(4, 80), nn.ReLU(), nn.Linear(80, 2))
        >>> structure = trace(net, torch.zeros(1, 4))
        >>> masks = prune_model(net, sparsity=0.5, structure=structure, target=Parameters())
        >>> structure.parameters(), structure.parameters(structure.kept(masks))
        (562, 275)
    """

    def __call__(self, structure: Structure, kept: Kept) -> float:
        return structure.parameters(kept)


@dataclass(frozen=True)
class Flops(Cost):
    """Floating-point operations of one forward pass over the inputs that the model was traced with."""

    def __call__(self, structure: Structure, kept: Kept) -> float:
        return structure.flops(kept)


class Latency(Cost):
    """Measured time of a forward pass in eval mode: the minimum over several runs of a sliced copy.

    Each update measures about a dozen copies. Measurements vary from run to run; under ``torch.distributed`` all ranks
    use the plan of rank 0.

    Args:
        model: the model that is pruned, before any slicing.
        example_inputs: inputs of the size that the model will be deployed with.
        runs: number of timed forward passes.

    Raises:
        ValueError: ``runs`` is less than 1.
    """

    measured = True

    def __init__(self, model: nn.Module, example_inputs: Any, *, runs: int = 10) -> None:
        if type(runs) is not int or runs < 1:
            raise ValueError(f"Argument runs should be an int of at least 1, but given {runs!r}")
        self._model, self._runs = unwrap(model), runs
        self._inputs = as_arguments(self._model, example_inputs)
        self._whole = self._seconds(self._model)

    def __call__(self, structure: Structure, kept: Kept) -> float:
        other = misfit(self._model, structure)
        if other is not None:
            raise ValueError(
                f"Latency was made with another model than the pruned one: its {other!r} has another shape"
            )
        copied = copy_of(self._model)
        ModelEdit(copied).slice(structure.indices(kept))
        return self._seconds(copied)

    def whole(self, structure: Structure) -> float:
        return self._whole

    @torch.no_grad()
    def _seconds(self, model: nn.Module) -> float:
        args, kwargs = self._inputs
        best = float("inf")
        with undisturbed(model):
            for _ in range(self._runs + 1):  # the first run is a warm-up
                start = time.perf_counter()
                model(*args, **kwargs)
                if torch.cuda.is_available():
                    torch.cuda.synchronize()
                best = min(best, time.perf_counter() - start)
        return best
