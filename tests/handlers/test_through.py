"""Top-KAST, SR-STE and AC/DC: masks that the dense weights in storage do not show."""

import copy
import pickle

import pytest
import torch
import torch.utils.checkpoint
from ignite.engine import Engine, Events, create_supervised_evaluator, create_supervised_trainer
from ignite.metrics import Loss
from torch import nn

from ignite_prune import PruneEvents, allocation, pattern
from ignite_prune.handlers import SRSTE, AlternatingSparse, TopKAST
from ignite_prune.handlers.sparse_training.masked_forward import MaskedForward
from tests.catalogue import OPTIMIZERS
from tests.golden_values import arrays
from tests.marks import CUT_SHORT
from tests.models import Net, batches, small_net
from tests.ranks import on_two_ranks

PLAIN = [row for row in OPTIMIZERS if not row.notes]


def sgd(model, **options):
    return torch.optim.SGD(model.parameters(), **({"lr": 0.1} | options))


def top_kast(model=None, optimizer=None, **options):
    model = small_net() if model is None else model
    optimizer = sgd(model) if optimizer is None else optimizer
    trainer = create_supervised_trainer(model, optimizer, nn.functional.cross_entropy)
    options = {"sparsity": 0.8, "backward_sparsity": 0.6, "every": 3} | options
    return model, optimizer, trainer, TopKAST(model, optimizer, **options)


def sr_ste(model=None, optimizer=None, **options):
    model = small_net() if model is None else model
    optimizer = sgd(model) if optimizer is None else optimizer
    trainer = create_supervised_trainer(model, optimizer, nn.functional.cross_entropy)
    return model, optimizer, trainer, SRSTE(model, optimizer, **options)


def masked(model, pruner):
    plain = small_net()
    plain.load_state_dict(model.state_dict())
    pruner.masks.apply_(plain)
    return plain


@CUT_SHORT
@pytest.mark.parametrize("make", [top_kast, sr_ste])
def test_the_forward_is_the_masked_models(make):
    model, _, _, pruner = make()
    weights = copy.deepcopy(model.state_dict())
    x = batches()[0][0]
    plain = masked(model, pruner).eval()
    for mode in (torch.enable_grad, torch.no_grad, torch.inference_mode):
        with mode():
            assert torch.equal(model.eval()(x), plain(x))
    assert all(torch.equal(weights[name], value) for name, value in model.state_dict().items())
    assert list(dict(model.named_parameters())) == list(dict(plain.named_parameters()))
    pruner.finalize()
    assert torch.equal(model(x), plain(x)) and pruner.masks.sparsity >= 0.5
    zeros = sum(int((p == 0).sum()) for p in pruner.masks.parameters.values())
    assert zeros == round(pruner.sparsity * pruner.masks.numel)


@pytest.mark.parametrize("make", [top_kast, sr_ste])
def test_the_model_stays_itself(make):
    model, optimizer, trainer, pruner = make()
    pruner.attach(trainer)
    seen = []

    @trainer.on(Events.ITERATION_STARTED | Events.ITERATION_COMPLETED)
    def look():
        seen.append(all(p is q for p, q in zip(model.parameters(), optimizer.param_groups[0]["params"])))

    trainer.run(batches())
    assert all(seen) and type(model) is nn.Sequential
    for copied in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        with torch.no_grad():
            assert list(copied.state_dict()) == list(model.state_dict())
            copied(batches()[0][0])

    def failing(module, inputs):
        raise RuntimeError("on purpose")

    hook = model[5].register_forward_pre_hook(failing)
    with pytest.raises(RuntimeError, match="on purpose"):
        model(batches()[0][0])
    hook.remove()
    assert all(isinstance(p, nn.Parameter) for p in model.parameters())
    pruner.detach()
    assert not model._forward_pre_hooks and not model._forward_hooks and not model._state_dict_pre_hooks
    assert not optimizer._optimizer_step_pre_hooks and not optimizer._optimizer_step_post_hooks


