"""Dynamic sparse training: exact counts, zeros, golden values, and what is refused."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from ignite.engine import Engine, Events, create_supervised_trainer
from torch import nn

from ignite_prune import PruneEvents, allocation
from ignite_prune.handlers import SET, RigL, SparseMomentum, SRigL
from ignite_prune.loggers import MaskHandler
from ignite_prune.regrow import (
    ByGradient,
    Connections,
    ConstantDrop,
    ConstantFanIn,
    CosineDrop,
    PerLayer,
    Random,
    Redistribute,
    drop_smallest,
    grow_best,
)
from tests.catalogue import OPTIMIZERS
from tests.golden_values import arrays, tensor
from tests.marks import CUT_SHORT
from tests.models import assert_zero, batches, small_net

pytestmark = CUT_SHORT

HANDLERS = [SET, RigL, SRigL, SparseMomentum]
GOLDEN = "dynamic_sparse"
CASES = sorted({key.split("_")[0] for key in arrays(GOLDEN) if key[0] == "c"})


def make(handler, model=None, optimizer=None, **options):
    model = small_net() if model is None else model
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01) if optimizer is None else optimizer
    trainer = create_supervised_trainer(model, optimizer, nn.functional.cross_entropy)
    options = {"sparsity": 0.8, "every": 2, "end": 1000, "generator": torch.Generator().manual_seed(3)} | options
    pruner = handler(model, optimizer, **options)
    return model, optimizer, trainer, pruner


# Golden values


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(("kind", "score"), [("rigl", "g"), ("set", "u"), ("snfs", "mom")])
def test_golden_moves(case, kind, score):
    def get(key):
        return tensor(GOLDEN, f"{case}_{key}")

    fraction, k = float(arrays(GOLDEN)[f"{case}_drop_fraction"]), int(arrays(GOLDEN)[f"{case}_k"])
    survivors = drop_smallest(get("w"), get("mask"), k)
    assert torch.equal((get("mask") & ~survivors).flatten().nonzero()[:, 0], get(f"{kind}_drop_idx"))
    grown = grow_best(survivors, get(score).abs(), k)
    assert torch.equal(grown, get(f"{kind}_new_mask"))
    if kind != "set":  # what it draws is given there
        layer = Connections("w", get("w"), get("mask"), evidence=get(score))
        (moved,) = PerLayer(ByGradient())([layer], fraction, torch.Generator())
        assert torch.equal(moved.mask, grown) and torch.equal(moved.survivors, survivors)
        new = get(f"{kind}_new_w")
        begun = grown & ~survivors & ~get("mask")  # a weight just dropped and regrown keeps its value there, not here
        assert not new[begun].any()
    if f"{case}_{kind}_noregrow_new_mask" in arrays(GOLDEN):
        apart = grow_best(get("mask"), get(score).abs(), k) & (survivors | ~get("mask"))
        assert torch.equal(apart, get(f"{kind}_noregrow_new_mask"))


@pytest.mark.parametrize("case", CASES)
def test_golden_sparse_momentum(case):
    def get(key):
        return tensor(GOLDEN, f"{case}_{key}")

    layer = Connections("w", get("w"), get("mask"), evidence=get("mom"))
    (moved,) = Redistribute(fill=1)([layer], float(arrays(GOLDEN)[f"{case}_drop_fraction"]), torch.Generator())
    removed = int((get("mask") & ~moved.survivors).sum())
    assert removed == int(arrays(GOLDEN)[f"{case}_dettmers_removed"])
    assert torch.equal(moved.survivors, get("dettmers_after_prune"))
    assert torch.equal(moved.mask, get("dettmers_after_grow"))


# Exact counts

shapes = st.lists(
    st.lists(st.integers(1, 6), min_size=2, max_size=4).map(tuple), min_size=1, max_size=4
)  # fmt: skip


def layers_of(sizes, density, seed):
    dice = torch.Generator().manual_seed(seed)
    layers = []
    for index, shape in enumerate(sizes):
        mask = torch.rand(shape, generator=dice) < density
        weight = torch.randn(shape, generator=dice).round(decimals=1) * mask  # with ties
        evidence = torch.randn(shape, generator=dice).round(decimals=1)
        layers.append(Connections(str(index), weight, mask, evidence))
    return layers


MOVES = [PerLayer(Random()), PerLayer(ByGradient()), Redistribute(), ConstantFanIn(None)]


@settings(max_examples=40, deadline=None)
@given(sizes=shapes, density=st.floats(0, 1), fraction=st.floats(0.01, 0.99), seed=st.integers(0, 99))
def test_moves_keep_counts_to_the_unit(sizes, density, fraction, seed):
    for move in MOVES:
        layers = layers_of(sizes, density, seed)
        if isinstance(move, ConstantFanIn):
            first = [move.first(layer.mask, torch.Generator()) for layer in layers]
            layers = [Connections(e.name, e.weight, mask, e.evidence) for e, mask in zip(layers, first)]
        for turn in range(5):
            moved = move(layers, fraction, torch.Generator().manual_seed(turn))
            before, after = (
                [int(m.sum()) for m in masks] for masks in zip(*((e.mask, r.mask) for e, r in zip(layers, moved)))
            )
            assert sum(before) == sum(after)
            assert before == after or isinstance(move, Redistribute)
            for layer, each in zip(layers, moved):
                assert not (each.survivors & ~layer.mask).any() and not (each.survivors & ~each.mask).any()
                dropped = layer.weight[layer.mask & ~each.survivors].abs()
                kept = layer.weight[each.survivors].abs()
                assert not dropped.numel() or not kept.numel() or dropped.max() <= kept.min()
                if isinstance(move, ConstantFanIn):
                    assert len(set(each.mask.flatten(1).sum(1).tolist())) == 1
            layers = [Connections(e.name, e.weight * r.mask, r.mask, e.evidence) for e, r in zip(layers, moved)]


def test_ties_go_by_position():
    same, mask = torch.ones(2, 3), torch.tensor([[True, True, True], [False, False, False]])
    survivors = drop_smallest(same, mask, 2)
    assert survivors.tolist() == [[True, False, False], [False] * 3]
    assert grow_best(survivors, same, 2).tolist() == [[True, True, True], [False] * 3]


def test_redistribution_is_proportional_and_overflow_is_respread():
    def layer(name, size, active, momentum):
        mask = torch.arange(size) < active
        return Connections(name, mask.float(), mask, momentum * mask)

    # 10 are dropped of each 20; importances 3 : 1 : 1 of 30 would be 18, 6, 6.
    roomy = [layer("a", 100, 20, 3.0), layer("b", 100, 20, 1.0), layer("c", 100, 20, 1.0)]
    counts = [int(each.mask.sum()) for each in Redistribute()(roomy, 0.5, torch.Generator())]
    assert counts == [10 + 18, 10 + 6, 10 + 6]
    # The first has 12 free once 10 are dropped, of which it may fill int(0.99 * 12) = 11; 19 go to the others.
    tight = [layer("a", 22, 20, 3.0), *roomy[1:]]
    counts = [int(each.mask.sum()) for each in Redistribute()(tight, 0.5, torch.Generator())]
    assert counts[0] == 10 + 11 and sorted(counts[1:]) == [10 + 9, 10 + 10]
    # Nothing has momentum: each grows what it gave.
    still = [layer("a", 30, 20, 0.0), layer("b", 40, 20, 0.0)]
    assert [int(each.mask.sum()) for each in Redistribute()(still, 0.5, torch.Generator())] == [20, 20]


def test_constant_fan_in_ablates_what_is_not_salient():
    weight = torch.tensor([[5.0, 5, 0, 0, 0, 0], [4.0, 4, 0, 0, 0, 0], [0.1, 0.1, 0, 0, 0, 0]])
    gradient = torch.tensor([[0.0, 0, 9, 8, 7, 0], [0.0, 0, 0, 1, 2, 3], [0.0] * 6])
    layer = Connections("w", weight, weight != 0, gradient)
    (moved,) = ConstantFanIn(0.5)([layer], 0.34, torch.Generator())  # 2 of 6 are dropped: both of the last neuron
    assert moved.mask.int().tolist() == [[1, 1, 1, 0, 0, 0], [1, 1, 0, 0, 0, 1], [0] * 6]
    (kept,) = ConstantFanIn(None)([layer], 0.34, torch.Generator())
    assert kept.mask.sum(1).tolist() == [2, 2, 2]
    again = Connections("w", weight * moved.mask, moved.mask, gradient, budget=6)
    (later,) = ConstantFanIn(0.5)([again], 0.34, torch.Generator())
    assert not later.mask[2].any() and later.mask.sum(1).tolist()[:2] == [3, 3]


@pytest.mark.parametrize(
    ("fraction", "values"),
    [
        (CosineDrop(0.3), [0.3, 0.15, 0.0]),
        (CosineDrop(0.5, 0.005), [0.5, 0.2525, 0.005]),
        (ConstantDrop(0.3), [0.3] * 3),
    ],
)
def test_drop_fractions(fraction, values):
    assert [fraction(x) for x in (0, 0.5, 1)] == pytest.approx(values)


# On a model


@pytest.mark.parametrize("handler", HANDLERS)
def test_hundreds_of_updates_keep_the_count(handler):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(256, 12), nn.Tanh(), nn.Linear(12, 4))
    model, optimizer, trainer, pruner = make(handler, model, every=1, sparsity=0.9, drop_fraction=0.4)
    start = {name: pruner.masks.kept(name) for name in pruner.masks}
    moved = []
    pruner.attach(trainer)

    @trainer.on(PruneEvents.MASKS_UPDATED)
    def check():
        now = {name: pruner.masks.kept(name) for name in pruner.masks}
        assert sum(now.values()) == sum(start.values()) or handler is SRigL
        assert now == start or handler in (SparseMomentum, SRigL)
        if handler is SRigL:
            for name, mask in pruner.masks.items():
                rows = mask.sum(1)
                living = rows[rows > 0]
                assert len(set(living.tolist())) == 1 and start[name] - len(living) < now[name] <= start[name]
        assert_zero(pruner, optimizer)
        moved.append(sum(pruner.masks.flips.values()))

    trainer.run(batches(), max_epochs=40)
    assert len(moved) == 200 and sum(moved) > 0
    assert trainer.state.sparsity["global"] == pruner.sparsity == trainer.state.metrics["sparsity"]


@pytest.mark.parametrize("row", [row for row in OPTIMIZERS if not row.notes], ids=str)
@pytest.mark.parametrize("handler", [SET, RigL])
def test_zero_is_zero_and_what_grows_begins_at_zero(row, handler):
    model = small_net()
    model, optimizer, trainer, pruner = make(handler, model, row.make(model.parameters()), every=3)
    before = dict(pruner.masks)
    pruner.attach(trainer)

    @trainer.on(PruneEvents.MASKS_UPDATED)
    def begun():
        for name, mask in pruner.masks.items():
            grown = mask & ~before[name]
            assert grown.any() or mask.all()
            parameter = pruner.masks.parameters[name]
            assert not parameter.detach()[grown].any()
            known = f"{type(optimizer).__module__}.".startswith("torch.optim.")  # else no slot is known to be a moment
            for value in optimizer.state[parameter].values() if known else ():
                if isinstance(value, torch.Tensor) and value.shape == parameter.shape:
                    assert not value[grown].any()
        before.update(pruner.masks)

    trainer.add_event_handler(Events.ITERATION_COMPLETED, lambda: assert_zero(pruner, optimizer))
    trainer.run(batches(), max_epochs=2)
    assert pruner.masks.sparsity == pytest.approx(0.8, abs=1e-3)


@pytest.mark.parametrize("row", [row for row in OPTIMIZERS if not row.notes], ids=str)
def test_rigl_skips_the_step_of_an_update(row):
    """Weights that stay, biases, slots and step counters are those of the iteration before; the next step goes on."""
    model = small_net()
    model, optimizer, trainer, pruner = make(RigL, model, row.make(model.parameters()), every=3)
    pruner.attach(trainer)
    at, weights, slots = {}, {}, {}

    @trainer.on(Events.ITERATION_COMPLETED)
    def keep():
        i = trainer.state.iteration
        at[i] = dict(pruner.masks)
        weights[i] = {name: p.detach().clone() for name, p in model.named_parameters()}
        slots[i] = {
            (name, slot): value.clone() if isinstance(value, torch.Tensor) else value
            for name, p in model.named_parameters()
            for slot, value in optimizer.state[p].items()
        }

    trainer.run(batches(4), max_epochs=1)
    for name, parameter in weights[2].items():
        stays = at[2][name] & at[3][name] & (weights[3][name] != 0) if name in at[2] else torch.ones_like(parameter) > 0
        assert stays.any() and torch.equal(weights[3][name][stays], parameter[stays])
    for key, value in slots[2].items():
        if isinstance(value, torch.Tensor) and key[0] in at[2] and value.shape == at[2][key[0]].shape:
            stays = at[2][key[0]] & at[3][key[0]] & (weights[3][key[0]] != 0)
            assert torch.equal(slots[3][key][stays], value[stays])
        else:
            assert torch.equal(torch.as_tensor(slots[3][key]), torch.as_tensor(value)), key
    assert not torch.equal(weights[3]["7.bias"], weights[4]["7.bias"])


@pytest.mark.parametrize("accumulate", [1, 2, 3])
def test_rigl_grows_where_the_dense_gradient_is_largest(accumulate):
    """Against the gradients of a plain copy of the model over the batches that the step is made of."""
    model, optimizer, trainer, pruner = make(
        RigL, optimizer=None, every=6, drop_fraction=ConstantDrop(0.3)
    )  # fmt: skip
    trainer = create_supervised_trainer(
        model, optimizer, nn.functional.cross_entropy, gradient_accumulation_steps=accumulate
    )
    pruner.attach(trainer)
    data = batches(12)
    window = range(6 - accumulate, 6)
    expected = {}

    @trainer.on(Events.ITERATION_STARTED(once=6 - accumulate + 1))
    def gradients():
        copied = small_net()
        copied.load_state_dict(model.state_dict())
        for index in window:
            nn.functional.cross_entropy(copied(data[index][0]), data[index][1]).backward()
        for name, p in copied.named_parameters():
            if name in pruner.masks:
                mask = pruner.masks[name]
                k = int(mask.sum() * 0.3)
                survivors = drop_smallest(p, mask, k)
                expected[name] = grow_best(survivors, p.grad.abs(), k)

    trainer.run(data[:6])
    assert set(expected) == set(pruner.masks)
    assert all(torch.equal(pruner.masks[name], mask) for name, mask in expected.items())


@pytest.mark.filterwarnings("ignore:.*CUDA is not available")
@pytest.mark.parametrize("fused", [False, True])
def test_rigl_waits_where_a_scaled_step_overflows(fused):
    model = small_net()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01, fused=fused)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    pruner = RigL(model, optimizer, sparsity=0.8, every=3, end=100)

    def update(engine, batch):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(batch[0]), batch[1])
        scaler.scale(loss * (float("inf") if engine.state.iteration == 3 else 1.0)).backward()
        scaler.step(optimizer)
        scaler.update()
        assert_zero(pruner, optimizer) if engine.state.iteration not in (3, 4) else None

    trainer, at = Engine(update), []
    pruner.attach(trainer)
    trainer.add_event_handler(PruneEvents.MASKS_UPDATED, lambda: at.append(trainer.state.iteration))
    trainer.run(batches(8))
    assert at == [4, 6]
    assert all(torch.isfinite(p).all() for p in model.parameters())


def test_rigl_with_a_closure_and_with_two_optimizers():
    model = small_net()
    first, second = (torch.optim.SGD(part.parameters(), lr=0.1, momentum=0.9) for part in (model[:5], model[5:]))
    pruner = RigL(model, [first, second], sparsity=0.8, every=2, end=100)
    start = dict(pruner.masks)

    def update(engine, batch):
        def closure():
            model.zero_grad()
            loss = nn.functional.cross_entropy(model(batch[0]), batch[1])
            loss.backward()
            return loss

        first.step(closure)
        if engine.state.iteration % 3 == 0:  # the second steps more seldom: the update waits for it
            second.step()

    trainer, at = Engine(update), []
    pruner.attach(trainer)
    trainer.add_event_handler(PruneEvents.MASKS_UPDATED, lambda: at.append(trainer.state.iteration))
    trainer.run(batches(4))
    assert at[0] == 3 and not torch.equal(start["0.weight"], pruner.masks["0.weight"])
    assert not torch.equal(start["5.weight"], pruner.masks["5.weight"])


def test_sparse_momentum_is_the_momentum_of_dense_gradients():
    """Of the first steps, by hand: the gradients of a plain copy under the same masks."""
    for optimizer_class, options in ((torch.optim.SGD, {"momentum": 0.9}), (torch.optim.Adam, {"betas": (0.8, 0.9)})):
        model = small_net()
        optimizer = optimizer_class(model.parameters(), lr=0.01, **options)
        model, optimizer, trainer, pruner = make(SparseMomentum, model, optimizer, every=100)
        pruner.attach(trainer)
        gradients = []

        @trainer.on(Events.ITERATION_STARTED)
        def dense():
            copied = small_net()
            copied.load_state_dict(model.state_dict())
            x, y = trainer.state.batch
            nn.functional.cross_entropy(copied(x), y).backward()
            gradients.append(copied[5].weight.grad)

        trainer.run(batches(3))
        a, b, c = gradients
        expected = 0.81 * a + 0.9 * b + c
        if optimizer_class is torch.optim.Adam:
            m = 0.2 * (0.64 * a + 0.8 * b + c)
            v = 0.1 * (0.81 * a**2 + 0.9 * b**2 + c**2)
            expected = m / (v.sqrt() + 1e-8)
        found = pruner._listening.found["5.weight"]
        assert torch.allclose(found, expected, rtol=1e-4, atol=1e-6)


def test_no_update_from_the_end_on_and_three_quarters_by_default():
    for options, expected in (({"end": 8}, [3, 6]), ({"end": 9}, [3, 6]), ({"end": None}, [3, 6, 9, 12])):
        for handler in (SET, RigL):
            _, _, trainer, pruner = make(handler, every=3, **options)
            at = []
            pruner.attach(trainer)
            trainer.add_event_handler(PruneEvents.MASKS_UPDATED, lambda: at.append(trainer.state.iteration))
            trainer.run(batches(), max_epochs=4)
            assert at == expected, (handler, options)


def test_starts():
    kept = {}
    for name, rule in (("uniform", allocation.Uniform()), ("erk", allocation.ERK())):
        _, _, _, pruner = make(SET, allocation=rule, sparsity=0.9)
        kept[name] = [pruner.masks.kept(each) for each in pruner.masks]
    assert kept["uniform"] == [29, 205, 6]  # a tenth of 288, 2048, 64: half to even
    assert kept["erk"] == [24, 190, 26]  # 240 in proportion to 18, 144, 20: the sums of the shapes
    given_masks = {"5.weight": torch.rand(16, 128) > 0.5}
    _, _, _, pruner = make(SET, sparsity=None, masks=given_masks)
    assert torch.equal(pruner.masks["5.weight"], given_masks["5.weight"]) and pruner.masks.kept("7.weight") == 64
    _, _, _, pruner = make(SET, params=[{"params": "5.weight", "sparsity": 0.5}, {"params": "0.weight"}])
    assert pruner.masks.kept("5.weight") == 1024 and pruner.masks.kept("0.weight") == 58


def test_the_same_generator_gives_the_same_run():
    ends = []
    for seed in (5, 5, 6):
        _, _, trainer, pruner = make(SET, generator=torch.Generator().manual_seed(seed))
        pruner.attach(trainer)
        trainer.run(batches())
        ends.append(pruner.masks["5.weight"])
    assert torch.equal(ends[0], ends[1]) and not torch.equal(ends[0], ends[2])


@pytest.mark.parametrize("handler", HANDLERS)
def test_nothing_leaks(handler):
    model, optimizer, trainer, pruner = make(handler)
    keys = list(model.state_dict())
    pruner.attach(trainer)
    trainer.run(batches())
    pruner.detach()
    hooks = (optimizer._optimizer_step_pre_hooks, optimizer._optimizer_step_post_hooks)
    assert not any(hooks) and not any(p._post_accumulate_grad_hooks for p in model.parameters())
    assert not any(any(trainer._event_handlers[event]) for event in (Events.STARTED, Events.ITERATION_STARTED))
    pruner.attach(trainer)
    trainer.run(batches())
    pruner.finalize()
    assert not any(hooks) and list(model.state_dict()) == keys
    with pytest.raises(ValueError, match="finished"):
        pruner.attach(trainer)


def test_masks_are_logged_as_a_pruners_are(tmp_path):
    from ignite.handlers.tensorboard_logger import TensorboardLogger

    _, _, trainer, pruner = make(RigL)
    pruner.attach(trainer)
    with TensorboardLogger(log_dir=str(tmp_path)) as logger:
        logger.attach(trainer, MaskHandler(pruner), Events.EPOCH_COMPLETED)
        trainer.run(batches())
    assert set(pruner.scores()) == set(pruner.masks) and list(tmp_path.rglob("events.out.tfevents*"))


# Bad input

BAD = [
    ({"drop_fraction": 0.0}, ValueError, r"drop_fraction should be in \(0, 1\)"),
    ({"drop_fraction": 1.0}, ValueError, r"drop_fraction should be in \(0, 1\)"),
    ({"drop_fraction": 30}, ValueError, "for 30 % write 0.3"),
    ({"drop_fraction": -0.1}, ValueError, "drop_fraction"),
    ({"drop_fraction": math.nan}, ValueError, "drop_fraction"),
    ({"drop_fraction": "0.3"}, TypeError, "drop_fraction"),
    ({"drop_fraction": True}, TypeError, "drop_fraction"),
    ({"every": 0}, ValueError, "every"),
    ({"every": 2.5}, TypeError, "every"),
    ({"end": 0}, ValueError, "end"),
    ({"sparsity": 0.0}, ValueError, r"sparsity should be in \(0, 1\)"),
    ({"sparsity": 1.0}, ValueError, r"sparsity should be in \(0, 1\)"),
    ({"sparsity": None}, ValueError, r"sparsity should be in \(0, 1\)"),
    ({"sparsity": 90}, ValueError, "for 90 % write 0.9"),
    ({"sparsity": 1e-9}, ValueError, "full, so nothing can grow"),
    ({"sparsity": None, "masks": {"5.weight": torch.ones(16, 128, dtype=torch.bool)}}, ValueError, "full"),
    ({"masks": {"5.weight": torch.ones(16, 128, dtype=torch.bool)}}, ValueError, "not both"),
    ({"sparsity": None, "masks": {"5.weihgt": torch.ones(16, 128) > 0}}, ValueError, "near matches: '5.weight'"),
    ({"sparsity": None, "masks": {"5.weight": torch.ones(16, 128)}}, TypeError, "torch.bool"),
    ({"allocation": allocation.ERK}, TypeError, r"write ERK\(\)"),
    ({"generator": 3}, TypeError, "generator"),
    ({"params": "no.such"}, ValueError, "no parameter matches"),
    ({"params": [{"params": None, "drop_fraction": 0.2}]}, ValueError, "Unknown setting 'drop_fraction'"),
    ({"params": [{"params": None, "saliency": None}]}, ValueError, "Unknown setting 'saliency'"),
]


@pytest.mark.parametrize("handler", HANDLERS)
@pytest.mark.parametrize(("options", "error", "text"), BAD)
def test_bad_arguments(handler, options, error, text):
    model = small_net()
    before = [p.clone() for p in model.parameters()]
    optimizer = torch.optim.Adam(model.parameters())
    with pytest.raises(error, match=text):
        make(handler, model, optimizer, **options)
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters()))
    assert not optimizer._optimizer_step_pre_hooks and not model[5].weight._post_accumulate_grad_hooks


def test_bad_moves_and_optimizers():
    full = torch.ones(4, dtype=torch.bool)
    with pytest.raises(ValueError, match="from 0 to 0, the free entries, but given 1"):
        grow_best(full, torch.rand(4), 1)
    with pytest.raises(ValueError, match="from 0 to 4, the active entries, but given 5"):
        drop_smallest(torch.rand(4), full, 5)
    with pytest.raises(ValueError, match="Growing in 'fc' needs the dense gradient"):
        PerLayer(ByGradient())([Connections("fc", torch.rand(4), torch.arange(4) < 2)], 0.5, torch.Generator())
    with pytest.raises(ValueError, match="min_salient"):
        make(SRigL, min_salient=1.5)
    for handler in HANDLERS:
        model = small_net()
        with pytest.raises(ValueError, match="LBFGS"):
            make(handler, model, torch.optim.LBFGS(model.parameters()))
        with pytest.raises(ValueError, match="needs the optimizer"):
            handler(model, None, sparsity=0.5)
    model = small_net()
    with pytest.raises(ValueError, match="SGD has no momentum"):
        make(SparseMomentum, model, torch.optim.SGD(model.parameters(), lr=0.1))


def test_a_run_of_unknown_length_needs_an_end():
    _, _, trainer, pruner = make(SET, end=None)
    pruner.attach(trainer)
    with pytest.raises(ValueError, match="needs end="):
        trainer.run(iter(batches()))
    assert trainer.state.iteration == 0


def test_nan_rewires_nothing():
    for handler in (SET, RigL):
        model, _, trainer, pruner = make(handler, every=2)
        pruner.attach(trainer)
        before, state = dict(pruner.masks), pruner._generator.get_state()

        @trainer.on(Events.ITERATION_STARTED(once=2))
        def poison():
            with torch.no_grad():
                model[7].weight.view(-1)[pruner.masks["7.weight"].view(-1).nonzero()[0]] = float("nan")

        with pytest.raises(ValueError, match="'[057].weight' has values that are NaN"):
            trainer.run(batches())
        assert all(torch.equal(pruner.masks[name], mask) for name, mask in before.items())
        assert torch.equal(pruner._generator.get_state(), state)


# In other people's loops


@pytest.mark.parametrize("handler", HANDLERS)
def test_a_frozen_layer_is_left_alone(handler):
    model = small_net()
    model[5].weight.requires_grad_(False)
    model, _, trainer, pruner = make(handler, model, every=1)
    weight, mask = model[5].weight.clone(), pruner.masks["5.weight"]
    pruner.attach(trainer)
    trainer.run(batches(), max_epochs=2)
    assert torch.equal(model[5].weight, weight) and torch.equal(pruner.masks["5.weight"], mask)
    moved = pruner.masks["7.weight"]
    model[7].weight.requires_grad_(False)  # in the middle of training
    trainer.run(batches(), max_epochs=4)
    assert torch.equal(pruner.masks["7.weight"], moved)


def test_held_gradients_are_nobody_elses():
    """With ``gradient_as_bucket_view`` DDP writes the next gradients into the memory of these."""
    model, optimizer, trainer, pruner = make(RigL, every=2)
    pruner.attach(trainer)
    buckets = {p: torch.zeros(2 * p.numel()) for p in model.parameters()}

    def as_view(*_):
        for p, bucket in buckets.items():
            if p.grad is not None:
                bucket[: p.numel()] = p.grad.flatten()
                p.grad = bucket[: p.numel()].view(p.shape)

    pruner.detach()
    optimizer.register_step_pre_hook(as_view)
    pruner.attach(trainer)
    _, _, plain, expected = make(RigL, every=2)
    for each in (plain, trainer):
        first = expected if each is plain else pruner
        if each is plain:
            first.attach(each)
        else:
            optimizer.register_step_post_hook(lambda *_: [bucket.fill_(0) for bucket in buckets.values()])
        each.run(batches(2))
    assert all(torch.equal(expected.masks[name], mask) for name, mask in pruner.masks.items())


def test_a_run_cut_short_leaves_nothing_to_the_next():
    model = small_net()
    first, second = (torch.optim.SGD(part.parameters(), lr=0.1) for part in (model[:5], model[5:]))
    pruner = RigL(model, [first, second], sparsity=0.8, every=2, end=100)

    def update(engine, batch):
        model.zero_grad()
        nn.functional.cross_entropy(model(batch[0]), batch[1]).backward()
        first.step()
        if engine.state.iteration == 2 and len(runs) == 1:
            engine.terminate()  # before the second step
        else:
            second.step()

    trainer, runs = Engine(update), [1]
    pruner.attach(trainer)
    trainer.run(batches(4))
    assert dict(pruner.state_dict()["heard"])["caught"] == [0]
    runs.append(2)
    trainer.add_event_handler(Events.ITERATION_STARTED(once=1), lambda: runs.append(dict(pruner.state_dict()["heard"])))
    trainer.run(batches(4))
    assert runs[2] == {"gradients": {}, "caught": []}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_sparse_momentum_of_half_precision(dtype):
    model = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 4)).to(dtype)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, eps=1e-4)
    trainer = create_supervised_trainer(model, optimizer, lambda output, _: output.square().mean())
    pruner = SparseMomentum(model, optimizer, sparsity=0.75, every=2, end=100)
    pruner.attach(trainer)
    trainer.run([(torch.randn(8, 16, dtype=dtype), torch.zeros(1))] * 4, max_epochs=2)
    assert pruner.sparsity == 0.75
    before = dict(pruner.state_dict()["heard"])["second"]["0.weight"].float()
    pruner._listening._take("0.weight", torch.zeros(32, 16), (0.9, 0.999))
    assert torch.allclose(dict(pruner.state_dict()["heard"])["second"]["0.weight"].float(), 0.999 * before, rtol=1e-5)


def test_max_iters_tell_how_long_a_run_is():
    _, _, trainer, pruner = make(SET, every=3, end=None)
    at = []
    pruner.attach(trainer)
    trainer.add_event_handler(PruneEvents.MASKS_UPDATED, lambda: at.append(trainer.state.iteration))
    trainer.run(batches(), max_iters=16)
    assert at == [3, 6, 9]


def test_masks_without_a_constant_fan_in_and_layers_without_connections():
    mask = torch.zeros(16, 128, dtype=torch.bool)
    mask[:4], mask[4:8, :3] = True, True
    with pytest.raises(ValueError, match=r"'5.weight' should give each living neuron the same.*given \[0, 3, 128\]"):
        make(SRigL, sparsity=None, masks={"5.weight": mask})
    mask[:4] = False
    _, _, trainer, pruner = make(SRigL, sparsity=None, masks={"5.weight": mask}, every=1)
    pruner.attach(trainer)
    trainer.run(batches())
    assert pruner.masks.kept("5.weight") == 12
    with pytest.warns(UserWarning, match="No connection is left in 0.weight, 7.weight"):
        make(SET, sparsity=0.999)


def test_settings_are_fixed_and_no_event_is_taken():
    model = small_net()
    handler = SET(model, torch.optim.SGD(model.parameters(), lr=0.1), sparsity=0.5, end=10)
    trainer = Engine(lambda engine, batch: None)
    with pytest.raises(TypeError, match="takes no event"):
        handler.attach(trainer, Events.EPOCH_COMPLETED)
    with pytest.raises(ValueError, match="no ParamScheduler can drive it"):
        handler.param_groups[0]["sparsity"] = 0.9
    assert handler.param_groups[0]["sparsity"] == 0.5
