"""``trace``: the structure of a model, found by ``torch.export``."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import nn

from ignite_prune._utils.arguments import check_is, near
from ignite_prune.core.selection import named_parameters, unwrap
from ignite_prune.structure.model_io import as_arguments
from ignite_prune.structure.slicing.size_probe import SizeProbe
from ignite_prune.structure.structure import Structure
from ignite_prune.structure.tracing.export import Exports, trace_units
from ignite_prune.structure.tracing.propagation import TracedModel
from ignite_prune.structure.tracing.settling import is_frozen_by_trial, parameters_left, settled_by_trial, shapes_of


def trace(
    model: nn.Module,
    example_inputs: Any,
    *,
    keep: Sequence[str] = (),
    tie: Sequence[Sequence[str]] = (),
    through_norms: bool = False,
) -> Structure:
    """Find the coupled units of a model: slices of its parameters that can only be removed together.

    A copy of the model in eval mode is exported by ``torch.export``, and units are followed through every operation of
    the graph. The inputs of an operation without a rule keep their sizes (they are frozen).

    Args:
        model: bare, or wrapped in DDP or ``torch.compile``.
        example_inputs: inputs of the model: a tensor, a tuple of arguments, or a dict of keyword arguments.
        keep: names or globs of layers or parameters that keep all their units.
        tie: pairs (or more) of parameters whose units are only removed together, ``"name"`` for dimension 0,
            ``"name[1]"`` for another.
        through_norms: allow removing units that a LayerNorm, RMSNorm or GroupNorm normalises over, with a warning: the
            sliced model normalises over the remaining units, the masked model over the zeros too.

    Returns:
        The structure, which prints as a table.

    Raises:
        TypeError: ``keep`` or ``tie`` does not have that form.
        ValueError: the model cannot be exported (give its structure with :func:`.declare`) or does not run with these
            inputs; a name is unknown, or tied dimensions have different sizes.

    Example:
        >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> structure = trace(net, torch.zeros(1, 4))
        >>> [(group.name, group.size) for group in structure]
        [('0.weight', 8)]
    """
    model = unwrap(model)
    args, kwargs = as_arguments(model, example_inputs)
    places = [[read_place(name, model) for name in each] for each in _several(tie)]
    for each in places:
        _one_size(each, shapes_of(model))
    kept = [name for rule in _strings(keep) for name in _matching(rule, model)]
    check_is("through_norms", through_norms, bool)
    exports, probe = Exports(model, args, kwargs), SizeProbe(model, args, kwargs)

    def traced(in_training: bool) -> TracedModel:
        found = trace_units(exports, through_norms, in_training)
        if found.ambiguous:
            other = trace_units(exports, through_norms, in_training, last=True)
            found = max(found, other, key=_free)
        _apply(found, places, kept)
        return found

    def settled(found: TracedModel, in_training: bool) -> Structure:
        structure = settled_by_trial(model, found, probe)
        if found.guessed and is_frozen_by_trial(structure):
            other = trace_units(exports, through_norms, in_training, last=True)
            _apply(other, places, kept)
            structure = min(structure, settled_by_trial(model, other, probe), key=parameters_left)
        return structure

    found = traced(in_training=False)
    unused = {id(dims) for dims in found.unused}
    if any(id(dim) in unused for name in named_parameters(model) for dim in found.held[name]):
        found = traced(in_training=True)
        structure = settled(found, in_training=True)
    else:
        probe.stops = True
        structure = settled(found, in_training=False)
        if probe.stopped:  # a branch that is taken in training alone
            probe.stops = False
            structure = settled(traced(in_training=True), in_training=True)
    _warn_of_norms(structure)
    return structure


def _free(traced: TracedModel) -> int:
    """Return how many indices of parameters and buffers may go."""
    return sum(int((~traced.units.is_frozen(ids)).sum()) for dims in traced.held.values() for ids in dims)


def _apply(traced: TracedModel, places: Sequence[Sequence[tuple[str, int]]], kept: Sequence[str]) -> None:
    """Tie the dimensions that the user ties, and freeze what the user keeps."""
    for (first, dim), *others in places:
        for name, other in others:
            traced.units.tie(traced.held[first][dim], traced.held[name][other], "argument tie names it")
    for name in kept:
        outputs = [ids for ids in traced.held[name] if id(ids) in traced.makers]
        for ids in outputs or traced.held[name]:
            traced.units.freeze(ids, "argument keep names it")


def _warn_of_norms(structure: Structure) -> None:
    paths = list(structure.normalised())
    if paths:
        warnings.warn(
            f"Units that norms go over may be removed ({', '.join(paths[:3])}{', ...' if len(paths) > 3 else ''}): "
            "slicing changes their statistics, so train on afterwards",
            stacklevel=3,
        )


def misfit(model: nn.Module, structure: Structure) -> str | None:
    """Return the name of a tensor whose shape differs between a model and a structure, or None if all agree."""
    shapes = shapes_of(model)
    return next((name for name, shape in shapes.items() if structure.shapes.get(name) != shape), None)


def read_place(text: str, model: nn.Module) -> tuple[str, int]:
    """Parse ``"name"`` or ``"name[dim]"`` into name and dimension.

    Raises:
        TypeError: ``text`` is not a string.
        ValueError: the model has no such tensor, or the tensor no such dimension.
    """
    if not isinstance(text, str):
        raise TypeError(f"A parameter's dimension should be given as 'name' or 'name[dim]', but given {text!r}")
    name, _, dim = text.removesuffix("]").partition("[")
    shapes = shapes_of(model)
    if name not in shapes:
        raise ValueError(f"The model has no parameter {name!r}; {near(name, list(shapes))}")
    if dim and not dim.lstrip("-").isdigit():
        raise ValueError(f"A parameter's dimension should be given as 'name' or 'name[1]', but given {text!r}")
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
        raise ValueError(f"Dimensions whose units go together should be of one size, but given {sizes}")
    return next(iter(sizes.values()))
