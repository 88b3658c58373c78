"""Learnt sparsity: soft movement pruning against the reference, and the laws."""

import copy
import pickle

import pytest
import torch
from ignite.engine import Engine, create_supervised_trainer
from torch import nn
from torch.func import functional_call
from torch.nn.functional import cross_entropy

from ignite_prune import PruneHandler, schedule
from ignite_prune.handlers import LearntSparsity
from ignite_prune.regularise import Gate, SoftMovement, SoftThreshold, soft_mask, soft_threshold, straight_through
from tests import catalogue
from tests.catalogue import OPTIMIZERS
from tests.golden_values import arrays, tensor
from tests.models import WEIGHTS, assert_zero, batches, small_net, train_step
from tests.ranks import on_two_ranks
from tests.test_golden_saliency import network, whole

FILE = "movement"
GATES = {row.name: row.make() for row in catalogue.GATES}
PLAIN = [row for row in OPTIMIZERS if not row.notes]


def attached(model, gate, strength=0.0, **options):
    handler = LearntSparsity(model, gate=gate, strength=strength, **options)
    handler.attach(Engine(lambda engine, batch: None))
    return handler


def test_soft_movement_is_the_references():
    net, (x, y) = network("mlp"), whole("mlp")
    optimizer = torch.optim.SGD(net.parameters(), lr=float(arrays(FILE)["lr_w"]))
    learner = lambda learnt: torch.optim.SGD(learnt, lr=float(arrays(FILE)["lr_s"]))  # noqa: E731
    gate = SoftMovement(threshold=float(arrays(FILE)["sigmoid_tau"]))
    handler = LearntSparsity(net, gate=gate, strength=0.0, learner=learner)
    for i, scores in enumerate(handler.parameters()):
        scores.data.copy_(tensor(FILE, f"scores_init_{i}"))
    handler.attach(Engine(lambda engine, batch: None))
    names = list(handler.masks)
    for t in range(int(arrays(FILE)["steps"])):
        for i, name in enumerate(names):
            assert torch.equal(handler.masks[name], tensor(FILE, f"sigmoid_threshold_t{t}_mask{i}"))
        start = t * 8 % len(x)
        optimizer.zero_grad()
        loss = cross_entropy(net(x[start : start + 8]), y[start : start + 8])
        torch.testing.assert_close(loss, tensor(FILE, f"sigmoid_threshold_loss_t{t}"), rtol=1e-8, atol=0)
        loss.backward()
        optimizer.step()
        state = handler.state_dict()
        for i, name in enumerate(names):
            if f"sigmoid_threshold_t{t}_S{i}" in arrays(FILE):
                for key, letter in (("learnt", "S"), ("whole", "W")):
                    expected = tensor(FILE, f"sigmoid_threshold_t{t}_{letter}{i}")
                    torch.testing.assert_close(dict(state[key])[name], expected, rtol=1e-8, atol=1e-12)
    handler.finalize()
    for i, name in enumerate(names):
        assert torch.equal(net.get_parameter(name) != 0, tensor(FILE, f"sigmoid_threshold_final_mask{i}"))


