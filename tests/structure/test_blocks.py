"""Whole blocks as units: scores, and models without some that equal the models that skip them."""

import copy

import pytest
import torch
import torch.nn.functional as F
import transformers
from torch import nn

from ignite_prune import PruneHandler
from ignite_prune.structure import blocks


class Net(nn.Module):
    """Residual blocks, the strengths of which are known."""

    def __init__(self, strengths=(1.0, 0.0, 0.3, 2.0), width=6):
        super().__init__()
        self.num_layers = len(strengths)
        self.stem, self.head = nn.Linear(4, width), nn.Linear(width, 3)
        self.layers = nn.ModuleList(Block(width, number, each) for number, each in enumerate(strengths))

    def forward(self, x):
        x = self.stem(x)
        for layer in self.layers:
            x = layer(x)
        return self.head(x)


class Block(nn.Module):
    def __init__(self, width, number, strength):
        super().__init__()
        self.layer_idx, self.fc = number, nn.Linear(width, width)
        with torch.no_grad():
            self.fc.weight.mul_(strength)
            self.fc.bias.mul_(strength)

    def forward(self, x):
        return x + self.fc(x)


@pytest.fixture
def net():
    torch.manual_seed(0)
    return Net().double()


def data():
    torch.manual_seed(1)
    return [(torch.randn(5, 4).double(), torch.randint(0, 3, (5,))) for _ in range(3)]


def test_scores_are_what_their_formulas_say(net):
    found, batches = blocks(net, "layers.*"), data()
    cosine, taylor = found.cosine(batches), found.taylor(batches, F.cross_entropy)
    loss = found.loss(batches, F.cross_entropy)
    assert list(cosine) == list(loss) == ["layers.0", "layers.1", "layers.2", "layers.3"]
    # A block whose branch is 0 is the identity: it scores 0 by each of them.
    assert max(abs(scores["layers.1"]) for scores in (cosine, taylor, loss)) < 1e-12
    with torch.no_grad():
        x = torch.cat([net.stem(x) for x, _ in batches])
        expected = 1 - F.cosine_similarity(x, net.layers[0](x), dim=-1).mean()
    assert cosine["layers.0"] == pytest.approx(float(expected))
    without = Net().double()
    without.load_state_dict(net.state_dict())
    without.layers[3] = nn.Identity()
    with torch.no_grad():
        change = [float(F.cross_entropy(without(x), y) - F.cross_entropy(net(x), y)) for x, y in batches]
    assert loss["layers.3"] == pytest.approx(sum(change) / 3)
    first = []
    for x, y in batches:  # the last block: its output goes to the head alone
        h = net.layers[2](net.layers[1](net.layers[0](net.stem(x))))
        out = net.layers[3](h)
        (g,) = torch.autograd.grad(F.cross_entropy(net.head(out), y), out)
        first.append(abs(float((g * (out - h).detach()).sum())))
    assert taylor["layers.3"] == pytest.approx(sum(first) / 3)
    assert all(parameter.grad is None for parameter in net.parameters())


def test_dropped_equals_skipped_and_all_that_counts_follows(net):
    optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
    x, y = data()[0]
    F.cross_entropy(net(x), y).backward()
    optimizer.step()
    found = blocks(net, "layers.*")
    with found.skipped(["layers.1", "layers.2"]):
        expected = net(x)
    report = found.drop(2, x, scores={"layers.0": 4, "layers.1": 1, "layers.2": 2, "layers.3": 3}, optimizer=optimizer)
    assert torch.equal(net(x), expected) and report.error == 0
    assert report.units == {"layers": (4, 2)} and report.parameters == (30 + 21 + 4 * 42, 30 + 21 + 2 * 42)
    assert report.flops == (2 * 5 * (24 + 18 + 4 * 36), 2 * 5 * (24 + 18 + 2 * 36))
    assert type(net.layers) is nn.ModuleList and net.num_layers == 2 and found.names == ["layers.0", "layers.1"]
    assert [layer.layer_idx for layer in net.layers] == [0, 1]
    assert {id(each) for each in optimizer.param_groups[0]["params"]} == {id(each) for each in net.parameters()}
    assert set(optimizer.state) == set(net.parameters())
    fresh = Net((1.0, 1.0)).double()
    fresh.load_state_dict(net.state_dict())
    assert torch.equal(fresh(x), expected)


def config(kind, **more):
    sizes = {"hidden_size": 16, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 32}
    return kind(**sizes, vocab_size=50, bos_token_id=1, eos_token_id=2, pad_token_id=0, **more)


MODELS = {
    "BERT": (transformers.BertModel, lambda: config(transformers.BertConfig), "encoder.layer.*"),
    "GPT-2": (
        transformers.GPT2LMHeadModel,
        lambda: transformers.GPT2Config(
            n_embd=16, n_layer=4, n_head=2, vocab_size=50, n_positions=20, bos_token_id=1, eos_token_id=2
        ),
        "transformer.h.*",
    ),
    "Llama": (
        transformers.LlamaForCausalLM,
        lambda: config(transformers.LlamaConfig, num_key_value_heads=1),
        "model.layers.*",
    ),
}


