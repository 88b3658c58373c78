"""Programs of which the exported graph tells too little: sizes of their inputs, branches on masks, kept states."""

import pytest
import torch
from torch import nn

from ignite_prune import shrink, trace
from tests.structure.test_real_programs import Net
from tests.structure.test_shrink import halved


class WidthOfInput(nn.Module):
    """Attention as many vision transformers write it: heads are reshaped to the width of the input."""

    def __init__(self, width, heads):
        super().__init__()
        self.num_heads, self.qkv, self.proj = heads, nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x):
        b, n, c = x.shape
        q, k, v = self.qkv(x).reshape(b, n, 3, self.num_heads, c // self.num_heads).permute(2, 0, 3, 1, 4)
        weights = (q @ k.transpose(-2, -1) / 4).softmax(-1)
        return self.proj((weights @ v).transpose(1, 2).reshape(b, n, c))


class Transformer(nn.Module):
    def __init__(self, width=12, heads=3):
        super().__init__()
        self.embed, self.norm, self.attend = nn.Linear(5, width), nn.LayerNorm(width), WidthOfInput(width, heads)
        self.last, self.head = nn.LayerNorm(width), nn.Linear(width, 2)

    def forward(self, x):
        x = self.embed(x)
        return self.head(self.last(x + self.attend(self.norm(x))))


@pytest.mark.filterwarnings("ignore:Units that norms")
def test_heads_go_with_the_width_that_they_are_reshaped_to():
    model, x = Transformer().double().eval(), torch.randn(2, 4, 5, dtype=torch.float64)
    reason = trace(model, x).frozen["attend.qkv.weight", 0]
    assert "reshape in attend writes its size" in reason
    structure = trace(model, x, through_norms=True)
    assert [(group.name, group.size) for group in structure] == [("embed.weight", 3)]
    assert shrink(model, {"embed.weight": [1]}, x, structure=structure).error < 1e-12
    assert model.attend.num_heads == 2 and model.attend.qkv.weight.shape == (24, 8)


def branching(question):
    def forward(s, ids, mask):
        h = s.a(s.table(ids)).relu()
        if question(h, mask):
            h = h * mask[..., None]
        return s.b(h)

    model = Net(forward, table=nn.Embedding(9, 12), a=nn.Linear(12, 16), b=nn.Linear(16, 3)).double().eval()
    return model, (torch.arange(8).view(2, 4), torch.tensor([[1, 1, 1, 0], [1, 1, 0, 0]]))


def test_a_branch_on_a_mask_is_followed_as_the_example_takes_it():
    model, inputs = branching(lambda h, mask: not mask.all())
    with pytest.warns(UserWarning, match=r"branches which example_inputs take: in Net, .* line \d+"):
        structure = trace(model, inputs)
    assert {group.name: group.size for group in structure} == {"table.weight[1]": 12, "a.weight": 16}
    assert shrink(model, structure.masks(halved(structure)), inputs, structure=structure).error < 1e-12


def test_a_branch_on_activations_is_refused():
    with pytest.raises(ValueError, match=r"cannot be exported .* line \d+"):
        trace(*branching(lambda h, mask: h.sum() > 0))


def test_a_branch_that_leaves_out_a_layer_is_refused():
    model, inputs = branching(lambda h, mask: mask.all())
    model.other, plain = nn.Linear(16, 3), model._forward
    model._forward = lambda s, ids, mask: s.other(s.table(ids)) if ids.max() > 99 else plain(s, ids, mask)
    with pytest.raises(ValueError, match="cannot be exported"):
        trace(model, inputs)


class Remembering(nn.Module):
    """A layer that counts its calls, keeps what it has seen, and grows a list on itself."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.calls, self.seen, self.state = nn.Linear(4, 8), nn.Linear(8, 2), 0, [], {"last": None}

    def forward(self, x):
        self.calls += 1
        self.seen.append(x.shape)
        if len(self.seen) > 1:
            raise RuntimeError("called twice")
        self.state["last"] = h = self.a(x)
        return self.b(h.view(-1, 8)) if self.calls == 1 else None


def test_a_trial_leaves_nothing_on_the_modules_that_the_next_one_meets():
    model, x = Remembering(), torch.randn(3, 4)
    structure = trace(model, x)
    assert not len(structure) and "view writes its size" in structure.frozen["a.weight", 0]
    assert (model.calls, model.seen, model.state) == (0, [], {"last": None})


class ScaledBySize(nn.Module):
    """Attention whose scale is computed from an attribute that also holds a size which may shrink."""

    def __init__(self):
        super().__init__()
        self.size, self.q, self.k, self.v = 6, nn.Linear(4, 6), nn.Linear(4, 6), nn.Linear(4, 2)

    def forward(self, x):
        q, k = (each(x).view(x.shape[0], -1, self.size) for each in (self.q, self.k))
        return (q @ k.transpose(1, 2) / self.size).softmax(-1) @ self.v(x)


def test_a_scale_by_a_size_is_seen_before_training_too():
    model = ScaledBySize()
    with torch.no_grad():
        for each in model.parameters():
            each.mul_(0.01)  # the weights are nearly uniform, whatever the scale is
    assert not len(trace(model, torch.randn(2, 5, 4)))


def test_a_forward_pass_that_only_stores_is_compared_by_what_it_stores():
    layers = {"a": nn.Linear(6, 12), "b": nn.Linear(12, 3)}
    model, x = Net(lambda s, x: setattr(s, "out", s.b(s.a(x).relu())), **layers), torch.randn(4, 6)
    structure = trace(model, x)
    assert [group.name for group in structure] == ["a.weight"]
    assert shrink(model, {"a.weight": [0]}, x, structure=structure).error < 1e-5
    model(x)
    assert model.out.shape == (4, 3) and model.a.out_features == 11


def test_the_vectors_of_spectral_norm_are_not_changed_by_slicing():
    normed = nn.utils.parametrizations.spectral_norm(nn.Linear(12, 8))
    model = nn.Sequential(nn.Linear(6, 12), nn.ReLU(), normed, nn.ReLU(), nn.Linear(8, 3))
    model, x = model.double(), torch.randn(4, 6, dtype=torch.float64)
    name = "2.parametrizations.weight.original"
    assert shrink(model.train(), {name: [0, 1], "0.weight": [2]}, x, structure=trace(model, x)).error < 1e-12
    assert model[2].weight.shape == (6, 11) and model[2].parametrizations.training


def test_a_model_without_values_is_left_whole():
    model = nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 3)).to("meta")
    x = torch.randn(4, 6, device="meta")
    structure = trace(model, x)
    with pytest.raises(ValueError, match="meta device"):
        shrink(model, {"0.weight": [0]}, x, structure=structure)
    assert model[0].weight.shape == (12, 6) and model[0].out_features == 12
