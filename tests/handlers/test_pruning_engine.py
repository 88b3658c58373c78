"""A pruning engine: its rounds and what they leave; exact resume is in tests/laws/test_resume.py."""

import pytest
import torch
from ignite.engine import Engine, Events, create_supervised_trainer
from ignite.handlers import (
    CosineAnnealingScheduler,
    LRScheduler,
    ParamGroupScheduler,
    PiecewiseLinear,
    create_lr_scheduler_with_warmup,
)
from torch import nn

from ignite_prune import PruneHandler, allocation, saliency, schedule, to_networkx
from ignite_prune.handlers import PruneEvents, PruningEvents, create_pruning_engine
from ignite_prune.handlers.lottery.rewind import Rewind
from tests.catalogue import SALIENCIES, net_for, options_for
from tests.catalogue.runs import InPlace
from tests.models import assert_same_bits, assert_zero, batches, small_net
from tests.ranks import on_two_ranks

pytestmark = pytest.mark.filterwarnings("ignore:Pruning left less than 1 %")


def parts(model=None, optimizer=None, **settings):
    model = small_net() if model is None else model
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9) if optimizer is None else optimizer
    trainer = create_supervised_trainer(model, optimizer, nn.functional.cross_entropy)
    settings = {"schedule": schedule.Geometric(rate=0.5, every=1), "allocation": allocation.Uniform(), **settings}
    return model, optimizer, trainer, PruneHandler(model, optimizer, **settings)


def make(rounds_epochs=2, length=3, pruner=None, **settings):
    _model, _optimizer, trainer, pruner = parts(**(pruner or {}))
    return create_pruning_engine(trainer, pruner, batches(length), epochs=rounds_epochs, **settings)


# Rounds


@pytest.mark.parametrize("inside", [True, False])
def test_a_run_that_raised_goes_on_in_the_same_process(inside):
    """Ignite's own next run would return at once and have done nothing."""
    failures = [KeyboardInterrupt]

    def fail():
        for error in failures[:] if engine.results else ():
            failures.clear()
            raise error

    engine = make(2, rewind=Rewind())
    if inside:
        engine.trainer.add_event_handler(Events.EPOCH_COMPLETED, fail)
    else:
        engine.add_event_handler(PruningEvents.PRUNED, fail)
    with pytest.raises(KeyboardInterrupt):
        engine.run(max_epochs=3)
    engine.run(max_epochs=3)
    assert [each["sparsity"] for each in engine.results] == [0.0, 0.5, 0.75]
    assert engine.pruner.sparsity == 0.875 and engine.trainer.state.epoch == 6


def test_rounds_train_prune_and_rewind_in_this_order():
    engine, told = make(rewind=Rewind()), []
    for event in PruningEvents:
        engine.add_event_handler(event, lambda e, name: told.append((name, e.state.iteration)), event.value)
    engine.trainer.add_event_handler(PruneEvents.MASKS_UPDATED, lambda e: told.append(("masks", e.state.epoch)))
    engine.trainer.add_event_handler(Events.COMPLETED, lambda e: told.append(("trainer", e.state.epoch)))
    engine.run(max_epochs=2)
    one = [("round_started", 1), ("trainer", 2), ("trained", 1), ("masks", 2), ("pruned", 1), ("rewound", 1)]
    two = [("round_started", 2), ("trainer", 4), ("trained", 2), ("masks", 4), ("pruned", 2), ("rewound", 2)]
    assert told == one + two


@pytest.mark.parametrize("rounds", [1, 2, 3])
def test_a_rewound_model_is_its_beginning_under_the_masks(rounds):
    engine = make(rewind=Rewind())
    model, start = (
        engine.pruner.pruning.model,
        {name: t.clone() for name, t in engine.pruner.pruning.model.state_dict().items()},
    )
    engine.run(max_epochs=rounds)
    assert engine.pruner.sparsity == 1 - 0.5**rounds == engine.state.sparsity["global"]
    for name, tensor in model.state_dict().items():
        expected = start[name] * engine.pruner.masks[name] if name in engine.pruner.masks else start[name]
        assert torch.equal(tensor, expected), name
    assert not engine.pruner.pruning.optimizers[0].state
    assert_zero(engine.pruner, engine.pruner.pruning.optimizers[0])


