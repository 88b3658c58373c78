"""A 1×1 convolution that multiplies by its kept weights alone, for inference."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from ignite_prune.export.sparse_weight import SparseWeight

Pointwise = nn.Conv1d | nn.Conv2d | nn.Conv3d


class SparseConv(SparseWeight):
    """The inference of a 1×1 convolution with a sparse weight: a product of matrices over all positions.

    Args:
        layer: an ``nn.Conv1d``, ``nn.Conv2d`` or ``nn.Conv3d`` of kernel size 1, without padding, of one group.
        form: ``"csr"``; ``"bsr"``, with ``block``; or ``"semi_structured"``, for 2:4 sparsity on CUDA.
        block: rows and columns of a block, which divide the weight's.

    Raises:
        ValueError: the layer is another convolution, ``form`` is unknown, or ``block`` does not divide the weight.

    Example:
        >>> import torch
        >>> layer = nn.Conv2d(4, 2, 1)
        >>> sparse, x = SparseConv(layer).eval(), torch.randn(3, 4, 5, 5)
        >>> bool(torch.allclose(sparse(x), layer(x), atol=1e-6)), list(sparse.state_dict())
        (True, ['weight', 'bias'])
    """

    def __init__(self, layer: Pointwise, form: str = "csr", block: tuple[int, int] = (1, 1)) -> None:
        if not is_pointwise(layer):
            raise ValueError(
                f"Argument layer should be a 1×1 convolution without padding and groups, but given {layer}"
            )
        super().__init__(layer, form, block)
        self.in_channels, self.out_channels, self.stride = layer.in_channels, layer.out_channels, layer.stride
        self.kind: Any = type(layer)

    def forward(self, x: Tensor) -> Tensor:
        """Return the layer's output.

        Raises:
            RuntimeError: the layer is in training mode.
        """
        self._check_mode()
        if x.dim() == len(self.stride) + 1:  # without a batch dimension
            return self.forward(x.unsqueeze(0)).squeeze(0)
        if any(step > 1 for step in self.stride):
            everything = (slice(None), slice(None))
            x = x[everything + tuple(slice(None, None, step) for step in self.stride)]
        by_channel = x.transpose(0, 1)
        columns = by_channel.reshape(self.in_channels, -1)
        if self.form == "semi_structured":
            out = F.linear(columns.t(), self.operand()).t()
        else:
            out = self.operand() @ columns
        out = out.reshape(self.out_channels, *by_channel.shape[1:])
        if self.bias is not None:
            out = out.add_(self.bias.view(-1, *(1,) * (out.dim() - 1)))
        return out.transpose(0, 1).contiguous()

    def dense(self) -> nn.Module:
        """Return a convolution with this weight as a parameter, in the same mode."""
        size = (1,) * len(self.stride)
        return self._as_dense(
            self.kind(self.in_channels, self.out_channels, size, self.stride, bias=False, device="meta")
        )

    def extra_repr(self) -> str:
        stride = "" if set(self.stride) == {1} else f"stride={self.stride}, "
        bias = self.bias is not None
        return f"{self.in_channels}, {self.out_channels}, {stride}bias={bias}, {self._described_form()}"


def is_pointwise(layer: nn.Module) -> bool:
    """Return whether a layer is a convolution of kernel size 1, without padding, of one group."""
    if type(layer) not in (nn.Conv1d, nn.Conv2d, nn.Conv3d):
        return False
    assert isinstance(layer, Pointwise)
    padded = layer.padding not in ("valid", "same") and any(layer.padding)
    return set(layer.kernel_size) == {1} and layer.groups == 1 and not padded
