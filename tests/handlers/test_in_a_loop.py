"""PruneHandler among Ignite's own handlers and in other people's loops."""

import copy
import tempfile
import warnings

import pytest
import torch
from ignite.engine import DeterministicEngine, Engine, EventEnum, Events, State, create_supervised_trainer
from ignite.handlers import (
    Checkpoint,
    DiskSaver,
    EarlyStopping,
    EMAHandler,
    FastaiLRFinder,
    PiecewiseLinear,
    TerminateOnNan,
    global_step_from_engine,
)
from ignite.metrics import Accuracy
from torch import nn

from ignite_prune import PruneEvents, PruneHandler, saliency, schedule
from tests.catalogue import RAMPS, SCHEDULES
from tests.marks import CUT_SHORT
from tests.models import WEIGHTS, assert_zero, batches, small_net, train_step


def setup(event=Events.EPOCH_COMPLETED, **settings):
    model = small_net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    trainer = create_supervised_trainer(model, optimizer, nn.functional.cross_entropy)
    settings.setdefault("schedule", schedule.Linear(0.8, begin=0, end=4))
    pruner = PruneHandler(model, optimizer, **settings)
    if event is not None:
        pruner.attach(trainer, event)
    return model, optimizer, trainer, pruner


@pytest.mark.parametrize("row", RAMPS, ids=str)
def test_ramps_keep_their_promises(row):
    s = row.make(0.9, begin=3, end=11, initial=0.1)
    values = s.values(15)
    assert values[:4] == [0.1] * 4 and values[11:] == [0.9] * 4
    assert all(a <= b for a, b in zip(values, values[1:])) and len(values) == 15
    jump = row.make(0.9, begin=4, end=4, initial=0.0)
    assert jump.values(6) == [0, 0, 0, 0, 0.9, 0.9]
    assert all(isinstance(v, float) for v in values)


@pytest.mark.parametrize("row", SCHEDULES, ids=str)
def test_schedules_are_pure_values(row):
    s = row.make()
    assert s == row.make() and hash(s) == hash(row.make()) and s.values(9) == s.values(9)
    assert s(6) == 0.75 and all(0 <= v <= 1 for v in s.values(50))
    with pytest.raises(AttributeError):
        s.final = 0.1


def test_schedules_draw_themselves():
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    for row in SCHEDULES:
        axes = row.make().plot()
        assert axes.get_xlabel() == "step" and row.make().plot(axes) is axes
        plt.close("all")


@pytest.mark.parametrize("row", SCHEDULES, ids=str)
def test_the_state_follows_the_schedule(row):
    _, optimizer, trainer, pruner = setup(schedule=row.make())
    assert trainer.state.sparsity == {"global": 0.0, "model": 0.0, **dict.fromkeys(WEIGHTS, 0.0)}, "set from attach on"
    seen = []
    trainer.add_event_handler(Events.EPOCH_COMPLETED, lambda: seen.append(trainer.state.sparsity["global"]))
    trainer.add_event_handler(Events.ITERATION_COMPLETED, lambda: assert_zero(pruner, optimizer))
    trainer.run(batches(), max_epochs=6)
    assert seen == pytest.approx([row.make()(epoch) for epoch in range(1, 7)], abs=1e-3)
    assert trainer.state.metrics["sparsity"] == pruner.sparsity == seen[-1]
    assert type(trainer.state.sparsity) is dict and all(type(v) is float for v in trainer.state.sparsity.values())


@pytest.mark.parametrize("keep_dense", [False, True])
def test_dense_phases_lift_the_masks(keep_dense):
    _, optimizer, trainer, pruner = setup(
        schedule=schedule.DenseSparse(0.75, begin=1, end=5, sparse=1, dense=1), keep_dense=keep_dense
    )
    zeros, sparsities = [], []

    def look():
        sparsities.append(pruner.sparsity)
        zeros.append(sum(int((p == 0).sum()) for p in pruner.masks.parameters.values()))

    trainer.add_event_handler(PruneEvents.MASKS_UPDATED, look)
    trainer.add_event_handler(Events.ITERATION_COMPLETED, lambda: assert_zero(pruner, optimizer))
    trainer.run(batches(), max_epochs=5)
    assert sparsities == [0, 0.75, 0, 0.75, 0.75]
    assert zeros == [0, 1800, 0 if keep_dense else 1800, 1800, 1800], "values come back where they are kept"
    assert all((p != 0)[m].all() for p, m in zip(pruner.masks.parameters.values(), pruner.masks.values()))


