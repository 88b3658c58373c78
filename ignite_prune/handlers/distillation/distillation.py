"""Distillation: while a model is trained and pruned, a dense teacher's outputs and hidden states are part of its loss.

The student's forward passes are captured by a hook on the model. When the task's loss has been computed, the loss that
:meth:`Distillation.wrap` returned calls the teacher with the same arguments, once for each pass, and mixes the two
losses. So the trainer, its AMP context, its gradient scaling and its accumulation stay as they are: they see one loss.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Literal

import torch
from ignite.engine import Engine, Events
from torch import Tensor, nn
from torch.optim import Optimizer

from ignite_prune._utils.arguments import check_callable
from ignite_prune._utils.copies import copy_of
from ignite_prune._utils.plain_repr import plain_repr
from ignite_prune._utils.recorded_arguments import RecordedArguments
from ignite_prune._utils.state import checked_mapping, checked_tensor
from ignite_prune.core.selection import unwrap
from ignite_prune.handlers.attachment import AnyEvent, Attachment
from ignite_prune.handlers.base import BaseHandler
from ignite_prune.handlers.distillation.checks import as_hardness, as_terms, check_devices, check_models
from ignite_prune.handlers.distillation.distilled_loss import DistillationGroup, DistilledLoss, Inputs
from ignite_prune.handlers.distillation.pair_features import PairFeatures, logits_of
from ignite_prune.handlers.distillation.projections import Projections
from ignite_prune.handlers.distillation.teacher import Teacher
from ignite_prune.handlers.distillation.terms import AttentionMSE, HiddenMSE, SoftTargets, Term
from ignite_prune.handlers.shrink_handler import ShrinkHandler
from ignite_prune.schedule import Schedule


class Distillation(RecordedArguments, BaseHandler):
    r"""Adds a teacher to the loss: :math:`(1 - h)\,L_{\mathrm{task}} + h \sum_i w_i L_i`, with the hardness :math:`h`.

    The teacher runs in eval mode without gradients, once for each forward pass of the student, with the same arguments.
    Wrap the loss of the trainer (:meth:`wrap`), or in a step of your own the loss that you compute (:meth:`mix`); for a
    model that returns its own loss, as those of transformers do, ``own_loss="loss"`` leaves the step as it is.

    Args:
        teacher: a trained model; or ``"self"``, a frozen copy of ``model`` as it is at the first :meth:`attach`, which
            is saved in the checkpoint.
        model: the student, as it is called in training: bare, DDP-wrapped or compiled.
        losses: terms of :class:`SoftTargets`, :class:`LogitsMSE`, :class:`HiddenMSE` and :class:`AttentionMSE`.
        hardness: :math:`h` in [0, 1]: 0 is the task's loss alone, and the teacher is not called; 1 is the distillation
            alone. A number, or a schedule of it in the attached event's unit.
        optimizer: the optimizer that trains the model; projections are added to it as a param group. None: give
            :meth:`parameters` to an optimizer. Make the handler before a learning-rate scheduler.
        logits: takes the logits of a model's output; None: a tensor itself, the entry ``"logits"`` of a mapping, the
            first tensor with a batch dimension of a tuple.
        inputs: ``(args, kwargs) -> (args, kwargs)`` for the teacher, where it takes others than the student.
        own_loss: key or index of the loss in the model's output; the loss is replaced by the mixed one there.
        shrinker: slices the student in this run, so that hidden states of the units that are left are compared.
        generator: of the projections' initial values; None: torch's default.

    Attributes:
        param_groups: one dict with ``"hardness"``; Ignite's ParamSchedulers can drive it.

    Raises:
        TypeError, ValueError: a bad argument; the teacher shares parameters with the student; an unknown module.

    Example:
        >>> from ignite.engine import create_supervised_trainer
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> distillation = Distillation("self", model, hardness=0.5)
        >>> trainer = create_supervised_trainer(model, optimizer, distillation.wrap(nn.functional.cross_entropy))
        >>> distillation.attach(trainer)
        >>> data = [(torch.randn(5, 4), torch.tensor([0, 1, 2, 0, 1]))]
        >>> _ = trainer.run(data, max_epochs=2)
        >>> sorted(trainer.state.distillation)
        ['distillation', 'hardness', 'loss', 'soft_targets', 'task']

    References:
        Hinton, Vinyals, Dean, "Distilling the knowledge in a neural network", 2015, arXiv 1503.02531.
    """

    KEYS = ("hardness", "projections", "kept", "teacher", "progress")
    VARYING = ("kept", "teacher")
    MAIN = "loss"

    def __init__(
        self,
        teacher: nn.Module | Literal["self"],
        model: nn.Module,
        *,
        losses: Term | Sequence[Term] = SoftTargets(),
        hardness: float | Schedule = 0.5,
        optimizer: Optimizer | None = None,
        logits: Callable[[Any], Tensor] | None = None,
        inputs: Inputs | None = None,
        own_loss: str | int | None = None,
        shrinker: ShrinkHandler | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self._root, self._terms = unwrap(model), as_terms(losses)
        check_models(teacher, model)
        check_callable("logits", logits)
        check_callable("inputs", inputs)
        if own_loss is not None and type(own_loss) not in (str, int):
            raise TypeError(f"Argument own_loss should be a key or an index, but given {own_loss!r}")
        if shrinker is not None and not isinstance(shrinker, ShrinkHandler):
            raise TypeError(f"Argument shrinker should be a ShrinkHandler, but given {type(shrinker)}")
        schedule = hardness if isinstance(hardness, Schedule) else None
        self._group: DistillationGroup = {"hardness": as_hardness(hardness), "schedule": schedule}
        self._optimizer, self._is_self = optimizer, isinstance(teacher, str)
        self._teacher = self._as_teacher(copy_of(self._root) if isinstance(teacher, str) else teacher)
        self._has_teacher = not self._is_self
        teacher_root = unwrap(self._teacher.model)
        self._projections = Projections(self._terms, self._root, teacher_root, optimizer, generator)
        self._features = PairFeatures(self._terms, self._root, self._projections, shrinker, logits or logits_of)
        self._loss = DistilledLoss(model, self._terms, self._group, self._features, inputs, own_loss)
        self._projections.enter_optimizer()

    def _as_teacher(self, model: nn.Module) -> Teacher:
        pairs = [term for term in self._terms if isinstance(term, HiddenMSE | AttentionMSE)]
        return Teacher(model, {each.student if each.teacher is None else each.teacher for each in pairs})

    @property
    def param_groups(self) -> list[DistillationGroup]:
        """One group with ``"hardness"``; Ignite's ParamSchedulers can drive it."""
        return [self._group]

    @property
    def teacher(self) -> nn.Module | None:
        """The teacher; None for ``"self"`` before the copy is made."""
        return self._teacher.model if self._has_teacher else None

    def parameters(self) -> Iterator[nn.Parameter]:
        """Yield the matrices of the projections, in the order of the terms."""
        yield from self._projections.parameters()

    # The loss

    def wrap(self, loss_fn: Callable[..., Tensor]) -> Callable[..., Tensor]:
        """Return a loss function that mixes the task's loss with the distillation, for a trainer to call.

        Without gradients, as in an evaluator, and after :meth:`detach`, it is the task's loss alone.

        Args:
            loss_fn: ``(y_pred, y, ...) -> loss``, a single number.

        Raises:
            TypeError: not callable.
        """
        if not callable(loss_fn):
            raise TypeError(f"Argument loss_fn should be callable, but given {loss_fn!r}")
        return partial(self._wrapped, loss_fn)

    def _wrapped(self, loss_fn: Callable[..., Tensor], *args: Any, **kwargs: Any) -> Tensor:
        return self.mix(loss_fn(*args, **kwargs))

    def mix(self, loss: Tensor) -> Tensor:
        """Return the mixed loss of the forward passes since the last call.

        Args:
            loss: of the task, a single number. Mix it before it is divided for accumulation, or scaled for AMP.

        Raises:
            RuntimeError: the handler has not been attached, or the model has not run since the last call.
            TypeError, ValueError: not a single number; outputs or hidden states of other shapes than the teacher's.
        """
        return self._loss.mix(loss)

    # Attaching

    def install(self) -> None:
        """Capture the student's forward passes from now on, without an engine; :meth:`detach` ends it.

        Raises:
            ValueError: finalized, or student and teacher are on different devices.
        """
        self._check_usable()
        if not self._has_teacher:
            self._teacher, self._has_teacher = self._as_teacher(copy_of(self._root)), True
        check_devices(self._root, self._teacher.model)
        self._loss.teacher = self._teacher
        self._loss.install()

    def attach(self, engine: Engine, event: AnyEvent = Events.EPOCH_COMPLETED, name: str = "distillation") -> None:
        """Distil in every step of ``engine`` from now on; on ``event`` set a scheduled hardness, and publish.

        ``engine.state.distillation`` is ``{"loss", "task", "distillation", "hardness", <each term>}``, floats of the
        last step; ``engine.state.metrics["distillation"]`` is the mixed loss.

        Args:
            engine: the trainer.
            event: any event, filtered too; its count is the schedule's step.
            name: the attribute of ``engine.state``.

        Raises:
            TypeError: not an engine, not an event, not a name.
            ValueError: attached already, finalized, an unknown event, a name that is taken, or student and teacher are
                on different devices.
        """
        self._attach(engine, event, name)

    def _start(self, attachment: Attachment) -> None:
        attachment.add(Events.STARTED, self._on_started)
        attachment.add(Events.ITERATION_STARTED, lambda *_: self._loss.drop_calls())
        attachment.add(Events.ITERATION_COMPLETED, self._on_iteration)
        self.install()

    def _stop(self) -> None:
        self._loss.remove()

    def _bake(self) -> None:
        self._projections.leave_optimizer()

    def _on_started(self, engine: Engine) -> None:
        if engine.state.iteration == 0 and not self._progress.done:  # a new run
            self._schedule(0)

    def _on_iteration(self, engine: Engine) -> None:
        if self._loss.is_left_out:
            raise RuntimeError(
                "The model ran, and its loss was not mixed with the distillation: give the trainer "
                "distillation.wrap(loss_fn), call distillation.mix(loss) in the step, or set own_loss="
            )
        self._loss.drop_calls()

    def _schedule(self, step: float) -> None:
        if self._group["schedule"] is not None:
            self._group["hardness"] = self._group["schedule"](step)

    def _update_at(self, step: int, done: Callable[[], None]) -> None:
        self._schedule(step)
        done()
        self._publish()

    def _schedules(self) -> Sequence[Schedule]:
        return ()  # that a hardness has not reached its end does no harm

    def _trained_by(self) -> Sequence[Optimizer]:
        return () if self._optimizer is None else (self._optimizer,)

    def _report(self) -> dict[str, float]:
        last = self._loss.last
        values = {name: float(last[name]) if name in last else 0.0 for name in self._loss.names}
        return {**values, "hardness": float(self._group["hardness"])}

    def _describe(self) -> list[str]:
        teacher = "self" if self._is_self else type(unwrap(self._teacher.model)).__name__
        return [
            f"{teacher} → {type(self._root).__name__}",
            *map(plain_repr, self._terms),
            f"hardness {self._hardness_text()}",
        ]

    def _hardness_text(self) -> str:
        schedule = self._group["schedule"]
        return f"{self._group['hardness']:.4g}" + ("" if schedule is None else f" by {plain_repr(schedule)}")

    # Checkpoints

    def _state(self) -> dict[str, Any]:
        saves_teacher = self._is_self and self._has_teacher
        teacher = unwrap(self._teacher.model).state_dict() if saves_teacher else {}
        return {
            "hardness": float(self._group["hardness"]),
            "projections": {name: each.detach().clone() for name, each in self._projections.matrices.items()},
            "kept": {name: each.clone() for name, each in self._features.kept.items()},
            "teacher": {name: each.detach().clone() for name, each in teacher.items()},
        }

    def _checked(self, state: Mapping[str, Any]) -> Callable[[], None]:
        hardness = as_hardness(state["hardness"])
        values = checked_mapping("projections", state["projections"], self._projections.matrices)
        kept = self._features.checked(state["kept"], values)
        wanted = unwrap(self._teacher.model).state_dict() if self._is_self else {}
        has_none = isinstance(state["teacher"], Mapping) and not state["teacher"]
        teacher = checked_mapping("teacher", state["teacher"], () if has_none else wanted)
        for name, value in teacher.items():
            checked_tensor(f"teacher's {name!r}", value, shape=wanted[name].shape, dtype=wanted[name].dtype)

        @torch.no_grad()
        def load() -> None:
            self._group["hardness"] = hardness
            self._features.load(kept)
            for name, value in values.items():
                self._projections.matrices[name].copy_(value)
            if teacher:
                unwrap(self._teacher.model).load_state_dict(teacher)
            if self._is_self:
                self._has_teacher = bool(teacher) or self._loss.is_installed

        return load
