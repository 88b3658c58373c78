"""Law 9: a bad argument is refused at the door, in words, and nothing is changed."""

import copy
import math

import pytest
import torch
import torch.nn.utils.prune
from ignite.engine import Engine, EventEnum, Events
from torch import nn

from ignite_prune import (
    MaskStore,
    PruneHandler,
    allocation,
    functional,
    pattern,
    prune_model,
    repair,
    saliency,
    schedule,
    score,
)
from tests.models import small_net

NAN = math.nan


def sgd(model):
    return torch.optim.SGD(model.parameters(), lr=0.1)


HANDLER = [  # (keywords, error, text)
    ({"params": "5.wieght"}, ValueError, r"no parameter matches '5.wieght'; near matches: '5.weight'"),
    ({"params": ["0.weight", "*.kernel"]}, ValueError, r"no parameter matches '\*.kernel'"),
    ({"params": "zzz"}, ValueError, r"there are '0.weight', '0.bias'"),
    ({"params": nn.Embedding}, ValueError, r"no weights in layers of type Embedding"),
    ({"params": 3}, TypeError, r"params should be a name, a glob or a sequence"),
    ({"params": [nn.Parameter(torch.ones(1))]}, TypeError, r"names, globs or layer types"),
    ({"exclude": "9.*"}, ValueError, r"Argument exclude: no parameter matches '9.\*'"),
    ({"exclude": "*"}, ValueError, r"every one that params names is excluded"),
    ({"params": [{"params": "0.*"}, {"params": "*.weight"}]}, ValueError, r"'0.weight' appears in group 0 and again"),
    (
        {"params": [{"params": "0.weight", "sparsty": 0.5}]},
        ValueError,
        r"Unknown setting 'sparsty'.*near matches: 'spars",
    ),
    ({"params": [{"params": "0.weight"}, "5.weight"]}, TypeError, r"each group should be a dict"),
    ({"params": [{"params": "0.weight", "sparsity": 2}]}, ValueError, r"in \[0, 1\], but given 2; for 2 % write 0.02"),
    ({"params": {"0.weight": 0.5}}, TypeError, r"settings of '0.weight' should be a dict"),
    ({"saliency": "magnitude"}, TypeError, r"saliency.Magnitude\(\), ...\) or a callable"),
    ({"saliency": saliency.Magnitude}, TypeError, r"the class Magnitude \(write Magnitude\(\)\)"),
    ({"schedule": 0.9}, TypeError, r"schedule should be one of ignite_prune.schedule, but given 0.9"),
    ({"pattern": "2:4"}, TypeError, r"pattern should be one of ignite_prune.pattern, but given '2:4'"),
    ({"pattern": pattern.Channel, "params": "0.weight"}, TypeError, r"write Channel\(\)"),
    ({"allocation": "erk"}, TypeError, r"allocation should be one of"),
    ({"generator": 3}, TypeError, r"generator should be a torch.Generator"),
    ({"keep_dense": "yes"}, TypeError, r"keep_dense should be a bool"),
    (
        {"pattern": pattern.NofM(2, 5)},
        ValueError,
        r"'0.weight': NofM\(keep=2, of=5, dim=1\) needs dimension 1 to be divi.*exclude=",
    ),
    ({"pattern": pattern.Channel(dim=3)}, ValueError, r"'5.weight': Channel\(dim=3, norm=2\) needs 1 different dim"),
    ({"pattern": pattern.Block((5, 2))}, ValueError, r"'0.weight': Block.*does not fit the shape \(8, 4, 3, 3\)"),
    ({"pattern": pattern.Head(size=5)}, ValueError, r"divisible by size \* parts = 5"),
    (
        {"pattern": pattern.NofM(2, 4), "schedule": schedule.Constant(0.6)},
        ValueError,
        r"at most a sparsity of 0.5, but 0.6",
    ),
    (
        {"allocation": allocation.Global(min_density=0.2), "schedule": schedule.Linear(0.9, 0, 5)},
        ValueError,
        r"min_density",
    ),
    ({"masks": {"5.weight": torch.ones(16, 128)}}, TypeError, r"'5.weight' should be a tensor of torch.bool.*float32"),
    ({"masks": {"5.weight": torch.ones(16, dtype=torch.bool)}}, ValueError, r"shape \(16, 128\), but given \(16,\)"),
    (
        {"masks": {"5.bias": torch.ones(16, dtype=torch.bool)}},
        ValueError,
        r"no parameter '5.bias' is pruned here; there are '0",
    ),
    ({"optimizer": "sgd"}, TypeError, r"optimizer should be a torch.optim.Optimizer"),
    ({"optimizer": [1]}, TypeError, r"optimizer should be a torch.optim.Optimizer"),
]