def test_param_schedulers_drive_the_sparsity():
    _, _, trainer, pruner = setup(event=None, schedule=None)
    scheduler = PiecewiseLinear(pruner, "sparsity", milestones_values=[(0, 0.0), (4, 0.8)])
    trainer.add_event_handler(Events.EPOCH_COMPLETED, scheduler)
    pruner.attach(trainer)
    seen = []
    trainer.add_event_handler(Events.EPOCH_COMPLETED, lambda: seen.append(trainer.state.sparsity["global"]))
    trainer.run(batches(), max_epochs=6)
    assert seen == pytest.approx([0.0, 0.2, 0.4, 0.6, 0.8, 0.8], abs=1e-3)


def test_an_update_event_is_fired_and_leaves_no_trace():
    _, _, trainer, pruner = setup(Events.ITERATION_COMPLETED(every=2))
    fired = []
    trainer.add_event_handler(PruneEvents.MASKS_UPDATED, lambda e: fired.append(e.state.iteration))
    trainer.add_event_handler(PruneHandler.MASKS_UPDATED(every=4), lambda e: fired.append(-e.state.iteration))
    names = []
    trainer.add_event_handler(Events.ITERATION_COMPLETED, lambda: names.append(trainer.last_event_name))
    trainer.run(batches(), max_epochs=1)
    assert fired == [2, 4, -4] and set(names) == {Events.ITERATION_COMPLETED}
    pruner.step(0.85)
    assert fired[-1] == 5 and trainer.state.sparsity["global"] == 0.85, "a step by hand is published too"


@CUT_SHORT
def test_checkpoint_files_keep_their_names():
    for first in (True, False):
        with tempfile.TemporaryDirectory() as folder:
            model, _, trainer, pruner = setup(event=None)
            step = global_step_from_engine(trainer)
            handler = Checkpoint({"model": model}, DiskSaver(folder), n_saved=None, global_step_transform=step)
            if first:
                trainer.add_event_handler(Events.EPOCH_COMPLETED, handler)
            pruner.attach(trainer)
            if not first:
                trainer.add_event_handler(Events.EPOCH_COMPLETED, handler)
            trainer.run(batches(), max_epochs=3)
            assert [item.filename for item in handler._saved] == [f"model_{n}.pt" for n in (1, 2, 3)]


@CUT_SHORT
def test_a_new_run_starts_the_schedule_anew_and_keeps_the_masks():
    _, optimizer, trainer, pruner = setup()
    trainer.run(batches(), max_epochs=4)
    masks = dict(pruner.masks)
    steps = []
    pruner.param_groups[0]["schedule"] = Spy(steps)
    trainer.state.max_epochs = None
    trainer.run(batches(), max_epochs=2)
    assert [step for step in steps if step] == [1, 2]  # step 0 is asked for at the start
    assert all(torch.equal(masks[n], pruner.masks[n]) for n in masks)
    assert_zero(pruner, optimizer)


class Spy(schedule.Schedule):
    def __init__(self, steps):
        self.steps = steps

    def __call__(self, step):
        self.steps.append(step)
        return 0.1

    @property
    def horizon(self):
        return 0


def test_pruning_may_begin_late_in_a_run_that_began_without_it():
    model, optimizer, trainer, _ = setup(event=None)
    trainer.run(batches(), max_epochs=3)
    state = copy.deepcopy(trainer.state_dict())
    trainer.load_state_dict({**state, "max_epochs": 5})
    steps = []
    pruner = PruneHandler(model, optimizer, schedule=Spy(steps))
    del steps[:]
    pruner.attach(trainer)
    trainer.run(batches())
    assert steps == [4, 5], "nothing was missed before it was there"


