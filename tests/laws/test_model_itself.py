"""Laws 6 and 12: the model stays itself, and nothing leaks."""

import copy
import gc
import io
import pickle

import pytest
import torch
from ignite.engine import Events, create_supervised_trainer
from torch import nn

from ignite_prune import MaskStore, PruneHandler, prune_model, schedule
from tests.marks import CUT_SHORT
from tests.models import WEIGHTS, assert_zero, batches, small_net, train_step


def pruned_in_training():
    model = small_net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    trainer = create_supervised_trainer(model, optimizer, nn.functional.cross_entropy)
    pruner = PruneHandler(model, optimizer, schedule=schedule.Linear(0.8, begin=0, end=3))
    pruner.attach(trainer)
    trainer.run(batches(), max_epochs=3)
    return model, optimizer, trainer, pruner


def test_class_keys_and_shapes_stay():
    plain = small_net()
    model, _, _, pruner = pruned_in_training()
    for _ in range(2):
        assert (
            type(model) is nn.Sequential and type(model[0]) is nn.Conv2d and isinstance(model[0].weight, nn.Parameter)
        )
        shapes = {key: value.shape for key, value in model.state_dict().items()}
        assert shapes == {key: value.shape for key, value in plain.state_dict().items()}
        small_net().load_state_dict(model.state_dict())
        assert [n for n, _ in model.named_parameters()] == [n for n, _ in plain.named_parameters()]
        assert not model[0]._forward_pre_hooks and not model[0]._forward_hooks
        assert "forward" not in vars(model[0])
        if not pruner._finalized:
            pruner.finalize()


@pytest.mark.parametrize("copier", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))], ids=["deepcopy", "pickle"])
def test_copies_are_plain_and_independent(copier):
    model, _, _, pruner = pruned_in_training()
    twin = copier(model)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), twin.parameters()))
    optimizer = torch.optim.SGD(twin.parameters(), lr=0.1)
    train_step(twin, optimizer, batches()[0])
    assert (twin[5].weight[~pruner.masks["5.weight"]] != 0).any(), "a copy trains freely"
    assert_zero(pruner)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # by torch
def test_compiled_autograd():
    from torch._dynamo import compiled_autograd

    torch._dynamo.reset()
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    pruner = PruneHandler(model, optimizer, strict=True)
    pruner.step(0.5)
    for _ in range(2):
        optimizer.zero_grad()
        with compiled_autograd._enable(torch.compile(backend="aot_eager")):
            model(torch.randn(3, 8)).square().mean().backward()
        for name, mask in pruner.masks.items():
            gradient = model.get_parameter(name).grad
            assert gradient[mask].any() and not gradient[~mask].any()
        optimizer.step()
    assert pruner.check()


def test_compiled_model():
    model = small_net()
    compiled = torch.compile(model, backend="aot_eager")
    optimizer = torch.optim.Adam(compiled.parameters(), lr=0.01)
    pruner = PruneHandler(compiled, optimizer)
    assert list(pruner.masks) == WEIGHTS
    pruner.step(0.7)
    for batch in batches(2):
        train_step(compiled, optimizer, batch)
        assert_zero(pruner, optimizer)
    model[0] = torch.compile(model[0], backend="aot_eager")
    assert list(PruneHandler(model).masks) == WEIGHTS, "a compiled layer keeps its name"


def test_export_and_script_see_an_ordinary_model():
    model, _, _, pruner = pruned_in_training()
    x = batches()[0][0]
    program = torch.export.export(model.eval(), (x,))
    torch.testing.assert_close(program.module()(x), model(x))
    assert set(program.state_dict) == set(model.state_dict())
    assert_zero(pruner)


def test_finalize_leaves_a_plain_model():
    model, optimizer, trainer, pruner = pruned_in_training()
    sparsity, masks = pruner.sparsity, dict(pruner.masks)
    pruner.finalize()
    assert sum(int((p == 0).sum()) for n, p in model.named_parameters() if n in masks) == round(sparsity * 2400)
    assert_no_hooks(model, optimizer, trainer)
    train_step(model, optimizer, batches()[0])
    assert (model[5].weight[~masks["5.weight"]] != 0).any(), "nothing holds it any more"


def assert_no_hooks(model, optimizer, trainer):
    assert not any(p._post_accumulate_grad_hooks for p in model.parameters())
    for hooks in ("_step_pre", "_step_post", "_load_state_dict_post"):
        assert not getattr(optimizer, f"_optimizer{hooks}_hooks")
    names = [getattr(h, "__qualname__", "") for handlers in trainer._event_handlers.values() for h, _, _ in handlers]
    assert not [name for name in names if "Prune" in name or "Attachment" in name]


