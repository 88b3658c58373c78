"""ActivationSparsity on an engine: names, schedules, boosts, what is published, checkpoints, ranks, kills."""

import copy
import io
import math
import pickle

import pytest
import torch
from ignite.engine import Engine, Events, create_supervised_trainer
from ignite.handlers.tensorboard_logger import TensorboardLogger
from torch import nn

from ignite_prune import schedule
from ignite_prune.activation import KWinners, KWinners2d, Learnt, Lifetime, TopK
from ignite_prune.handlers import ActivationSparsity
from tests.catalogue import SPARSIFIERS
from tests.models import assert_same_bits, batches, small_net

rows = pytest.mark.parametrize("row", SPARSIFIERS, ids=str)


def training(model, handler=None, lr=0.05):
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    return create_supervised_trainer(model, optimizer, nn.functional.cross_entropy)


def hooks_of(model):
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


@rows
@pytest.mark.parametrize("after", [False, True])
def test_inserted_is_what_a_module_would_be(row, after):
    plain = row.net()
    with_modules = nn.Sequential(*plain)
    place = 2 if after else 1
    with_modules.insert(place, row.make())
    inserted = copy.deepcopy(plain)
    handler = ActivationSparsity(inserted, {"0": row.make()}, after_activation=after)
    keys = list(inserted.state_dict())
    handler.install()
    for train in (True, True, False):
        inserted.train(train), with_modules.train(train)
        x = torch.randn(row.input())
        a, b = inserted(x), with_modules(x)
        assert_same_bits(a, b)
        for loss in (a.square().sum(), b.square().sum()):
            loss.backward()
    assert all(torch.equal(p.grad, q.grad) for p, q in zip(inserted.parameters(), plain.parameters()))
    assert_same_bits(dict(handler.sparsifiers["0"].state_dict()), dict(with_modules[place].state_dict()))
    assert type(inserted) is nn.Sequential and list(inserted.state_dict()) == keys
    x = torch.randn(row.input())
    for copied in (copy.deepcopy(inserted), pickle.loads(pickle.dumps(inserted))):
        assert_same_bits(copied(x), plain.eval()(x))
    handler.detach()
    assert hooks_of(inserted) == 0
    assert_same_bits(inserted(x), plain(x))


def test_schedules_boosts_and_what_is_published():
    model = small_net()
    layers = {
        "0": KWinners2d(density=schedule.Linear(0.8, begin=0, end=4), boost=1.0),
        "5": TopK(schedule.Steps({2: 0.25, 3: 0.5})),
        "7": Lifetime(0.5),
    }
    handler = ActivationSparsity(model, layers, boost_decay=0.9)
    trainer = training(model)
    handler.attach(trainer, Events.EPOCH_COMPLETED)
    assert trainer.state.activation["0.sparsity"] == 0 and math.isnan(trainer.state.activation["0.entropy"])
    told = []
    trainer.add_event_handler(Events.EPOCH_COMPLETED, lambda e: told.append(dict(e.state.activation)))
    trainer.run(batches(), max_epochs=4)
    assert [round(each["0.sparsity"], 6) for each in told] == [0.2, 0.4, 0.6, 0.8]
    assert [each["5.sparsity"] for each in told] == [0, 0.25, 0.5, 0.5]
    assert [round(each["0.boost"], 6) for each in told] == [0.9, 0.81, 0.729, 0.6561]
    assert all(type(value) is float for each in told for value in each.values())
    assert set(told[0]) == {
        f"{layer}.{what}" for layer in "057" for what in ("sparsity", "entropy", "dead")
    } | {"0.boost"}  # fmt: skip
    assert all(0 < each["0.entropy"] <= 1 and each["7.dead"] == 0 for each in told)


