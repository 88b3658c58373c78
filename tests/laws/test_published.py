"""Law 13: what is published is what is, after every step and in every way to train; or a warning has been raised."""

import copy
import warnings

import pytest
import torch
from ignite.engine import Engine, Events, create_supervised_trainer
from ignite.handlers import Checkpoint
from torch import nn
from torch.optim.swa_utils import AveragedModel

from ignite_prune import MaskStore, PrunedWeightsAlive, PruneHandler, SparsityWarning, schedule, shrink
from ignite_prune.handlers import SET
from tests.catalogue import HANDLERS, OPTIMIZERS, PATTERNS, SCHEDULES
from tests.catalogue.runs import build
from tests.models import assert_same_bits, batches, small_net, train_step

IN_FORWARD = ("top_kast", "sr_ste")  # masks are in the forward pass alone until finalize()
SPARSE = [row for row in HANDLERS if row.published in ("sparsity", "learnt_sparsity")]
SPARSE = [row for row in SPARSE if not row.name.startswith(IN_FORWARD)]


def zeros(parameters):
    return sum(int((p == 0).sum()) for p in parameters), sum(p.numel() for p in parameters)


def assert_published(found, masks, model, sliced=False):
    """Published numbers are exact counts of the masks, and what these prune is 0."""
    pruned, whole = zeros([p.detach()[~masks[name]] for name, p in masks.parameters.items()])[0], masks.numel
    if sliced:
        whole += sum(masks.whole(name) - p.numel() for name, p in masks.parameters.items())
        pruned += sum(masks.whole(name) - p.numel() for name, p in masks.parameters.items())
    assert found["global"] == pruned / whole
    rest = sum(p.numel() for p in model.parameters() if p not in masks.name_of)
    assert found["model"] == pruned / (whole + rest)
    for name, parameter in masks.parameters.items():
        gone = masks.whole(name) - parameter.numel()
        assert found[name] == (int((parameter.detach()[~masks[name]] == 0).sum()) + gone) / masks.whole(name)


def follow(run, masks_of, published="sparsity"):
    seen = []

    @run.trainer.on(Events.ITERATION_COMPLETED)
    def look(engine):
        masks = masks_of()
        assert_published(getattr(engine.state, published), masks, run.objects["model"], sliced=True)
        seen.append(masks.sparsity)

    with warnings.catch_warnings():
        warnings.simplefilter("error", SparsityWarning)
        run.start()
        run.detach()
    return seen


@pytest.mark.filterwarnings("ignore:Pruning left less than 1 %")
@pytest.mark.parametrize("row", SPARSE, ids=str)
def test_handlers_publish_what_is(row):
    run = build(handler=row.name, epochs=4)
    run.attach()
    owner = run.objects["pruner" if "pruner" in run.objects else "handler"]
    assert max(follow(run, lambda: owner.masks, row.published)) > 0 or row.name == "learnt_movement"


VARIANTS = [
    *({"optimizer": row.name} for row in OPTIMIZERS if not row.notes),
    *({"pattern": row.name} for row in PATTERNS if row.make().share > 0.75),
    *({"schedule": row.name} for row in SCHEDULES),
]


@pytest.mark.filterwarnings("ignore:Pruning left less than 1 %")
@pytest.mark.parametrize("options", VARIANTS, ids=str)
def test_a_pruner_publishes_what_is(options):
    run = build(epochs=2, **options)
    run.attach()
    assert max(follow(run, lambda: run.objects["pruner"].masks)) > 0


@pytest.mark.parametrize("row", [row for row in HANDLERS if row.name.startswith(IN_FORWARD)], ids=str)
def test_masks_of_the_forward_pass_are_in_the_weights_at_the_end(row):
    run = build(handler=row.name)
    run.attach()
    run.start()
    handler, found = run.objects["handler"], dict(run.trainer.state.sparsity)
    handler.finalize()
    assert_published(found, handler.masks, run.objects["model"])


