"""PruningEngine: rounds of training, pruning and rewinding, the conditions that stop them, and their state."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

from ignite.engine import Engine, Events, State

from ignite_prune._utils.arguments import check_positive
from ignite_prune._utils.commit import to_the_end
from ignite_prune._utils.distributed import any_rank
from ignite_prune.handlers.describe import counted
from ignite_prune.handlers.events import PruningEvents, fire, register
from ignite_prune.handlers.lottery.engine_state import (
    BETWEEN,
    PRUNED,
    TRAINED,
    TRAINING,
    TUNING,
    VERSION,
    checked_form,
    checked_rounds,
)
from ignite_prune.handlers.lottery.results import (
    Evaluate,
    Result,
    as_plain,
    check_floor,
    checked_results,
    is_below,
    plot,
)
from ignite_prune.handlers.lottery.snapshot import Snapshot
from ignite_prune.handlers.lottery.snapshot_moment import check_held, check_taken, snapshots_due
from ignite_prune.handlers.lottery.training_segment import TrainingSegment, forget_failure
from ignite_prune.handlers.prune_handler import PruneHandler
from ignite_prune.handlers.run_check import RunCheck


class PruningEngine(Engine):
    """See :func:`create_pruning_engine`.

    Attributes:
        trainer: trains the model in each round.
        pruner: prunes it.
        snapshot: the state that is rewound to; None without rewinding.
    """

    def __init__(
        self,
        segment: TrainingSegment,
        pruner: PruneHandler,
        snapshot: Snapshot | None,
        evaluate: Evaluate,
        *,
        epochs: int,
        fine_tune: int = 0,
        floor: Mapping[str, float] | None = None,
        target: float | None = None,
    ) -> None:
        super().__init__(lambda engine, _: self._round())
        self.trainer, self.pruner, self.snapshot = segment.trainer, pruner, snapshot
        self._segment, self._evaluate = segment, evaluate
        self._epochs, self._fine_tune, self._floor, self._target = epochs, fine_tune, dict(floor or {}), target
        self.settings = {"epochs": epochs, "fine_tune": fine_tune, "floor": floor, "target": target}
        self._phase, self._completed, self._loaded = BETWEEN, 0, False
        self.state.epoch_length = 1  # a round is an epoch of one iteration
        self._results: list[Result] = []
        self._check = RunCheck()
        register(self, PruningEvents)
        self.add_event_handler(Events.STARTED, PruningEngine._start)
        self.add_event_handler(Events.EPOCH_COMPLETED, PruningEngine._stop_where_due)
        self._publish()

    @property
    def results(self) -> list[Result]:
        """The result of each training: ``round``, ``stage``, the ``sparsity`` it was trained at, ``metrics``."""
        return self._results

    def plot(self, metric: str | None = None, ax: Any = None, **style: Any) -> Any:
        """Draw a metric of :attr:`results` against the density, see :func:`.results.plot`."""
        return plot(self.results, metric, ax, **style)

    def to_save(self, **objects: Any) -> dict[str, Any]:
        """Return what a ``Checkpoint`` should save and load, in the right order.

        Args:
            objects: model, optimizer, learning-rate schedulers, ... by name; pruner, trainer and engine are added.
        """
        return {**objects, "pruner": self.pruner, "trainer": self.trainer, "pruning_engine": self}

    def run(
        self,
        data: Any = None,
        max_epochs: int | None = None,
        max_iters: int | None = None,
        epoch_length: int | None = None,
    ) -> State:
        """Run up to ``max_epochs`` rounds; where a loaded checkpoint holds as many, there is nothing left to do.

        Raises:
            ValueError: given data or an epoch's length, which are arguments of :func:`create_pruning_engine`; or
                finalized.
        """
        if data is not None or epoch_length not in (None, 1):
            raise ValueError(
                "A pruning engine's epochs are rounds: run(max_epochs=rounds) takes no data and no epoch_length; those "
                "of the trainer are given to create_pruning_engine"
            )
        self.pruner._check_usable()
        rounds = max_epochs or max_iters or self.state.max_epochs or getattr(self.state, "max_iters", None)
        if self._loaded and self._phase == BETWEEN and self._completed == rounds:
            return self.state  # Ignite would start a finished run again from round 1
        forget_failure(self)
        limit: dict[str, Any] = {} if max_iters is None else {"max_iters": max_iters}  # Ignite 0.5.5
        return super().run(max_epochs=max_epochs, epoch_length=1, **limit)

    def train(self, epochs: int | None = None) -> dict[str, Any]:
        """Train the present model once more, outside the rounds, and return the evaluator's metrics.

        Args:
            epochs: None: those of a round, from the iteration that is rewound to.

        Raises:
            TypeError, ValueError: not a number of epochs, in the middle of a round, or finalized.
        """
        self.pruner._check_usable()
        if epochs is not None:
            check_positive("epochs", epochs, whole=True)
        if self._phase != BETWEEN:
            raise ValueError(f"Round {self._completed + 1} is not over; run() this engine to its end first")
        self._segment.begin(epochs or self._epochs, 0 if epochs else self._skipped)
        self._segment.run()
        return as_plain(self._evaluate())

    def finalize(self) -> None:
        """Finalize the pruner: a plain model with its zeros, no hook, no handler. This engine cannot run afterwards.

        Raises:
            ValueError: finalized before.
        """
        self.pruner.finalize()

    def __repr__(self) -> str:
        rewind = None if self.snapshot is None else self.snapshot.rewind
        rounds = f"{counted(self._completed, 'round')} completed, {counted(self._epochs, 'epoch')} each"
        return f"PruningEngine({rounds}, rewind={rewind}, pruner={self.pruner})"

    # A round

    def _start(self) -> None:
        self._loaded = False
        if self.state.iteration == 0 and self._phase == BETWEEN:  # a new run
            self._completed, self._results = 0, []
            if self.snapshot is not None:
                self.snapshot.forget()
        self._publish()
        rounds = int(self.state.max_epochs or getattr(self.state, "max_iters", None) or 0)
        self._check.check_rounds(rounds, [group["schedule"] for group in self.pruner.param_groups], self._target)
        if self._completed and self._phase == BETWEEN:
            self._stop_where_due()

    def _round(self) -> Result | None:
        try:
            self._go()
        finally:
            if self._phase != BETWEEN:  # interrupted: a later run continues this round
                self.state.iteration = self.state.epoch = self._completed
        return self.results[-1] if self.results else None

    def _go(self) -> None:
        number = self.state.iteration
        if self._phase == BETWEEN:
            if self.snapshot is not None and self._results and self._results[-1]["stage"] == "fine_tuned":
                self.snapshot.restore(self.pruner.masks)  # this round does not start from the last run's fine-tuning
            self._segment.begin(self._epochs, self._skipped)
            self._phase = TRAINING
        if self._phase == TRAINING:
            fire(self, PruningEvents.ROUND_STARTED)
            self._train("trained", TRAINED)
        if self._phase == TRAINED:
            self._enter(BETWEEN) if self._is_below_floor() else self._prune(number)
        if self._phase == PRUNED:
            self._rewind(number)
        if self._phase == TUNING:
            self._train("fine_tuned", BETWEEN)

    def _enter(self, phase: str) -> None:
        self._phase = phase
        self._completed += phase == BETWEEN

    @property
    def _skipped(self) -> int:
        """The iterations of a round before the one that is rewound to."""
        rewind = None if self.snapshot is None or not self.snapshot.taken else self.snapshot.rewind
        return rewind.iteration if rewind is not None and rewind.schedule else 0

    def _train(self, stage: str, then: str) -> None:
        """Train to the segment's end and store the result, unless this engine was terminated meanwhile."""
        self._segment.run(
            [(Events.ITERATION_COMPLETED, self._end_with_me), *snapshots_due(self.snapshot, self._segment)]
        )
        if self.should_terminate:
            return
        check_taken(self.snapshot, self._segment)
        metrics = as_plain(self._evaluate())
        check_floor(self._floor, metrics)
        result = {"round": self._completed + 1, "stage": stage, "sparsity": self.pruner.sparsity, "metrics": metrics}
        self._results.append(result)
        self.state.metrics.update({name: value for name, value in metrics.items() if isinstance(value, float)})
        self._enter(then)
        fire(self, PruningEvents.TRAINED)

    def _end_with_me(self, trainer: Engine) -> None:
        if self.should_terminate:
            trainer.terminate()

    def _prune(self, number: int) -> None:
        changes = self.pruner.masks.changes
        self._phase = PRUNED  # a handler of the update's event may save a checkpoint
        try:
            scheduled = any(group["schedule"] is not None for group in self.pruner.param_groups)
            self.pruner.step(at=number) if scheduled else self.pruner.step()
        except BaseException:
            if self.pruner.masks.changes == changes:
                self._phase = TRAINED
            raise
        self._publish()
        fire(self, PruningEvents.PRUNED)

    def _rewind(self, number: int) -> None:
        if self.snapshot is not None:
            self.snapshot.restore(self.pruner.masks)
        last = number == self.state.max_epochs or self._is_at_target()
        if last and self._fine_tune:
            self._segment.begin(self._fine_tune, self._skipped)
            self._enter(TUNING)
        else:
            self._enter(BETWEEN)
        if self.snapshot is not None:
            fire(self, PruningEvents.REWOUND)

    # Stopping

    def _stop_where_due(self) -> None:
        if self._is_at_target() or self._is_below_floor():
            self.terminate()

    def _is_at_target(self) -> bool:
        half_a_weight = 0.5 / max(self.pruner.masks.numel, 1)
        return self._target is not None and self.pruner.sparsity >= self._target - half_a_weight

    def _is_below_floor(self) -> bool:
        return any_rank(is_below(self._floor, self.results[-1]["metrics"] if self.results else {}))

    def _publish(self) -> None:
        vars(self.state).update(results=self._results, sparsity=self.pruner.pruning.sparsities())
        self.state.metrics["sparsity"] = self.pruner.sparsity

    # Checkpoints

    def state_dict(self) -> OrderedDict[str, Any]:
        """Return the completed rounds, the position in the present one, results and the snapshot, as plain data."""
        pruning = {
            "version": VERSION,
            "phase": self._phase,
            "trainer": self._segment.state_dict(),
            "results": tuple(copy.deepcopy(self.results)),
            "snapshot": None if self.snapshot is None else self.snapshot.state_dict(),
        }
        return OrderedDict({**super().state_dict(), "iteration": self._completed, "pruning": pruning})

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Load a position in the rounds; load the pruner too, see :meth:`to_save`.

        Raises:
            TypeError: not a state of a pruning engine.
            ValueError: of other settings, or damaged; nothing has changed then.
        """
        state, phase = checked_form(state_dict)
        place, results = self._segment.checked(state["trainer"]), checked_results(state["results"])
        if (state["snapshot"] is None) != (self.snapshot is None):
            raise ValueError("The checkpoint's pruning engine and this one should both rewind, or neither")
        load_snapshot = None if self.snapshot is None else self.snapshot.loader_of(state["snapshot"])
        iteration = place["iteration"] - place["first"] * place["epoch_length"]
        if results or phase != BETWEEN:
            check_held(self.snapshot, state["snapshot"], iteration if phase == TRAINING else None)
        rounds = checked_rounds(state_dict, self.state_dict_user_keys)

        def commit() -> None:
            super(PruningEngine, self).load_state_dict(rounds)
            if load_snapshot is not None:
                load_snapshot()
            self._segment.load_state_dict(place)
            self._phase, self._completed, self._results, self._loaded = phase, self.state.iteration, results, True

        to_the_end(commit)
        self._publish()