def test_boosts_decay_by_epochs_whatever_the_event():
    model = small_net()
    handler = ActivationSparsity(
        model, {"5": KWinners(density=schedule.Linear(0.5, begin=0, end=10), boost=1.0)}, boost_decay=0.5
    )
    trainer = training(model)
    handler.attach(trainer, Events.ITERATION_COMPLETED(every=2), name="winners")
    trainer.run(batches(5), max_epochs=2)
    assert trainer.state.winners["5.sparsity"] == 0.5 and trainer.state.winners["5.boost"] == 0.25
    handler.detach()
    assert not [h for hs in trainer._event_handlers.values() for h, _, _ in hs if "Attachment" in repr(h)]
    assert hooks_of(model) == 0
    handler.attach(trainer, Events.EPOCH_COMPLETED, name="winners")
    assert hooks_of(model) == 1


@pytest.mark.parametrize("event", [Events.STARTED, Events.EPOCH_STARTED, Events.ITERATION_STARTED])
def test_events_before_any_forward(event):
    model = small_net()
    handler = ActivationSparsity(model, {"5": TopK(schedule.Constant(0.5))})
    trainer = training(model)
    handler.attach(trainer, event)
    trainer.load_state_dict({"epoch_length": 5, "max_epochs": 2, "iteration": 5})  # of a run without the handler
    trainer.run(batches(), max_epochs=2)
    assert trainer.state.activation["5.sparsity"] == 0.5


def test_sparsifiers_of_the_model_are_driven_too():
    torch.manual_seed(0)
    layer = KWinners(density=schedule.OneShot(0.75, at=1), boost=1.0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(256, 16), layer, nn.Linear(16, 4))
    handler = ActivationSparsity(model, boost_decay=0.5)
    assert handler.sparsifiers == {"2": layer} and handler.state_dict()["layers"] == []
    trainer = training(model)
    handler.attach(trainer)
    trainer.run(batches(), max_epochs=1)
    assert layer.sparsity == 0.75 and float(layer.boost) == 0.5 and "2.duty" in model.state_dict()


def test_globs_give_each_layer_its_own():
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Sequential(nn.Linear(6, 8), nn.Linear(8, 3)))
    made = KWinners(1)
    handler = ActivationSparsity(model, {"2.*": made, "0": TopK(0.5)})
    assert list(handler.sparsifiers) == ["2.0", "2.1", "0"] and handler.sparsifiers["2.0"] is not made
    handler.install()
    assert (model(torch.randn(5, 4)) != 0).sum() == 5
    assert handler.sparsifiers["2.0"].duty.numel() == 8 and made.duty.numel() == 0


def test_a_learnt_amount_learns_through_an_unmodified_trainer():
    model = small_net()
    handler = ActivationSparsity(model, {"5": TopK(Learnt(0.3, target=0.8, strength=20.0))})
    groups = [{"params": model.parameters()}, {"params": handler.parameters(), "lr": 0.1}]
    optimizer = torch.optim.Adam(groups, lr=0.001)
    trainer = create_supervised_trainer(
        model, optimizer, lambda y, t: nn.functional.cross_entropy(y, t) + handler.penalty()
    )
    handler.attach(trainer)
    trainer.run(batches(), max_epochs=10)
    assert trainer.state.activation["5.sparsity"] == pytest.approx(0.8, abs=0.1)


