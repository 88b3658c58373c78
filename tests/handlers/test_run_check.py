"""Runs that cannot end as asked are warned of, once; runs that can are not."""

import copy
import io
import re
import warnings
from functools import partial

import pytest
import torch
from ignite.engine import Engine, Events, create_supervised_evaluator, create_supervised_trainer
from ignite.handlers import Checkpoint, EarlyStopping, FastaiLRFinder, PiecewiseLinear
from torch import nn

from ignite_prune import PruneHandler, allocation, saliency, schedule
from ignite_prune.handlers import SET, RigL, RunWarning, create_pruning_engine
from tests.marks import CUT_SHORT

DATA = [(torch.randn(8, 16), torch.randint(0, 4, (8,))) for _ in range(4)]
RISE = schedule.Linear(0.5, begin=0, end=4)


def parts(schedule=RISE, **settings):
    model = nn.Sequential(nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 4))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    trainer = create_supervised_trainer(model, optimizer, nn.functional.cross_entropy)
    return model, optimizer, trainer, PruneHandler(model, optimizer, schedule=schedule, **settings)


def told(act):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        act()
    return [str(each.message) for each in caught if each.category is RunWarning]


def short():
    _, _, trainer, pruner = parts()
    pruner.attach(trainer)
    trainer.run(DATA, max_epochs=3)


def meant_in_iterations():
    _, _, trainer, pruner = parts(schedule.Linear(0.5, begin=0, end=12))
    pruner.attach(trainer)
    trainer.run(DATA, max_epochs=3)


def spaced_too_far():
    _, _, trainer, pruner = parts(schedule.Linear(0.5, begin=0, end=5))
    pruner.attach(trainer, Events.EPOCH_COMPLETED(every=4))  # at 4, and not again
    trainer.run(DATA, max_epochs=6)


def iterator_of_unknown_length():
    _, _, trainer, pruner = parts(schedule.Linear(0.5, begin=0, end=50))
    pruner.attach(trainer, Events.ITERATION_COMPLETED)
    trainer.run(iter(DATA * 2), max_epochs=1)


def max_iters():
    _, _, trainer, pruner = parts()
    pruner.attach(trainer)
    trainer.run(DATA, max_iters=15)  # the fourth epoch is cut short


def event_that_never_comes():
    _, _, trainer, pruner = parts(schedule.OneShot(0.5, at=1))
    pruner.attach(trainer, Events.EPOCH_COMPLETED(once=9))
    trainer.run(DATA, max_epochs=3)


def on_an_evaluator():
    model, _, trainer, pruner = parts(schedule.OneShot(0.5, at=1))
    evaluator = create_supervised_evaluator(model)
    pruner.attach(evaluator)
    trainer.add_event_handler(Events.EPOCH_COMPLETED, lambda: evaluator.run(DATA))
    trainer.run(DATA, max_epochs=1)


def another_optimizer():
    model, _, _, pruner = parts(schedule.OneShot(0.5, at=1))
    other = torch.optim.SGD(model.parameters(), lr=0.0)
    trainer = create_supervised_trainer(model, other, nn.functional.cross_entropy)
    pruner.attach(trainer)
    trainer.run(DATA, max_epochs=1)


def never_attached():
    _, _, trainer, pruner = parts()
    trainer.run(DATA, max_epochs=4)
    pruner.finalize()


def no_schedule():
    _, _, trainer, pruner = parts(None)
    pruner.attach(trainer)
    trainer.run(DATA, max_epochs=2)


def second_run():
    _, _, trainer, pruner = parts()
    pruner.attach(trainer)
    for _ in range(3):
        trainer.run(DATA, max_epochs=5)


def finder_without_it():
    model, optimizer, trainer, pruner = parts()
    pruner.attach(trainer)
    objects = {"model": model, "optimizer": optimizer}
    with FastaiLRFinder().attach(trainer, to_save=objects, num_iter=6, end_lr=1.0) as finder:
        finder.run(DATA)
    trainer.run(DATA, max_epochs=4)