@pytest.mark.parametrize(("keywords", "error", "text"), HANDLER)
def test_handler(keywords, error, text):
    model = small_net()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(error, match=text):
        PruneHandler(model, **keywords)
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    assert not any(p._post_accumulate_grad_hooks for p in model.parameters())


def test_the_optimizer_must_hold_what_is_pruned():
    model = small_net()
    with pytest.raises(ValueError, match=r"does not hold 2 of the parameters to prune: 5.weight, 7.weight; give every"):
        PruneHandler(model, torch.optim.SGD(model[0].parameters(), lr=0.1))
    model[5].requires_grad_(False), model[7].requires_grad_(False)
    PruneHandler(model, torch.optim.SGD(model[0].parameters(), lr=0.1))


@pytest.mark.parametrize(
    ("model", "error", "text"),
    [
        (None, TypeError, r"model should be a torch.nn.Module, but given <class 'NoneType'>"),
        (nn.Sequential(), ValueError, r"Sequential has no parameters to prune"),
        (nn.Sequential(nn.BatchNorm1d(3)), ValueError, r"no layer that is pruned by default; name them with params="),
        (nn.Sequential(nn.LazyLinear(3)), ValueError, r"'0.weight' is lazy and has no shape yet"),
        (nn.Sequential(nn.Linear(2, 2, device="meta")), ValueError, r"plain dense tensor on a device"),
    ],
)
def test_models(model, error, text):
    with pytest.raises(error, match=text):
        PruneHandler(model)


STEPS = [
    ((1.5,), {}, ValueError, r"in \[0, 1\], but given 1.5; for 1.5 % write 0.015"),
    ((-0.1,), {}, ValueError, r"in \[0, 1\], but given -0.1"),
    ((NAN,), {}, ValueError, r"in \[0, 1\], but given nan"),
    (("half",), {}, TypeError, r"number in \[0, 1\], but given 'half'"),
    ((True,), {}, TypeError, r"but given True"),
    ((0.5,), {"at": 3}, ValueError, r"takes a sparsity or at=, not both"),
    ((), {"at": 3}, ValueError, r"needs a schedule"),
]


@pytest.mark.parametrize(("args", "keywords", "error", "text"), STEPS)
def test_step(args, keywords, error, text):
    pruner = PruneHandler(small_net())
    with pytest.raises(error, match=text):
        pruner.step(*args, **keywords)
    assert pruner.sparsity == 0 and pruner.param_groups[0]["sparsity"] == 0


def test_a_sparsity_put_into_param_groups_is_checked_when_used():
    pruner = PruneHandler(small_net())
    pruner.param_groups[0]["sparsity"] = NAN
    with pytest.raises(ValueError, match="given nan"):
        pruner.step()