def test_after_an_interrupt_the_weights_are_back():
    model, _, _, pruner = top_kast()

    def interrupt(module, inputs):
        raise KeyboardInterrupt

    hook = model[5].register_forward_pre_hook(interrupt)
    with pytest.raises(KeyboardInterrupt):
        model(batches()[0][0])
    hook.remove()
    assert torch.equal(model.state_dict()["5.weight"], small_net().state_dict()["5.weight"])
    x = batches()[0][0]
    assert torch.equal(model.eval()(x), masked(model, pruner).eval()(x))


def test_tied_weights_and_attention():
    layers = {"a": nn.Linear(4, 4), "b": nn.Linear(4, 4), "m": nn.MultiheadAttention(4, 2, batch_first=True)}
    net = Net(lambda net, x: net.b(net.a(net.m(x, x, x)[0])), **layers)
    net.b.weight = net.a.weight
    optimizer = sgd(net)
    pruner = TopKAST(net, optimizer, sparsity=0.5, allocation=allocation.Uniform())
    x, plain = torch.randn(2, 3, 4), copy.deepcopy(net)
    pruner.masks.apply_(plain)
    assert torch.equal(net(x), plain(x)) and "m.out_proj.weight" in pruner.masks
    with pytest.raises(ValueError, match=r"'weight_ih_l0' is of a recurrent layer"):
        rnn = nn.GRU(4, 4)
        TopKAST(rnn, sgd(rnn), sparsity=0.5)


@pytest.mark.parametrize("row", PLAIN, ids=str)
def test_top_kast_moves_only_what_is_explored(row):
    model = small_net()
    model, optimizer, trainer, pruner = top_kast(model, row.make(model.parameters()), strength=0.01)
    pruner.attach(trainer)
    before = {name: p.detach().clone() for name, p in pruner.masks.parameters.items()}
    explored = dict(pruner.explored)
    moved = {name: torch.zeros_like(mask) for name, mask in explored.items()}

    @trainer.on(Events.ITERATION_COMPLETED)
    def look():
        for name, p in pruner.masks.parameters.items():
            assert not (p.detach() != before[name])[~explored[name]].any()
            moved[name] |= p.detach() != before[name]
            before[name] = p.detach().clone()
            known = f"{type(optimizer).__module__}.".startswith("torch.optim.")  # else no slot is known to be a moment
            for value in optimizer.state[p].values() if known else ():
                if isinstance(value, torch.Tensor) and value.shape == p.shape:
                    assert not value[~explored[name]].any()
        explored.update(pruner.explored)

    trainer.run(batches(), max_epochs=2)
    only = {name: pruner.explored[name] & ~pruner.masks[name] for name in pruner.masks}
    assert all(mask.any() for mask in only.values()) and all(each.any() for each in moved.values())
    assert pruner.masks.sparsity == pytest.approx(0.8, abs=1e-3)
    assert pruner.explored.sparsity == pytest.approx(0.6, abs=1e-3)


def test_top_kast_sets_are_the_largest():
    _, _, trainer, pruner = top_kast(allocation=allocation.Uniform(), every=2)
    pruner.attach(trainer)
    trainer.run(batches(4))
    for name, p in pruner.masks.parameters.items():
        order = p.detach().abs().flatten().sort(descending=True).indices
        forward, backward = p.numel() - round(0.8 * p.numel()), p.numel() - round(0.6 * p.numel())
        assert set(pruner.masks[name].flatten().nonzero()[:, 0].tolist()) == set(order[:forward].tolist())
        assert set(pruner.explored[name].flatten().nonzero()[:, 0].tolist()) == set(order[:backward].tolist())


