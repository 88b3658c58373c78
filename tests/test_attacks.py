"""What once broke a law, found by trying to break it."""

import copy
import math

import numpy as np
import pytest
import torch
from ignite.engine import Engine, Events, create_supervised_trainer
from torch import nn

from ignite_prune import (
    MaskStore,
    PruneEvents,
    PruneHandler,
    SparsityWarning,
    allocation,
    functional,
    pattern,
    prune_model,
    saliency,
    schedule,
)
from ignite_prune._utils.pairs import from_pairs
from tests.models import WEIGHTS, assert_zero, batches, small_net, train_step


def trained(optimizer_type=torch.optim.SGD, **settings):
    model = small_net()
    settings = settings or {"lr": 0.05, "momentum": 0.9}
    optimizer = optimizer_type(model.parameters(), **settings)
    pruner = PruneHandler(model, optimizer)
    pruner.step(0.8)
    train_step(model, optimizer, batches()[0])
    return model, optimizer, pruner


def write_data(model):
    for p in model.parameters():
        p.data.copy_(torch.randn_like(p))


def replace_data(model):
    for p in model.parameters():
        p.data = torch.randn_like(p)


def write_vector(model):
    nn.utils.vector_to_parameters(torch.randn(sum(p.numel() for p in model.parameters())), model.parameters())


@pytest.mark.parametrize("write", [write_data, replace_data, write_vector])
def test_writes_that_move_no_version_counter(write):
    model, optimizer, pruner = trained()
    write(model)
    with pytest.warns(SparsityWarning, match="between two steps"):
        for batch in batches():
            train_step(model, optimizer, batch)
            assert_zero(pruner, optimizer)


def test_gradients_written_through_data():
    model, optimizer, pruner = trained()
    for x, y in batches():
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        for p in model.parameters():
            p.grad.data.add_(0.1 * torch.randn_like(p))
        optimizer.step()
        assert_zero(pruner, optimizer)


def test_a_layer_that_thaws_into_a_new_parameter_group():
    model = small_net()
    model[5].weight.requires_grad_(False)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1, momentum=0.9)
    pruner = PruneHandler(model, optimizer)
    pruner.step(0.8)
    model[5].weight.requires_grad_(True)
    optimizer.add_param_group({"params": [model[5].weight]})
    for batch in batches():
        train_step(model, optimizer, batch)
        assert_zero(pruner, optimizer)


@pytest.mark.parametrize("kind", ["Adam", "AdamW", "NAdam", "RAdam", "Adamax", "RMSprop", "Adagrad", "Adadelta"])
def test_an_epsilon_of_zero(kind):
    model, optimizer, pruner = trained(getattr(torch.optim, kind), lr=0.01, eps=0.0)
    for batch in batches():
        train_step(model, optimizer, batch)
        assert_zero(pruner, optimizer)
    assert not any(p[~pruner.masks[n]].isnan().any() for n, p in pruner.masks.parameters.items())


def test_half_precision_under_adam():
    model = nn.Linear(8, 8).half()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)  # its ε of 1e-8 is 0 in half precision
    pruner = PruneHandler(model, optimizer)
    for index in range(6):
        if index == 3:
            pruner.step(0.5)
        optimizer.zero_grad()
        model(torch.randn(4, 8).half()).float().square().sum().backward()
        optimizer.step()
        assert_zero(pruner, optimizer)
    assert model.weight.isfinite().all()


@pytest.mark.parametrize("shape", [pattern.Channel(), pattern.Head(size=1)])
@pytest.mark.parametrize("scale", [1e-24, 1e20, 1.0])
def test_norms_neither_vanish_nor_overflow(shape, scale):
    scores = (torch.tensor([1.0, 4, 3, 2])[:, None] * scale).expand(4, 3)
    assert functional.mask(torch.ones(4, 3), 2, scores=scores, pattern=shape).any(1).tolist() == [
        False,
        True,
        True,
        False,
    ]


def test_powers_of_half_precision_rank_as_the_weights_do():
    for scale in (2e-4, 300.0):
        w = (torch.randn(1000) * scale).half()
        squared = saliency.Magnitude(p=2)("w", w)
        assert torch.equal(functional.mask(w, 0.5, scores=squared), functional.mask(w, 0.5))


