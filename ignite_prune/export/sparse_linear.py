"""A linear layer that multiplies by its kept weights alone, for inference."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from ignite_prune.export.sparse_weight import SparseWeight


class SparseLinear(SparseWeight):
    """The inference of an ``nn.Linear`` with a sparse weight: the same outputs, parameter names and state_dict.

    It computes :math:`(W x^T)^T + b`, with W the sparse operand on the left, which the CPU kernels are written for;
    ``F.linear`` with a sparse weight is slower than a dense product up to a sparsity of 95 %. The weight is not a
    parameter and is not trained: a forward pass in training mode raises.

    Args:
        layer: the layer whose weight is taken; its bias is shared.
        form: ``"csr"``; ``"bsr"``, with ``block``; or ``"semi_structured"``, for 2:4 sparsity on CUDA.
        block: rows and columns of a block, which divide the weight's.

    Attributes:
        in_features: as of the layer.
        out_features: as of the layer.

    Raises:
        ValueError: ``form`` is unknown, or ``block`` does not divide the weight's shape.

    Example:
        >>> import torch
        >>> layer = nn.Linear(4, 2)
        >>> _ = layer.weight.data.mul_(torch.tensor([[1, 0, 0, 0], [0, 0, 1, 0]]))
        >>> sparse, x = SparseLinear(layer).eval(), torch.randn(3, 4)
        >>> bool(torch.allclose(sparse(x), layer(x))), list(sparse.state_dict()), sparse.sparsity
        (True, ['weight', 'bias'], 0.75)
    """

    def __init__(self, layer: nn.Linear, form: str = "csr", block: tuple[int, int] = (1, 1)) -> None:
        super().__init__(layer, form, block)
        self.in_features, self.out_features = layer.in_features, layer.out_features

    def forward(self, x: Tensor) -> Tensor:
        """Return the layer's output, contiguous as a dense layer's.

        Raises:
            RuntimeError: the layer is in training mode.
        """
        self._check_mode()
        if self.form == "semi_structured":
            return F.linear(x, self.operand(), self.bias)
        out = (self.operand() @ x.reshape(-1, self.in_features).t()).t().contiguous()
        out = out if self.bias is None else out.add_(self.bias)
        return out.view(*x.shape[:-1], self.out_features)

    def dense(self) -> nn.Linear:
        """Return an ``nn.Linear`` with this weight as a parameter, in the same mode."""
        layer = nn.Linear(self.in_features, self.out_features, bias=False, device="meta")
        self._as_dense(layer)
        return layer

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}, bias={self.bias is not None}, {self._described_form()}"
