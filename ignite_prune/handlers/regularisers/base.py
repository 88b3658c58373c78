"""What regularisers have in common: strengths that follow the engine, a penalty that is published, state."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from ignite.engine import Engine, Events
from torch import nn
from torch.optim import Optimizer

from ignite_prune.core.optimizer_state import as_optimizers, check_held
from ignite_prune.core.selection import named_parameters
from ignite_prune.core.step_hooks import Closure, StepHooks
from ignite_prune.handlers.attached import Attached, check_same
from ignite_prune.handlers.attachment import AnyEvent, Attachment, Progress
from ignite_prune.handlers.regularisers.param_groups import as_strength
from ignite_prune.update.param_groups import Group

VERSION = 1


class Regulariser(Attached, ABC):
    """A handler that acts around optimizers' steps with the strengths in its ``param_groups``.

    Args:
        model: unwrapped.
        optimizer: as the public classes take it.
        groups: from :func:`ignite_prune.handlers.regularisers.param_groups.build`.
        names: the parameters that it acts on.
    """

    NAME: str

    def __init__(self, model: nn.Module, optimizer: Any, groups: list[Group], names: Iterable[str]) -> None:
        self._model, self._groups = model, groups
        everything = named_parameters(model)
        self._parameters = {name: everything[name] for name in names}
        self._names = {parameter: name for name, parameter in self._parameters.items()}
        optimizers = as_optimizers(optimizer)
        check_held(self._parameters, optimizers)
        self._hooks = StepHooks(optimizers, self._before_step, self._after_step)
        self._progress = Progress()

    @property
    def param_groups(self) -> list[Group]:
        """The groups, each with its ``"strength"`` and settings; Ignite's ParamSchedulers can drive it."""
        return self._groups

    @abstractmethod
    def penalty(self) -> float:
        """Return the value of the regulariser now."""

    @abstractmethod
    def _report(self) -> dict[str, float]:
        """Return what is published: ``"penalty"`` and more."""

    @abstractmethod
    def _before_step(self, optimizer: Optimizer, closure: Closure | None) -> Closure | None:
        """Act before a step; return the closure to call in it."""

    @abstractmethod
    def _after_step(self, optimizer: Optimizer, stepped: bool) -> None:
        """Act after a step, or after one that AMP has left out."""

    def attach(self, engine: Engine, event: AnyEvent = Events.EPOCH_COMPLETED, name: str | None = None) -> None:
        """Act on every optimizer step from now on; on ``event`` take strengths from schedules, and publish.

        ``engine.state.<name>`` holds the penalty and more, a dict of floats, ``engine.state.metrics["<name>"]`` the
        penalty alone, as of the last ``event``.

        Args:
            engine: the trainer.
            event: any event, filtered too; its count (epochs, iterations) is the schedules' step.
            name: what is published as; None for the class's own.

        Raises:
            TypeError: not an engine, not an event, not a name.
            ValueError: attached already, an event that the engine does not know, a name that is taken, or parameters of
                the model that have been replaced.
        """
        self._check_attachable(engine)
        self._check_parameters()
        name = self.NAME if name is None else name
        self._attachment = Attachment(engine, event, self._progress, self._update_at, name)
        self._attachment.add(Events.STARTED, self._on_started)
        self._hooks.install()
        self._publish()

    def detach(self) -> None:
        """Take every hook and handler off; weights stay as they are. It may be attached again."""
        self._let_go()
        self._hooks.remove()

    def _held(self, optimizer: Optimizer) -> dict[str, Group]:
        """The optimizer's group of each of the parameters that it is about to step, or has stepped."""
        return {
            self._names[parameter]: group
            for group in optimizer.param_groups
            for parameter in group["params"]
            if parameter in self._names and parameter.grad is not None
        }

    def _on_started(self, engine: Engine) -> None:
        if engine.state.iteration == 0 and not self._progress.done:  # a new run
            self._schedule(0)

    def _update_at(self, step: int, done: Callable[[], None]) -> None:
        self._check_parameters()
        self._schedule(step)
        done()
        self._publish()

    def _schedule(self, step: int) -> None:
        for group in self._groups:
            if group["schedule"] is not None:
                group["strength"] = group["schedule"](step)

    def _publish(self) -> None:
        if self._attachment is not None:
            state, name = self._attachment.engine.state, self._attachment.name
            report = self._report()
            setattr(state, name, report)
            state.metrics[name] = report["penalty"]

    def _check_parameters(self) -> None:
        check_same(self._model, self._parameters, type(self).__name__)

    def state_dict(self) -> dict[str, Any]:
        """Return strengths and progress as plain data."""
        return {
            "version": VERSION,
            "strengths": [float(group["strength"]) for group in self._groups],
            "progress": self._progress.state_dict(),
        }

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Take over a checkpoint's strengths and progress; if it is refused, nothing has changed.

        Raises:
            TypeError: not a state_dict of this class.
            ValueError: of other groups, of a later version, or damaged.
        """
        strengths, progress = self._checked(state_dict)
        for group, strength in zip(self._groups, strengths):
            group["strength"] = strength
        self._progress.__dict__.update(vars(progress))
        self._publish()

    def _checked(self, state: Any, *more: str) -> tuple[list[float], Progress]:
        """Return strengths and progress of a state that has all keys, ``more`` too, or raise."""
        kind = type(self).__name__
        if not isinstance(state, Mapping) or type(state.get("version")) is not int:
            raise TypeError(f"Argument state_dict should be a {kind}'s, a mapping with a whole 'version'")
        if state["version"] != VERSION:
            raise ValueError(f"The checkpoint's {kind} has version {state['version']}, this one reads {VERSION}")
        missing = {"strengths", "progress", *more} - set(state)
        if missing:
            raise ValueError(f"The checkpoint's {kind} is damaged: it lacks {sorted(missing)}")
        strengths = state["strengths"]
        if not isinstance(strengths, list) or len(strengths) != len(self._groups):
            raise ValueError(f"The checkpoint's {kind} should have {len(self._groups)} groups")
        return [as_strength(value) for value in strengths], Progress.from_state(state["progress"])
