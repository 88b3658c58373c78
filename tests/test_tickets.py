"""Lottery tickets: rates, rewinding, controls that keep their counts, and the barrier between two trainings."""

import copy

import pytest
import torch
from ignite.engine import Events, create_supervised_trainer
from torch import nn

from ignite_prune import LotteryTicket, MaskStore, PruneHandler, Rewind, allocation, barrier, pattern, saliency
from ignite_prune.activation import TopK
from ignite_prune.handlers import Control
from ignite_prune.handlers.lottery.controls import inverted, random_masks, reinitialise, shuffled
from ignite_prune.handlers.lottery.lottery_ticket import rates
from ignite_prune.handlers.lottery.mode_connectivity import losses_between
from tests.golden_values import tensor
from tests.models import assert_same_bits, assert_zero, batches, small_net
from tests.ranks import on_two_ranks


def make(model=None, **settings):
    model = small_net() if model is None else model
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    trainer = create_supervised_trainer(model, optimizer, nn.functional.cross_entropy)
    settings = {"epochs": 2, "rate": 0.5, **settings}
    return model, optimizer, LotteryTicket(model, optimizer, trainer, batches(3), **settings)


def bits(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


# The ticket


def test_per_layer_rates_with_the_output_at_half():
    *_, ticket = make(rate=0.2)
    ticket.run(rounds=3)
    entries = {"0.weight": 288, "5.weight": 2048, "7.weight": 64}
    for name, rate in {"0.weight": 0.2, "5.weight": 0.2, "7.weight": 0.1}.items():
        assert ticket.masks.kept(name) == entries[name] - round(entries[name] * (1 - (1 - rate) ** 3))


def test_published_rounds():
    remaining = tensor("schedules", "lth_density")
    *_, ticket = make(rate=0.2, epochs=1, params="5.weight")
    ticket.run(rounds=4)
    for result, density in zip([each["sparsity"] for each in ticket.engine.results], remaining.tolist()):
        assert result == pytest.approx(1 - density, abs=0.5 / 2048)


def test_run_ends_with_the_ticket_trained_and_goes_on_from_its_beginning():
    model, optimizer, ticket = make()
    start = bits(model)
    begun = []
    trainer = ticket.engine.trainer
    trainer.add_event_handler(Events.STARTED, lambda _: begun.append((bits(model), dict(ticket.masks))))
    ticket.run(rounds=2)
    ticket.run(rounds=3)
    assert [each["stage"] for each in ticket.engine.results] == ["trained"] * 2 + [
        "fine_tuned",
        "trained",
        "fine_tuned",
    ]
    assert len(begun) == 5
    for weights, masks in begun:
        for name, value in weights.items():
            assert torch.equal(value, start[name] * masks[name] if name in masks else start[name]), name
    assert_zero(ticket.pruner, optimizer)
    assert not torch.equal(model[5].weight, begun[-1][0]["5.weight"])


def test_as_many_rounds_again_leave_the_ticket_and_its_beginning():
    model, _, ticket = make()
    ticket.run(rounds=2)
    trained, results = bits(model), copy.deepcopy(ticket.engine.results)
    held = copy.deepcopy(ticket.engine.snapshot.state_dict())
    assert ticket.run(rounds=2) == results
    for rounds, error in ((1, ValueError), (0, ValueError), (2.0, TypeError)):
        with pytest.raises(error, match="rounds"):
            ticket.run(rounds=rounds)
    assert_same_bits(trained, bits(model))
    assert_same_bits(held, ticket.engine.snapshot.state_dict())


@pytest.mark.parametrize("rewind", [Rewind(), Rewind(to=2), Rewind(to=3, optimizer=False)])
def test_the_ticket_trained_again_is_the_same_and_nothing_changes(rewind):
    model, optimizer, ticket = make(rewind=rewind)
    ticket.run(rounds=2)
    before = copy.deepcopy([bits(model), optimizer.state_dict(), ticket.pruner.state_dict()])
    again = ticket.train(Control.TICKET)
    if rewind.optimizer:  # and the loader's order is fixed
        assert_same_bits(bits(again.model), bits(model))
    controls = ticket.controls(seed=3)
    assert_same_bits(before, [bits(model), optimizer.state_dict(), ticket.pruner.state_dict()])
    assert set(controls) == {"ticket", "reinit", "shuffled", "random", "inverted"}
    kept = int(before[0]["5.weight"].count_nonzero())
    for name, control in controls.items():
        assert control.sparsity == ticket.pruner.sparsity, name
        if name != "random":
            assert int(control.model[5].weight.count_nonzero()) == kept, name


def test_controls_begin_as_they_should():
    model, optimizer, ticket = make()
    start = bits(model)
    ticket.run(rounds=2)
    seen = {}

    def see(control):
        handle = ticket.engine.trainer.add_event_handler(
            Events.STARTED, lambda _: seen.update({control: (bits(model), dict(ticket.masks), len(optimizer.state))})
        )
        ticket.train(control, seed=0)
        handle.remove()

    for control in Control:
        see(control)
    mask = dict(ticket.masks)
    for control, (weights, masks, slots) in seen.items():
        assert slots == 0
        same_mask = control in (Control.TICKET, Control.REINIT)
        assert torch.equal(masks["5.weight"], mask["5.weight"]) is same_mask
        same_start = control is not Control.REINIT
        assert torch.equal(weights["5.weight"], start["5.weight"] * masks["5.weight"]) is same_start
        assert not weights["5.weight"][~masks["5.weight"]].any()
    # The model was made under seed 0, and the control drawn with it: still, they are other weights.
    assert not torch.equal(seen[Control.REINIT][0]["0.weight"], start["0.weight"] * mask["0.weight"])


def test_a_failing_control_leaves_everything_as_it_was():
    model, optimizer, ticket = make(evaluator=lambda: next(accuracies))
    accuracies = iter([{"accuracy": 1.0}] * 2)
    ticket.run(rounds=1)
    before = copy.deepcopy([bits(model), optimizer.state_dict(), ticket.pruner.state_dict()])
    with pytest.raises(StopIteration):
        ticket.train(Control.SHUFFLED)
    assert_same_bits(before, [bits(model), optimizer.state_dict(), ticket.pruner.state_dict()])


def test_orders_and_seeds():
    class Shuffled(list):
        def __iter__(self):
            return iter([self[i] for i in torch.randperm(len(self)).tolist()])

    model = small_net()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    trainer = create_supervised_trainer(model, optimizer, nn.functional.cross_entropy)
    ticket = LotteryTicket(model, optimizer, trainer, Shuffled(batches(4)), epochs=2, rate=0.5)
    ticket.run(rounds=1)
    state = torch.get_rng_state()
    first, second, again = (bits(ticket.train(order=order).model) for order in (1, 2, 1))
    assert torch.equal(state, torch.get_rng_state())
    assert_same_bits(first, again)
    assert not torch.equal(first["0.weight"], second["0.weight"])


def test_learning_rate_rewinding_has_no_beginning_for_controls():
    *_, ticket = make(rewind=Rewind(weights=False))
    ticket.run(rounds=2)
    assert ticket.pruner.sparsity > 0.7
    with pytest.raises(ValueError, match="rewound weights"):
        ticket.controls()


def test_bad_arguments():
    for error, match, settings in (
        (TypeError, "rate", {"rate": "fast"}),
        (ValueError, "rate", {"rate": 20}),
        (ValueError, "output_rate", {"output_rate": -0.1}),
        (ValueError, "output.*near matches", {"output": "7.wait"}),
        (TypeError, "rewind", {"rewind": None}),
        (TypeError, "reset", {"reset": 3}),
        (ValueError, "no parameter", {"params": "nothing"}),
        (ValueError, "epochs", {"epochs": 0}),
    ):
        with pytest.raises(error, match=match):
            make(**settings)
    *_, ticket = make()
    with pytest.raises(ValueError, match="run"):
        ticket.controls()
    with pytest.raises(TypeError, match="control"):
        ticket.train("shuffled")
    with pytest.raises(TypeError, match="seed"):
        ticket.train(seed=0.5)


def test_rates_of_one_layer_and_of_a_named_output():
    assert [g["schedule"].rate for g in rates(nn.Linear(2, 2), 0.4)] == [0.4]
    groups = rates(small_net(), 0.4, output="5.weight", output_rate=0.1)
    assert [(g["params"], g["schedule"].rate) for g in groups] == [(["0.weight", "7.weight"], 0.4), (["5.weight"], 0.1)]


# Masks of controls


PATTERNS = [pattern.Unstructured(), pattern.NofM(2, 4), pattern.Block((2, 2)), pattern.Channel(), pattern.Head(size=2)]


@pytest.mark.parametrize("shape", PATTERNS, ids=lambda each: type(each).__name__)
def test_controls_keep_as_many_units_in_every_pattern(shape):
    model = small_net()
    sparsity = shape.share / 2
    pruner = PruneHandler(model, pattern=shape, allocation=allocation.Uniform())
    pruner.step(sparsity)
    scores = pruner.scores()
    for masks in (shuffled(pruner.param_groups, pruner.masks, 1), inverted(pruner.param_groups, pruner.masks, scores)):
        for name, mask in masks.items():
            assert int(mask.sum()) == pruner.masks.kept(name)
            assert not torch.equal(mask, pruner.masks[name])
            MaskStore(dict(pruner.masks.parameters)).update(masks)
    overall = random_masks(pruner.param_groups, pruner.masks, 1)
    units = [sum(int(shape.alive(masks[name]).sum()) for name in masks) for masks in (overall, pruner.masks)]
    assert units[0] == units[1]


def test_inverted_keeps_the_least():
    layer = nn.Linear(4, 1)
    store = MaskStore(layer, {"weight": torch.tensor([[True, True, False, False]])})
    groups = [{"params": ["weight"], "pattern": pattern.Unstructured()}]
    assert inverted(groups, store, {"weight": torch.tensor([[4.0, 3.0, 2.0, 1.0]])})["weight"].tolist() == [
        [False, False, True, True]
    ]
    units = [{"params": ["weight"], "pattern": pattern.Channel(dim=1)}]
    by_unit = inverted(units, store, {"weight": torch.tensor([1.0, 2.0, 3.0, 4.0])})["weight"]
    assert by_unit.tolist() == [[True, True, False, False]]


def test_an_inverted_saliency_keeps_what_the_other_prunes():
    model = small_net()
    both = []
    for formula in (saliency.Magnitude(), saliency.Inverted(saliency.Magnitude())):
        pruner = PruneHandler(model, saliency=formula, params="5.weight")
        both.append(pruner.pruning.plan([0.5]).masks["5.weight"])
    assert torch.equal(both[0], ~both[1])
    with pytest.raises(TypeError, match="saliency"):
        saliency.Inverted(lambda name, p: p)


def test_weights_are_drawn_anew_or_refused():
    model = small_net()
    before = bits(model)
    state = torch.get_rng_state()
    reinitialise(model, seed=0)
    first = bits(model)
    reinitialise(model, seed=0)
    assert torch.equal(state, torch.get_rng_state())
    assert_same_bits(first, bits(model))
    assert not torch.equal(first["5.weight"], before["5.weight"])
    model.own = nn.ParameterList([torch.ones(2)])
    before = bits(model)
    with pytest.raises(ValueError, match="'own'.*reset="):
        reinitialise(model, seed=1)
    assert_same_bits(before, bits(model))
    reinitialise(model, 1, lambda net: nn.init.zeros_(net[5].weight))
    assert not model[5].weight.any()


# The barrier


def test_frozen_weights_are_not_drawn_anew():
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 2))
    model(torch.randn(6, 4))
    model[:2].requires_grad_(False)
    before = bits(model)
    reinitialise(model, seed=0)
    after = bits(model)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"2.weight", "2.bias"}


