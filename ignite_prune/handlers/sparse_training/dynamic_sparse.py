"""Dynamic sparse training: connections move, their number stays the same."""

from __future__ import annotations

import warnings
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from ignite.engine import Engine, Events
from torch import Tensor, nn
from torch.optim import Optimizer

from ignite_prune._utils.arguments import check_generator, check_generator_state, check_positive
from ignite_prune._utils.plain_repr import plain_repr
from ignite_prune._utils.state import checked_int, checked_mapping
from ignite_prune.allocation import ERK, Allocation
from ignite_prune.core.check_report import CheckReport
from ignite_prune.core.mask_enforcer import MaskEnforcer
from ignite_prune.core.mask_store import MaskStore
from ignite_prune.core.weight_check import WeightCheck
from ignite_prune.handlers.attachment import AnyEvent, Attachment
from ignite_prune.handlers.run_check import iterations_of
from ignite_prune.handlers.run_warning import BEYOND, UNMOVED
from ignite_prune.handlers.sparse_training.base import MaskedHandler
from ignite_prune.handlers.sparse_training.gradient_listener import GradientListener, NoListener
from ignite_prune.handlers.sparse_training.initial_masks import check_room, checked_sparsity, start
from ignite_prune.regrow.base import Connections, Move
from ignite_prune.regrow.fraction import CosineDrop, DropFraction
from ignite_prune.saliency import NonFiniteSaliency
from ignite_prune.update.agreement import NOT_MADE, announced
from ignite_prune.update.scores import all_finite


