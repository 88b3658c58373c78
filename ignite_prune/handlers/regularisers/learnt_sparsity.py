"""LearntSparsity: each layer's sparsity is learnt together with its weights."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from ignite.engine import Events
from torch import Tensor, nn
from torch.optim import Adam, Optimizer
from torch.utils.hooks import RemovableHandle

from ignite_prune._utils.arguments import check_is
from ignite_prune._utils.inert_hook import InertHook
from ignite_prune._utils.plain_repr import plain_repr
from ignite_prune._utils.state import checked_mapping, checked_tensor
from ignite_prune.core.mask_store import MaskStore
from ignite_prune.core.optimizer_loading import as_saved, check_by_trial, from_saved
from ignite_prune.core.selection import is_number, unwrap
from ignite_prune.core.step_hooks import Closure, grad_scale
from ignite_prune.core.weight_masking import LENT
from ignite_prune.handlers.attachment import Attachment
from ignite_prune.handlers.regularisers.base import Regulariser
from ignite_prune.handlers.regularisers.param_groups import RegulariserGroup, build_strengths
from ignite_prune.regularise import Gate, SoftThreshold
from ignite_prune.saliency import NonFiniteSaliency
from ignite_prune.schedule import Schedule
from ignite_prune.update.scores import all_finite


def _adam(learnt: list[nn.Parameter]) -> Optimizer:
    return Adam(learnt, lr=0.01)


class LearntSparsity(Regulariser):
    """Learns which weights to prune, and how many: scores or thresholds are trained together with the weights.

    The model's parameters hold the output of the gates, so the model is sparse whenever it is evaluated, saved or
    exported, under its own names. Only during an optimizer step do the parameters hold the whole weights, which this
    handler stores, with the gradients of the gates; it costs one more copy of the weights. A weight that is set to 0
    from outside, for example by a ``PruneHandler`` of the same parameters (one of the two with ``shared=True``), stays
    0; any other value written to a parameter is lost at the next step.

    Args:
        model: bare, DDP-wrapped or compiled.
        params: None for the weights of every linear, convolutional, recurrent and attention layer; rules; or group
            dicts ``{"params": ..., any of strength, gate, exclude}``.
        gate: :class:`~ignite_prune.regularise.SoftThreshold`, a threshold a parameter;
            :class:`~ignite_prune.regularise.SoftMovement`, a score an entry; or one of your own.
        strength: of the gates' penalties, summed over parameters; at least 0, or a schedule of it in the attached
            event's unit. More of it makes the model sparser.
        optimizer: the optimizer(s) that train the parameters; None for whichever optimizer does.
        learner: makes the optimizer of what is learnt of its list of parameters; None: ``Adam`` with ``lr=0.01``.
        exclude: rules for what to leave alone.
        shared: let other handlers mask the same parameters; otherwise :meth:`attach` refuses it.

    Attributes:
        learner: the optimizer of what is learnt; this handler steps and saves it.

    Raises:
        TypeError, ValueError: a bad argument; an optimizer that evaluates the model within its step (``LBFGS``), as it
            is called.

    Example:
        >>> from ignite.engine import create_supervised_trainer
        >>> model = nn.Linear(8, 1)
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> trainer = create_supervised_trainer(model, optimizer, nn.functional.mse_loss)
        >>> learnt = LearntSparsity(model, gate=SoftThreshold(start_at=-4.0), strength=1.0)
        >>> learnt.attach(trainer)
        >>> x = torch.randn(64, 8)
        >>> _ = trainer.run([(x, x[:, :1])] * 100, max_epochs=3)
        >>> learnt.masks.kept("weight"), trainer.state.learnt_sparsity["global"]
        (1, 0.875)

    References:
        Kusupati et al., "Soft threshold weight reparameterization for learnable sparsity", 2020, arXiv 2002.03231;
        Sanh, Wolf, Rush, "Movement pruning: adaptive sparsity by fine-tuning", 2020, arXiv 2005.07683.
    """

    NAME = "learnt_sparsity"
    KEYS = (*Regulariser.KEYS, "whole", "learnt", "learner")
    VARYING = ("whole",)

    def __init__(
        self,
        model: nn.Module,
        params: Any = None,
        *,
        gate: Gate = SoftThreshold(),
        strength: float | Schedule,
        optimizer: Optimizer | Sequence[Optimizer] | None = None,
        learner: Callable[[list[nn.Parameter]], Optimizer] | None = None,
        exclude: Any = (),
        shared: bool = False,
    ) -> None:
        check_is("shared", shared, bool)
        model = unwrap(model)
        groups = build_strengths(model, params, gate=gate, strength=strength, exclude=exclude)
        for group in groups:
            if not isinstance(group["gate"], Gate):
                raise TypeError(
                    f"Argument gate should be a gate of ignite_prune.regularise, but given {group['gate']!r}"
                )
        super().__init__(model, optimizer, groups, [name for group in groups for name in group["params"]])
        self._shared = shared
        self._group_of: dict[str, RegulariserGroup] = {name: group for group in groups for name in group["params"]}
        self._learnt = {name: self._initial(name) for name in self._parameters}
        self.learner = (_adam if learner is None else learner)(list(self._learnt.values()))
        if not isinstance(self.learner, Optimizer):
            raise TypeError(f"Argument learner should return a torch.optim.Optimizer, but it gave {self.learner!r}")
        self._whole: dict[str, Tensor] = {}
        self._stepping: list[str] = []  # parameters that hold the whole weights
        self._watch: RemovableHandle | None = None

    def _initial(self, name: str) -> nn.Parameter:
        learnt = self._group_of[name]["gate"].start(self._parameters[name].detach())
        return nn.Parameter(learnt.to(torch.promote_types(learnt.dtype, torch.float32)))

    def parameters(self) -> Iterator[nn.Parameter]:
        """Yield what is learnt, in the order of the selected parameters."""
        yield from self._learnt.values()

    @property
    def masks(self) -> MaskStore:
        """The present masks: kept where the model's weight is not 0."""
        self._put_back()
        return MaskStore.from_nonzero(self._parameters)

    @property
    def sparsity(self) -> float:
        """The fraction of the selected parameters' entries that are 0."""
        return self.masks.sparsity

    @torch.no_grad()
    def penalty(self) -> float:
        """Return the sum of strength times the gate's penalty over the parameters."""
        groups = [self._group_of[name] for name in self._learnt]
        return sum(
            float(group["strength"] * group["gate"].penalty(learnt))
            for group, learnt in zip(groups, self._learnt.values())
        )

    def _report(self) -> dict[str, float]:
        self._put_back()
        sizes = {name: parameter.numel() for name, parameter in self._parameters.items()}
        zeros = {name: sizes[name] - int(p.detach().count_nonzero()) for name, p in self._parameters.items()}
        pruned, whole = sum(zeros.values()), sum(p.numel() for p in self._model.parameters() if is_number(p))
        found = {"penalty": self.penalty(), "global": 0.0, "model": pruned / whole}
        parts = {name: zeros[name] / max(size, 1) for name, size in sizes.items()}
        return found | parts | {"global": pruned / max(sum(sizes.values()), 1)}

    # Attaching

    def _start(self, attachment: Attachment) -> None:
        super()._start(attachment)
        attachment.add(Events.ITERATION_STARTED, self._put_back)
        attachment.add(Events.ITERATION_COMPLETED, lambda *_: self._publish())
        self._watch = self._model.register_state_dict_pre_hook(InertHook(self._put_back))  # type: ignore[no-untyped-call]
        if not self._whole:
            self._whole = {name: parameter.detach().clone() for name, parameter in self._parameters.items()}
            for name in self._parameters:
                self._let_through(name)

    def _stop(self) -> None:
        self._put_back()
        if self._watch is not None:
            self._watch.remove()
            self._watch = None
        super()._stop()

    def _masked(self) -> Mapping[str, nn.Parameter]:
        return self._parameters

    def _bake(self) -> None:
        self._put_back()
        self._whole.clear()

    def _describe(self) -> list[str]:
        gates = dict.fromkeys(plain_repr(group["gate"]) for group in self._groups)
        return [*super()._describe(), *gates, f"sparsity {self.sparsity:.4g}"]

    # Around a step

    def _work(self, name: str, whole: Tensor) -> Tensor:
        return self._group_of[name]["gate"].work(whole, self._learnt[name])

    @torch.no_grad()
    def _let_through(self, name: str) -> None:
        self._parameters[name].copy_(self._work(name, self._whole[name])).add_(0.0)  # makes 0.0 of -0.0

    def _before_step(self, optimizer: Optimizer, closure: Closure | None) -> Closure | None:
        held = self._held(optimizer)
        if held and closure is not None:
            raise ValueError(
                f"{type(optimizer).__name__} was given a closure, which evaluates the model within the step, when its "
                "parameters hold the whole weights; LearntSparsity needs optimizers that step without one"
            )
        if not held:  # the learner's own step, or that of another training
            return closure
        self._put_back()
        try:
            for name in held:
                self._to_whole(name, optimizer)
        except Exception:
            self._put_back()
            raise
        return closure

    def _put_back(self, *_: Any) -> None:
        """Restore the gates' output after a step that raised before its end."""
        for name in self._stepping:
            self._let_through(name)
            self._learnt[name].grad = None
        self._have_stepped()

    @torch.no_grad()
    def _to_whole(self, name: str, optimizer: Optimizer) -> None:
        """Write the whole weight and its gradient to the parameter, and set the gradient of what is learnt."""
        parameter, learnt, group = self._parameters[name], self._learnt[name], self._group_of[name]
        gradient = parameter.grad
        assert gradient is not None
        if gradient.is_sparse:
            raise ValueError(
                f"The gradient of {name!r} is sparse, which a gate cannot take; leave it out with exclude="
            )
        work, of_whole, of_learnt, of_penalty = self._gradients(name, gradient)
        scale = grad_scale(optimizer)
        if scale is not None and not all_finite(of_learnt):
            raise NonFiniteSaliency(
                f"The gradient of {name!r} has values that are NaN or infinite, from which nothing can be learnt; the "
                "step is not made. Has training diverged?"
            )
        self._stepping.append(name)
        LENT.add(id(parameter))
        if not torch.equal(parameter, work):  # something else has written to it
            self._whole[name].masked_fill_((parameter == 0) & (work != 0), 0)
        learnt.grad = of_learnt / (1.0 if scale is None else scale) + group["strength"] * of_penalty
        gradient.copy_(of_whole)
        parameter.copy_(self._whole[name])

    @torch.enable_grad()
    def _gradients(self, name: str, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return the gate's output, and the gradients of the whole weight, of what is learnt and of the penalty."""
        learnt, whole = self._learnt[name], self._whole[name].detach().requires_grad_()
        work = self._work(name, whole)
        of_whole, of_learnt = torch.autograd.grad(work, (whole, learnt), gradient.to(work.dtype))
        (of_penalty,) = torch.autograd.grad(self._group_of[name]["gate"].penalty(learnt), (learnt,))
        return work.detach(), of_whole, of_learnt, of_penalty

    def _after_step(self, optimizer: Optimizer, stepped: bool) -> None:
        held = self._held(optimizer)
        if not held:  # the learner's own step, or that of another training, perhaps in another thread
            return
        for name in held:
            self._whole[name].copy_(self._parameters[name])
        if stepped:
            self.learner.step()
        self.learner.zero_grad()
        for name in held:
            self._let_through(name)
        self._have_stepped()

    def _have_stepped(self) -> None:
        LENT.difference_update(id(self._parameters[name]) for name in self._stepping)
        self._stepping.clear()

    # Checkpoints

    def _state(self) -> dict[str, Any]:
        self._put_back()
        return {
            **super()._state(),
            "whole": {name: whole.detach().clone() for name, whole in self._whole.items()},
            "learnt": {name: learnt.detach().clone() for name, learnt in self._learnt.items()},
            "learner": as_saved(copy.deepcopy(self.learner.state_dict())),
        }

    def _checked(self, state: Mapping[str, Any]) -> Callable[[], None]:
        load_strengths = super()._checked(state)
        learnt, whole, learner = state["learnt"], state["whole"], from_saved(state["learner"])
        _check_tensors("learnt", learnt, self._learnt)
        _check_tensors("whole", whole, {} if isinstance(whole, Mapping) and not whole else self._parameters)
        check_by_trial("learner", self.learner, learner)
        learner = copy.deepcopy(learner)  # its tensors become the learner's
        wholes = {name: each.detach().to(self._parameters[name].device, copy=True) for name, each in whole.items()}

        @torch.no_grad()
        def load() -> None:
            self.learner.load_state_dict(learner)
            for name, tensor in learnt.items():
                self._learnt[name].copy_(tensor)
            self._whole = dict(wholes)
            load_strengths()

        return load


def _check_tensors(key: str, found: Any, wanted: Mapping[str, Tensor]) -> None:
    for name, tensor in checked_mapping(key, found, wanted).items():
        checked_tensor(f"{key} of {name!r}", tensor, shape=wanted[name].shape, dtype=wanted[name].dtype)
