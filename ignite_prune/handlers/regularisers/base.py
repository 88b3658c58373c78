"""Base class of handlers that act around optimizers' steps, with strengths that follow schedules."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping
from typing import Any, ClassVar

from ignite.engine import Engine, Events
from torch import nn
from torch.optim import Optimizer

from ignite_prune._utils.plain_repr import plain_repr
from ignite_prune._utils.recorded_arguments import RecordedArguments
from ignite_prune.core.claims import check_same
from ignite_prune.core.optimizers import as_optimizers, check_held
from ignite_prune.core.selection import named_parameters
from ignite_prune.core.step_hooks import Closure, StepHooks
from ignite_prune.handlers.attachment import AnyEvent, Attachment
from ignite_prune.handlers.base import BaseHandler
from ignite_prune.handlers.describe import counted
from ignite_prune.handlers.regularisers.param_groups import RegulariserGroup, as_strength


class Regulariser(RecordedArguments, BaseHandler):
    """Acts around optimizers' steps with the strengths in its ``param_groups``.

    Args:
        model: unwrapped.
        optimizer: as the public classes take it.
        groups: from :func:`ignite_prune.handlers.regularisers.param_groups.build_strengths`.
        names: the parameters that it acts on.
    """

    NAME: ClassVar[str]
    KEYS: ClassVar[tuple[str, ...]] = ("strengths", "progress")
    MAIN = "penalty"

    def __init__(self, model: nn.Module, optimizer: Any, groups: list[RegulariserGroup], names: Iterable[str]) -> None:
        super().__init__()
        self._model, self._groups = model, groups
        everything = named_parameters(model)
        self._parameters = {name: everything[name] for name in names}
        self._names = {parameter: name for name, parameter in self._parameters.items()}
        optimizers = as_optimizers(optimizer)
        check_held(self._parameters, optimizers)
        self._hooks = StepHooks(optimizers, self._before_step, self._after_step)

    @property
    def param_groups(self) -> list[RegulariserGroup]:
        """The groups, each with its ``"strength"`` and settings; Ignite's ParamSchedulers can drive it."""
        return self._groups

    @abstractmethod
    def penalty(self) -> float:
        """Return the present value of the regulariser."""

    @abstractmethod
    def _before_step(self, optimizer: Optimizer, closure: Closure | None) -> Closure | None:
        """Act before a step; return the closure to call in it."""

    @abstractmethod
    def _after_step(self, optimizer: Optimizer, stepped: bool) -> None:
        """Act after a step, or after one that AMP has skipped."""

    def attach(self, engine: Engine, event: AnyEvent = Events.EPOCH_COMPLETED, name: str | None = None) -> None:
        """Act on every optimizer step from now on; on ``event`` set strengths by their schedules, and publish.

        ``engine.state.<name>`` is a dict of floats with the penalty, ``engine.state.metrics["<name>"]`` the penalty
        alone, as of the last ``event``.

        Args:
            engine: the trainer.
            event: any event, filtered too; its count (epochs, iterations) is the schedules' step.
            name: the attribute of ``engine.state``; None for the class's own.

        Raises:
            TypeError: not an engine, not an event, not a name.
            ValueError: attached already, finalized, an event that the engine does not know, a name that is taken, or
                parameters of the model that have been replaced.
        """
        self._attach(engine, event, self.NAME if name is None else name)

    def _start(self, attachment: Attachment) -> None:
        attachment.add(Events.STARTED, self._on_started)
        self._hooks.install()

    def _stop(self) -> None:
        self._hooks.remove()

    def _held(self, optimizer: Optimizer) -> dict[str, dict[str, Any]]:
        """Return the optimizer's group of each of the parameters that have a gradient."""
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

    def _check_parameters(self) -> None:
        check_same(self._model, self._parameters, type(self).__name__)

    def _describe(self) -> list[str]:
        groups = [
            f"{counted(len(group['params']), 'parameter')} at strength {group['strength']:.4g}"
            + (f" by {plain_repr(group['schedule'])}" if group["schedule"] else "")
            for group in self._groups
        ]
        return [type(self._model).__name__, *groups]

    def _state(self) -> dict[str, Any]:
        return {"strengths": [float(group["strength"]) for group in self._groups]}

    def _checked(self, state: Mapping[str, Any]) -> Callable[[], None]:
        strengths = state["strengths"]
        if not isinstance(strengths, list) or len(strengths) != len(self._groups):
            raise ValueError(f"The checkpoint's {type(self).__name__} should have {len(self._groups)} groups")
        checked = [as_strength(value) for value in strengths]

        def load() -> None:
            for group, strength in zip(self._groups, checked):
                group["strength"] = strength

        return load