def test_top_kast_step_by_hand():
    """w - lr·(dL(w ⊙ A) ⊙ B + λ·w on A + λ/D·w on B without A), for a linear loss."""
    layer = nn.Linear(4, 1, bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[4.0, 3.0, 2.0, 1.0]]))
    optimizer = sgd(layer, lr=1.0)
    TopKAST(layer, optimizer, sparsity=0.75, backward_sparsity=0.25, strength=0.01)
    out = layer(torch.tensor([[1.0, 10.0, 100.0, 1000.0]]))
    assert out.item() == 4.0
    out.sum().backward()
    assert layer.weight.grad.tolist() == [[1.0, 10.0, 100.0, 0.0]]
    optimizer.step()
    expected = [4 - 1 - 0.01 * 4, 3 - 10 - 0.04 * 3, 2 - 100 - 0.04 * 2, 1.0]
    assert layer.weight.tolist()[0] == pytest.approx(expected)


def test_sr_ste_step_by_hand_and_flip_rate():
    """w - lr·(dL(w ⊙ m) + λ·(1 - m)·w); the flip rate counts entries whose mask changed."""
    layer = nn.Linear(4, 2, bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[4.0, 3.0, 2.9, 1.0], [4.0, 3.0, 2.0, 1.0]]))
    optimizer = sgd(layer, lr=0.1)
    trainer = create_supervised_trainer(layer, optimizer, lambda y, _: y.sum())
    pruner = SRSTE(layer, optimizer, pattern=pattern.NofM(2, 4), strength=0.2)
    pruner.attach(trainer)
    assert trainer.state.flip_rate == {"global": 0.0, "weight": 0.0}
    told = []
    trainer.add_event_handler(PruneEvents.MASKS_UPDATED, lambda: told.append(trainer.state.metrics["flip_rate"]))
    trainer.run([(torch.tensor([[0.0, 2.0, 0.0, 0.0]]), torch.zeros(1))])
    rows = [[4.0, 2.8, 2.9 - 0.1 * 0.2 * 2.9, 1 - 0.02], [4.0, 2.8, 2 - 0.1 * 0.2 * 2, 1 - 0.02]]
    assert layer.weight.tolist() == [pytest.approx(row) for row in rows]
    assert pruner.masks["weight"].int().tolist() == [[1, 0, 1, 0], [1, 1, 0, 0]]
    assert trainer.state.flip_rate == {"global": 0.25, "weight": 0.25} and told == [0.25]


@pytest.mark.parametrize("row", PLAIN, ids=str)
def test_sr_ste_keeps_n_of_m_with_every_optimizer(row):
    model = small_net()
    model, _, trainer, pruner = sr_ste(model, row.make(model.parameters()), pattern=pattern.NofM(1, 4))
    pruner.attach(trainer)
    trainer.run(batches(), max_epochs=2)
    for name, mask in pruner.masks.items():
        groups = mask.movedim(1, -1).reshape(-1, 4).sum(1)
        assert (groups == 1).all()
        dense = pruner.masks.parameters[name].detach()
        assert dense[~mask].count_nonzero() > 0.9 * (~mask).sum()
    assert trainer.state.sparsity["global"] == 0.75 and 0 <= trainer.state.flip_rate["global"] < 1


def test_evaluators_see_the_masks():
    model, _, trainer, pruner = top_kast()
    pruner.attach(trainer)
    trainer.run(batches())
    losses = []
    for net in (model, masked(model, pruner)):
        evaluator = create_supervised_evaluator(net, {"loss": Loss(nn.functional.cross_entropy)})
        losses.append(evaluator.run(batches(3)).metrics["loss"])
    assert losses[0] == losses[1]


@pytest.mark.filterwarnings("ignore:.*CUDA is not available")
@pytest.mark.parametrize("fused", [False, True])
def test_penalties_are_in_scale(fused):
    """A scaled run ends where an unscaled one does."""
    ends = []
    for scale in (1.0, 2.0**7):
        model = small_net()
        optimizer = sgd(model, fused=fused)
        scaler = torch.amp.GradScaler("cpu", init_scale=scale, growth_interval=10**6)
        pruner = SRSTE(model, optimizer, strength=0.1)

        def update(engine, batch):
            optimizer.zero_grad()
            scaler.scale(nn.functional.cross_entropy(model(batch[0]), batch[1])).backward()
            scaler.step(optimizer)
            scaler.update()

        trainer = Engine(update)
        pruner.attach(trainer)
        trainer.run(batches(3))
        ends.append(model[5].weight.detach().clone())
    assert torch.allclose(ends[0], ends[1], rtol=1e-5, atol=1e-7)