def quadratic(x, y):
    return (x - y).square().mean()


def test_a_barrier_by_hand():
    # L(w) = (w² − 1)² has two valleys at ±1 with a hill of height 1 between them.
    a, b = nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False)
    nn.init.constant_(a.weight, 1.0)
    nn.init.constant_(b.weight, -1.0)
    data = [(torch.ones(3, 1), None), (torch.ones(1, 1), None)]
    loss = lambda w, _: (w**2 - 1).square().mean()  # noqa: E731
    assert barrier(a, b, data, loss) == 1.0
    nn.init.constant_(b.weight, 0.0)
    assert barrier(a, b, data, loss) == 0.5  # the higher end counts
    assert barrier(a, a, data, loss) == 0.0
    assert losses_between(a, b, data, lambda w, _: w.mean(), points=3) == [1.0, 0.5, 0.0]


def test_batches_weigh_as_many_samples_as_they_have():
    model = nn.Linear(1, 1, bias=False)
    data = [(torch.ones(3, 1), torch.tensor(4.0)), (torch.ones(1, 1), torch.tensor(0.0))]
    assert losses_between(model, model, data, lambda y, t: t) == [3.0] * 11


def test_batch_norm_is_interpolated_or_estimated_anew():
    a, b = small_net(1), small_net(2)
    data = batches(2)
    for model, scale in ((a, 1.0), (b, 9.0)):
        model[1].running_var.fill_(scale)
    before = bits(a), bits(b)
    seen = []

    def see(output, target):
        seen.append(output.detach().clone())
        return output.mean()

    plain = losses_between(a, b, data, see, points=3)
    anew = losses_between(a, b, data, see, points=3, calibration=data)
    assert plain[0] == anew[0] and plain[2] == anew[2] and plain[1] != anew[1]
    middle = small_net()
    middle.load_state_dict(
        {
            name: (first + before[1][name]) / 2 if first.is_floating_point() else first
            for name, first in before[0].items()
        }
    )
    middle.eval()
    with torch.no_grad():
        assert plain[1] == pytest.approx(sum(float(middle(x).mean()) for x, _ in data) / 2, abs=1e-6)
        inputs = torch.cat([middle[0](x) for x, _ in data])
        middle[1].running_mean.copy_(inputs.mean((0, 2, 3)))
        spread = [middle[0](x).var((0, 2, 3)) for x, _ in data]
        middle[1].running_var.copy_(torch.stack(spread).mean(0))
        assert anew[1] == pytest.approx(sum(float(middle(x).mean()) for x, _ in data) / 2, abs=1e-5)
    assert_same_bits(before, (bits(a), bits(b)))