def resumed_without_it():
    saved = {}
    for epochs in (4, 5):
        model, optimizer, trainer, pruner = parts()
        pruner.attach(trainer)
        objects = {"model": model, "optimizer": optimizer, "trainer": trainer}
        if saved:
            Checkpoint.load_objects(objects, saved)
        trainer.run(DATA, max_epochs=epochs)
        saved = copy.deepcopy({name: each.state_dict() for name, each in objects.items()})


def dynamic(finalize=False, **settings):
    model, optimizer, trainer, _ = parts()
    handler = SET(model, optimizer, sparsity=0.5, **settings)
    if not finalize:
        handler.attach(trainer)
    trainer.run(DATA, max_epochs=3)
    if finalize:
        handler.finalize()


def too_rare():
    dynamic()


def ends_before_it_begins():
    dynamic(every=4, end=3)


def grows_to_the_end():
    dynamic(every=2, end=100)


def sparse_but_never_attached():
    dynamic(finalize=True)


def rounds(made=RISE, number=3, **settings):
    _, _, trainer, pruner = parts(made)
    create_pruning_engine(trainer, pruner, DATA, epochs=1, **settings).run(max_epochs=number)


def too_few_rounds():
    rounds()


def target_out_of_reach():
    rounds(schedule.Geometric(rate=0.2, every=1), target=0.9)


WRONG = {
    too_rare: r"SET moves no connection in this run: it has 12 iterations, the first .* at iteration 100 .every=100.",
    ends_before_it_begins: r"moves no connection .* none from iteration 3 on",
    grows_to_the_end: r"until the end of the run, as end=100 is behind its last iteration, 12",
    sparse_but_never_attached: r"this SET was never attached",
    too_few_rounds: r"ends at step 4, and its last step in this run is 3 \(in rounds\): .* 0\.375 instead of 0\.5",
    target_out_of_reach: r"target of 0\.9 is out of reach: in the last round, 3, the schedule gives 0\.488",
    short: r"ends at step 4, and its last step in this run is 3 \(in epochs\): .* 0\.375 instead of 0\.5\. Run for 4 ",
    meant_in_iterations: r"If begin and end are meant in iterations: attach\(trainer, Events.ITERATION_COMPLETED\)",
    spaced_too_far: r"last step in this run is 4 .* 0\.4 instead of 0\.5",
    iterator_of_unknown_length: r"last step in this run is 8 \(in iterations\): .* 0\.08 instead of 0\.5",
    max_iters: r"last step in this run is 3 \(in epochs\)",
    event_that_never_comes: "EPOCH_COMPLETED.*, which this run never fires",
    on_an_evaluator: "none of its optimizers has made a step for 4 iterations",
    another_optimizer: "none of its optimizers has made a step for 4 iterations",
    never_attached: r"never pruned anything, so the model is dense\. Call pruner\.attach\(trainer\) before",
    no_schedule: "This run prunes nothing: the PruneHandler has no schedule and no sparsity",
    second_run: r"A new run begins at epoch 0 with the masks of an earlier one \(sparsity 0\.5\)",
    finder_without_it: "masks of an earlier one",
    resumed_without_it: r"50% of the weights are 0 and not masked.*Add it to the objects of Checkpoint",
}


@CUT_SHORT
def test_epochs_that_ended_early_are_counted_on_after_a_resume():
    """Ignite divides iterations by the length of an epoch: episodes that were cut short would be done twice."""
    saved, at = {}, []
    for epochs in (2, 2):
        model, optimizer, trainer, pruner = parts()
        pruner.attach(trainer)
        trainer.add_event_handler(Events.ITERATION_COMPLETED(every=2), lambda engine: engine.terminate_epoch())
        trainer.add_event_handler(Events.EPOCH_COMPLETED, lambda engine: at.append(pruner.sparsity))
        objects = {"model": model, "optimizer": optimizer, "trainer": trainer, "pruner": pruner}
        if saved:
            Checkpoint.load_objects(objects, saved)
            assert trainer.state.epoch < 2
            epochs = trainer.state.epoch + 2
        trainer.run(DATA, max_epochs=epochs)
        saved = copy.deepcopy({name: each.state_dict() for name, each in objects.items()})
    assert at == pytest.approx([0.125, 0.25, 0.375, 0.5], abs=0.01)


