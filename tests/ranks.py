"""Work done on two ranks of a real process group, one process each."""

from __future__ import annotations

import multiprocessing
import os
import socket
from collections.abc import Callable
from typing import Any

import ignite.distributed as idist
import torch

SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["torch._dynamo", "torch.distributed", "tests.models", "ignite_prune"])


def rank_main(rank: int, port: int, work: Callable[..., Any], args: tuple[Any, ...], answers: Any) -> None:
    os.environ.update(
        MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2"
    )
    torch.set_num_threads(1)
    torch.manual_seed(100 + rank)  # each rank with a seed of its own, as data loading wants it
    idist.initialize("gloo")
    try:
        answers.put((rank, work(rank, *args)))
        idist.barrier()
    finally:
        idist.finalize()


def on_two_ranks(work: Callable[..., Any], *args: Any) -> tuple[Any, Any]:
    """Return what ``work(rank, *args)`` gives on either rank; tensors travel as lists."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    answers = SERVER.Queue()
    ranks = [SERVER.Process(target=rank_main, args=(rank, port, work, args, answers)) for rank in range(2)]
    for process in ranks:
        process.start()
    try:
        found = dict(answers.get(timeout=90) for _ in ranks)
        for process in ranks:
            process.join(60)
            assert process.exitcode == 0
    finally:
        for process in ranks:  # one that waits for the other for good
            process.kill()
    return found[0], found[1]
