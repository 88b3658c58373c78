"""Base class of everything that attaches to an engine."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

from ignite.engine import Engine, Events
from torch import nn
from torch.optim import Optimizer

from ignite_prune.core.claims import check_free, claim, release
from ignite_prune.core.weight_check import WeightCheck
from ignite_prune.handlers.attachment import AnyEvent, Attachment, Progress, Update, clock_of
from ignite_prune.handlers.events import register
from ignite_prune.handlers.run_check import RunCheck, counts_iterations, is_trial, iterations_of, last_count
from ignite_prune.handlers.versioned_state import VersionedState
from ignite_prune.schedule import Schedule


class BaseHandler(VersionedState):
    """Attached to at most one engine at a time, published in its state, saved in checkpoints, finalized once.

    A subclass defines :meth:`attach` with its own default event and name, which calls :meth:`_attach`, and implements
    the abstract methods below. The other methods with an underscore may be overridden; the public ones are final.

    Attributes:
        MAIN: key of the published number that is stored in ``engine.state.metrics``; None for no metric.
    """

    MAIN: ClassVar[str | None] = None
    _attachment: Attachment | None = None
    _shared = False  # other handlers may mask the same parameters
    _owns = False  # entered as an owner of its parameters

    def __init__(self) -> None:
        self._progress = Progress()
        self._check = RunCheck()

    # Implemented by subclasses

    @abstractmethod
    def attach(self, engine: Engine, event: Any, name: Any) -> None:
        """Act on ``event`` of ``engine`` from now on, and publish in ``engine.state.<name>``."""

    @abstractmethod
    def _start(self, attachment: Attachment) -> None:
        """Install the hooks, and add further handlers to the engine."""

    @abstractmethod
    def _stop(self) -> None:
        """Remove the hooks."""

    @abstractmethod
    def _update_at(self, step: int, done: Callable[[], None]) -> None:
        """Act on the event, whose count is ``step``, and call ``done`` when everything has changed."""

    @abstractmethod
    def _report(self) -> dict[str, float]:
        """Return what is published."""

    @abstractmethod
    def _describe(self) -> list[str]:
        """Return the parts of the representation."""

    def _masked(self) -> Mapping[str, nn.Parameter]:
        """Return the parameters that are masked; those of two handlers should be disjoint."""
        return {}

    def _checker(self) -> WeightCheck | None:
        """Return what verifies that pruned weights are 0; None where masks are not in the weights."""
        return None

    def _verify(self, *_: Any) -> None:
        """Verify all pruned weights."""
        if (weights := self._checker()) is not None:
            weights.all()

    def _verify_saved(self) -> None:
        """Verify all pruned weights without waiting for other ranks, which may save nothing."""
        if (weights := self._checker()) is not None:
            weights.before_saving(attached=self._attachment is not None)

    def _verify_some(self, *_: Any) -> None:
        """Verify a few pruned weights, and publish if the masks were changed from outside."""
        if (weights := self._checker()) is not None:
            if not weights.enforcer.is_applied:
                weights.read()
                self._publish()
            weights.some()

    def _check_ranks(self, error: Exception | None, where: str) -> None:
        """Raise ValueError on every rank if one cannot be attached, or if the ranks cannot update together.

        Args:
            error: the reason why this rank cannot.
            where: what it is attached to.
        """
        if error is not None:
            raise error

    def _trained_by(self) -> Sequence[Optimizer]:
        """Return the optimizers one of which should step in the engine; none: that is not known."""
        return ()

    def _schedules(self) -> Sequence[Schedule]:
        """Return the schedules of the event's counts that should end within a run."""
        return ()

    def _check_start(self, engine: Engine, attachment: Attachment) -> None:
        """Warn of a run that cannot end as asked; called at its start."""

    def _check_end(self, engine: Engine) -> None:
        """Warn of what only the end of a run shows."""

    def _check_final(self) -> None:
        """Warn if there is nothing to make permanent."""

    def _bake(self) -> None:
        """Write into the model what is to last after :meth:`finalize`."""

    # Attaching

    @property
    def attached_to(self) -> Engine | None:
        """The engine that it is attached to."""
        return None if self._attachment is None else self._attachment.engine

    def detach(self) -> None:
        """Remove every hook and handler; the model's parameters keep their values. It may be attached again."""
        if self._attachment is not None:
            self._attachment.remove()
            self._attachment = None
        if (weights := self._checker()) is not None:
            weights.follow(None)
        self._check.stop()
        self._stop()
        release(self)
        self._owns = False

    def finalize(self) -> None:
        """Make the result permanent in a plain model, and detach. Any later use of this object is refused.

        Raises:
            ValueError: finalized before.
            PrunedWeightsAlive: a strict handler's pruned weights are not 0; nothing is changed then.
        """
        self._check_usable()
        self._verify()
        self._check_final()
        self._bake()
        self.detach()
        self._finalized = True

    def _attach(self, engine: Any, event: AnyEvent, name: str, update: Update | None = None) -> None:
        """Attach, or raise and change nothing.

        Args:
            engine: the trainer.
            event: when to update.
            name: the attribute of ``engine.state``.
            update: what to call on the event; None for :meth:`_update_at`.
        """
        try:
            self._check_attach(engine)
            register(engine)
            attachment = Attachment(engine, event, self._progress, update or self._update_at, name)
        except Exception as error:
            self._check_ranks(error, "")
            raise
        try:
            self._check_ranks(None, str(attachment))
        except BaseException:
            attachment.remove()
            raise
        self._attachment = attachment
        try:
            self._start(self._attachment)
            self._attachment.add(Events.STARTED, self._has_started)
            self._attachment.add(Events.EPOCH_COMPLETED, self._has_completed, False)
            self._attachment.add(Events.COMPLETED, self._has_completed, True)
            self._own()
            self._publish()
            if (weights := self._checker()) is not None:
                weights.follow(clock_of(engine))
                for each in (Events.STARTED, Events.EPOCH_COMPLETED, Events.COMPLETED):
                    self._attachment.add(each, self._verify)
                for each in (Events.EPOCH_STARTED, Events.ITERATION_COMPLETED):
                    self._attachment.add(each, self._verify_some)
        except BaseException:
            self.detach()
            raise

    def _check_attach(self, engine: Any) -> None:
        self._check_usable()
        if not isinstance(engine, Engine):
            raise TypeError(f"Argument engine should be an ignite.engine.Engine, but given {type(engine)}")
        if self._attachment is not None:
            raise ValueError(f"This {type(self).__name__} is attached already; detach() it first")
        self._check_parameters()
        self._check_free()

    def _has_started(self, engine: Engine) -> None:
        if self._attachment is not None and not is_trial(engine):
            check, events = self._check, self._attachment.events
            check.start(engine, events, self._trained_by())
            check.check_events(type(self).__name__, events)
            self._check_schedules(engine, events)
            self._check_start(engine, self._attachment)

    def _check_schedules(self, engine: Engine, events: Sequence[Any]) -> None:
        unit = "iterations" if counts_iterations(events[0]) else "epochs"
        for schedule in self._schedules():
            iterations = iterations_of(engine) if unit == "epochs" else None
            self._check.check_schedule(schedule, unit, iterations)
            if unit == "iterations":
                self._check.check_unit(schedule, engine.state.max_epochs, engine.state.epoch_length)

    def _has_completed(self, engine: Engine, completed: bool) -> None:
        if self._attachment is not None and not is_trial(engine):
            if self._check.last is None and engine.state.epoch_length:  # the first epoch has shown its length
                self._check.last = last_count(engine, self._attachment.events)
                self._check_schedules(engine, self._attachment.events)
            self._check.end_epoch(type(self).__name__, engine, completed)
            if completed:
                self._check_end(engine)

    def _check_free(self) -> None:
        """Raise if another handler masks one of the parameters, unless this was made with ``shared=True``."""
        if not self._owns and not self._shared:
            check_free(self, self._masked())

    def _own(self, check: bool = True) -> None:
        """Enter as an owner of the masked parameters until :meth:`detach`; see :meth:`_check_free`."""
        if not self._owns:
            self._owns = claim(self, self._masked(), self._shared, check)

    def _publish(self) -> None:
        if self._attachment is not None:
            state, name, report = self._attachment.engine.state, self._attachment.name, self._report()
            setattr(state, name, report)
            if self.MAIN is not None:
                state.metrics[name] = report[self.MAIN]

    def _where(self) -> str:
        if self._finalized:
            return "finalized"
        return "not attached" if self._attachment is None else str(self._attachment)

    def __repr__(self) -> str:
        parts = [*self._describe(), self._where()]
        line = f"{type(self).__name__}({', '.join(parts)})"
        return line if len(line) <= 100 else f"{type(self).__name__}(\n  " + "\n  ".join(parts) + "\n)"
