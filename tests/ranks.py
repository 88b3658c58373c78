"""Work on two ranks of a real process group.

The two processes are started once a test session and take one piece of work after another, each with the seeds that a
new process would have. After a failure they are killed, and the next piece of work gets new ones.
"""

from __future__ import annotations

import multiprocessing
import os
import pickle
import socket
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection, wait
from typing import Any

import ignite.distributed as idist
import torch

SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["torch._dynamo", "torch.distributed", "tests.models", "ignite_prune"])
TIMEOUT = 90  # seconds


def rank_main(rank: int, port: int, jobs: Connection) -> None:
    os.environ.update(
        MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2"
    )
    torch.set_num_threads(1)
    idist.initialize("gloo")
    while True:
        try:
            work, args = pickle.loads(jobs.recv_bytes())
        except EOFError:  # the test session has ended
            return
        torch.manual_seed(100 + rank)  # each rank with a seed of its own, as data loading wants it
        try:
            answer = True, work(rank, *args)
            if not getattr(work, "alone", False):
                idist.barrier()
        except BaseException:
            answer = False, traceback.format_exc()
        jobs.send_bytes(pickle.dumps(answer))


class Ranks:
    """Two processes that are one process group."""

    def __init__(self, context: Any = SERVER) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.ends, self.processes = [], []
        for rank in range(2):
            end, other = context.Pipe()
            process = context.Process(target=rank_main, args=(rank, port, other), daemon=True)
            process.start()
            other.close()
            self.ends.append(end)
            self.processes.append(process)

    def run(self, work: Callable[..., Any], args: tuple[Any, ...]) -> tuple[Any, Any]:
        for end in self.ends:
            end.send_bytes(pickle.dumps((work, args)))
        answers: dict[int, Any] = {}
        while len(answers) < len(self.ends):  # whichever answers first: one that failed leaves the other waiting for it
            waiting = [end for rank, end in enumerate(self.ends) if rank not in answers]
            ready = wait(waiting, TIMEOUT)
            assert ready, f"ranks {sorted({0, 1} - set(answers))} have not answered in {TIMEOUT} s"
            for end in ready:
                rank = self.ends.index(end)
                fine, answers[rank] = pickle.loads(end.recv_bytes())
                assert fine, f"rank {rank} failed:\n{answers[rank]}"
        return answers[0], answers[1]

    def answer_of(self, rank: int, work: Callable[..., Any], args: tuple[Any, ...], patience: float) -> Any:
        """Return the answer of one rank, whatever the other does; TimeoutError if there is none in time."""
        for end in self.ends:
            end.send_bytes(pickle.dumps((work, args)))
        if not self.ends[rank].poll(patience):
            raise TimeoutError
        fine, answer = pickle.loads(self.ends[rank].recv_bytes())
        assert fine, answer
        return answer

    def kill(self) -> None:
        for process in self.processes:
            process.kill()


_started: list[Ranks] = []


def on_two_ranks(work: Callable[..., Any], *args: Any) -> tuple[Any, Any]:
    """Return what ``work(rank, *args)`` returns on rank 0 and on rank 1; tensors travel as lists."""
    if not _started:
        _started.append(Ranks())
    try:
        return _started[0].run(work, args)
    except BaseException:
        _started.pop().kill()
        raise
