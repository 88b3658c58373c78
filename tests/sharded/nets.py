"""Small models, sharded in several ways, and what one process with the whole weights would do."""

import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module


class Net(nn.Module):
    """An MLP with widths that few numbers of ranks divide."""

    def __init__(self, widths=(12, 22, 13, 5), seed=0):
        super().__init__()
        torch.manual_seed(seed)
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in zip(widths, widths[1:]))

    def forward(self, x):
        for layer in self.layers[:-1]:
            x = layer(x).relu()
        return self.layers[-1](x)


EVEN = (12, 24, 16, 8)


def fsdp(model, mesh=None, **options):
    for layer in model.layers:
        fully_shard(layer, mesh=mesh, **options)
    return fully_shard(model, mesh=mesh, **options)


def tensor_parallel(model, mesh):
    plan = {"layers.0": ColwiseParallel(), "layers.1": RowwiseParallel()}
    return parallelize_module(model, mesh, plan)


def mesh_of(*sizes, names=("replicate", "shard")):
    return init_device_mesh("cpu", sizes, mesh_dim_names=names[: len(sizes)])


def sharded(kind, model):
    """Shard a model: each kind is a way that users have."""
    ranks = torch.distributed.get_world_size()
    if kind == "fsdp":
        return fsdp(model)
    if kind == "kept":
        return fsdp(model, reshard_after_forward=False)
    if kind == "mixed":
        return fsdp(model, mp_policy=MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32))
    if kind == "offload":
        return fsdp(model, offload_policy=CPUOffloadPolicy(pin_memory=False))
    if kind == "hybrid":
        return fsdp(model, mesh_of(2, ranks // 2))
    if kind == "tp":
        return tensor_parallel(model, mesh_of(ranks, names=("tp",)))
    assert kind == "both"
    mesh = mesh_of(2, ranks // 2, names=("dp", "tp"))
    return fsdp(tensor_parallel(model, mesh["tp"]), mesh["dp"])


def whole(tensor):
    """Collect a DTensor."""
    return tensor.full_tensor() if isinstance(tensor, torch.distributed.tensor.DTensor) else tensor