SCHEDULES = [
    (lambda: schedule.Constant(1.2), ValueError, r"sparsity in \[0, 1\], but given 1.2"),
    (lambda: schedule.Constant(90), ValueError, r"for 90 % write 0.9"),
    (lambda: schedule.Constant(NAN), ValueError, r"given nan"),
    (
        lambda: schedule.OneShot(0.5, at=-1),
        ValueError,
        r"Argument at should be a finite step of at least 0, but given -1",
    ),
    (lambda: schedule.OneShot(0.5, at="3"), TypeError, r"Argument at should be a step"),
    (
        lambda: schedule.Linear(0.9, begin=5, end=2),
        ValueError,
        r"begin should be at most end, but given begin=5, end=2",
    ),
    (lambda: schedule.Polynomial(0.5, 0, 3, initial=0.7), ValueError, r"initial should be at most final"),
    (lambda: schedule.Polynomial(0.5, 0, 3, power=0), ValueError, r"power should be a finite number above 0"),
    (lambda: schedule.Polynomial("0.5", 0, 3), TypeError, r"final should be a sparsity"),
    (lambda: schedule.Exponential(1.0, 0, 3), ValueError, r"final should be below 1"),
    (lambda: schedule.Geometric(1.5, 1), ValueError, r"rate should be a sparsity"),
    (lambda: schedule.Geometric(0.2, 0), ValueError, r"every should be above 0"),
    (lambda: schedule.Steps({}), TypeError, r"mapping \{step: sparsity\}"),
    (lambda: schedule.Steps({1: 0.5, 2: 0.4}), ValueError, r"should never fall"),
    (lambda: schedule.Steps({1: 7}), ValueError, r"table\[1\]"),
    (lambda: schedule.DenseSparse(0.5, 0, 9, sparse=0), ValueError, r"at least 1 step"),
    (lambda: schedule.OneCycle(0.5, 0, 9, alpha=-1), ValueError, r"alpha should be above 0"),
    (lambda: schedule.Linear(0.5, 0, 9).values(-1), ValueError, r"n should be a whole number"),
]


@pytest.mark.parametrize(("make", "error", "text"), SCHEDULES)
def test_schedules(make, error, text):
    with pytest.raises(error, match=text):
        make()


FLAGS = [
    (saliency.SNIP, "anytime"),
    (saliency.GraSP, "anytime"),
    (saliency.SynFlow, "anytime"),
    (saliency.SynFlow, "bias"),
    (saliency.EmpiricalFisher, "per_sample"),
    (saliency.Memory, "lasting"),
    (saliency.Taylor, "squared"),
    (saliency.Taylor, "by_unit"),
    (saliency.HeadImportance, "normalize"),
    (saliency.HeadImportance, "per_sample"),
    (saliency.ActivationTaylor, "signed"),
    (repair.BatchNorm, "variance_repair"),
]
PIECES = [
    (lambda: saliency.Magnitude(p=0), ValueError, r"p should be a finite number above 0, but given 0"),
    (lambda: saliency.Magnitude(p=math.inf), ValueError, r"but given inf"),
    (lambda: saliency.Given([1]), TypeError, r"mapping \{name: Tensor\}"),
    (lambda: saliency.FromCallable(3), TypeError, r"function should be callable, but given 3"),
    *(
        (lambda kind=kind, given=given: kind(memory=given), TypeError, rf"memory should be a Memory, but given {told}")
        for kind in (saliency.Gradient, saliency.Taylor, saliency.Movement, saliency.EmpiricalFisher)
        for given, told in ((0.9, "0.9"), ("x", "'x'"), (None, "None"), (saliency.Memory, "<class .*Memory'>"))
    ),
    *(
        (lambda kind=kind, name=name, given=given: kind(**{name: given}), TypeError, f"{name} should be a bool, but gi")
        for kind, name in FLAGS
        for given in ("no", 1, None)
    ),
    *(
        (lambda kind=kind, seed=seed: kind(seed=seed), TypeError, rf"seed should be an int, but given {seed!r}")
        for kind in (saliency.Hutchinson, saliency.Random)
        for seed in ("x", 1.5, True)
    ),
    (lambda: saliency.Hutchinson(seed=None), TypeError, r"seed should be an int, but given None"),
    (lambda: saliency.Hutchinson(seed=2**63), ValueError, r"seed should be in \[-2\*\*63, 2\*\*63\), but given 9223"),
    (lambda: saliency.Random(seed=-(2**63) - 1), ValueError, r"seed should be in "),
    (lambda: saliency.Shapley(generator=3), TypeError, r"generator should be a torch.Generator, but given 3"),
    (lambda: pattern.NofM(keep=4, of=4), ValueError, r"1 <= keep < of, but given keep=4, of=4"),
    (lambda: pattern.NofM(keep=2.0, of=4), TypeError, r"keep should be an int, but given 2.0"),
    (lambda: pattern.Block((4, 0)), ValueError, r"block sizes of at least 1, but given \(4, 0\)"),
    (lambda: pattern.Block(4), TypeError, r"sequence of ints, but given 4"),
    (
        lambda: pattern.Block((4, 1), reduce="median"),
        ValueError,
        r"one of \['max', 'mean', 'sum'\], but given 'median'",
    ),
    (lambda: pattern.Channel(dim="out"), TypeError, r"dim should be an int or a tuple of ints"),
    (lambda: pattern.Channel(norm=0), ValueError, r"norm should be a number above 0"),
    (lambda: pattern.Channel((0, -4)).count((2, 3, 4, 5)), ValueError, r"different dimensions"),
    (lambda: pattern.Head(size=0), ValueError, r"at least 1"),
    (lambda: allocation.Global(min_density=2), ValueError, r"min_density should be a number in \[0, 1\]"),
    (lambda: allocation.Global(max_sparsity=NAN), ValueError, r"max_sparsity should be"),
    (lambda: allocation.ERK(power=-1), ValueError, r"power should be a finite number of at least 0"),
    (lambda: allocation.StdThreshold(q=-1), ValueError, r"q should be a finite number"),
    (lambda: allocation.Bucket(2, relative=True), ValueError, r"budget should be in \[0, 1\]"),
    (lambda: allocation.Bucket("2"), TypeError, r"budget should be a number"),
]