def test_what_tensorboard_holds(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    model = small_net()
    handler = ActivationSparsity(model, {"5": KWinners(4)}, boost_decay=0.5)
    trainer = training(model)
    handler.attach(trainer)
    with TensorboardLogger(log_dir=tmp_path) as logger:
        logger.attach_output_handler(trainer, Events.EPOCH_COMPLETED, tag="train", state_attributes=["activation"])
        trainer.run(batches(), max_epochs=2)
    held = EventAccumulator(str(tmp_path))
    held.Reload()
    assert [round(s.value, 4) for s in held.Scalars("train/activation/5.boost")] == [0.75, 0.375]
    assert [s.value for s in held.Scalars("train/activation/5.sparsity")] == [0.75, 0.75], "4 of 16 win"
    assert {"train/activation/5.entropy", "train/activation/5.dead"} <= set(held.Tags()["scalars"])


def test_bad_input_is_refused_and_changes_nothing():
    model = small_net()

    def refused(error, words, *args, **kwargs):
        with pytest.raises(error, match=words):
            ActivationSparsity(model, *args, **kwargs)
        assert hooks_of(model) == 0

    refused(ValueError, r"no layer '55'; near matches: '5'", {"55": TopK(0.5)})
    refused(ValueError, r"no layer 'conv\*'", {"conv*": TopK(0.5)})
    refused(ValueError, "two sparsifiers for layer '5'", {"5": TopK(0.5), "[5]": TopK(0.5)})
    refused(ValueError, "should name a layer", {})
    refused(TypeError, "mapping of names to sparsifiers", [TopK(0.5)])
    refused(TypeError, "layers' names for keys", {5: TopK(0.5)})
    refused(TypeError, "one of ignite_prune.activation", {"5": nn.ReLU()})
    refused(ValueError, "KWinners2d, not in KWinners", {"0": KWinners(3)})
    refused(TypeError, "after_activation should be a bool", {"5": TopK(0.5)}, after_activation=1)
    for bad in (0, 1.5, "0.9", True):
        refused(ValueError, "boost_decay should be", {"5": TopK(0.5)}, boost_decay=bad)
    refused(ValueError, "has no weight of its own", {"2": TopK(0.5)}, after_activation=True)
    with pytest.raises(TypeError, match="torch.nn.Module"):
        ActivationSparsity("model", {"5": TopK(0.5)})
    with pytest.raises(ValueError, match="DataParallel"):
        ActivationSparsity(nn.DataParallel(model), {"5": TopK(0.5)})
    tied = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
    tied[2].weight = tied[0].weight
    with pytest.raises(ValueError, match="is shared"):
        ActivationSparsity(tied, {"0": TopK(0.5)}, after_activation=True)
    handler = ActivationSparsity(model, {"5": KWinners(17)})
    handler.install()
    with pytest.raises(ValueError, match="k=17 of KWinners should be at most 16"):
        model(batches()[0][0])


def test_attaching_twice_and_to_nothing():
    model = small_net()
    trainer = training(model)
    handler, other = ActivationSparsity(model, {"5": TopK(0.5)}), ActivationSparsity(model, {"7": TopK(0.5)})
    for bad, error in [(("trainer",), TypeError), ((trainer, 5), TypeError), ((trainer, "no_event"), ValueError),
                       ((trainer, Events.EPOCH_COMPLETED, "iteration"), ValueError)]:  # fmt: skip
        with pytest.raises(error):
            handler.attach(*bad)
        assert hooks_of(model) == 0
    handler.attach(trainer)
    with pytest.raises(ValueError, match="attached already"):
        handler.attach(trainer)
    with pytest.raises(ValueError, match="publishes engine.state.activation"):
        other.attach(trainer)
    other.attach(trainer, name="second")
    trainer.run(batches(), max_epochs=1)
    with pytest.raises(ValueError, match="Argument at"):
        handler.step(-1)


class Half(nn.Module):
    def __init__(self):
        super().__init__()
        self.used, self.unused, self.read = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x):
        return nn.functional.linear(self.used(x), self.read.weight)


@pytest.mark.parametrize("layer", ["unused", "read"])
def test_a_layer_that_runs_in_no_forward_raises(layer):
    model = Half()
    trainer = training(model)
    ActivationSparsity(model, {layer: TopK(0.5)}).attach(trainer)
    with pytest.raises(ValueError, match=f"Layer '{layer}' has run in no forward"):
        trainer.run([(torch.randn(3, 4), torch.randint(4, (3,)))], max_epochs=1)


def test_a_layer_that_gives_no_tensor_raises():
    model = nn.Sequential(nn.LSTM(4, 4))
    ActivationSparsity(model, {"0": TopK(0.5)}).install()
    with pytest.raises(TypeError, match="gives a tuple"):
        model(torch.randn(3, 2, 4))


