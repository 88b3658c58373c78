"""Laws of every handler: attach, detach, finalize, publish, state, representation, and parameters that two want."""

import copy
import gc
import re

import pytest
import torch
from ignite.engine import Engine, Events, create_supervised_trainer
from ignite.handlers import HandlersTimeProfiler
from torch import nn
from torch.optim.optimizer import _global_optimizer_post_hooks, _global_optimizer_pre_hooks

from ignite_prune import PruneHandler, activation, handlers, pattern, schedule
from ignite_prune.core.step_hooks import StepHooks
from ignite_prune.handlers.base import BaseHandler
from ignite_prune.handlers.lottery.rewind import Rewind
from ignite_prune.structure import trace
from tests.marks import CUT_SHORT
from tests.models import assert_same_bits

pytestmark = CUT_SHORT

X = torch.zeros(2, 8)
MASKING = {
    "prune": lambda m, o, **k: PruneHandler(m, o, schedule=schedule.Linear(0.5, begin=0, end=3), **k),
    "alternating": lambda m, o, **k: handlers.AlternatingSparse(m, o, sparsity=0.5, begin=1, phase=1, end=2, **k),
    "set": lambda m, o, **k: handlers.SET(m, o, sparsity=0.5, every=2, end=9, generator=seeded(), **k),
    "rigl": lambda m, o, **k: handlers.RigL(m, o, sparsity=0.5, every=2, end=9, generator=seeded(), **k),
    "srigl": lambda m, o, **k: handlers.SRigL(m, o, sparsity=0.5, every=2, end=9, generator=seeded(), **k),
    "momentum": lambda m, o, **k: handlers.SparseMomentum(m, o, sparsity=0.5, every=2, end=9, generator=seeded(), **k),
    "top_kast": lambda m, o, **k: handlers.TopKAST(m, o, sparsity=0.5, every=2, **k),
    "sr_ste": lambda m, o, **k: handlers.SRSTE(m, o, **k),
    "learnt": lambda m, o, **k: handlers.LearntSparsity(m, strength=0.1, **k),
}
OTHERS = {
    "group_lasso": lambda m, o: handlers.GroupLasso(m, strength=0.1, pattern=pattern.Channel(), optimizer=o),
    "slimming": lambda m, o: handlers.Slimming(m, strength=0.1),
    "activation": lambda m, o: handlers.ActivationSparsity(m, {"0": activation.KWinners(density=0.5)}, boost_decay=0.9),
    "progressive": lambda m, o: handlers.ProgressiveMasks(PruneHandler(m, o, schedule=schedule.Linear(0.5, 0, 3))),
    "distillation": lambda m, o: handlers.Distillation("self", m, optimizer=o, hardness=0.0),
    "shrink": lambda m, o: handlers.ShrinkHandler(PruneHandler(m, o, structure=trace(m, X)), X),
}
ROWS = MASKING | OTHERS
every = pytest.mark.parametrize("row", ROWS)
first = pytest.mark.parametrize("first", MASKING)
second = pytest.mark.parametrize("second", MASKING)


def seeded():
    return torch.Generator().manual_seed(3)


class Net(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 4))


def parts():
    torch.manual_seed(0)
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    return model, optimizer, create_supervised_trainer(model, optimizer, nn.functional.mse_loss)


def made(row):
    model, optimizer, trainer = parts()
    return model, optimizer, trainer, ROWS[row](model, optimizer)


def data():
    generator = seeded()
    return [(torch.randn(4, 8, generator=generator), torch.randn(4, 4, generator=generator)) for _ in range(4)]


def hooks_of(model, optimizer):
    """How many hooks there are: on the optimizer, on all optimizers, on parameters and on modules."""
    of_optimizer = [optimizer._optimizer_step_pre_hooks, optimizer._optimizer_step_post_hooks]
    everywhere = [_global_optimizer_pre_hooks, _global_optimizer_post_hooks]
    of_parameters = [getattr(p, a) or () for p in model.parameters() for a in ("_post_accumulate_grad_hooks",)]
    names = ("_forward_hooks", "_forward_pre_hooks", "_state_dict_pre_hooks", "_state_dict_hooks")
    of_modules = [getattr(module, name) for module in model.modules() for name in names]
    return [sum(map(len, hooks)) for hooks in (of_optimizer, everywhere, of_parameters, of_modules)]


def handlers_of(trainer):
    return sum(len(each) for each in trainer._event_handlers.values())


def test_every_handler_has_the_base_class():
    classes = {type(made(row)[-1]) for row in ROWS}
    public = {getattr(handlers, name) for name in handlers.__all__}
    concrete = {c for c in public if isinstance(c, type) and issubclass(c, BaseHandler)} - {handlers.DynamicSparse}
    assert concrete == classes


