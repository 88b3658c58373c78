"""Converts a pruner to the data of a recipe."""

from __future__ import annotations

import inspect
import math
from typing import Any

import torch
from ignite.engine import CallableEventWithFilter

from ignite_prune.handlers.prune_handler import PruneHandler
from ignite_prune.recipe.calibration_model import LOSSES
from ignite_prune.recipe.event import unscaled
from ignite_prune.recipe.scheduled_filter import ScheduledFilter
from ignite_prune.recipe.writing import written
from ignite_prune.update.param_group import UNSET
from ignite_prune.update.param_groups import as_dicts


def data_of(pruner: PruneHandler, event: Any = None, attached: bool = True) -> dict[str, Any]:
    """Return what ``recipe.load`` takes; see :meth:`.Recipe.of`.

    Args:
        pruner: attached or not.
        event: as in a file; None: what it is attached to.
        attached: False: that is an event of rounds, which a file does not name.
    """
    if not isinstance(pruner, PruneHandler):
        raise TypeError(f"Argument pruner should be a PruneHandler, but given {type(pruner)}")
    params, settings = pruner.pruning.given
    attachment = pruner._attachment
    if event is None and attachment is not None and attached:
        event = event_of(attachment.events)
    in_unit = unscaled if isinstance(event, dict) and event.get("unit") == "epochs" else _as_it_is
    settings = {name: in_unit(each) for name, each in settings.items()}
    found = _changed(settings)
    if params is not None:
        groups = as_dicts(params)
        single = len(groups) == 1 and set(groups[0]) == {"params"}
        groups = [{name: in_unit(value) for name, value in each.items()} for each in groups]
        found["params"] = written(groups[0]["params"]) if single else [_group(each) for each in groups]
    if event is not None:
        found["event"] = event
    calibration = pruner.pruning.calibration
    loss = getattr(calibration.loss_fn, "__name__", None)
    if loss in LOSSES and getattr(torch.nn.functional, str(loss)) is calibration.loss_fn:
        return {"calibration": {"loss_fn": loss}, "prune": found}
    return {"prune": found}


def _as_it_is(value: Any) -> Any:
    return value


def _changed(settings: Any) -> dict[str, Any]:
    """Return the settings that differ from the defaults, as data."""
    defaults = inspect.signature(PruneHandler).parameters
    found: dict[str, Any] = {}
    for name, value in settings.items():
        if name == "structure":
            found |= {"structure": "trace"} if value is not None else {}
        elif name == "generator":
            found |= {"seed": written(value)} if value is not None else {}
        elif name == "sparsity":
            if value is not UNSET:
                raise ValueError("a sparsity that is set by hand is no part of a recipe; give a schedule")
        elif not _same(value, defaults[name].default):
            found[name] = written(value)
    return found


def _same(value: Any, default: Any) -> bool:
    try:
        return type(value) is type(default) and bool(value == default)
    except (RuntimeError, ValueError):  # tensors
        return False


def _group(group: dict[str, Any]) -> dict[str, Any]:
    given = {name: written(each) for name, each in group.items() if name != "structure"}
    return {("seed" if name == "generator" else name): each for name, each in given.items()}


def event_of(events: Any) -> Any:
    """Return an event of Ignite with its filter as data.

    Raises:
        ValueError: several events, or a filter that is a function of the user's own.
    """
    if len(events) != 1:
        raise ValueError("a recipe attaches a handler to one event; give event= to Recipe.of()")
    event = events[0]
    name = event.name.lower()
    if not isinstance(event, CallableEventWithFilter) or event.filter is None:
        return name
    if isinstance(event.filter, ScheduledFilter):
        return event.filter.event.data()
    return {"type": name, **_settings_of(event.filter)}


def _settings_of(function: Any) -> dict[str, Any]:
    """Return ``every``, ``once``, ``before`` and ``after`` of one of Ignite's own filters, which keep them in cells."""
    if getattr(function, "__module__", None) != "ignite.engine.events" or function.__closure__ is None:
        raise ValueError("the event's filter is a function of your own, which a file cannot hold; give event=")
    found: dict[str, Any] = {}
    for name, cell in zip(function.__code__.co_freevars, function.__closure__):
        value = cell.cell_contents
        if isinstance(value, list):  # of once
            value = value[0] if len(value) == 1 else value
        if value is not None and (name.strip("_"), value) not in (("before", math.inf), ("after", 0)):
            found[name.strip("_")] = value
    if not set(found) <= {"every", "once", "before", "after"}:
        raise ValueError("the event's filter is not one that a file can hold; give event= to Recipe.of()")
    return found
