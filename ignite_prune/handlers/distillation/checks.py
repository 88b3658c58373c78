"""Checks of a distillation's arguments."""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.nn.parallel import DataParallel

from ignite_prune._utils.arguments import check_finite
from ignite_prune.handlers.distillation.terms import Term
from ignite_prune.schedule import Schedule


def as_hardness(value: Any) -> float:
    """Return a hardness as a float, that of a schedule at 0.

    Raises:
        TypeError, ValueError: not a number in [0, 1].
    """
    value = value(0) if isinstance(value, Schedule) else value
    if not 0 <= check_finite("hardness", value) <= 1:
        raise ValueError(f"Argument hardness should be in [0, 1], but given {value!r}")
    return float(value)


def as_terms(losses: Any) -> tuple[Term, ...]:
    """Return one term or several as a tuple.

    Raises:
        TypeError: something else, or none.
    """
    terms = (losses,) if isinstance(losses, Term) else tuple(losses) if isinstance(losses, list | tuple) else ()
    if not terms or not all(isinstance(each, Term) for each in terms):
        raise TypeError(
            f"Argument losses should be SoftTargets, LogitsMSE, HiddenMSE, AttentionMSE or a list of them, but given "
            f"{losses!r}"
        )
    return terms


def check_models(teacher: Any, model: nn.Module) -> None:
    """Raise TypeError or ValueError unless a teacher and a student can be taken together."""
    if isinstance(model, DataParallel) or isinstance(teacher, DataParallel):
        raise ValueError("Argument model: nn.DataParallel copies hooks to its threads; use DistributedDataParallel")
    if teacher != "self" and not isinstance(teacher, nn.Module):
        raise TypeError(f'Argument teacher should be a torch.nn.Module or "self", but given {teacher!r}')
    if isinstance(teacher, nn.Module) and set(teacher.parameters()) & set(model.parameters()):
        raise ValueError(
            'Argument teacher shares parameters with the student, which training changes; pass "self" for a frozen '
            "copy, or copy.deepcopy(model)"
        )


def check_devices(student: nn.Module, teacher: nn.Module) -> None:
    """Raise ValueError if both are on one device each, and not on the same."""
    here, there = ({each.device for each in model.parameters()} for model in (student, teacher))
    if len(here) == len(there) == 1 and here != there:
        raise ValueError(f"The teacher is on {there.pop()} and the student on {here.pop()}; call teacher.to(device)")
