"""Experts of a mixture are removed with their rows of the router; the model equals the one with masked routers."""

import copy

import pytest
import torch
from torch import nn

from ignite_prune import PruneHandler
from ignite_prune.structure import experts

IDS = torch.arange(12).view(2, 6)


class Mixture(nn.Module):
    """A mixture written by hand: a list of experts, a linear router with a bias, the two best of each token."""

    def __init__(self, count=4, top_k=2):
        super().__init__()
        self.num_experts, self.top_k = count, top_k
        self.router = nn.Linear(8, count)
        self.experts = nn.ModuleList(nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 8)) for _ in range(count))

    def forward(self, x):
        best, which = self.router(x).softmax(-1).topk(self.top_k, -1)
        best, y = best / best.sum(-1, keepdim=True), torch.zeros_like(x)
        for number in range(self.num_experts):
            share = (best * (which == number)).sum(-1, keepdim=True)
            y = y + share * self.experts[number](x)
        return x + y


def by_hand():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 8), Mixture(), Mixture(), nn.Linear(8, 3)), torch.randn(5, 8)


def mixtral():
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    sizes = {"vocab_size": 20, "hidden_size": 16, "intermediate_size": 8, "num_hidden_layers": 4}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 16}
    config = transformers.MixtralConfig(**sizes, **heads, num_local_experts=4, output_router_logits=False)
    return transformers.MixtralForCausalLM(config), IDS


@pytest.mark.parametrize("build", [by_hand, mixtral])
def test_sliced_equals_masked_and_trains_on(build):
    model, x = build()
    optimizer = torch.optim.Adam(model.parameters())
    out = model(x)
    (out if isinstance(out, torch.Tensor) else out.logits).square().mean().backward()
    optimizer.step()
    optimizer.zero_grad()
    mixtures = experts(model)
    gone = {path: [1, 3] if number % 2 else [0, 1] for number, path in enumerate(mixtures.sizes)}
    with mixtures.masked(gone), torch.no_grad():
        expected = model.eval()(x)
    report = mixtures.drop(gone, x, optimizer=optimizer)
    found = model(x)
    for a, b in ((found, expected),) if isinstance(found, torch.Tensor) else ((found.logits, expected.logits),):
        torch.testing.assert_close(a, b)
        a.square().mean().backward()
    optimizer.step()
    assert set(mixtures.sizes.values()) == {2} and set(report.units.values()) == {(4, 2)}
    assert {id(each) for group in optimizer.param_groups for each in group["params"]} == set(
        map(id, model.parameters())
    )
    if build is mixtral:
        assert model.config.num_local_experts == 2 and model.num_experts == 2
        assert model.config.num_hidden_layers == 4, "as many layers as experts"
        again = type(model)(model.config)
        again.load_state_dict(model.state_dict())
        torch.testing.assert_close(again.eval()(x).logits, model.eval()(x).logits)
    else:
        assert [each.num_experts for each in model[1:3]] == [2, 2] and model[1].router.out_features == 2


def test_the_least_used_experts_go():
    model, x = by_hand()
    with torch.no_grad():
        model[1].router.bias.copy_(torch.tensor([0.0, 9.0, -9.0, 3.0]))
    usage = experts(model).usage([x])
    shares = model[1].router(model[0](x)).softmax(-1).mean(0).double()
    torch.testing.assert_close(usage["1"], shares, check_dtype=False)
    stays = [model[1].experts[1], model[1].experts[3]]
    mixtures = experts(model)
    mixtures.drop(2, x, scores=usage)
    assert list(model[1].experts) == stays


@pytest.mark.parametrize("which", [-3, -1, 0, 4, 7])
def test_a_number_that_leaves_no_expert_or_removes_none_is_refused(which):
    model, x = by_hand()
    mixtures = experts(model)
    with pytest.raises(ValueError, match=f"from 1 to 3, as each mixture keeps at least one, but given {which}"):
        mixtures.drop(which, x, scores=dict.fromkeys(mixtures.sizes, torch.arange(4.0)))
    assert mixtures.sizes == {"1": 4, "2": 4} and len(model[1].experts) == 4


def test_one_expert_may_be_left():
    class Soft(nn.Module):
        def __init__(self):
            super().__init__()
            self.gate, self.share = nn.Linear(4, 3), nn.Linear(4, 1)
            self.experts = nn.ModuleList(nn.Linear(4, 4) for _ in range(3))

        def forward(self, x):
            weights = self.gate(x).softmax(-1)
            y = sum(weights[..., i : i + 1] * each(x) for i, each in enumerate(self.experts))
            return self.share(x).sigmoid() * y

    model, x = nn.Sequential(Soft(), Soft()), torch.randn(2, 4)
    mixtures = experts(model)
    with mixtures.masked({"0": [0, 2]}):
        expected = model(x)
    assert mixtures.drop({"0": [0, 2]}, x).units == {"0": (3, 1)} and mixtures.sizes == {"0": 1, "1": 3}
    torch.testing.assert_close(model(x), expected)
    assert mixtures.usage([x])["0"].tolist() == [1.0]
    with pytest.raises(ValueError, match="0 of the 1 experts of '0' would be left"):
        mixtures.drop({"0": [0]}, x)


@pytest.mark.parametrize(
    "which, error, said",
    [
        ({"1": [0, 1, 2]}, ValueError, "1 of the 4 experts of '1' would be left, but its router sends each token to 2"),
        ({"1": [4]}, ValueError, "There is no expert 4 of '1', which has 4"),
        ({"1": [0.5]}, TypeError, "whole numbers"),
        ({"7": [0]}, ValueError, "There is no mixture '7'"),
        ({"1": []}, ValueError, "should name experts"),
        (1, ValueError, "scores should be given"),
        (True, TypeError, "should be a number of experts"),
        (1.0, TypeError, "should be a number of experts"),
        ("1", TypeError, "should be a number of experts or a mapping"),
    ],
)
def test_what_cannot_be_removed_is_refused_and_nothing_changes(which, error, said):
    model, x = by_hand()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(error, match=said):
        experts(model).drop(which, x)
    assert all(torch.equal(before[name], each) for name, each in model.state_dict().items())


def test_a_model_that_would_differ_is_put_back():
    class Fixed(Mixture):
        def forward(self, x):
            return super().forward(x) * self.num_experts

    model = nn.Sequential(Fixed())
    x, mixtures = torch.randn(3, 8), experts(model)
    before = model(x)
    with pytest.raises(ValueError, match="differs by"):
        mixtures.drop({"0": [2]}, x)
    assert torch.equal(model(x), before) and len(model[0].experts) == 4


def test_mixtures_of_one_config_keep_one_size():
    model, x = mixtral()
    mixtures = experts(model)
    with pytest.raises(ValueError, match="share a config with one number of experts"):
        mixtures.drop({next(iter(mixtures.sizes)): [0]}, x)


def test_parameters_with_hooks_are_refused():
    model, x = by_hand()
    pruner = PruneHandler(model, torch.optim.SGD(model.parameters(), 0.1))
    pruner.step(0.5)
    with pytest.raises(ValueError, match="has hooks, as of a PruneHandler; finalize"):
        experts(model).drop({"1": [0]}, x)
    pruner.finalize()
    experts(model).drop({"1": [0]}, x)


def test_a_model_without_experts_is_refused():
    with pytest.raises(ValueError, match="has no mixture of experts"):
        experts(nn.Sequential(nn.Linear(2, 2)))