@pytest.mark.parametrize("strength", [0.0, 0.7])
@pytest.mark.parametrize("gate", GATES)
def test_gradients_are_those_of_a_reparametrised_model(gate, strength):
    # The textbook's way: autograd through the reparametrisation, one SGD for all.
    gate, model = GATES[gate], small_net().double()
    whole = {name: model.get_parameter(name).detach().clone().requires_grad_() for name in WEIGHTS}
    learnt = {name: gate.start(w.detach()).requires_grad_() for name, w in whole.items()}
    rest = {name: p.detach().clone().requires_grad_() for name, p in model.named_parameters() if name not in WEIGHTS}
    other = copy.deepcopy(model)
    textbook = torch.optim.SGD([*whole.values(), *learnt.values(), *rest.values()], lr=0.1)
    handler = attached(model, gate, strength, learner=lambda learnt: torch.optim.SGD(learnt, lr=0.1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for x, y in batches(4):
        train_step(model, optimizer, (x.double(), y))
        textbook.zero_grad()
        weights = {name: gate.work(w, learnt[name]) for name, w in whole.items()} | rest
        loss = cross_entropy(functional_call(other, weights, (x.double(),)), y)
        (loss + strength * sum(gate.penalty(each) for each in learnt.values())).backward()
        textbook.step()
    state = handler.state_dict()
    for name in WEIGHTS:
        torch.testing.assert_close(
            state["learnt"][name], learnt[name].detach(), check_dtype=False, rtol=1e-6, atol=1e-8
        )
        torch.testing.assert_close(dict(state["whole"])[name], whole[name].detach())
        torch.testing.assert_close(model.get_parameter(name), gate.work(whole[name], learnt[name]))
    expected = strength * sum(float(gate.penalty(each.detach())) for each in learnt.values())
    assert handler.penalty() == pytest.approx(expected)
    handler.detach()


def learn(gate, strength, seed=0, **options):
    model = small_net(seed)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    trainer = create_supervised_trainer(model, optimizer, cross_entropy)
    handler = LearntSparsity(model, gate=gate, strength=strength, **options)
    handler.attach(trainer)
    trainer.run(batches(5), max_epochs=30)
    return model, handler, trainer


@pytest.mark.parametrize(
    ("gate", "weak", "strong"), [(SoftThreshold(-4.0), 1e-4, 0.1), (SoftMovement(0.45), 0.1, 1.0)], ids=str
)
def test_sparsity_is_learnt(gate, weak, strong):
    found = []
    for strength in (weak, strong):
        model, handler, trainer = learn(gate, strength)
        published = trainer.state.learnt_sparsity
        zeros = sum(int((model.get_parameter(name) == 0).sum()) for name in WEIGHTS)
        assert published["global"] == handler.sparsity == pytest.approx(zeros / handler.masks.numel)
        assert {"penalty", "global", "model", *WEIGHTS} == set(published)
        loss = sum(float(cross_entropy(model(x), y).detach()) for x, y in batches(5)) / 5
        assert loss < 0.7  # chance is 1.39
        found.append(handler.sparsity)
        assert len({published[name] for name in WEIGHTS}) == 3  # each layer finds its own
    assert 0.05 < found[0] < found[1] < 1


def test_a_layer_is_never_emptied_by_movement():
    _, handler, _ = learn(SoftMovement(0.4, min_density=0.05), 1000.0)
    assert handler.sparsity == pytest.approx(0.95, abs=0.01)


def test_the_model_stays_itself():
    model = small_net()
    plain = small_net().state_dict()
    handler = attached(model, SoftThreshold(-2.0), 0.1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for batch in batches(3):
        train_step(model, optimizer, batch)
    x = batches(1)[0][0]
    model.eval()
    assert list(model.state_dict()) == list(plain)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model)), small_net()):
        other.load_state_dict(model.state_dict())
        other.eval()
        assert torch.equal(other(x), model(x)) and handler.sparsity > 0.1
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    handler.finalize()
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())
    assert not any(torch.signbit(model.get_parameter(name)[model.get_parameter(name) == 0]).any() for name in WEIGHTS)
    pruner = PruneHandler(model, optimizer, masks=handler.masks)  # and on with what it has become
    train_step(model, optimizer, batches(1)[0])
    assert_zero(pruner, optimizer)
    for action in (handler.finalize, lambda: handler.attach(Engine(lambda e, b: None))):
        with pytest.raises(ValueError, match="finished"):
            action()


