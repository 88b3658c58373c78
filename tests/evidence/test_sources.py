"""Where evidence comes from: data on one rank or several, or a trainer's steps; and what is refused, tracelessly."""

import copy
import multiprocessing
import os
import socket

import ignite.distributed as idist
import pytest
import torch
import torch.nn.functional as F
from ignite.engine import Events, create_supervised_trainer
from torch import nn

from ignite_prune import PruneHandler, pattern, prune_model, schedule, score
from ignite_prune.core.mask_store import MaskStore
from ignite_prune.saliency import (
    OBD,
    OBS,
    SNIP,
    ActivationTaylor,
    APoZ,
    EmpiricalFisher,
    Exact,
    GraSP,
    Hutchinson,
    MissingEvidence,
    SparseGPT,
    Taylor,
    Wanda,
)
from tests.models import WEIGHTS, batches, small_net

SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["torch._dynamo", "torch.distributed", "tests.evidence.test_sources"])

SALIENCIES = {
    "taylor": Taylor(),
    "snip": SNIP(),
    "obd": OBD(EmpiricalFisher()),
    "wanda": Wanda(),
    "sparsegpt": SparseGPT(),
    "obs": OBS(block=16, damping=1e-3),
    "apoz": APoZ(),
    "activation_taylor": ActivationTaylor(),
}
UNITS = {"apoz", "activation_taylor"}
LOSS = F.cross_entropy


def kind(formula):
    return type(formula).__name__


def judged(data):
    """Scores and masks by every saliency."""
    found = {}
    for name, formula in SALIENCIES.items():
        options = {"saliency": formula, "data": data, "loss_fn": LOSS}
        grain = pattern.Channel() if name in UNITS else pattern.Unstructured()
        scores = score(small_net(), **options)
        masks = prune_model(small_net(), sparsity=0.5, pattern=grain, **options)
        found[name] = {n: s.tolist() for n, s in scores.items()}, {n: m.tolist() for n, m in masks.items()}
    return found


def rank_main(rank, port, answers):
    os.environ.update(
        MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2"
    )
    torch.set_num_threads(1)
    idist.initialize("gloo")
    try:
        found = judged(batches(2, seed=rank))
        try:
            score(small_net(), saliency=Taylor(), data=[] if rank else batches(1), loss_fn=LOSS)
        except ValueError as error:
            found["empty on one rank"] = str(error)
        answers.put((rank, found))
        idist.barrier()
    finally:
        idist.finalize()


@pytest.fixture(scope="module")
def two_ranks():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    answers = SERVER.Queue()
    ranks = [SERVER.Process(target=rank_main, args=(rank, port, answers)) for rank in range(2)]
    for process in ranks:
        process.start()
    found = dict(answers.get(timeout=90) for _ in ranks)
    for process in ranks:
        process.join(60)
        assert process.exitcode == 0
    return found


@pytest.fixture(scope="module")
def one_process():
    return judged(batches(2, seed=0) + batches(2, seed=1))


@pytest.fixture(scope="module")
def half_the_data():
    return judged(batches(2, seed=0))


def close(a, b, rtol=1e-5):
    size = b.abs().max()
    return torch.allclose(a, b, rtol=rtol, atol=1e-6 * float(size))


@pytest.mark.parametrize("name", SALIENCIES)
def test_two_ranks_judge_as_one_process_with_all_the_data(name, two_ranks, one_process, half_the_data):
    whole, masks = one_process[name]
    for rank in (0, 1):
        scores = two_ranks[rank][name][0]
        assert list(scores) == list(whole) == WEIGHTS
        for n in WEIGHTS:
            assert close(torch.tensor(scores[n]), torch.tensor(whole[n])), n
    assert two_ranks[0][name][1] == two_ranks[1][name][1]
    agree = [torch.tensor(two_ranks[0][name][1][n]) == torch.tensor(masks[n]) for n in WEIGHTS]
    assert torch.cat([a.flatten() for a in agree]).float().mean() > 0.99
    assert not all(close(torch.tensor(half_the_data[name][0][n]), torch.tensor(whole[n])) for n in WEIGHTS)


def test_a_rank_without_data_stops_all(two_ranks):
    assert "another rank" in two_ranks[0]["empty on one rank"]
    assert "no batch" in two_ranks[1]["empty on one rank"]


# Gradients are the true ones


def plain_net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(256, 8), nn.Tanh(), nn.Linear(8, 4))