# AC/DC


@CUT_SHORT
@pytest.mark.parametrize(
    ("key", "begin", "phase", "end", "epochs"),
    [("acdc_cifar_freq20_200ep", 10, 20, 171, 200), ("acdc_imagenet_rn50_100ep", 10, 5, 86, 80)],
)
def test_alternating_phases_are_those_published(key, begin, phase, end, epochs):
    # Epochs count from 1 here, from 0 there. The ImageNet recipe's last dense phase is twice as long as the others, so
    # equal phases agree up to it.
    model = nn.Linear(4, 4)
    optimizer = sgd(model, momentum=0.9)
    trainer = create_supervised_trainer(model, optimizer, nn.functional.mse_loss)
    pruner = AlternatingSparse(model, optimizer, sparsity=0.5, begin=begin, phase=phase, end=end)
    pruner.attach(trainer)
    seen = []
    trainer.add_event_handler(Events.EPOCH_COMPLETED, lambda: seen.append(trainer.state.sparsity["global"] == 0.5))
    trainer.run([(torch.randn(2, 4), torch.randn(2, 4))], max_epochs=epochs)
    assert seen == arrays("dynamic_sparse")[f"{key}_is_sparse"][:epochs].tolist()


def test_momentum_begins_anew_with_each_phase():
    for reset in (False, True):
        model = nn.Linear(4, 4, bias=False)
        optimizer = sgd(model, momentum=0.9)
        trainer = create_supervised_trainer(model, optimizer, nn.functional.mse_loss)
        pruner = AlternatingSparse(
            model, optimizer, sparsity=0.5, begin=1, phase=1, end=4, reset_momentum=reset
        )  # fmt: skip
        pruner.attach(trainer)
        alive = []

        @trainer.on(PruneEvents.MASKS_UPDATED)
        def look():
            state = optimizer.state.get(model.weight)
            alive.append(bool(state and state["momentum_buffer"].any()))

        trainer.run([(torch.randn(2, 4), torch.randn(2, 4))], max_epochs=4)
        # At the starts of the epochs: warm-up, sparse, dense, sparse.
        assert alive == ([False, False, False, False] if reset else [False, True, True, True])


# Bad input


@pytest.mark.parametrize(
    ("make", "options", "error", "text"),
    [
        (top_kast, {"sparsity": 0.0, "backward_sparsity": None}, ValueError, r"sparsity should be in \(0, 1\)"),
        (top_kast, {"sparsity": None}, ValueError, r"sparsity should be in \(0, 1\)"),
        (top_kast, {"backward_sparsity": 0.9}, ValueError, "backward_sparsity should be at most the sparsity, 0.8"),
        (top_kast, {"backward_sparsity": -1}, ValueError, "given -1"),
        (top_kast, {"every": 0}, ValueError, "every"),
        (top_kast, {"strength": -1.0}, ValueError, "strength"),
        (sr_ste, {"pattern": pattern.Unstructured()}, TypeError, "pattern should be a NofM"),
        (sr_ste, {"pattern": pattern.NofM(2, 3)}, ValueError, "'0.weight'.*divisible by 3"),
        (sr_ste, {"strength": float("nan")}, ValueError, "strength"),
        (
            sr_ste,
            {"params": [{"params": None, "sparsity": 0.5, "pattern": 1}]},
            ValueError,
            "Unknown setting 'pattern'",
        ),
    ],
)
def test_bad_arguments(make, options, error, text):
    model = small_net()
    optimizer = sgd(model)
    with pytest.raises(error, match=text):
        make(model, optimizer, **options)
    assert not model._forward_pre_hooks and not optimizer._optimizer_step_pre_hooks
    lbfgs = torch.optim.LBFGS(model.parameters())
    with pytest.raises(ValueError, match="LBFGS"):
        make(model, lbfgs)


