"""What the default selection reaches, what it leaves dense, and when it warns of that."""

import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from ignite_prune import PruneHandler, allocation, prune_model, saliency, score
from ignite_prune.core.selection import select


def holder(name="Layer", **shapes):
    """A module of a type called ``name``, with bare parameters of these shapes."""
    module = type(name, (nn.Module,), {})()
    for leaf, shape in shapes.items():
        module.register_parameter(leaf, nn.Parameter(torch.randn(shape)))
    return module


def taken(*modules, **named):
    """The names that are selected by default of modules next to a linear layer."""
    net = nn.Sequential(*modules)
    for name, module in named.items():
        net.add_module(name, module)
    net.add_module("linear", nn.Linear(64, 64))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return set(PruneHandler(net).masks) - {"linear.weight"}


WEIGHTS = [
    ("Conv1D", {"weight": (8, 24)}),
    ("MixtralExperts", {"gate_up_proj": (4, 16, 8), "down_proj": (4, 8, 8)}),
    ("Experts", {"up": (4, 8, 32), "down": (4, 32, 8)}),
    ("DbrxExpertGLU", {"w1": (32, 8), "v1": (32, 8), "w2": (32, 8)}),
    ("IstaBlock", {"forward1": (32, 1, 3, 3), "conv2_backward": (1 + 1, 32, 3, 3)}),
    ("EqualLinear", {"weight": (8, 4)}),
    ("ModulatedConv2d", {"weight": (1, 8, 4, 3, 3)}),
    ("Dense", {"kernel": (4, 8)}),
    ("Cell", {"W": (8, 4), "U": (8, 8)}),
    ("Attention", {"Wq": (8, 8), "w_k": (8, 8), "qkv": (8, 24), "q": (8, 2, 4), "text_projection": (8, 6)}),
    ("TopKRouter", {"weight": (4, 8)}),
    ("NoisyLinear", {"weight_mu": (4, 8)}),
    ("NormLinear", {"weight": (4, 8)}),
    ("RgLru", {"input_gate_weight": (2, 4, 4)}),
]
LEFT_DENSE = [
    ("ViTEmbeddings", {"cls_token": (1, 1, 8), "position_embeddings": (1, 5, 8), "weight": (9, 8)}),
    ("VisionTransformer", {"pos_embed": (5, 8), "patch_pos": (4, 8), "register_tokens": (4, 8)}),
    ("SwinAttention", {"relative_position_bias_table": (49, 2), "rel_pos_w": (7, 4), "rel_pos_h": (7, 4)}),
    ("Detr", {"query_embed": (10, 8), "queries": (10, 8), "latents": (6, 8)}),
    ("ConvNeXtBlock", {"gamma": (8, 1, 1), "layer_scale": (8, 8), "scale": (8, 8)}),
    ("GRN", {"weight": (1, 1, 1, 8), "bias": (1, 1, 1, 8)}),
    ("MambaMixer", {"A_log": (16, 4), "D": (4, 4)}),
    ("Rwkv", {"time_mix_key": (1, 1, 8), "time_decay": (2, 4), "time_first": (2, 4)}),
    ("MyRMSNorm", {"weight": (4, 8)}),
    ("GptOssExperts", {"gate_up_proj_bias": (4, 16), "down_proj_bias": (4, 8)}),
    ("FP8Linear", {"weight_scale": (4, 4), "weight_sigma": (4, 4), "weight_mask": (4, 4)}),
    ("VectorQuantizer", {"weight": (32, 8), "embed": (32, 8)}),
    ("Model", {"codebook": (32, 8), "codevectors": (1, 32, 8), "prototypes": (4, 8), "memory": (4, 8)}),
    ("CRF", {"transitions": (4, 4)}),
    ("XLNet", {"r_w_bias": (2, 4), "seg_embed": (2, 2, 4)}),
    ("Gated", {"attn_gate": (2, 8), "h0": (2, 8), "theta": (8, 8)}),
]


@pytest.mark.parametrize(("kind", "shapes"), WEIGHTS, ids=[kind for kind, _ in WEIGHTS])
def test_reached(kind, shapes):
    assert taken(holder(kind, **shapes, bias=(8, 8))) == {f"0.{name}" for name in shapes}


@pytest.mark.parametrize(("kind", "shapes"), LEFT_DENSE, ids=[kind for kind, _ in LEFT_DENSE])
def test_left_dense(kind, shapes):
    assert not taken(holder(kind, **shapes))


def test_lists_of_parameters_are_called_by_the_name_of_the_list():
    net = nn.Module()
    net.kernels = nn.ParameterList([torch.randn(4, 4), torch.randn(4, 4)])
    net.prompts = nn.ParameterDict({"first": torch.randn(4, 4)})
    net.linear = nn.Linear(4, 4)
    assert list(select(net)) == ["kernels.0", "kernels.1", "linear.weight"]
    assert taken(holder("Quantised", weight=(4, 4)), named=holder(U=(4, 4))) == {"0.weight", "named.U"}


def test_a_layer_type_of_the_users_own_selects_its_weights():
    experts = holder("Experts", up=(2, 4, 4), up_bias=(2, 4))
    assert list(select(nn.Sequential(experts, nn.Linear(4, 4)), type(experts))) == ["0.up"]


def test_other_dtypes_and_tied_weights():
    packed = nn.Module()
    packed.weight = nn.Parameter(torch.ones(4, 4, dtype=torch.int8), requires_grad=False)
    assert not taken(packed)
    tied = holder("Dense", weight=(10, 8))
    table = nn.Embedding(10, 8)
    tied.weight = table.weight
    assert not taken(tied, table)


