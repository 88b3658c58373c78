"""All or nothing: an update, a load, a rewind or a slicing that is cut short at any line is done or not done.

The kept state of a model stays what it was, and moving a model works with a pruner as without one.
"""

import copy
import sys

import pytest
import torch

import ignite_prune
from ignite_prune import PruneHandler, Rewind, ShrinkHandler, allocation, saliency, trace
from ignite_prune.handlers import LearntSparsity
from ignite_prune.handlers.lottery.snapshot import Snapshot
from tests.models import assert_same_bits, assert_zero, batches, small_net, train_step

PACKAGE = ignite_prune.__file__.removesuffix("__init__.py")


class Cut:
    """Raises an error at the n-th line that runs in the package, and counts them."""

    def __init__(self, at=None, error=KeyboardInterrupt):
        self.at, self.error, self.seen = at, error, 0

    def __enter__(self):
        self.before = sys.gettrace()
        sys.settrace(self.trace)
        return self

    def __exit__(self, kind, error, _):
        sys.settrace(self.before)
        while error is not None and not isinstance(error, self.error):  # a check may wrap it
            error = error.__cause__
        return error is not None

    def trace(self, frame, event, arg):
        if not frame.f_code.co_filename.startswith(PACKAGE):
            return None
        if event == "line":
            self.seen += 1
            if self.seen == self.at:
                raise self.error
        return self.trace


def trained(seed=0, **options):
    model = small_net(seed)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    pruner = PruneHandler(model, optimizer, **options)
    train_step(model, optimizer, batches(1)[0])
    return model, optimizer, pruner


def state(*objects):
    return copy.deepcopy([each.state_dict() for each in objects])


def updated(**options):
    def scenario():
        objects = trained(**options)
        objects[2].step(0.25)
        return objects, lambda: objects[2].step(0.5)

    return scenario


def loaded(**options):
    def scenario():
        other = trained(1, **options)
        other[2].step(0.6)
        saved, objects = state(*other), trained(**options)
        objects[2].step(0.25)
        return objects, lambda: objects[2].load_state_dict(saved[2])

    return scenario


def rewound():
    model, optimizer, pruner = trained()
    snapshot = Snapshot(Rewind(), model, optimizer)
    snapshot.take()
    train_step(model, optimizer, batches(2)[1])
    pruner.step(0.5)
    return (model, optimizer, pruner), lambda: snapshot.restore(pruner.masks)


def sliced():
    inputs = batches(1)[0][0]
    structure = trace(small_net(), inputs)
    model, optimizer, pruner = trained(structure=structure, allocation=allocation.Uniform())
    pruner.step(0.5)
    shrinker = ShrinkHandler(pruner, inputs)
    return (model, optimizer, pruner, shrinker), shrinker.shrink


def learnt_loaded():
    objects = [(m, torch.optim.SGD(m.parameters(), lr=0.1), LearntSparsity(m, strength=0.1)) for m in (small_net(),)]
    saved = copy.deepcopy(LearntSparsity(small_net(1), strength=0.7).state_dict())
    saved["learnt"] = {name: learnt - 1 for name, learnt in saved["learnt"].items()}
    return objects[0], lambda: objects[0][2].load_state_dict(saved)


SCENARIOS = {  # at how many lines, evenly spaced, each is cut short
    "update": (updated(), 9),
    "update_dense_random": (updated(keep_dense=True, saliency=saliency.Random()), 9),
    "update_taylor": (updated(saliency=saliency.Taylor()), 9),
    "load_dense": (loaded(keep_dense=True), 9),
    "load_taylor": (loaded(saliency=saliency.Taylor()), 9),
    "rewind": (rewound, 9),
    "slice": (sliced, 4),
    "load_learnt": (learnt_loaded, 9),
}


@pytest.mark.parametrize("name", SCENARIOS)
def test_cut_short_it_is_done_or_not_done(name):
    scenario, cuts = SCENARIOS[name]
    objects, act = scenario()
    before = state(*objects)
    with Cut() as counted:
        act()
    after = state(*objects)
    for index, at in enumerate(range(1, counted.seen + 1, max(1, counted.seen // cuts))):
        objects, act = scenario()
        with Cut(at, (KeyboardInterrupt, MemoryError)[index % 2]):
            act()
        now = state(*objects)
        torch.set_grad_enabled(True)
        assert all(module.training for module in objects[0].modules())
        if not name.startswith("load"):  # gradients are masked again before the next step
            assert_zero(objects[2], objects[1])
        try:
            assert_same_bits(now, before)
        except AssertionError:
            assert_same_bits(now, after, f"line {at} of {counted.seen}: ")


@pytest.mark.parametrize("criterion", [saliency.Taylor(), saliency.OBD(), saliency.Wanda(), saliency.OBS(16, 1e-3)])
def test_a_kept_state_does_not_change_while_training_goes_on(criterion):
    model, optimizer, pruner = trained(saliency=criterion)
    kept = pruner.state_dict()
    before = copy.deepcopy(kept)
    for batch in batches(3):
        train_step(model, optimizer, batch)
    assert_same_bits(kept, before)


def test_a_model_moves_with_its_parameters_swapped():
    model, optimizer, pruner = trained()
    pruner.step(0.5)
    train_step(model, optimizer, batches(1)[0])
    torch.__future__.set_swap_module_params_on_conversion(True)
    try:
        model.to(torch.float64)
    finally:
        torch.__future__.set_swap_module_params_on_conversion(False)
    optimizer.state.clear()  # of float32
    x, y = batches(1)[0]
    torch.nn.functional.cross_entropy(model(x.double()), y).backward()  # clipping would see these
    assert not any(p.grad[~pruner.masks[name]].any() for name, p in pruner.masks.parameters.items())
    optimizer.zero_grad()
    for _ in range(2):
        train_step(model, optimizer, (x.double(), y))
        assert_zero(pruner, optimizer)
    (returned,) = torch.autograd.grad(model(x.double()).sum(), model[0].weight)
    assert not returned[~pruner.masks["0.weight"]].any()
    pruner.step(0.75)
    assert pruner.sparsity == 0.75 and model[0].weight.dtype == torch.float64