@CUT_SHORT
@pytest.mark.parametrize(
    "event",
    [Events.EPOCH_COMPLETED, Events.ITERATION_COMPLETED(every=2), Events.EPOCH_STARTED | Events.EPOCH_COMPLETED],
)
def test_detach_leaves_nothing_and_attaches_again(event):
    model, optimizer, trainer, pruner = pruned_in_training()
    pruner.detach()
    assert_no_hooks(model, optimizer, trainer)
    sparsity = pruner.sparsity
    trainer.state.max_epochs = None
    trainer.run(batches(), max_epochs=1)
    assert (model[5].weight[~pruner.masks["5.weight"]] != 0).any()
    for _ in range(3):
        pruner.attach(trainer, event)
        trainer.state.max_epochs = None
        trainer.run(batches(), max_epochs=1)
        assert_zero(pruner, optimizer)
        pruner.detach()
        assert_no_hooks(model, optimizer, trainer)
    assert pruner.sparsity >= sparsity


def live_bytes():
    gc.collect()
    return sum(o.numel() * o.element_size() for o in gc.get_objects() if type(o) in (torch.Tensor, nn.Parameter))


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::UserWarning")
def test_a_hundred_updates_use_no_more_memory_than_one():
    model = small_net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    pruner = PruneHandler(model, optimizer, keep_dense=True)
    pruner.step(0.001)
    after_one = live_bytes()
    for index in range(100):
        pruner.step(0.5 + index / 300)
        train_step(model, optimizer, batches(1)[0])
        optimizer.zero_grad()
    probes = 2 * 4096 * 8  # at most 4096 positions of each of the two weights, drawn at the first step
    assert live_bytes() <= after_one + probes + 4 * 1024
    size = io.BytesIO()
    torch.save(model.state_dict(), size)
    plain = io.BytesIO()
    torch.save(small_net().state_dict(), plain)
    assert size.tell() == plain.tell()


def test_the_pruner_and_its_model_are_freed():
    import weakref

    model, optimizer, trainer, pruner = pruned_in_training()
    pruner.detach()
    seen = weakref.ref(pruner)
    del pruner
    gc.collect()
    assert seen() is None and optimizer and trainer and model


def test_restore_without_and_with_dense_values():
    for keep_dense in (False, True):
        model = small_net()
        original = copy.deepcopy(model.state_dict())
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        pruner = PruneHandler(model, optimizer, keep_dense=keep_dense)
        pruner.step(0.4)
        pruner.step(0.8)
        pruner.restore()
        assert pruner.sparsity == 0 and all(m.all() for m in pruner.masks.values())
        same = all(torch.equal(original[n], model.state_dict()[n]) for n in original)
        assert same is keep_dense
        train_step(model, optimizer, batches()[0])
        assert (model[5].weight != 0).all(), "masks are off"
        pruner.step(0.3)
        assert pruner.sparsity == 0.3


def test_dense_values_are_those_at_pruning_and_ride_in_the_checkpoint():
    model, fresh = small_net(), small_net(3)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
    pruner = PruneHandler(model, optimizer, keep_dense=True)
    expected = {}
    for target, batch in zip((0.2, 0.5, 0.8), batches()):
        train_step(model, optimizer, batch)
        before = dict(pruner.masks)
        weights = {n: p.detach().clone() for n, p in pruner.masks.parameters.items()}
        pruner.step(target)
        for n, mask in before.items():
            newly = mask & ~pruner.masks[n]
            expected[n] = torch.where(newly, weights[n], expected.get(n, torch.zeros_like(weights[n])))
    other = PruneHandler(fresh, keep_dense=True)
    fresh.load_state_dict(model.state_dict())
    other.load_state_dict(pruner.state_dict())
    for handler, net in ((pruner, model), (other, fresh)):
        masks = dict(handler.masks)
        kept = {n: net.get_parameter(n).detach().clone() for n in masks}
        handler.restore()
        for n, mask in masks.items():
            assert torch.equal(net.get_parameter(n), torch.where(mask, kept[n], expected[n]))


def test_masks_are_applied_to_an_averaged_copy():
    model = small_net()
    ema = copy.deepcopy(model)
    masks = prune_model(model, sparsity=0.5)
    masks.apply_(ema)
    assert all(torch.equal(ema.get_parameter(n) != 0, m) for n, m in masks.items())
    with pytest.raises(ValueError, match=r"has no parameter '0.weight'"):
        masks.apply_(nn.Sequential(nn.Identity(), nn.Linear(2, 2)))


def test_a_mask_store_is_a_mapping():
    store = MaskStore(small_net())
    assert len(store) == 3 and list(store) == WEIGHTS and "7.weight" in store and store["7.weight"].dtype == torch.bool
    with pytest.raises(KeyError):
        store["nothing"]
