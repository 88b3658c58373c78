"""``nn.MultiheadAttention`` with the number of heads read from its weights, so that heads can be removed."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class HeadsAttention(nn.MultiheadAttention):
    """``nn.MultiheadAttention`` that reads the number of heads from its weights, not from the embedding's width.

    ``nn.MultiheadAttention`` requires ``num_heads * head_dim == embed_dim``, so it fails once a head is removed.
    Tracing replaces it by this class, and so does slicing if heads are removed: parameter names, arguments and outputs
    are the same. A 3-D ``attn_mask``, with one mask per head, is not supported.
    """

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Compute attention, as ``nn.MultiheadAttention`` does.

        Raises:
            ValueError: ``is_causal`` is given without ``attn_mask``.
        """
        if is_causal and attn_mask is None:
            raise ValueError("Argument is_causal only describes attn_mask; attn_mask should be given too")
        is_batched, along = query.dim() == 3, 1 if self.batch_first else 0
        if not is_batched:
            query, key, value = (each.unsqueeze(1 - along) for each in (query, key, value))
            key_padding_mask = None if key_padding_mask is None else key_padding_mask.unsqueeze(0)
        if is_causal and key_padding_mask is None and not need_weights:
            attn_mask = None
        else:
            is_causal = False
        q, k, v = self._projected(query, key, value, along)
        bias = _bias(attn_mask, key_padding_mask, q, k, key.shape[along])
        p = self.dropout if self.training else 0.0
        weights = None
        if need_weights:
            weights = F.dropout(_weights(q, k, bias), p, training=self.training)
            out = weights @ v
            weights = weights.mean(1) if average_attn_weights else weights
        else:
            out = F.scaled_dot_product_attention(q, k, v, bias, p, is_causal)
        out = self.out_proj(out.transpose(1, 2).flatten(2))
        out = out if self.batch_first else out.transpose(0, 1)
        if is_batched:
            return out, weights
        return out.squeeze(1 - along), None if weights is None else weights.squeeze(0)

    def _projected(self, query: Tensor, key: Tensor, value: Tensor, along: int) -> list[Tensor]:
        """Return the projected queries, keys and values, each ``(batch, heads, length, head_dim)``."""
        packed = self.in_proj_weight is not None
        weights = (
            self.in_proj_weight.chunk(3) if packed else (self.q_proj_weight, self.k_proj_weight, self.v_proj_weight)
        )
        biases: Any = (None,) * 3 if self.in_proj_bias is None else self.in_proj_bias.chunk(3)
        parts = [F.linear(x, w, b) for x, w, b in zip((query, key, value), weights, biases)]
        if not along:
            parts = [part.transpose(0, 1) for part in parts]
        if self.bias_k is not None and self.bias_v is not None:
            for i, more in ((1, self.bias_k), (2, self.bias_v)):
                parts[i] = torch.cat([parts[i], more.expand(len(parts[i]), -1, -1)], 1)
        if self.add_zero_attn:
            parts[1:] = [F.pad(part, (0, 0, 0, 1)) for part in parts[1:]]
        return [part.view(*part.shape[:2], -1, self.head_dim).transpose(1, 2) for part in parts]


def _bias(attn_mask: Tensor | None, padding: Tensor | None, q: Tensor, k: Tensor, keys: int) -> Tensor | None:
    """Return the additive mask of the attention scores, ``(batch or 1, 1, queries, all keys)``, or None.

    Args:
        attn_mask: ``(queries, keys)``.
        padding: ``(batch, keys)``.
        q: queries, ``(batch, heads, queries, head_dim)``.
        k: keys, including those that ``bias_k`` and ``add_zero_attn`` append.
        keys: number of keys given by the caller.
    """
    batch, _, queries, _ = q.shape
    found = None
    for name, mask, shape, spread in (
        ("attn_mask", attn_mask, (queries, keys), (1, 1, queries, -1)),
        ("key_padding_mask", padding, (batch, keys), (batch, 1, 1, -1)),
    ):
        if mask is None:
            continue
        if tuple(mask.shape) != shape:
            raise ValueError(
                f"Argument {name} should be of the shape {shape}, but given {tuple(mask.shape)}; heads may have been "
                "pruned, so a mask per head is not supported"
            )
        is_bool = mask.dtype == torch.bool
        if not (is_bool or mask.is_floating_point()):
            raise TypeError(f"Argument {name} should be of torch.bool or floating point, but given {mask.dtype}")
        added = torch.zeros_like(mask, dtype=q.dtype).masked_fill(mask, -math.inf) if is_bool else mask
        added = F.pad(added, (0, k.shape[-2] - keys)).view(spread)
        found = added if found is None else found + added
    return found


def _weights(q: Tensor, k: Tensor, bias: Tensor | None) -> Tensor:
    products = (q / math.sqrt(q.shape[-1])) @ k.transpose(-2, -1)
    return torch.softmax(products if bias is None else products + bias, -1)


def use_heads_attention(model: nn.Module) -> None:
    """Turn every ``nn.MultiheadAttention`` of a model into :class:`HeadsAttention`, in place."""
    for module in model.modules():
        if type(module) is nn.MultiheadAttention:
            module.__class__ = HeadsAttention