@pytest.mark.parametrize("gate", GATES)
@pytest.mark.parametrize("first", ["pruner", "learnt"])
@pytest.mark.parametrize("row", PLAIN, ids=str)
def test_zero_stays_zero_beside_a_pruner(row, first, gate):
    model = small_net()
    optimizer = row.make(model.parameters())
    pruner = PruneHandler(model, optimizer, shared=True)
    learnt = LearntSparsity(model, gate=GATES[gate], strength=0.1, optimizer=optimizer, shared=True)
    for each in (pruner, learnt) if first == "pruner" else (learnt, pruner):
        each.attach(Engine(lambda engine, batch: None))
    for number, batch in enumerate(batches(4)):
        train_step(model, optimizer, batch)
        assert_zero(pruner)
        if number < 2:
            pruner.step(0.3 * (number + 1))
            assert_zero(pruner, optimizer)
    learnt.detach()


@pytest.mark.parametrize("fused", [False, True])
def test_amp_leaves_a_step_out(fused):
    x, y = batches(1)[0]
    ends = []
    for amp in (False, True):
        model = small_net()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, fused=fused)
        handler = attached(model, SoftThreshold(-3.0), 0.1)
        scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, enabled=amp)
        scaler.scale(cross_entropy(model(x), y)).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        ends.append(
            {**copy.deepcopy(model.state_dict()), **{f"S {k}": v for k, v in handler.state_dict()["learnt"].items()}}
        )
        if amp:
            scaler.scale(cross_entropy(model(x), y) * float("inf")).backward()
            before = copy.deepcopy((model.state_dict(), handler.state_dict()["learnt"]))
            scaler.step(optimizer)
            for then, now in zip(before, (model.state_dict(), handler.state_dict()["learnt"])):
                assert all(torch.equal(now[name], value) for name, value in then.items())
        handler.detach()
    for name, value in ends[0].items():
        torch.testing.assert_close(ends[1][name], value, rtol=1e-5, atol=1e-6)


class Cubed(Gate):
    """A gate of one's own."""

    def start(self, weight):
        return torch.zeros(())

    def work(self, weight, learnt):
        return soft_threshold(weight, learnt.exp() - 1)

    def penalty(self, learnt):
        return -learnt


def test_a_gate_of_ones_own():
    _, handler, _ = learn(Cubed(), schedule.Linear(0.1, begin=0, end=5))
    assert 0 < handler.sparsity < 1


def test_masks_that_let_gradients_through():
    scores = torch.tensor([0.2, 0.9], requires_grad=True)
    straight_through(scores > 0.5, scores).dot(torch.tensor([2.0, 3.0])).backward()
    assert scores.grad.tolist() == [2.0, 3.0]
    threshold = torch.tensor(0.5, requires_grad=True)
    soft = soft_mask(scores.detach(), threshold, temperature=0.1)
    torch.testing.assert_close(soft, torch.tensor([0.047426, 0.982014]), rtol=1e-5, atol=0)
    soft.sum().backward()
    assert threshold.grad < 0
    with pytest.raises(ValueError, match="temperature"):
        soft_mask(scores, 0.5, temperature=0)


def on_a_rank(rank):
    model = small_net()
    wrapped = nn.parallel.DistributedDataParallel(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    trainer = create_supervised_trainer(wrapped, optimizer, cross_entropy)
    handler = LearntSparsity(wrapped, gate=SoftThreshold(-3.0), strength=0.1)
    handler.attach(trainer)
    trainer.run(batches(8, seed=10 + rank), max_epochs=2)
    return [p.tolist() for p in model.parameters()], [p.tolist() for p in handler.parameters()], handler.sparsity


def test_ranks_agree():
    first, second = on_two_ranks(on_a_rank)
    assert first == second and first[2] > 0


def test_bad_arguments():
    model = small_net()
    for options, error, told in [
        ({"gate": SoftThreshold}, TypeError, "gate"),
        ({"strength": -1}, ValueError, "strength"),
        ({"learner": lambda learnt: 3}, TypeError, "learner"),
        ({"params": "nothing"}, ValueError, "matches"),
    ]:
        with pytest.raises(error, match=told):
            LearntSparsity(model, **{"strength": 0.1, **options})
    for make, error in [
        (lambda: SoftThreshold(1.0), ValueError),
        (lambda: SoftThreshold("low"), TypeError),
        (lambda: SoftMovement(1.5), ValueError),
        (lambda: SoftMovement(min_density=0), ValueError),
        (lambda: SoftMovement(start_at=float("nan")), ValueError),
    ]:
        with pytest.raises(error):
            make()
    handler = attached(model, SoftThreshold(), 0.1)
    optimizer, before = torch.optim.LBFGS(model.parameters()), copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match="LBFGS was given a closure"):
        train_step(model, torch.optim.SGD(model.parameters(), lr=0.1), batches(1)[0])
        train_step(model, optimizer, batches(1)[0], closure=True)
    assert list(model.state_dict()) == list(before)
    good = handler.state_dict()
    for change, error in [
        ({"learnt": {}}, ValueError),
        ({"whole": {"0.weight": torch.zeros(1)}}, ValueError),
        ({"learnt": 3}, TypeError),
        ({"learner": {"state": {}, "param_groups": []}}, ValueError),
        ({"strengths": [0.1, 0.2]}, ValueError),
    ]:
        with pytest.raises(error):
            handler.load_state_dict({**good, **change})
    missing = dict(good)
    del missing["whole"]
    with pytest.raises(ValueError, match="lacks"):
        handler.load_state_dict(missing)
    handler.detach()