def test_state_is_plain_and_checked_first():
    def fresh(**settings):
        model = small_net()
        return model, ActivationSparsity(model, {"0": KWinners2d(density=0.2), "5": TopK(0.5)}, **settings)

    model, handler = fresh(boost_decay=0.9)
    trainer = training(model)
    handler.attach(trainer)
    trainer.run(batches(), max_epochs=2)
    file = io.BytesIO()
    torch.save(handler.state_dict(), file)
    file.seek(0)
    state = torch.load(file, weights_only=True)
    _, other = fresh()
    other.load_state_dict(state)
    assert_same_bits(other.state_dict(), handler.state_dict())

    state["layers"] = dict(state["layers"])

    def broken(change):
        bad = copy.deepcopy(state)
        change(bad)
        return bad

    duty = state["layers"]["0"]["duty"]
    for bad, error in [
        ("state", TypeError),
        ({"version": 1}, ValueError),
        (broken(lambda s: s.update(version=3)), ValueError),
        (broken(lambda s: s.update(progress=None)), TypeError),
        (broken(lambda s: s["layers"].pop("0")), ValueError),
        (broken(lambda s: s["layers"].update(x=s["layers"]["0"])), ValueError),
        (broken(lambda s: s["layers"]["5"].pop("duty")), ValueError),
        (broken(lambda s: s["layers"]["5"].update(duty=duty)), ValueError),
        (broken(lambda s: s["layers"]["5"].update(held_sparsity=torch.tensor(1.5))), ValueError),
        (broken(lambda s: s["layers"]["0"].update(duty=duty * torch.nan)), ValueError),
        (broken(lambda s: s["layers"]["0"].update(boost=torch.tensor(-1.0))), ValueError),
        (broken(lambda s: s["layers"]["0"].update(seen=torch.tensor(-1))), ValueError),
        (broken(lambda s: s["layers"]["0"].update(boost="1")), ValueError),
        (broken(lambda s: s["layers"].update({"5": None})), ValueError),
    ]:
        with pytest.raises(error):
            other.load_state_dict(bad)
        assert_same_bits(other.state_dict(), handler.state_dict())


def test_the_handler_frees_its_model():
    import gc
    import weakref

    model = small_net()
    handler = ActivationSparsity(model, {"0": KWinners2d(density=0.2)}, after_activation=True)
    handler.install()
    model(batches()[0][0])
    handler.detach()
    seen = weakref.ref(handler)
    del handler
    gc.collect()
    assert seen() is None


def test_an_evaluator_sees_the_same_sparse_model_and_moves_nothing():
    model = small_net()
    handler = ActivationSparsity(model, {"5": KWinners(3, inference=1.5)})
    trainer = training(model)
    handler.attach(trainer)
    kept = []
    model[6].register_forward_pre_hook(lambda m, args: kept.append(int((args[0] != 0).sum(1).float().mean())))

    def evaluate(engine, batch):
        model.eval()
        before = copy.deepcopy(handler.sparsifiers["5"].state_dict())
        with torch.no_grad():
            model(batch[0])
        assert_same_bits(dict(handler.sparsifiers["5"].state_dict()), dict(before))

    evaluator = Engine(evaluate)
    trainer.add_event_handler(Events.EPOCH_COMPLETED, lambda: evaluator.run(batches(1)))
    trainer.run(batches(2), max_epochs=2)
    assert kept == [3, 3, 4, 3, 3, 4]


def test_training_goes_on_after_inference_on_another_device():
    model = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 2))
    handler = ActivationSparsity(model, {"0": KWinners(2)})
    handler.install()
    model.to("meta").eval()
    with torch.inference_mode():
        model(torch.randn(3, 4, device="meta"))
    assert not any(buffer.is_inference() for buffer in handler.sparsifiers["0"].buffers())
