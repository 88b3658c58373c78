"""What torch.nn.utils.prune and others get wrong, by the number of the issue: free of it, each."""

import copy
import io
import pickle

import pytest
import torch
from ignite.engine import Events, create_supervised_trainer
from torch import nn

from ignite_prune import PruneHandler, functional, pattern, prune_model, schedule
from tests.models import assert_same_bits, assert_zero, batches, small_net


def test_37322_deepcopy_of_a_pruned_module():
    model = small_net()
    prune_model(model, sparsity=0.5)
    copies = [copy.deepcopy(model)]
    pruner = PruneHandler(model, torch.optim.SGD(model.parameters(), lr=0.1))
    pruner.step(0.6)
    copies.append(copy.deepcopy(model))
    zeros = [sum(int((each.get_parameter(name) == 0).sum()) for name in pruner.masks) for each in copies]
    assert zeros == [1200, 1440], "half of 2400 weights, then 0.6 of them"
    assert_same_bits(copies[1].state_dict(), model.state_dict())


def test_69353_78109_multihead_attention():
    model = nn.MultiheadAttention(8, 2, batch_first=True)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    pruner = PruneHandler(model, optimizer)
    pruner.step(0.5)
    for _ in range(3):
        optimizer.zero_grad()
        x = torch.randn(2, 5, 8)
        model(x, x, x)[0].square().sum().backward()
        optimizer.step()
        assert_zero(pruner, optimizer)
    assert pruner.masks.kept("out_proj.weight") < 64
    model.eval()(x, x, x)  # the fast path reads the weights without any forward hook


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_33618_recurrent_layers_before_and_after_finalize(kind):
    model = kind(4, 6, num_layers=2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    pruner = PruneHandler(model, optimizer)
    assert len(pruner.masks) == 4
    for index in range(4):
        if index == 1:
            pruner.step(0.7)
        if index == 3:
            pruner.finalize()
        optimizer.zero_grad()
        model(torch.randn(3, 2, 4))[0].square().sum().backward()
        optimizer.step()
        if index in (1, 2):
            assert_zero(pruner, optimizer)
    assert all(a is b for a, b in zip(model._flat_weights, (p for p in model.parameters())))
    pickle.loads(pickle.dumps(model))(torch.randn(3, 2, 4))


def test_37138_pruning_again_leaves_no_hooks_in_the_forward():
    model = small_net()
    for sparsity in (0.2, 0.4, 0.6):
        prune_model(model, sparsity=sparsity)
    assert not any(m._forward_pre_hooks or m._forward_hooks for m in model.modules())


def test_34257_no_masks_in_the_models_pickle():
    model = small_net()
    size = len(pickle.dumps(model))
    PruneHandler(model, torch.optim.SGD(model.parameters(), lr=0.1)).step(0.9)
    assert len(pickle.dumps(model)) == size


def test_49332_memory_does_not_grow_with_global_prunes():
    model = small_net()
    plain = io.BytesIO()
    torch.save(model, plain)
    for index in range(50):
        prune_model(model, sparsity=index / 60)
    grown = io.BytesIO()
    torch.save(model, grown)
    assert grown.tell() == plain.tell()


def test_102245_the_weight_keeps_its_gradient():
    model = small_net()
    PruneHandler(model).step(0.5)
    nn.functional.cross_entropy(model(batches()[0][0]), batches()[0][1]).backward()
    assert model[0].weight.grad is not None and model[0].weight.is_leaf


def test_a_failed_prune_rolls_back():
    model = small_net()
    pruner = PruneHandler(model)
    pruner.step(0.4)
    masks, weights = {n: m.clone() for n, m in pruner.masks.items()}, copy.deepcopy(model.state_dict())

    def fails(name, parameter):
        if name == "7.weight":
            raise RuntimeError("out of evidence")
        return parameter.abs()

    pruner.param_groups[0]["saliency"] = functional_saliency(fails)
    with pytest.raises(RuntimeError, match="out of evidence"):
        pruner.step(0.8)
    assert all(torch.equal(masks[n], m) for n, m in pruner.masks.items()) and pruner.sparsity == 0.4
    assert all(torch.equal(weights[k], v) for k, v in model.state_dict().items())
    model(batches()[0][0])


def functional_saliency(function):
    from ignite_prune.saliency import as_saliency

    return as_saliency(function)


def test_tied_weights_are_wholly_pruned():
    model = nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 6))
    model[2].weight = model[0].weight
    masks = prune_model(model, sparsity=0.5)
    assert torch.equal(model[0].weight != 0, masks["0.weight"]) and model[2].weight is model[0].weight