@every
def test_what_cannot_be_attached_is_refused(row):
    model, optimizer, trainer, handler = made(row)
    with pytest.raises(TypeError, match=r"engine should be an ignite\.engine\.Engine"):
        handler.attach(model)
    handler.attach(trainer)
    state, hooks = copy.deepcopy(handler.state_dict()), hooks_of(model, optimizer)
    for engine in (trainer, Engine(lambda e, b: None)):
        with pytest.raises(ValueError, match=r"attached already; detach\(\) it first"):
            handler.attach(engine)
    assert handler.attached_to is trainer and hooks_of(model, optimizer) == hooks
    assert_same_bits(handler.state_dict(), state)


@every
@pytest.mark.parametrize("end", ["detach", "finalize"])
def test_nothing_is_left_behind(row, end):
    gc.collect()
    sweep = StepHooks([], lambda optimizer, closure: closure, lambda optimizer, stepped: None)
    sweep.install()  # takes the global hooks of collected handlers of other tests off
    sweep.remove()
    model, optimizer, trainer = parts()
    keys, before = list(model.state_dict()), (hooks_of(model, optimizer), handlers_of(trainer))
    handler = ROWS[row](model, optimizer)
    for _ in range(2):
        handler.attach(trainer)
        trainer.run(data(), max_epochs=2)
        handler.detach()
        inner = getattr(handler, "_pruner", handler)  # of a ShrinkHandler: it has a life of its own
        inner.detach()
        assert (hooks_of(model, optimizer), handlers_of(trainer)) == before and handler.attached_to is None
    getattr(handler, end)()
    assert (hooks_of(model, optimizer), handlers_of(trainer)) == before and list(model.state_dict()) == keys


@every
def test_finalize_is_the_end(row):
    _, _, trainer, handler = made(row)
    handler.attach(trainer)
    state = handler.state_dict()
    handler.finalize()
    for use in (handler.finalize, lambda: handler.attach(trainer), lambda: handler.load_state_dict(state)):
        kind = type(handler).__name__
        with pytest.raises(ValueError, match=rf"^This {kind} is finished: finalize\(\) was called; make a new one$"):
            use()
    handler.detach()


@every
def test_it_says_what_it_is_and_where(row):
    for _ in range(2):
        _, _, trainer, handler = made(row)
        before = repr(handler)
        assert before == repr(made(row)[-1]), "the same in every process"
        assert before.startswith(f"{type(handler).__name__}(") and "Net" in before and "not attached" in before
        handler.attach(trainer)
        assert re.search(
            r"attached to Engine on (EPOCH|ITERATION|COMPLETED)\w*( \(filtered\))? as '\w+'", repr(handler)
        )
        handler.finalize()
        assert "finalized" in repr(handler) and " at 0x" not in before


def test_a_pruner_says_its_groups_and_their_course():
    model, optimizer, trainer = parts()
    pruner = PruneHandler(model, optimizer, schedule=schedule.Linear(0.5, begin=0, end=2))
    pruner.attach(trainer, Events.EPOCH_COMPLETED | Events.EPOCH_STARTED, name="mine")
    pruner.step(0.25)
    said = repr(pruner)
    for part in (
        "Net",
        "2 parameters (192 entries)",
        "Magnitude(p=1)",
        "Unstructured()",
        "Global(",
        "sparsity: 0.25",
        "target 0.25",
        "schedule Linear(final=0.5, begin=0, end=2",
        "attached to Engine on EPOCH_COMPLETED | EPOCH_STARTED as 'mine'",
    ):
        assert part in said, said


def test_a_pruning_engine_and_a_ticket_say_and_end():
    model, optimizer, trainer = parts()
    ticket = handlers.LotteryTicket(model, optimizer, trainer, data(), epochs=1, rewind=Rewind())
    ticket.run(rounds=1)
    assert repr(ticket).startswith("LotteryTicket(PruningEngine(1 round completed, 1 epoch each, rewind=Rewind(")
    ticket.finalize()
    assert "finalized" in repr(ticket) and hooks_of(model, optimizer)[0] == 0
    for use in (ticket.finalize, lambda: ticket.run(rounds=2), ticket.engine.train):
        with pytest.raises(ValueError, match="is finished"):
            use()


@every
def test_state_goes_there_and_back(row):
    _, _, trainer, handler = made(row)
    handler.attach(trainer)
    trainer.run(data(), max_epochs=2)
    state = copy.deepcopy(handler.state_dict())
    torch.save(state, "/dev/null")
    again = ROWS[row](*parts()[:2])
    again.load_state_dict(state)
    assert_same_bits(again.state_dict(), state)


@every
def test_a_state_that_is_not_its_own_is_refused_and_nothing_changes(row):
    model, optimizer, trainer, handler = made(row)
    handler.attach(trainer)
    trainer.run(data(), max_epochs=1)
    good = handler.state_dict()
    before = copy.deepcopy((good, model.state_dict(), optimizer.state_dict()))
    kind, later = type(handler).__name__, handler.VERSION + 1
    for bad, error, text in [
        (None, TypeError, f"{kind}'s, a mapping"),
        ({}, TypeError, "whole 'version'"),
        ({**good, "version": "1"}, TypeError, "whole 'version'"),
        ({**good, "version": later}, ValueError, rf"{kind} has version {later}, this one reads versions up to"),
        ({**good, "version": 0}, ValueError, "version 0"),
        ({**good, "kind": "Other"}, ValueError, f"'Other', but this is a {kind}"),
        *(
            ({key: value for key, value in good.items() if key != missing}, ValueError, rf"lacks \['{missing}'\]")
            for missing in set(good) - {"version", "rates"}  # the first ShrinkHandlers had no rates
        ),
    ]:
        with pytest.raises(error, match=text):
            handler.load_state_dict(bad)
        assert_same_bits((handler.state_dict(), model.state_dict(), optimizer.state_dict()), before)


