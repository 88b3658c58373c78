"""Parameter groups of a regulariser: parameters, each group with a strength."""

from __future__ import annotations

from numbers import Real
from typing import TYPE_CHECKING, Any, TypedDict, cast

from torch import nn

from ignite_prune._utils.arguments import LARGEST, near
from ignite_prune.core.selection import select
from ignite_prune.schedule import Schedule
from ignite_prune.update.param_groups import as_dicts

if TYPE_CHECKING:
    from ignite_prune.pattern import Pattern
    from ignite_prune.regularise import Gate
    from ignite_prune.structure import Structure


class _Settings(TypedDict, total=False):
    pattern: Pattern | None
    structure: Structure | None
    by_size: bool
    gate: Gate


class RegulariserGroup(_Settings, TypedDict):
    """One group: the names of its parameters, its strength, the schedule of it, and the handler's own settings."""

    params: list[str]
    strength: float
    schedule: Schedule | None


def build_strengths(model: nn.Module, params: Any, **defaults: Any) -> list[RegulariserGroup]:
    """Return the groups of ``params``, each with its ``"strength"`` as a number and the ``"schedule"`` it follows.

    Args:
        model: the unwrapped model.
        params: None, rules (see :func:`~ignite_prune.core.selection.select`), a sequence of group dicts with
            ``"params"`` and any of the settings, or ``{rule: settings}``.
        defaults: the settings of every group, ``strength`` and ``exclude`` among them.

    Raises:
        TypeError, ValueError: not a strength, an unknown setting, a parameter in two groups.
    """
    groups: list[RegulariserGroup] = []
    seen: dict[str, int] = {}
    for index, given in enumerate(as_dicts(params)):
        for key in given:
            if key != "params" and key not in defaults:
                raise ValueError(
                    f"Unknown setting {key!r} in a parameter group; {near(str(key), [*defaults, 'params'])}"
                )
        group = {**defaults, **given}
        group["params"] = list(select(model, group["params"], group.pop("exclude")))
        for name in group["params"]:
            if name in seen:
                raise ValueError(f"Parameter {name!r} appears in group {seen[name]} and again in group {index}")
            seen[name] = index
        group["schedule"] = group["strength"] if isinstance(group["strength"], Schedule) else None
        group["strength"] = group["schedule"](0) if group["schedule"] else as_strength(group["strength"])
        groups.append(cast(RegulariserGroup, group))
    return groups


def as_strength(value: Any) -> float:
    """Return ``value`` as a finite float of at least 0.

    Raises:
        TypeError: it is not a number.
        ValueError: it is negative, infinite or NaN.
    """
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"Argument strength should be a number or one of ignite_prune.schedule, but given {value!r}")
    if not 0 <= value <= LARGEST:  # type: ignore[operator]
        raise ValueError(f"Argument strength should be a finite number of at least 0, but given {value!r}")
    return float(value)
