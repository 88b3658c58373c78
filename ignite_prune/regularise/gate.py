"""Gates: learnt tensors that decide which weights a layer uses."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from ignite_prune._utils.arguments import check_finite
from ignite_prune._utils.topk import keep_top
from ignite_prune.regularise.soft import shrunk, straight_through


class Gate(ABC):
    """A function from a weight and a learnt tensor to the weight that a layer uses. Frozen and stateless.

    Autograd differentiates :meth:`work` and :meth:`penalty`, so subclasses define no gradients.
    """

    @abstractmethod
    def start(self, weight: Tensor) -> Tensor:
        """Return the initial value of the learnt tensor."""

    @abstractmethod
    def work(self, weight: Tensor, learnt: Tensor) -> Tensor:
        """Return the weight that the layer uses, of the same shape; 0 where the weight is 0."""

    @abstractmethod
    def penalty(self, learnt: Tensor) -> Tensor:
        """Return the penalty, a scalar that the regulariser's strength multiplies; smaller if less is kept."""


@dataclass(frozen=True)
class SoftMovement(Gate):
    r"""A score for each entry: :math:`W' = W \odot [\sigma(S) > \tau]`, penalty :math:`\mathrm{mean}\,\sigma(S)`.

    The gradient of a score is straight-through, :math:`\partial L/\partial S = \partial L/\partial W' \odot W`: the
    score of an entry that moves away from 0 increases. The sparsity results from the strength of the penalty, which is
    often above 1.

    Args:
        threshold: :math:`\tau`, in (0, 1).
        start_at: initial scores; :math:`\sigma(0) = 1/2`.
        min_density: fraction of each parameter that is always kept (the best scores), so that no layer is emptied.

    Raises:
        ValueError: an argument is out of its range.

    Example:
        >>> gate = SoftMovement()
        >>> gate.work(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([1.0, -9.0, 1.0]))
        tensor([1., 0., 3.])

    References:
        Sanh, Wolf, Rush, "Movement pruning: adaptive sparsity by fine-tuning", 2020, arXiv 2005.07683.
    """

    threshold: float = 0.1
    start_at: float = 0.0
    min_density: float = 0.005

    def __post_init__(self) -> None:
        check_finite("start_at", self.start_at)
        for name in ("threshold", "min_density"):
            value = check_finite(name, getattr(self, name))
            if not 0 < value < 1:
                raise ValueError(f"Argument {name} should be in (0, 1), but given {value!r}")

    def start(self, weight: Tensor) -> Tensor:
        return torch.full_like(weight, self.start_at, requires_grad=False)

    def work(self, weight: Tensor, learnt: Tensor) -> Tensor:
        kept = learnt.detach().sigmoid() > self.threshold
        least = max(1, int(self.min_density * kept.numel()))
        if kept.numel() and int(kept.count_nonzero()) < least:
            if not bool(learnt.isfinite().all()):
                raise ValueError("The learnt scores have values that are NaN or infinite; has training diverged?")
            (kept,) = keep_top([learnt.detach], [None], [kept.numel()], least)
        return weight * straight_through(kept, learnt)

    def penalty(self, learnt: Tensor) -> Tensor:
        return learnt.sigmoid().mean()


@dataclass(frozen=True)
class SoftThreshold(Gate):
    r"""A threshold for each parameter: :math:`W' = \mathrm{sign}(W) \max(0, |W| - \sigma(s))`, penalty :math:`s^2 / 2`.

    The penalty moves :math:`s` from below towards 0, which raises the threshold; the gradient of the loss opposes it,
    with a different strength in each layer, so that each layer reaches a different sparsity.

    Args:
        start_at: initial :math:`s`, below 0; :math:`\sigma(-8) = 0.0003`. Small thresholds have small gradients.

    Raises:
        ValueError: ``start_at`` is not below 0.

    Example:
        >>> SoftThreshold().work(torch.tensor([1.0, -0.25]), torch.tensor(0.0))
        tensor([0.5000, -0.0000])

    References:
        Kusupati et al., "Soft threshold weight reparameterization for learnable sparsity", 2020, arXiv 2002.03231.
    """

    start_at: float = -8.0

    def __post_init__(self) -> None:
        if check_finite("start_at", self.start_at) >= 0:
            raise ValueError(f"Argument start_at should be below 0, but given {self.start_at!r}")

    def start(self, weight: Tensor) -> Tensor:
        return torch.full((), self.start_at, dtype=weight.dtype, device=weight.device)

    def work(self, weight: Tensor, learnt: Tensor) -> Tensor:
        return shrunk(weight, learnt.sigmoid())

    def penalty(self, learnt: Tensor) -> Tensor:
        return learnt.square() / 2
