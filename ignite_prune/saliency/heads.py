"""HeadImportance: sensitivity of the loss to attention heads."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ignite_prune._utils.arguments import check_is
from ignite_prune.saliency.base import Informed
from ignite_prune.saliency.needs import HeadGates


@dataclass(frozen=True)
class HeadImportance(Informed):
    r"""Sensitivity of the loss to a head, :math:`I_h = E_x \left|Att_h^T \, \partial L/\partial Att_h\right|`.

    This is the absolute gradient of a gate on the head's output. One score per head, for each of its query, key, value
    and output projections (``Head(size=...)``; with grouped-query attention a key or value head has the score of its
    whole group). Heads are found in a forward pass: in ``nn.MultiheadAttention``, and in any module that calls
    ``scaled_dot_product_attention`` or multiplies a softmax with values, as BERT, ViT, GPT-2 and Llama of
    ``transformers`` do.

    Args:
        normalize: divide by the L2 norm over the heads of a layer, so that layers are comparable.
        per_sample: average the absolute gradients of single samples; False takes the absolute value of the batch's
            sum, as Neural Compressor's ``abs_gradient`` does.

    Raises:
        TypeError: an argument is not a bool.

    Example:
        >>> import torch
        >>> HeadImportance().formula(torch.zeros(2, 4), torch.tensor([3.0, 4.0]))
        tensor([0.6000, 0.8000])

    References:
        Michel, Levy, Neubig, "Are sixteen heads really better than one?", 2019, arXiv 1905.10650.
    """

    normalize: bool = True
    per_sample: bool = True
    some_layers: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_is("normalize", self.normalize, bool)
        check_is("per_sample", self.per_sample, bool)

    @property
    def need(self) -> HeadGates:
        return HeadGates(self.per_sample)

    def formula(self, weight: Tensor, evidence: Tensor) -> Tensor:
        return evidence / (torch.linalg.vector_norm(evidence) + 1e-20) if self.normalize else evidence