def trained_scores(steps, scaled=False, overflow=(), formula=Taylor()):
    """Scores after SGD steps, each a list of micro-batches; ``overflow`` are the steps a GradScaler would skip."""
    model = plain_net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, fused=True)
    pruner = PruneHandler(model, optimizer, saliency=formula)
    for number, micro in enumerate(steps):
        optimizer.zero_grad()
        for x, y in micro:
            (LOSS(model(x), y) / len(micro) * (1024.0 if scaled else 1.0)).backward()
        if scaled:
            optimizer.grad_scale = torch.tensor(1024.0)
            optimizer.found_inf = torch.tensor(float(number in overflow))
        optimizer.step()
        if scaled:
            del optimizer.grad_scale, optimizer.found_inf
    return pruner.scores()


@pytest.mark.parametrize("formula", [Taylor(), OBD(), OBS(block=16, damping=1e-3)], ids=["taylor", "obd", "obs"])
def test_scaled_gradients_of_a_fused_optimizer_count_unscaled(formula):
    steps = [[batch] for batch in batches(3)]
    plain, scaled = (trained_scores(steps, scaled, formula=formula) for scaled in (False, True))
    assert all(close(scaled[n], plain[n]) and plain[n].any() for n in plain)


def test_a_step_that_overflowed_adds_nothing():
    first, wrong, last = ([batch] for batch in batches(3))
    skipped = trained_scores([first, [(x * 1e30, y) for x, y in wrong], last], scaled=True, overflow={1})
    without = trained_scores([first, last], scaled=True)
    assert all(torch.equal(skipped[n], without[n]) for n in without)


def test_accumulated_micro_batches_are_one_batch():
    x, y = batches(1)[0]
    whole = trained_scores([[(x, y)]])
    halves = trained_scores([[(x[:3], y[:3]), (x[3:], y[3:])]])
    assert all(close(halves[n], whole[n]) and whole[n].any() for n in whole)


# What is refused


def trace(model):
    """All of a model that a refused call must leave alone."""
    return {
        "state": {n: t.clone() for n, t in model.state_dict().items()},
        "grads": {n: None if p.grad is None else p.grad.clone() for n, p in model.named_parameters()},
        "modes": {n: m.training for n, m in model.named_modules()},
        "frozen": {n: p.requires_grad for n, p in model.named_parameters()},
        "hooks": {
            n: [(k, len(v) if isinstance(v, dict) else None) for k, v in vars(m).items()]
            for n, m in model.named_modules()
        },
        "random": torch.get_rng_state(),
    }


def assert_untouched(model, before):
    after = trace(model)
    torch.testing.assert_close(after["state"], before["state"], rtol=0, atol=0)
    torch.testing.assert_close(after["grads"], before["grads"], rtol=0, atol=0)
    for key in ("modes", "frozen", "hooks"):
        assert after[key] == before[key], key
    assert torch.equal(after["random"], before["random"])


def by_score(model, **options):
    score(model, **options)


def by_prune_model(model, **options):
    prune_model(model, sparsity=0.5, **options)


def by_handler(model, **options):
    PruneHandler(model, **options).step(0.5)


def by_handler_in_training(model, **options):
    del options["data"]
    PruneHandler(model, torch.optim.SGD(model.parameters(), lr=0.1), **options).step(0.5)


ENTRIES = pytest.mark.parametrize("entry", [by_score, by_prune_model, by_handler])


def net():
    """With a BatchNorm in training mode, another frozen into eval mode, and gradients that belong to somebody."""
    model = small_net()
    model[1].eval()
    model[0].weight.grad = torch.ones_like(model[0].weight)
    return model


def assert_refused(entry, model, error, match, **options):
    before = trace(model)
    with pytest.raises(error, match=match):
        entry(model, **{"saliency": Taylor(), "data": batches(2), "loss_fn": LOSS, **options})
    assert_untouched(model, before)


@pytest.mark.parametrize("formula", SALIENCIES.values(), ids=SALIENCIES)
@pytest.mark.parametrize("entry", [by_score, by_prune_model, by_handler_in_training])
def test_no_data(entry, formula):
    model = net()
    grain = {"pattern": pattern.Channel()} if isinstance(formula, (APoZ, ActivationTaylor)) else {}
    if entry is by_score:
        grain = {}
    before = trace(model)
    with pytest.raises(MissingEvidence, match=f"{type(formula).__name__} has no evidence for parameter '0.weight'"):
        if entry is by_handler_in_training:
            optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
            pruner = PruneHandler(model, optimizer, saliency=formula, **grain)
            try:
                pruner.step(0.5)
            finally:
                assert pruner.sparsity == 0
                pruner.detach()
                assert not optimizer._optimizer_step_pre_hooks
        else:
            entry(model, saliency=formula, loss_fn=LOSS, **grain)
    assert_untouched(model, before)


