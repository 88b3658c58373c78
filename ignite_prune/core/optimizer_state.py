"""Optimizers' slots as a whole: copying, restoring and slicing them."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn
from torch.optim import LBFGS, Optimizer

from ignite_prune._utils.bits import masked_copy_
from ignite_prune.core.moments import COUNTERS, holds_values, moments, zero_slots_


def slots_of(optimizer: Optimizer) -> dict[int, dict[str, Any]]:
    """Return a copy of an optimizer's slots as plain data, by the position of their parameter as in its state_dict."""
    state: dict[int, dict[str, Any]] = copy.deepcopy(optimizer.state_dict()["state"])
    return state


def put_slots(optimizer: Optimizer, state: Mapping[int, Mapping[str, Any]], masks: Mapping[Tensor, Tensor]) -> None:
    """Restore the slots of :func:`slots_of`, with 0 at pruned entries; the optimizer's settings are kept.

    Slots of the same form are written in place, without allocating.

    Args:
        optimizer: the one they were taken from, or an equal one.
        state: the slots.
        masks: of the pruned parameters.
    """
    params = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    if not _fit(optimizer, params, state):
        settings = optimizer.state_dict()["param_groups"]
        optimizer.load_state_dict({"state": copy.deepcopy(dict(state)), "param_groups": settings})
        for parameter in params:
            if parameter in masks:
                zero_slots_(optimizer, parameter, masks[parameter])
        return
    for index, saved in state.items():
        parameter, slots = params[index], optimizer.state[params[index]]
        single, mask = moments(optimizer, parameter), masks.get(parameter)
        codes = mask is not None and not all(map(holds_values, single.values()))
        for name, value in saved.items():
            if isinstance(value, Tensor):
                masked_copy_(slots[name], value, mask if name in single and not codes else None)
            else:
                slots[name] = copy.deepcopy(value)
        if mask is not None and codes:
            zero_slots_(optimizer, parameter, mask)


def _fit(optimizer: Optimizer, params: Sequence[Tensor], state: Mapping[int, Mapping[str, Any]]) -> bool:
    """Return whether the optimizer has exactly these slots already."""
    held = {index: optimizer.state[each] for index, each in enumerate(params) if each in optimizer.state}
    return (
        set(held) == set(state)
        and not isinstance(optimizer, LBFGS)
        and all(
            list(held[index]) == list(saved)
            and all(_form(held[index][name]) == _form(value) for name, value in saved.items())
            for index, saved in state.items()
        )
    )


def _form(value: Any) -> Any:
    return (value.shape, value.dtype, value.is_sparse) if isinstance(value, Tensor) else type(value)


def exchange(
    optimizer: Optimizer,
    old: nn.Parameter,
    new: nn.Parameter,
    cut: Callable[[str, Any], Any],
    undone_by: Callable[[Callable[[], None]], object],
) -> None:
    """Replace a parameter in an optimizer's groups by another one, with its slots sliced.

    Args:
        optimizer: one that may hold ``old``.
        old: the parameter to replace.
        new: the parameter that replaces it.
        cut: returns a slot of the old parameter, given by name and value, for the new one.
        undone_by: called with a function that undoes it, before anything is changed.

    Raises:
        ValueError: a slot cannot be sliced; names it and the optimizer. Nothing is changed then.
    """
    state = optimizer.state[old] if old in optimizer.state and not isinstance(optimizer, LBFGS) else {}
    try:
        sliced = {name: slot if name in COUNTERS else cut(name, slot) for name, slot in state.items()}
    except ValueError as error:
        raise ValueError(
            f"{type(optimizer).__name__}: {error}; slice before training, or clear optimizer.state first"
        ) from error
    places = [
        (group["params"], index)
        for group in optimizer.param_groups
        for index, each in enumerate(group["params"])
        if each is old
    ]
    history, entries = optimizer.state, list(optimizer.state.items())

    def undo() -> None:
        for params, index in places:
            params[index] = old
        optimizer.state = history
        optimizer.state.clear()
        optimizer.state.update(entries)

    undone_by(undo)
    for params, index in places:
        params[index] = new
    if isinstance(optimizer, LBFGS):  # one history over all weights
        optimizer.state = type(history)(dict)
        optimizer._params, optimizer._numel_cache = optimizer.param_groups[0]["params"], None
    elif old in optimizer.state:
        del optimizer.state[old]
        optimizer.state[new] = sliced
