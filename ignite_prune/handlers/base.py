"""Base class of everything that attaches to an engine."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

from ignite.engine import Engine, Events
from torch import nn
from torch.optim import Optimizer

from ignite_prune._utils.commit import to_the_end
from ignite_prune._utils.pairs import as_pairs, from_pairs
from ignite_prune.core.mask_enforcer import check_free, claim, release
from ignite_prune.core.weight_check import WeightCheck
from ignite_prune.handlers.attachment import AnyEvent, Attachment, Progress, Update, clock_of
from ignite_prune.handlers.events import register
from ignite_prune.handlers.run_check import RunCheck, is_trial, iterations_of, last_count
from ignite_prune.schedule import Schedule


class BaseHandler(ABC):
    """Attached to at most one engine at a time, published in its state, saved in checkpoints, finalized once.

    A subclass defines :meth:`attach` with its own default event and name, which calls :meth:`_attach`, and implements
    the abstract methods below. The other methods with an underscore may be overridden; the public ones are final.

    Attributes:
        VERSION: of the state_dict; older ones from 1 on are read, see :meth:`_upgraded`.
        KEYS: of the state_dict in their order, without ``"version"``.
        VARYING: those keys whose mappings have other entries from time to time: saved as lists of pairs.
        MAIN: key of the published number that is stored in ``engine.state.metrics``; None for no metric.
    """

    VERSION: ClassVar[int] = 2  # 1 had no lists of pairs
    KEYS: ClassVar[tuple[str, ...]]
    VARYING: ClassVar[tuple[str, ...]] = ()
    MAIN: ClassVar[str | None] = None
    _progress: Progress
    _attachment: Attachment | None = None
    _finalized = False
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
    def _state(self) -> dict[str, Any]:
        """Return the state as plain data, without version and progress."""

    @abstractmethod
    def _checked(self, state: Mapping[str, Any]) -> Callable[[], None]:
        """Return a function that loads a state with all keys, or raise and change nothing."""

    @abstractmethod
    def _describe(self) -> list[str]:
        """Return the parts of the representation."""

    def _upgraded(self, state: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return a state of an older version in the form of this one."""
        return state

    def _masked(self) -> Mapping[str, nn.Parameter]:
        """Return the parameters that are masked; those of two handlers should be disjoint."""
        return {}

    def _check_parameters(self) -> None:
        """Raise ValueError if the model's parameters have been replaced."""

    def _checker(self) -> WeightCheck | None:
        """Return what verifies that pruned weights are 0; None where masks are not in the weights."""
        return None

    def _verify(self, *_: Any) -> None:
        """Verify all pruned weights."""
        if (weights := self._checker()) is not None:
            weights.all()

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

    def _loaded(self) -> None:
        """Act on a state that has been loaded."""

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
        unit = "iterations" if "ITERATION" in str(events[0]) or "BATCH" in str(events[0]) else "epochs"
        for schedule in self._schedules():
            iterations = iterations_of(engine) if unit == "epochs" else None
            self._check.check_schedule(schedule, unit, iterations)

    def _has_completed(self, engine: Engine, completed: bool) -> None:
        if self._attachment is not None and not is_trial(engine):
            if self._check.last is None and engine.state.epoch_length:  # the first epoch has shown its length
                self._check.last = last_count(engine, self._attachment.events)
                self._check_schedules(engine, self._attachment.events)
            self._check.end_epoch(type(self).__name__, engine, completed)
            if completed:
                self._check_end(engine)

    def _check_usable(self) -> None:
        if self._finalized:
            raise ValueError(f"This {type(self).__name__} is finished: finalize() was called; make a new one")

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

    # Checkpoints

    def state_dict(self) -> dict[str, Any]:
        """Return the state as plain data, which ``torch.load(weights_only=True)`` reads.

        ``torch.distributed.checkpoint`` loads it into the state_dict of a new handler without loss.

        Raises:
            PrunedWeightsAlive: a strict handler's pruned weights are not 0; attached on several ranks it is raised at
                the next iteration or epoch's end, on all of them.
        """
        if (weights := self._checker()) is not None:
            weights.before_saving(attached=self._attachment is not None)
        parts = {"progress": self._progress.state_dict(), **self._state()}
        assert set(parts) <= {*self.KEYS, "progress"}, f"{type(self).__name__}.KEYS should name all of its state"
        parts |= {key: as_pairs(parts[key]) for key in self.VARYING}
        return {"version": self.VERSION, **{key: parts[key] for key in self.KEYS}}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Load a state. Everything is checked first; if it is refused, nothing has changed.

        Raises:
            TypeError: not a state_dict of this class.
            ValueError: of another handler, parameters, shapes or groups, of a later version, or damaged; or this object
                is finalized, or the model's parameters have been replaced.
        """
        self._check_usable()
        self._check_parameters()
        state = self._checked_form(state_dict)
        progress = Progress.from_state(state["progress"]) if "progress" in state else self._progress
        load = self._checked(state)

        def commit() -> None:
            load()
            self._progress.__dict__.update(vars(progress))
            self._loaded()

        to_the_end(commit)
        self._publish()

    def _checked_form(self, state: Any) -> Mapping[str, Any]:
        """Return a state of this version with all keys, or raise."""
        kind = type(self).__name__
        version = state.get("version") if isinstance(state, Mapping) else None
        if not isinstance(state, Mapping) or type(version) is not int:
            raise TypeError(
                f"Argument state_dict should be a {kind}'s, a mapping with a whole 'version', but given {type(state)}"
            )
        if not 1 <= version <= self.VERSION:
            raise ValueError(
                f"The checkpoint's {kind} has version {version}, this one reads versions up to {self.VERSION}; update "
                "ignite_prune"
            )
        if not isinstance(state.get("kind", kind), str) or state.get("kind", kind) != kind:
            raise ValueError(f"The checkpoint is of {state['kind']!r:.40}, but this is a {kind}")
        upgraded = self._upgraded(state)
        missing = set(self.KEYS) - set(upgraded)
        if missing:
            raise ValueError(f"The checkpoint's {kind} is damaged: it lacks {sorted(missing)}")
        return {**upgraded, **{key: from_pairs(upgraded[key]) for key in self.VARYING}}
