"""Checkpoints: saved on some ranks, loaded on others, and between sharded runs and plain ones."""

import warnings
from io import BytesIO

import pytest
import torch
import torch.distributed.checkpoint as dcp
from ignite.engine import Engine
from ignite.handlers import Checkpoint, DiskSaver
from torch import nn
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save
from torch.distributed.tensor import DTensor, distribute_tensor

from ignite_prune import PruneHandler, saliency
from ignite_prune.handlers import FullState
from tests.ranks import on_ranks
from tests.sharded.nets import EVEN, Net, sharded, whole

OPTIONS = {"saliency": saliency.Taylor(), "keep_dense": True}


def made(kind, **options):
    model = Net(EVEN) if kind == "plain" else sharded(kind, Net(EVEN))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    return model, optimizer, PruneHandler(model, optimizer, **{**OPTIONS, **options})


def train(model, optimizer, steps, start=0):
    for step in range(start, start + steps):
        generator = torch.Generator().manual_seed(step)
        x, y = torch.randn(6, 12, generator=generator), torch.randn(6, 8, generator=generator)
        nn.functional.mse_loss(model(x), y).backward()
        optimizer.step()
        optimizer.zero_grad()


def seen(pruner):
    """What a run goes on from: masks, kept values and evidence."""
    masks = {name: whole(mask).tolist() for name, mask in pruner.masks.items()}
    scores = {name: whole(each).tolist() for name, each in pruner.scores().items()}
    state = pruner.state_dict()
    if "shards" not in state["masks"]:
        return masks, scores, {name: values.tolist() for name, values in state["dense"]}
    dense = {name: whole(values)[~whole(pruner.masks[name])] for name, values in state["masks"]["dense"].items()}
    return masks, scores, {name: values.tolist() for name, values in dense.items()}


def kept_dense(rank, kind):
    """Kept values of a plain run in a sharded one, and back: the same values come back."""
    warnings.simplefilter("ignore")
    model, optimizer, plain = made("plain")
    train(model, optimizer, 1)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    plain.step(0.4)
    plain.step(0.7)
    net, _, pruner = made(kind)
    net.load_state_dict({name: distribute(p, before[name]) for name, p in net.named_parameters()})
    pruner.load_state_dict(plain.state_dict())
    assert pruner.sparsity == plain.sparsity
    state = FullState(pruner).state_dict()
    pruner.restore()
    for name, parameter in net.named_parameters():
        torch.testing.assert_close(whole(parameter.detach()), before[name], rtol=0, atol=0)
    if rank == 0:
        again, _, other = made("plain")
        torch.save(state, io := BytesIO())
        other.load_state_dict(torch.load(BytesIO(io.getvalue()), weights_only=True))
        other.restore()
        kept = {n: p for n, p in again.named_parameters() if n in plain.masks}
        assert all(torch.equal(p[~plain.masks[n]], before[n][~plain.masks[n]]) for n, p in kept.items())
    return True


def gathering(rank, kind, folder):
    """Evidence of the inputs of layers in training, half of it before a checkpoint."""
    warnings.simplefilter("ignore")
    options = {"saliency": saliency.Wanda(), "keep_dense": False}
    model, optimizer, pruner = made(kind, **options)
    pruner.attach(Engine(lambda e, b: None))
    train(model, optimizer, 2)
    dcp.save({"model": model.state_dict(), "pruner": pruner.state_dict()}, checkpoint_id=folder)
    again, _, other = made(kind, **options)
    other.attach(Engine(lambda e, b: None))
    state = {"model": again.state_dict(), "pruner": other}
    dcp.load(state, checkpoint_id=folder)
    again.load_state_dict(state["model"])
    for each in (pruner, other):
        each.step(0.5)
    return [all(torch.equal(whole(m), whole(pruner.masks[n])) for n, m in other.masks.items()), pruner.sparsity]


def distribute(parameter, values):
    """Return whole values as a parameter lies."""
    if not isinstance(parameter, DTensor):
        return values
    return distribute_tensor(values, parameter.device_mesh, parameter.placements)


def begin(rank, kind, folder, asynchronous):
    warnings.simplefilter("ignore")
    model, optimizer, pruner = made(kind)
    train(model, optimizer, 2)
    pruner.step(0.5)
    train(model, optimizer, 2, start=2)
    state = {"model": model.state_dict(), "pruner": pruner.state_dict()}
    if asynchronous:
        dcp.async_save(state, checkpoint_id=folder).result()
    else:
        dcp.save(state, checkpoint_id=folder)
    return seen(pruner)