@first
@second
def test_a_second_handler_of_the_same_parameters_is_refused_by_name(first, second):
    model, optimizer, trainer = parts()
    one = MASKING[first](model, optimizer)
    one.attach(trainer)
    before, hooks = copy.deepcopy(model.state_dict()), hooks_of(model, optimizer)
    other = Engine(lambda engine, batch: None)
    with pytest.raises(ValueError, match=rf"Parameter '0.weight' is masked by .*{type(one).__name__}.*shared=True"):
        MASKING[second](model, optimizer).attach(other)
    gc.collect()
    assert_same_bits(model.state_dict(), before)
    assert hooks_of(model, optimizer) == hooks and not handlers_of(other)
    two = MASKING[second](model, optimizer, shared=True)
    two.attach(other)
    two.finalize()
    one.detach()
    MASKING[second](model, optimizer).attach(other)


@pytest.mark.parametrize("first", ["prune", "alternating", "sr_ste"])
def test_a_handler_that_was_collected_is_no_rival(first):
    """The others have hooks on parameters or modules, so the model keeps them alive, and they go on masking it."""
    model, optimizer, _ = parts()

    def use():
        trainer = create_supervised_trainer(model, optimizer, nn.functional.mse_loss)
        MASKING[first](model, torch.optim.SGD(model.parameters(), lr=0.1)).attach(trainer)

    use()
    handlers.SET(model, optimizer, sparsity=0.5, end=9)


def test_handlers_of_other_parameters_and_regularisers_are_no_rivals():
    model, optimizer, trainer = parts()
    PruneHandler(model, optimizer, "0.weight").attach(trainer)
    handlers.SET(model, optimizer, "3.weight", sparsity=0.5, end=9).attach(trainer, name="other")
    handlers.GroupLasso(model, strength=0.1, pattern=pattern.Channel()).attach(trainer)
    handlers.Slimming(model, strength=0.1).attach(trainer)
    trainer.run(data(), max_epochs=1)


def test_a_pruner_in_a_loop_is_a_rival_from_its_first_step_on():
    model, optimizer, trainer = parts()
    pruner = PruneHandler(model, optimizer)
    rigged = handlers.RigL(model, optimizer, sparsity=0.5, end=9)
    with pytest.raises(ValueError, match="masked by another handler, RigL"):
        pruner.step(0.7)
    with pytest.raises(ValueError, match="masked by another handler, RigL"):
        pruner.load_state_dict(pruner.state_dict())
    rigged.finalize()
    pruner.step(0.7)
    with pytest.raises(ValueError, match="masked by another handler, PruneHandler"):
        handlers.RigL(model, optimizer, sparsity=0.5, end=9)
    pruner.detach()
    PruneHandler(model, optimizer, masks=pruner.masks).attach(trainer)


@pytest.mark.parametrize("row", ["set", "rigl", "srigl", "momentum", "top_kast", "sr_ste"])
def test_those_that_know_when_take_their_own_event_alone(row):
    _, _, trainer, handler = made(row)
    for event in (Events.EPOCH_COMPLETED, Events.ITERATION_COMPLETED(every=3), 3, None):
        with pytest.raises(TypeError, match="takes no event"):
            handler.attach(trainer, event)
    for arguments in ({"name": "mine"}, {"event": Events.ITERATION_COMPLETED, "name": "mine"}):
        handler.attach(trainer, **arguments)
        assert trainer.state.mine["global"] == handler.sparsity == trainer.state.metrics["mine"]
        handler.detach()
    handler.attach(trainer, "second")
    assert trainer.state.second["global"] == handler.sparsity


@every
@pytest.mark.parametrize("end", ["detach", "finalize"])
@pytest.mark.parametrize("profiled", [False, True])
def test_a_handler_taken_off_while_the_engine_runs_does_nothing_more(row, end, profiled):
    _, _, trainer, handler = made(row)
    seen = []
    if profiled:
        HandlersTimeProfiler().attach(trainer)
    inner = getattr(handler, "_pruner", handler)
    with trainer.add_event_handler(Events.EPOCH_COMPLETED(once=2), lambda: (getattr(handler, end)(), inner.detach())):
        handler.attach(trainer)  # called after it, in the same event
        trainer.add_event_handler(Events.EPOCH_COMPLETED, lambda: seen.append(handler.state_dict()))
        trainer.run(data(), max_epochs=4)
    assert trainer.state.epoch == 4
    assert not [h for each in trainer._event_handlers.values() for h, *_ in each if "Attachment" in repr(h)]
    assert_same_bits(seen[-1], seen[1])
