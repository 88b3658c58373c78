"""An error on one rank is raised on every rank within seconds, with its rank, type and message; nothing has changed."""

import contextlib
import re
import time

import ignite.distributed as idist
import pytest
import torch
from ignite.engine import Engine, Events
from torch import nn

from ignite_prune import PruneHandler, allocation, pattern, prune_model, repair, saliency, schedule
from ignite_prune.handlers import SET, SRSTE, ProgressiveMasks, SRigL, TopKAST
from tests.models import batches, small_net
from tests.ranks import on_two_ranks

LOSS = nn.functional.cross_entropy


class Broken(RuntimeError):
    def __str__(self):
        raise ZeroDivisionError


def pruner(model, **options):
    return PruneHandler(model, torch.optim.SGD(model.parameters(), lr=0.1), **options)


def raising(error):
    def score(name, parameter):
        raise error

    return score


def replaced(model, of):
    """Exchange a layer, so that the masks are of another parameter."""
    made = of(model)
    model[7] = nn.Linear(16, 5)
    return made


def given(key, wrong, right=None, act=lambda made: made.step(0.5), make=pruner, **options):
    """On one rank a keyword is wrong."""
    return lambda model, fails: act(make(model, **{**options, key: wrong if fails else right}))


def dynamic(kind, **options):
    return lambda model, **more: kind(model, torch.optim.SGD(model.parameters(), lr=0.1), **options, **more)


def attached(made, event=Events.EPOCH_COMPLETED, **options):
    made.attach(Engine(lambda engine, batch: None), event, **options)


def loss_of_one(fails):
    return lambda y, target: LOSS(y, target) if not fails else LOSS(y, target.float().long() + 99)


CASES = {  # what one rank does wrong, and what all are told of it
    "argument": (lambda m, fails: pruner(m).step(2.0 if fails else 0.5), "ValueError: .*sparsity"),
    "type": (lambda m, fails: pruner(m).step("x" if fails else 0.5), "TypeError: "),
    "at": (lambda m, fails: pruner(m).step(at=1) if fails else pruner(m).step(0.5), "ValueError: .*needs a schedule"),
    "out_of_reach": (
        lambda m, fails: pruner(m, pattern=pattern.NofM(2, 4), params="5.weight").step(0.9 if fails else 0.5),
        "ValueError: ",
    ),
    "replaced": (
        lambda m, fails: (replaced(m, pruner) if fails else pruner(m)).step(0.5),
        "ValueError: Parameter '7.weight' of the model has been replaced",
    ),
    "saliency": (given("saliency", raising(KeyError("mine")), torch_abs := lambda n, p: p.abs()), "KeyError: 'mine'"),
    "saliency_without_text": (given("saliency", raising(Broken()), torch_abs), "Broken: "),
    "allocation": (
        lambda m, fails: [
            made := pruner(m),
            made.param_groups[0].update(allocation=None if fails else allocation.Global()),
            made.step(0.5),
        ],
        "AttributeError: ",
    ),
    "evidence": (
        lambda m, fails: pruner(m, saliency=saliency.Taylor(), data=batches(2), loss_fn=loss_of_one(fails)).step(0.5),
        "IndexError: ",
    ),
    "repair": (
        lambda m, fails: pruner(m, repair=repair.BatchNorm(), data=[3] if fails else batches(2)).step(0.5),
        "TypeError: ",
    ),
    "finished": (
        lambda m, fails: [made := pruner(m), made.step(0.25), made.finalize() if fails else None, made.step(0.5)],
        "ValueError: This PruneHandler is finished",
    ),
    "engine": (
        lambda m, fails: pruner(m).attach(3 if fails else Engine(lambda engine, batch: None)),
        "TypeError: Argument engine",
    ),
    "event": (lambda m, fails: attached(pruner(m), 3 if fails else Events.COMPLETED), "TypeError: Argument event"),
    "schedule": (
        lambda m, fails: pruner(m, schedule=lambda_schedule(fails)).step(at=3),
        "ZeroDivisionError: division by zero",
    ),
    "sub_steps": (
        lambda m, fails: attached(ProgressiveMasks(pruner(m)), 3 if fails else Events.COMPLETED),
        "TypeError: Argument event",
    ),
    "set": (given("sparsity", 2.0, 0.5, lambda made: made, dynamic(SET)), "ValueError: "),
    "set_every": (given("every", 0, 2, lambda made: made, dynamic(SET, sparsity=0.5)), "ValueError: "),
    "srigl": (given("min_salient", 3, 0.3, lambda made: made, dynamic(SRigL, sparsity=0.5)), "ValueError: "),
    "set_event": (
        lambda m, fails: attached(
            dynamic(SET, sparsity=0.5)(m), Events.COMPLETED if fails else Events.ITERATION_COMPLETED
        ),
        "TypeError: SET updates on ITERATION_COMPLETED",
    ),
    "top_kast": (given("strength", -1, 0, lambda made: made, dynamic(TopKAST, sparsity=0.5)), "ValueError: "),
    "sr_ste": (given("strength", "x", 0, lambda made: made, dynamic(SRSTE, params="5.weight")), "ValueError: "),
    "one_shot": (
        lambda m, fails: prune_model(m, sparsity=7 if fails else 0.5, saliency=saliency.Wanda(), data=batches(2)),
        "ValueError: ",
    ),
}