@pytest.mark.parametrize("act", WRONG, ids=lambda act: act.__name__)
def test_what_cannot_end_as_asked_is_told_once(act):
    messages = told(act)
    assert len(messages) == 1
    assert re.search(WRONG[act], messages[0]), messages[0]


def whole():
    _, _, trainer, pruner = parts()
    pruner.attach(trainer)
    trainer.run(DATA, max_epochs=4)
    trainer.run(DATA, max_epochs=6)
    pruner.finalize()


def folds():
    model, optimizer, trainer, pruner = parts()
    pruner.attach(trainer)
    objects = (model, optimizer, pruner)
    first = copy.deepcopy([each.state_dict() for each in objects])
    for _ in range(2):
        for each, state in zip(objects, first):
            each.load_state_dict(copy.deepcopy(state))
        trainer.run(DATA, max_epochs=5)
    pruner.restore()
    trainer.run(DATA, max_epochs=5)


def finder_with_it():
    model, optimizer, trainer, pruner = parts()
    pruner.attach(trainer)
    objects = {"model": model, "optimizer": optimizer, "pruner": pruner}
    with FastaiLRFinder().attach(trainer, to_save=objects, num_iter=6, end_lr=1.0) as finder:
        finder.run(DATA)
    trainer.run(DATA, max_epochs=4)


def driven_from_outside():
    _, _, trainer, pruner = parts(None)
    pruner.attach(trainer)
    trainer.add_event_handler(
        Events.EPOCH_COMPLETED, PiecewiseLinear(pruner, "sparsity", [(2, 0.0), (4, 0.5)], save_history=False)
    )
    trainer.run(DATA, max_epochs=4)


def fixed_masks():
    _, _, trainer, pruner = parts(None)
    pruner.step(0.5)
    pruner.attach(trainer)
    for _ in range(2):
        trainer.run(DATA, max_epochs=2)


def pruned_after_dense_training():
    _, _, trainer, pruner = parts()
    trainer.run(DATA, max_epochs=2)
    pruner.attach(trainer)
    trainer.run(DATA, max_epochs=6)


def own_filter_and_event():
    for event in (Events.EPOCH_COMPLETED(lambda engine, epoch: epoch < 3), "step"):
        _, _, trainer, pruner = parts(schedule.Linear(0.5, begin=0, end=90))
        trainer.register_events("step")
        pruner.attach(trainer, event)
        trainer.run(DATA, max_epochs=3)


def rewired():
    model, optimizer, trainer, _ = parts()
    RigL(model, optimizer, sparsity=0.5, every=2).attach(trainer)
    trainer.run(DATA, max_epochs=3)
    dynamic(every=2, end=12)


def asked_for_nothing():
    _, _, trainer, pruner = parts(schedule.Linear(0.0, begin=1, end=3))  # a dense baseline
    pruner.attach(trainer)
    trainer.run(DATA, max_epochs=3)
    pruner.finalize()
    dynamic(end=1)  # masks that stay


def asked_for_scores():
    _, _, trainer, pruner = parts(None, shared=True)
    pruner.attach(trainer, Events.COMPLETED)
    trainer.run(DATA, max_epochs=2)
    pruner.scores()


def asked_for_scores_on_the_way():
    _, _, trainer, pruner = parts(None, shared=True)
    pruner.attach(trainer)
    trainer.add_event_handler(Events.EPOCH_COMPLETED, lambda: pruner.scores())
    trainer.run(DATA, max_epochs=2)
    pruner.finalize()


def enough_rounds():
    rounds(number=4)
    rounds(schedule.Linear(0.9, begin=0, end=9), 5, target=0.5)  # it stops where the target is reached


@pytest.mark.parametrize(
    "act",
    [
        whole,
        folds,
        finder_with_it,
        driven_from_outside,
        fixed_masks,
        pruned_after_dense_training,
        own_filter_and_event,
        rewired,
        asked_for_nothing,
        asked_for_scores,
        asked_for_scores_on_the_way,
        enough_rounds,
    ],
)
def test_nothing_is_told_where_all_is_right(act):
    assert not told(act)


