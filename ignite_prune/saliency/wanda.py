"""Wanda: weights times the norms of their inputs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ignite_prune.saliency.base import Informed
from ignite_prune.saliency.needs import InputNorms


@dataclass(frozen=True)
class Wanda(Informed):
    r"""Magnitude times the norm of the weight's input, :math:`s_{ij} = |W_{ij}| \, \|X_j\|_2`.

    The norm is over all samples and positions. Scores are only compared within an output row: all rows of a parameter
    get the same sparsity, and the allocation decides which (the paper's is ``Uniform()``, its successor's ``OWL()``).
    The inputs of a convolution are unfolded. Memory: three numbers per input; time: one pass over the inputs.

    Example:
        >>> import torch
        >>> inputs = torch.tensor([[0.0, 0.0], [9.0, 4.0], [3.0, 3.0]])  # sum, sum of squares and number of each
        >>> Wanda().formula(torch.tensor([[1.0, -1.0]]), inputs)
        tensor([[3., 2.]])

    References:
        Sun, Liu, Bair, Kolter, "A simple and effective pruning approach for large language models", 2023,
        arXiv 2306.11695.
    """

    @property
    def need(self) -> InputNorms:
        return InputNorms()

    def formula(self, weight: Tensor, evidence: Any) -> Tensor:
        scores: Tensor = weight.abs().mul_(evidence[1].sqrt().to(weight.dtype))
        return scores

    def row_dim(self, evidence: Any) -> int | None:
        return 1 if evidence.ndim == 3 and evidence.shape[2] == 1 and evidence.shape[1] > 1 else 0