@pytest.mark.parametrize("given", [False, True])
@pytest.mark.parametrize("first", ["pruner", "learnt"])
def test_decay_leaves_no_trace_beside_a_pruner(first, given):
    model = small_net()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01, weight_decay=0.1)
    learnt = LearntSparsity(
        model, gate=SoftThreshold(start_at=-3.0), strength=0.1, optimizer=optimizer if given else None
    )
    engine = Engine(lambda engine, batch: None)
    if first == "learnt":
        learnt.attach(engine)
    pruner = PruneHandler(model, optimizer, shared=True)
    if first == "pruner":
        learnt.attach(engine)
    for number, batch in enumerate(batches(5)):
        train_step(model, optimizer, batch)
        pruner.step(0.15 * (number + 1))
        train_step(model, optimizer, batch)
        assert_zero(pruner, optimizer)
    learnt.detach()


@pytest.mark.parametrize("given", [False, True])
def test_a_step_that_raises_is_undone(given):
    model = small_net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    learnt = LearntSparsity(
        model, gate=SoftThreshold(start_at=-3.0), strength=0.1, optimizer=optimizer if given else None
    )
    trainer = create_supervised_trainer(model, optimizer, cross_entropy)
    learnt.attach(trainer)
    trainer.run(batches(3))
    before = copy.deepcopy(model.state_dict())

    def fail(*args):
        raise RuntimeError("on purpose")

    handle = optimizer.register_step_pre_hook(fail)
    for look in (model.state_dict, lambda: learnt.masks and model.state_dict(), learnt.state_dict):
        cross_entropy(model(batches(1)[0][0]), batches(1)[0][1]).backward()
        with pytest.raises(RuntimeError, match="on purpose"):
            optimizer.step()
        look()
        for name, parameter in learnt._parameters.items():
            assert torch.equal(parameter, before[name]), name
    handle.remove()
    learnt.detach()
    assert not model._state_dict_pre_hooks


@pytest.mark.parametrize("gate", GATES)
def test_nan_learns_nothing(gate):
    model = small_net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    learnt = LearntSparsity(model, gate=GATES[gate], strength=0.1)
    learnt.attach(Engine(lambda engine, batch: None))
    before = copy.deepcopy((model.state_dict(), learnt.state_dict()))
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    model[5].weight.grad[0, 0] = float("nan")
    with pytest.raises(ValueError, match="gradient of '5.weight' has values that are NaN"):
        optimizer.step()
    for then, now in zip(before, (model.state_dict(), learnt.state_dict())):
        assert all(torch.equal(now[key], value) for key, value in then.items() if isinstance(value, torch.Tensor))
        assert all(torch.equal(now["learnt"][key], value) for key, value in then.get("learnt", {}).items())
    learnt.detach()
