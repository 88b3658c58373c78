"""TargetHandler: a handler with a target sparsity, at which the search for the best model begins.

``sparsity >= 0.9`` is no test of it: counts are whole numbers, and a target of 0.9 may be rounded to 0.8997. A handler
knows which target its last update had, and that is what is compared.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import Any, Literal, cast

from ignite.engine import CallableEventWithFilter, Engine, EventsList

from ignite_prune._utils.sparsity import as_sparsity
from ignite_prune.core.mask_store import MaskStore
from ignite_prune.handlers.attachment import AnyEvent, Attachment
from ignite_prune.handlers.base import BaseHandler
from ignite_prune.handlers.events import PruneEvents, fire

_BELOW_ANY = 1e12  # the scores before the target are below -1e12, and rise from one iteration to the next
_MOST_ZEROS = 0.05  # of weights that are 0 in a model that is not pruned


class TargetHandler(BaseHandler):
    """Brings a model to a target sparsity, and reports when it is reached."""

    TARGET_REACHED = PruneEvents.TARGET_REACHED

    @property
    @abstractmethod
    def masks(self) -> MaskStore:
        """The masks, a mapping ``{name: bool tensor}``, True = kept."""

    @property
    @abstractmethod
    def reached(self) -> bool:
        """Whether the target is met: the last update had the final sparsity of the schedule, in every group.

        Without a schedule: the last update had the sparsity of ``param_groups``, which is above 0, or ``masks=`` was
        given. A schedule without an end (``Geometric``) is at its target from the last update of the run on.
        """

    @abstractmethod
    def _met(self) -> list[float | None]:
        """Return the target that each group's last update had, None where the masks have changed since."""

    def when_reached(self, event: AnyEvent, *, sparsity: float | None = None) -> CallableEventWithFilter | EventsList:
        """Return ``event`` filtered by :attr:`reached`, for ``add_event_handler`` of any engine.

        Args:
            event: of the trainer, an evaluator or another engine; filtered too, and then both have to hold.
            sparsity: a target to wait for instead, in [0, 1]; needed where a ``ParamScheduler`` sets the sparsity.

        Raises:
            TypeError: not an event of Ignite's kind (a name that was registered as a string has no filter).
            ValueError: there is no target to wait for, or ``sparsity`` is outside [0, 1].

        Example:
            ``evaluator.add_event_handler(pruner.when_reached(Events.COMPLETED), checkpoint, {"model": model})``
        """
        is_reached = self._condition(sparsity)
        if isinstance(event, EventsList):
            events: Any = EventsList()
            for each in event:
                events = events | self.when_reached(each, sparsity=sparsity)
            return cast(EventsList, events)
        if not isinstance(event, CallableEventWithFilter):
            raise TypeError(f"Argument event should be an Ignite event (Events.COMPLETED), but given {event!r}")
        also = event.filter
        return CallableEventWithFilter(
            event.value,
            lambda engine, count: is_reached() and (also is None or also(engine, count)),
            event.name,
        )

    def score_when_reached(
        self,
        score_function: Callable[[Engine], float],
        mode: Literal["max", "min"] = "max",
        *,
        sparsity: float | None = None,
    ) -> Callable[[Engine], float]:
        """Return a score function for Ignite's ``Checkpoint`` and ``EarlyStopping`` whose best is at the target.

        Until then it is below every real score, and better at each iteration than before, so that ``EarlyStopping``
        does not lose its patience and ``Checkpoint`` keeps the latest model. Afterwards it is ``score_function``.

        Args:
            score_function: of the engine that the other handler is attached to; called from the target on.
            mode: as of ``EarlyStopping``: "min" where a smaller score is better.
            sparsity: as of :meth:`when_reached`.

        Raises:
            TypeError: not a function.
            ValueError: another mode, there is no target to wait for, or ``sparsity`` is outside [0, 1].
        """
        if not callable(score_function):
            raise TypeError(f"Argument score_function should be a function of an engine, but given {score_function!r}")
        if mode not in ("max", "min"):
            raise ValueError(f"Argument mode should be 'max' or 'min', but given {mode!r}")
        is_reached = self._condition(sparsity)

        def score(engine: Engine) -> float:
            if is_reached():
                return score_function(engine)
            at = (self.attached_to or engine).state.iteration - _BELOW_ANY
            return float(at if mode == "max" else -at)

        return score

    def _condition(self, sparsity: float | None) -> Callable[[], bool]:
        if sparsity is None:
            self._check_target()
            return lambda: self.reached
        least = as_sparsity(sparsity) - 1e-9  # a ParamScheduler's last value may be rounded
        return lambda: all(met is not None and met >= least for met in self._met())

    def _check_target(self) -> None:
        """Raise ValueError if there is no target to wait for."""

    def _check_start(self, engine: Engine, attachment: Attachment) -> None:
        if attachment.is_resumed and not attachment.is_loaded and self._unmasked_zeros() > _MOST_ZEROS:
            self._check.tell(
                "resumed",
                f"The trainer resumes from a checkpoint, in which the model is pruned, but this {type(self).__name__} "
                f"has other masks: {self._unmasked_zeros():.0%} of the weights are 0 and not masked, and will be "
                "trained. Add it to the objects of Checkpoint and of load_objects: {..., 'pruner': pruner}; without "
                "its state, PruneHandler(..., masks=MaskStore.from_nonzero(model)) continues with the zeros",
            )

    def _unmasked_zeros(self) -> float:
        """Return the fraction of the selected weights that are 0 and not masked."""
        masks = self.masks
        zeros = sum(int(((each == 0) & masks[name]).count_nonzero()) for name, each in masks.parameters.items())
        return zeros / max(masks.numel, 1)

    def _loaded(self) -> None:
        self._progress.reached = self.reached  # a resumed run does not fire TARGET_REACHED again

    def _announce(self) -> None:
        """Fire TARGET_REACHED if the target has been reached since the last call."""
        if self._attachment is not None:
            before, self._progress.reached = self._progress.reached, self.reached
            if self._progress.reached and not before:
                fire(self._attachment.engine, PruneEvents.TARGET_REACHED)