def test_sparsifiers_are_as_sparse_as_each_end():
    ends = [nn.Sequential(nn.Linear(4, 8), TopK(amount), nn.Linear(8, 3)) for amount in (0.75, 0.25)]
    data = [(torch.randn(6, 4), torch.randint(3, (6,)))]
    for each in ends:
        each(data[0][0])
        each.eval()
    losses = losses_between(*ends, data, nn.functional.cross_entropy, points=3)
    wanted = [nn.functional.cross_entropy(each(data[0][0]), data[0][1]).item() for each in ends]
    assert losses[::2] == pytest.approx(wanted)


def test_barriers_refuse():
    a, b = small_net(), small_net()
    with pytest.raises(ValueError, match="points"):
        barrier(a, b, batches(1), quadratic, points=2)
    with pytest.raises(TypeError, match="points"):
        barrier(a, b, batches(1), quadratic, points=3.0)
    b[7] = nn.Linear(16, 3)
    with pytest.raises(ValueError, match="7."):
        barrier(a, b, batches(1), quadratic)
    with pytest.raises(ValueError, match="no batch"):
        barrier(a, a, [], quadratic)
    with pytest.raises(TypeError, match="model"):
        barrier(a, None, batches(1), quadratic)


# Law 8


def scenario(rank):
    model = small_net()
    parallel = nn.parallel.DistributedDataParallel(model)
    optimizer = torch.optim.SGD(parallel.parameters(), lr=0.05, momentum=0.9)
    trainer = create_supervised_trainer(parallel, optimizer, nn.functional.cross_entropy)
    ticket = LotteryTicket(parallel, optimizer, trainer, batches(2, seed=rank), epochs=1, rate=0.5)
    ticket.run(rounds=1)
    found = ticket.controls()
    return {name: {n: t.tolist() for n, t in each.model.named_parameters()} for name, each in found.items()}


def test_ranks_end_equal():
    first, second = on_two_ranks(scenario)
    assert first == second
