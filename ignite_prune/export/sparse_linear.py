"""A linear layer that multiplies by its kept weights alone, for inference."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

FORMATS = ("csr", "bsr", "semi_structured")


class SparseLinear(nn.Module):
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
        >>> layer = nn.Linear(4, 2)
        >>> _ = layer.weight.data.mul_(torch.tensor([[1, 0, 0, 0], [0, 0, 1, 0]]))
        >>> sparse, x = SparseLinear(layer).eval(), torch.randn(3, 4)
        >>> bool(torch.allclose(sparse(x), layer(x))), list(sparse.state_dict()), sparse.sparsity
        (True, ['weight', 'bias'], 0.75)
    """

    bias: nn.Parameter | None
    rows: Tensor
    columns: Tensor
    values: Tensor

    def __init__(self, layer: nn.Linear, form: str = "csr", block: tuple[int, int] = (1, 1)) -> None:
        super().__init__()
        if form not in FORMATS:
            raise ValueError(f"Argument form should be one of {', '.join(map(repr, FORMATS))}, but given {form!r}")
        self.in_features, self.out_features = layer.in_features, layer.out_features
        self.form, self.block = form, block
        self.register_parameter("bias", layer.bias)
        for name in ("rows", "columns", "values"):
            self.register_buffer(name, None, persistent=False)
        self._operand: tuple[Tensor, Tensor] | None = None
        self._store(layer.weight.detach())
        self.train(layer.training)

    def _store(self, weight: Tensor) -> None:
        self._operand = None
        if self.form == "semi_structured":
            self.values = weight.clone()
            return
        with _quiet():
            sparse = weight.to_sparse_csr() if self.form == "csr" else weight.to_sparse_bsr(self.block)
        index = torch.int32 if max(sparse.values().numel(), *weight.shape) < 2**31 else torch.int64
        self.rows, self.columns = sparse.crow_indices().to(index), sparse.col_indices().to(index)
        self.values = sparse.values()  # MKL takes int32 indices; int64 ones are converted at each product

    def operand(self) -> Tensor:
        """Return the weight as a sparse tensor; it is built again after the layer was moved, cast or loaded."""
        if self._operand is None or self._operand[0] is not self.values:
            self._operand = (self.values, self._built())
        return self._operand[1]

    def _built(self) -> Tensor:
        if self.form == "semi_structured":
            from torch.sparse import to_sparse_semi_structured

            return to_sparse_semi_structured(self.values)
        make = torch.sparse_csr_tensor if self.form == "csr" else torch.sparse_bsr_tensor
        with _quiet():
            return make(
                self.rows, self.columns, self.values, (self.out_features, self.in_features), check_invariants=False
            )

    def forward(self, x: Tensor) -> Tensor:
        """Return the layer's output, contiguous as a dense layer's.

        Raises:
            RuntimeError: the layer is in training mode.
        """
        if self.training:
            raise RuntimeError(
                "SparseLinear is for inference: call model.eval(), or train the dense model, export.to_dense(model)"
            )
        if self.form == "semi_structured":
            return F.linear(x, self.operand(), self.bias)
        out = (self.operand() @ x.reshape(-1, self.in_features).t()).t().contiguous()
        out = out if self.bias is None else out.add_(self.bias)
        return out.view(*x.shape[:-1], self.out_features)

    @property
    def weight(self) -> Tensor:
        """The dense weight, built at each access."""
        return self.values if self.form == "semi_structured" else self.operand().to_dense()

    @property
    def sparsity(self) -> float:
        """The fraction of zeros in the weight."""
        return 1 - int(self.values.count_nonzero()) / (self.in_features * self.out_features)

    def dense(self) -> nn.Linear:
        """Return an ``nn.Linear`` with this weight as a parameter, in the same mode."""
        layer = nn.Linear(self.in_features, self.out_features, bias=False, device="meta")
        layer.weight = nn.Parameter(self.weight.clone())
        layer.register_parameter("bias", self.bias)
        return layer.train(self.training)

    def extra_repr(self) -> str:
        form = self.form if self.form != "bsr" else f"bsr, block={self.block}"
        return f"{self.in_features}, {self.out_features}, bias={self.bias is not None}, {form}"

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_operand": None}  # a compressed tensor cannot be copied

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        destination[f"{prefix}weight"] = self.weight
        super()._save_to_state_dict(destination, prefix, keep_vars)

    def _load_from_state_dict(
        self,
        state_dict: Any,
        prefix: str,
        local_metadata: Any,
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        key = f"{prefix}weight"
        weight = state_dict.get(key)
        others = {name: value for name, value in state_dict.items() if name != key}
        super()._load_from_state_dict(others, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs)
        shape = (self.out_features, self.in_features)
        if weight is None:
            missing_keys.append(key)
        elif tuple(weight.shape) != shape:
            error_msgs.append(f"size mismatch for {key}: {tuple(weight.shape)} in the state_dict, {shape} in the model")
        else:
            self._store(weight.detach().to(self.values))


@contextmanager
def _quiet() -> Iterator[None]:
    """Ignore torch's note that compressed tensors are in beta, and that their invariants are not checked."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Sparse (CSR|BSR|invariant)")
        yield