def test_interrupt_and_terminate_and_go_on():
    expected, *_ = finished = setup()
    finished[2].run(batches(), max_epochs=4)
    model, _, trainer, pruner = setup()
    trainer.add_event_handler(Events.ITERATION_COMPLETED(once=8), trainer.interrupt)
    trainer.run(batches(), max_epochs=4)
    assert trainer.state.iteration == 8 and pruner.sparsity == pytest.approx(0.2, abs=1e-3)
    trainer.run(batches(), max_epochs=4)
    assert all(torch.equal(a, b) for a, b in zip(expected.parameters(), model.parameters()))

    _, optimizer, trainer, pruner = setup()
    trainer.add_event_handler(Events.ITERATION_COMPLETED(once=8), trainer.terminate)
    trainer.run(batches(), max_epochs=4)
    assert pruner.sparsity == pytest.approx(0.2, abs=1e-3)
    assert_zero(pruner, optimizer)
    steps = []
    pruner.param_groups[0]["schedule"] = Spy(steps)
    trainer.run(batches(), max_epochs=4)
    assert steps == [3, 4], "the epoch that was cut short is not made up for"


def test_early_stopping_still_updates_in_the_last_epoch():
    _, _, trainer, pruner = setup(event=None)
    trainer.add_event_handler(Events.EPOCH_COMPLETED, EarlyStopping(2, lambda e: -e.state.epoch, trainer))
    pruner.attach(trainer)
    trainer.run(batches(), max_epochs=9)
    assert trainer.state.epoch == 3 and pruner.sparsity == pytest.approx(0.6, abs=1e-3)


@pytest.mark.parametrize("before", [True, False])
def test_terminate_on_nan(before):
    model, optimizer, trainer, pruner = setup(event=None)
    if before:
        trainer.add_event_handler(Events.ITERATION_COMPLETED, TerminateOnNan())
    pruner.attach(trainer, Events.ITERATION_COMPLETED)
    data = batches()
    data[2] = (data[2][0] * float("nan"), data[2][1])
    if before:
        with pytest.warns(UserWarning, match="being terminated, so a mask update is left out"):
            trainer.run(data, max_epochs=4)
    else:
        with pytest.raises(ValueError, match="saliency of parameter '0.weight' has .* NaN or infinite"):
            trainer.run(data, max_epochs=4)
    assert trainer.state.iteration == 3 and pruner.sparsity == pytest.approx(0.4, abs=1e-3)
    gone = ~pruner.masks["5.weight"]
    assert not model[5].weight[gone].any() and not optimizer.state[model[5].weight]["momentum_buffer"][gone].any()


def test_an_averaged_model_is_as_sparse_as_one_asks():
    model, _, trainer, pruner = setup(Events.ITERATION_COMPLETED)
    ema = EMAHandler(model, momentum=0.1)
    ema.attach(trainer)
    trainer.add_event_handler(Events.COMPLETED, lambda: pruner.masks.apply_(ema.ema_model))
    trainer.run(batches(), max_epochs=2)
    for name, mask in pruner.masks.items():
        assert torch.equal(ema.ema_model.get_parameter(name) != 0, mask)
    assert not any(p._post_accumulate_grad_hooks for p in ema.ema_model.parameters())


def test_lr_finder_leaves_no_trace():
    model, optimizer, trainer, pruner = setup(Events.ITERATION_COMPLETED)
    before = copy.deepcopy((model.state_dict(), optimizer.state_dict(), pruner.state_dict()))
    finder = FastaiLRFinder()
    to_save = {"model": model, "optimizer": optimizer, "pruner": pruner}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with finder.attach(trainer, to_save, num_iter=12, start_lr=1e-5, end_lr=1e-1) as trying:
            trying.run(batches())
    assert pruner.sparsity == 0 and all((p != 0).all() for p in pruner.masks.parameters.values())
    assert all(torch.equal(before[0][k], v) for k, v in model.state_dict().items())
    trainer.run(batches(), max_epochs=2)
    assert_zero(pruner, optimizer)
    assert pruner.sparsity == pytest.approx(0.8, abs=1e-3) and before[2]["progress"]["since"] is None


class StepEvents(EventEnum):
    STEPPED = "stepped"


@pytest.mark.parametrize("counted", [True, False])
def test_events_of_ones_own(counted):
    model = small_net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)

    def update(engine, batch):
        train_step(model, optimizer, batch)
        engine.fire_event(StepEvents.STEPPED)

    trainer = Engine(update)
    to_attr = {StepEvents.STEPPED: "iteration"} if counted else None
    trainer.register_events(*StepEvents, event_to_attr=to_attr)
    try:
        pruner = PruneHandler(model, optimizer, schedule=schedule.Linear(0.8, begin=0, end=8))
        pruner.attach(trainer, StepEvents.STEPPED)
        trainer.run(batches(), max_epochs=2)
        assert pruner.sparsity == 0.8
        assert pruner.state_dict()["progress"]["done"] == [("STEPPED", 10)]
    finally:
        State.event_to_attr.pop(StepEvents.STEPPED, None)


