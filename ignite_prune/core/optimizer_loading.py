"""An optimizer's state in a checkpoint: its form, and checks; those of torch's ``load_state_dict`` are few.

A state of another optimizer, or a damaged one, is accepted by torch and raises at a later step.
"""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import LBFGS, Optimizer

from ignite_prune._utils.pairs import as_pairs, from_pairs
from ignite_prune._utils.state import check_alike, checked_int, checked_mapping, checked_tensor
from ignite_prune.core.moments import COUNTERS


def as_saved(state: Mapping[str, Any]) -> dict[str, Any]:
    """Return an optimizer's state_dict in a form that ``torch.distributed.checkpoint`` loads into any other."""
    return {**state, "state": as_pairs(state["state"]), "param_groups": tuple(state["param_groups"])}


def from_saved(state: Any) -> Any:
    """Return the state_dict that :func:`as_saved` was called with; what is of another form is returned as it is."""
    if not isinstance(state, Mapping) or not {"state", "param_groups"} <= set(state):
        return state
    groups = state["param_groups"]
    groups = list(groups) if isinstance(groups, tuple) else groups
    return {**state, "state": from_pairs(state["state"]), "param_groups": groups}


def check_by_trial(what: str, optimizer: Optimizer, state: Any) -> None:
    """Raise unless a copy of the optimizer loads a state and makes a step with gradients of 0.

    It takes a copy of the parameters and two of the state, so it is meant for a small optimizer.

    Args:
        what: the optimizer's name in errors.
        optimizer: is not changed.
        state: of its ``state_dict``.

    Raises:
        ValueError: the state does not fit the optimizer; says why.
    """
    trial = copy.deepcopy(optimizer)
    for group in trial.param_groups:
        for parameter in group["params"]:
            parameter.grad = torch.zeros_like(parameter)
    try:
        ids = [each for group in state["param_groups"] for each in group["params"]]
        if len({checked_int("parameter number", each) for each in ids}) != len(ids):
            raise ValueError("a parameter has two places")
        checked_mapping("state", state["state"], ids, whole=False)
        check_alike("settings", state["param_groups"], optimizer.state_dict()["param_groups"])
        trial.load_state_dict(copy.deepcopy(dict(state)))
        trial.step()
    except Exception as error:
        raise ValueError(
            f"The checkpoint's {what} does not fit a {type(optimizer).__name__}: {type(error).__name__}: {error}"
        ) from error


def stand_in(optimizer: Optimizer) -> Optimizer:
    """Return a copy of an optimizer, without slots, over parameters of one entry each with gradients of 0."""
    memo: dict[int, Any] = {id(optimizer.state): defaultdict(dict)}
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            small = torch.zeros((1,) * parameter.dim(), dtype=parameter.dtype, requires_grad=True)
            small.grad = torch.zeros_like(small)
            memo[id(parameter)] = small
    made = copy.deepcopy(optimizer, memo)
    if isinstance(made, LBFGS):  # its copies lack these
        vars(made).update(_params=made.param_groups[0]["params"], _numel_cache=None)
    return made


def check_can_step(optimizer: Optimizer, settings: Sequence[Mapping[str, Any]]) -> None:
    """Raise unless the optimizer can step with the settings of its groups; tried on :func:`stand_in`.

    Raises:
        ValueError: says why.
    """
    for group, saved in zip(optimizer.param_groups, settings):
        check_alike("settings", saved, {key: value for key, value in group.items() if key != "params"})
    failure = _failure(optimizer, settings)
    if failure is not None and _failure(optimizer, None) is None:  # not one that cannot be copied and stepped at all
        raise ValueError(
            f"The checkpoint's settings do not fit a {type(optimizer).__name__}: {type(failure).__name__}: {failure}"
        ) from failure


def _failure(optimizer: Optimizer, settings: Sequence[Mapping[str, Any]] | None) -> Exception | None:
    """Return the error of two steps of a stand-in with other settings; None: it can make them."""
    closure: Any = (lambda: 0.0) if isinstance(optimizer, LBFGS) else None
    try:
        trial = stand_in(optimizer)
        for group, saved in zip(trial.param_groups, settings or ()):
            group.update(copy.deepcopy(dict(saved)))
        for _ in range(2):
            trial.step(closure)
    except Exception as error:
        return error
    return None


def _is_settled(optimizer: Optimizer) -> bool:
    """Return whether an optimizer's first step makes all of its slots."""
    return type(optimizer).__module__.startswith("torch.optim.") and not isinstance(optimizer, LBFGS)


def check_slots(optimizer: Optimizer, slots: Any) -> None:
    """Raise unless slots, by the position of their parameter, may be those of an optimizer.

    Raises:
        TypeError, ValueError: of other parameters, without data, or of another form than the slots of the same names
            that the optimizer has now.
    """
    params = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for index, saved in checked_mapping("slots", slots, range(len(params)), whole=False).items():
        if not isinstance(saved, Mapping) or not all(isinstance(name, str) for name in saved):
            raise TypeError(f"The checkpoint's slots of parameter {index} should be a mapping by name")
        present: dict[str, Any] = optimizer.state.get(params[index], {})
        lost = [name for name in present if name not in saved] if saved else []
        if lost and (set(saved) - set(present) or _is_settled(optimizer)):
            raise ValueError(
                f"The checkpoint's slots of parameter {index} lack {lost[0]!r}: are they of another optimizer?"
            )
        for name, value in saved.items():
            what = f"slot {name!r} of parameter {index}"
            if isinstance(value, Tensor):
                checked_tensor(what, value)
            check_alike(what, value, present.get(name))
            held = present.get(name)
            if isinstance(value, list) and isinstance(held, list) and None in value and None not in held:
                raise TypeError(f"The checkpoint's {what} should have no None among its entries")
            if value is None and isinstance(present.get(name), Tensor) and name != "momentum_buffer":
                raise TypeError(f"The checkpoint's {what} should be a tensor, but is None")
            if name in COUNTERS and not float(value) >= 0:
                raise ValueError(f"The checkpoint's {what} should be at least 0, but is {value!r:.40}")
