"""Parameter groups, as in ``torch.optim``: which parameters are pruned together, and with which settings."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from ignite_prune._utils.arguments import check_generator, near
from ignite_prune._utils.sparsity import as_sparsity, as_unit_fraction
from ignite_prune.allocation import Allocation, Layer
from ignite_prune.core.check_report import SparsityWarning
from ignite_prune.core.selection import as_rules, inputs_first, select
from ignite_prune.pattern import Coupled, Pattern
from ignite_prune.repair.base import as_repairs
from ignite_prune.saliency import Saliency, as_saliency
from ignite_prune.schedule import Schedule
from ignite_prune.update.coupled_groups import check_apart, extend_to_units, touched_weights
from ignite_prune.update.param_group import UNSET, ParamGroup

_REST = {
    "exclude": (),
    "schedule": None,
    "keep_dense": False,
    "generator": None,
    "repair": None,
    "structure": None,
    "target": None,
    "unreached": "raise",
}
"""The settings of a group where :func:`build` is given no default for them; its groups cannot set these."""


def build(model: nn.Module, params: Any, sharded: bool = False, **defaults: Any) -> list[ParamGroup]:
    """Return the groups of ``params``, each setting checked; missing ones are taken from ``defaults``.

    Args:
        model: the unwrapped model.
        params: None, rules (see :func:`~ignite_prune.core.selection.select`), a sequence of group dicts with
            ``"params"`` and any of the settings, or ``{rule: settings}``.
        sharded: take DTensors too.
        defaults: the settings of every group.

    Raises:
        TypeError: a setting is of the wrong type.
        ValueError: an unknown setting, a parameter in two groups, a pattern that does not fit a parameter.
    """
    groups = [_group(model, given, defaults, sharded) for given in as_dicts(params)]
    if len(groups) > 1:
        _check_together(groups)
    return groups


def as_dicts(params: Any) -> list[dict[str, Any]]:
    """Return the groups that ``params`` means, their settings not checked; see :func:`build`."""
    if isinstance(params, Mapping):
        if not params:
            raise ValueError("Argument params is an empty mapping; give None for the default selection")
        for rule, settings in params.items():
            if not isinstance(settings, Mapping):
                raise TypeError(f"Argument params: the settings of {rule!r} should be a dict, but given {settings!r}")
        return [{**settings, "params": rule} for rule, settings in params.items()]
    if isinstance(params, Sequence) and not isinstance(params, str) and any(isinstance(p, Mapping) for p in params):
        if not all(isinstance(p, Mapping) and "params" in p for p in params):
            raise TypeError('Argument params: each group should be a dict with "params", as in torch.optim')
        return [dict(group) for group in params]
    return [{"params": params}]


def _group(model: nn.Module, given: Mapping[str, Any], defaults: Mapping[str, Any], sharded: bool) -> ParamGroup:
    for key in given:
        if key != "params" and key not in defaults:
            raise ValueError(f"Unknown setting {key!r} in a parameter group; {near(str(key), [*defaults, 'params'])}")
    settings = {**_REST, **defaults, **given}
    group = _checked_settings(settings)
    chosen, structure = settings["params"], group["structure"]
    if chosen is None and structure is not None:
        chosen = touched_weights(model, structure) or None
    parameters = select(model, chosen, settings["exclude"], report=True, sharded=sharded)
    group["params"] = group["scored"] = list(parameters)
    if structure is not None:
        exact = [] if chosen is None else [rule for rule in as_rules("params", chosen) if isinstance(rule, str)]
        parameters = extend_to_units(model, group, structure, exact)
    elif isinstance(group["pattern"], Coupled):
        raise ValueError(
            "pattern.Coupled() and structure= go together: PruneHandler(..., structure=trace(model, example_inputs))"
        )
    group["shapes"] = {name: tuple(parameter.shape) for name, parameter in parameters.items()}
    group["inputs_first"] = inputs_first(model)
    _check_fit(group)
    return group


def pattern_of(group: ParamGroup, name: str) -> Pattern:
    """Return a group's pattern for one of its parameters, by the layout of that parameter."""
    pattern = group["pattern"]
    return pattern.inputs_first(len(group["shapes"][name])) if name in group.get("inputs_first", ()) else pattern