def resume(rank, kind, folder, onward):
    """Load on these ranks, compare with a plain run that loads the same, and save for the next."""
    warnings.simplefilter("ignore")
    model, _, pruner = made(kind)
    weights = {"model": model.state_dict()}
    dcp.load(weights, checkpoint_id=folder)
    model.load_state_dict(weights["model"])
    dcp.load({"pruner": pruner}, checkpoint_id=folder)
    found = seen(pruner)
    dcp.save({"model": model.state_dict(), "pruner": pruner}, checkpoint_id=onward)
    pruner.step(0.7)
    return found, {name: whole(mask).tolist() for name, mask in pruner.masks.items()}


def test_from_some_ranks_to_others(tmp_path):
    (wanted, *_) = on_ranks(4, begin, "both", str(tmp_path / "0"), True)
    going_on = []
    for index, (ranks, kind) in enumerate([(2, "fsdp"), (1, "fsdp"), (3, "fsdp"), (4, "hybrid"), (2, "tp")]):
        answers = on_ranks(ranks, resume, kind, str(tmp_path / f"{index}"), str(tmp_path / f"{index + 1}"))
        assert all(found == wanted for found, _ in answers), (ranks, kind)
        going_on += [after for _, after in answers]
    dcp_to_torch_save(tmp_path / "5", tmp_path / "one.pt")
    state = torch.load(tmp_path / "one.pt", weights_only=True)
    model, _, pruner = made("plain")
    model.load_state_dict(state["model"])
    pruner.load_state_dict(state["pruner"])
    assert seen(pruner) == wanted
    pruner.step(0.7)
    assert all(after == {n: m.tolist() for n, m in pruner.masks.items()} for after in going_on)


def one_file(rank, folder):
    """Ignite's Checkpoint on all ranks, a whole state on rank 0; a plain run's state loads, and the other way round."""
    warnings.simplefilter("ignore")
    model, optimizer, pruner = made("fsdp", keep_dense=False, saliency=saliency.Random())
    pruner.step(0.5)
    wanted = {name: whole(mask) for name, mask in pruner.masks.items()}
    Checkpoint({"pruner": FullState(pruner)}, DiskSaver(folder, require_empty=False))(Engine(lambda e, b: None))
    torch.distributed.barrier()
    state = torch.load(f"{folder}/pruner_0.pt", weights_only=True)
    torch.distributed.barrier()
    _, _, other = made("fsdp", keep_dense=False, saliency=saliency.Random())
    FullState(other).load_state_dict(state)
    _, _, plain = made("plain", keep_dense=False, saliency=saliency.Random())
    plain.load_state_dict(state)
    for masks in (other.masks, plain.masks):
        assert all(torch.equal(whole(mask), wanted[name]) for name, mask in masks.items())
    plain.pruning.masks.load_state_dict(plain.masks.state_dict())
    other.masks.load_state_dict(plain.masks.state_dict())
    other.step(0.8)
    pruner.step(0.8)  # its generator went on from where it was saved
    assert all(torch.equal(whole(mask), whole(pruner.masks[name])) for name, mask in other.masks.items())
    started = PruneHandler(model, optimizer, masks={name: whole(mask) for name, mask in wanted.items()}, shared=True)
    assert started.masks.sparsity == plain.masks.sparsity
    for state in ({**other.state_dict(), "version": 99}, {**other.state_dict(), "masks": {"names": []}}):
        with pytest.raises((TypeError, ValueError)):
            other.load_state_dict(state)
    return True


def test_ignites_checkpoint_is_one_file(tmp_path):
    assert all(on_ranks(2, one_file, str(tmp_path)))


@pytest.mark.parametrize(("ranks", "kind"), [(3, "fsdp"), (2, "tp")])
def test_kept_values_of_plain_and_sharded_runs(ranks, kind):
    assert all(on_ranks(ranks, kept_dense, kind))


def test_evidence_of_inputs_goes_on(tmp_path):
    for same, sparsity in on_ranks(2, gathering, "fsdp", str(tmp_path)):
        assert same and sparsity == 0.5
