"""Packed sequences as padded ones, for tracing.

The number of rows of a packed sequence, and how often a recurrent layer iterates, depend on data, which
``torch.export`` cannot follow. Which units are coupled does not depend on the positions, and an export computes no
values, so every sequence is taken as if it had the full length, and the rows of all as those of one sequence.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence
from torch.overrides import TorchFunctionMode


class _PaddedRecurrent(nn.RNNBase):
    """A recurrent layer; the class of a module is a subclass of this and of the layer's own."""

    def forward(self, x: Tensor | PackedSequence, hidden: Any = None) -> Any:
        if not isinstance(x, PackedSequence):
            return super().forward(x, hidden)
        batch = x.data.shape[0] // x.batch_sizes.shape[0]
        several, sequence = isinstance(hidden, tuple), 0 if self.batch_first else 1
        states = [each[:, :1] for each in (hidden if several else [] if hidden is None else [hidden])]
        first = None if not states else tuple(states) if several else states[0]
        out, last = super().forward(x.data.unsqueeze(sequence), first)
        last = [each.expand(-1, batch, -1) for each in (last if isinstance(last, tuple) else (last,))]
        packed = PackedSequence(out.squeeze(sequence), x.batch_sizes, x.sorted_indices, x.unsorted_indices)
        return packed, tuple(last) if len(last) > 1 else last[0]


class _LSTM(_PaddedRecurrent, nn.LSTM):
    pass


class _GRU(_PaddedRecurrent, nn.GRU):
    pass


class _RNN(_PaddedRecurrent, nn.RNN):
    pass


_KINDS: dict[type[nn.Module], type[nn.Module]] = {nn.LSTM: _LSTM, nn.GRU: _GRU, nn.RNN: _RNN}


def use_padded_recurrent(model: nn.Module) -> None:
    """Let the recurrent layers of a model take packed sequences as padded ones, in place."""
    for module in model.modules():
        module.__class__ = _KINDS.get(type(module), module.__class__)


class PaddedSequences(TorchFunctionMode):
    """Packs and pads sequences as if each had the full length, so that no size depends on data."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        name = getattr(func, "__name__", "")
        if name == "_pack_padded_sequence":
            x, _, batch_first = args
            batch, length = x.shape[:2] if batch_first else x.shape[1::-1]
            return x.flatten(0, 1), torch.full((length,), batch)
        if name == "_pad_packed_sequence":
            data, sizes, batch_first, *_ = args
            batch, length = data.shape[0] // sizes.shape[0], sizes.shape[0]
            padded = data.view(*((batch, length) if batch_first else (length, batch)), *data.shape[1:])
            return padded, torch.full((batch,), length)
        return func(*args, **(kwargs or {}))
