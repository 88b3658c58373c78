"""TrainingSegment: some epochs of the trainer in a pruning engine."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from ignite.engine import Engine, Events
from ignite.handlers.param_scheduler import BaseParamScheduler, ParamGroupScheduler

Handler = tuple[Any, Callable[[Engine], None]]


class TrainingSegment:
    """Runs a trainer for some epochs at a time; its counters go on, so that logs and checkpoints of rounds differ.

    A segment covers whole epochs. One that continues from iteration k of training starts k iterations after the start
    of its first epoch, as a resumed run does in Ignite.

    Args:
        trainer: the trainer.
        loader: its data.
        epoch_length: iterations an epoch.
    """

    def __init__(self, trainer: Engine, loader: Iterable[Any], epoch_length: int) -> None:
        self.trainer, self._loader, self.epoch_length = trainer, loader, epoch_length
        self._first = self._last = 0  # the segment is the epochs after the first, up to the last

    @property
    def position(self) -> int:
        """Iterations of this segment so far."""
        return int(self.trainer.state.iteration) - self._first * self.epoch_length

    def begin(self, epochs: int, skipped: int = 0) -> None:
        """Begin the next segment of ``epochs``, without its first ``skipped`` iterations."""
        state = self.trainer.state
        self._first = max(-(-state.iteration // self.epoch_length), state.epoch)  # an epoch that was cut short counts
        self._last = self._first + epochs
        self._place(self._first * self.epoch_length + skipped)

    def run(self, handlers: Sequence[Handler] = ()) -> None:
        """Train to the segment's end, or until a handler terminates the trainer.

        Args:
            handlers: added for this run, after the trainer's own.

        Raises:
            RuntimeError: the trainer stopped before the end without being terminated.
        """
        trainer = self.trainer
        if trainer.state.iteration >= self._last * self.epoch_length:  # it was killed at its very end
            return
        self._place(trainer.state.iteration)
        trainer.should_terminate = False  # else Ignite would restart the epoch
        forget_failure(trainer)
        cut: list[int] = []  # epochs that were ended early
        handlers = [*handlers, (Events.TERMINATE_SINGLE_EPOCH, lambda *_, **__: cut.append(trainer.state.epoch))]
        handles = [trainer.add_event_handler(event, handler) for event, handler in handlers]
        try:
            trainer.run(self._loader, max_epochs=self._last, epoch_length=self.epoch_length)
        finally:
            for handle in handles:
                handle.remove()
        over = trainer.should_terminate or (cut and trainer.state.epoch >= self._last)
        if trainer.state.iteration < self._last * self.epoch_length and not over:
            raise RuntimeError(
                f"The trainer stopped at iteration {self.position} of {(self._last - self._first) * self.epoch_length} "
                "without being terminated: it was interrupted, an EXCEPTION_RAISED handler swallowed its error, or the "
                "loader ran dry"
            )

    def _place(self, iteration: int) -> None:
        state = self.trainer.state
        state.iteration, state.epoch = iteration, iteration // self.epoch_length
        state.epoch_length, state.max_epochs, state.max_iters = self.epoch_length, self._last, None

    def state_dict(self) -> dict[str, int]:
        """Return the trainer's position."""
        return {
            "iteration": int(self.trainer.state.iteration),
            "first": self._first,
            "last": self._last,
            "epoch_length": self.epoch_length,
        }

    def checked(self, state: Any) -> Mapping[str, int]:
        """Return a state that fits, or raise TypeError or ValueError."""
        names = {"iteration", "first", "last", "epoch_length"}
        if (
            not isinstance(state, Mapping)
            or set(state) != names
            or not all(type(value) is int and 0 <= value < 2**62 for value in state.values())
        ):
            raise TypeError(
                f"The trainer's position in a pruning engine's state_dict should hold ints from 0 on, {sorted(names)}"
            )
        if state["epoch_length"] != self.epoch_length:
            raise ValueError(
                f"The checkpoint's epochs have {state['epoch_length']} iterations, this loader's {self.epoch_length}"
            )
        return state

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Set the trainer to the position of a checked state."""
        self._first, self._last = state["first"], state["last"]
        if self._last:
            self._place(state["iteration"])


def forget_failure(engine: Engine) -> None:
    """Make an engine whose last run raised (Ctrl-C included) able to run: Ignite's next run would do nothing."""
    run = getattr(engine, "_internal_run_generator", None)
    if run is not None and inspect.getgeneratorstate(run) == inspect.GEN_CLOSED:
        engine._internal_run_generator = None


def epoch_length_of(loader: Any, epoch_length: int | None) -> int:
    """Return how many batches a loader has, or ``epoch_length`` if it is given.

    Raises:
        TypeError: not iterable.
        ValueError: no length is known, or it is 0.
    """
    if not isinstance(loader, Iterable):
        raise TypeError(f"Argument loader should be an iterable of batches, but given {type(loader)}")
    if epoch_length is None:
        try:
            epoch_length = len(loader)  # type: ignore[arg-type]
        except TypeError:
            raise ValueError(
                f"Argument loader has no length ({type(loader).__name__}), and a round is counted in epochs: give "
                "epoch_length="
            ) from None
        if epoch_length == 0:
            raise ValueError("Argument loader should have batches, but it is empty")
    return epoch_length


def schedulers_on(trainer: Engine) -> list[Any]:
    """Return the learning-rate schedulers of Ignite that are handlers of a trainer, without repetitions."""
    found: dict[int, Any] = {}
    for handlers in trainer._event_handlers.values():
        for handler, *_ in handlers:
            scheduler = inspect.unwrap(handler)  # out of a filtered event's wrapper
            if isinstance(scheduler, (BaseParamScheduler, ParamGroupScheduler)):
                found[id(scheduler)] = scheduler
    return list(found.values())
