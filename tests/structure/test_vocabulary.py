"""Tokens are removed from embeddings and heads; mapped ids give the logits of the tokens that are kept."""

import pytest
import torch
from torch import nn

from ignite_prune.structure import vocabulary

KEEP = [0, 1, 2, 19, 5, 7, 11, 3]
IDS = torch.tensor([[5, 19, 2], [3, 0, 11]])
SIZES = {"vocab_size": 20, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
GPT = {
    "vocab_size": 20,
    "n_embd": 16,
    "n_layer": 1,
    "n_head": 2,
    "n_positions": 8,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
FAMILIES = {
    "LlamaForCausalLM": {**SIZES, "max_position_embeddings": 8},
    "GPT2LMHeadModel": GPT,
    "BertForMaskedLM": {**SIZES, "max_position_embeddings": 8},
}


@pytest.mark.parametrize("name", FAMILIES)
def test_logits_of_kept_tokens_are_equal(name):
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    kind = getattr(transformers, name)
    config = kind.config_class(**FAMILIES[name])
    model = kind(config).eval()
    optimizer = torch.optim.Adam(model.parameters())
    model(IDS).logits.square().mean().backward()
    optimizer.step()
    expected = model(IDS).logits
    tokens = vocabulary(model, KEEP, IDS, optimizer=optimizer)
    found = model(tokens.new(IDS)).logits
    torch.testing.assert_close(found, expected[..., sorted(KEEP)])
    assert model.config.vocab_size == len(tokens) == 8
    if name == "GPT2LMHeadModel":
        assert model.lm_head.weight is model.transformer.wte.weight, "stays tied"
    again = kind(model.config)
    again.load_state_dict(model.state_dict())
    torch.testing.assert_close(again.eval()(tokens.new(IDS)).logits, found)
    model(tokens.new(IDS), labels=tokens.new(IDS)).loss.backward()
    optimizer.step()


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Embedding(20, 6, padding_idx=3), nn.Linear(6, 20))


def test_special_tokens_get_their_new_ids():
    model = net()
    tokens = vocabulary(model, torch.tensor([9, 3, 4]), torch.tensor([4, 9]))
    assert model[0].padding_idx == 0 and model[0].num_embeddings == 3 and model[1].out_features == 3
    assert tokens.old(tokens.new(torch.tensor([9, 3, -100]))).tolist() == [9, 3, -100]
    assert tokens.report.units == {"0": (20, 3)}
    with pytest.raises(ValueError, match="Token 8 is not in the smaller vocabulary of 3 tokens"):
        tokens.new(torch.tensor([8]))


@pytest.mark.parametrize(
    "keep, error, said",
    [
        ([4, 9], ValueError, "should contain the special tokens of the model: padding_idx 3"),
        ([3, 20], ValueError, r"ids in \[0, 20\), but given 20"),
        ([3, 4], ValueError, "contains token 9, which is not in keep"),
        ([], TypeError, "sequence of token ids"),
        ([0.5], TypeError, "sequence of token ids"),
    ],
)
def test_what_cannot_be_kept_is_refused_and_nothing_changes(keep, error, said):
    model = net()
    with pytest.raises(error, match=said):
        vocabulary(model, keep, torch.tensor([4, 9]))
    assert model[0].num_embeddings == 20 and model[0].padding_idx == 3 and len(model[0].weight) == 20


def test_a_model_that_uses_the_size_otherwise_is_put_back():
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.tokens, self.head = nn.Embedding(9, 4), nn.Linear(4, 9)

        def forward(self, x):
            return self.head(self.tokens(x)) / self.head.out_features

    model = Scaled()
    with pytest.raises(ValueError, match="differs by"):
        vocabulary(model, [1, 2], torch.tensor([1, 2]))
    assert model.tokens.weight.shape == (9, 4) and model.head.out_features == 9
