"""torch's attention without the width that it is told: the same answer, and heads that go."""

import itertools

import pytest
import torch
from torch import nn

from ignite_prune import shrink, trace
from ignite_prune.structure.tracing.heads_attention import HeadsAttention
from tests.structure.zoo import MODELS

LAYERS = list(itertools.product((False, True), repeat=4))  # batch first, bias, bias_kv and zero_attn, other widths
CALLS = list(
    itertools.product((None, bool, float), *[(False, True)] * 5)
)  # mask, padding, weights, each, batch, causal


@pytest.mark.parametrize("batch_first, bias, more, other", LAYERS)
def test_the_same_answer(batch_first, bias, more, other):
    torch.manual_seed(0)
    inner = 5 if other else None
    layer = nn.MultiheadAttention(8, 2, 0, bias, more, more, inner, inner, batch_first, dtype=torch.float64).eval()
    for parameter in layer.parameters():
        nn.init.normal_(parameter)
    for kind, padded, weights, average, is_batched, causal in CALLS:
        if causal and kind is None:
            continue
        x = [torch.randn(3, 4, width, dtype=torch.float64) for width in (8, inner or 8, inner or 8)]
        padding = torch.tensor([False, False, False, True]).expand(3, 4)
        mask = torch.ones(4, 4, dtype=torch.bool).triu(1)
        if kind is float:
            padding, mask = (
                torch.zeros_like(m, dtype=torch.float64).masked_fill(m, -torch.inf) for m in (padding, mask)
            )
        if not batch_first:
            x = [each.transpose(0, 1) for each in x]
        if not is_batched:
            x, padding = [each.select(0 if batch_first else 1, 0) for each in x], padding[0]
        options = {
            "key_padding_mask": padding if padded else None,
            "need_weights": weights,
            "attn_mask": None if kind is None else mask,
            "average_attn_weights": average,
            "is_causal": causal,
        }
        layer.__class__ = nn.MultiheadAttention
        expected = layer(*x, **options)
        layer.__class__ = HeadsAttention
        found = layer(*x, **options)
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-10)


def test_a_mask_of_each_head_is_refused():
    layer = nn.MultiheadAttention(8, 2, batch_first=True)
    layer.__class__ = HeadsAttention
    x = torch.randn(3, 4, 8)
    for mask in (torch.zeros(6, 4, 4), torch.zeros(4, 3), torch.zeros(4, 1)):
        with pytest.raises(ValueError, match="heads may have been pruned"):
            layer(x, x, x, attn_mask=mask)
    with pytest.raises(TypeError, match="uint8"):
        layer(x, x, x, attn_mask=torch.zeros(4, 4, dtype=torch.uint8))
    with pytest.raises(ValueError, match="attn_mask should be given"):
        layer(x, x, x, is_causal=True)


@pytest.mark.filterwarnings("ignore:.*nested tensors")
def test_padded_batches_take_no_kernel_that_reads_the_heads_from_the_width():
    torch.manual_seed(0)
    model = nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 4, 32, batch_first=True), 2).double().eval()
    x, padding = torch.randn(2, 5, 16, dtype=torch.float64), torch.zeros(2, 5, dtype=torch.bool)
    padding[0, 3:] = True
    structure = trace(model, {"src": x, "src_key_padding_mask": padding})
    kept = {group.name: torch.arange(group.size) < group.size // 2 for group in structure}
    masks = structure.masks(kept)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.mul_(masks.get(name, 1))
        expected = model(x, src_key_padding_mask=padding)
        shrink(model, masks, {"src": x, "src_key_padding_mask": padding}, structure=structure)
        found = model(x, src_key_padding_mask=padding)
    assert model.layers[0].self_attn.num_heads == 2 and model.layers[0].self_attn.in_proj_weight.shape == (24, 16)
    torch.testing.assert_close(found[~padding], expected[~padding], rtol=1e-10, atol=1e-10)


def test_a_subclass_of_it_stays_as_it_is():
    class Mine(nn.MultiheadAttention):
        pass

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.attention, self.out = Mine(16, 4, batch_first=True), nn.Linear(16, 3)

        def forward(self, x):
            return self.out(self.attention(x, x, x)[0])

    structure = trace(Model(), torch.randn(2, 5, 16))
    assert [group.name for group in structure] == ["attention.out_proj.weight"]
    assert ("attention.in_proj_weight", 0) in structure.frozen


@pytest.mark.parametrize("name", ["attention", "encoder and decoder", "attention, any width", "encoder"])
def test_heads_are_found(name):
    model, x = MODELS[name]()
    sizes = {group.size for group in trace(model.double(), x) if "attn" in group.name or "attend" in group.name}
    assert 4 in sizes
