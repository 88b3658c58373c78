"""The importance of attention heads."""

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
    r"""How much the loss depends on a head, :math:`I_h = E_x \left|Att_h^T \, \partial L/\partial Att_h\right|`.

    That is the gradient of a gate on the head. One score a head, for every projection the head reads or writes
    (``Head(size=...)``; with grouped queries a key's or value's score is that of its whole group). Heads are seen in
    the flow of a batch: ``nn.MultiheadAttention``, and any module that calls ``scaled_dot_product_attention`` or
    multiplies a softmax with values, as transformers' BERT, ViT, GPT-2 and Llama do.

    Args:
        normalize: divide by the layer's L2 norm, so that layers compare.
        per_sample: each sample's own magnitude; False sums over the batch first: Neural Compressor's ``abs_gradient``.

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
