"""ActivationSparsity: layers' outputs become sparse while an Ignite engine trains the model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from ignite.engine import Engine, Events
from torch import Tensor, nn
from torch.nn.parallel import DataParallel

from ignite_prune._utils.distributed import mean_over_ranks, world_size
from ignite_prune._utils.recorded_arguments import RecordedArguments
from ignite_prune.activation.after_activation import AfterActivation
from ignite_prune.activation.base import Sparsifier
from ignite_prune.activation.k_winners import KWinners
from ignite_prune.activation.learnt import Learnt
from ignite_prune.activation.output_hook import insertions, name_without_compile
from ignite_prune.core.selection import unwrap
from ignite_prune.handlers.attachment import AnyEvent, Attachment, Progress
from ignite_prune.handlers.base import BaseHandler
from ignite_prune.schedule.base import check_steps


class ActivationSparsity(RecordedArguments, BaseHandler):
    """Applies sparsifiers to layers' outputs, and updates amounts and boosts of all sparsifiers during training.

    The model keeps its class and its ``state_dict``; each layer gets a copy of its sparsifier, whose state is in this
    handler's ``state_dict``. Sparsifiers that are modules of the model are updated too; their state is the model's.

    Args:
        model: bare, DDP-wrapped or compiled.
        layers: a sparsifier for each layer's name or glob over names.
        after_activation: sparsify the output of the activation function that follows a layer, a module or a call in
            ``forward`` (``F.relu``), instead of the layer's own output. It needs layers with a weight, and runs without
            ``torch.compile``; if no such function follows a layer alone, a forward pass raises.
        boost_decay: what the boost of k-winners is multiplied by after each epoch, in (0, 1].

    Attributes:
        sparsifiers: by the name of the layer, or of the sparsifier itself if it is a module of the model.

    Raises:
        TypeError, ValueError: a bad argument, a name that no layer has; the model is unchanged then.

    Example:
        >>> from ignite.engine import create_supervised_trainer
        >>> from ignite_prune.activation import KWinners
        >>> model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> trainer = create_supervised_trainer(model, optimizer, nn.functional.mse_loss)
        >>> handler = ActivationSparsity(model, {"0": KWinners(density=0.25)}, boost_decay=0.9)
        >>> handler.attach(trainer, Events.EPOCH_COMPLETED)
        >>> _ = trainer.run([(torch.randn(5, 8), torch.randn(5, 4))], max_epochs=2)
        >>> trainer.state.activation["0.sparsity"], round(float(handler.sparsifiers["0"].boost), 4)
        (0.75, 1.215)
    """

    KEYS = ("layers", "progress", "epochs")
    VARYING = ("layers",)

    def __init__(
        self,
        model: nn.Module,
        layers: Mapping[str, Sparsifier] | None = None,
        *,
        after_activation: bool = False,
        boost_decay: float = 1.0,
    ) -> None:
        super().__init__()
        root = unwrap(model)
        if isinstance(model, DataParallel):
            raise ValueError("Argument model: nn.DataParallel copies hooks to its threads; use DistributedDataParallel")
        if not isinstance(after_activation, bool):
            raise TypeError(f"Argument after_activation should be a bool, but given {after_activation!r}")
        if isinstance(boost_decay, bool) or not isinstance(boost_decay, (int, float)) or not 0 < boost_decay <= 1:
            raise ValueError(f"Argument boost_decay should be a number in (0, 1], but given {boost_decay!r}")
        self._inserted = insertions(root, {} if layers is None else layers)
        mine = {name_without_compile(name): each for name, each in root.named_modules() if isinstance(each, Sparsifier)}
        if not self._inserted and not mine:
            raise ValueError("Argument layers should name a layer, as the model has no sparsifier of its own")
        self.sparsifiers: dict[str, Sparsifier] = {each.name: each.sparsifier for each in self._inserted} | mine
        self._root = root
        self._after = AfterActivation(model, self._inserted) if after_activation else None
        self._decay = float(boost_decay)
        self._epochs = Progress()
        self._boosts: Attachment | None = None
        self._iterated = False
        self._gradients: list[Any] = []

    # Attaching

    def install(self) -> None:
        """Make the layers' outputs sparse from now on, without an engine; :meth:`detach` ends it.

        Raises:
            ValueError: finalized.
        """
        self._check_usable()
        if self._after is not None:
            self._after.install()
        else:
            for each in self._inserted:
                each.install()
        if world_size() > 1 and not self._gradients:  # DDP reduces those of its model only
            self._gradients = [p.register_hook(mean_over_ranks) for p in self.parameters()]  # type: ignore[no-untyped-call]

    def attach(self, engine: Engine, event: AnyEvent = Events.EPOCH_COMPLETED, name: str = "activation") -> None:
        """Make the layers' outputs sparse, and on ``event`` of ``engine`` set scheduled amounts and publish.

        ``engine.state.activation`` is ``{"<layer>.sparsity": float, "<layer>.entropy": float, "<layer>.dead": float}``,
        and ``"<layer>.boost"`` of k-winners: the amount dropped, the entropy of the duty cycles as a share of its
        largest, the number of units that win at most a hundredth as often as the average.

        Args:
            engine: the trainer.
            event: any event, filtered too; its count is the schedules' step. The boost decays by epochs in any case.
            name: what it is published as.

        Raises:
            TypeError: not an engine, not an event, not a name.
            ValueError: attached already, finalized, an unknown event, a name that is taken.
        """
        self._attach(engine, event, name)

    def _start(self, attachment: Attachment) -> None:
        if self._decay != 1:
            engine, name = attachment.engine, f"{attachment.name}_boost"
            self._boosts = Attachment(engine, Events.EPOCH_COMPLETED, self._epochs, self._decay_boosts, name)
        self._iterated = False
        attachment.add(Events.ITERATION_COMPLETED, self._has_iterated)
        self.install()

    def _stop(self) -> None:
        if self._boosts is not None:
            self._boosts.remove()
            self._boosts = None
        if self._after is not None:
            self._after.remove()
        for each in self._inserted:
            each.remove()
        for handle in self._gradients:
            handle.remove()
        self._gradients = []

    # Amounts

    def step(self, at: float) -> None:
        """Set scheduled amounts to their values at a step, in any loop.

        Raises:
            TypeError, ValueError: not a step, or finalized.
        """
        self._check_usable()
        check_steps(at=at)
        self._set_amounts(at)

    def _set_amounts(self, at: float) -> None:
        for each in self.sparsifiers.values():
            if each.schedule is not None:
                each.sparsity = each.schedule(at)
        self._publish()

    def parameters(self) -> Iterator[nn.Parameter]:
        """Yield the learnt parameters that are not in the model, for an optimizer."""
        for each in self._inserted:
            yield from each.sparsifier.parameters()

    def penalty(self) -> Tensor:
        """Return the sum of the sparsifiers' penalties on learnt amounts, to be added to the loss; 0 if none is
        learnt.
        """
        learnt = [part for each in self.sparsifiers.values() for part in each.modules() if isinstance(part, Learnt)]
        return torch.stack([part.penalty() for part in learnt]).sum() if learnt else torch.zeros(())

    def _update_at(self, step: int, done: Callable[[], None]) -> None:
        self._check_run()
        self._set_amounts(step)
        done()

    def _decay_boosts(self, step: int, done: Callable[[], None]) -> None:
        for each in self.sparsifiers.values():
            if isinstance(each, KWinners):
                each.boost.mul_(self._decay)
        done()
        self._publish()

    def _has_iterated(self, engine: Engine) -> None:
        self._iterated = True

    def _check_run(self) -> None:
        """Raise if a layer has never run: its sparsifier would have no effect."""
        for each in self._inserted:
            if self._iterated and not each.has_run:
                raise ValueError(
                    f"Layer {each.name!r} has run in no forward since this handler was attached: the model does not "
                    "use it, reads its weight alone, or was compiled before"
                )

    def _report(self) -> dict[str, float]:
        values: dict[str, float] = {}
        for name, each in self.sparsifiers.items():
            values[f"{name}.sparsity"] = each.sparsity
            values[f"{name}.entropy"] = each.entropy
            values[f"{name}.dead"] = float(each.dead)
            if isinstance(each, KWinners):
                values[f"{name}.boost"] = float(each.boost)
        return values

    def _describe(self) -> list[str]:
        layers = [f"{name}: {type(each).__name__} at {each.sparsity:.4g}" for name, each in self.sparsifiers.items()]
        return [type(self._root).__name__, *layers]

    # Checkpoints

    def _state(self) -> dict[str, Any]:
        return {
            "layers": {each.name: each.state() for each in self._inserted},
            "epochs": self._epochs.state_dict(),
        }

    def _checked(self, state: Mapping[str, Any]) -> Callable[[], None]:
        epochs, layers = Progress.from_state(state["epochs"]), state["layers"]
        names = [each.name for each in self._inserted]
        if not isinstance(layers, Mapping) or set(layers) != set(names):
            raise ValueError(f"The checkpoint's ActivationSparsity should be of {names}, but it is of {list(layers)}")
        for each in self._inserted:
            each.check_state(layers[each.name])

        def load() -> None:
            for each in self._inserted:
                each.sparsifier.load_state_dict(layers[each.name])
            self._epochs.__dict__.update(vars(epochs))

        return load