RUNS = {
    "rounds": {"rounds": 2},
    "rounds_without_rewinding": {"rounds": 2, "rewind": None, "saliency": "taylor"},
    "shrinks": {"shrinks": "taylor"},
    "coupled": {"coupled": "coupled", "epochs": 2},
    "repaired": {"repair": "three", "event": "spaced"},
    "kept_dense": {"keep_dense": True, "schedule": "dense_sparse", "epochs": 2},
    "accumulated": {"handler": "rigl", "accumulate": 2},
    "beside_learnt": {"handler": "learnt_threshold", "pruned": True},
}


@pytest.mark.filterwarnings("ignore:Pruning left less than 1 %")
@pytest.mark.parametrize("name", RUNS)
def test_runs_publish_what_is(name):
    run = build(**RUNS[name])
    run.attach()
    owner = run.objects[next(each for each in ("beside", "pruner", "handler") if each in run.objects)]
    published = "learnt_sparsity" if name == "beside_learnt" else "sparsity"
    if name == "beside_learnt":  # what is pruned beside it is 0 too
        owner = run.objects["handler"]
    assert max(follow(run, lambda: owner.masks, published)) > 0


def backward(model, batch):
    loss = nn.functional.cross_entropy(model(batch[0]), batch[1])
    loss.backward()
    return loss


def in_a_closure(model):
    optimizer = torch.optim.LBFGS(model.parameters(), lr=0.1, max_iter=3)

    def step(batch):
        def closure():
            optimizer.zero_grad()
            return backward(model, batch)

        optimizer.step(closure)

    return step, optimizer


def scaled(model):
    optimizer, scaler = torch.optim.Adam(model.parameters(), lr=0.01), torch.amp.GradScaler("cpu", init_scale=8.0)

    def step(batch):
        optimizer.zero_grad()
        scaler.scale(nn.functional.cross_entropy(model(batch[0]), batch[1])).backward()
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(model.parameters(), 0.1)
        scaler.step(optimizer)
        scaler.update()

    return step, optimizer


def in_backward(model):
    """An optimizer for each parameter, which steps as soon as its gradient is there."""
    each = {p: torch.optim.Adam([p], lr=0.01) for p in model.parameters()}

    def step_at_once(p):
        each[p].step()
        p.grad = None

    for p in each:
        p.register_post_accumulate_grad_hook(step_at_once)
    return lambda batch: backward(model, batch), list(each.values())


def by_returned_gradients(model):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)

    def step(batch):
        loss = nn.functional.cross_entropy(model(batch[0]), batch[1])
        for p, gradient in zip(model.parameters(), torch.autograd.grad(loss, list(model.parameters()))):
            p.grad = gradient
        optimizer.step()

    return step, optimizer


def two_in_turn(model):
    first = torch.optim.Adam(model[:5].parameters(), lr=0.01)
    second = torch.optim.SGD(model[5:].parameters(), lr=0.1, momentum=0.9, weight_decay=0.1)

    def step(batch):
        for optimizer in (first, second):
            optimizer.zero_grad()
            backward(model, batch)
            optimizer.step()

    return step, [first, second]


def accumulated(model):
    optimizer, seen = torch.optim.AdamW(model.parameters(), lr=0.01), []

    def step(batch):
        seen.append(batch)
        backward(model, batch)
        if len(seen) % 3 == 0:
            optimizer.step()
            optimizer.zero_grad()

    return step, optimizer