class DynamicSparse(MaskedHandler):
    """Base class of ``SET``, ``RigL``, ``SRigL`` and ``SparseMomentum``: the smallest connections go, others grow.

    The model is sparse from the handler's construction on. An update drops a fraction of the active connections, which
    falls during training, and grows as many; these start at 0, with optimizer slots of 0. Updates are made at the end
    of an iteration, and the checkpoint holds everything that the next one depends on.

    Args:
        model: bare, DDP-wrapped or compiled; ranks begin with rank 0's masks.
        optimizer: the optimizer(s) that train it; any but LBFGS.
        params: as of :class:`~ignite_prune.PruneHandler`.
        sparsity: the pruned fraction, in (0, 1); in group dicts each group's.
        allocation: how it is divided over the layers at the start: ``ERK()``, ``Uniform()``, ...
        every: iterations from one update to the next.
        drop_fraction: of the active connections, in (0, 1), at the start; or a ``regrow.DropFraction``.
        end: iteration from which no update is made; None: three quarters of the run.
        generator: for random masks; None makes one from ``torch.initial_seed()``.
        exclude: rules for what to leave alone.
        masks: bool masks to start from, by name, instead of a sparsity.
        shared: let other handlers mask the same parameters; otherwise a second one is refused.

    Raises:
        TypeError, ValueError: a bad argument; the model is unchanged then.
    """

    KEYS = (*MaskedHandler.KEYS, "generator", "budgets", "steps", "heard")
    VARYING = ("heard",)
    _listens: ClassVar[type[GradientListener]] = NoListener

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer | Sequence[Optimizer],
        params: Any = None,
        *,
        sparsity: float | None = None,
        allocation: Allocation = ERK(),
        every: int = 100,
        drop_fraction: float | DropFraction = 0.3,
        end: int | None = None,
        generator: torch.Generator | None = None,
        exclude: Any = (),
        masks: Mapping[str, Tensor] | None = None,
        shared: bool = False,
    ) -> None:
        with announced(NOT_MADE):
            super().__init__(model, optimizer, params, sparsity, allocation, exclude, shared)
            check_positive("every", every, whole=True)
            if end is not None:
                check_positive("end", end, whole=True)
            check_generator(generator)
            self._every, self._end = every, end
            self._fraction = drop_fraction if isinstance(drop_fraction, DropFraction) else self._falling(drop_fraction)
            self._generator = generator or torch.Generator().manual_seed(torch.initial_seed())
            self._stepped: int | None = None  # the last iteration with an optimizer step
            self._window = 1  # iterations from one step to the next
            self._due = False  # an update is due at a step, and has not been made
            self._enforcer = MaskEnforcer(self._masks, self._optimizers)
            self._weight_check = WeightCheck(self._model, self._masks, self._enforcer, type(self).__name__)
            self._enforcer.on_alive = self._weight_check.before_step
            self._listening = self._listens(self._masks, self._enforcer, self._optimizers)
            self._listening.is_due = self._sees_step
            first = self._agreed(lambda: self._first(masks))
        check_room(first, self._masks)
        self._masks.update(first)
        self._budgets = {name: self._masks.kept(name) for name in self._masks}
        self._hold()

    @property
    @abstractmethod
    def _move(self) -> Move:
        """How an update moves connections."""

    def _falling(self, fraction: float) -> DropFraction:
        """Return the course of a ``drop_fraction`` that is given as a number."""
        return CosineDrop(fraction)

    def check(self) -> CheckReport:
        """Compare the weights with the masks; see :meth:`ignite_prune.PruneHandler.check`."""
        return self._weight_check.report()

    def _checker(self) -> WeightCheck:
        return self._weight_check

    # The first masks

    def _first(self, masks: Mapping[str, Tensor] | None) -> dict[str, Tensor]:
        if masks is not None:
            if any(group["sparsity"] is not None for group in self._groups):
                raise ValueError("Give a sparsity or masks to start from, not both")
            given = dict(MaskStore(self._masks.parameters, masks))
            for name, mask in given.items():
                self._move.check(name, mask)
            return given

        def draw(weight: Tensor) -> Tensor:
            drawn = torch.rand(weight.shape, generator=self._generator, device=self._generator.device)
            return drawn.to(weight.device)

        drawn = start(self._groups, self._masks.parameters, draw, checked_sparsity)
        return {name: self._move.first(mask, self._generator) for name, mask in drawn.items()}

    # When

    def _event(self) -> AnyEvent:
        return Events.ITERATION_COMPLETED(event_filter=self._is_ready)

    def _listen(self, attachment: Attachment) -> None:
        attachment.add(Events.STARTED, self._on_started)
        attachment.add(Events.ITERATION_STARTED, self._expect)

    def _on_started(self, engine: Engine) -> None:
        self._last(engine)  # raises now, not at the first update
        if self._stepped is None or engine.state.iteration < self._stepped:  # a new run
            self._stepped, self._due = engine.state.iteration, False
            self._listening.used()  # of an update that was due in the last run and never made

    def _last(self, engine: Engine) -> float:
        """Return the iteration from which no update is made."""
        if self._end is not None:
            return self._end
        whole = iterations_of(engine)
        if not whole:
            raise ValueError(
                f"The run's length is not known, so {type(self).__name__} needs end=: from which iteration no update "
                "is made; or give the trainer epoch_length="
            )
        return 0.75 * whole

    def _check_start(self, engine: Engine, attachment: Attachment) -> None:
        super()._check_start(engine, attachment)
        iterations, last, who = iterations_of(engine), self._last(engine), type(self).__name__
        if iterations is None or (self._end is not None and self._end <= 1):  # no update, whatever every= is: as asked
            return
        if self._every >= min(last, iterations + 1):
            unmoved = UNMOVED.format(who=who, iterations=iterations, every=self._every, last=min(last, iterations + 1))
            self._check.tell("never", unmoved)
        elif last > iterations:
            self._check.tell("short", BEYOND.format(who=who, end=self._end, iterations=iterations))

    def _expect(self, engine: Engine) -> None:
        """Collect gradients if an update is due at the next optimizer step.

        It is due at every multiple of ``every``; with accumulated gradients at the first step from there on, and the
        gradients of all the iterations of that step are collected.
        """
        at = max(engine.state.iteration, (self._stepped or 0) + self._window)
        if self._due or self._crosses(engine, at):
            self._listening.expect()

    def _crosses(self, engine: Engine, iteration: int) -> bool:
        """Return whether a step at an iteration is the first one from a multiple of ``every`` on."""
        multiple = iteration // self._every * self._every
        return (self._stepped or 0) < multiple < self._last(engine)

    def _sees_step(self) -> bool:
        """Record an optimizer's step and return whether an update is due at it."""
        if self._attachment is not None:
            engine = self._attachment.engine
            iteration = engine.state.iteration
            self._due = self._due or self._crosses(engine, iteration)
            if self._stepped is not None and iteration > self._stepped:
                self._window = iteration - self._stepped
            self._stepped = iteration
        return self._due

    def _is_ready(self, engine: Engine, iteration: int) -> bool:
        return iteration % self._every == 0 and iteration < self._last(engine)

    # Updating

    def _update(self, step: int, done: Callable[[], None]) -> None:
        assert self._attachment is not None
        engine = self._attachment.engine
        try:
            self._rewire(self._fraction(step / self._last(engine)), done)
        except NonFiniteSaliency as error:
            if not engine.should_terminate:
                raise
            warnings.warn(f"The run is being terminated, so a mask update is left out: {error}", stacklevel=2)
            return

    def _rewire(self, fraction: float, done: Callable[[], None]) -> None:
        planned: dict[str, tuple[Tensor, Tensor]] = {}

        def plan() -> dict[str, Tensor]:
            planned.update(self._plan(fraction))
            return {name: mask for name, (_, mask) in planned.items()}

        held, ready = self._generator.get_state(), False

        def commit() -> None:
            self._masks.put(replaced)
            self._enforcer.apply(survivors)
            self._listening.used()
            self._due = False
            done()

        try:
            replaced = self._masks.replaced(self._agreed(plan))
            survivors = self._agreed(lambda: {name: stays for name, (stays, _) in planned.items()})
            ready = True
            commit()
        except BaseException:  # what was cut short is not done, or repeated to its end
            commit() if ready else self._generator.set_state(held)
            raise

    def _plan(self, fraction: float) -> dict[str, tuple[Tensor, Tensor]]:
        """Return survivors and new masks, by name."""
        found = self._listening.found
        assert found is not None
        layers = [
            Connections(name, parameter.detach(), self._masks[name], found.get(name), self._budgets[name])
            for name, parameter in self._masks.parameters.items()
            if parameter.requires_grad and (name in found or self._listens is NoListener)
        ]
        for layer in layers:
            _check_finite(layer)
        rewired = self._move(layers, fraction, self._generator)
        return {layer.name: (each.survivors, each.mask) for layer, each in zip(layers, rewired)}

    def _install(self) -> None:
        self._enforcer.install()
        self._enforcer.settle()
        self._listening.install()

    def _stop(self) -> None:
        self._listening.remove()
        self._enforcer.remove()

    # Checkpoints

    def _describe(self) -> list[str]:
        return [*super()._describe(), f"every {self._every}", plain_repr(self._fraction)]

    def _state(self) -> dict[str, Any]:
        return {
            **super()._state(),
            "generator": self._generator.get_state(),
            "budgets": dict(self._budgets),
            "steps": [-1 if self._stepped is None else self._stepped, self._window, int(self._due)],
            "heard": self._listening.state_dict(),
        }

    def _checked(self, state: Mapping[str, Any]) -> Callable[[], None]:
        load_masks = super()._checked(state)
        generator, budgets, steps = state["generator"], state["budgets"], state["steps"]
        check_generator_state(self._generator, generator)
        for name, budget in checked_mapping("budgets", budgets, self._masks).items():
            checked_int(f"budget of {name!r}", budget, 0, self._masks.parameters[name].numel())
        if not isinstance(steps, list) or len(steps) != 3:
            raise ValueError("The checkpoint's steps should be three whole numbers")
        for each, low in zip(steps, (-1, 1, 0)):
            checked_int("step", each, low)
        heard = self._listening.checked(state["heard"])

        def load() -> None:
            self._generator.set_state(generator.cpu())
            self._budgets = {name: budgets[name] for name in self._masks}
            self._stepped, self._window, self._due = None if steps[0] < 0 else steps[0], steps[1], bool(steps[2])
            self._listening.load(heard)
            load_masks()

        return load


def _check_finite(layer: Connections) -> None:
    for what, values in (("weight", layer.weight), ("evidence", layer.evidence)):
        if values is not None and not all_finite(values.abs() if values.is_complex() else values):
            raise NonFiniteSaliency(
                f"The {what} of parameter {layer.name!r} has values that are NaN or infinite; nothing was rewired. Has "
                "training diverged?"
            )
