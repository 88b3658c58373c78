"""ActivationSparsity: layers' outputs become sparse while an Ignite engine trains the model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from ignite.engine import Engine, Events
from torch import Tensor, nn
from torch.nn.parallel import DataParallel

from ignite_prune._utils.distributed import all_reduce, world_size
from ignite_prune.activation.after_activation import AfterActivation
from ignite_prune.activation.base import Sparsifier
from ignite_prune.activation.k_winners import KWinners
from ignite_prune.activation.learnt import Learnt
from ignite_prune.activation.output_hook import insertions, plain
from ignite_prune.core.selection import unwrap
from ignite_prune.handlers.attachment import AnyEvent, Attachment, Progress
from ignite_prune.schedule.base import check_steps


class ActivationSparsity:
    """Puts sparsifiers on layers' outputs by name, and drives their amounts and boosts, and those in the model.

    The model keeps its class and its ``state_dict``; each layer gets a sparsifier of its own, a copy, whose state is in
    this handler's ``state_dict``. Sparsifiers that are modules of the model are driven too; their state is the model's.

    Args:
        model: bare, DDP-wrapped or compiled.
        layers: a sparsifier for each layer's name or glob over names.
        after_activation: sparsify behind the activation function that follows a layer, a module or a call in
            ``forward`` (``F.relu``), instead of the layer's own output. It wants layers with a weight, and runs without
            ``torch.compile``; where no such function follows a layer alone, a forward pass raises.
        boost_decay: what the boost of k-winners is multiplied by after each epoch, in (0, 1].

    Attributes:
        sparsifiers: by the layer's name, or by the module's where the model has it itself.

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

    def __init__(
        self,
        model: nn.Module,
        layers: Mapping[str, Sparsifier] | None = None,
        *,
        after_activation: bool = False,
        boost_decay: float = 1.0,
    ) -> None:
        root = unwrap(model)
        if isinstance(model, DataParallel):
            raise ValueError("Argument model: nn.DataParallel copies hooks to its threads; use DistributedDataParallel")
        if not isinstance(after_activation, bool):
            raise TypeError(f"Argument after_activation should be a bool, but given {after_activation!r}")
        if isinstance(boost_decay, bool) or not isinstance(boost_decay, (int, float)) or not 0 < boost_decay <= 1:
            raise ValueError(f"Argument boost_decay should be a number in (0, 1], but given {boost_decay!r}")
        self._inserted = insertions(root, {} if layers is None else layers)
        mine = {plain(name): each for name, each in root.named_modules() if isinstance(each, Sparsifier)}
        if not self._inserted and not mine:
            raise ValueError("Argument layers should name a layer, as the model has no sparsifier of its own")
        self.sparsifiers: dict[str, Sparsifier] = {each.name: each.sparsifier for each in self._inserted} | mine
        self._behind = AfterActivation(model, self._inserted) if after_activation else None
        self._decay = float(boost_decay)
        self._progress, self._epochs = Progress(), Progress()
        self._attachments: list[Attachment] = []
        self._iterated = False
        self._gradients: list[Any] = []

    # Attaching

    def install(self) -> None:
        """Make the layers' outputs sparse from now on, without an engine; :meth:`detach` ends it."""
        if self._behind is not None:
            self._behind.install()
        else:
            for each in self._inserted:
                each.install()
        if world_size() > 1 and not self._gradients:  # DDP reduces the gradients of its model's alone
            self._gradients = [p.register_hook(_mean) for p in self.parameters()]  # type: ignore[no-untyped-call]

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
            ValueError: attached already, an unknown event, a name that is taken.
        """
        if not isinstance(engine, Engine):
            raise TypeError(f"Argument engine should be an ignite.engine.Engine, but given {type(engine)}")
        if self._attachments:
            raise ValueError("This ActivationSparsity is attached already; detach() it first")
        attachments = [Attachment(engine, event, self._progress, self._update, name)]
        if self._decay != 1:
            try:
                epochs = Events.EPOCH_COMPLETED
                attachments.append(Attachment(engine, epochs, self._epochs, self._boost_less, f"{name}_boost"))
            except Exception:
                attachments[0].remove()
                raise
        self._attachments = attachments
        self._iterated = False
        attachments[0].add(Events.ITERATION_COMPLETED, self._has_iterated)
        self.install()
        self._publish()

    def detach(self) -> None:
        """Take every hook and handler off; outputs are as the layers give them. It may be attached again."""
        for attachment in self._attachments:
            attachment.remove()
        self._attachments = []
        if self._behind is not None:
            self._behind.remove()
        for each in self._inserted:
            each.remove()
        for handle in self._gradients:
            handle.remove()
        self._gradients = []

    # Amounts

    def step(self, at: float) -> None:
        """Set scheduled amounts to what they are at a step, in any loop.

        Raises:
            TypeError, ValueError: not a step.
        """
        check_steps(at=at)
        for each in self.sparsifiers.values():
            if each.schedule is not None:
                each.sparsity = each.schedule(at)
        self._publish()

    def parameters(self) -> Iterator[nn.Parameter]:
        """Yield what is learnt and is not in the model, for an optimizer."""
        for each in self._inserted:
            yield from each.sparsifier.parameters()

    def penalty(self) -> Tensor:
        """Return the sum of learnt amounts' penalties, to be added to the loss; 0 where nothing is learnt."""
        learnt = [part for each in self.sparsifiers.values() for part in each.modules() if isinstance(part, Learnt)]
        return torch.stack([part.penalty() for part in learnt]).sum() if learnt else torch.zeros(())

    def _update(self, step: int, done: Callable[[], None]) -> None:
        self._check_run()
        self.step(step)
        done()

    def _boost_less(self, step: int, done: Callable[[], None]) -> None:
        for each in self.sparsifiers.values():
            if isinstance(each, KWinners):
                each.boost.mul_(self._decay)
        done()
        self._publish()

    def _has_iterated(self) -> None:
        self._iterated = True

    def _check_run(self) -> None:
        """Raise where a layer's output never came by: silence would look like sparsity."""
        for each in self._inserted:
            if self._iterated and not each.has_run:
                raise ValueError(
                    f"Layer {each.name!r} has run in no forward since this handler was attached: the model does not "
                    "use it, reads its weight alone, or was compiled before"
                )

    def _publish(self) -> None:
        if not self._attachments:
            return
        attachment, values = self._attachments[0], {}
        for name, each in self.sparsifiers.items():
            values[f"{name}.sparsity"] = each.sparsity
            values[f"{name}.entropy"] = each.entropy
            values[f"{name}.dead"] = float(each.dead)
            if isinstance(each, KWinners):
                values[f"{name}.boost"] = float(each.boost)
        setattr(attachment.engine.state, attachment.name, values)

    # Checkpoints

    def state_dict(self) -> dict[str, Any]:
        """Return the inserted sparsifiers' state and what was done when, as plain data."""
        return {
            "version": 1,
            "layers": {each.name: each.state() for each in self._inserted},
            "progress": self._progress.state_dict(),
            "epochs": self._epochs.state_dict(),
        }

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Take over a checkpoint's state; everything is checked first, and nothing has changed if it is refused.

        Raises:
            TypeError: not a state_dict of an ActivationSparsity.
            ValueError: of other layers or sparsifiers, of a later version, damaged.
        """
        if not isinstance(state_dict, Mapping) or not {"version", "layers", "progress", "epochs"} <= set(state_dict):
            raise TypeError(
                "Argument state_dict should be an ActivationSparsity's, with version, layers, progress and epochs"
            )
        if state_dict["version"] != 1:
            raise ValueError(
                f"The checkpoint's ActivationSparsity is of version {state_dict['version']!r}; this reads 1"
            )
        progress, epochs = (Progress.from_state(state_dict[key]) for key in ("progress", "epochs"))
        layers = state_dict["layers"]
        names = [each.name for each in self._inserted]
        if not isinstance(layers, Mapping) or set(layers) != set(names):
            raise ValueError(f"The checkpoint's ActivationSparsity should be of {names}, but it is of {list(layers)}")
        for each in self._inserted:
            each.check_state(layers[each.name])
        for each in self._inserted:
            each.sparsifier.load_state_dict(layers[each.name])
        self._progress.__dict__.update(vars(progress))
        self._epochs.__dict__.update(vars(epochs))
        self._publish()


def _mean(gradient: Tensor) -> Tensor:
    return all_reduce(gradient) / world_size()