def averaged(model):
    """Weights are exchanged for their average in evaluation, and back."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    average = AveragedModel(model)

    def step(batch):
        train_step(model, optimizer, batch)
        average.update_parameters(model)
        held = copy.deepcopy(model.state_dict())
        with torch.no_grad():
            for p, q in zip(model.parameters(), average.parameters()):
                p.copy_(q.where(p != 0, 0))
            model(batch[0])
        model.load_state_dict(held)

    return step, optimizer


LOOPS = (in_a_closure, scaled, in_backward, by_returned_gradients, two_in_turn, accumulated, averaged)


@pytest.mark.parametrize("loop", LOOPS, ids=lambda loop: loop.__name__)
@pytest.mark.parametrize("given", [True, False])
def test_own_loops_are_what_they_say_after_every_step(loop, given):
    model = small_net()
    step, optimizer = loop(model)
    pruner = PruneHandler(model, optimizer if given else None, strict=True)
    for index, batch in enumerate(batches(6)):
        if index % 2 == 0:
            pruner.step(0.3 + 0.1 * index)
        step(batch)
        report = pruner.check()
        assert report and report.sparsity == pruner.sparsity == report.pruned / pruner.masks.numel
        found = {"global": pruner.sparsity, "model": pruner.model_sparsity, **pruner.masks.sparsities()}
        assert_published(found, pruner.masks, model)


# Other ways to write to weights: function of (model, optimizer that was given) -> step of a batch.


def by_another_optimizer(model, given):
    other = torch.optim.Adam(model.parameters(), lr=0.01)
    return lambda batch: train_step(model, other, batch)


def by_slow_weights(model, given):
    slow = [p.detach().clone() for p in model.parameters()]

    def step(batch):
        train_step(model, given, batch)
        for p, s in zip(model.parameters(), slow):
            s.add_(p.data - s, alpha=0.5)
            p.data.copy_(s)

    return step


def by_data(model, given):
    def step(batch):
        nn.functional.cross_entropy(model(batch[0]), batch[1]).backward()
        for p in model.parameters():
            p.data = p.data - 0.1 * torch.randn_like(p)

    return step


WAYS = {
    by_another_optimizer: "None of the optimizers that PruneHandler was given .SGD. has stepped",
    by_slow_weights: "written after a step of the optimizers",
    by_data: "None of the optimizers",
}


@pytest.mark.filterwarnings("ignore:PruneHandler is attached to an engine in which none of its optimizers has made")
@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
@pytest.mark.parametrize("strict", [False, True])
def test_other_writers_are_told_once(way, strict):
    model = small_net()
    given = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    step = way(model, given)
    trainer = Engine(lambda engine, batch: step(batch))
    pruner = PruneHandler(model, given, schedule=schedule.OneShot(0.8, at=3), strict=strict)
    pruner.attach(trainer, Events.ITERATION_COMPLETED)
    if strict:
        with pytest.raises(PrunedWeightsAlive, match=WAYS[way]):
            trainer.run(batches(), max_epochs=2)
        return
    trainer.add_event_handler(Events.ITERATION_COMPLETED, lambda engine: checked.append(bool(pruner.check())))
    checked = []
    with pytest.warns(SparsityWarning, match=WAYS[way]) as caught:
        trainer.run(batches(), max_epochs=2)
    told = [str(each.message) for each in caught if issubclass(each.category, SparsityWarning)]
    assert len(told) == 1 and "5.weight (" in told[0] and "masked again" in told[0]
    assert all(checked) and len(checked) == 10
    assert_published(trainer.state.sparsity, pruner.masks, model)


def test_one_weight_is_found_before_an_update_and_when_the_state_is_saved():
    model = small_net()
    pruner = PruneHandler(model, torch.optim.SGD(model.parameters(), lr=0.1))
    pruner.step(0.5)
    place = tuple((~pruner.masks["5.weight"]).nonzero()[17])
    for act in (lambda: pruner.step(0.6), pruner.state_dict, pruner.finalize):
        pruner.pruning.weights.warned.clear()
        model[5].weight.data[place] = 0.1
        report = pruner.check()
        assert not report and report.alive == {"5.weight": (1, report.alive["5.weight"][1])}
        assert "5.weight (1 of 1," in str(report) and "loaded" in report.cause
        with pytest.warns(SparsityWarning, match="5.weight .1 of 1,"):
            act()
        assert pruner.check() and not report.alive.get("0.weight")


def test_an_invisible_write_to_a_few_weights_is_found_within_an_epoch():
    model = small_net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    trainer = create_supervised_trainer(model, optimizer, nn.functional.cross_entropy)
    pruner = PruneHandler(model, optimizer)
    pruner.step(0.5)
    pruner.attach(trainer)
    model[5].weight.data[tuple((~pruner.masks["5.weight"]).nonzero()[0])] = 1.0
    with pytest.warns(SparsityWarning):
        trainer.run(batches(1), max_epochs=1)
    assert pruner.check()


@pytest.mark.parametrize("when", ["the run's end", "a new run", "an update", "a saved state", "the end"])
def test_a_model_restored_alone_is_recognised(when):
    """Ignite's example of ModelCheckpoint saves the model alone."""
    model = small_net()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    trainer = create_supervised_trainer(model, optimizer, nn.functional.cross_entropy)
    pruner = PruneHandler(model, optimizer, schedule=schedule.Linear(0.9, begin=0, end=6))
    pruner.attach(trainer)
    best = {}
    trainer.add_event_handler(Events.EPOCH_COMPLETED(once=2), lambda: best.update(copy.deepcopy(model.state_dict())))
    if when == "the run's end":
        trainer.add_event_handler(Events.EPOCH_COMPLETED(once=6), lambda: model.load_state_dict(best))
        with pytest.warns(SparsityWarning, match="weights were loaded"):
            trainer.run(batches(), max_epochs=6)
        return
    trainer.run(batches(), max_epochs=6)
    model.load_state_dict(best)
    report = pruner.check()
    assert not report and report.sparsity == 0.9 and 0.28 < report.zeros < 0.3
    later = {
        "a new run": lambda: trainer.run(batches(), max_epochs=8),
        "an update": lambda: pruner.step(0.9),
        "a saved state": pruner.state_dict,
        "the end": pruner.finalize,
    }
    with pytest.warns(SparsityWarning, match='weights were loaded.*"pruner": pruner.*from_nonzero'):
        later[when]()
    assert zeros(pruner.masks.parameters.values())[0] == 0.9 * pruner.masks.numel