@pytest.mark.parametrize(("make", "error", "text"), PIECES)
def test_pieces(make, error, text):
    with pytest.raises(error, match=text):
        make()


TENSOR = torch.arange(6.0).view(2, 3)
FUNCTIONAL = [
    ((TENSOR, 7), {}, ValueError, r"amount should be 0 to 6 units for this tensor, but given 7"),
    ((TENSOR, -1), {}, ValueError, r"but given -1"),
    ((TENSOR, 1.1), {}, ValueError, r"amount should be in \[0, 1\], but given 1.1"),
    ((TENSOR, NAN), {}, ValueError, r"given nan"),
    ((TENSOR, True), {}, TypeError, r"given True"),
    ((TENSOR, "1"), {}, TypeError, r"amount should be a number"),
    (([1.0], 1), {}, TypeError, r"floating-point Tensor"),
    ((TENSOR.long(), 1), {}, TypeError, r"floating-point Tensor"),
    ((TENSOR, 1), {"mask": TENSOR}, TypeError, r"torch.bool"),
    ((TENSOR, 1), {"mask": torch.ones(3, dtype=torch.bool)}, ValueError, r"shape \(2, 3\), but given \(3,\)"),
    ((TENSOR, 1), {"scores": torch.ones(3, 2)}, ValueError, r"should have its shape \(2, 3\), but given \(3, 2\)"),
    ((TENSOR, 1), {"scores": TENSOR / 0}, ValueError, r"NaN or infinite"),
    ((TENSOR, 1), {"scores": [1]}, TypeError, r"mapping"),
    ((TENSOR, 1), {"pattern": "rows"}, TypeError, r"pattern should be"),
    ((TENSOR, 0.9), {"pattern": pattern.NofM(1, 3)}, ValueError, r"at most a sparsity of 0.666667"),
    ((TENSOR, 1), {"pattern": pattern.NofM(1, 2)}, ValueError, r"divisible by 2"),
]


@pytest.mark.parametrize(("args", "keywords", "error", "text"), FUNCTIONAL)
@pytest.mark.parametrize("function", [functional.mask, functional.prune, functional.prune_])
def test_functional(function, args, keywords, error, text):
    with pytest.raises(error, match=text):
        function(*args, **keywords)
    assert torch.equal(TENSOR, torch.arange(6.0).view(2, 3))


def test_prune_model():
    model = small_net()
    for arguments, error, text in [
        ({}, ValueError, r"sparsity should be given for the group of '0.weight'"),
        ({"sparsity": 0.5, "inplace": "no"}, TypeError, r"inplace should be a bool"),
        ({"sparsity": 0.5, "saliency": lambda n, p: p[:1]}, ValueError, r"should have its shape \(8, 4, 3, 3\)"),
        ({"sparsity": 0.5, "saliency": lambda n, p: None}, TypeError, r"'0.weight' should be a Tensor"),
        (
            {"sparsity": 0.5, "saliency": saliency.Given({"0.wei": torch.ones(1)})},
            ValueError,
            r"near matches: \['0.wei'\]",
        ),
        (
            {"sparsity": 0.5, "saliency": lambda n, p: p.abs() / (n != "7.weight")},
            ValueError,
            r"'7.weight' has 64 of 64",
        ),
    ]:
        before = copy.deepcopy(model.state_dict())
        with pytest.raises(error, match=text):
            prune_model(model, **arguments)
        assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())


