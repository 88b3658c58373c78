"""From a model to its structure: by tracing it, or told by hand."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn

from ignite_prune._utils.arguments import near
from ignite_prune.core.selection import named_parameters, unwrap
from ignite_prune.structure.slicing.size_probe import SizeProbe
from ignite_prune.structure.structure import Structure
from ignite_prune.structure.tracing.export import follow
from ignite_prune.structure.tracing.unit_grouping import UnitGrouping, reasons
from ignite_prune.structure.unit_group import Slot, UnitGroup


def trace(
    model: nn.Module,
    example_inputs: Any,
    *,
    keep: Sequence[str] = (),
    tie: Sequence[Sequence[str]] = (),
    through_norms: bool = False,
) -> Structure:
    """Find which slices of a model's parameters have to go together.

    The model is exported by ``torch.export`` in eval mode, from a copy; every operation is followed, and one that is
    not known freezes what it touches.

    Args:
        model: bare, or wrapped in DDP or ``torch.compile``.
        example_inputs: what the model takes: a tensor, a tuple of arguments, or a dict of keyword arguments.
        keep: layers or parameters, by name or glob, whose units have to stay.
        tie: pairs (or more) of parameters whose units have to go together, ``"name"`` for dimension 0, ``"name[1]"``
            for another.
        through_norms: let units go that a LayerNorm, RMSNorm or GroupNorm goes over, with a warning: a sliced model
            normalises over what is left, the masked one over the zeros too.

    Returns:
        The structure; it prints as a table.

    Raises:
        TypeError: ``keep`` or ``tie`` is not of that form.
        ValueError: the model cannot be exported, or does not take these inputs; a name that the model does not have,
            dimensions of different sizes to tie. What cannot be exported can be told by hand: :func:`declare`.

    Example:
        >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> structure = trace(net, torch.zeros(1, 4))
        >>> [(group.name, group.size) for group in structure]
        [('0.weight', 8)]
    """
    model = unwrap(model)
    args, kwargs = as_arguments(example_inputs)
    places = [[read_place(name, model) for name in each] for each in _several(tie)]
    for each in places:
        _one_size(each, shapes_of(model))
    kept = [name for rule in _strings(keep) for name in _matching(rule, model)]
    traced = follow(model, args, kwargs, through_norms)
    for (first, dim), *others in places:
        for name, other in others:
            traced.units.tie(traced.held[first][dim], traced.held[name][other], "it is tied by hand")
    for name in kept:
        made = [ids for ids in traced.held[name] if id(ids) in traced.makers]
        for ids in made or traced.held[name]:
            traced.units.freeze(ids, "it is kept by hand")
    shapes, parameters = shapes_of(model), list(named_parameters(model))
    trial = SizeProbe(model, args, kwargs)
    while True:
        found = UnitGrouping(traced, list(shapes))
        structure = Structure(
            found.groups,
            shapes,
            parameters,
            reasons(traced, parameters),
            traced.unknown,
            found.work,
            found.dropouts,
            found.normalised,
        )
        told = {name: why for dim, why in traced.fixed_sizes for name in found.along(dim)}
        failing = trial.failing(structure)
        if not failing:
            _warn_of_norms(structure)
            return structure
        for name, error in failing.items():
            maker = structure.groups[name].slots[structure.groups[name].maker]
            ids = traced.held[maker.name][maker.dim][maker.units >= 0]
            why = f"without one of its units the model fails, {error}"
            if name in told:
                why = f"{told[name]} writes its size in the program, where -1 would leave it open"
            traced.units.freeze(ids, why)


def _warn_of_norms(structure: Structure) -> None:
    paths = list(structure.normalised())
    if paths:
        warnings.warn(
            f"Units may go that norms go over ({', '.join(paths[:3])}{', ...' if len(paths) > 3 else ''}): slicing "
            "changes their statistics, so train on afterwards",
            stacklevel=3,
        )


def declare(model: nn.Module, groups: Sequence[Mapping[str, int]]) -> Structure:
    """Return a structure that is told by hand, for a model that cannot be exported.

    Args:
        model: bare, or wrapped in DDP or ``torch.compile``.
        groups: for each its parameters and buffers by name, with the dimension that the units lie along, the weight
            that makes them first. ``shrink`` runs the sliced model and compares it, so that what is forgotten is found.

    Raises:
        TypeError: groups of another form.
        ValueError: a name that the model does not have, dimensions of different sizes.

    Example:
        >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> structure = declare(net, [{"0.weight": 0, "0.bias": 0, "2.weight": 1}])
        >>> structure.groups["0.weight"].size
        8
    """
    model = unwrap(model)
    shapes = shapes_of(model)
    made = []
    for group in groups:
        if not isinstance(group, Mapping) or not group or not all(type(dim) is int for dim in group.values()):
            raise TypeError(f"Argument groups should hold mappings of names and dimensions, but given {group!r:.80}")
        places = [read_place(f"{name}[{dim}]", model) for name, dim in group.items()]
        size = _one_size(places, shapes)
        slots = tuple(Slot(name, dim, torch.arange(size)) for name, dim in places)
        made.append(UnitGroup(places[0][0], size, slots, 0))
    return Structure(made, shapes, list(named_parameters(model)))


def shapes_of(model: nn.Module) -> dict[str, torch.Size]:
    """Return the shapes of a model's parameters and buffers, tied ones once."""
    return {name: tensor.shape for name, tensor in {**named_parameters(model), **dict(model.named_buffers())}.items()}


