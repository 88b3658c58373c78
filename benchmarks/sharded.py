"""Updates and steps of weights that lie on two processes, against the same work on one half alone; gloo, one thread."""

from __future__ import annotations

import multiprocessing
import os
import resource
import socket
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.distributed as dist

from rows import Missing, Row, Settings, ratio_row

RANKS = 2


def sharded(settings: Settings) -> Iterator[Row | Missing]:
    """Yield rows about 25 M weights on two ranks."""
    if (os.cpu_count() or 1) < RANKS:
        yield Missing("weights on two ranks", "needs two cores")
        return
    found = on_ranks(RANKS, _measured, 24, 1024, settings.rounds)
    ratios = [ours / theirs for ours, theirs in zip(found["update"], found["half"])]
    note = f"{found['messages']} messages, {found['bytes'] / 1024:.0f} KiB a rank"
    yield ratio_row("update of 25 M on 2 ranks", ratios, "× half alone", note=note, at_most=1.3)
    steps = [ours / theirs for ours, theirs in zip(found["step"], found["dense"])]
    plain = statistics.median(ours / theirs for ours, theirs in zip(found["plain_step"], found["plain_dense"]))
    note = f"unsharded {plain:.2f} ×"
    yield ratio_row("step under fully_shard", steps, "× dense", note=note, at_most=round(plain, 2))


def billion(settings: Settings) -> Iterator[Row]:
    """Yield rows about a billion float32 weights on two ranks."""
    found = on_ranks(RANKS, _large, 240, 2048)
    note = f"{found['messages']} messages, {found['bytes'] / 1024:.0f} KiB a rank"
    yield Row("update of 1 G weights on 2 ranks", found["seconds"], "s", at_most=60, note=note)
    note = f"peak {found['peak'] / 1024**3:.1f} GiB a rank, with torch; next update {found['later'] / 1024**3:.1f} GiB"
    yield Row("memory of a rank", found["memory"], "× weights and masks", at_most=1.1, note=note)


def on_ranks(ranks: int, work: Callable[..., dict[str, Any]], *args: Any) -> dict[str, Any]:
    """Return what ``work(*args)`` returns on rank 0 of a new process group."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context("spawn")
    answers = context.Queue()
    processes = [
        context.Process(target=_rank, args=(rank, ranks, port, answers, work, args), daemon=True)
        for rank in range(ranks)
    ]
    for process in processes:
        process.start()
    found: dict[str, Any] = answers.get(timeout=600)
    for process in processes:
        process.join()
    return found


def _rank(rank: int, ranks: int, port: int, answers: Any, work: Callable[..., dict[str, Any]], args: Any) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=ranks)
    found = work(*args)
    if rank == 0:
        answers.put(found)
    dist.barrier()
    dist.destroy_process_group()


def _stack(layers: int, width: int, rows: int) -> torch.nn.Sequential:
    """Return square layers, or the part of each that a rank holds."""
    torch.manual_seed(dist.get_rank())
    return torch.nn.Sequential(*(torch.nn.Linear(width, rows, bias=False) for _ in range(layers)))


def _measured(layers: int, width: int, rounds: int) -> dict[str, Any]:
    from torch.distributed.fsdp import fully_shard

    from ignite_prune import PruneHandler
    from ignite_prune._utils.shard import local

    found: dict[str, Any] = {"update": [], "half": []}
    model = _stack(layers, width, width)
    for layer in model:
        fully_shard(layer)
    fully_shard(model)
    half = _stack(layers, width, width // dist.get_world_size())
    for _ in range(rounds + 1):
        for name, each in (("update", model), ("half", half)):
            pruner = PruneHandler(each, shared=True)
            found[name].append(_seconds(lambda pruner=pruner: pruner.step(0.9)))
            pruner.detach()
            with torch.no_grad():
                for parameter in each.parameters():
                    local(parameter).normal_()
    pruner = PruneHandler(model)
    pruner.step(0.9)
    traffic = pruner.traffic
    assert traffic is not None
    found |= {"messages": traffic.messages, "bytes": traffic.bytes}
    found |= _steps(model, pruner, rounds, "")
    plain = _stack(layers, width, width)
    found |= _steps(plain, PruneHandler(plain), rounds, "plain_")
    return {name: value[1:] if isinstance(value, list) else value for name, value in found.items()}


def _steps(model: torch.nn.Module, pruner: Any, rounds: int, prefix: str) -> dict[str, list[float]]:
    """Return the seconds of steps at batch 8 with the hooks and without them, in turns."""
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)
    x, found = torch.randn(8, 1024), {f"{prefix}dense": list[float](), f"{prefix}step": list[float]()}

    def step() -> None:
        model(x).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()

    for _ in range(rounds + 1):
        pruner.detach()
        found[f"{prefix}dense"].append(_seconds(step))
        pruner.step(0.9)
        found[f"{prefix}step"].append(_seconds(step))
    return found


def _large(layers: int, width: int) -> dict[str, Any]:
    from torch.distributed.tensor import DTensor, Shard, init_device_mesh

    from ignite_prune import PruneHandler

    mesh, ranks = init_device_mesh("cpu", (dist.get_world_size(),)), dist.get_world_size()
    model, small = torch.nn.Module(), torch.nn.Module()
    part = DTensor.from_local(torch.randn(1, 8), mesh, [Shard(0)], run_check=False)
    small.register_parameter("weight", torch.nn.Parameter(part))
    PruneHandler(small, params="weight").step(0.5)  # what is imported and set up once is not of the weights
    before = _resident()
    torch.manual_seed(dist.get_rank())
    for index in range(layers):
        part = torch.randn(width // ranks, width)
        weight = DTensor.from_local(part, mesh, [Shard(0)], run_check=False)
        model.register_parameter(f"weight_{index}", torch.nn.Parameter(weight))
    pruner = PruneHandler(model, params="weight_*")
    seconds = _seconds(lambda: pruner.step(0.9))
    traffic, peak, held = pruner.traffic, _peak(), layers * width * width // ranks * 5
    assert traffic is not None
    pruner.step(0.95)
    memory = {"peak": peak, "later": _peak(), "memory": (peak - before) / held}
    return {"seconds": seconds, "messages": traffic.messages, "bytes": traffic.bytes, **memory}


def _seconds(work: Callable[[], object]) -> float:
    """Return the seconds of the slowest rank."""
    dist.barrier()
    start = time.perf_counter()
    work()
    seconds = torch.tensor(time.perf_counter() - start)
    dist.all_reduce(seconds, dist.ReduceOp.MAX)
    return float(seconds)


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _resident() -> int:
    with open("/proc/self/statm") as numbers:
        return int(numbers.read().split()[1]) * resource.getpagesize()