def test_lightning_amount_over_epochs_ends_where_it_says():
    """Half over three epochs is half, not 87.5 %."""
    model = small_net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    trainer = create_supervised_trainer(model, optimizer, nn.functional.cross_entropy)
    pruner = PruneHandler(model, optimizer, schedule=schedule.Constant(0.5))
    pruner.attach(trainer, Events.EPOCH_COMPLETED)
    trainer.run(batches(), max_epochs=3)
    assert trainer.state.sparsity["global"] == 0.5
    zeros = sum(int((p == 0).sum()) for p in pruner.masks.parameters.values())
    assert zeros / 2400 == trainer.state.sparsity["global"], "the logged sparsity is the true one (13595)"


def test_an_already_sparse_model_is_pruned_on():
    """SparseML 145: zeros that are there count."""
    model = small_net()
    prune_model(model, sparsity=0.5)
    pruner = PruneHandler(model)
    pruner.step(0.7)
    assert pruner.sparsity == 0.7
    zeros = sum(int((p == 0).sum()) for p in pruner.masks.parameters.values())
    assert zeros == round(0.7 * 2400), "the zeros went first"


def test_global_over_several_layers_by_hand():
    model = nn.Module()
    model.a = nn.Parameter(torch.tensor([[1.0, -5.0], [2.0, 8.0]]))
    model.b = nn.Parameter(torch.tensor([3.0, -0.5, 7.0]))
    masks = prune_model(model, "*", sparsity=3 / 7)
    assert masks["a"].tolist() == [[False, True], [False, True]] and masks["b"].tolist() == [True, False, True]
    masks = prune_model(model, "*", sparsity=4 / 7)
    assert masks["a"].tolist() == [[False, True], [False, True]] and masks["b"].tolist() == [False, False, True]


def test_identity_is_a_sparsity_of_zero():
    w = torch.randn(3, 3)
    assert functional.mask(w, 0).all() and torch.equal(functional.prune(w, 0.0), w)


def test_functional_lets_gradients_through_to_what_is_kept():
    w = torch.tensor([1.0, -3.0, 2.0, 0.5], requires_grad=True)
    functional.prune(w, 2).sum().backward()
    assert w.grad.tolist() == [0.0, 1.0, 1.0, 0.0]
    assert functional.prune_(w, 2) is w and w.tolist() == [0.0, -3.0, 2.0, 0.0]


def test_a_smaller_amount_changes_nothing():
    w = torch.arange(1.0, 9.0)
    mask = functional.mask(w, 5)
    for amount in (0, 3, 0.5, 0.0):
        assert torch.equal(functional.mask(w, amount, mask=mask), mask)
    assert functional.mask(w, 0.75, mask=mask).sum() == 2


@pytest.mark.parametrize("shape", [(), (1,), (0,), (3, 0, 2)])
def test_odd_shapes(shape):
    w = torch.ones(shape)
    assert functional.mask(w, 0.0).shape == w.shape and not functional.mask(w, 1.0).any()
    assert functional.prune(w, 1.0).shape == w.shape


@pytest.mark.parametrize(
    ("dims", "units"),
    [(0, 4), (1, 3), ((0, 1), 12), ((0, 1, 2), 24), ((0, 1, 3), 60), ((1, 2, 3), 30), ((2,), 2), ((0, 1, 2, 3), 120)],
)
def test_every_granularity_of_a_convolution(dims, units):
    w = torch.randn(4, 3, 2, 5)
    shape = pattern.Channel(dim=dims)
    assert shape.count(w.shape) == units
    mask = functional.mask(w, units // 2, pattern=shape)
    rest = [d for d in range(4) if d not in ((dims,) if isinstance(dims, int) else dims)]
    whole = mask if not rest else mask.movedim(rest, list(range(4 - len(rest), 4))).flatten(4 - len(rest))
    assert int((~mask).sum()) == units // 2 * (120 // units)
    assert not rest or torch.equal(whole.any(-1), whole.all(-1))
