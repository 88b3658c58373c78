"""Layers that multiply by their kept weights alone, for inference."""

from __future__ import annotations

import warnings
from abc import abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

FORMATS = ("csr", "bsr", "semi_structured")


class SparseWeight(nn.Module):
    """A layer with a sparse matrix in the place of its weight: the same parameter names and state_dict.

    The weight is not a parameter and is not trained: a forward pass in training mode raises.

    Args:
        layer: the layer whose weight is taken; its bias is shared.
        form: ``"csr"``; ``"bsr"``, with ``block``; or ``"semi_structured"``, for 2:4 sparsity on CUDA.
        block: rows and columns of a block, which divide the weight's.

    Raises:
        ValueError: ``form`` is unknown, or ``block`` does not divide the weight's shape.
    """

    bias: nn.Parameter | None
    rows: Tensor
    columns: Tensor
    values: Tensor

    def __init__(self, layer: Any, form: str = "csr", block: tuple[int, int] = (1, 1)) -> None:
        super().__init__()
        if form not in FORMATS:
            raise ValueError(f"Argument form should be one of {', '.join(map(repr, FORMATS))}, but given {form!r}")
        self.form, self.block, self.shape = form, block, tuple(layer.weight.shape)
        self.register_parameter("bias", layer.bias)
        for name in ("rows", "columns", "values"):
            self.register_buffer(name, None, persistent=False)
        self._operand: tuple[Tensor, Tensor] | None = None
        self._store(layer.weight.detach())
        self.train(layer.training)

    @abstractmethod
    def dense(self) -> nn.Module:
        """Return the dense layer, with this weight as a parameter, in the same mode."""

    def _store(self, weight: Tensor) -> None:
        self._operand, weight = None, weight.flatten(1)
        if self.form == "semi_structured":
            self.values = weight.clone()
            return
        with _quiet():
            sparse = weight.to_sparse_csr() if self.form == "csr" else weight.to_sparse_bsr(self.block)
        index = torch.int32 if max(sparse.values().numel(), *weight.shape) < 2**31 else torch.int64
        self.rows, self.columns = sparse.crow_indices().to(index), sparse.col_indices().to(index)
        self.values = sparse.values()  # MKL takes int32 indices; int64 ones are converted at each product

    def operand(self) -> Tensor:
        """Return the weight as a sparse matrix; it is built again after the layer was moved, cast or loaded."""
        if self._operand is None or self._operand[0] is not self.values:
            self._operand = (self.values, self._built())
        return self._operand[1]

    def _built(self) -> Tensor:
        if self.form == "semi_structured":
            from torch.sparse import to_sparse_semi_structured

            return to_sparse_semi_structured(self.values)
        make = torch.sparse_csr_tensor if self.form == "csr" else torch.sparse_bsr_tensor
        size = (self.shape[0], self.shape[1])
        with _quiet():
            return make(self.rows, self.columns, self.values, size, check_invariants=False)

    def _check_mode(self) -> None:
        if self.training:
            raise RuntimeError(
                f"{type(self).__name__} is for inference: call model.eval(), or train the dense model, "
                "export.to_dense(model)"
            )

    @property
    def weight(self) -> Tensor:
        """The dense weight, built at each access."""
        weight = self.values if self.form == "semi_structured" else self.operand().to_dense()
        return weight.view(self.shape)

    @property
    def sparsity(self) -> float:
        """The fraction of zeros in the weight."""
        return 1 - int(self.values.count_nonzero()) / (int(self.shape[0]) * int(self.shape[1]))

    def _as_dense(self, layer: nn.Module) -> nn.Module:
        layer.weight = nn.Parameter(self.weight.clone())
        layer.register_parameter("bias", self.bias)
        return layer.train(self.training)

    def _described_form(self) -> str:
        return self.form if self.form != "bsr" else f"bsr, block={self.block}"

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
        if weight is None:
            missing_keys.append(key)
        elif tuple(weight.shape) != self.shape:
            error_msgs.append(
                f"size mismatch for {key}: {tuple(weight.shape)} in the state_dict, {self.shape} in the model"
            )
        else:
            self._store(weight.detach().to(self.values))


def check_dense(model: nn.Module) -> None:
    """Raise ValueError if a model has sparse layers, which exporters do not know."""
    for name, each in model.named_modules():
        if isinstance(each, SparseWeight):
            kind = type(each).__name__
            raise ValueError(f"Layer {name!r} is a {kind}, which cannot be exported; call export.to_dense(model)")


@contextmanager
def _quiet() -> Iterator[None]:
    """Ignore torch's note that compressed tensors are in beta, and that their invariants are not checked."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Sparse (CSR|BSR|invariant)")
        yield