def test_negative_scores_are_not_turned_round():
    scores = torch.tensor([-4.0, 1.0, 2.0, -3.0])
    for shape in (pattern.Channel(), pattern.Head(size=1)):
        with pytest.raises(ValueError, match=r"saliency of parameter 'tensor': a norm needs scores of at least 0"):
            functional.mask(torch.ones(4, 3), 2, scores=scores[:, None].expand(4, 3), pattern=shape)
        by_unit = functional.mask(torch.ones(4, 3), 2, scores=scores, pattern=shape)
        assert by_unit.any(1).tolist() == [False, True, True, False], "one score a unit may be of any sign"
    with pytest.raises(ValueError, match="LAMP needs scores of at least 0"):
        prune_model(small_net(), sparsity=0.5, saliency=lambda n, p: -p.abs(), allocation=allocation.LAMP())
    assert functional.mask(torch.ones(4), 2, scores=scores).tolist() == [False, True, True, False]
    mask = torch.tensor([[True, False], [True, True]])
    scores = torch.tensor([[-3.0, -9.0], [-2.0, -2.5]])
    kept = functional.mask(torch.ones(2, 2), 1, scores=scores, mask=mask, pattern=pattern.Block((1, 2), reduce="max"))
    assert kept.tolist() == [[False, False], [True, True]], "a pruned entry is no maximum"


def test_sparse_slots():
    model = nn.Sequential(nn.Embedding(8, 4, sparse=True))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    pruner = PruneHandler(model, optimizer, "0.weight")
    for index in range(4):
        if index:
            pruner.step(0.2 * index)
        optimizer.zero_grad()
        model(torch.tensor([1, 2, index])).sum().backward()
        optimizer.step()
        assert not model[0].weight[~pruner.masks["0.weight"]].any()


def test_parameters_that_were_replaced():
    for replace in (
        lambda m: m.load_state_dict(small_net(1).state_dict(), assign=True),
        lambda m: m.__setitem__(7, nn.Linear(16, 4)),
    ):
        model, _, pruner = trained()
        state = pruner.state_dict()
        replace(model)
        for use in (
            lambda: pruner.step(0.9),
            lambda: pruner.load_state_dict(state),
            lambda: pruner.attach(Engine(lambda e, b: None)),
        ):
            with pytest.raises(ValueError, match=r"has been replaced by another object.*masks=pruner.masks"):
                use()
        again = PruneHandler(model, masks=pruner.masks)
        assert again.sparsity == pruner.sparsity and not model[7].weight[~pruner.masks["7.weight"]].any()


def test_masks_changed_behind_the_handlers_back():
    model, optimizer, pruner = trained()
    pruner.masks["5.weight"].fill_(True)
    assert pruner.sparsity == 0.8 and not pruner.masks["5.weight"].all(), "what is handed out is a copy"
    pruner.masks.update({"5.weight": torch.rand(16, 128) > 0.9})
    for batch in batches():
        train_step(model, optimizer, batch)
        assert_zero(pruner, optimizer)


def test_names_of_what_is_published():
    first, second = small_net(), small_net(1)
    trainer = Engine(lambda e, b: None)
    one, other = PruneHandler(first), PruneHandler(second)
    one.attach(trainer)
    with pytest.raises(ValueError, match=r"Another PruneHandler publishes engine.state.sparsity.*name="):
        other.attach(trainer)
    for bad, error in (("iteration", ValueError), ("metrics", ValueError), ("a b", TypeError), (3, TypeError)):
        with pytest.raises(error, match="Argument name"):
            other.attach(trainer, name=bad)
    other.attach(trainer, name="discriminator_sparsity")
    other.step(0.5)
    assert trainer.state.discriminator_sparsity["global"] == 0.5 and trainer.state.sparsity["global"] == 0.0
    assert trainer.state.metrics == {"sparsity": 0.0, "discriminator_sparsity": 0.5}
    one.detach()
    PruneHandler(first).attach(trainer)


def test_nan_only_where_pruned_already_harms_nobody():
    for shape in (pattern.Unstructured(), pattern.NofM(2, 4), pattern.Block((2, 2)), pattern.Channel()):
        pruner = PruneHandler(small_net(), saliency=lambda n, p: (p * p / p).abs(), pattern=shape)
        for target in (0.2, 0.4):
            pruner.step(target)
        assert pruner.sparsity == pytest.approx(0.4, abs=0.15)


def test_a_failing_handler_of_the_update_event_undoes_nothing():
    model = small_net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    trainer = create_supervised_trainer(model, optimizer, nn.functional.cross_entropy)
    pruner = PruneHandler(model, optimizer, schedule=schedule.Linear(0.8, 0, 4))
    pruner.attach(trainer)

    @trainer.on(PruneEvents.MASKS_UPDATED)
    def fail():
        if trainer.state.epoch == 2:
            raise RuntimeError("mine")

    with pytest.raises(RuntimeError, match="mine"):
        trainer.run(batches(), max_epochs=4)
    assert pruner.state_dict()["progress"]["done"] == [("EPOCH_COMPLETED", 2)] and pruner.sparsity == 0.4
    assert trainer.last_event_name == Events.EPOCH_COMPLETED or trainer.last_event_name == Events.EXCEPTION_RAISED