def _checked_settings(settings: Mapping[str, Any]) -> ParamGroup:
    """Return a group with its settings checked and its parameters not selected yet."""
    saliency, repair = settings["saliency"], settings["repair"]
    group: ParamGroup = {
        "params": [],
        "scored": [],
        "shapes": {},
        "inputs_first": frozenset(),
        "units": [],
        "sparsity": None if settings["sparsity"] is None else as_sparsity(settings["sparsity"]),
        "saliency": saliency if isinstance(saliency, Saliency) else as_saliency(saliency),
        "schedule": settings["schedule"],
        "pattern": settings["pattern"],
        "allocation": settings["allocation"],
        "keep_dense": settings["keep_dense"],
        "generator": settings["generator"],
        "repair": () if repair is None else as_repairs(repair),
        "structure": settings["structure"],
        "target": settings["target"],
        "unreached": settings["unreached"],
    }
    for key, given, kind in (
        ("pattern", group["pattern"], Pattern),
        ("allocation", group["allocation"], Allocation),
    ):
        if not isinstance(given, kind):
            raise TypeError(
                f"Argument {key} should be one of ignite_prune.{key}, but given {given!r}"
                + (f" (write {given.__name__}())" if isinstance(given, type) else "")
            )
    if not isinstance(group["keep_dense"], bool):
        raise TypeError(f"Argument keep_dense should be a bool, but given {group['keep_dense']!r}")
    if group["unreached"] != "raise" and group["unreached"] != "keep":
        raise ValueError(f"Argument unreached should be 'raise' or 'keep', but given {group['unreached']!r:.60}")
    if group["generator"] is not None:
        check_generator(group["generator"])
    if group["schedule"] is not None:
        _check_schedule(group["schedule"], group["saliency"])
    if group["structure"] is not None and not is_structure(group["structure"]):
        raise TypeError(
            "Argument structure should be what trace(model, example_inputs) gives, but given "
            f"{group['structure']!r:.60}"
        )
    if group["target"] is not None:
        _check_target(group)
    return group


def _check_together(groups: Sequence[ParamGroup]) -> None:
    """Raise if a parameter is in two groups, or if groups of coupled units have settings that cannot be combined."""
    seen: dict[str, int] = {}
    for index, group in enumerate(groups):
        for name in group["scored"]:
            if name in seen:
                raise ValueError(f"Parameter {name!r} appears in group {seen[name]} and again in group {index}")
            seen[name] = index
    if len({id(group["structure"]) for group in groups}) > 1:
        raise ValueError("Argument structure should be the same in every group")
    if groups[0]["structure"] is not None:
        check_apart(groups)
        if any(group["target"] is not None for group in groups):
            raise ValueError("Argument target is what the whole model costs; it should be given with one group alone")
        if any(group["schedule"] is not None and group["schedule"].regrows for group in groups):
            raise ValueError("A schedule that lifts masks should be given with one group alone, as they share weights")


def _check_fit(group: ParamGroup) -> None:
    """Raise now, not epochs later, if the pattern does not fit or the end of the schedule is out of reach."""
    structure, pattern, allocation = group["structure"], group["pattern"], group["allocation"]
    shapes = group["shapes"]
    if structure is not None:
        shapes = {name: (structure.origin.groups[name].size,) for name in group["units"]}
    layers = []
    for name, shape in shapes.items():
        try:
            units = (pattern if structure is not None else pattern_of(group, name)).count(shape)
        except ValueError as error:
            raise ValueError(f"Parameter {name!r}: {error}") from None
        layers.append(Layer(name, shape, units, lambda: torch.empty(0), None, units))
    for end in _ends(group):
        if end is not None:
            fraction = as_unit_fraction(pattern, end)
            if not allocation.sets_own:
                allocation.divide(layers, fraction)


def _ends(group: ParamGroup) -> list[float | None]:
    schedule = group["schedule"]
    return [group["sparsity"], schedule(schedule.horizon) if schedule is not None else None]


def _check_schedule(schedule: Any, saliency: Saliency) -> None:
    if not isinstance(schedule, Schedule):
        raise TypeError(f"Argument schedule should be one of ignite_prune.schedule, but given {schedule!r}")
    if saliency.once and _is_gradual(schedule):
        name = type(saliency).__name__
        raise ValueError(
            f"{name} scores a network at its initialisation, but {schedule} prunes step by step; take "
            f"schedule.OneShot, or ask for it: saliency.{name}(anytime=True)"
        )


def is_structure(value: Any) -> bool:
    """Return whether ``value`` is a result of :func:`ignite_prune.trace`."""
    from ignite_prune.structure import Structure  # slow to import

    return isinstance(value, Structure)


def _check_target(group: ParamGroup) -> None:
    from ignite_prune.structure import Cost  # slow to import

    if not isinstance(group["target"], Cost):
        raise TypeError(
            "Argument target should be structure.Parameters(), structure.Flops() or structure.Latency(model, inputs), "
            f"but given {group['target']!r:.60}"
        )
    if group["structure"] is None:
        raise ValueError("Argument target needs a structure: PruneHandler(..., structure=trace(model, example_inputs))")
    if group["allocation"].sets_own:
        raise ValueError(f"Argument target: {group['allocation']} sets a sparsity of its own")


def _is_gradual(schedule: Schedule) -> bool:
    steps = [schedule.horizon * part / 64 for part in range(65)]
    return len({value for value in map(schedule, steps) if value > 0}) > 1


def warn_of_unset(groups: Sequence[ParamGroup], warned: set[str]) -> None:
    """Warn once if an update aims for sparsities that were never set; ``warned`` holds the names of warnings so far."""
    if "step()" in warned or any(group["sparsity"] is not UNSET for group in groups):
        return
    warned.add("step()")
    scheduled = any(group["schedule"] is not None for group in groups)
    what = "step(at=epoch) follows the schedule" if scheduled else 'write step(0.5), or set param_groups[0]["sparsity"]'
    warnings.warn(
        'step() without an argument aims for the "sparsity" in param_groups, which was never set: nothing is pruned; '
        + what,
        SparsityWarning,
        stacklevel=3,
    )
