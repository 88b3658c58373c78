"""LotteryTicket: iterative magnitude pruning with rewinding, and every control in one call."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

import torch
from ignite.engine import Engine
from torch import Tensor, nn
from torch.optim import Optimizer

from ignite_prune._utils.arguments import check_callable, check_positive, check_seed, near
from ignite_prune._utils.copies import copy_of
from ignite_prune._utils.sparsity import as_sparsity
from ignite_prune.allocation import Allocation, Uniform
from ignite_prune.core.mask_store import MaskStore
from ignite_prune.core.optimizer_state import put_slots
from ignite_prune.core.selection import select, unwrap
from ignite_prune.handlers.lottery import controls
from ignite_prune.handlers.lottery.create_pruning_engine import create_pruning_engine
from ignite_prune.handlers.lottery.results import Result
from ignite_prune.handlers.lottery.rewind import Rewind
from ignite_prune.handlers.lottery.snapshot import Snapshot
from ignite_prune.handlers.prune_handler import PruneHandler
from ignite_prune.saliency import Magnitude, Saliency
from ignite_prune.schedule import Geometric


class Control(Enum):
    """Models that a ticket is compared with; each is trained as long, with as many weights.

    - TICKET: the ticket itself.
    - REINIT: its masks, with newly drawn weights.
    - SHUFFLED: its initial weights, with masks shuffled within each layer.
    - RANDOM: its initial weights, with masks drawn over all layers of a group together.
    - INVERTED: its initial weights; the masks keep the least salient weights of the dense, trained model, as many in
      each layer. Trains the dense model once more.
    """

    TICKET = "ticket"
    REINIT = "reinit"
    SHUFFLED = "shuffled"
    RANDOM = "random"
    INVERTED = "inverted"


@dataclass(frozen=True, eq=False)
class Trained:
    """The result of a control.

    Args:
        sparsity: at which it was trained.
        metrics: the evaluator's, as plain data.
        model: a copy of the trained model.
    """

    sparsity: float
    metrics: dict[str, Any]
    model: nn.Module


class LotteryTicket:
    """Finds a lottery ticket: rounds of training, pruning a part of the remaining weights, rewinding; then controls.

    Args:
        model: bare, DDP-wrapped or compiled.
        optimizer: one or several.
        trainer: an Ignite engine that trains the model.
        loader: its data.
        epochs: of each round.
        rate: the part of each layer's remaining weights that a round prunes, in [0, 1].
        output: the output layer's weight; None: the last pruned one, if there are several.
        output_rate: its rate; None: half of ``rate``.
        params: rules for what is pruned, see :class:`PruneHandler`.
        exclude: rules for what is not.
        saliency: how entries are ranked.
        allocation: how a sparsity is divided over the layers (except the output layer); ``Global()`` for deep nets.
        rewind: ``Rewind()`` to the beginning, ``Rewind(to=k)``, ``Rewind(weights=False)`` for learning-rate rewinding.
        reset: draws new weights, ``reset(model)``, for ``Control.REINIT``; None: by the modules' own
            ``reset_parameters``, except frozen ones.
        settings: of :func:`create_pruning_engine`: evaluator, data, floor, target, schedulers, epoch_length.

    Attributes:
        pruner, engine: the pruner and its pruning engine, for logs, events and checkpoints (``engine.to_save``).

    Raises:
        TypeError, ValueError: a bad argument; nothing has changed then.

    Example:
        >>> from ignite.engine import create_supervised_trainer
        >>> model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))
        >>> optimizer = torch.optim.Adam(model.parameters())
        >>> trainer = create_supervised_trainer(model, optimizer, nn.functional.mse_loss)
        >>> batches = [(torch.randn(4, 8), torch.randn(4, 4))]
        >>> ticket = LotteryTicket(model, optimizer, trainer, batches, epochs=1, rate=0.5)
        >>> [(result["round"], result["sparsity"]) for result in ticket.run(rounds=2)]
        [(1, 0.0), (2, 0.4166666666666667), (2, 0.6458333333333334)]
        >>> sorted(ticket.controls())
        ['inverted', 'random', 'reinit', 'shuffled', 'ticket']

    References:
        Frankle, Carbin, "The lottery ticket hypothesis", 2019, arXiv 1803.03635.
        Renda, Frankle, Carbin, "Comparing rewinding and fine-tuning in neural network pruning", 2020, arXiv 2003.02389.
        Su et al., "Sanity-checking pruning methods: random tickets can win the jackpot", 2020, arXiv 2009.11094.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer | Sequence[Optimizer],
        trainer: Engine,
        loader: Iterable[Any],
        *,
        epochs: int,
        rate: float = 0.2,
        output: str | None = None,
        output_rate: float | None = None,
        params: Any = None,
        exclude: Any = (),
        saliency: Saliency | Callable[[str, Tensor], Tensor] = Magnitude(),
        allocation: Allocation = Uniform(),
        rewind: Rewind = Rewind(),
        reset: Callable[[nn.Module], None] | None = None,
        **settings: Any,
    ) -> None:
        check_callable("reset", reset)
        if not isinstance(rewind, Rewind):
            raise TypeError(f"Argument rewind should be a Rewind, but given {rewind!r}")
        self._model, self._reset, self.rewind = unwrap(model), reset, rewind
        groups = rates(model, rate, output=output, output_rate=output_rate, params=params, exclude=exclude)
        self.pruner = PruneHandler(model, optimizer, groups, saliency=saliency, allocation=allocation)
        self.engine = create_pruning_engine(
            trainer, self.pruner, loader, epochs=epochs, rewind=rewind, fine_tune=epochs, **settings
        )

    @property
    def masks(self) -> MaskStore:
        """The ticket's masks."""
        return self.pruner.masks

    def run(self, rounds: int) -> list[Result]:
        """Prune ``rounds`` times, train the ticket, and return every training's result.

        A run that was interrupted continues where it was; a run to more rounds continues from the last one.

        Raises:
            TypeError, ValueError: ``rounds`` is not an int, or below the completed rounds; or the ticket is finalized.
        """
        check_positive("rounds", rounds, whole=True)
        done = self.engine.state.epoch
        if rounds < done:
            raise ValueError(f"Argument rounds: {done} are done already, {rounds} are fewer; make a new LotteryTicket")
        if rounds > done:  # else Ignite would start a new run, from the trained ticket
            self.engine.run(max_epochs=rounds)
        return self.engine.results

    def finalize(self) -> None:
        """Finalize the pruner: a plain model with its zeros, no hook, no handler. Nothing can be run afterwards.

        Raises:
            ValueError: finalized before.
        """
        self.engine.finalize()

    def __repr__(self) -> str:
        return f"LotteryTicket({self.engine})"

    def controls(self, *which: Control, seed: int = 0) -> dict[str, Trained]:
        """Train the ticket and its controls, each from its beginning, and restore everything afterwards.

        Args:
            which: controls; none: all.
            seed: of drawn masks and weights.

        Raises:
            TypeError, ValueError: as :meth:`train`.
        """
        trained = [(control, self.train(control, seed=seed)) for control in which or Control]
        return {control.value: each for control, each in trained}

    def train(self, control: Control = Control.TICKET, *, seed: int = 0, order: int | None = None) -> Trained:
        """Train one of the controls from its beginning, and restore everything except the trainer's counters.

        :func:`ignite_prune.barrier` measures between two trainings of one control with different orders.

        Args:
            control: which.
            seed: of drawn masks and weights.
            order: seed of torch's random numbers during training (the order of the data, dropout); None: not seeded.

        Raises:
            TypeError: not a control, not a seed.
            ValueError: no snapshot to start from (not run yet, or ``Rewind(weights=False)``), in the middle of a round,
                or finalized.
        """
        if not isinstance(control, Control):
            raise TypeError(f"Argument control should be a handlers.Control, as Control.REINIT, but given {control!r}")
        check_seed(seed)
        if order is not None:
            check_seed(order)
        beginning = self.engine.snapshot
        if beginning is None or not beginning.taken or not self.rewind.weights:
            raise ValueError(
                "A control starts from the weights that the ticket was rewound to: run() first, with rewound weights"
            )
        now = Snapshot(Rewind(), self._model, self.pruner.pruning.optimizers, beginning.schedulers)
        now.take()
        pruner = copy.deepcopy(self.pruner.state_dict())
        try:
            self._prepare(control, seed, order)
            metrics = self._trained(order)
            return Trained(self.pruner.sparsity, metrics, copy_of(self._model))
        finally:
            self.pruner.load_state_dict(pruner)
            now.restore(self.masks)

    def _prepare(self, control: Control, seed: int, order: int | None) -> None:
        """Set masks and weights to the control's beginning."""
        snapshot, groups = self.engine.snapshot, self.pruner.param_groups
        assert snapshot is not None
        masks: dict[str, Tensor] = {}
        if control is Control.SHUFFLED:
            masks = controls.shuffled(groups, self.masks, seed)
        elif control is Control.RANDOM:
            masks = controls.random_masks(groups, self.masks, seed)
        elif control is Control.INVERTED:
            masks = self._of_least_saliency(snapshot, order)
        self.masks.update(masks)
        snapshot.restore(self.masks)
        if control is Control.REINIT:
            self._redraw(seed)

    def _of_least_saliency(self, snapshot: Snapshot, order: int | None) -> dict[str, Tensor]:
        ticket = MaskStore(dict(self.masks.parameters), dict(self.masks))
        self.pruner.restore()
        snapshot.restore()
        self._trained(order)
        return controls.inverted(self.pruner.param_groups, ticket, self.pruner.scores())

    def _redraw(self, seed: int) -> None:
        controls.reinitialise(self._model, seed, self._reset)
        self.masks.apply_()
        for optimizer in self.pruner.pruning.optimizers:
            put_slots(optimizer, {}, {})  # they belong to other weights

    def _trained(self, order: int | None) -> dict[str, Any]:
        if order is None:
            return self.engine.train()
        with torch.random.fork_rng():
            torch.manual_seed(order)
            return self.engine.train()