def test_the_same_round_again_gives_the_same_weights():
    # Rewound to k, data of the same order: a round without pruning ends where the first one did.
    engine = make(rewind=Rewind(to=2), pruner={"schedule": schedule.Constant(0.0)}, length=4)
    ends = []
    weights = engine.pruner.pruning.model.state_dict
    engine.trainer.add_event_handler(
        Events.COMPLETED, lambda _: ends.append({n: t.clone() for n, t in weights().items()})
    )
    data = batches(4)
    engine._segment._loader = InPlace(data, engine.trainer)
    engine.run(max_epochs=3)
    assert_same_bits(ends[0], ends[1])
    assert_same_bits(ends[0], ends[2])


def test_counters_go_on_and_schedules_begin_again():
    _model, optimizer, trainer, pruner = parts()
    lr = PiecewiseLinear(optimizer, "lr", [(0, 0.1), (6, 0.01)])
    trainer.add_event_handler(Events.ITERATION_STARTED, lr)
    engine = create_pruning_engine(trainer, pruner, batches(3), epochs=2, rewind=Rewind(to=2))
    seen = []
    trainer.add_event_handler(
        Events.ITERATION_COMPLETED,
        lambda e: seen.append((e.state.epoch, e.state.iteration, optimizer.param_groups[0]["lr"])),
    )
    engine.run(max_epochs=2)
    rates = [0.1, 0.085, 0.07, 0.055, 0.04, 0.025]
    first = [(1 + i // 3, 1 + i, rates[i]) for i in range(6)]
    second = [(3 + i // 3, 7 + i, rates[i]) for i in range(2, 6)]
    assert [(e, i, pytest.approx(r)) for e, i, r in first + second] == seen


def test_a_scheduler_behind_an_event_filter_is_found():
    _model, optimizer, trainer, pruner = parts()
    lr = PiecewiseLinear(optimizer, "lr", [(0, 0.1), (6, 0.01)])
    trainer.add_event_handler(Events.ITERATION_STARTED(every=2), lr)
    engine = create_pruning_engine(trainer, pruner, batches(2), epochs=2, rewind=Rewind())
    engine.run(max_epochs=2)
    assert lr.event_index == 0


def test_learning_rate_rewinding_keeps_the_weights():
    engine = make(rewind=Rewind(weights=False))
    trained = {}
    model = engine.pruner.pruning.model
    engine.add_event_handler(
        PruningEvents.PRUNED, lambda _: trained.update({n: t.clone() for n, t in model.state_dict().items()})
    )
    engine.run(max_epochs=2)
    assert_same_bits(trained, dict(model.state_dict()))
    assert not engine.pruner.pruning.optimizers[0].state


def test_results_are_plain_and_the_metrics_are_published():
    _model, _optimizer, trainer, pruner = parts()
    engine = create_pruning_engine(
        trainer,
        pruner,
        batches(3),
        epochs=1,
        evaluator=lambda: {"loss": torch.tensor(0.5), "rows": torch.ones(2), "x": "-"},
    )
    engine.run(max_epochs=2)
    metrics = {"loss": 0.5, "rows": [1.0, 1.0]}
    assert engine.state.results == [
        {"round": 1, "stage": "trained", "sparsity": 0.0, "metrics": {"loss": 0.5, "rows": [1.0, 1.0]}},
        {"round": 2, "stage": "trained", "sparsity": 0.5, "metrics": metrics},
    ]
    assert engine.state.metrics == {"sparsity": 0.75, "loss": 0.5}


def test_an_ignite_evaluator_runs_over_its_data_or_the_loader():
    for data, expected in ((None, 3), (batches(2), 2)):
        _model, _optimizer, trainer, pruner = parts()
        seen = []
        evaluator = Engine(lambda e, batch: seen.append(len(batch)))
        create_pruning_engine(trainer, pruner, batches(3), epochs=1, evaluator=evaluator, data=data).run(max_epochs=1)
        assert len(seen) == expected


def test_plot(tmp_path):
    pytest.importorskip("matplotlib").use("agg")
    engine = make(1, evaluator=lambda: {"accuracy": 0.9, "loss": 0.1})
    with pytest.raises(ValueError, match="no round"):
        engine.plot()
    engine.run(max_epochs=3)
    axes = engine.plot("loss", label="loss")
    (line,) = axes.lines
    assert list(line.get_xdata()) == [100.0, 50.0, 25.0] and list(line.get_ydata()) == [0.1] * 3


def test_stops_at_the_target_and_below_the_floor():
    engine = make(1, target=0.75)
    engine.run(max_epochs=9)
    assert engine.state.epoch == 2 and engine.pruner.sparsity == 0.75
    accuracies = iter([0.99, 0.98, 0.7, 0.2])
    engine = make(1, evaluator=lambda: {"accuracy": next(accuracies)}, floor={"accuracy": 0.9}, fine_tune=1)
    ended = []
    engine.add_event_handler(Events.EPOCH_COMPLETED, lambda e: ended.append(e.state.epoch))
    engine.run(max_epochs=9)
    assert ended == [1, 2, 3] and engine.pruner.sparsity == 0.75 and len(engine.results) == 3
    state = engine.state_dict()
    again = make(1, evaluator=lambda: {"accuracy": 0.0}, floor={"accuracy": 0.9}, fine_tune=1)
    again.load_state_dict(state)
    again.run(max_epochs=9)
    assert again.results == engine.results  # it knows that it had stopped


def test_an_evaluator_that_raised_is_asked_again():
    failures = [OSError]

    def evaluate(_engine, _batch):
        if engine.results and failures:
            raise failures.pop()

    evaluator = Engine(evaluate)
    evaluator.add_event_handler(Events.COMPLETED, lambda e: e.state.metrics.update(loss=1.0))
    engine = make(1, evaluator=evaluator)
    with pytest.raises(OSError):
        engine.run(max_epochs=2)
    engine.run(max_epochs=2)
    assert [each["metrics"] for each in engine.results] == [{"loss": 1.0}] * 2


def test_a_metric_that_is_nan_is_below_every_floor():
    engine = make(1, evaluator=lambda: {"accuracy": float("nan")}, floor={"accuracy": 0.1})
    engine.run(max_epochs=3)
    assert len(engine.results) == 1 and engine.pruner.sparsity == 0


def test_fine_tuning_follows_the_last_round_alone():
    engine = make(2, fine_tune=3, evaluator=lambda: {}, target=0.75)
    engine.run(max_epochs=9)
    assert [(each["round"], each["stage"], each["sparsity"]) for each in engine.results] == [
        (1, "trained", 0.0),
        (2, "trained", 0.5),
        (2, "fine_tuned", 0.75),
    ]
    assert engine.trainer.state.epoch == 2 + 2 + 3


def test_a_second_run_is_a_new_one():
    engine = make(1, rewind=Rewind())
    engine.run(max_epochs=2)
    weight = engine.pruner.pruning.model[0].weight.detach().clone()
    engine.run(max_epochs=2)
    assert len(engine.results) == 2 and engine.trainer.state.epoch == 4
    assert torch.equal(engine.pruner.pruning.model[0].weight, weight)  # rewound to where the second run began


def test_a_trainer_that_ends_early_ends_its_round():
    engine = make(3)
    engine.trainer.add_event_handler(Events.EPOCH_COMPLETED, lambda e: e.terminate() if e.state.epoch == 2 else None)
    engine.run(max_epochs=2)
    assert engine.trainer.state.epoch == 2 + 3 and engine.pruner.sparsity == 0.75


def test_a_trainer_may_end_its_epochs_early():
    engine = make(2, rewind=Rewind(to=1))
    trainer, epochs = engine.trainer, []
    trainer.add_event_handler(Events.ITERATION_COMPLETED, lambda e: e.state.iteration % 3 == 1 and e.terminate_epoch())
    trainer.add_event_handler(Events.EPOCH_STARTED, lambda e: epochs.append(e.state.epoch))
    engine.run(max_epochs=2)
    assert len(engine.results) == 2 and epochs == sorted(epochs)


def test_a_trainer_that_was_interrupted_is_told():
    engine = make(2)
    engine.trainer.add_event_handler(Events.ITERATION_COMPLETED(once=2), lambda e: e.interrupt())
    with pytest.raises(RuntimeError, match="interrupted"):
        engine.run(max_epochs=2)
    assert engine.state.epoch == 0 and engine.pruner.sparsity == 0


def test_a_trained_trainer_goes_on():
    _model, _optimizer, trainer, pruner = parts()
    trainer.run(batches(3), max_epochs=2)
    engine = create_pruning_engine(trainer, pruner, batches(3), epochs=1, rewind=Rewind(to=1))
    engine.run(max_epochs=2)
    assert trainer.state.epoch == 4 and trainer.state.iteration == 12 and pruner.sparsity == 0.75


@pytest.mark.parametrize("row", [row for row in SALIENCIES if row.notes.get("informed")], ids=str)
def test_every_saliency_finds_its_evidence_in_the_rounds(row):
    model = net_for(row)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    settings = options_for(row, model, calibrated=False)
    _, _, trainer, pruner = parts(model, optimizer, **settings)
    create_pruning_engine(trainer, pruner, batches(3), epochs=1, rewind=Rewind()).run(max_epochs=2)
    assert pruner.sparsity == pytest.approx(0.75, abs=0.03)
    assert_zero(pruner, optimizer)


# Laws 7, 9 and 12, and 8


def snapshot_of(trainer):
    return {event: len(handlers) for event, handlers in trainer._event_handlers.items() if handlers}


def test_bad_arguments_are_refused_and_nothing_changes():
    model, optimizer, trainer, pruner = parts()
    before = snapshot_of(trainer)

    def refused(error, match, *args, **settings):
        args = args or (trainer, pruner, batches(3))
        with pytest.raises(error, match=match):
            create_pruning_engine(*args, **{"epochs": 2, **settings})
        assert snapshot_of(trainer) == before and not pruner.pruning.enforcer.hooked

    generator = (batch for batch in batches(3))
    refused(TypeError, "trainer", model, pruner, batches(3))
    refused(TypeError, "pruner", trainer, model, batches(3))
    refused(TypeError, "loader", trainer, pruner, 3)
    refused(ValueError, "epoch_length=", trainer, pruner, generator)
    refused(ValueError, "empty", trainer, pruner, [])
    refused(ValueError, "epochs", epochs=0)
    refused(TypeError, "epochs", epochs=1.5)
    refused(TypeError, "fine_tune", fine_tune=True)
    refused(TypeError, "rewind", rewind="init")
    refused(ValueError, "never snapshotted", rewind=Rewind(to=6))
    refused(ValueError, "never snapshotted", rewind=Rewind(to=3), fine_tune=1)
    refused(TypeError, "evaluator", evaluator=3)
    refused(ValueError, "data", data=batches(1))
    refused(ValueError, "evaluator", floor={"accuracy": 0.9})
    refused(TypeError, "floor", floor=0.9, evaluator=dict)
    refused(ValueError, "NaN", floor={"accuracy": float("nan")}, evaluator=dict)
    refused(ValueError, "target", target=1.5)
    another = PruneHandler(model, optimizer)
    another.attach(trainer, name="other")
    before = snapshot_of(trainer)
    refused(ValueError, "trainer.state.other")
    another.detach()
    pruner.attach(trainer)
    with pytest.raises(ValueError, match="pruned already"):
        create_pruning_engine(trainer, pruner, batches(3), epochs=2)
    pruner.detach()
    pruner.attach(Engine(lambda e, b: None))
    with pytest.raises(ValueError, match="attached already"):
        create_pruning_engine(trainer, pruner, batches(3), epochs=2)


def test_a_loader_without_length_is_told_its_length():
    _model, _optimizer, trainer, pruner = parts()
    endless = (batch for _ in range(100) for batch in batches(3))
    create_pruning_engine(trainer, pruner, endless, epochs=2, epoch_length=2).run(max_epochs=2)
    assert trainer.state.iteration == 8


def test_rewinding_to_what_an_early_end_never_reached():
    engine = make(2, rewind=Rewind(to=5))
    engine.trainer.add_event_handler(Events.ITERATION_COMPLETED(once=4), lambda e: e.terminate())
    with pytest.raises(ValueError, match="never snapshotted"):
        engine.run(max_epochs=2)
    assert engine.pruner.sparsity == 0


def test_a_floor_on_a_metric_that_is_not_there():
    engine = make(1, evaluator=lambda: {"loss": 1.0}, floor={"accuracy": 0.9})
    with pytest.raises(ValueError, match="'accuracy'.*'loss'"):
        engine.run(max_epochs=1)
    assert engine.results == []  # nor twice, where it is run again


def with_held(state, **changed):
    snapshot = state["pruning"]["snapshot"]
    return {
        **state,
        "pruning": {**state["pruning"], "snapshot": {**snapshot, "held": {**dict(snapshot["held"]), **changed}}},
    }


DAMAGES = [
    (TypeError, lambda s: {**s, "pruning": None}),
    (TypeError, lambda s: {key: value for key, value in s.items() if key != "pruning"}),
    (ValueError, lambda s: {**s, "pruning": {**s["pruning"], "version": 99}}),
    (ValueError, lambda s: {**s, "pruning": {**s["pruning"], "phase": "asleep"}}),
    (TypeError, lambda s: {**s, "pruning": {**s["pruning"], "results": [3]}}),
    (TypeError, lambda s: {**s, "pruning": {**s["pruning"], "trainer": {"iteration": 1.0}}}),
    (
        ValueError,
        lambda s: {**s, "pruning": {**s["pruning"], "trainer": {**s["pruning"]["trainer"], "epoch_length": 9}}},
    ),
    (ValueError, lambda s: {**s, "pruning": {**s["pruning"], "snapshot": None}}),
    (TypeError, lambda s: {**s, "pruning": {**s["pruning"], "trainer": {**s["pruning"]["trainer"], "first": -1}}}),
    (TypeError, lambda s: {**s, "pruning": {**s["pruning"], "snapshot": 3}}),
    (TypeError, lambda s: with_held(s, tensors=None)),
    (TypeError, lambda s: with_held(s, slots=[3])),
    (TypeError, lambda s: with_held(s, settings=[{}])),
    (ValueError, lambda s: with_held(s, tensors={})),
    (ValueError, lambda s: {key: value for key, value in s.items() if key != "iteration"}),
    (ValueError, lambda s: {**s, "iteration": -1}),
]


@pytest.mark.parametrize(("error", "damage"), DAMAGES)
def test_a_damaged_state_is_refused_and_nothing_changes(error, damage):
    engine = make(rewind=Rewind())
    engine.run(max_epochs=2)
    fresh = make(rewind=Rewind())
    before = fresh.state_dict()
    with pytest.raises(error):
        fresh.load_state_dict(damage(engine.state_dict()))
    assert_same_bits(before, fresh.state_dict())


def test_detached_nothing_is_left_on_trainer_and_model():
    model, optimizer, trainer, pruner = parts()
    before = snapshot_of(trainer)
    create_pruning_engine(trainer, pruner, batches(3), epochs=1, rewind=Rewind(to=1)).run(max_epochs=2)
    pruner.detach()
    assert snapshot_of(trainer) == before
    assert not any(p._post_accumulate_grad_hooks for p in model.parameters())
    assert not optimizer._optimizer_step_post_hooks and not optimizer._optimizer_step_pre_hooks


def scenario(rank):
    model = small_net()
    parallel = nn.parallel.DistributedDataParallel(model)
    optimizer = torch.optim.SGD(parallel.parameters(), lr=0.05, momentum=0.9)
    settings = {"saliency": saliency.Taylor(), "schedule": schedule.Geometric(rate=0.5, every=1)}
    trainer = create_supervised_trainer(parallel, optimizer, nn.functional.cross_entropy)
    pruner = PruneHandler(parallel, optimizer, **settings)
    evaluate = {"accuracy": 0.5 + 0.4 * rank}  # rank 0 alone is below the floor
    engine = create_pruning_engine(
        trainer,
        pruner,
        batches(3, seed=rank),
        epochs=2,
        rewind=Rewind(to=2),
        evaluator=lambda: evaluate if len(pruner.masks) and pruner.sparsity > 0.7 else {"accuracy": 1.0},
        floor={"accuracy": 0.8},
    )
    engine.run(max_epochs=5)
    tensors = {**dict(model.named_parameters()), **dict(pruner.masks.items())}
    return {name: tensor.tolist() for name, tensor in tensors.items()}, engine.state.epoch, pruner.sparsity


def test_ranks_end_equal():
    first, second = on_two_ranks(scenario)
    assert first == second and first[1:] == (3, 0.75)


def with_warm_up(optimizer):
    cosine = CosineAnnealingScheduler(optimizer, "lr", 0.1, 0.01, cycle_size=8)
    return create_lr_scheduler_with_warmup(cosine, warmup_start_value=0.0, warmup_end_value=0.1, warmup_duration=3)


LR = torch.optim.lr_scheduler
SCHEDULERS = {
    "cosine": (Events.ITERATION_STARTED, lambda o: CosineAnnealingScheduler(o, "lr", 0.1, 0.01, cycle_size=7)),
    "warm_up": (Events.ITERATION_STARTED, with_warm_up),
    "step": (Events.ITERATION_STARTED, lambda o: LRScheduler(LR.StepLR(o, 2, 0.5))),
    "exponential": (Events.EPOCH_COMPLETED, lambda o: LRScheduler(LR.ExponentialLR(o, 0.5))),
    "one_cycle": (Events.ITERATION_COMPLETED, lambda o: LRScheduler(LR.OneCycleLR(o, 0.1, total_steps=9))),
    "by_group": (
        Events.ITERATION_STARTED,
        lambda o: ParamGroupScheduler([PiecewiseLinear(o, "lr", [(0, 0.1), (8, 0.01)])]),
    ),
}


@pytest.mark.parametrize("name", SCHEDULERS)
@pytest.mark.parametrize("to", ["init", 2, 3, 4])
def test_every_scheduler_runs_alike_in_each_round(name, to):
    _, optimizer, trainer, pruner = parts()
    event, make_scheduler = SCHEDULERS[name]
    trainer.add_event_handler(event, make_scheduler(optimizer))
    engine = create_pruning_engine(trainer, pruner, batches(3), epochs=3, rewind=Rewind(to=to))
    seen = []
    trainer.add_event_handler(Events.ITERATION_COMPLETED, lambda _: seen.append(optimizer.param_groups[0]["lr"]))
    engine.run(max_epochs=3)
    rest = 9 - Rewind(to=to).iteration
    assert len(seen) == 9 + 2 * rest
    assert seen[-rest:] == seen[9 : 9 + rest] == seen[9 - rest : 9]


def test_a_scheduler_of_torch_is_given():
    _, optimizer, trainer, pruner = parts()
    scheduler = LR.StepLR(optimizer, 1, 0.5)
    trainer.add_event_handler(Events.EPOCH_COMPLETED, lambda _: scheduler.step())
    settings = {"epochs": 2, "rewind": Rewind(), "schedulers": [scheduler]}
    create_pruning_engine(trainer, pruner, batches(3), **settings).run(max_epochs=2)
    assert scheduler.last_epoch == 0 and optimizer.param_groups[0]["lr"] == 0.05


def test_a_scheduler_of_torch_that_nobody_would_rewind_is_told():
    _, optimizer, trainer, pruner = parts()
    scheduler = LR.LambdaLR(optimizer, lambda epoch: 0.1**epoch)
    before = snapshot_of(trainer)
    with pytest.raises(ValueError, match="schedulers"):
        create_pruning_engine(trainer, pruner, batches(3), epochs=2, rewind=Rewind())
    for wrong in ([3], scheduler, 5):
        with pytest.raises(TypeError, match="schedulers"):
            create_pruning_engine(trainer, pruner, batches(3), epochs=2, rewind=Rewind(), schedulers=wrong)
    assert snapshot_of(trainer) == before
    create_pruning_engine(trainer, pruner, batches(3), epochs=2, rewind=Rewind(), schedulers=[])


def test_rounds_take_no_data_and_no_length():
    engine = make(1)
    for settings in ({"data": batches(3)}, {"epoch_length": 3}):
        with pytest.raises(ValueError, match="epochs are rounds"):
            engine.run(max_epochs=2, **settings)
    for epochs, error in ((0, ValueError), (-1, ValueError), (1.5, TypeError), (True, TypeError)):
        with pytest.raises(error, match="epochs"):
            engine.train(epochs)
    assert engine.trainer.state.iteration == 0
    engine.run(max_epochs=2)
    assert engine.trainer.state.epoch == 2 and engine.pruner.sparsity == 0.75


def test_masks_scores_and_graph_of_each_step():
    networkx = pytest.importorskip("networkx")
    engine = make(1, pruner={"saliency": saliency.Taylor()})
    model, taken = engine.pruner.pruning.model, []

    @engine.on(PruningEvents.TRAINED)
    def take():
        scores = {name: each.clone() for name, each in engine.pruner.scores().items()}
        taken.append((dict(engine.pruner.masks), scores, to_networkx(model, engine.pruner.masks)))

    engine.run(max_epochs=3)
    counts = [sum(int(mask.sum()) for mask in masks.values()) for masks, *_ in taken]
    assert counts == [2400, 1200, 600]
    for masks, scores, graph in taken:
        assert isinstance(graph, networkx.DiGraph)
        assert sum(data.get("kept", 1) for *_, data in graph.edges(data=True)) == sum(
            int(m.sum()) for m in masks.values()
        )
        assert all(bool(scores[name].isfinite().all()) for name in masks)