def test_the_remedies_that_the_warning_names():
    model = small_net()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    trainer = create_supervised_trainer(model, optimizer, nn.functional.cross_entropy)
    pruner = PruneHandler(model, optimizer, schedule=schedule.Linear(0.9, begin=0, end=6), strict=True)
    pruner.attach(trainer)
    saved = []
    save = lambda: saved.append(copy.deepcopy({"model": model.state_dict(), "pruner": pruner.state_dict()}))  # noqa: E731
    trainer.add_event_handler(Events.EPOCH_COMPLETED(once=2), save)
    trainer.run(batches(), max_epochs=6)
    Checkpoint.load_objects({"model": model, "pruner": pruner}, saved[0])
    assert pruner.check() and pruner.sparsity == 0.3
    pruner.finalize()
    again = PruneHandler(model, optimizer, masks=MaskStore.from_nonzero(model), strict=True)
    assert again.sparsity == 0.3 and again.check()


def test_masks_changed_from_outside_are_applied_and_published_without_a_warning():
    model = small_net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    trainer = create_supervised_trainer(model, optimizer, nn.functional.cross_entropy)
    pruner = PruneHandler(model, optimizer, strict=True)
    pruner.attach(trainer)
    mask = torch.rand(16, 128) > 0.5
    change = lambda: pruner.masks.update({"5.weight": mask})  # noqa: E731
    trainer.add_event_handler(Events.ITERATION_COMPLETED(once=2), change)
    trainer.run(batches(4), max_epochs=1)
    assert_published(trainer.state.sparsity, pruner.masks, model)
    before = pruner.masks.changes
    pruner.masks.update({})
    assert pruner.masks.changes == before and not any(pruner.masks.flips.values())


def test_without_an_optimizer_the_one_that_steps_is_followed():
    model = small_net()
    other = torch.optim.Adam(model.parameters(), lr=0.01)
    pruner = PruneHandler(model, strict=True)
    for target in (0.5, 0.8):
        pruner.step(target)
        for batch in batches(3):
            train_step(model, other, batch)
            assert pruner.check()
            assert not other.state[model[5].weight]["exp_avg"][~pruner.masks["5.weight"]].any()
    pruner.detach()
    train_step(model, other, batches(1)[0])
    assert other.state[model[5].weight]["exp_avg"][~pruner.masks["5.weight"]].any()


