"""Attention heads: found in nn.MultiheadAttention, in hand-written attention and in transformers' models."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from ignite_prune.evidence.forward.observer import ForwardObserver


def heads(model, *args, exclude="embed", **kwargs):
    parameters = {n: p for n, p in model.named_parameters() if p.dim() > 1 and exclude not in n}
    found = []
    watch = ForwardObserver().subscribe(
        parameters, on_attention=found.append, on_layer_call=lambda name, use: inputs.setdefault(name, use.input)
    )
    inputs = {}
    with watch.installed(model):
        output = model(*args, **kwargs)
    return found, inputs, output, watch


def names(attention):
    return attention.output, attention.query, attention.key, attention.value, attention.packed


def numbers(attention):
    return attention.heads, attention.kv_heads, attention.head_size


def merged(context):
    return context.transpose(1, 2).flatten(2)


@pytest.mark.parametrize("need_weights", [False, True])
@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("kind", ["self", "cross", "other sizes", "unbatched", "added"])
def test_multihead_attention(kind, batch_first, need_weights):
    width = 12 if kind == "other sizes" else None
    added = kind == "added"
    model = nn.MultiheadAttention(
        16, 4, batch_first=batch_first, kdim=width, vdim=width, add_bias_kv=added, add_zero_attn=added
    )
    query = torch.randn(3, 5, 16)
    memory = query if kind in ("self", "unbatched", "added") else torch.randn(3, 6, width or 16)
    if kind == "unbatched":
        query = memory = query[0]
    elif not batch_first:
        query, memory = (
            (query.transpose(0, 1),) * 2 if memory is query else (query.transpose(0, 1), memory.transpose(0, 1))
        )
    (attention,), _, (output, _), watch = heads(model, query, memory, memory, need_weights=need_weights, exclude="bias")
    packed = (None, None, None, "in_proj_weight")
    apart = ("q_proj_weight", "k_proj_weight", "v_proj_weight", None)
    assert names(attention) == ("out_proj.weight", *(apart if width else packed))
    assert numbers(attention) == (4, 4, 4) and not watch.unknown
    context = attention.context
    assert context.shape == (1 if kind == "unbatched" else 3, 4, 5, 4)
    expected = model.out_proj(merged(context))
    if kind == "unbatched":
        expected = expected[0]
    elif not batch_first:
        expected = expected.transpose(0, 1)
    assert torch.allclose(output, expected, atol=1e-6)
    (gradient,) = torch.autograd.grad(output.square().sum(), context)
    direct = torch.autograd.grad(expected.square().sum(), context)[0]
    assert torch.allclose(gradient, direct, atol=1e-5)


def test_multihead_attention_gives_what_it_gives_unwatched():
    model = nn.MultiheadAttention(16, 4, batch_first=True, dropout=0.0)
    x = torch.randn(3, 5, 16)
    mask = torch.zeros(3, 5, dtype=torch.bool)
    mask[1, 3:] = True
    causal = torch.ones(5, 5, dtype=torch.bool).triu(1)
    for settings in ({}, {"need_weights": False}, {"key_padding_mask": mask}, {"attn_mask": causal}):
        _, _, (output, weights), _ = heads(model, x, x, x, **settings)
        expected, expected_weights = model(x, x, x, **settings)
        assert torch.equal(output, expected)
        assert weights is None or torch.equal(weights, expected_weights)


def test_gradient_hook_in_a_training_step():
    model = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
    gates = []

    def on_heads(attention):
        context = attention.context
        held = context.detach()
        context.register_hook(lambda gradient: gates.append((held * gradient).sum((-2, -1))))

    with ForwardObserver().subscribe({"out": model.self_attn.out_proj.weight}, on_attention=on_heads).installed(model):
        model(torch.randn(3, 4, 8)).square().sum().backward()
    assert [gate.shape for gate in gates] == [(3, 2)]


class Own(nn.Module):
    """Attention written by hand, in the ways it is written."""

    def __init__(self, attend, kv_heads=4, packed=False, bias=True):
        super().__init__()
        self.attend = attend
        self.kv_heads = kv_heads
        if packed:
            self.qkv = nn.Linear(16, (4 + 2 * kv_heads) * 4)
        else:
            self.q, self.k, self.v = nn.Linear(16, 16), nn.Linear(16, kv_heads * 4), nn.Linear(16, kv_heads * 4)
        self.o = nn.Linear(16, 16)
        self.packed = packed

    def forward(self, x):
        if self.packed:
            q, k, v = self.qkv(x).split([16, 4 * self.kv_heads, 4 * self.kv_heads], dim=-1)
        else:
            q, k, v = self.q(x), self.k(x), self.v(x)
        q, k, v = (t.unflatten(-1, (-1, 4)).transpose(1, 2) for t in (q, k, v))
        y = self.attend(q, k, v)
        return self.o(y.transpose(1, 2).reshape(x.shape))


def repeat(k, times):
    batch, count, length, size = k.shape
    return k[:, :, None].expand(batch, count, times, length, size).reshape(batch, count * times, length, size)


def rotate(x):
    first, second = x[..., :2], x[..., 2:]
    angle = torch.linspace(0, 1, x.shape[-2])[:, None].expand(-1, 4)
    return x * angle.cos() + torch.cat((-second, first), -1) * angle.sin()


def by_hand(q, k, v):
    scores = torch.matmul(q, k.transpose(-1, -2)) * 0.5 + torch.zeros(5, 5)
    return F.dropout(scores.softmax(-1, dtype=torch.float32).to(q.dtype), 0.1) @ v


WAYS = {
    "sdpa": (F.scaled_dot_product_attention, 4),
    "sdpa, grouped": (lambda q, k, v: F.scaled_dot_product_attention(q, k, v, enable_gqa=True), 2),
    "sdpa, repeated": (lambda q, k, v: F.scaled_dot_product_attention(q, repeat(k, 2), repeat(v, 2)), 2),
    "sdpa, repeat_interleave": (
        lambda q, k, v: F.scaled_dot_product_attention(q, k.repeat_interleave(4, 1), v.repeat_interleave(4, 1)),
        1,
    ),
    "sdpa, rotary": (lambda q, k, v: F.scaled_dot_product_attention(rotate(q), rotate(k), v), 4),
    "by hand": (by_hand, 4),
    "by hand, rotary and repeated": (lambda q, k, v: by_hand(rotate(q), repeat(rotate(k), 2), repeat(v, 2)), 2),
    "normed queries": (
        lambda q, k, v: by_hand(F.layer_norm(q, (4,)), F.layer_norm(k, (4,)), v),
        4,
    ),
    "masked": (lambda q, k, v: (q @ k.mT).masked_fill(torch.ones(5, 5).triu(1) > 0, -1e9).softmax(-1) @ v, 4),
    "soft capped": (lambda q, k, v: (torch.tanh(q @ k.mT / 5) * 5).softmax(-1) @ v, 4),
    "head mask": (lambda q, k, v: ((q @ k.mT).softmax(-1) * torch.ones(1, 4, 1, 1)) @ v, 4),
    "gated": (lambda q, k, v: F.scaled_dot_product_attention(q, k, v) * torch.ones(1, 4, 1, 1), 4),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("packed", [False, True])
def test_own_attention(way, packed):
    attend, kv_heads = WAYS[way]
    model = Own(attend, kv_heads, packed).eval()
    (attention,), inputs, output, _ = heads(model, torch.randn(3, 5, 16))
    made = (None, None, None, "qkv.weight") if packed else ("q.weight", "k.weight", "v.weight", None)
    assert names(attention) == ("o.weight", *made)
    assert numbers(attention) == (4, kv_heads, 4)
    assert torch.allclose(merged(attention.context), inputs["o.weight"])
    assert torch.autograd.grad(output.sum(), attention.context)[0].shape == (3, 4, 5, 4)


def test_keys_and_values_of_one_weight():
    class Shared(Own):
        def __init__(self):
            super().__init__(F.scaled_dot_product_attention)
            self.k, self.v = nn.Linear(16, 32), None

        def forward(self, x):
            k, v = self.k(x).chunk(2, -1)
            q, k, v = (t.unflatten(-1, (-1, 4)).transpose(1, 2) for t in (self.q(x), k, v))
            return self.o(self.attend(q, k, v).transpose(1, 2).reshape(x.shape))

    (attention,), *_ = heads(Shared(), torch.randn(3, 5, 16))
    assert names(attention) == ("o.weight", "q.weight", "k.weight", "k.weight", None)
    assert numbers(attention) == (4, 4, 4)


def test_projections_by_convolution():
    class Pixels(nn.Module):
        def __init__(self):
            super().__init__()
            self.qkv, self.o = nn.Conv2d(8, 24, 1), nn.Conv2d(8, 8, 1)

        def forward(self, x):
            q, k, v = self.qkv(x).flatten(2).transpose(1, 2).unflatten(-1, (3, 2, 4)).permute(2, 0, 3, 1, 4)
            y = F.scaled_dot_product_attention(q, k, v)
            return self.o(y.permute(0, 1, 3, 2).reshape(x.shape))

    (attention,), *_ = heads(Pixels(), torch.randn(3, 8, 2, 5))
    assert names(attention) == ("o.weight", None, None, None, "qkv.weight") and numbers(attention) == (2, 2, 4)


def test_weights_that_are_not_selected_are_none():
    model = Own(by_hand, 2 * 2)
    found = []
    with ForwardObserver().subscribe({"o.weight": model.o.weight}, on_attention=found.append).installed(model):
        model(torch.randn(3, 5, 16))
    assert names(found[0]) == ("o.weight", None, None, None, None) and numbers(found[0]) == (4, 4, 4)
    with ForwardObserver().subscribe({"k.weight": model.k.weight}, on_attention=found.append).installed(model):
        model(torch.randn(3, 5, 16))
    assert names(found[1]) == (None, None, "k.weight", None, None) and len(found) == 2


def test_softmax_of_a_classifier_is_no_attention():
    model = nn.Sequential(nn.Linear(4, 3), nn.Softmax(-1), nn.Linear(3, 2))
    found, *_ = heads(model, torch.randn(2, 4))
    assert not found


def transformer(kind, implementation):
    transformers = pytest.importorskip("transformers")
    size = {"num_hidden_layers": 2, "num_attention_heads": 4, "hidden_size": 32, "intermediate_size": 48}
    ids = {"input_ids": torch.randint(0, 50, (3, 7))}
    if kind == "BERT":
        config, inputs = transformers.BertConfig(vocab_size=50, **size), ids
        model = transformers.BertModel
    elif kind == "ViT":
        config, inputs = (
            transformers.ViTConfig(image_size=16, patch_size=8, **size),
            {"pixel_values": torch.randn(3, 3, 16, 16)},
        )
        model = transformers.ViTModel
    elif kind == "GPT-2":
        tokens = {"bos_token_id": 0, "eos_token_id": 0}
        config = transformers.GPT2Config(vocab_size=50, n_positions=16, n_embd=32, n_layer=2, n_head=4, **tokens)
        inputs, model = ids, transformers.GPT2Model
    else:
        config = transformers.LlamaConfig(vocab_size=50, num_key_value_heads=2, **size)
        inputs, model = ids, transformers.LlamaModel
    config._attn_implementation = implementation
    return model(config).eval(), inputs


PROJECTIONS = {  # the first layer's output, query, key, value, packed weights, and the keys' heads
    "BERT": (
        "encoder.layer.0.attention.output.dense.weight",
        *(f"encoder.layer.0.attention.self.{n}.weight" for n in ("query", "key", "value")),
        None,
        4,
    ),
    "ViT": (*(f"layers.0.attention.{n}_proj.weight" for n in "oqkv"), None, 4),
    "GPT-2": ("h.0.attn.c_proj.weight", None, None, None, "h.0.attn.c_attn.weight", 4),
    "Llama": (*(f"layers.0.self_attn.{n}_proj.weight" for n in "oqkv"), None, 2),
}


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@pytest.mark.parametrize("kind", PROJECTIONS)
@pytest.mark.parametrize("masked", [False, True])
def test_transformers(kind, implementation, masked):
    model, inputs = transformer(kind, implementation)
    if masked and kind == "ViT":
        pytest.skip("a ViT takes no mask")
    if masked:
        inputs["attention_mask"] = torch.tensor([[1] * 7, [1] * 5 + [0] * 2, [1] * 3 + [0] * 4])
    found, into, output, watch = heads(model, **inputs, exclude="embed")
    *expected, kv_heads = PROJECTIONS[kind]
    if kind == "ViT":  # their names have changed with the versions of transformers
        assert len([name for name in names(found[0]) if name]) == 4
    else:
        assert names(found[0]) == tuple(expected)
    assert [numbers(a) for a in found] == [(4, kv_heads, 8)] * 2
    for attention in found:
        assert torch.allclose(merged(attention.context), into[attention.output].view(3, -1, 32))
        assert attention.context.shape[0] == 3
        assert torch.autograd.grad(output[0].square().sum(), attention.context, retain_graph=True)[0].abs().sum() > 0
    assert torch.equal(output[0], model(**inputs)[0])
    assert set(watch.unknown) <= {"wte.weight", "wpe.weight"}


@pytest.mark.parametrize("kind", ["BERT", "GPT-2", "Llama"])
def test_transformers_in_training_with_checkpointing(kind):
    model, inputs = transformer(kind, "sdpa")
    model.train().gradient_checkpointing_enable({"use_reentrant": False})
    found, _, output, _ = heads(model, **inputs, use_cache=False) if kind != "BERT" else heads(model, **inputs)
    assert len(found) == 2
    output[0].sum().backward()
    assert all(p.grad is not None for n, p in model.named_parameters() if "attn" in n or "attention.self" in n)


@pytest.mark.parametrize("kind", PROJECTIONS)
def test_transformers_activation_behind_the_feed_forward_layer(kind):
    model, inputs = transformer(kind, "sdpa")
    name, last = {
        "BERT": ("encoder.layer.0.intermediate.dense.weight", "encoder.layer.0.output.dense.weight"),
        "ViT": ("layers.0.mlp.fc1.weight", "layers.0.mlp.fc2.weight"),
        "GPT-2": ("h.0.mlp.c_fc.weight", "h.0.mlp.c_proj.weight"),
        "Llama": ("layers.0.mlp.gate_proj.weight", None),
    }[kind]
    parameters = dict(model.named_parameters())
    if name not in parameters:
        pytest.skip("named otherwise in this version of transformers")
    points, into = {}, {}
    watch = ForwardObserver().subscribe(
        {name: parameters[name], **({last: parameters[last]} if last else {})},
        on_layer_call=lambda n, use: into.setdefault(n, use),
        on_activation=lambda n, z, *_: points.setdefault(n, z.clone()),
    )
    with watch.installed(model):
        model(**inputs)
    if last:
        assert torch.equal(points[name].flatten(0, -2), into[last].input.flatten(0, -2))
    else:
        assert torch.equal(points[name], F.silu(F.linear(into[name].input, parameters[name])))
