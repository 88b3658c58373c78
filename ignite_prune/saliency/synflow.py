"""SynFlow: synaptic flow, a criterion that needs no data and avoids collapsed layers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from ignite_prune._utils.arguments import check_is, check_positive
from ignite_prune.saliency.base import Informed
from ignite_prune.saliency.needs import SynapticFlow


@dataclass(frozen=True)
class SynFlow(Informed):
    r"""Synaptic flow, :math:`s = \theta \odot \partial R / \partial \theta`, :math:`R = 1^T f_{|\theta|}(1)`.

    Parameters are replaced by their absolute values and the input by ones; the score of a weight is the flow through
    it (float64, eval mode). An update prunes in ``rounds`` steps of equal density ratio and recomputes the flow at each
    step, so that no layer is emptied before the others. It needs no data, only the *shape* of an input: that of the
    first batch of ``data``, or of the first training batch.

    Args:
        rounds: number of steps of an update.
        bias: include the (absolute) biases, as the authors' code does; the paper's network has none.
        anytime: allow it on a network that is already pruned.

    Raises:
        TypeError, ValueError: ``rounds`` is not an int of at least 1, or ``bias`` or ``anytime`` not a bool.

    References:
        Tanaka, Kunin, Yamins, Ganguli, "Pruning neural networks without any data by iteratively conserving synaptic
        flow", 2020, arXiv 2006.05467.
    """

    rounds: int = 100
    bias: bool = True
    anytime: bool = False
    at_init: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_positive("rounds", self.rounds, whole=True)
        check_is("bias", self.bias, bool)
        check_is("anytime", self.anytime, bool)
        object.__setattr__(self, "once", not self.anytime)
        object.__setattr__(self, "steps", self.rounds)

    @property
    def need(self) -> SynapticFlow:
        return SynapticFlow(self.bias)

    def formula(self, weight: Tensor, evidence: Tensor) -> Tensor:
        return weight.abs().to(evidence.dtype) * evidence