def test_a_name_of_ones_own_stays():
    model = nn.Sequential(nn.Linear(4, 4))
    model.register_parameter("model", nn.Parameter(torch.ones(2, 2)))
    trainer = Engine(lambda engine, batch: None)
    pruner = PruneHandler(model, params=["model", "0.weight"])
    pruner.attach(trainer)
    pruner.step(0.5)
    assert trainer.state.sparsity["model"] == pruner.masks.sparsities()["model"]
    assert trainer.state.sparsity["global"] == 0.5 and pruner.model_sparsity == 10 / 24


def test_averaged_copies_are_masked_under_their_own_names():
    model = small_net()
    pruner = PruneHandler(model)
    pruner.step(0.5)
    average = AveragedModel(small_net(1))
    pruner.masks.apply_(average)
    assert not average.module[5].weight[~pruner.masks["5.weight"]].any()
    both = nn.ModuleDict({"online": small_net(1), "ema": small_net(2)})
    with pytest.raises(ValueError, match="give one of model.online, model.ema"):
        pruner.masks.apply_(both)
    with pytest.raises(ValueError, match="has no parameter '0.weight'"):
        pruner.masks.apply_(nn.Linear(2, 2))


def test_updates_that_do_nothing_are_told():
    model = small_net()
    with pytest.warns(SparsityWarning, match=r"write step\(0.5\)"):
        assert PruneHandler(model).step() == 0.0
    with pytest.warns(SparsityWarning, match=r"step\(at=epoch\) follows the schedule"):
        PruneHandler(model, schedule=schedule.Linear(0.9, 0, 4), shared=True).step()
    quiet = PruneHandler(model, shared=True)
    quiet.param_groups[0]["sparsity"] = 0.0
    quiet.step()


def test_shrink_tells_that_no_unit_is_pruned():
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    pruner = PruneHandler(model)
    with pytest.warns(SparsityWarning, match="no whole unit.*structure="):
        shrink(model, pruner, torch.randn(1, 4))


def load(model, dense):
    model.load_state_dict(dense)


def load_by_data(model, dense):
    for name, parameter in model.named_parameters():
        parameter.data.copy_(dense[name])


@pytest.mark.parametrize("way", [load, load_by_data], ids=lambda way: way.__name__)
@pytest.mark.parametrize("kind", ["engine", "loop", "loop_strict", "no_optimizer", "set"])
def test_weights_loaded_between_two_steps_are_told_before_they_are_masked(way, kind):
    model = small_net()
    dense = copy.deepcopy(model.state_dict())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    trainer = create_supervised_trainer(model, optimizer, nn.functional.cross_entropy)
    if kind == "set":
        pruner = SET(model, optimizer, sparsity=0.5, every=2, end=4)
    else:
        pruner = PruneHandler(model, None if kind == "no_optimizer" else optimizer, strict="strict" in kind)
        pruner.step(0.5)
    gone = {name: (~mask).sum().item() for name, mask in pruner.masks.items()}
    match = rf"0.weight \({gone['0.weight']} of {gone['0.weight']}\), 5.weight .*between two steps.*weights were loaded"
    if kind in ("engine", "set"):
        pruner.attach(trainer)
        trainer.add_event_handler(Events.ITERATION_STARTED(once=3), lambda: way(model, dense))
        with pytest.warns(SparsityWarning, match=match):
            trainer.run(batches(4), max_epochs=1)
    else:
        for batch in batches(3):
            train_step(model, optimizer, batch)
        way(model, dense)
        before = copy.deepcopy([model.state_dict(), optimizer.state_dict()])
        with (
            pytest.raises(PrunedWeightsAlive, match=match)
            if "strict" in kind
            else pytest.warns(SparsityWarning, match=match)
        ):
            train_step(model, optimizer, batches(1)[0])
        if "strict" in kind:
            assert torch.equal(model[5].weight, before[0]["5.weight"])
            assert_same_bits(optimizer.state_dict(), before[1])
            return
    assert pruner.check()
    for batch in batches(5):  # told once, and nothing more to tell
        train_step(model, optimizer, batch)