@pytest.mark.parametrize("kind", MODELS)
def test_language_models_lose_layers_and_are_built_again_from_their_config(kind):
    made, configured, rule = MODELS[kind]
    torch.manual_seed(0)
    model, tokens = made(configured()).eval(), torch.randint(3, 50, (2, 7))
    found = blocks(model, rule)
    scores = found.cosine([{"input_ids": tokens}])
    report = found.drop(2, {"input_ids": tokens}, scores=scores)
    assert report.error < 1e-6 and model.config.num_hidden_layers == 2 and len(found.names) == 2
    again = made(copy.deepcopy(model.config)).eval()
    again.load_state_dict(model.state_dict())
    with torch.no_grad():
        assert torch.allclose(again(input_ids=tokens)[0], model(input_ids=tokens)[0], atol=1e-5)
    if kind != "BERT":  # a cache is addressed by the index of each layer
        with torch.no_grad():
            text = model.generate(tokens, max_new_tokens=4, do_sample=False)
            alike = again.generate(tokens, max_new_tokens=4, do_sample=False, use_cache=False)
        assert torch.equal(text, alike)


def test_layers_that_others_need_are_put_back():
    torch.manual_seed(0)
    kind = transformers.T5Config
    small = kind(d_model=16, d_kv=8, d_ff=32, num_layers=3, num_decoder_layers=3, num_heads=2, vocab_size=50)
    model, tokens = transformers.T5Model(small).eval(), torch.randint(3, 50, (2, 7))
    inputs = {"input_ids": tokens, "decoder_input_ids": tokens}
    with torch.no_grad():
        before, keys = model(**inputs)[0], list(model.state_dict())
    found = blocks(model, "encoder.block.*")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    count = len(optimizer.param_groups[0]["params"])
    with pytest.raises(ValueError, match=r"without encoder\.block\.0"):  # it holds the positions of all
        found.drop(["encoder.block.0"], inputs, optimizer=optimizer)
    with torch.no_grad():
        assert torch.equal(model(**inputs)[0], before) and list(model.state_dict()) == keys
    assert len(optimizer.param_groups[0]["params"]) == count and model.config.num_layers == 3
    found.drop(["encoder.block.1"], inputs, optimizer=optimizer)
    assert (model.config.num_layers, model.config.num_decoder_layers) == (2, 3)


def test_blocks_of_images_keep_the_type_of_their_list():
    class Layer(nn.Sequential):
        def forward(self, x):
            return x + super().forward(x)

    def layer(width):
        return Layer(nn.Conv2d(width, width, 3, padding=1), nn.ReLU())

    torch.manual_seed(0)
    named = {
        "stem": nn.Conv2d(3, 4, 1),
        "block0": layer(4),
        "block1": layer(4),
        "block2": layer(4),
        "pool": nn.Flatten(),
    }
    net = nn.Sequential(nn.Sequential())
    net = nn.Sequential()
    for name, module in named.items():
        net.add_module(name, module)
    x = torch.randn(2, 3, 5, 5)
    found = blocks(net, "block*")
    assert set(found.cosine([x])) == {"block0", "block1", "block2"}
    expected = named["pool"](named["block2"](named["block1"](named["stem"](x))))
    found.drop(["block0"], x)
    assert list(net._modules) == ["stem", "block0", "block1", "pool"] and torch.equal(net(x), expected)


def test_bad_arguments_are_refused_and_change_nothing(net):
    found, x = blocks(net, "layers.*"), data()[0][0]
    for call, text in (
        (lambda: blocks(net, "layer.*"), "no module matches"),
        (lambda: blocks(net, "stem"), "an item of a ModuleList"),
        (lambda: blocks(net, 3), "glob"),
        (lambda: found.drop(2, x), "scores"),
        (lambda: found.drop(2, x, scores=dict.fromkeys(found.names, float("nan"))), "finite"),
        (lambda: found.drop(4, x, scores=dict.fromkeys(found.names, 1.0)), "leave some"),
        (lambda: found.drop(["layers.9"], x), "no block 'layers.9'"),
        (lambda: found.drop("layers.1", x), "number of blocks or their paths"),
    ):
        with pytest.raises((TypeError, ValueError), match=text):
            call()
    pruner = PruneHandler(net, params=["layers.0.fc.weight", "layers.2.fc.weight"])
    pruner.step(0.5)
    with pytest.raises(ValueError, match="has hooks"):
        found.drop(["layers.2"], x)
    pruner.finalize()
    wide = nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 6))
    with pytest.raises(ValueError, match="its input's shape"):
        blocks(wide, "*").cosine([x.float()])
    assert len(net.layers) == 4
