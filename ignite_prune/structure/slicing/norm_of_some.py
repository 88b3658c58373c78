"""A norm over some of the channels of a masked model, as the sliced model has it.

A masked model normalises over its zeros too, the sliced one over the channels that are left, so they are only
comparable if the masked one leaves the zeros out. The norm's module may permute its input, or compute its mean in its
own way, so the functions that it calls are changed, not the module.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

_MEANS = (torch.mean, Tensor.mean, torch.var, Tensor.var, torch.std, Tensor.std, torch.var_mean, torch.std_mean)
_LAST = (F.layer_norm, F.rms_norm, torch.layer_norm, torch.rms_norm)
_SECOND = (F.group_norm, torch.group_norm)
_OF_WEIGHTS = (F.batch_norm, torch.batch_norm)


class NormOfSome(nn.Module):
    """A norm over some of the channels; the others are 0 in its output, as their weights are.

    Args:
        norm: the norm over all channels, with masked weights.
        stay: the channels to normalise over, bool.
    """

    def __init__(self, norm: nn.Module, stay: Tensor) -> None:
        super().__init__()
        self.norm, self._stay = norm, stay

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        with _OverSome(self._stay):
            return self.norm(*args, **kwargs)


class _OverSome(TorchFunctionMode):
    """Leaves channels out of means and norms over a dimension of the channels.

    Args:
        stay: the channels to normalise over, bool.
    """

    def __init__(self, stay: Tensor) -> None:
        super().__init__()
        self._size, self._left = len(stay), stay.nonzero().squeeze(1)

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        named = dict(kwargs or {})
        if func in _MEANS and (dim := self._along(args, named)) is not None:
            return func(self._some(args[0], dim), *args[1:], **named)
        if func in _LAST:
            return self._norm(func, -1, args, named)
        if func in _SECOND:
            return self._norm(func, 1, args, named)
        if func in _OF_WEIGHTS and args and args[0].shape[-1] == self._size:
            found = func(self._some(args[0], -1), *args[1:], **named)
            return torch.zeros_like(args[0]).index_copy(-1, self._left.to(found.device), found)
        return func(*args, **named)

    def _along(self, args: tuple[Any, ...], named: Mapping[str, Any]) -> int | None:
        """Return the dimension of the channels that a mean is over, or None."""
        dim = named.get("dim", args[1] if len(args) > 1 else None)
        dims = dim if isinstance(dim, (list, tuple)) else [dim]
        return next((d for d in dims if type(d) is int and args[0].shape[d] == self._size), None)

    def _some(self, x: Tensor, dim: int) -> Tensor:
        return x.index_select(dim, self._left.to(x.device))

    def _norm(self, func: Callable[..., Any], dim: int, args: tuple[Any, ...], named: dict[str, Any]) -> Any:
        """Return a norm of the channels that are left, and 0 for the others."""
        x = args[0] if args else named.pop("input")
        if x.shape[dim] != self._size:
            return func(x, *args[1:], **named)
        rest = [self._part(each) for each in args[1:]]
        named = {name: self._part(each) for name, each in named.items()}
        found = func(self._some(x, dim), *rest, **named)
        return torch.zeros_like(x).index_copy(dim, self._left.to(x.device), found)

    def _part(self, value: Any) -> Any:
        """Return that part of an argument which belongs to the channels that are left."""
        if isinstance(value, Tensor) and value.shape == (self._size,):
            return value.index_select(0, self._left.to(value.device))
        if isinstance(value, (list, tuple)) and list(value) == [self._size]:
            return [len(self._left)]
        return value