@pytest.mark.parametrize("shared", [False, True])
def test_a_forgotten_schedule_is_told_once(shared):
    def forgotten():
        _, _, trainer, pruner = parts(None, shared=shared)
        pruner.attach(trainer)
        trainer.run(DATA, max_epochs=2)
        pruner.finalize()

    (message,) = told(forgotten)
    assert "has no schedule" in message


def test_numbers_meant_in_epochs_are_told_on_an_event_of_iterations():
    def run(rise, epochs, event=Events.ITERATION_COMPLETED):
        _, _, trainer, pruner = parts(rise)
        pruner.attach(trainer, event)
        trainer.add_event_handler(Events.ITERATION_STARTED(once=3), trainer.terminate)
        trainer.run(DATA * 25, max_epochs=epochs)

    ramp = schedule.Polynomial(0.5, begin=1, end=8)
    (said,) = told(lambda: run(ramp, 8))
    assert "ends at iteration 8 of 100 in the first epoch" in said and "end=800" in said
    for rise, epochs in ((ramp, 7), (schedule.OneShot(0.5, at=2), 8), (schedule.Linear(0.5, begin=0, end=12), 20)):
        assert told(partial(run, rise, epochs)) == []


def test_a_finished_run_leaves_no_hook():
    _, optimizer, trainer, pruner = parts()
    pruner.attach(trainer)
    before = len(optimizer._optimizer_step_post_hooks)
    trainer.run(DATA, max_epochs=4)
    assert len(optimizer._optimizer_step_post_hooks) == before


# The best sparse model


@pytest.mark.parametrize("width", [10, 12, 13, 33])
def test_reached_is_no_comparison_of_rounded_counts(width):
    model = nn.Sequential(nn.Linear(13, width), nn.ReLU(), nn.Linear(width, 8))
    pruner = PruneHandler(model, schedule=schedule.Linear(0.9, begin=0, end=2), allocation=allocation.LAMP())
    seen = [pruner.reached] + [(pruner.step(at=step), pruner.reached)[1] for step in range(4)]
    assert seen == [False, False, False, True, True]


@pytest.mark.parametrize(
    ("made", "seen"),
    [
        (schedule.Constant(0.5), [True] * 6),
        (schedule.OneShot(0.5, at=2), [False, True, True, True, True, True]),
        (schedule.OneCycle(0.5, begin=0, end=3), [False, False, True, True, True, True]),
        # The sparse phase from 2 on is not the last.
        (schedule.DenseSparse(0.5, begin=1, end=4), [False, False, False, True, True, True]),
        (schedule.Geometric(0.3, every=2), [False, False, False, False, False, True]),
    ],
    ids=lambda value: type(value).__name__,
)
def test_reached_under_each_schedule_and_after_a_resume(made, seen):
    found, fired, states = [], [], []
    model, optimizer, trainer, pruner = parts(made)
    pruner.attach(trainer)
    objects = {"model": model, "optimizer": optimizer, "trainer": trainer, "pruner": pruner}
    trainer.add_event_handler(Events.EPOCH_COMPLETED, lambda: found.append(pruner.reached))
    trainer.add_event_handler(pruner.TARGET_REACHED, lambda engine: fired.append(engine.state.epoch))
    trainer.add_event_handler(
        Events.EPOCH_COMPLETED, lambda: states.append({k: copy.deepcopy(v.state_dict()) for k, v in objects.items()})
    )
    trainer.run(DATA, max_epochs=6)
    assert found == seen and fired == [seen.index(True) + 1]
    for epoch, state in enumerate(states[:-1], 1):
        again, more = [], []
        model, optimizer, trainer, pruner = parts(made)
        pruner.attach(trainer)
        file = io.BytesIO()
        torch.save(state, file)
        file.seek(0)
        Checkpoint.load_objects(
            {"model": model, "optimizer": optimizer, "trainer": trainer, "pruner": pruner},
            torch.load(file, weights_only=True),
        )
        trainer.add_event_handler(Events.EPOCH_COMPLETED, lambda _, to=again, by=pruner: to.append(by.reached))
        trainer.add_event_handler(pruner.TARGET_REACHED, lambda engine, to=more: to.append(engine.state.epoch))
        trainer.run(DATA, max_epochs=6)
        assert again == seen[epoch:] and fired == more + [each for each in fired if each <= epoch]


