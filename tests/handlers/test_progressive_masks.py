"""Masks that come in sub-steps, and masks that are locked."""

import pytest
import torch
from ignite.engine import Engine, Events, create_supervised_trainer
from torch import nn
from torch.nn.functional import cross_entropy

from ignite_prune import MaskStore, PruneEvents, PruneHandler, pattern, prune_model, repair, schedule
from ignite_prune.handlers import ProgressiveMasks
from ignite_prune.regularise import part_way
from tests.models import assert_same_bits, assert_zero, batches, small_net
from tests.ranks import on_two_ranks


def test_part_way_counts_ties_and_returns():
    before = torch.tensor([True] * 8 + [False, False])
    after = torch.tensor([True, True] + [False] * 6 + [True, False])
    mask, pruned = before, []
    for left in (4, 3, 2, 1):
        mask = part_way(mask, after, torch.ones(10), 1 / left)
        assert mask[8] and not mask[9] and mask[:2].all()  # what comes back is back at once
        pruned.append(int((~mask[2:8]).sum()))
        assert not mask[8 - pruned[-1] : 8].any()  # among equals the earlier stays
    assert pruned == [2, 3, 5, 6] and torch.equal(mask, after)  # half to even of 6/4, 4/3, 3/2 and 1
    assert torch.equal(part_way(before, after, torch.ones(10), 0), before | after)
    for share in (-0.1, 1.1):
        with pytest.raises(ValueError, match="share"):
            part_way(before, after, torch.ones(10), share)
    with pytest.raises(ValueError, match="finite"):
        part_way(before, after, torch.full((10,), float("nan")), 0.5)


def idle(model):
    """A trainer that leaves the weights alone, so that masks can be compared."""
    return create_supervised_trainer(model, torch.optim.SGD(model.parameters(), lr=0.0), cross_entropy)


@pytest.mark.parametrize("shape", [pattern.Unstructured(), pattern.Block((4, 1)), pattern.Channel()], ids=str)
def test_four_sub_steps_lead_to_the_pruners_mask(shape):
    plain, model = small_net(), small_net()
    expected = prune_model(plain, sparsity=0.5, pattern=shape)
    pruner = PruneHandler(model, schedule=schedule.OneShot(0.5, at=2), pattern=shape)
    trainer, seen = idle(model), []
    ProgressiveMasks(pruner).attach(trainer, Events.ITERATION_COMPLETED(every=2))
    trainer.add_event_handler(
        PruneEvents.MASKS_UPDATED, lambda: seen.append((trainer.state.iteration, dict(pruner.masks)))
    )
    trainer.run(batches(5), max_epochs=2)
    assert [iteration for iteration, _ in seen] == [2, 4, 6, 8, 10]
    total, kept = pruner.masks.numel, [sum(int(m.sum()) for m in masks.values()) for _, masks in seen]
    for part, count in zip((1, 2, 3, 4, 4), kept):
        assert total - count == pytest.approx((total - kept[-1]) * part / 4, abs=len(expected))
    for (_, early), (_, late) in zip(seen, seen[1:]):
        assert all(not (late[name] & ~early[name]).any() for name in early)  # they nest
    assert_same_bits(seen[3][1], dict(expected))
    assert trainer.state.sparsity["global"] == pruner.sparsity == expected.sparsity


def test_training_keeps_zeros_between():
    model = small_net()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    trainer = create_supervised_trainer(model, optimizer, cross_entropy)
    pruner = PruneHandler(
        model, optimizer, schedule=schedule.Linear(0.8, begin=0, end=16), pattern=pattern.Block((4, 1))
    )
    handler = ProgressiveMasks(pruner)
    handler.attach(trainer, Events.ITERATION_COMPLETED)
    trainer.add_event_handler(Events.ITERATION_COMPLETED, lambda: assert_zero(pruner, optimizer))
    trainer.run(batches(5), max_epochs=4)
    assert pruner.sparsity == pytest.approx(0.8, abs=0.01)
    handler.detach()
    assert not optimizer._optimizer_step_post_hooks and not any(
        p._post_accumulate_grad_hooks for p in model.parameters()
    )


def on_a_rank(rank):
    model = small_net()
    with torch.no_grad():
        model[5].weight.add_(rank * torch.randn_like(model[5].weight))  # drifted
    pruner = PruneHandler(model, schedule=schedule.OneShot(0.5, at=1))
    trainer = idle(model)
    ProgressiveMasks(pruner).attach(trainer, Events.ITERATION_COMPLETED)
    trainer.run(batches(2), max_epochs=1)
    return {name: mask.tolist() for name, mask in pruner.masks.items()}


def test_ranks_agree():
    first, second = on_two_ranks(on_a_rank)
    assert first == second and not all(all(row) for row in first["7.weight"])


def test_bad_arguments():
    model = small_net()
    pruner = PruneHandler(model)
    with pytest.raises(TypeError, match="PruneHandler"):
        ProgressiveMasks(model)
    with pytest.raises(ValueError, match="at least 1"):
        ProgressiveMasks(pruner, steps=0)
    with pytest.raises(ValueError, match="repair"):
        ProgressiveMasks(PruneHandler(model, repair=repair.Bias()))
    engine = Engine(lambda engine, batch: None)
    pruner.attach(engine)
    handler = ProgressiveMasks(pruner)
    with pytest.raises(ValueError, match="attached already"):
        handler.attach(engine)
    good = handler.state_dict()
    for change, error in [({"version": 3}, ValueError), ({"left": 5}, ValueError), ({"left": "x"}, ValueError),
                          ({"names": ["x"]}, ValueError), ({"towards": {}}, TypeError)]:  # fmt: skip
        with pytest.raises(error):
            handler.load_state_dict({**good, **change})
    with pytest.raises(TypeError, match="mapping"):
        handler.load_state_dict({})


def test_pattern_lock():
    """Masks are the zeros that there are, and stay: sparse fine-tuning."""
    model = small_net()
    prune_model(model, sparsity=0.75, pattern=pattern.NofM(1, 4))
    zeros = {name: p.detach() == 0 for name, p in model.named_parameters()}
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, amsgrad=True)
    trainer = create_supervised_trainer(model, optimizer, cross_entropy)
    lock = PruneHandler(model, optimizer, masks=MaskStore.from_nonzero(model))
    lock.attach(trainer)
    trainer.run(batches(5), max_epochs=2)
    assert_zero(lock, optimizer)
    for name, mask in lock.masks.items():
        assert torch.equal(~mask, zeros[name]) and torch.equal(model.get_parameter(name) == 0, zeros[name])
    assert trainer.state.sparsity["global"] == 0.75
    assert isinstance(model, nn.Sequential)
