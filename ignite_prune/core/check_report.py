"""CheckReport: where a model's weights differ from its masks, and the likely cause."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass


class SparsityWarning(UserWarning):
    """The sparsity of the weights is not what was asked for, or was not what is published."""


class PrunedWeightsAlive(RuntimeError):
    """Pruned weights are not 0, and the handler was made with ``strict=True``."""


@dataclass(frozen=True)
class CheckReport:
    """What the weights of a model are, compared with the masks; true where every pruned weight is 0.

    Args:
        alive: parameters with pruned weights that are not 0: how many, and how many are pruned.
        pruned: number of entries that the masks prune.
        kept_zeros: number of kept weights that are 0.
        sparsity: of the masks: the pruned fraction of the selected parameters.
        zeros: the fraction of all floating-point parameters of the model that is 0 now, by exact count.
        cause: the likely cause and its remedy; empty where every pruned weight is 0.
        replaced: names of masked parameters that the model does not hold any more.
        owner: name of the class of the handler whose masks they are.
    """

    alive: Mapping[str, tuple[int, int]]
    pruned: int
    kept_zeros: int
    sparsity: float
    zeros: float
    cause: str = ""
    replaced: tuple[str, ...] = ()
    owner: str = "handler"

    def __bool__(self) -> bool:
        return not self.alive and not self.replaced

    def __str__(self) -> str:
        first = f"{listed(self.alive)}. {self.cause}" if self.alive else f"All {self.pruned:,} pruned weights are 0"
        if self.replaced:
            first = ". ".join([first] * bool(self.alive) + [replaced(self.replaced, self.owner)])
        return (
            f"{first}. {self.kept_zeros:,} kept weights are 0 too. The sparsity of the selected parameters is "
            f"{self.sparsity:.4g}; of all floating-point parameters of the model, {self.zeros:.4g} are 0"
        )


def listed(alive: Mapping[str, tuple[int, int]]) -> str:
    """Return a sentence that names parameters whose pruned weights are not 0, without its full stop."""
    shown = [f"{name} ({count:,} of {pruned:,})" for name, (count, pruned) in list(alive.items())[:5]]
    return f"Pruned weights are not 0 in {', '.join(shown)}" + f", and {len(alive) - 5} more" * (len(alive) > 5)


def replaced(names: Sequence[str], owner: str) -> str:
    """Return a text about parameters that the model does not hold any more, without its full stop."""
    shown = ", ".join(names[:5]) + f" and {len(names) - 5} more" * (len(names) > 5)
    return (
        f"The model does not hold the masked parameters {shown} any more, so what it trains in their place is dense, "
        "and the published sparsity is that of the former ones: a layer was exchanged, a weight tied or parametrized, "
        "or a state_dict loaded with assign=True. Do that first, and then make the "
        f"{owner}, with masks= of this one to go on"
    )


def likely_cause(owner: str, given: str, stepped: bool, trained: bool, between: bool = False) -> tuple[str, str]:
    """Return the kind of the likely cause, and a text about it without its full stop.

    Args:
        owner: name of the handler's class.
        given: names of the optimizers that the handler was given; may be empty.
        stepped: whether one of them has stepped since the weights were last 0.
        trained: whether the engine has made an iteration since.
        between: whether they were found before a step of one of the optimizers, which left them at 0 the last time.
    """
    if between:
        return "between", (
            f"They were written between two steps of the optimizers that {owner} follows "
            f"({given or 'those that hold them'}): weights were loaded that are dense or were saved at another time, "
            f"as the best model is, or another optimizer or a wrapper wrote to them. {_TOGETHER}"
        )
    if stepped:
        return "written", (
            f"They were written after a step of the optimizers that {owner} follows "
            f"({given or 'those that hold them'}), which leaves them at 0: by a wrapper (Lookahead, SAM, swapped "
            f"averages), by a second trainer, or because weights were loaded. {_TOGETHER}"
        )
    if trained:
        return "trained", (
            f"None of the optimizers that {owner} was given ({given or 'none'}) has stepped since they were last 0: "
            "something else trains these weights. Give every optimizer that does, the one inside a wrapper too: "
            f"{owner}(model, [first, second])"
        )
    return "loaded", (
        f"No optimizer that {owner} was given has stepped since they were last 0: weights were loaded that are dense "
        f"or were saved at another time, or another optimizer stepped. {_TOGETHER}. Give every optimizer that trains "
        f"the model: {owner}(model, [first, second])"
    )


_TOGETHER = (
    'Save and load masks together with weights: {"model": model, "pruner": pruner}. To take the masks from the zeros '
    "of a loaded model instead, finalize() the handler before loading, and make a new one with "
    "masks=MaskStore.from_nonzero(model)"
)
