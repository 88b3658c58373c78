"""Optimizers that are wrapped, of others' making, quantised or unknown; loops that take gradients in other ways."""

import pytest
import torch
from ignite.engine import Engine, Events
from torch import nn

from ignite_prune import PruneHandler, schedule
from ignite_prune.core.moments import moments
from ignite_prune.core.optimizers import as_optimizers
from ignite_prune.structure.slicing.slots import cut_slot
from tests.models import assert_zero, batches, small_net, train_step


class TwoSteps(torch.optim.Optimizer):
    """SAM as it is written in most places: only the base optimizer's step is a step."""

    def __init__(self, params, base, **settings):
        super().__init__(params, settings)
        self.base = base(self.param_groups, **settings)
        self.param_groups = self.base.param_groups

    @torch.no_grad()
    def first_step(self):
        for p in self.param_groups[0]["params"]:
            self.state[p]["before"] = p.clone()
            p.add_(p.grad, alpha=0.05)

    @torch.no_grad()
    def second_step(self):
        for p, kept in self.state.items():
            p.copy_(kept["before"])
        self.base.step()


class Lookahead(torch.optim.Optimizer):
    """Written without Optimizer.__init__, as most of its kind are."""

    def __init__(self, optimizer):
        self.optimizer, self.param_groups = optimizer, optimizer.param_groups
        self.defaults, self.state = optimizer.defaults, {}

    @torch.no_grad()
    def step(self, closure=None):
        self.optimizer.step()
        for p in self.param_groups[0]["params"]:
            slow = self.optimizer.state[p].setdefault("slow_buffer", p.clone())
            p.copy_(slow.lerp_(p, 0.5))


class Holder:
    """No optimizer itself."""

    def __init__(self, optimizer):
        self._optimizer = optimizer

    def step(self):
        self._optimizer.step()

    def zero_grad(self):
        self._optimizer.zero_grad()


def adam(params):
    return torch.optim.Adam(params, lr=0.01)


WRAPPED = {
    "sam": lambda p: TwoSteps(p, torch.optim.SGD, lr=0.05, momentum=0.9),
    "lookahead": lambda p: Lookahead(adam(p)),
    "holder": lambda p: Holder(Lookahead(adam(p))),
    "in backward": lambda p: {each: adam([each]) for each in p},
}


@pytest.mark.parametrize("kind", WRAPPED)
def test_optimizers_inside_wrappers_are_found(kind):
    model = small_net()
    optimizer = WRAPPED[kind](list(model.parameters()))
    pruner = PruneHandler(model, optimizer)
    for index, batch in enumerate(batches() * 2):
        if index in (2, 5):
            pruner.step(0.5 if index == 2 else 0.8)
        model.zero_grad()
        nn.functional.cross_entropy(model(batch[0]), batch[1]).backward()
        if kind == "sam":
            optimizer.first_step()
            nn.functional.cross_entropy(model(batch[0]), batch[1]).backward()
            optimizer.second_step()
        else:
            for each in optimizer.values() if kind == "in backward" else [optimizer]:
                each.step()
        assert_zero(pruner, *as_optimizers(optimizer))
    pruner.detach()
    assert all(not each._optimizer_step_post_hooks for each in as_optimizers(optimizer))


class Bare(torch.optim.Optimizer):
    def __init__(self, params):
        self.param_groups, self.state, self.defaults = [{"params": list(params)}], {}, {}

    def step(self, closure=None):
        pass


@pytest.mark.parametrize("wrong", [Bare, lambda params: nn.Linear(1, 1), lambda params: "adam"])
def test_what_has_no_step_hooks_is_refused_whole(wrong):
    model = small_net()
    good = adam(model.parameters())
    with pytest.raises(TypeError, match="Argument optimizer"):
        PruneHandler(model, [good, wrong(model.parameters())])
    assert not good._optimizer_step_pre_hooks and not model[0].weight._backward_hooks


class Own(torch.optim.Optimizer):
    """Adam, its second moment rotated by bases that are kept in the state, or by one that nobody sees."""

    def __init__(self, params, basis=None):
        super().__init__(params, {})
        self.basis = basis

    @torch.no_grad()
    def step(self, closure=None):
        for p in self.param_groups[0]["params"]:
            state = self.state[p]
            if not state:
                turn = torch.linalg.qr(torch.randn(len(p), len(p), generator=torch.Generator().manual_seed(0)))[0]
                state |= {"exp_avg": torch.zeros_like(p), "exp_avg_sq": torch.zeros_like(p)}
                state |= {"kept": turn} if self.basis == "kept" else {}
            turn = state.get("kept")
            if self.basis == "hidden":
                turn = torch.linalg.qr(torch.randn(len(p), len(p), generator=torch.Generator().manual_seed(0)))[0]
            turn = torch.eye(len(p)) if turn is None else turn
            state["exp_avg"].lerp_(p.grad, 0.1)
            state["exp_avg_sq"].lerp_((turn.T @ p.grad).square(), 0.05)
            p.sub_(turn @ (turn.T @ state["exp_avg"] / (state["exp_avg_sq"].sqrt() + 1e-8)), alpha=3e-3)


@pytest.mark.parametrize("basis", [None, "kept", "hidden"])
@pytest.mark.parametrize("width", [32, 16])
def test_slots_in_another_basis_do_not_make_training_diverge(basis, width):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, width, bias=False), nn.ReLU(), nn.Linear(width, 16, bias=False))
    optimizer, losses = Own(model.parameters(), basis), []
    pruner = PruneHandler(model, optimizer)
    x, y = torch.randn(32, 16), torch.randint(16, (32,))
    for index in range(40):
        if index in (5, 10, 15):
            pruner.step(0.04 * index)
        train_step(model, optimizer, (x, y))
        losses.append(nn.functional.cross_entropy(model(x), y).item())
        assert_zero(pruner)
        own = [moments(optimizer, p).get("exp_avg_sq") for p in pruner.masks.parameters.values()]
        if basis is None and index >= 5:
            assert all(slot is not None and not slot[~pruner.masks[n]].any() for n, slot in zip(pruner.masks, own))
    assert losses[-1] < losses[0] and max(losses) < 4, "masked by hand it is 3 at most"
    assert basis != "kept" or own == [None, None]