def lambda_schedule(fails):
    class Own(schedule.Linear):
        def __call__(self, step):
            return 1 / (not fails or step != 3) and 0.5

    return Own(0.9, 0, 4)


def on_one(rank, name):
    model = small_net()
    before, began = [p.detach().clone() for p in model.parameters()], time.monotonic()
    with pytest.raises(Exception) as told:
        CASES[name][0](model, rank == 1)
    took = time.monotonic() - began
    if name not in ("replaced", "finished", "set_event"):
        assert all(torch.equal(a, b) for a, b in zip(before, model.parameters()))
    assert PruneHandler(small_net()).step(0.5) == 0.5  # the ranks are together again
    return type(told.value).__name__, str(told.value) if name != "saliency_without_text" or not rank else "", took


@pytest.mark.parametrize("name", CASES)
def test_it_is_raised_on_all(name):
    (kind, text, took), (own_kind, own, own_took) = on_two_ranks(on_one, name)
    cause = CASES[name][1]
    assert re.match(cause, f"{own_kind}: {own}")
    assert (kind == "ValueError" and "refused on another rank" in text) or "failed on another rank" in text
    assert re.search(f": rank 1 raised {own_kind}: ", text) and own[:900] in text
    assert max(took, own_took) < 5


MADE_WRONG = {  # keywords of the second rank's constructor
    "params": ({"params": "nothing"}, "ValueError: Argument params: no parameter matches 'nothing'"),
    "optimizer": ({"optimizer": object}, "TypeError: Argument optimizer should be"),
    "masks": ({"masks": Broken}, "TypeError: "),
}


def wrongly_made(rank, name, act):
    """On one rank the constructor raises, which is no collective; the others use what they have made."""
    model, began = small_net(), time.monotonic()
    options = {"optimizer": torch.optim.SGD(model.parameters(), lr=0.1), **(MADE_WRONG[name][0] if rank else {})}
    with pytest.raises(Exception) as told:
        made = PruneHandler(model, **options)
        attached(made) if act == "attach" else made.step(0.5 if act == "step" else "x")
    took = time.monotonic() - began
    idist.barrier()
    assert PruneHandler(small_net()).step(0.5) == 0.5  # the ranks are together again
    return f"{type(told.value).__name__}: {told.value}", took


@pytest.mark.parametrize(("name", "act"), [("params", "attach"), ("optimizer", "step"), ("masks", "wrong step")])
def test_a_constructor_that_fails_on_one_rank_is_raised_on_all(name, act):
    (first, took), (second, own_took) = on_two_ranks(wrongly_made, name, act)
    assert re.match(MADE_WRONG[name][1], second) and own_took < 1 and took < 20
    assert re.match(f"ValueError: .* refused on another rank; .*: rank 1 raised {MADE_WRONG[name][1]}", first)