def test_writes_that_leave_zeros_are_not_told():
    model, optimizer, pruner = trained_and_pruned()
    kept = copy.deepcopy([each.state_dict() for each in (model, optimizer, pruner)])
    with warnings.catch_warnings():
        warnings.simplefilter("error", SparsityWarning)
        for act in (
            lambda: [p.mul_(0.9) for p in model.parameters()],
            lambda: [p.data.clamp_(-0.1, 0.1) for p in model.parameters()],
            lambda: model.load_state_dict(copy.deepcopy(kept[0])),
            lambda: optimizer.load_state_dict(copy.deepcopy(kept[1])),
            lambda: [model.load_state_dict(dense_of(model)), pruner.load_state_dict(kept[2])],
            lambda: pruner.masks.update({"5.weight": torch.rand(16, 128) > 0.3}),
            lambda: [pruner.restore(), model.load_state_dict(dense_of(model)), pruner.step(0.7)],
            lambda: [pruner.detach(), model.load_state_dict(dense_of(model)), pruner.load_state_dict(kept[2])],
            lambda: [model.double(), optimizer.state.clear(), model.float()],
        ):
            with torch.no_grad():
                act()
            for batch in batches(5):
                train_step(model, optimizer, batch)
            assert pruner.check()


def dense_of(model):
    return {
        name: torch.randn_like(value) if value.is_floating_point() else value
        for name, value in model.state_dict().items()
    }


def trained_and_pruned():
    model = small_net()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    pruner = PruneHandler(model, optimizer)
    pruner.step(0.5)
    train_step(model, optimizer, batches(1)[0])
    return model, optimizer, pruner


class Adapter(nn.Module):
    def __init__(self, base):
        super().__init__()
        self.base = base

    def forward(self, x):
        return self.base(x)


def test_a_layer_that_was_wrapped_is_watched_at_its_new_place():
    model = nn.Sequential(nn.Flatten(), nn.Linear(256, 8), nn.ReLU(), nn.Linear(8, 4))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    trainer = create_supervised_trainer(model, optimizer, nn.functional.cross_entropy)
    pruner = PruneHandler(model, optimizer)
    pruner.step(0.5)
    pruner.attach(trainer, Events.ITERATION_STARTED(once=1))
    first, seen = model[1], []
    acts = {
        2: lambda: setattr(model, "1", Adapter(first)),
        6: lambda: seen.append((len(told), bool(pruner.check()))),
        7: lambda: setattr(model[1], "base", nn.Linear(256, 8)),
    }
    for at, act in acts.items():
        trainer.add_event_handler(Events.ITERATION_STARTED(once=at), act)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always", SparsityWarning)
        trainer.run(batches(10), max_epochs=1)
    (message,) = [str(each.message) for each in told if each.category is SparsityWarning]
    assert seen == [(0, True)] and "does not hold the masked parameters 1.weight any more" in message


def test_check_shows_what_was_replaced_and_what_is_alive():
    model = small_net()
    pruner = SET(model, torch.optim.SGD(model.parameters(), lr=0.1), sparsity=0.5)
    first, last = [name for name in pruner.masks if pruner.masks.pruned(name) is not None][:2]
    model.get_submodule(first.rpartition(".")[0]).weight = nn.Parameter(torch.ones_like(pruner.masks.parameters[first]))
    with torch.no_grad():
        pruner.masks.parameters[last].fill_(1.0)
    text = str(pruner.check())
    assert f"not 0 in {last}" in text and f"masked parameters {first}" in text
    assert "make the SET, with masks=" in text and "PruneHandler" not in text


class Elsewhere(nn.Parameter):
    """A parameter that says that reading it takes time, as one on an accelerator."""

    is_cpu = property(lambda self: False)


def test_every_sample_is_drawn_again_where_few_calls_read():
    model = nn.Sequential(*(nn.Linear(8, 8, bias=False) for _ in range(4)))
    for layer in model:
        layer.weight = Elsewhere(layer.weight.detach().clone())
    pruner = PruneHandler(model)
    pruner.step(0.5)
    weights = pruner.pruning.weights
    weights.some()
    before = [positions for *_, positions in weights._samples]
    for _ in range(4 * 16):
        weights.some()
    after = [positions for *_, positions in weights._samples]
    assert not [number for number, pair in enumerate(zip(before, after)) if pair[0] is pair[1]]
