"""Rewind: selects the state that is restored (model, optimizers) and the iteration that it is from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Rewind:
    """Configuration of rewinding: what is restored, and to which iteration.

    ``Rewind()`` restores everything to initialisation, as in the original lottery-ticket paper. ``Rewind(to=k)``
    restores iteration k. ``Rewind(weights=False)`` is learning-rate rewinding: weights are kept, optimizer state and
    schedule restart.

    Args:
        to: ``"init"``, or the number of iterations trained at the moment to restore.
        weights: restore parameters and buffers, BatchNorm statistics included.
        optimizer: restore optimizer slots: momentum, second moments, step counts.
        schedule: restore learning-rate schedulers, and the settings in ``param_groups`` that they drive; in a pruning
            engine also the position in the training, so that later rounds train from iteration k to the end.

    Raises:
        TypeError: ``to`` is neither ``"init"`` nor an int, or another argument is not a bool.
        ValueError: ``to`` is below 0, or nothing would be rewound.

    Example:
        >>> Rewind().iteration, Rewind(to=500).iteration
        (0, 500)

    References:
        Frankle, Carbin, "The lottery ticket hypothesis", 2019, arXiv 1803.03635.
        Frankle, Dziugaite, Roy, Carbin, "Linear mode connectivity and the lottery ticket hypothesis", 2020,
        arXiv 1912.05671.
        Renda, Frankle, Carbin, "Comparing rewinding and fine-tuning in neural network pruning", 2020, arXiv 2003.02389.
    """

    to: Literal["init"] | int = "init"
    weights: bool = True
    optimizer: bool = True
    schedule: bool = True

    def __post_init__(self) -> None:
        if self.to != "init":
            if type(self.to) is not int:
                raise TypeError(f'Argument to should be "init" or an iteration, but given {self.to!r}')
            if self.to < 0:
                raise ValueError(f"Argument to should be an iteration of at least 0, but given {self.to}")
        for name in ("weights", "optimizer", "schedule"):
            if not isinstance(getattr(self, name), bool):
                raise TypeError(f"Argument {name} should be a bool, but given {getattr(self, name)!r}")
        if not (self.weights or self.optimizer or self.schedule):
            raise ValueError("Rewind of neither weights, optimizer nor schedule would do nothing; give none at all")

    @property
    def iteration(self) -> int:
        """The training iteration whose state is restored."""
        return 0 if self.to == "init" else self.to
