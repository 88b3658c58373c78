"""A case of the drill: one kind of fault, one seed, one process."""

from __future__ import annotations

import logging
import multiprocessing
import pickle
import traceback
import warnings
from collections.abc import Callable
from multiprocessing.connection import Connection

from tests.drill.disks import disks
from tests.drill.inputs import arguments, files, states
from tests.drill.interrupts import interrupts
from tests.drill.kills import in_memory, killed
from tests.drill.outcome import Outcome
from tests.drill.ranks import ranks

KINDS: dict[str, Callable[[int], Outcome]] = {
    each.__name__: each for each in (killed, in_memory, states, arguments, files, interrupts, ranks, disks)
}
LIMIT = 150  # seconds of one case
SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["torch._dynamo", "tests.drill.cases"])


def child(kind: str, seed: int, end: Connection) -> None:
    warnings.filterwarnings("ignore")
    logging.disable(logging.CRITICAL)
    try:
        outcome = KINDS[kind](seed)
    except BaseException as error:
        frames = traceback.extract_tb(error.__traceback__)
        where = " < ".join(f"{frame.name}:{frame.lineno}" for frame in reversed(frames[-4:]))
        outcome = Outcome(others=1, failures=[f"the case raised {type(error).__name__}: {error!s:.200} in {where}"])
    end.send_bytes(pickle.dumps(outcome))


def case(kind: str, seed: int) -> Outcome:
    """Return the outcome of a case, which runs in a process of its own."""
    end, other = SERVER.Pipe()
    process = SERVER.Process(target=child, args=(kind, seed, other))
    process.start()
    other.close()
    try:
        if not end.poll(LIMIT):
            return Outcome(hangs=1, failures=[f"it has not ended in {LIMIT} s"])
        return pickle.loads(end.recv_bytes())  # type: ignore[no-any-return]
    except EOFError:
        return Outcome(others=1, failures=[f"the process ended with {process.exitcode}"])
    finally:
        process.kill()
        process.join()