@ENTRIES
def test_an_empty_loader(entry):
    empty = torch.utils.data.DataLoader([])
    assert_refused(entry, net(), ValueError, "gave no batch", data=empty)


@ENTRIES
def test_an_iterator_that_was_used_up(entry):
    used = iter(batches(1))
    next(used)
    error, match = (TypeError, "gone over at each update") if entry is by_handler else (ValueError, "used up")
    assert_refused(entry, net(), error, match, data=used)


@ENTRIES
@pytest.mark.parametrize("formula", [Taylor(), OBS(block=16), OBD(Hutchinson()), ActivationTaylor()], ids=kind)
def test_bad_losses(entry, formula):
    def by_sample(output, y):
        return F.cross_entropy(output, y, reduction="none").repeat(2)

    grain = {"pattern": pattern.Channel()} if isinstance(formula, ActivationTaylor) and entry is not by_score else {}
    options = {"saliency": formula, **grain}
    assert_refused(entry, net(), TypeError, r"scalar tensor .* shape \(\d+,\)", loss_fn=by_sample, **options)
    assert_refused(entry, net(), TypeError, "scalar tensor .*float", loss_fn=lambda o, y: 1.0, **options)
    assert_refused(entry, net(), ValueError, "loss .* is nan", loss_fn=lambda o, y: LOSS(o, y) * torch.nan, **options)
    assert_refused(entry, net(), ValueError, "give.*loss_fn", loss_fn=None, **options)


class Bypassed(nn.Module):
    """With a layer that no data reaches."""

    def __init__(self):
        super().__init__()
        self.used, self.unused = small_net(), nn.Linear(4, 4)

    def forward(self, x):
        return self.used(x)


@ENTRIES
@pytest.mark.parametrize("formula", [Taylor(), Wanda(), SparseGPT(), OBD(Hutchinson()), OBS(block=16)], ids=kind)
def test_a_layer_that_is_never_reached(entry, formula):
    assert_refused(entry, Bypassed(), MissingEvidence, "'unused.weight': (the data never|it got no)", saliency=formula)


@ENTRIES
@pytest.mark.parametrize("formula", [Taylor(), SNIP(), OBD(), OBD(Hutchinson()), GraSP(), OBS(block=16)], ids=kind)
def test_a_frozen_parameter(entry, formula):
    model = net()
    model[5].weight.requires_grad_(False)
    told = (UserWarning, "5.weight: frozen") if entry is by_handler else (MissingEvidence, "'5.weight': it is frozen")
    assert_refused(entry, model, *told, saliency=formula)  # a handler leaves it out, with a warning: it may train later


@ENTRIES
def test_an_exact_hessian_over_its_limit(entry):
    formula = OBD(Exact(limit=10))
    assert_refused(entry, net(), ValueError, "2,400 weights, more than its limit of 10;", saliency=formula)


@ENTRIES
def test_a_singular_fisher(entry):
    one = [(x[:1], y[:1]) for x, y in batches(1)]
    formula = OBS(block=16, damping=1e-30)
    assert_refused(
        entry, net(), ValueError, "damping of 1e-30 on their diagonals; try a bigger", saliency=formula, data=one
    )


@ENTRIES
@pytest.mark.parametrize("formula", [OBS(block=16), SparseGPT()], ids=kind)
def test_evidence_over_memory(entry, formula, monkeypatch):
    monkeypatch.setattr("ignite_prune._utils.free_memory._free_memory", lambda device: 10)
    figure = r"would take \d+(\.\d+)? [KM]iB, but cpu has 10 B free"
    assert_refused(entry, net(), ValueError, figure, saliency=formula)


def test_snip_on_a_pruned_model():
    model = net()
    prune_model(model, sparsity=0.5)
    options = {"data": batches(2), "loss_fn": LOSS}
    pruners = [
        PruneHandler(model, saliency=formula, masks=MaskStore.from_nonzero(model), **options)
        for formula in (SNIP(), SNIP(anytime=True))
    ]
    before = trace(model)
    with pytest.raises(ValueError, match=r"pruned already.*SNIP\(anytime=True\)"):
        pruners[0].step(0.75)
    assert_untouched(model, before)
    assert pruners[0].sparsity == 0.5 and pruners[1].step(0.75) == 0.75


