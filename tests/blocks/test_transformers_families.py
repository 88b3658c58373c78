"""The families of transformers: equal to forwards of the whole model as it is by then, ahead of each block."""

import copy

import pytest
import torch
from torch import nn

from ignite_prune import pattern, prune_blocks, repair, saliency
from ignite_prune.update.blocks.block_list import find_blocks

transformers = pytest.importorskip("transformers")
SMALL = {"vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 32}
GROUPED = SMALL | {"num_key_value_heads": 1}
OPT = {"ffn_dim": 32, "max_position_embeddings": 32, "word_embed_proj_dim": 16, "pad_token_id": 0}
T5 = {"vocab_size": 50, "d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_decoder_layers": 3, "num_heads": 2}
GPT2 = {"vocab_size": 50, "n_embd": 16, "n_layer": 3, "n_head": 2, "n_positions": 32, "bos_token_id": 0}
FAMILIES = {
    "gpt2": ("GPT2LMHeadModel", "GPT2Config", GPT2 | {"eos_token_id": 0}, "transformer.h.*"),
    "opt": ("OPTForCausalLM", "OPTConfig", SMALL | OPT, "model.decoder.layers.*"),
    "llama": ("LlamaForCausalLM", "LlamaConfig", GROUPED, "model.layers.*"),
    "mistral": ("MistralForCausalLM", "MistralConfig", GROUPED | {"sliding_window": 4}, "model.layers.*"),
    "qwen2": (
        "Qwen2ForCausalLM",
        "Qwen2Config",
        GROUPED | {"use_sliding_window": True, "max_window_layers": 1, "sliding_window": 4},  # two kinds of masks
        "model.layers.*",
    ),
    "mixtral": ("MixtralForCausalLM", "MixtralConfig", GROUPED | {"num_local_experts": 3}, "model.layers.*"),
    "bert": ("BertForMaskedLM", "BertConfig", SMALL, "bert.encoder.layer.*"),
    "t5": (
        "T5ForConditionalGeneration",
        "T5Config",
        T5 | {"decoder_start_token_id": 0},
        ["encoder.block.*", "decoder.block.*"],
    ),
    "t5 decoder": (
        "T5ForConditionalGeneration",
        "T5Config",
        T5 | {"decoder_start_token_id": 0},
        "decoder.block.*",
    ),
}


def data_of(family):
    generator = torch.Generator().manual_seed(1)
    batches = [{"input_ids": torch.randint(1, 50, (2, 8 + i), generator=generator)} for i in range(2)]
    for batch in batches:
        batch["attention_mask"] = torch.ones_like(batch["input_ids"])
        batch["attention_mask"][1, -3:] = 0
        if family.startswith("t5"):
            batch["decoder_input_ids"] = torch.randint(1, 50, (2, 6), generator=generator)
    return batches


@torch.no_grad()
def whole_forwards(model, blocks, data):
    for block in find_blocks(model, blocks).values():
        layers = [m for m in block.modules() if isinstance(m, nn.Linear) or type(m).__name__ == "Conv1D"]
        squares = dict.fromkeys(layers, 0)

        def add(layer, args, squares=squares):
            squares[layer] = squares[layer] + args[0].flatten(0, -2).square().sum(0)

        handles = [layer.register_forward_pre_hook(add) for layer in layers]
        for batch in data:
            model(**batch)
        for handle in handles:
            handle.remove()
        for layer in layers:
            weight = layer.weight if isinstance(layer, nn.Linear) else layer.weight.t()
            pruned = (weight.abs() * squares[layer].sqrt()).argsort(1)[:, : weight.shape[1] // 2]
            weight.scatter_(1, pruned, 0)


@pytest.mark.parametrize("family", FAMILIES)
def test_family(family):
    kind, config, given, blocks = FAMILIES[family]
    torch.manual_seed(0)
    model = getattr(transformers, kind)(getattr(transformers, config)(**given)).eval()
    exclude = ["*.experts.*", "*.gate.weight"] if family == "mixtral" else ()
    expected, data = copy.deepcopy(model), data_of(family)
    masks = prune_blocks(model, blocks, data=data, sparsity=0.5, exclude=exclude)
    whole_forwards(expected, blocks, data)
    assert masks.sparsity == 0.5 and model.config.to_dict() == expected.config.to_dict()
    for name, parameter in expected.named_parameters():
        assert torch.equal(parameter, model.get_parameter(name)), name


def test_gpt2_in_groups_along_the_inputs():
    """Conv1D stores inputs first; 2:4 by SparseGPT is chosen group by group on the updated weights there too."""
    torch.manual_seed(0)
    layer, x = transformers.pytorch_utils.Conv1D(6, 16), torch.randn(64, 16)
    linear = nn.Linear(16, 6)
    linear.load_state_dict({"weight": layer.weight.t(), "bias": layer.bias})
    given = {"data": [x], "sparsity": 0.5, "saliency": saliency.SparseGPT(), "repair": repair.SparseGPT()}
    prune_blocks(nn.Sequential(linear).eval(), "*", pattern=pattern.NofM(2, 4), **given)
    prune_blocks(nn.Sequential(layer).eval(), "*", pattern=pattern.NofM(2, 4), **given)
    torch.testing.assert_close(layer.weight.t(), linear.weight)
    assert torch.equal(layer.weight.t() == 0, linear.weight == 0)