def tried_again(rank, on_one):
    for params in ("nothing", None)[1 - rank if on_one else 0 :]:
        try:
            made = PruneHandler(small_net(), params=params)
        except ValueError:
            continue
    attached(made)
    return made.step(0.5)


def made_by_one(rank):
    if rank == 0:
        with contextlib.suppress(TypeError):
            PruneHandler(small_net(), params=3)
        PruneHandler(small_net()).scores()
    return PruneHandler(small_net()).step(0.5)


@pytest.mark.parametrize(("work", "args"), [(tried_again, [False]), (tried_again, [True]), (made_by_one, [])])
def test_constructors_that_fail_and_are_tried_again_refuse_nothing(work, args):
    assert on_two_ranks(work, *args) == (0.5, 0.5)


DIFFER = {  # settings of the second rank, and what both are told
    "saliency": ({"saliency": saliency.Taylor()}, r"saliency= Taylor\(.*\) where rank 0 has Magnitude\(p=1\)"),
    "pattern": ({"pattern": pattern.Channel()}, r"pattern= Channel\(.*\) where rank 0 has Unstructured\(\)"),
    "allocation": ({"allocation": allocation.Uniform()}, r"allocation= Uniform\(\) where rank 0 has Global\("),
    "schedule": ({"schedule": schedule.Linear(0.8, 0, 4)}, r"schedule= Linear\(.*\) where rank 0 has None"),
    "generator": ({"generator": 3}, r"generator= a generator of seed 3 .* where rank 0 has None"),
    "a_seed": ({"saliency": saliency.OBD(saliency.Hutchinson(2)), "loss_fn": LOSS}, r"saliency= OBD\("),
    "groups": (
        {"params": [{"params": "0.weight"}, {"params": ["5.weight", "7.weight"]}]},
        r"params= of group 0.* where rank 0 has|params=.* where rank 0 has",
    ),
    "event": ({"event": Events.COMPLETED}, "a pruner attached to Engine on COMPLETED .* where rank 0 has attached to"),
    "nothing": ({}, None),
}


def differing(rank, name):
    options = dict(DIFFER[name][0]) if rank else {}
    if name == "generator" and rank:
        options["generator"] = torch.Generator().manual_seed(3)
    made, event = small_net(), options.pop("event", Events.EPOCH_COMPLETED)
    handler = PruneHandler(made, torch.optim.SGD(made.parameters(), lr=0.1), **options)
    engine = Engine(lambda engine, batch: None)
    try:
        handler.attach(engine, event)
    except ValueError as error:
        assert handler.attached_to is None and not engine.has_event_handler(Events.EPOCH_COMPLETED)
        return str(error)
    return None


@pytest.mark.parametrize("name", DIFFER)
def test_settings_that_differ_are_named_at_attach(name):
    first, second = on_two_ranks(differing, name)
    told = DIFFER[name][1]
    assert first == second and (first is None if told is None else re.search(f"rank 1 has {told}", first))


def handlers_differ(rank):
    model = small_net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    handler = SET(model, optimizer, sparsity=0.5, every=2 + rank, end=9)
    with pytest.raises(ValueError, match="rank 1 has setting 3: every 3 where rank 0 has every 2"):
        handler.attach(Engine(lambda engine, batch: None))


def test_settings_of_sparse_training_that_differ():
    on_two_ranks(handlers_differ)


def drifted_and_repaired(rank):
    """The ranks would repair other layers: rank 0's plan is taken."""
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    with torch.no_grad():
        model[rank].weight.div_(1000)
    handler = PruneHandler(model, saliency=saliency.Wanda(), repair=repair.SparseGPT(), data=[torch.randn(9, 8)])
    handler.step(0.4)
    return {name: mask.tolist() for name, mask in handler.masks.items()}


def test_ranks_that_would_repair_other_layers():
    first, second = on_two_ranks(drifted_and_repaired)
    assert first == second