@pytest.mark.parametrize("how", ["event", "score"])
def test_the_best_model_is_sparse_and_patience_begins_at_the_target(how):
    _, _, trainer, pruner = parts()
    scores = iter([0.9, 0.8, 0.7, 0.6, 0.5, 0.6, 0.4, 0.3, 0.2, 0.1])
    evaluator, saved = Engine(lambda engine, batch: None), {}
    evaluator.add_event_handler(Events.COMPLETED, lambda engine: engine.state.metrics.update(score=next(scores)))
    score = lambda engine: engine.state.metrics["score"]  # noqa: E731
    event = pruner.when_reached(Events.COMPLETED) if how == "event" else Events.COMPLETED
    score = pruner.score_when_reached(score) if how == "score" else score
    keep = lambda checkpoint, name, metadata: saved.update(last=(trainer.state.epoch, checkpoint))  # noqa: E731
    evaluator.add_event_handler(event, Checkpoint({"pruner": pruner}, keep, score_function=score, n_saved=1))
    evaluator.add_event_handler(event, EarlyStopping(patience=2, score_function=score, trainer=trainer))
    trainer.add_event_handler(Events.EPOCH_COMPLETED, lambda: evaluator.run([0]))
    pruner.attach(trainer)
    trainer.run(DATA, max_epochs=10)
    assert trainer.state.epoch == 8 and saved["last"][0] == 6  # the target is reached at the end of epoch 4


def test_events_are_filtered_together_and_bad_ones_are_refused():
    _, _, trainer, pruner = parts()
    pruner.attach(trainer)
    seen = []
    events = pruner.when_reached(Events.EPOCH_COMPLETED(every=2) | Events.COMPLETED)
    trainer.add_event_handler(events, lambda engine: seen.append(engine.state.epoch))
    trainer.run(DATA, max_epochs=7)
    assert seen == [4, 6, 7]
    for bad in ("completed", None):
        with pytest.raises(TypeError, match="Argument event should be an Ignite event"):
            pruner.when_reached(bad)
    with pytest.raises(ValueError, match="'max' or 'min'"):
        pruner.score_when_reached(len, mode="most")
    with pytest.raises(ValueError, match=r"group 0 has no schedule.*sparsity=0\.9"):
        parts(None)[3].when_reached(Events.COMPLETED)


def test_a_sparsity_set_from_outside_is_waited_for_by_its_value():
    _, _, trainer, pruner = parts(None)
    seen = []
    trainer.add_event_handler(Events.EPOCH_STARTED, PiecewiseLinear(pruner, "sparsity", [(0, 0.0), (3, 0.5)]))
    pruner.attach(trainer)
    event = pruner.when_reached(Events.EPOCH_COMPLETED, sparsity=0.5)
    trainer.add_event_handler(event, lambda engine: seen.append(engine.state.epoch))
    trainer.run(DATA, max_epochs=6)
    assert seen == [4, 5, 6]


def test_frozen_layers_wait_for_their_evidence():
    model, _, trainer, pruner = parts(saliency=saliency.Taylor())
    model[0].requires_grad_(False)
    pruner.attach(trainer)
    reached = []
    trainer.add_event_handler(Events.EPOCH_COMPLETED, lambda: reached.append(pruner.reached))
    trainer.add_event_handler(Events.EPOCH_STARTED(once=6), lambda: model[0].requires_grad_(True))
    with pytest.warns(UserWarning, match=r"0\.weight: frozen .* left out of mask updates until they train") as caught:
        trainer.run(DATA, max_epochs=5)
        assert pruner.masks.kept("0.weight") == 192 and pruner.masks.kept("2.weight") == 24
        trainer.run(DATA, max_epochs=7)
    assert len(caught) == 1 and reached == [False] * 5 + [True] * 2 and pruner.sparsity == 0.5
