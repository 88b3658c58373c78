"""What cannot be pruned in shards is refused by name on every rank, and nothing is changed; no rank hangs."""

import os
import socket
import time
import warnings
from datetime import timedelta

import pytest
import torch
from ignite.engine import Engine
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Partial

from ignite_prune import PruneHandler, allocation, pattern, repair, saliency
from ignite_prune.handlers import SET
from tests.ranks import SERVER, on_ranks
from tests.sharded.nets import EVEN, Net, fsdp, mesh_of, sharded, tensor_parallel


class OwnAllocation(allocation.Allocation):
    """An allocation of a user's, which sees whole scores."""

    def divide(self, layers, sparsity):
        return [allocation.Pool((layer,), int(layer.scores().numel() * (1 - sparsity))) for layer in layers]


def refused(call, *texts, error=ValueError):
    with pytest.raises(error) as raised:
        call()
    assert all(text in str(raised.value) for text in texts), str(raised.value)


def at_the_door(rank):
    warnings.simplefilter("ignore")
    plain = Net(EVEN)
    early = torch.optim.SGD(plain.parameters(), lr=0.1)
    pruner = PruneHandler(plain, early)
    model = fsdp(plain)
    refused(lambda: pruner.attach(Engine(lambda e, b: None)), "the model sharded", "make a new PruneHandler")
    refused(lambda: PruneHandler(model, early), "are sharded", "make the optimizer after them")
    for options, text in (
        ({"saliency": saliency.OBD(saliency.Hutchinson())}, "Curvature of whole parameters"),
        ({"saliency": saliency.Taylor(by_unit=True)}, "whole parameters"),
        ({"allocation": OwnAllocation()}, "With shards allocation may be"),
        ({"pattern": pattern.Head(2)}, "With shards pattern may be"),
        ({"repair": repair.SparseGPT()}, "Argument repair needs whole parameters"),
    ):
        refused(lambda options=options: PruneHandler(model, **options), text)
    refused(lambda: SET(model, torch.optim.SGD(model.parameters(), lr=0.1), sparsity=0.5), "which PruneHandler prunes")
    partial = nn.Linear(2, 2)
    mesh = mesh_of(2, names=("tp",))
    partial.weight = nn.Parameter(DTensor.from_local(torch.ones(2, 2), mesh, [Partial()]))
    refused(lambda: PruneHandler(partial), "'weight' has the placements (Partial(sum),)", "redistribute")
    odd = fsdp(Net((8, 6, 8)))  # 3 rows of a block of 2 on each rank
    split = PruneHandler(odd, pattern=pattern.Block((2, 2)))
    refused(lambda: split.step(0.5), "Block(shape=(2, 2)", "along dimension 0 of parameter 'layers.0.weight'", "Shard")
    assert split.sparsity == 0
    rows = tensor_parallel(Net((12, 12, 8, 8)), mesh)  # 6 inputs on each rank
    grouped = PruneHandler(rows, pattern=pattern.NofM(2, 4))
    refused(lambda: grouped.step(0.5), "'layers.1.weight'", "this rank holds 6 of 12")


def on_one_rank(rank):
    """Ranks that differ: each of them is told, in seconds."""
    warnings.simplefilter("ignore")
    model = fsdp(Net())
    start, before = time.monotonic(), [p.to_local().clone() for p in model.parameters()]
    pruner = PruneHandler(model, params="layers.*.weight" if rank else "layers.0.weight")
    told = "rank 1 has 'layers.1.weight' of shape (13, 22) where rank 0 has no further parameter"
    refused(lambda: pruner.attach(Engine(lambda e, b: None)), told)
    refused(lambda: pruner.step(0.5), told)
    pruner = PruneHandler(model)
    refused(lambda: pruner.step(0.5 + rank / 10), "the same targets", "rank 1 has others than rank 0")
    with torch.no_grad():
        model.layers[1].weight.to_local()[0, 0] = float("nan") if rank else 1.0
    refused(lambda: pruner.step(0.5), "'layers.1.weight' has 1 of")
    model.layers[1].weight.to_local().data[0, 0] = before[2][0, 0]
    failing = PruneHandler(model, saliency=lambda n, p: 1 / 0 if rank else p.abs())
    error = ZeroDivisionError if rank else ValueError
    refused(lambda: failing.step(0.5), "division by zero" if rank else "rank 1 of 2", error=error)
    assert all(torch.equal(a, b.to_local()) for a, b in zip(before, model.parameters()))
    assert pruner.sparsity == failing.sparsity == 0
    assert time.monotonic() - start < 20
    assert pruner.step(0.5) == pytest.approx(0.5, abs=0.01)
    refused(lambda: PruneHandler(model, verify="always"), "'never', 'checkpoint' or 'update'")


def drifted(rank):
    """Copies of the same weights on ranks that have drifted apart."""
    warnings.simplefilter("ignore")
    model = sharded("hybrid", Net(EVEN))
    pruner = PruneHandler(model, verify="update")
    assert pruner.step(0.3) == 0.3
    assert pruner.traffic.messages <= 12
    with torch.no_grad():
        if rank > 1:
            model.layers[0].weight.to_local().neg_().add_(0.3)
    refused(lambda: pruner.step(0.6), "'layers.0.weight' on ranks 0 and 2 differ", error=RuntimeError)
    assert pruner.sparsity == 0.3
    careful = PruneHandler(model, masks=dict(pruner.masks), verify="checkpoint", shared=True)
    careful.state_dict()


def test_at_the_door():
    on_ranks(2, at_the_door)


def test_ranks_that_differ():
    on_ranks(2, on_one_rank)


def test_replicas_that_differ():
    on_ranks(4, drifted)


def lost(rank, port, answers):
    """Rank 1 is killed in training; rank 0 is told what was lost, and one process goes on without a group."""
    warnings.simplefilter("ignore")
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), RANK=str(rank), WORLD_SIZE="2")
    torch.distributed.init_process_group("gloo", timeout=timedelta(seconds=5))
    model = Net()
    fully_shard(model)
    pruner = PruneHandler(model)
    pruner.step(0.3)
    if rank:
        os._exit(1)
    try:
        pruner.step(0.5)
    except RuntimeError as error:
        told = str(error), pruner.sparsity
    torch.distributed.destroy_process_group()
    try:
        pruner.step(0.5)
    except ValueError as error:
        answers.put((*told, str(error)))


def test_a_rank_that_is_killed():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    answers = SERVER.Queue()
    ranks = [SERVER.Process(target=lost, args=(rank, port, answers), daemon=True) for rank in range(2)]
    for each in ranks:
        each.start()
    told, sparsity, without = answers.get(timeout=60)
    assert "this mask update was not made" in told and "load the last checkpoint" in told
    assert sparsity == pytest.approx(0.3, abs=0.01)
    assert "There is no process group" in without
    for each in ranks:
        each.join()
