"""Tokens are removed from embeddings and heads; mapped ids give the logits of the tokens that are kept."""

import pytest
import torch
from torch import nn

from ignite_prune.structure import vocabulary
from ignite_prune.structure.token_map import _of_kept

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
    "T5ForConditionalGeneration": {
        **{"vocab_size": 20, "d_model": 16, "d_kv": 8, "d_ff": 8, "num_layers": 1, "num_heads": 2},
        **{"decoder_start_token_id": 0},
    },
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

    def of(ids):
        return {"input_ids": ids} | ({"decoder_input_ids": ids} if "decoder_start_token_id" in FAMILIES[name] else {})

    model(**of(IDS)).logits.square().mean().backward()
    optimizer.step()
    expected = model(**of(IDS)).logits
    tokens = vocabulary(model, KEEP, of(IDS), optimizer=optimizer)
    found = model(**of(tokens.new(IDS))).logits
    torch.testing.assert_close(found, expected[..., sorted(KEEP)])
    assert model.config.vocab_size == len(tokens) == 8
    if name == "GPT2LMHeadModel":
        assert model.lm_head.weight is model.transformer.wte.weight, "stays tied"
    again = kind(model.config)
    again.load_state_dict(model.state_dict())
    torch.testing.assert_close(again.eval()(**of(tokens.new(IDS))).logits, found)
    model(tokens.new(IDS), labels=tokens.new(IDS)).loss.backward()
    optimizer.step()


def test_ids_in_lists_of_configs_follow():
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    model = transformers.GPT2LMHeadModel(transformers.GPT2Config(**{**GPT, "eos_token_id": [2, 19]})).eval()
    lists = {
        "suppress_tokens": [-1, 4, 11],
        "begin_suppress_tokens": [4],
        "bad_words_ids": [[5, 7], [5, 8]],
        "force_words_ids": [[3], [[7, 5]]],
        "forced_eos_token_id": [19],
        "forced_decoder_ids": [[1, 11], [2, None]],
        "sequence_bias": {(5, 19): 2.0, (6,): 1.0},
        "lang_to_id": {"a": 7, "b": 8},
    }
    for name, value in lists.items():
        setattr(model.generation_config, name, value)
    before = dict(vars(model.generation_config))
    for gone in (19, 7):
        named = "forced_eos_token_id 19" if gone == 19 else "force_words_ids 7"
        with pytest.raises(ValueError, match=named):
            vocabulary(model, [each for each in KEEP if each != gone], IDS[1:])
    assert vars(model.generation_config) == before and model.config.eos_token_id == [2, 19]
    vocabulary(model, KEEP, IDS)  # [0, 1, 2, 3, 5, 7, 11, 19]
    found = {name: getattr(model.generation_config, name) for name in lists}
    assert found == {
        "suppress_tokens": [-1, 6],
        "begin_suppress_tokens": None,
        "bad_words_ids": [[4, 5]],
        "force_words_ids": [[3], [[5, 4]]],
        "forced_eos_token_id": [7],
        "forced_decoder_ids": [[1, 6], [2, None]],
        "sequence_bias": {(4, 7): 2.0},
        "lang_to_id": {"a": 5},
    }
    assert model.config.eos_token_id == model.generation_config.eos_token_id == [2, 7]


class Bytes(nn.Module):
    """A model whose other layers are as wide as its vocabulary."""

    def __init__(self, width=6, called=True):
        super().__init__()
        self.called = called
        self.tokens, self.up, self.down = nn.Embedding(20, width), nn.Linear(width, 20), nn.Linear(20, width)
        self.norm, self.lm_head, self.spare = nn.LayerNorm(20), nn.Linear(width, 20), nn.Linear(20, 20)

    def forward(self, x):
        x = self.tokens(x)
        y = self.norm(self.up(x).relu())
        y = self.spare(y) if self.called else y
        return {"logits": self.lm_head(x + self.down(y)), "hidden": y}


@pytest.mark.parametrize("width", [6, 20])
def test_the_head_is_found_among_layers_of_its_size(width):
    torch.manual_seed(0)
    model = Bytes(width).double()
    expected = model(IDS)
    tokens = vocabulary(model, KEEP, IDS)
    found = model(tokens.new(IDS))
    torch.testing.assert_close(found["logits"], expected["logits"][..., sorted(KEEP)])
    torch.testing.assert_close(found["hidden"], expected["hidden"])
    assert (model.lm_head.out_features, model.up.out_features, model.spare.out_features) == (8, 20, 20)


def test_a_head_that_is_not_known_is_to_be_named():
    model = Bytes(called=False)
    with pytest.raises(ValueError, match="does not call 'spare', .* head='lm_head'"):
        vocabulary(model, KEEP, IDS)
    with pytest.raises(ValueError, match="Argument head: there is no nn.Linear 'head' with 20 outputs"):
        vocabulary(model, KEEP, IDS, head="head")
    with pytest.raises(ValueError, match="does not run with 8 tokens: .* embedding= and head="):
        vocabulary(model, KEEP, IDS, head=["lm_head", "up"])
    assert model.lm_head.out_features == model.up.out_features == len(model.tokens.weight) == 20
    vocabulary(model, KEEP, IDS, head="lm_head")
    assert model.lm_head.out_features == 8
    shares = nn.Sequential(nn.Embedding(20, 6), nn.Linear(6, 20), nn.LogSoftmax(-1))
    with pytest.raises(ValueError, match="outputs still have 20 entries"):
        vocabulary(shares, KEEP, IDS)
    assert shares[0].num_embeddings == 20


def test_outputs_on_another_device():
    kept = torch.tensor([1, 3])
    found = _of_kept([torch.empty(2, 5, device="meta")], [torch.empty(2, 2, device="meta")], kept, 5)
    assert found[0].shape == (2, 2) and found[0].is_meta


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
