"""MaskedHandler: base class of handlers that have masks from construction on."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, cast

from ignite.engine import Engine, Events
from torch import Tensor, nn
from torch.optim import LBFGS, Optimizer

from ignite_prune import pattern as patterns
from ignite_prune import saliency as saliencies
from ignite_prune._utils.arguments import check_is, near
from ignite_prune._utils.distributed import raise_together, world_size
from ignite_prune._utils.recorded_arguments import RecordedArguments
from ignite_prune.allocation import Allocation
from ignite_prune.core.claims import check_same
from ignite_prune.core.mask_store import MaskStore
from ignite_prune.core.optimizers import as_optimizers, check_held
from ignite_prune.core.selection import named_parameters, unwrap
from ignite_prune.handlers.attachment import AnyEvent, Attachment
from ignite_prune.handlers.describe import counted
from ignite_prune.handlers.events import PruneEvents, fire
from ignite_prune.handlers.run_warning import STATIC
from ignite_prune.handlers.target_handler import TargetHandler
from ignite_prune.saliency import NonFiniteSaliency
from ignite_prune.update.agreement import NOT_ATTACHED, NOT_MADE, agreed, announced, check_same_parameters
from ignite_prune.update.param_group import ParamGroup
from ignite_prune.update.param_groups import build
from ignite_prune.update.plan import UpdatePlan
from ignite_prune.update.scores import all_finite

_SETTINGS = ("params", "sparsity", "allocation", "exclude")


class _Fixed(dict[str, Any]):
    """A group whose settings cannot be changed after its handler was made."""

    def __setitem__(self, key: str, value: Any) -> None:
        raise ValueError(
            f"Setting {key!r} of this handler's groups is fixed, so no ParamScheduler can drive it; a fraction that "
            "decays is an argument of the constructor: drop_fraction=regrow.CosineDrop(...)"
        )


class MaskedHandler(RecordedArguments, TargetHandler):
    """Masks some of a model's parameters from its construction on; it knows the event of its updates.

    Args:
        model: bare, DDP-wrapped or compiled.
        optimizer: the optimizer(s) that train it.
        params: as of :class:`~ignite_prune.PruneHandler`; group dicts may have a ``sparsity``, ``allocation`` and
            ``exclude`` of their own.
        sparsity: of every group without one; None if masks are given.
        allocation: how it is divided over a group's parameters.
        exclude: rules for what to leave alone.
        shared: let other handlers mask the same parameters.
        pattern: which entries go together.
    """

    MASKS_UPDATED = PruneEvents.MASKS_UPDATED
    KEYS: ClassVar[tuple[str, ...]] = ("kind", "masks", "progress")
    MAIN = "global"

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer | Sequence[Optimizer],
        params: Any,
        sparsity: float | None,
        allocation: Allocation,
        exclude: Any,
        shared: bool,
        pattern: patterns.Pattern = patterns.Unstructured(),
    ) -> None:
        super().__init__()
        check_is("shared", shared, bool)
        self._model, self._optimizers, self._shared = unwrap(model), as_optimizers(optimizer), shared
        self._check_optimizers()
        self._groups = _groups(self._model, params, sparsity, allocation, exclude, pattern)
        everything = named_parameters(self._model)
        self._masks = MaskStore({name: everything[name] for group in self._groups for name in group["params"]})
        check_held(self._masks.parameters, self._optimizers)
        check_same_parameters(self._masks, refused=NOT_MADE)
        self._check_free()

    def _check_optimizers(self) -> None:
        if not self._optimizers:
            raise ValueError(f"{type(self).__name__} needs the optimizer that trains the model, but given none")
        for each in self._optimizers:
            if isinstance(each, LBFGS):
                raise ValueError(
                    "Argument optimizer: LBFGS keeps one history of all weights together, in which no single weight "
                    "can start again from 0; take another optimizer"
                )

    def _mine(self, optimizer: Optimizer) -> list[tuple[str, Tensor]]:
        """Return the masked parameters that the optimizer has now, with their names."""
        held = (parameter for group in optimizer.param_groups for parameter in group["params"])
        return [(self._masks.name_of[parameter], parameter) for parameter in held if parameter in self._masks.name_of]

    def _agreed(self, plan: Callable[[], dict[str, Tensor]], store: MaskStore | None = None) -> dict[str, Tensor]:
        """Return rank 0's planned masks, on every rank.

        Args:
            plan: plans this rank's; a parameter that is left out keeps its mask.
            store: the masks so far; None: the handler's own.

        Raises:
            ValueError: planning failed on another rank.
        """
        store = self._masks if store is None else store
        return plan() if world_size() == 1 else {**store, **agreed(lambda: UpdatePlan(plan()), store).masks}

    @property
    def masks(self) -> MaskStore:
        """The masks, a mapping ``{name: bool tensor}``, True = kept."""
        return self._masks

    @property
    def sparsity(self) -> float:
        """The pruned fraction of the selected parameters, exact count / exact count."""
        return self._masks.sparsity

    @property
    def reached(self) -> bool:
        """Whether the target is met: always, as the masks have their sparsity from the beginning."""
        return True

    def _met(self) -> list[float | None]:
        return [self.sparsity if group["sparsity"] is None else group["sparsity"] for group in self._groups]

    @property
    def param_groups(self) -> list[ParamGroup]:
        """The groups, each with its ``"params"``, ``"sparsity"`` and ``"allocation"``; they cannot be changed."""
        return [cast(ParamGroup, _Fixed(group)) for group in self._groups]

    @property
    def model(self) -> nn.Module:
        """The model, unwrapped."""
        return self._model

    @property
    def model_sparsity(self) -> float:
        """The fraction of all floating-point parameters of the model that is pruned, biases and norms included."""
        return self._masks.sparsity_of(self._model)

    def scores(self) -> dict[str, Tensor]:
        """Return every selected parameter's magnitude; the largest connections stay."""
        return {name: parameter.detach().abs() for name, parameter in self._masks.parameters.items()}

    def _magnitudes(self, name: str) -> Tensor:
        """Return a parameter's magnitudes, or raise if there are NaN or infinities among them."""
        magnitudes = self._masks.parameters[name].detach().abs()
        if not all_finite(magnitudes):
            raise NonFiniteSaliency(f"Parameter {name!r} has values that are NaN or infinite; nothing was chosen")
        return magnitudes

    # Attaching

    @abstractmethod
    def _event(self) -> AnyEvent:
        """Return the event of the updates."""

    @abstractmethod
    def _install(self) -> None:
        """Install the hooks on the model and the optimizers, if they are not, and mask what the masks prune."""

    @abstractmethod
    def _update(self, step: int, done: Callable[[], None]) -> None:
        """Update the masks and call ``done``, or raise and change nothing."""

    def _listen(self, attachment: Attachment) -> None:
        """Add further handlers to the engine."""

    def attach(
        self, engine: Engine, event: AnyEvent | str = Events.ITERATION_COMPLETED, name: str = "sparsity"
    ) -> None:
        """Update the masks while ``engine`` trains, and publish the sparsity in ``engine.state``.

        ``engine.state.sparsity`` is ``{"global": float, "model": float, "<parameter>": float}``, of the selected
        parameters, of the whole model and of each; ``engine.state.metrics["sparsity"]`` is the global one alone.

        Args:
            engine: the trainer.
            event: this handler's own, on which it decides whether an update is due; no other is accepted. A name may
                be given in its place.
            name: the attribute of ``engine.state``; give each of several handlers on one engine its own.

        Raises:
            TypeError: not an engine, another event, not a name.
            ValueError: attached already, finalized, a name that is taken, another handler that masks the same
                parameters, or parameters of the model that have been replaced.
        """
        if isinstance(event, str):
            name = event
        elif event is not Events.ITERATION_COMPLETED:
            error = TypeError(
                f"{type(self).__name__} updates on ITERATION_COMPLETED when it is due, and takes no event, but given "
                f"{event!r:.60}"
            )
            self._check_ranks(error, "")
        self._attach(engine, self._event(), name)

    def _start(self, attachment: Attachment) -> None:
        self._listen(attachment)
        self._hold()

    def _hold(self) -> None:
        """Mask the parameters from now on."""
        self._own()
        self._install()

    def _check_ranks(self, error: Exception | None, where: str) -> None:
        raise_together(error, NOT_ATTACHED)
        if world_size() > 1:
            from ignite_prune.update.rank_settings import settings_of  # slow to import

            own = {f"setting {number}:": part for number, part in enumerate(self._describe())}
            settings = {**settings_of(self._groups, {}), **own, "a handler": where}
            check_same_parameters(self._masks, settings, NOT_ATTACHED)

    def _trained_by(self) -> list[Optimizer]:
        return self._optimizers

    def _check_final(self) -> None:
        if not self._progress.done and self._progress.since is None:
            self._check.tell("unused", STATIC.format(who=type(self).__name__))

    def _masked(self) -> Mapping[str, nn.Parameter]:
        return self._masks.parameters

    def _bake(self) -> None:
        self._masks.apply_()

    def _update_at(self, step: int, done: Callable[[], None]) -> None:
        with announced():
            self._check_parameters()
            self._verify()
        self._update(step, done)
        self._publish()
        if self._attachment is not None:
            fire(self._attachment.engine, PruneEvents.MASKS_UPDATED)
            self._announce()

    def _report(self) -> dict[str, float]:
        return self._masks.published(self._model)

    def _check_parameters(self) -> None:
        check_same(self._model, self._masks.parameters, type(self).__name__)

    def _describe(self) -> list[str]:
        count = counted(len(self._masks.parameters), "parameter")
        return [type(self._model).__name__, count, f"sparsity {self.sparsity:.4g}"]

    # Checkpoints

    def _state(self) -> dict[str, Any]:
        return {"kind": type(self).__name__, "masks": self._masks.state_dict()}

    def _checked(self, state: Mapping[str, Any]) -> Callable[[], None]:
        self._check_free()
        replaced = self._masks.replaced(self._masks.unpacked(state["masks"]))

        def load() -> None:
            self._masks.put(replaced)
            self._hold()

        return load


def _groups(
    model: nn.Module, params: Any, sparsity: float | None, allocation: Allocation, exclude: Any, pattern: Any
) -> list[ParamGroup]:
    given = [params] if isinstance(params, Mapping) and "params" in params else params
    inner = given.values() if isinstance(given, Mapping) else given
    for group in inner if isinstance(inner, Sequence) or isinstance(given, Mapping) else ():
        for key in group if isinstance(group, Mapping) else ():
            if key not in _SETTINGS:
                raise ValueError(f"Unknown setting {key!r} in a parameter group; {near(str(key), list(_SETTINGS))}")
    settings: dict[str, Any] = {"sparsity": sparsity, "allocation": allocation, "exclude": exclude, "pattern": pattern}
    return build(model, given, saliency=saliencies.Magnitude(), **settings)