def warned(net, **settings):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        PruneHandler(net, **settings)
    return [str(each.message) for each in caught]


def test_one_warning_where_much_is_left_dense():
    net = nn.Sequential(nn.Embedding(1000, 8), nn.Linear(8, 8), holder("Mixer", theta=(40, 40)), nn.LayerNorm((4, 4)))
    (message,) = warned(net)
    whole = 8000 + 72 + 1600 + 32
    assert f"{(8000 + 1600 + 32) / whole:.0%} of the model: 0.weight ({8000 / whole:.1%}), 2.theta (" in message
    assert "No rule says whether 2.theta multiplies" in message
    with pytest.warns(UserWarning, match="Left dense by the default selection") as caught:
        prune_model(net, sparsity=0.5)
    assert len(caught) == 1 and caught[0].filename == __file__
    assert not warned(net, exclude=["0.*", "2.*"]), "the user's choice"
    assert not warned(net, params=nn.Linear)
    mixers = nn.ModuleList(holder("Mixer", theta=(4, 4)) for _ in range(3))
    (message,) = warned(nn.ModuleDict({"mixers": mixers, "head": nn.Linear(8, 8)}))
    assert f"{48 / 120:.0%} of the model: mixers.*.theta (40.0%). No rule" in message, "layers together"


def test_no_warning_for_usual_models():
    class Gpt(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.head = nn.Embedding(40, 16), nn.Linear(16, 40, bias=False)
            self.head.weight = self.embed.weight
            self.pos_embed = nn.Parameter(torch.zeros(1, 12, 16))
            self.layer = nn.TransformerEncoderLayer(16, 2, 64)

    assert not warned(Gpt())
    assert not warned(nn.Sequential(nn.Embedding(100, 16), nn.LSTM(16, 32)))


def test_zeros_hold_in_bare_parameters():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.up, self.conv_kernel = nn.Parameter(torch.randn(4, 8, 16)), nn.Parameter(torch.randn(8, 8, 3, 3))
            self.head = nn.Linear(16, 3)

        def forward(self, x):
            x = F.conv2d(x, self.conv_kernel).mean((2, 3))
            return self.head(torch.einsum("td,edh->th", x, self.up))

    torch.manual_seed(0)
    net = Net()
    optimizer = torch.optim.Adam(net.parameters(), 0.01)
    pruner = PruneHandler(net, optimizer, allocation=allocation.Uniform())
    pruner.step(0.75)
    for _ in range(3):
        optimizer.zero_grad()
        F.cross_entropy(net(torch.randn(5, 8, 6, 6)), torch.tensor([0, 1, 2, 0, 1])).backward()
        optimizer.step()
    zeros = sum(int((p == 0).sum()) for p in (net.up, net.conv_kernel, net.head.weight))
    assert zeros == 0.75 * (net.up.numel() + net.conv_kernel.numel() + net.head.weight.numel())


class Conv1D(nn.Module):
    """As transformers': inputs first."""

    def __init__(self, outputs, inputs):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(inputs, outputs)), nn.Parameter(torch.zeros(outputs))

    def forward(self, x):
        return torch.addmm(self.bias, x.view(-1, x.size(-1)), self.weight).view(*x.shape[:-1], -1)


@pytest.mark.parametrize("formula", [saliency.Wanda(), saliency.SparseGPT(), saliency.Taylor()], ids=str)
def test_evidence_is_that_of_a_linear_layer_turned(formula):
    torch.manual_seed(0)
    turned, linear = Conv1D(6, 8), nn.Linear(8, 6)
    with torch.no_grad():
        linear.weight.copy_(turned.weight.t()), linear.bias.zero_()
    data = [(torch.randn(5, 3, 8) * torch.arange(1.0, 9.0), torch.randn(5, 3, 6)) for _ in range(2)]
    scores, masks = [], []
    for net in (turned, linear):
        scores.append(score(net, saliency=formula, data=data, loss_fn=F.mse_loss)["weight"])
        settings = {"saliency": formula, "data": data, "loss_fn": F.mse_loss}
        masks.append(prune_model(net, sparsity=0.5, **settings)["weight"])
    torch.testing.assert_close(scores[0].t(), scores[1])
    assert torch.equal(masks[0].t(), masks[1])


def test_stacked_experts_without_evidence_are_left_out_by_name():
    class Experts(nn.Module):
        def __init__(self):
            super().__init__()
            self.up_proj = nn.Parameter(torch.randn(2, 4, 4))

        def forward(self, x):
            return F.linear(x, self.up_proj[0]) + F.linear(x, self.up_proj[1])

    data = [(torch.randn(3, 4), torch.randn(3, 4))]
    net = nn.Sequential(nn.Linear(4, 4), Experts())
    with pytest.warns(UserWarning, match=r"1.up_proj: it is used by getitem.*Wanda has no evidence; left out"):
        masks = prune_model(net, sparsity=0.5, saliency=saliency.Wanda(), data=data)
    assert bool(masks["1.up_proj"].all()) and masks["0.weight"].float().mean() == 0.5
    with pytest.raises(saliency.MissingEvidence, match=r"'1.up_proj'.*getitem"):
        prune_model(net, "1.up_proj", sparsity=0.5, saliency=saliency.Wanda(), data=data)
    masks = prune_model(net, sparsity=0.5, saliency=saliency.Wanda(), data=data, exclude="*.up_proj")
    assert masks.sparsity == 0.5
