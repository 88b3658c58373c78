"""Weights that a step has to leave as they are, and what is computed around it, to the bit."""

import pytest
import torch
from torch import nn

from ignite_prune._utils.bits import pieces_of, put_back_, unmasked_copy
from ignite_prune.core.moments import KEEP_ZERO, keeps_weight
from ignite_prune.handlers import TopKAST
from ignite_prune.regularise.soft import shrunk, soft_threshold

OPTIONS = {"SGD": {"lr": 0.1, "momentum": 0.9}, "RMSprop": {"momentum": 0.5}, "AdamW": {"weight_decay": 0.0}}


@pytest.mark.parametrize("maximize", [False, True])
@pytest.mark.parametrize("name", sorted(KEEP_ZERO))
def test_a_step_keeps_weights_without_gradient_where_it_is_said_to(name, maximize):
    parameter = nn.Parameter(torch.tensor([1.5, -3e-20, 1e20, -7.0, 0.25]))
    options = {**OPTIONS.get(name, {}), "maximize": maximize}
    optimizer = getattr(torch.optim, name)([parameter], **options)
    before = parameter.detach().clone()
    for _ in range(5):
        parameter.grad = torch.tensor([0.0, 0.0, 0.0, 0.0, 1.0])
        optimizer.step()
    assert not torch.equal(parameter[4], before[4])
    if keeps_weight(optimizer, optimizer.param_groups[0], parameter):
        assert torch.equal(parameter[:4].view(torch.int32), before[:4].view(torch.int32))
    else:
        assert name == "ASGD"


def test_decay_is_known_by_group():
    first, second = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
    groups = [{"params": [first], "weight_decay": 0.1}, {"params": [second]}]
    optimizer = torch.optim.SGD(groups, lr=0.1)
    assert [keeps_weight(optimizer, group, each) for group, each in zip(optimizer.param_groups, (first, second))] == [
        False,
        True,
    ]


@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_top_kast_does_not_move_unexplored_weights(decay):
    model = nn.Linear(64, 32)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=decay)
    handler = TopKAST(model, optimizer, sparsity=0.9)
    before, unexplored = model.weight.detach().clone(), ~handler.explored["weight"]
    for _ in range(3):
        optimizer.zero_grad()
        model(torch.randn(4, 64)).square().sum().backward()
        optimizer.step()
    moved = model.weight.detach() != before
    assert not moved[unexplored].any() and moved[~unexplored].any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.complex128])
def test_put_back(dtype):
    values, mask = torch.randn(40, 30).to(dtype), torch.rand(40, 30) < 0.5
    values[0, :3] = torch.tensor([float("inf"), float("nan"), -0.0])
    copy, after = unmasked_copy(values, mask), torch.full_like(values, 7)
    put_back_(after, copy, mask)
    assert (after[mask] == 7).all()
    assert torch.equal(after[~mask].nan_to_num(3), values[~mask].nan_to_num(3))


def test_pieces_cover_all_and_differing_layouts_are_one_piece():
    a, b = torch.arange(300_000.0).view(300, 1000), torch.zeros(300, 1000)
    for piece, none, out in pieces_of(a, None, b):
        assert none is None
        out.copy_(piece)
    assert torch.equal(a, b) and sum(1 for _ in pieces_of(a, b.t().contiguous().t())) == 1
    assert list(pieces_of(torch.empty(0), torch.empty(0))) == []


@pytest.mark.parametrize("shape", [(5, 3), (2, 3, 1, 2), (5,), ()])
@pytest.mark.parametrize("threshold", [0.0, 0.3, 9.0, -0.1])
def test_shrinking_is_soft_thresholding(shape, threshold):
    weight, gradient, found = torch.randn(shape), torch.randn(shape), []
    for function in (shrunk, soft_threshold):
        w, t = weight.clone().requires_grad_(), torch.tensor(threshold, requires_grad=True)
        out = function(w, t)
        found.append([out.detach(), *torch.autograd.grad(out, (w, t), gradient)])
    assert all(torch.equal(one, other) for one, other in zip(*found))
    w, t = weight.double().requires_grad_(), torch.tensor(threshold, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(shrunk, (w, t)) and torch.autograd.gradgradcheck(shrunk, (w, t))