def test_bad_phases():
    model = nn.Linear(4, 4)
    good = {"sparsity": 0.5, "begin": 1, "phase": 2, "end": 5}
    for bad, text in (
        ({"sparsity": 1.5}, "final"), ({"begin": 6}, "begin should be at most end"), ({"phase": 0}, "phase"),
        ({"phase": 1.5}, "phase"), ({"reset_momentum": 1}, "reset_momentum"),
        ({"schedule": None}, "makes its schedule"),
        ({"optimizer": None, "reset_momentum": True}, "needs the optimizer"),
    ):  # fmt: skip
        with pytest.raises((TypeError, ValueError), match=text):
            AlternatingSparse(model, **{"optimizer": sgd(model), **good, **bad})


def test_nan_chooses_nothing():
    for make in (top_kast, sr_ste):
        model, _, trainer, pruner = make()
        pruner.attach(trainer)
        with torch.no_grad():
            model[5].weight[0, 0] = float("nan")
        before = dict(pruner.masks)
        with pytest.raises(ValueError, match=r"'[05].weight' has values that are NaN"):
            trainer.run(batches())
        assert all(torch.equal(pruner.masks[name], mask) for name, mask in before.items())


def test_through_is_quiet_where_nothing_is_pruned():
    model = small_net()
    _, _, _, pruner = top_kast()
    through = MaskedForward(model, type(pruner.masks)({"5.weight": model[5].weight}))
    through.install()
    assert torch.equal(model.eval()(batches()[0][0]), small_net().eval()(batches()[0][0]))


class Checkpointed(nn.Module):
    def __init__(self, reentrant):
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 8))
        self.out, self.reentrant = nn.Linear(8, 4), reentrant

    def forward(self, x):
        if self.reentrant is None:
            return self.out(self.body(x))
        return self.out(torch.utils.checkpoint.checkpoint(self.body, x, use_reentrant=self.reentrant))


@pytest.mark.parametrize("make", [TopKAST, SRSTE])
def test_activation_checkpointing_sees_the_masks(make):
    x, gradients = torch.randn(5, 8).requires_grad_(), []
    for reentrant in (None, False, True):
        net = Checkpointed(reentrant)
        make(net, sgd(net), **({"sparsity": 0.5} if make is TopKAST else {}))
        net(x).square().sum().backward()
        gradients.append(net.body[0].weight.grad)
    assert gradients[0].any() and all(torch.equal(gradients[0], each) for each in gradients[1:])


@pytest.mark.filterwarnings("ignore:Dynamo does not know", "ignore:The .grad attribute of a Tensor")
@pytest.mark.parametrize("make", [top_kast, sr_ste])
def test_compiled_models_are_masked_or_refused(make):
    (x, y), *_ = batches()
    for first in (False, True):
        torch._dynamo.reset()
        model = small_net().eval()
        compiled = torch.compile(model, backend="eager")
        if first:
            compiled(x)
        _, optimizer, _, pruner = make(model)
        nn.functional.cross_entropy(compiled(x), y).backward()
        if first:
            with pytest.raises(RuntimeError, match="'0.weight' did not come through its mask.*before its first call"):
                optimizer.step()
        else:
            assert torch.equal(compiled(x), masked(model, pruner).eval()(x))
            optimizer.step()


def on_a_rank_that_drifts(rank):
    model = small_net(seed=rank)
    pruner = SRSTE(model, sgd(model))
    return {name: mask.tolist() for name, mask in pruner.masks.items()}


def test_sr_ste_has_rank_0s_masks():
    first, second = on_two_ranks(on_a_rank_that_drifts)
    assert first == second