class Codes(torch.Tensor):
    """A quantised slot that can do nothing."""

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        raise NotImplementedError(function)

    @staticmethod
    def __new__(cls, like):
        return torch.Tensor._make_wrapper_subclass(cls, like.shape, dtype=like.dtype)


def test_a_slot_that_cannot_be_masked_does_not_stop_an_update():
    model = small_net()
    optimizer = adam(model.parameters())
    optimizer.state[model[5].weight]["exp_avg"] = Codes(model[5].weight)
    pruner = PruneHandler(model, optimizer)
    assert pruner.step(0.5) == 0.5
    assert_zero(pruner)


def test_codes_of_a_table_are_set_to_the_code_of_zero():
    layer = nn.Linear(4, 2, bias=False)
    optimizer = Own(layer.parameters())
    table = torch.tensor([-1.0, -0.5, 0.0, 0.5, 1.0])
    optimizer.state[layer.weight] = {
        "state1": torch.full((2, 4), 4, dtype=torch.uint8),
        "qmap1": table,
        "absmax1": torch.ones(1),
    }
    pruner = PruneHandler(layer, optimizer)
    pruner.step(0.5)
    values = table[optimizer.state[layer.weight]["state1"].long()]
    assert torch.equal(values, pruner.masks["weight"].float())


def test_autograd_grad_returns_masked_gradients():
    model = small_net()
    pruner = PruneHandler(model)
    pruner.step(0.8)
    x, y = batches(1)[0]
    params = dict(model.named_parameters())
    for graph in (False, True):
        loss = nn.functional.cross_entropy(model(x), y)
        found = dict(zip(params, torch.autograd.grad(loss, list(params.values()), create_graph=graph)))
        for name, mask in pruner.masks.items():
            assert not found[name][~mask].any() and found[name][mask].any()


@pytest.mark.parametrize("given", [True, False])
def test_a_graph_may_be_held_over_iterations(given):
    model, kept = small_net(), []
    optimizer = adam(model.parameters())

    def play(engine, batch):
        kept.append(nn.functional.cross_entropy(model(batch[0]), batch[1]))

    def learn():
        optimizer.zero_grad()
        torch.stack(kept).sum().backward()
        optimizer.step()
        kept.clear()
        assert_zero(pruner, optimizer)

    trainer = Engine(play)
    trainer.add_event_handler(Events.EPOCH_COMPLETED, learn)
    pruner = PruneHandler(model, optimizer if given else None, schedule=schedule.Linear(0.8, begin=0, end=3))
    pruner.attach(trainer)
    trainer.run(batches(), max_epochs=5)
    assert pruner.sparsity == pytest.approx(0.8, abs=1e-3)


def test_a_weight_that_is_not_stepped_is_not_written_to():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    PruneHandler(model, optimizer).step(0.5)
    held = model[0](torch.randn(2, 4, requires_grad=True)).square().sum()
    model[1](torch.randn(2, 4)).sum().backward()
    optimizer.step()
    held.backward()  # plain PyTorch allows it


def test_a_compressing_communication_hook(tmp_path):
    dist = pytest.importorskip("torch.distributed")
    if not dist.is_available():
        pytest.skip("torch was built without torch.distributed")
    store = dist.FileStore(str(tmp_path / "store"), 1)
    dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        model = nn.Linear(16, 16)
        ddp = nn.parallel.DistributedDataParallel(model)

        def smear(state, bucket):
            done = torch.futures.Future()
            done.set_result(bucket.buffer().add_(1.0))
            return done

        ddp.register_comm_hook(None, smear)
        optimizer = torch.optim.SGD(ddp.parameters(), lr=0.1)
        pruner = PruneHandler(ddp, optimizer)
        pruner.step(0.5)
        for _ in range(3):
            ddp(torch.randn(4, 16)).square().sum().backward()
            assert_zero(pruner)
            optimizer.step()
            optimizer.zero_grad()
    finally:
        dist.destroy_process_group()


@pytest.mark.parametrize(
    ("name", "slot", "shape", "dims", "expected"),
    [
        ("second", (4,), (4, 3), {0: [0, 2]}, (2,)),
        ("second", (4,), (4, 3), {1: [0, 2]}, (4,)),
        ("column", (12,), (5, 3, 2, 2), {1: [1]}, (4,)),
        ("exp_avg_sq_row", (4,), (4, 4), {0: [0]}, (1,)),
        ("exp_avg_sq_col", (4,), (4, 4), {0: [0]}, (4,)),
        ("rows", (5, 1), (5, 3), {0: [0, 1]}, (2, 1)),
        ("second", (4,), (4, 4), {0: [0]}, None),
        ("basis", (5, 5), (5, 3), {0: [0]}, None),
    ],
)
def test_factored_slots_are_sliced_by_shape(name, slot, shape, dims, expected):
    indices = {dim: torch.tensor(stay) for dim, stay in dims.items()}
    if expected is None:
        with pytest.raises(ValueError, match="cannot be sliced"):
            cut_slot(name, torch.zeros(slot), torch.zeros(shape), indices)
    else:
        assert cut_slot(name, torch.zeros(slot), torch.zeros(shape), indices).shape == expected