def test_saliencies_may_differentiate():
    model, (x, y) = small_net(), batches()[0]

    def snip(name, parameter):
        (grad,) = torch.autograd.grad(nn.functional.cross_entropy(model(x), y), parameter)
        return (grad * parameter).abs()

    pruner = PruneHandler(model, saliency=snip)
    assert pruner.step(0.5) == 0.5 and not any(s.requires_grad for s in pruner.scores().values())


def test_numbers_of_numpy():
    pruner = PruneHandler(small_net(), schedule=schedule.Linear(np.float32(0.5), np.int64(0), np.int64(4)))
    pruner.param_groups[0]["sparsity"] = np.float64(0.25)
    assert pruner.step() == 0.25 and pruner.step(at=np.int64(4)) == 0.5
    assert type(pruner.param_groups[0]["sparsity"]) is float
    assert functional.mask(torch.ones(4), np.int64(1)).sum() == 3


@pytest.mark.parametrize(
    "masks", [[1], torch.ones(3), 7, {"5.weight": None}, {"5.weight": torch.ones(16, 128).bool().to_sparse()}]
)
def test_masks_that_are_none(masks):
    with pytest.raises(TypeError, match="mask"):
        PruneHandler(small_net(), masks=masks)
    with pytest.raises(TypeError, match="mask"):
        MaskStore(small_net()).update(masks)
    with pytest.raises(TypeError, match="Argument parameters"):
        MaskStore({"a": 1})


def test_other_bad_arguments():
    for make, error in [
        (lambda: PruneHandler(small_net(), schedule=schedule.Constant(0.5)).step(at="3"), TypeError),
        (lambda: PruneHandler(small_net(), schedule=schedule.Constant(0.5)).step(at=True), TypeError),
        (lambda: allocation.StdThreshold(q="x"), ValueError),
        (lambda: allocation.StdThreshold(q=True), ValueError),
    ]:
        with pytest.raises(error):
            make()


@pytest.mark.filterwarnings("ignore:Pruning left less than 1 %")
def test_float64_competes_with_float32_by_value():
    model = nn.Module()
    model.a = nn.Parameter(torch.tensor([1 - 1e-10], dtype=torch.float64))
    model.b = nn.Parameter(torch.tensor([1.0]))
    masks = prune_model(model, "*", sparsity=0.5)
    assert masks["a"].tolist() == [False] and masks["b"].tolist() == [True]


def test_hostile_states_are_refused_in_words():
    pruner = PruneHandler(small_net(), saliency=saliency.Random(), keep_dense=True)
    pruner.step(0.5)
    good = pruner.state_dict()
    junk = [
        None,
        -1,
        10**30,
        math.nan,
        "x",
        b"x",
        [],
        {},
        [1],
        {"a": 1},
        torch.zeros(3),
        torch.zeros(2, device="meta"),
        torch.eye(2).to_sparse(),
    ]
    paths = [(key,) for key in good]
    paths += [("masks", key) for key in good["masks"]] + [
        ("masks", "shapes", 0),
        ("masks", "shapes", 0, 0),
        ("masks", "names", 0),
    ]
    paths += [("progress", key) for key in good["progress"]] + [("progress", "done", "X"), ("dense", "0.weight")]
    paths += [("evidence",), ("sparsities", 0), ("generators", 0)]
    for path in paths:
        for value in junk:
            state = copy.deepcopy(good)
            target = state
            for key in path[:-1]:
                target[key] = from_pairs(target[key])
                target = target[key]
            target[path[-1]] = value
            before = {n: m.clone() for n, m in pruner.masks.items()}
            try:
                pruner.load_state_dict(state)
            except (TypeError, ValueError):
                assert all(torch.equal(before[n], m) for n, m in pruner.masks.items())
    assert set(pruner.masks) == set(WEIGHTS)


def test_the_same_target_again_needs_no_evidence():
    """OWL divides by the scores, whose evidence the first update has used."""
    pruner = PruneHandler(small_net(), saliency=saliency.Wanda(), allocation=allocation.OWL(), data=batches(2))
    assert pruner.step(0.5) == pruner.step(0.5) == pytest.approx(0.5, abs=1e-3)


def test_a_refused_step_leaves_the_parameters_to_others():
    model = small_net()
    refused = PruneHandler(model, saliency=lambda name, p: p / 0)
    with pytest.raises(ValueError, match="NaN or infinite"):
        refused.step(0.5)
    assert PruneHandler(model).step(0.5) == pytest.approx(0.5, abs=1e-3)


def test_layers_that_changed_places_are_refused():
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
    pruner = PruneHandler(model)
    model[0], model[2] = model[2], model[0]
    with pytest.raises(ValueError, match=r"'0.weight' of the model has been replaced"):
        pruner.step(0.5)
