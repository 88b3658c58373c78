"""The loss of a distillation: a task's loss, mixed with how far the student is from its teacher."""

from __future__ import annotations

from collections.abc import Callable, MutableMapping
from typing import Any, TypedDict

import torch
from torch import Tensor, nn

from ignite_prune._utils.distributed import mean_over_ranks, world_size
from ignite_prune.handlers.distillation.forward_capture import CapturedCall, ForwardCapture
from ignite_prune.handlers.distillation.pair_features import PairFeatures
from ignite_prune.handlers.distillation.teacher import Teacher
from ignite_prune.handlers.distillation.terms import AttentionMSE, HiddenMSE, Term, names_of
from ignite_prune.schedule import Schedule

_VIEWS = 16  # forward passes that one loss may be of
Inputs = Callable[[tuple[Any, ...], dict[str, Any]], tuple[tuple[Any, ...], dict[str, Any]]]


class DistillationGroup(TypedDict):
    """The one group of a distillation: its present hardness, and the schedule that it follows."""

    hardness: float
    schedule: Schedule | None


class DistilledLoss:
    """Mixes a task's loss with the terms of a distillation.

    Args:
        model: the student, as it is called in training.
        terms: of the loss.
        group: its hardness.
        features: compares two forward passes.
        inputs: changes the arguments for the teacher.
        own_loss: where the model's output has its loss, which is replaced.

    Attributes:
        last: the parts of the last loss, by name.
        teacher: set before :meth:`install`.
        is_used: a loss has been mixed since :meth:`install`.
    """

    def __init__(
        self,
        model: nn.Module,
        terms: tuple[Term, ...],
        group: DistillationGroup,
        features: PairFeatures,
        inputs: Inputs | None,
        own_loss: str | int | None,
    ) -> None:
        self._terms, self._group, self._features = terms, group, features
        self._inputs, self._own_loss = inputs, own_loss
        names = {term.student for term in terms if isinstance(term, HiddenMSE | AttentionMSE)}
        self._student = ForwardCapture(model, names, self._captured)
        self.names = ("loss", "task", "distillation", *names_of(terms))
        self.last: dict[str, Tensor] = {}
        self.teacher: Teacher | None = None
        self.is_used = False
        self.is_installed = False
        self._has_ended = False
        self._calls: list[CapturedCall] = []
        self._averaged: dict[nn.Parameter, Any] = {}

    @property
    def is_left_out(self) -> bool:
        """Whether the student ran with gradients, and its loss was not mixed."""
        return bool(self._calls) and not self.is_used and bool(self._group["hardness"])

    def install(self) -> None:
        """Capture forward passes."""
        assert self.teacher is not None
        self._student.install()
        self.teacher.install()
        self.is_installed, self._has_ended, self.is_used = True, False, False

    def remove(self) -> None:
        """Remove the hooks; from now on the task's loss is returned unchanged."""
        self._student.remove()
        if self.teacher is not None:
            self.teacher.remove()
        for handle in self._averaged.values():
            handle.remove()
        self._averaged = {}
        self.drop_calls()
        self._has_ended, self.is_installed = self._has_ended or self.is_installed, False

    def drop_calls(self) -> None:
        """Forget forward passes that no loss was computed of."""
        self._calls = []

    def mix(self, loss: Tensor) -> Tensor:
        """Return the mixed loss of the forward passes since the last call; see :meth:`Distillation.mix`."""
        if not torch.is_grad_enabled() or self._has_ended:
            return loss
        if not isinstance(loss, Tensor) or loss.numel() != 1:
            told = f"one of shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else repr(loss)
            raise TypeError(f"The task's loss should be a tensor of one number, but given {told}")
        if not self.is_installed:
            raise RuntimeError("The distillation is not attached: call attach(trainer), or install() in a loop")
        calls, self._calls = self._calls, []
        self.is_used = True
        if not self._group["hardness"]:
            self.last = {"task": loss.detach(), "loss": loss.detach()}
            return loss
        if not calls:
            raise RuntimeError(
                "No forward pass of the student with gradients came before the loss: give Distillation the model as it "
                "is called in training, in its wrapper"
            )
        return self._mixed(loss, [self._compared(call) for call in calls])

    def _mixed(self, loss: Tensor, found: list[list[Tensor]]) -> Tensor:
        means = [torch.stack(of_term).mean() for of_term in zip(*found)]
        distilled = torch.stack([term.weight * each.to(means[0]) for term, each in zip(self._terms, means)]).sum()
        hardness = self._group["hardness"]
        mixed = (1 - hardness) * loss + hardness * distilled.to(loss.device)
        self.last = {name: each.detach() for name, each in zip(self.names, (mixed, loss, distilled, *means))}
        return mixed

    def _compared(self, call: CapturedCall) -> list[Tensor]:
        """Return each term's loss for one forward pass."""
        assert self.teacher is not None
        args, kwargs = (call.args, call.kwargs) if self._inputs is None else self._inputs(call.args, call.kwargs)
        target = self.teacher(args, kwargs)
        found = [self._features.compare(index, call, target) for index in range(len(self._terms))]
        self._average_gradients()
        return found

    def _captured(self, call: CapturedCall) -> Any:
        if not torch.is_grad_enabled():
            return None
        self._calls = [*self._calls[1 - _VIEWS :], call]
        return None if self._own_loss is None else self._with_loss(call.output, self._own_loss)

    def _with_loss(self, output: Any, key: Any) -> Any:
        """Return the model's output with its loss replaced by the mixed loss."""
        if isinstance(output, MutableMapping) and isinstance(output.get(key), Tensor):
            output[key] = self.mix(output[key])
            return output
        if isinstance(output, tuple) and type(key) is int and -len(output) <= key < len(output):
            values = list(output)
            values[key] = self.mix(values[key])
            return tuple(values) if type(output) is tuple else type(output)(*values)
        raise TypeError(f"Argument own_loss: the model's output, a {type(output).__name__}, has no loss at {key!r}")

    def _average_gradients(self) -> None:
        """Average the projections' gradients over ranks: DDP reduces those of its model only."""
        for each in self._features.parameters() if world_size() > 1 else ():
            if each not in self._averaged:
                self._averaged[each] = each.register_hook(mean_over_ranks)  # type: ignore[no-untyped-call]
