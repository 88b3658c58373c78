"""Parameter groups, as in ``torch.optim``: which parameters are pruned together, and how."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from ignite_prune._utils.arguments import as_sparsity, near
from ignite_prune.allocation import Allocation, Layer
from ignite_prune.core.selection import is_part, named_parameters, select
from ignite_prune.pattern import Coupled, Pattern, Unstructured
from ignite_prune.repair.base import as_repairs
from ignite_prune.saliency import as_saliency
from ignite_prune.schedule import Schedule

if TYPE_CHECKING:
    from ignite_prune.structure import Structure, UnitGroup

Group = dict[str, Any]
"""``params`` (names of what is masked), ``scored`` (of what is judged: the same, but where a structure's units reach
further), ``sparsity`` (what an update aims for), and each keyword of :func:`build` but ``exclude``; with a structure
``units``, the names of its groups that may shrink."""


def build(model: nn.Module, params: Any, **defaults: Any) -> list[Group]:
    """Return the groups of ``params`` with each setting checked; what a group leaves out is taken from ``defaults``.

    Args:
        model: the unwrapped model.
        params: None, rules (see :func:`~ignite_prune.core.selection.select`), a sequence of group dicts with
            ``"params"`` and any of the settings, or ``{rule: settings}``.
        defaults: the settings of every group.

    Raises:
        TypeError: a setting is of the wrong type.
        ValueError: an unknown setting, a parameter in two groups, a pattern that does not fit a parameter.
    """
    groups = [_group(model, given, defaults) for given in as_dicts(params)]
    seen: dict[str, int] = {}
    for index, group in enumerate(groups):
        for name in group["scored"]:
            if name in seen:
                raise ValueError(f"Parameter {name!r} appears in group {seen[name]} and again in group {index}")
            seen[name] = index
    _check_together(groups)
    return groups


def as_dicts(params: Any) -> list[dict[str, Any]]:
    """Return the groups that ``params`` means, their settings not checked; see :func:`build`."""
    if isinstance(params, Mapping):
        for rule, settings in params.items():
            if not isinstance(settings, Mapping):
                raise TypeError(f"Argument params: the settings of {rule!r} should be a dict, but given {settings!r}")
        return [{**settings, "params": rule} for rule, settings in params.items()]
    if isinstance(params, Sequence) and not isinstance(params, str) and any(isinstance(p, Mapping) for p in params):
        if not all(isinstance(p, Mapping) and "params" in p for p in params):
            raise TypeError('Argument params: each group should be a dict with "params", as in torch.optim')
        return [dict(group) for group in params]
    return [{"params": params}]


def _group(model: nn.Module, given: Mapping[str, Any], defaults: Mapping[str, Any]) -> Group:
    for key in given:
        if key != "params" and key not in defaults:
            raise ValueError(f"Unknown setting {key!r} in a parameter group; {near(str(key), [*defaults, 'params'])}")
    group = {**defaults, **given}
    _check_settings(group)
    chosen = group["params"]
    if chosen is None and group["structure"] is not None:
        chosen = _touched(model, group["structure"]) or None
    parameters = select(model, chosen, group.pop("exclude"))
    group["params"] = group["scored"] = list(parameters)
    if group["structure"] is not None:
        _take_structure(model, group)
    everything = named_parameters(model)
    group["shapes"] = {name: tuple(everything[name].shape) for name in group["params"]}
    _check_fit(group, parameters)
    return group


def _touched(model: nn.Module, structure: Structure) -> list[str]:
    """Return the weights that units lie in, whatever layer they are of: all that have two dimensions, no embeddings."""
    touched = {slot.name for each in structure for slot in each.slots}
    embeddings = {id(m.weight) for m in model.modules() if isinstance(m, (nn.Embedding, nn.EmbeddingBag))}
    return [
        name
        for name, parameter in named_parameters(model).items()
        if name in touched and parameter.dim() > 1 and id(parameter) not in embeddings and not is_part(model, name)
    ]


def _take_structure(model: nn.Module, group: Group) -> None:
    """Let a group be of whole units: those that a selected weight makes, with all that they touch."""
    structure: Structure = group["structure"]
    everything, selected = named_parameters(model), set(group["params"])
    other = [name for name, shape in structure.shapes.items() if name in everything and everything[name].shape != shape]
    if other or not set(everything) <= set(structure.shapes):
        raise ValueError("Argument structure is of another model; trace(model, example_inputs) this one")
    units = [each for each in structure if each.slots[each.maker].name in selected]
    if not units:
        raise ValueError(
            "Argument structure: no group of units is made by a selected parameter; print(structure) tells why"
        )
    touched = {slot.name for each in units for slot in each.slots}
    group["units"] = [each.name for each in units]
    group["params"] = [name for name in everything if name in touched]
    group["scored"] = [name for name in group["params"] if name in selected]
    if isinstance(group["pattern"], Unstructured):
        group["pattern"] = Coupled()
    pattern = group["pattern"]
    if not isinstance(pattern, Coupled):
        raise ValueError(f"With structure= units are a structure's: pattern.Coupled() goes with it, not {pattern}")
    if structure is structure.origin and all(pattern.left(0, each.size) == each.size for each in units):
        raise ValueError(f"With {pattern} no group may lose a unit; they have {[each.size for each in units][:8]}")
    if group["target"] is not None and not group["target"].measured and group["sparsity"] is not None:
        _check_reach(group, units)


def _check_together(groups: Sequence[Group]) -> None:
    """Raise where groups that share a weight cannot go side by side: units of several groups may lie in one."""
    if len({id(group["structure"]) for group in groups}) > 1:
        raise ValueError("Argument structure should be the same in every group")
    if len(groups) > 1 and groups[0]["structure"] is not None:
        if any(group["target"] is not None for group in groups):
            raise ValueError("Argument target is what the whole model costs; it should be given with one group alone")
        if any(group["schedule"] is not None and group["schedule"].regrows for group in groups):
            raise ValueError("A schedule that lifts masks should be given with one group alone, as they share weights")


def _check_reach(group: Group, units: Sequence[UnitGroup]) -> None:
    """Raise where the fewest units that may be left cost more than is asked for."""
    structure, pattern, cost = group["structure"], group["pattern"], group["target"]
    fewest = {each.name: torch.arange(each.size) < pattern.left(0, each.size) for each in units}
    reach = 1 - cost(structure, fewest) / cost.whole(structure)
    asked = max([group["sparsity"], group["schedule"](group["schedule"].horizon) if group["schedule"] else 0.0])
    if asked > reach:
        raise ValueError(f"A sparsity of {asked:g} in {cost} cannot be reached: what must stay leaves {reach:.3f}")


def _check_fit(group: Group, parameters: Mapping[str, nn.Parameter]) -> None:
    """Raise where the pattern does not fit, or the schedule's end is out of reach: now, not epochs later."""
    if (group["structure"] is None) is isinstance(group["pattern"], Coupled):
        raise ValueError(
            "pattern.Coupled() and structure= go together: PruneHandler(..., structure=trace(model, example_inputs))"
        )
    structure, layers = group["structure"], []
    shapes = {name: tuple(parameter.shape) for name, parameter in parameters.items()}
    if structure is not None:
        shapes = {name: (structure.origin.groups[name].size,) for name in group["units"]}
    for name, shape in shapes.items():
        try:
            units = group["pattern"].count(shape)
        except ValueError as error:
            raise ValueError(f"Parameter {name!r}: {error}") from None
        layers.append(Layer(name, shape, units, lambda: torch.empty(0), None, units))
    ends = [group["sparsity"], group["schedule"](group["schedule"].horizon) if group["schedule"] else None]
    for end in ends:
        if end is not None:
            fraction = as_unit_fraction(group["pattern"], end)
            if not group["allocation"].sets_own:
                group["allocation"].divide(layers, fraction)


