"""Slimming: an L1 penalty on the scales of BatchNorm layers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn
from torch.optim import Optimizer

from ignite_prune.core.selection import named_parameters, unwrap
from ignite_prune.handlers.regularisers.lasso import Lasso
from ignite_prune.handlers.regularisers.param_groups import build_strengths
from ignite_prune.pattern import Unstructured
from ignite_prune.regularise.units import units_of
from ignite_prune.schedule import Schedule


class Slimming(Lasso):
    r"""Penalises the scales of BatchNorm layers, :math:`\lambda \sum |\gamma|`, so that channels fade out.

    Afterwards ``saliency.BatchNormScale()`` prunes the channels of the least :math:`|\gamma|`. By default the paper's
    subgradient :math:`\lambda\,\mathrm{sign}(\gamma)` is added to the gradients before every step; the proximal form,
    :math:`\gamma \leftarrow \mathrm{sign}(\gamma) \max(0, |\gamma| - \eta\lambda)` after it, reaches exactly 0.

    Args:
        model: bare, DDP-wrapped or compiled.
        params: None for the weights of every ``BatchNorm*d`` and ``SyncBatchNorm``; rules, such as ``nn.LayerNorm``; or
            group dicts ``{"params": ..., any of strength, exclude}``.
        strength: :math:`\lambda`, at least 0 (the paper's is 1e-4), or a schedule of it in the attached event's unit.
        proximal: the proximal form, or else the gradient form.
        optimizer: the optimizer(s) that train the parameters; None for whichever optimizer does.
        exclude: rules for what to leave alone.

    Raises:
        TypeError, ValueError: a bad argument; a model without BatchNorm layers.

    Example:
        >>> import torch
        >>> from ignite.engine import create_supervised_trainer
        >>> model = nn.Sequential(nn.Linear(8, 4), nn.BatchNorm1d(4))
        >>> trainer = create_supervised_trainer(
        ...     model, torch.optim.SGD(model.parameters(), lr=0.1), nn.functional.mse_loss)
        >>> slimming = Slimming(model, strength=1.0, proximal=True)
        >>> slimming.attach(trainer)
        >>> _ = trainer.run([(torch.randn(6, 8), torch.zeros(6, 4))] * 10, max_epochs=2)
        >>> trainer.state.slimming
        {'penalty': 0.0, 'zero': 1.0}

    References:
        Liu, Li, Shen, Huang, Yan, Zhang, "Learning efficient convolutional networks through network slimming", 2017,
        arXiv 1708.06519.
    """

    NAME = "slimming"

    def __init__(
        self,
        model: nn.Module,
        params: Any = None,
        *,
        strength: float | Schedule,
        proximal: bool = False,
        optimizer: Optimizer | Sequence[Optimizer] | None = None,
        exclude: Any = (),
    ) -> None:
        model = unwrap(model)
        params = nn.modules.batchnorm._BatchNorm if params is None else params
        groups = build_strengths(model, params, strength=strength, exclude=exclude)
        everything, units = named_parameters(model), []
        for group in groups:
            group["by_size"] = False
            units.append([units_of(name, everything[name], Unstructured()) for name in group["params"]])
        super().__init__(model, optimizer, groups, units, proximal)