def misfit(model: nn.Module, structure: Structure) -> str | None:
    """Return a tensor of a model that is of another shape in a structure: of another model, or not as it is now."""
    shapes = shapes_of(model)
    return next((name for name, shape in shapes.items() if structure.shapes.get(name) != shape), None)


def read_place(text: str, model: nn.Module) -> tuple[str, int]:
    """Return name and dimension of ``"name"`` or ``"name[dim]"``.

    Raises:
        TypeError: not a string.
        ValueError: the model has no such tensor, or it has no such dimension.
    """
    if not isinstance(text, str):
        raise TypeError(f"A parameter's dimension should be told as 'name' or 'name[dim]', but given {text!r}")
    name, _, dim = text.removesuffix("]").partition("[")
    shapes = shapes_of(model)
    if name not in shapes:
        raise ValueError(f"The model has no parameter {name!r}; {near(name, list(shapes))}")
    if dim and not dim.lstrip("-").isdigit():
        raise ValueError(f"A parameter's dimension should be told as 'name' or 'name[1]', but given {text!r}")
    number = int(dim or 0)
    if not -len(shapes[name]) <= number < len(shapes[name]):
        raise ValueError(f"Parameter {name!r} has {len(shapes[name])} dimensions, and no dimension {number}")
    return name, number % len(shapes[name])


def _strings(values: Any) -> list[str]:
    listed = [values] if isinstance(values, str) else list(values)
    if not all(isinstance(each, str) for each in listed):
        raise TypeError(f"Argument keep should be names, but given {values!r:.80}")
    return listed


def _several(values: Any) -> list[Sequence[str]]:
    listed = list(values)
    if not all(isinstance(each, Sequence) and not isinstance(each, str) and len(each) > 1 for each in listed):
        raise TypeError(f"Argument tie should be pairs of names, but given {values!r:.80}")
    return listed


def _matching(rule: str, model: nn.Module) -> list[str]:
    names = list(named_parameters(model))
    found = [
        name
        for name in names
        if fnmatchcase(name, rule) or name.startswith(f"{rule}.") or fnmatchcase(name, f"{rule}.*")
    ]
    if not found:
        raise ValueError(f"Argument keep: {rule!r} matches no parameter; {near(rule, names)}")
    return found


def _one_size(places: Sequence[tuple[str, int]], shapes: Mapping[str, torch.Size]) -> int:
    sizes = {f"{name}[{dim}]": shapes[name][dim] for name, dim in places}
    if len(set(sizes.values())) > 1:
        raise ValueError(f"Dimensions that go together should be of one size, but given {sizes}")
    return next(iter(sizes.values()))


def as_arguments(example_inputs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return positional and keyword arguments."""
    if isinstance(example_inputs, Mapping):
        return (), dict(example_inputs)
    if isinstance(example_inputs, Tensor):
        return (example_inputs,), {}
    if isinstance(example_inputs, (tuple, list)):
        return tuple(example_inputs), {}
    raise TypeError(f"Argument example_inputs should be a tensor, a tuple or a dict, but given {type(example_inputs)}")