def test_deterministic_engine_and_an_evaluator_beside_it():
    model = small_net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    trainer = DeterministicEngine(lambda e, batch: train_step(model, optimizer, batch))
    evaluator = Engine(lambda e, batch: (model.eval()(batch[0]), batch[1]))
    Accuracy().attach(evaluator, "accuracy")
    pruner = PruneHandler(model, optimizer, schedule=schedule.OneShot(0.5, at=1))
    pruner.attach(trainer)
    trainer.add_event_handler(PruneEvents.MASKS_UPDATED, lambda: evaluator.run(batches()))
    trainer.run(torch.utils.data.DataLoader(batches(), batch_size=None), max_epochs=2)
    assert "sparsity" in trainer.state.metrics and "sparsity" not in evaluator.state.metrics


def test_one_shot_at_the_start():
    for event in (Events.STARTED, Events.EPOCH_STARTED(once=1)):
        _, optimizer, trainer, pruner = setup(event, schedule=schedule.Constant(0.5))
        trainer.run(batches(), max_epochs=2)
        assert pruner.sparsity == 0.5
        assert_zero(pruner, optimizer)


def test_at_the_end_of_the_run():
    _, _, trainer, pruner = setup(Events.COMPLETED, schedule=schedule.Constant(0.5))
    trainer.add_event_handler(Events.EPOCH_COMPLETED, lambda: pruner.sparsity and pytest.fail("too early"))
    trainer.run(batches(), max_epochs=2)
    assert pruner.sparsity == 0.5


def test_a_handwritten_loop():
    model = small_net()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    pruner = PruneHandler(model, optimizer, schedule=schedule.Polynomial(0.9, begin=0, end=3))
    reached = []
    for epoch in range(1, 5):
        for batch in batches():
            train_step(model, optimizer, batch)
            assert_zero(pruner, optimizer)
        reached.append(pruner.step(at=epoch))
    assert reached == pytest.approx(pruner.param_groups[0]["schedule"].values(5)[1:], abs=1e-3)
    pruner.param_groups[0]["sparsity"] = 0.95
    assert pruner.step() == pruner.sparsity == pytest.approx(0.95)


def test_scores():
    model = small_net()
    pruner = PruneHandler(model, saliency=saliency.Random(), generator=torch.Generator().manual_seed(1))
    first = pruner.scores()
    assert all(torch.equal(first[n], pruner.scores()[n]) for n in WEIGHTS), "asking throws no dice"
    pruner.step(0.5)
    last = pruner.scores()
    assert all(torch.equal(first[n], last[n]) for n in WEIGHTS)
    flat = torch.cat([last[n][~m] for n, m in pruner.masks.items()])
    assert flat.max() <= min(last[n][m].min() for n, m in pruner.masks.items())
    calls = []
    asked = PruneHandler(model, saliency=lambda name, p: (calls.append(name), p.abs() + 1)[1], shared=True)
    asked.step(0.5)
    asked.scores()
    assert calls == WEIGHTS, "a callable is asked once an update, and its scores are kept"
    magnitude = PruneHandler(model)
    with torch.no_grad():
        model[5].weight.fill_(3.0)
    assert (magnitude.scores()["5.weight"] == 3).all(), "as of now"


@CUT_SHORT
def test_layers_by_group_with_their_own_schedules():
    groups = [
        {"params": "0.weight", "schedule": schedule.OneShot(0.5, at=1)},
        {"params": ["5.weight", "7.weight"], "schedule": schedule.Linear(0.8, 0, 4), "saliency": saliency.Random()},
    ]
    _, _, trainer, pruner = setup(params=groups, schedule=None)
    trainer.run(batches(), max_epochs=2)
    assert [group["sparsity"] for group in pruner.param_groups] == [0.5, 0.4]
    assert trainer.state.sparsity["0.weight"] == 0.5
    assert sum(map(pruner.masks.kept, WEIGHTS[1:])) == 2112 - round(0.4 * 2112)
