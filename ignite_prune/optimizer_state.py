"""The only file that knows optimizers' slots: which hold a value per weight, and what a step does to a zero.

Where gradient, slots and weight are 0, most optimizers leave all three at 0 by themselves; :data:`AFTER_STEP` says what
is to be put right after a step of those that do not. Established by running each, see ``tests/test_optimizers.py``.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor, nn
from torch.optim import LBFGS, Optimizer

from ignite_prune.bits import zero_


@dataclass(frozen=True)
class Repair:
    """What a step leaves non-zero at pruned entries: the weight, and slots by name (None: any slot)."""

    weight: bool = False
    slots: tuple[str, ...] | None = ()

    def __bool__(self) -> bool:
        return self.weight or self.slots is None or bool(self.slots)


EVERYTHING = Repair(weight=True, slots=None)
_NOTHING = Repair()
AFTER_STEP = {
    "ASGD": _NOTHING,
    "Adadelta": _NOTHING,
    "Adafactor": _NOTHING,
    "Adagrad": _NOTHING,
    "Adam": _NOTHING,
    "AdamW": _NOTHING,
    "Adamax": Repair(slots=("exp_inf",)),  # max(β·u, |g| + ε) makes ε of 0
    "LBFGS": _NOTHING,
    "Muon": Repair(weight=True),  # orthogonalising the momentum fills its zeros
    "NAdam": _NOTHING,
    "RAdam": _NOTHING,
    "RMSprop": _NOTHING,
    "Rprop": Repair(slots=("step_size",)),  # clamped to at least its minimum
    "SGD": _NOTHING,
    "SparseAdam": _NOTHING,
}
_COUNTERS = {"step", "eta", "mu", "mu_product"}  # one number a parameter, also where the parameter is one number


def repair_after_step(optimizer: Optimizer) -> Repair:
    """Return what to put right after a step: the table's word for torch's own, everything for one not known."""
    kind = type(optimizer)
    return AFTER_STEP.get(kind.__name__, EVERYTHING) if kind.__module__.startswith("torch.optim.") else EVERYTHING


def holds(optimizer: Optimizer, parameter: nn.Parameter) -> bool:
    """Whether the optimizer trains the parameter."""
    return any(parameter is held for group in optimizer.param_groups for held in group["params"])


def zero_slots_(
    optimizer: Optimizer,
    parameter: nn.Parameter,
    mask: Tensor,
    names: tuple[str, ...] | None,
    only_where_needed: bool = False,
) -> None:
    """Make the pruned entries of the parameter's slots exactly 0: those in ``names``, or all.

    With ``only_where_needed`` a slot that is 0 there already, be it −0.0, is left untouched to the bit.
    """
    for name, slot in _slots(optimizer, parameter):
        wanted = names is None or name in names
        if wanted and (not only_where_needed or bool((slot.ne(0) & ~mask).any())):
            zero_(slot, mask)


def _slots(optimizer: Optimizer, parameter: nn.Parameter) -> Iterator[tuple[str, Tensor]]:
    if parameter not in optimizer.state:  # a defaultdict: reading would add it
        return
    for name, slot in optimizer.state[parameter].items():
        if isinstance(slot, Tensor) and slot.shape == parameter.shape and name not in _COUNTERS:
            yield name, slot


def masks_changed(optimizer: Optimizer) -> None:
    """Forget what only held for the old masks: LBFGS's history lies over all weights at once, so it starts anew."""
    if isinstance(optimizer, LBFGS):
        optimizer.state.clear()