def test_snip_with_a_gradual_schedule():
    model = net()
    before = trace(model)
    gradual = schedule.Linear(0.75, begin=0, end=4)
    with pytest.raises(ValueError, match=r"OneShot.*SNIP\(anytime=True\)"):
        PruneHandler(model, saliency=SNIP(), schedule=gradual, data=batches(2), loss_fn=LOSS)
    assert_untouched(model, before)
    PruneHandler(model, saliency=SNIP(anytime=True), schedule=gradual, data=batches(2), loss_fn=LOSS)


# What is left alone


@pytest.mark.parametrize("formula", [*SALIENCIES.values(), GraSP(), OBD(Hutchinson()), OBD(Exact())], ids=kind)
@pytest.mark.parametrize("training", [True, False])
def test_scoring_leaves_no_trace(formula, training):
    model = nn.Sequential(small_net(), nn.Dropout(0.5)).train(training)
    for p in model.parameters():
        p.grad = torch.full_like(p, 3.0)
    before = trace(model)
    scores = score(model, saliency=formula, data=batches(1), loss_fn=LOSS)
    assert_untouched(model, before)
    assert all(s.any() for s in scores.values())


@pytest.mark.parametrize("formula", [Taylor(), OBS(block=16), Wanda(), ActivationTaylor(), GraSP()], ids=kind)
def test_detach_takes_every_hook_off(formula):
    model = small_net()
    before = copy.copy(trace(model)["hooks"])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    trainer = create_supervised_trainer(model, optimizer, LOSS)
    grain = {"pattern": pattern.Channel()} if isinstance(formula, ActivationTaylor) else {}
    once = schedule.OneShot(0.5, at=2)
    pruner = PruneHandler(model, optimizer, saliency=formula, schedule=once, loss_fn=LOSS, **grain)
    pruner.attach(trainer, Events.ITERATION_COMPLETED)
    assert trace(model)["hooks"] != before or optimizer._optimizer_step_pre_hooks or trainer._event_handlers
    trainer.run(batches(3))
    assert pruner.sparsity > 0.3
    pruner.detach()
    assert trace(model)["hooks"] == before
    assert not optimizer._optimizer_step_pre_hooks and not optimizer._optimizer_step_post_hooks
    assert not any(trainer._event_handlers.values())


def test_groups_that_need_the_same_share_it():
    model = small_net()
    groups = [{"params": "0.weight", "saliency": Taylor()}, {"params": ["5.weight", "7.weight"], "saliency": Taylor()}]
    options = {"data": batches(2), "loss_fn": LOSS}
    pruner = PruneHandler(model, params=groups, **options)
    (collector,) = pruner.pruning.evidence.collectors.values()
    assert list(collector.parameters) == WEIGHTS
    other = [groups[0], {**groups[1], "saliency": Taylor(squared=True)}]
    assert len(PruneHandler(model, params=other, **options).pruning.evidence.collectors) == 2
    pruner.step(0.5)
    alone, shared = score(model, saliency=Taylor(), **options), pruner.scores()
    assert list(shared) == list(alone) == WEIGHTS


class Functional(nn.Module):
    """Two layers behind the activation that is given for each."""

    def __init__(self, *activations):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.norm = nn.Conv2d(4, 8, 3), nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8)
        self.head = nn.Linear(8, 4)
        self.activations = activations
        for i, each in enumerate(activations):
            if isinstance(each, nn.Module):
                self.add_module(f"relu{i}", each)

    def forward(self, x):
        x = self.activations[0](self.norm(self.a(x)))
        return self.head(self.activations[1](self.b(x)).mean((2, 3)))


def test_relus_are_found_however_they_are_written():
    shared = nn.ReLU()
    modules = score(Functional(nn.ReLU(), nn.ReLU()), saliency=APoZ(), data=batches(2))
    for pair in ((F.relu, F.relu), (shared, shared), (torch.relu, torch.Tensor.relu), (F.relu, nn.ReLU(inplace=True))):
        assert {n: s.tolist() for n, s in score(Functional(*pair), saliency=APoZ(), data=batches(2)).items()} == {
            n: s.tolist() for n, s in modules.items()
        }
    bare = score(Functional(F.relu, torch.abs), saliency=APoZ(), data=batches(2))
    assert not torch.equal(bare["b.weight"], modules["b.weight"])
