"""The families of transformers: heads and inner widths go as wholes, and modules and configs say so afterwards."""

import copy
from operator import attrgetter

import pytest
import torch

from ignite_prune import PruneHandler
from ignite_prune.structure import shrink, trace
from ignite_prune.structure.slicing.model_edit import ModelEdit

transformers = pytest.importorskip("transformers")
IDS = {"input_ids": torch.arange(12).view(2, 6)}
SMALL = {"vocab_size": 50, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
LLAMA = {**SMALL, "num_key_value_heads": 4}
MOBILE = {"depth_multiplier": 0.35, "image_size": 32}
SWIN = {"image_size": 32, "patch_size": 4, "embed_dim": 16, "depths": [2, 1], "num_heads": [2, 4], "window_size": 4}
T5 = {"vocab_size": 50, "d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4}
WHISPER = {
    **{"vocab_size": 50, "d_model": 32, "num_mel_bins": 8, "max_source_positions": 10, "max_target_positions": 16},
    **{f"{part}_{name}": n for part in ("encoder", "decoder") for name, n in (("attention_heads", 4), ("ffn_dim", 64))},
    **{"encoder_layers": 1, "decoder_layers": 1, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2},
    **{"decoder_start_token_id": 1},
}


def image():
    return torch.randn(2, 3, 32, 32, dtype=torch.float64)


def sound():
    return {"input_features": torch.randn(2, 8, 20, dtype=torch.float64), "decoder_input_ids": IDS["input_ids"]}


def of(kind, inputs, **config):
    """Return what builds a model of transformers, small and random, and its inputs."""

    def build():
        made = getattr(transformers, f"{kind}Config")(**config)
        return getattr(transformers, f"{kind}Model")(made).double(), inputs() if callable(inputs) else inputs

    return build


def crossing():
    return {**TEXT, "encoder_hidden_states": torch.randn(2, 5, 32, dtype=torch.float64)}


TEXT = {**IDS, "use_cache": False}
BOTH = {**TEXT, "decoder_input_ids": IDS["input_ids"]}
FAMILIES = {
    "ResNet": of("ResNet", image, embedding_size=8, hidden_sizes=[16, 32], depths=[2, 2], layer_type="bottleneck"),
    "ConvNeXt": of("ConvNext", image, hidden_sizes=[8, 16], depths=[1, 1], num_stages=2, patch_size=4),
    "MobileNetV2": of("MobileNetV2", image, **MOBILE),
    "ViT": of("ViT", image, image_size=32, patch_size=8, **{k: v for k, v in SMALL.items() if k != "vocab_size"}),
    "Swin": of("Swin", image, **SWIN),
    "BERT": of("Bert", IDS, **SMALL),
    "DistilBERT": of("DistilBert", IDS, vocab_size=50, dim=32, n_layers=2, n_heads=4, hidden_dim=64),
    "GPT-2": of("GPT2", TEXT, vocab_size=50, n_embd=32, n_layer=2, n_head=4),
    "GPT-2, crossing": of("GPT2", crossing, vocab_size=50, n_embd=32, n_layer=2, n_head=4, add_cross_attention=True),
    "Llama": of("Llama", TEXT, **LLAMA),
    "Llama, grouped queries": of("Llama", TEXT, **{**LLAMA, "num_key_value_heads": 2}),
    "T5": of("T5", BOTH, **T5),
    "T5, gated": of("T5", BOTH, **T5, feed_forward_proj="gated-gelu"),
    "Whisper": of("Whisper", lambda: {**sound(), "use_cache": False}, **WHISPER),
}


def each(name, units, layers=(0, 1)):
    """Return a row a layer, from a name that leaves the layer's number open."""
    return {name.format(layer): units for layer in layers}


# Units before and after, by the weight that makes them; of heads, of inner neurons, of channels.
GROUPS = {
    "ResNet": {
        "embedder.embedder.convolution.weight": (8, 4),
        "encoder.stages.0.layers.0.shortcut.convolution.weight": (16, 8),
        **each("encoder.stages.0.layers.{}.layer.0.convolution.weight", (4, 2)),
        **each("encoder.stages.0.layers.{}.layer.1.convolution.weight", (4, 2)),
        **each("encoder.stages.1.layers.{}.layer.0.convolution.weight", (8, 4)),
        **each("encoder.stages.1.layers.{}.layer.1.convolution.weight", (8, 4)),
    },
    "ConvNeXt": {
        "encoder.stages.0.layers.0.pwconv1.weight": (32, 16),
        "encoder.stages.1.layers.0.pwconv1.weight": (64, 32),
    },
    "MobileNetV2": {
        "conv_stem.first_conv.convolution.weight": (16, 8),
        "conv_stem.reduce_1x1.convolution.weight": (8, 4),
        **each("layer.{}.expand_1x1.convolution.weight", (48, 24), range(3)),
        **each("layer.{}.expand_1x1.convolution.weight", (96, 48), range(3, 6)),
        **each("layer.{}.expand_1x1.convolution.weight", (144, 72), range(6, 10)),
        **each("layer.{}.expand_1x1.convolution.weight", (192, 96), range(10, 13)),
        **each("layer.{}.expand_1x1.convolution.weight", (336, 168), range(13, 16)),
        "layer.0.reduce_1x1.convolution.weight": (8, 4),
        "layer.2.reduce_1x1.convolution.weight": (16, 8),
        "layer.5.reduce_1x1.convolution.weight": (24, 12),
        "layer.9.reduce_1x1.convolution.weight": (32, 16),
        "layer.12.reduce_1x1.convolution.weight": (56, 28),
        "layer.15.reduce_1x1.convolution.weight": (112, 56),
    },
    "ViT": {
        **each("layers.{}.attention.q_proj.weight", (4, 2)),
        **each("layers.{}.mlp.fc1.weight", (64, 32)),
    },
    "Swin": {
        **each("encoder.layers.0.blocks.{}.attention.q_proj.weight", (2, 1)),
        **each("encoder.layers.0.blocks.{}.mlp.fc1.weight", (64, 32)),
        "encoder.layers.1.blocks.0.attention.q_proj.weight": (4, 2),
        "encoder.layers.1.blocks.0.mlp.fc1.weight": (128, 64),
    },
    "BERT": {
        **each("encoder.layer.{}.attention.self.query.weight", (4, 2)),
        **each("encoder.layer.{}.intermediate.dense.weight", (64, 32)),
    },
    "DistilBERT": {
        **each("transformer.layer.{}.attention.q_lin.weight", (4, 2)),
        **each("transformer.layer.{}.ffn.lin1.weight", (64, 32)),
    },
    "GPT-2": {
        **each("h.{}.attn.c_attn.weight[1]", (4, 2)),
        **each("h.{}.mlp.c_fc.weight[1]", (128, 64)),
    },
    "GPT-2, crossing": {
        **each("h.{}.attn.c_attn.weight[1]", (4, 2)),
        **each("h.{}.crossattention.c_attn.weight[1]", (4, 2)),
        **each("h.{}.mlp.c_fc.weight[1]", (128, 64)),
    },
    "Llama": {
        **each("layers.{}.self_attn.q_proj.weight", (4, 2)),
        **each("layers.{}.mlp.gate_proj.weight", (64, 32)),
    },
    "Llama, grouped queries": {
        **each("layers.{}.self_attn.q_proj.weight", (2, 1)),
        **each("layers.{}.mlp.gate_proj.weight", (64, 32)),
    },
    "T5": {  # a position's bias is shared: the heads of all layers go together
        "encoder.block.0.layer.0.SelfAttention.q.weight": (4, 2),
        "decoder.block.0.layer.0.SelfAttention.q.weight": (4, 2),
        "decoder.block.0.layer.1.EncDecAttention.q.weight": (4, 2),
        **each("encoder.block.{}.layer.1.DenseReluDense.wi.weight", (64, 32)),
        **each("decoder.block.{}.layer.2.DenseReluDense.wi.weight", (64, 32)),
    },
    "T5, gated": {
        "encoder.block.0.layer.0.SelfAttention.q.weight": (4, 2),
        "decoder.block.0.layer.0.SelfAttention.q.weight": (4, 2),
        "decoder.block.0.layer.1.EncDecAttention.q.weight": (4, 2),
        **each("encoder.block.{}.layer.1.DenseReluDense.wi_0.weight", (64, 32)),
        **each("decoder.block.{}.layer.2.DenseReluDense.wi_0.weight", (64, 32)),
    },
    "Whisper": {
        "encoder.conv1.weight": (32, 16),
        "encoder.layers.0.self_attn.k_proj.weight": (4, 2),
        "encoder.layers.0.fc1.weight": (64, 32),
        "decoder.layers.0.self_attn.k_proj.weight": (4, 2),
        "decoder.layers.0.encoder_attn.k_proj.weight": (4, 2),
        "decoder.layers.0.fc1.weight": (64, 32),
    },
}

# What modules and configs tell afterwards; the size of a head stays.
TOLD = {
    "ResNet": {"encoder.stages.0.layers.0.layer.1.convolution.in_channels": 2},
    "ConvNeXt": {"encoder.stages.0.layers.0.pwconv1.out_features": 16},
    "MobileNetV2": {"layer.0.conv_3x3.convolution.groups": 24},
    "ViT": {
        **each("layers.{}.attention.num_attention_heads", 2),
        **each("layers.{}.attention.head_dim", 8),
        "config.num_attention_heads": 2,
        "config.intermediate_size": 32,
    },
    "Swin": {
        "encoder.layers.0.blocks.1.attention.num_attention_heads": 1,
        "encoder.layers.1.blocks.0.attention.num_attention_heads": 2,
    },
    "BERT": {
        **each("encoder.layer.{}.attention.self.num_attention_heads", 2),
        **each("encoder.layer.{}.attention.self.all_head_size", 16),
        **each("encoder.layer.{}.attention.self.attention_head_size", 8),
        "config.num_attention_heads": 2,
        "config.intermediate_size": 32,
    },
    "DistilBERT": {
        **each("transformer.layer.{}.attention.n_heads", 2),
        **each("transformer.layer.{}.attention.dim", 32),
        "config.n_heads": 2,
        "config.hidden_dim": 32,
    },
    "GPT-2": {
        **each("h.{}.attn.split_size", 16),
        **each("h.{}.attn.num_heads", 2),
        **each("h.{}.attn.head_dim", 8),
        **each("h.{}.attn.embed_dim", 32),
        **each("h.{}.attn.c_attn.nf", 48),
        "config.num_attention_heads": 2,
        "config.n_inner": 64,
    },
    "GPT-2, crossing": {
        **each("h.{}.crossattention.split_size", 16),
        **each("h.{}.crossattention.c_attn.nf", 32),
        **each("h.{}.crossattention.q_attn.nf", 16),
    },
    "Llama": {
        "layers.0.mlp.intermediate_size": 32,
        "config.num_attention_heads": 2,
        "config.num_key_value_heads": 2,
        "config.intermediate_size": 32,
    },
    "Llama, grouped queries": {
        "layers.0.self_attn.num_key_value_groups": 2,
        "config.num_attention_heads": 2,
        "config.num_key_value_heads": 1,
    },
    "T5": {
        **each("encoder.block.{}.layer.0.SelfAttention.n_heads", 2),
        **each("decoder.block.{}.layer.1.EncDecAttention.inner_dim", 16),
        "encoder.config.num_heads": 2,
        "decoder.config.num_heads": 2,
        "config.num_heads": 2,
        "config.d_ff": 32,
    },
    "T5, gated": {"config.num_heads": 2, "config.d_ff": 32},
    "Whisper": {
        "encoder.layers.0.self_attn.num_heads": 2,
        "decoder.layers.0.encoder_attn.num_heads": 2,
        "config.encoder_attention_heads": 2,
        "config.decoder_attention_heads": 2,
        "config.encoder_ffn_dim": 32,
    },
}


def run(model, x):
    return model(**x)[0] if isinstance(x, dict) else model(x)[0]


def train(model, optimizer, x, masks):
    """Train two steps; what the masks prune stays 0."""
    for _ in range(2):
        optimizer.zero_grad()
        run(model, x).square().mean().backward()
        optimizer.step()
        mask(model, masks)


@torch.no_grad()
def mask(model, masks):
    for name, parameter in model.named_parameters():
        if name in masks:
            parameter.mul_(masks[name])


def kept(structure, share=lambda size: size // 2):
    """Return the units of every group that stay, all but a share of them, at random."""
    dice, stay = torch.Generator().manual_seed(0), {}
    for group in structure:
        stay[group.name] = torch.ones(group.size, dtype=torch.bool)
        stay[group.name][torch.randperm(group.size, generator=dice)[: share(group.size)]] = False
    return stay


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_shrinks(family):
    torch.manual_seed(0)
    model, x = FAMILIES[family]()
    keys, structure = list(model.state_dict()), trace(model, x)
    assert structure.unknown == ()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    masks = structure.masks(kept(structure))
    mask(model.train(), masks)
    train(model, optimizer, x, masks)
    expected = run(copy.deepcopy(model).eval(), x)
    report = shrink(model, masks, x, optimizer=optimizer, structure=structure)
    assert report.units == GROUPS[family]
    assert {name: attrgetter(name)(model) for name in TOLD[family]} == TOLD[family]
    assert list(model.state_dict()) == keys
    torch.testing.assert_close(run(model.eval(), x), expected, rtol=1e-10, atol=1e-10)
    assert all(state["exp_avg"].shape == parameter.shape for parameter, state in optimizer.state.items())
    train(model.train(), optimizer, x, {})


@pytest.mark.parametrize("family", ["Llama", "Llama, grouped queries", "T5", "T5, gated"])
def test_the_config_builds_the_shrunk_model(family):
    """Where a config tells the size of a head, it tells all."""
    model, x = FAMILIES[family]()
    structure = trace(model, x)
    shrink(model, structure.masks(kept(structure)), x, structure=structure)
    built = type(model)(model.config).double()
    built.load_state_dict(model.state_dict())
    torch.testing.assert_close(run(built.eval(), x), run(model.eval(), x), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("family", FAMILIES)
def test_everything_is_put_back(family):
    model, x = FAMILIES[family]()
    told = {name: attrgetter(name)(model) for name in TOLD[family]}
    config, expected = model.config.to_dict(), run(model.eval(), x)
    structure = trace(model, x)
    surgery = ModelEdit(model)
    surgery.slice(structure.indices(kept(structure)))
    surgery.undo()
    assert {name: attrgetter(name)(model) for name in told} == told and model.config.to_dict() == config
    assert torch.equal(run(model, x), expected)


def test_a_config_is_left_where_layers_differ():
    model, x = FAMILIES["BERT"]()
    structure = trace(model, x)
    stay = {name: torch.ones(structure.groups[name].size, dtype=torch.bool) for name in GROUPS["BERT"]}
    stay["encoder.layer.0.attention.self.query.weight"][:3] = False
    shrink(model, structure.masks(stay), x, structure=structure)
    heads = [layer.attention.self.num_attention_heads for layer in model.encoder.layer]
    assert heads == [1, 4] and model.config.num_attention_heads == 4


class GPT2Attention(transformers.models.gpt2.modeling_gpt2.GPT2Attention):
    pass


class Projection(transformers.pytorch_utils.Conv1D):
    pass


@pytest.mark.parametrize("part, kind", [("attn", GPT2Attention), ("attn.c_proj", Projection)])
def test_a_class_that_is_not_known_keeps_its_heads(part, kind):
    """The name of a class is not enough, nor are layers put into one: then nobody knows what its attributes mean."""
    model, x = FAMILIES["GPT-2"]()
    for block in model.h:
        block.get_submodule(part).__class__ = kind
    structure = trace(model, x)
    assert {name.split(".")[2] for name in structure.groups} == {"mlp"}
    assert "writes its size in the program" in structure.frozen["h.0.attn.c_attn.weight", 1]


def test_tracing_leaves_the_weights_alone():
    model, x = FAMILIES["MobileNetV2"]()
    held = {name: (id(tensor), tensor.clone()) for name, tensor in model.state_dict(keep_vars=True).items()}
    trace(model.train(), x)
    for name, tensor in model.state_dict(keep_vars=True).items():
        assert id(tensor) == held[name][0] and torch.equal(tensor, held[name][1])


def test_experts_in_one_parameter():
    torch.manual_seed(0)
    shape = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "vocab_size": 9}
    shape |= {"num_attention_heads": 2, "num_key_value_heads": 1, "num_local_experts": 3}
    model = transformers.MixtralForCausalLM(transformers.MixtralConfig(**shape))
    x = {"input_ids": torch.arange(8)[None]}
    structure = trace(model.eval(), x)
    name = "model.layers.0.mlp.experts.gate_up_proj[1]"
    assert (structure.groups[name].size, structure.groups[name].multiple) == (24, 8)
    pruner = PruneHandler(model, structure=structure, params="*.experts.*")
    pruner.step(0.4)
    report = shrink(model, pruner, x)
    assert report.units[name] == (24, 16) and report.error < 1e-5


def test_a_config_that_cannot_describe_the_sliced_model_is_told():
    torch.manual_seed(0)
    shape = {"hidden_size": 16, "intermediate_size": 12, "num_hidden_layers": 1, "vocab_size": 9}
    model = transformers.LlamaModel(transformers.LlamaConfig(**shape, num_attention_heads=4)).eval()
    x = {"input_ids": torch.arange(8)[None]}
    with pytest.warns(UserWarning, match=r"LlamaConfig refuses its sizes .*not a multiple.*load_shrunk"):
        shrink(model, {"layers.0.self_attn.q_proj.weight": [1]}, x)
    assert model.config.num_attention_heads == 3
