"""Optimizer slots: which of them hold one value for each weight, and what a step does to a slot that is 0.

No other file reads optimizers' state. Most optimizers leave a slot at 0 where gradient and slots are 0;
:data:`AFTER_STEP` names the slots of those that do not. Established by running each, see ``tests/laws/test_zero.py``.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import LBFGS, Optimizer

from ignite_prune._utils.bits import masked_copy_, zero_any_

AFTER_STEP: dict[str, tuple[str, ...]] = {
    "ASGD": (),
    "Adadelta": (),
    "Adafactor": (),
    "Adagrad": (),
    "Adam": (),
    "AdamW": (),
    "Adamax": ("exp_inf",),  # max(β·u, |g| + ε) makes ε of 0
    "LBFGS": (),
    "Muon": (),
    "NAdam": (),
    "RAdam": (),
    "RMSprop": (),
    "Rprop": ("step_size",),  # clamped to at least its minimum
    "SGD": (),
    "SparseAdam": (),
}
COUNTERS = {"step", "eta", "mu", "mu_product"}  # one number per parameter, even for a parameter of one entry
_REFUSED = {"ZeroRedundancyOptimizer"}  # its slots are sharded over ranks and cannot be reached


def as_optimizers(optimizer: Any) -> list[Optimizer]:
    """Return one optimizer, several or None as a list.

    Raises:
        TypeError: something else.
        ValueError: an optimizer whose slots cannot be reached; names it.
    """
    listed = [] if optimizer is None else [optimizer] if isinstance(optimizer, Optimizer) else optimizer
    if not isinstance(listed, Sequence) or not all(isinstance(each, Optimizer) for each in listed):
        raise TypeError(
            "Argument optimizer should be a torch.optim.Optimizer, a sequence of them or None, "
            f"but given {optimizer!r:.80}"
        )
    for kind in (type(each).__name__ for each in listed):
        if kind in _REFUSED:
            raise ValueError(
                f"Argument optimizer: {kind} keeps its state out of reach, so pruned entries of it would live on"
            )
    return list(listed)


def check_held(parameters: Mapping[str, nn.Parameter], optimizers: Sequence[Optimizer]) -> None:
    """Raise if there are optimizers and a trained parameter is in none of them.

    Raises:
        ValueError: names the parameters.
    """
    held = {parameter for each in optimizers for group in each.param_groups for parameter in group["params"]}
    loose = [name for name, parameter in parameters.items() if parameter.requires_grad and parameter not in held]
    if optimizers and loose:
        raise ValueError(
            f"Argument optimizer does not hold {len(loose)} of the parameters to prune: {', '.join(loose[:5])}"
            f"{', ...' if len(loose) > 5 else ''}; give every optimizer that trains them, freeze them, or use exclude="
        )


def slots_to_repair(optimizer: Optimizer, parameter: nn.Parameter) -> tuple[str, ...] | None:
    """Return the names of the slots that a step may leave non-zero at pruned entries; None (all) if that is unknown.

    It is unknown for an ε that is 0 in the parameter's type (1e-8 in float16), which makes a pruned entry 0/0.
    """
    kind = type(optimizer)
    known = kind.__module__.startswith("torch.optim.") and kind.__name__ in AFTER_STEP
    eps = optimizer.defaults.get("eps")
    if not known or (isinstance(eps, float | int) and eps < torch.finfo(parameter.dtype).tiny):
        return None
    return AFTER_STEP[kind.__name__]


def zero_slots_(
    optimizer: Optimizer,
    parameter: nn.Parameter,
    mask: Tensor,
    names: tuple[str, ...] | None = None,
    only_where_needed: bool = False,
) -> None:
    """Make the pruned entries of the parameter's slots exactly 0.

    Args:
        optimizer: one that may hold the parameter.
        parameter: the parameter.
        mask: its mask.
        names: the slots to mask; None: all.
        only_where_needed: leave a slot whose pruned entries are 0 already (or −0.0) as it is, to the bit.
    """
    for name, slot in _slots(optimizer, parameter):
        wanted = names is None or name in names
        if wanted and (not only_where_needed or slot.is_sparse or bool((slot.ne(0) & ~mask).any())):
            zero_any_(slot, mask)


def _slots(optimizer: Optimizer, parameter: nn.Parameter) -> Iterator[tuple[str, Tensor]]:
    if parameter not in optimizer.state:  # the state is a defaultdict: reading would add an entry
        return
    for name, slot in optimizer.state[parameter].items():
        if isinstance(slot, Tensor) and slot.shape == parameter.shape and name not in COUNTERS:
            yield name, slot


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
        for name, value in saved.items():
            if isinstance(value, Tensor):
                whole = value.shape == parameter.shape and name not in COUNTERS
                masked_copy_(slots[name], value, masks.get(parameter) if whole else None)
            else:
                slots[name] = copy.deepcopy(value)


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


def masks_changed(optimizer: Optimizer) -> None:
    """Clear state that is invalid for other masks: LBFGS keeps one history over all weights, which starts again."""
    if isinstance(optimizer, LBFGS):
        optimizer.state.clear()


def exchange(
    optimizer: Optimizer,
    old: nn.Parameter,
    new: nn.Parameter,
    cut: Callable[[Tensor], Tensor],
    undone_by: Callable[[Callable[[], None]], object],
) -> None:
    """Replace a parameter in an optimizer's groups by another one, with its slots sliced.

    Args:
        optimizer: one that may hold ``old``.
        old: the parameter to replace.
        new: the parameter that replaces it.
        cut: slices a slot of the old parameter for the new one.
        undone_by: called with a function that undoes it, before anything is changed.
    """
    places = [
        (group["params"], index)
        for group in optimizer.param_groups
        for index, each in enumerate(group["params"])
        if each is old
    ]
    history, entries, state = optimizer.state, list(optimizer.state.items()), optimizer.state.get(old)
    sliced = {
        name: cut(slot) if isinstance(slot, Tensor) and name not in COUNTERS else slot
        for name, slot in (() if state is None else state.items())
    }

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
    elif state is not None:
        del optimizer.state[old]
        optimizer.state[new] = sliced
