"""What PruneHandler's sisters share: masks over a model's parameters, attached to an engine, kept in checkpoints."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

from ignite.engine import Engine
from torch import Tensor, nn
from torch.optim import LBFGS, Optimizer

from ignite_prune import pattern as patterns
from ignite_prune import saliency as saliencies
from ignite_prune._utils.arguments import near
from ignite_prune._utils.distributed import world_size
from ignite_prune.allocation import Allocation
from ignite_prune.core.mask_store import MaskStore
from ignite_prune.core.optimizer_state import as_optimizers, check_held
from ignite_prune.core.selection import named_parameters, unwrap
from ignite_prune.handlers.attached import Attached, check_same
from ignite_prune.handlers.attachment import AnyEvent, Attachment, Progress
from ignite_prune.handlers.events import PruneEvents, fire, register
from ignite_prune.saliency import NonFiniteSaliency
from ignite_prune.update.agreement import agreed
from ignite_prune.update.param_groups import ParamGroup, build
from ignite_prune.update.plan import UpdatePlan
from ignite_prune.update.scores import all_finite

_SETTINGS = ("params", "sparsity", "allocation", "exclude")


class _Fixed(dict[str, Any]):
    """A group whose settings were decided on when its handler was made."""

    def __setitem__(self, key: str, value: Any) -> None:
        raise ValueError(
            f"Setting {key!r} of this handler's groups is fixed, so no ParamScheduler can drive it; what decays is "
            "told when it is made: drop_fraction=regrow.CosineDrop(...)"
        )


class Sister(Attached, ABC):
    """A handler that owns masks over some of a model's parameters.

    Args:
        model: bare, DDP-wrapped or compiled.
        optimizer: the optimizer(s) that train it.
        params: as of :class:`~ignite_prune.PruneHandler`; group dicts may have a ``sparsity``, ``allocation`` and
            ``exclude`` of their own.
        sparsity: of every group that has none of its own; None where masks are given.
        allocation: how it is divided over a group's parameters.
        exclude: rules for what to leave alone.
        pattern: which entries go together.
    """

    MASKS_UPDATED = PruneEvents.MASKS_UPDATED

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer | Sequence[Optimizer],
        params: Any,
        sparsity: float | None,
        allocation: Allocation,
        exclude: Any,
        pattern: patterns.Pattern = patterns.Unstructured(),
    ) -> None:
        self._model, self._optimizers = unwrap(model), as_optimizers(optimizer)
        self._check_optimizers()
        self._groups = _groups(self._model, params, sparsity, allocation, exclude, pattern)
        everything = named_parameters(self._model)
        self._parameters = {name: everything[name] for group in self._groups for name in group["params"]}
        check_held(self._parameters, self._optimizers)
        self._names = {parameter: name for name, parameter in self._parameters.items()}
        self._masks = MaskStore(self._parameters)
        self._progress = Progress()

    def _check_optimizers(self) -> None:
        if not self._optimizers:
            raise ValueError(f"{type(self).__name__} needs the optimizer that trains the model, but given none")
        for each in self._optimizers:
            if isinstance(each, LBFGS):
                raise ValueError(
                    "Argument optimizer: LBFGS keeps one history over all weights at once, in which no single weight "
                    "can begin anew; take another optimizer"
                )

    def _mine(self, optimizer: Optimizer) -> list[tuple[str, Tensor]]:
        """The optimizer's parameters of now that there are masks over, with their names."""
        held = (parameter for group in optimizer.param_groups for parameter in group["params"])
        return [(self._names[parameter], parameter) for parameter in held if parameter in self._names]

    def _agreed(self, plan: Callable[[], dict[str, Tensor]], store: MaskStore | None = None) -> dict[str, Tensor]:
        """Return the planned masks, on every rank those of rank 0.

        Args:
            plan: this rank's; a parameter that it leaves out keeps its mask.
            store: of the masks so far; None: the handler's own.

        Raises:
            ValueError: it failed on another rank.
        """
        store = self._masks if store is None else store
        return plan() if world_size() == 1 else {**store, **agreed(lambda: UpdatePlan(plan()), store).masks}

    # What it knows

    @property
    def masks(self) -> MaskStore:
        """The masks, a mapping ``{name: bool tensor}``, True = kept."""
        return self._masks

    @property
    def sparsity(self) -> float:
        """The pruned fraction of the selected parameters, exact count / exact count."""
        return self._masks.sparsity

    @property
    def param_groups(self) -> list[ParamGroup]:
        """The groups, each with its ``"params"``, ``"sparsity"`` and ``"allocation"``; they cannot be changed."""
        return [cast(ParamGroup, _Fixed(group)) for group in self._groups]

    def scores(self) -> dict[str, Tensor]:
        """Return every selected parameter's magnitude as of now, by which connections stay."""
        return {name: parameter.detach().abs() for name, parameter in self._parameters.items()}

    def _magnitudes(self, name: str) -> Tensor:
        """Return a parameter's magnitudes, or raise where something would be chosen by NaN or infinity."""
        magnitudes = self._parameters[name].detach().abs()
        if not all_finite(magnitudes):
            raise NonFiniteSaliency(f"Parameter {name!r} has values that are NaN or infinite; nothing was chosen")
        return magnitudes

    # Attaching

    @abstractmethod
    def _event(self) -> AnyEvent:
        """The event that an update is due on."""

    @abstractmethod
    def _install(self) -> None:
        """Put the hooks on the model and the optimizers, where they are not, and make the masks hold."""

    @abstractmethod
    def _remove(self) -> None:
        """Take every hook off."""

    def _listen(self, attachment: Attachment) -> None:
        """Add further handlers to the engine."""

    @abstractmethod
    def _update(self, step: int, done: Callable[[], None]) -> None:
        """Update the masks and call ``done``, or raise and change nothing."""

    def attach(self, engine: Engine, name: str = "sparsity") -> None:
        """Train sparsely on ``engine`` from now on, and publish the sparsity in ``engine.state``.

        ``engine.state.sparsity`` is ``{"global": float, "<parameter>": float}``, ``engine.state.metrics["sparsity"]``
        the global one alone.

        Args:
            engine: the trainer.
            name: what the sparsity is published as; give each of several handlers on one engine its own.

        Raises:
            TypeError: not an engine, not a name.
            ValueError: attached already, finished, a name that is taken, or parameters of the model that have been
                replaced.
        """
        self._check_attachable(engine)
        if not isinstance(name, str):
            raise TypeError(f"{type(self).__name__} knows when it is due and takes no event, but given {name!r:.60}")
        self._check_parameters()
        register(engine)
        self._attachment = Attachment(engine, self._event(), self._progress, self._update_at, name)
        self._listen(self._attachment)
        self._install()
        self._publish()

    def detach(self) -> None:
        """Take every hook and handler off; weights stay as they are. It may be attached again."""
        self._let_go()
        self._remove()

    def finalize(self) -> None:
        """Bake the zeros in and let go: a plain model, no hook, no handler. This object is finished then.

        Raises:
            ValueError: finished already.
        """
        self._check_usable()
        self._masks.apply_()
        self.detach()
        self._finished = True

    def _update_at(self, step: int, done: Callable[[], None]) -> None:
        self._check_parameters()
        self._update(step, done)
        self._publish()
        if self._attachment is not None:
            fire(self._attachment.engine, PruneEvents.MASKS_UPDATED)

    def _publish(self) -> None:
        if self._attachment is not None:
            state = self._attachment.engine.state
            setattr(state, self._attachment.name, {"global": self.sparsity, **self._masks.sparsities()})
            state.metrics[self._attachment.name] = self.sparsity

    def _check_parameters(self) -> None:
        check_same(self._model, self._parameters, type(self).__name__)

    # Checkpoints

    @abstractmethod
    def _state(self) -> dict[str, Any]:
        """Return what else is kept in a checkpoint, as plain data."""

    @abstractmethod
    def _checked(self, state: Mapping[str, Any]) -> Callable[[], None]:
        """Return what takes a state over, or raise ValueError and change nothing."""

    def state_dict(self) -> dict[str, Any]:
        """Return masks (one bit an entry), progress and all that the next updates hang on, as plain data.

        It holds only what ``torch.load(weights_only=True)`` takes.
        """
        kind, masks = type(self).__name__, self._masks.state_dict()
        return {"version": 1, "kind": kind, "masks": masks, "progress": self._progress.state_dict(), **self._state()}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Take over a checkpoint's masks and progress, and keep them from now on.

        Everything is checked first; if it is refused, nothing has changed.

        Raises:
            TypeError: not a state_dict of such a handler.
            ValueError: of another handler, of other parameters, of a later version, damaged, or this one is finished.
        """
        self._check_usable()
        self._check_parameters()
        kind = type(self).__name__
        if not isinstance(state_dict, Mapping) or "version" not in state_dict:
            raise TypeError(f"Argument state_dict should be a {kind}'s, with a 'version', but given {type(state_dict)}")
        missing = {"kind", "masks", "progress", *self._state()} - set(state_dict)
        if state_dict["version"] != 1 or state_dict.get("kind") != kind or missing:
            raise ValueError(
                f"The checkpoint is of {state_dict.get('kind')!r:.40} in version {state_dict['version']!r:.40}, this "
                f"{kind} reads its own in version 1{f'; it lacks {sorted(missing)}' if missing else ''}"
            )
        masks, progress = self._masks.unpacked(state_dict["masks"]), Progress.from_state(state_dict["progress"])
        take = self._checked(state_dict)
        self._masks.update(masks, copy=False)
        self._progress.__dict__.update(vars(progress))
        take()
        self._install()
        self._publish()


def _groups(
    model: nn.Module, params: Any, sparsity: float | None, allocation: Allocation, exclude: Any, pattern: Any
) -> list[ParamGroup]:
    given = [params] if isinstance(params, Mapping) and "params" in params else params
    inner = given.values() if isinstance(given, Mapping) else given
    for group in inner if isinstance(inner, Sequence) or isinstance(given, Mapping) else ():
        for key in group if isinstance(group, Mapping) else ():
            if key not in _SETTINGS:
                raise ValueError(f"Unknown setting {key!r} in a parameter group; {near(str(key), list(_SETTINGS))}")
    fixed: dict[str, Tensor | Any] = {
        "saliency": saliencies.Magnitude(),
        "schedule": None,
        "pattern": pattern,
        "keep_dense": False,
        "generator": None,
        "repair": None,
        "structure": None,
        "target": None,
    }
    return build(model, given, sparsity=sparsity, allocation=allocation, exclude=exclude, **fixed)