@pytest.mark.parametrize("formula", [saliency.Magnitude(), saliency.Taylor(), saliency.Random()], ids=repr)
@pytest.mark.parametrize(
    ("keywords", "text"),
    [
        ({"generator": 5}, r"generator should be a torch.Generator, but given 5"),
        ({"loss_fn": "ce"}, r"loss_fn should be callable, but given 'ce'"),
        ({"prepare_batch": "x"}, r"prepare_batch should be callable, but given 'x'"),
    ],
)
def test_one_shot_functions(formula, keywords, text):
    model = small_net()
    before = copy.deepcopy(model.state_dict())
    for function, sparsity in ((score, {}), (prune_model, {"sparsity": 0.5})):
        with pytest.raises(TypeError, match=f"Argument {text}"):
            function(model, saliency=formula, **sparsity, **keywords)
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())


class OwnEvents(EventEnum):
    SOMETHING = "something"


def test_attach():
    model = small_net()
    pruner = PruneHandler(model, sgd(model))
    trainer = Engine(lambda engine, batch: None)
    for arguments, error, text in [
        ((None,), TypeError, r"engine should be an ignite.engine.Engine"),
        ((trainer, 3), TypeError, r"event should be an Ignite event"),
        ((trainer, OwnEvents.SOMETHING), ValueError, r"not a valid event"),
        ((trainer, "epochs"), ValueError, r"not a valid event"),
        (
            (trainer, Events.EPOCH_COMPLETED | Events.ITERATION_COMPLETED),
            ValueError,
            r"count in different units \(epoch, it",
        ),
    ]:
        handlers = sum(map(len, trainer._event_handlers.values()))
        with pytest.raises(error, match=text):
            pruner.attach(*arguments)
        assert sum(map(len, trainer._event_handlers.values())) == handlers and not hasattr(trainer.state, "sparsity")
    pruner.attach(trainer)
    with pytest.raises(ValueError, match=r"attached already; detach\(\) it first"):
        pruner.attach(trainer)


def test_a_finished_handler_is_finished():
    model = small_net()
    pruner = PruneHandler(model, sgd(model))
    pruner.step(0.5)
    pruner.finalize()
    state = pruner.state_dict()
    for use in (
        lambda: pruner.step(0.6),
        lambda: pruner.attach(Engine(lambda e, b: None)),
        pruner.restore,
        pruner.finalize,
        lambda: pruner.load_state_dict(state),
    ):
        with pytest.raises(ValueError, match=r"is finished: finalize\(\) was called; make a new one"):
            use()
    assert pruner.sparsity == 0.5 and set(pruner.masks) == set(MaskStore(model))


def test_reparametrised_layers():
    from torch.nn.utils import parametrizations

    model = nn.Sequential(nn.Linear(4, 4), parametrizations.spectral_norm(nn.Linear(4, 4)), nn.Linear(4, 2))
    with pytest.warns(UserWarning, match=r"Left out of pruning, as their layers are reparametrised .*: 1.weight"):
        assert list(PruneHandler(model).masks) == ["0.weight", "2.weight"]
    for name in ("1.weight", "1.parametrizations.weight.original", "1.*"):
        with pytest.raises(
            ValueError, match=r"'1\..*' is reparametrised \(spectral norm.*remove the reparametrisation"
        ):
            PruneHandler(model, params=name)
    model[2] = torch.nn.utils.weight_norm(nn.Linear(4, 2))
    with pytest.warns(UserWarning, match=r"1.weight, 2.weight"):
        assert list(PruneHandler(model).masks) == ["0.weight"]
    with pytest.raises(ValueError, match=r"'2.weight_v' is reparametrised"):
        PruneHandler(model, params="2.weight_v")
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    torch.nn.utils.prune.l1_unstructured(model[0], "weight", 0.5)
    with pytest.warns(UserWarning, match=r"0.weight"):
        assert list(PruneHandler(model).masks) == ["1.weight"]