def rates(
    model: nn.Module,
    rate: float = 0.2,
    *,
    output: str | None = None,
    output_rate: float | None = None,
    params: Any = None,
    exclude: Any = (),
) -> list[dict[str, Any]]:
    """Return groups for a ``PruneHandler`` that prune the output layer at half the rate of the others.

    Args:
        model: the model.
        rate: the part of the remaining weights that a round prunes.
        output: the output layer's weight; None: the last of several.
        output_rate: its rate; None: half of ``rate``.
        params: rules for what is pruned.
        exclude: rules for what is not.

    Raises:
        TypeError, ValueError: a bad rule or rate.

    Example:
        >>> groups = rates(nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2)), rate=0.2)
        >>> [(group["params"], group["schedule"].rate) for group in groups]
        [(['0.weight'], 0.2), (['1.weight'], 0.1)]
    """
    rate = as_sparsity(rate, "rate")
    output_rate = rate / 2 if output_rate is None else as_sparsity(output_rate, "output_rate")
    names = list(select(model, params, exclude))
    if output is not None and output not in names:
        raise ValueError(f"Argument output: {output!r} is not pruned; {near(output, names)}")
    last = output if output is not None or len(names) == 1 else names[-1]
    groups = [([name for name in names if name != last], rate), ([name for name in names if name == last], output_rate)]
    return [{"params": each, "schedule": Geometric(speed, every=1)} for each, speed in groups if each]
