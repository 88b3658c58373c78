"""Command-line helpers shared by the examples."""

from __future__ import annotations

import argparse
import multiprocessing
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn, TypeVar

Settings = TypeVar("Settings")
Result = TypeVar("Result")


class Parser(argparse.ArgumentParser):
    """Parser that reports an error in one line and refers to ``--help``."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message} (--help explains every option)\n")

    def settle(self, settings: Settings, options: Mapping[str, Any], folder: Path) -> Settings:
        """Return settings updated from ``options`` and create the folder; exit with a message on invalid values."""
        try:
            settled = replace(settings, **{name: value for name, value in options.items() if value is not None})  # type: ignore[type-var]
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as problem:
            self.error(f"--output: {folder}: {problem.strerror}")
        except ValueError as problem:
            self.error(str(problem))
        return settled


def in_processes(function: Callable[..., Result], jobs: Sequence[tuple[Any, ...]], workers: int) -> Iterator[Result]:
    """Yield ``function(*job)`` as jobs complete, run in ``workers`` processes, or in this process for one worker."""
    if workers == 1:
        yield from (function(*job) for job in jobs)
        return
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        futures = [pool.submit(function, *job) for job in jobs]
        try:
            for future in as_completed(futures):
                yield future.result()
        finally:
            pool.shutdown(cancel_futures=True)