def _check_settings(group: Group) -> None:
    group["saliency"] = as_saliency(group["saliency"])
    group["repair"] = as_repairs(group["repair"])
    for key, kind in (("pattern", Pattern), ("allocation", Allocation)):
        if not isinstance(group[key], kind):
            raise TypeError(
                f"Argument {key} should be one of ignite_prune.{key}, but given {group[key]!r}"
                + (f" (write {group[key].__name__}())" if isinstance(group[key], type) else "")
            )
    if group["schedule"] is not None and not isinstance(group["schedule"], Schedule):
        raise TypeError(f"Argument schedule should be one of ignite_prune.schedule, but given {group['schedule']!r}")
    if group["saliency"].once and group["schedule"] is not None and _is_gradual(group["schedule"]):
        name = type(group["saliency"]).__name__
        raise ValueError(
            f"{name} judges a network at its initialisation, but {group['schedule']} prunes step by step; take "
            f"schedule.OneShot, or ask for it: saliency.{name}(anytime=True)"
        )
    if group["structure"] is not None and not is_structure(group["structure"]):
        raise TypeError(
            "Argument structure should be what trace(model, example_inputs) gives, but given "
            f"{group['structure']!r:.60}"
        )
    _check_target(group)
    if group["generator"] is not None and not isinstance(group["generator"], torch.Generator):
        raise TypeError(f"Argument generator should be a torch.Generator, but given {group['generator']!r}")
    if not isinstance(group["keep_dense"], bool):
        raise TypeError(f"Argument keep_dense should be a bool, but given {group['keep_dense']!r}")
    if group["sparsity"] is not None:
        group["sparsity"] = as_sparsity(group["sparsity"])


def is_structure(value: Any) -> bool:
    """Whether it is what :func:`ignite_prune.trace` gives."""
    from ignite_prune.structure import Structure  # slow to import

    return isinstance(value, Structure)


def _check_target(group: Group) -> None:
    if group["target"] is None:
        return
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


def as_unit_fraction(pattern: Pattern, sparsity: float) -> float:
    """Return the fraction of units to prune for ``sparsity`` of the entries.

    Raises:
        ValueError: more than the pattern can take.
    """
    if sparsity > pattern.share + 1e-9:
        raise ValueError(
            f"{pattern} reaches at most a sparsity of {pattern.share:g}, but {sparsity:g} is asked for; "
            f"aim for {pattern.share:g}, where every group is done"
        )
    return min(sparsity / pattern.share, 1.0)
