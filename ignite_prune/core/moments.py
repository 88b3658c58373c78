"""Moments: optimizer slots that hold a running value of each single weight, and how pruned entries of them become 0.

A slot of the weight's shape need not hold one number for each weight. SOAP keeps its second moment in a rotated basis,
Shampoo's factors of a square weight have the weight's shape, and 8-bit slots hold codes whose 0 is the most negative
value. Zeros written there are wrong, and in a second moment they make the next step divide by almost 0. So slots are
masked only where they are known to be moments:

- of the optimizers in ``torch.optim``: every slot of the weight's shape. Most of these optimizers leave a slot at 0
  where gradient and slots are 0; :data:`AFTER_STEP` names the slots of those that do not (established by running each,
  see ``tests/laws/test_zero.py``);
- of other optimizers: the slots named in :data:`MOMENTS`, if nothing in the optimizer's state looks like a basis.

All others are left alone. That is safe: pruned weights and gradients are masked anyway, so what such a slot holds for a
pruned entry decays, and never reaches the weight.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import LBFGS, Optimizer

from ignite_prune._utils.bits import zero_any_
from ignite_prune._utils.shard import local

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
KEEP_ZERO = frozenset(AFTER_STEP) - {"Adafactor", "LBFGS", "Muon", "SparseAdam"}
"""Optimizers whose step treats each entry alone, and leaves a weight at 0 whose gradient and slots are 0."""
COUNTERS = {"step", "eta", "mu", "mu_product"}  # one number per parameter, even for a parameter of one entry
MOMENTS = frozenset(
    (  # noqa: SIM905
        "exp_avg exp_avg_sq max_exp_avg_sq max_exp_avg_sqs exp_inf exp_avg_var max_exp_avg_var exp_avg_slow "
        "exp_avg_diff exp_avg_lr exp_avg_grad grok_exp_avg neg_exp_avg pos_momentum neg_momentum momentum_buffer "
        "momentum moment moments m v square_avg grad_avg avg_grad mov_avg_grad acc_delta sum grad_sum_sq previous_grad "
        "prev_grad last_grad fim hessian approx_hessian state1 state2 "
        # copies of the weights, 0 as well: of schedule-free optimizers and of Lookahead
        "z slow_buffer lookahead_slow_buff slow_param slow_params slow_momentum cached_params"
    ).split()
)
MOMENTUM = ("momentum_buffer",)  # an average of gradients themselves, also where steps do not treat entries one by one
_OF_TORCH = {"state", "defaults", "param_groups"}


def slots_to_repair(optimizer: Optimizer, parameter: nn.Parameter) -> tuple[str, ...] | None:
    """Return the names of the slots that a step may leave non-zero at pruned entries; None (all) if that is unknown.

    It is unknown for an ε that is 0 in the parameter's type (1e-8 in float16), which makes a pruned entry 0/0.
    """
    eps = optimizer.defaults.get("eps")
    if not is_known(optimizer) or (isinstance(eps, float | int) and eps < torch.finfo(parameter.dtype).tiny):
        return None
    return AFTER_STEP[type(optimizer).__name__]


def keeps_zero(optimizer: Optimizer, parameter: nn.Parameter) -> bool:
    """Return whether a step leaves a weight at 0 where it is 0 before, as are its gradient and slots."""
    known = slots_to_repair(optimizer, parameter) is not None and type(optimizer).__name__ in KEEP_ZERO
    return known and not optimizer.defaults.get("differentiable")


def keeps_weight(optimizer: Optimizer, group: Mapping[str, Any], parameter: nn.Parameter) -> bool:
    """Return whether a step leaves a weight of any value as it is where its gradient and slots are 0.

    Args:
        optimizer: the optimizer.
        group: the parameter's group in it.
        parameter: the parameter.
    """
    decays = type(optimizer).__name__ == "ASGD" or bool(group.get("weight_decay", 0))
    return not decays and keeps_zero(optimizer, parameter)


def is_known(optimizer: Any) -> bool:
    """Return whether the optimizer is one of ``torch.optim``'s own, whose slots and steps are known."""
    kind = type(optimizer)
    return f"{kind.__module__}.".startswith("torch.optim.") and kind.__name__ in AFTER_STEP


def zero_slots_(
    optimizer: Optimizer,
    parameter: nn.Parameter,
    mask: Tensor,
    names: tuple[str, ...] | None = None,
    only_where_needed: bool = False,
) -> None:
    """Make the pruned entries of the parameter's moments exactly 0; every other slot is left alone.

    Args:
        optimizer: one that may hold the parameter.
        parameter: the parameter.
        mask: its mask.
        names: the slots to mask; None: all.
        only_where_needed: leave a slot whose pruned entries are 0 already (or −0.0) as it is, to the bit.
    """
    for name, slot in moments(optimizer, parameter).items():
        if names is not None and name not in names:
            continue
        if not holds_values(slot):
            _requantize_(slot, mask)
        elif slot.dtype == torch.uint8:
            _set_code_(slot, optimizer.state[parameter].get(f"qmap{name[-1]}"), mask)
        elif not only_where_needed or slot.is_sparse or bool((slot.ne(0) & ~mask).any()):
            zero_any_(slot, mask)


def moments(optimizer: Optimizer, parameter: nn.Parameter) -> Mapping[str, Tensor]:
    """Return the slots that hold a running value of each single weight, by name; none if the optimizer is unknown."""
    if parameter not in optimizer.state:  # the state is a defaultdict: reading would add an entry
        return {}
    state = optimizer.state[parameter]
    whole = {
        name: local(slot)
        for name, slot in state.items()
        if isinstance(slot, Tensor) and slot.shape == parameter.shape and name not in COUNTERS
    }
    if is_known(optimizer) or not whole:
        return whole
    if any(_is_basis(name, slot, parameter) for name, slot in state.items()) or _keeps_matrices(optimizer):
        return {}
    return {name: slot for name, slot in whole.items() if name in MOMENTS}


def _is_basis(name: str, slot: Any, parameter: Tensor) -> bool:
    """Return whether a slot may be what moments are projected or rotated with, or is of a kind that is not known."""
    if not isinstance(slot, Tensor):
        return any(True for _ in _matrices(slot)) or not is_plain_data(slot)
    if slot.shape == parameter.shape:
        square = parameter.dim() == 2 and parameter.shape[0] == parameter.shape[1]
        return square and name not in MOMENTS and slot.is_floating_point()
    if slot.dim() < 2 or slot.numel() == 1:
        return name in MOMENTS and slot.numel() > 1  # of another shape than the weight's: projected, or gathered
    if slot.dim() == parameter.dim():
        return any(size not in (1, whole) for size, whole in zip(slot.shape, parameter.shape))
    sizes = iter(parameter.shape)  # rows and columns of a factored moment: some of the weight's dimensions, in order
    return (slot.dim() == 2 and slot.shape[0] == slot.shape[1]) or not all(size in sizes for size in slot.shape)


def is_plain_data(value: Any) -> bool:
    """Return whether an entry of an optimizer's state holds numbers, texts and the like alone, and no tensor."""
    if isinstance(value, list | tuple):
        return all(is_plain_data(each) for each in value)
    return value is None or isinstance(value, bool | int | float | str | torch.dtype | torch.Size)


def _keeps_matrices(optimizer: Optimizer) -> bool:
    """Return whether the optimizer keeps matrices outside its state, on itself or in its groups."""
    own = {
        name: value for name, value in vars(optimizer).items() if name not in _OF_TORCH and name[:10] != "_optimizer"
    }
    of_groups = [value for group in optimizer.param_groups for name, value in group.items() if name != "params"]
    held = {parameter for group in optimizer.param_groups for parameter in group["params"]}
    return any(each not in held for each in _matrices([list(own.values()), of_groups]))


def _matrices(value: Any, depth: int = 4) -> Iterator[Tensor]:
    """Yield the tensors of two or more dimensions in nested lists, dicts and the like."""
    if isinstance(value, Tensor):
        yield from [value] if value.dim() > 1 else []
    elif depth and isinstance(value, Mapping):
        yield from _matrices(list(value.values()), depth - 1)
    elif depth and isinstance(value, list | tuple | set):
        for each in value:
            yield from _matrices(each, depth - 1)


def holds_values(slot: Tensor) -> bool:
    """Return whether a tensor holds its values itself, as a subclass for quantised values does not."""
    return type(slot).__torch_dispatch__ is Tensor.__torch_dispatch__


def _requantize_(slot: Tensor, mask: Tensor) -> None:
    """Mask a slot of quantised values by its own methods; one that cannot is left as it is.

    torchao's 8-bit and fp8 slots hold 0 exactly, and 4-bit ones their smallest value where they are second moments.
    """
    try:
        values = slot.dequantize().masked_fill(~mask, 0)
        slot.copy_(values)
    except (NotImplementedError, RuntimeError, TypeError, AttributeError):
        return  # not one of a mask's concerns: the values decay, see above


def _set_code_(slot: Tensor, codes: Any, mask: Tensor) -> None:
    """Write the code of 0 into a slot of bytes that a table translates (bitsandbytes: ``state1`` and ``qmap1``)."""
    if isinstance(codes, Tensor) and codes.dim() == 1:
        slot.masked_fill_(~mask, int(codes.abs().argmin()))


def masks_changed(optimizer: Optimizer) -> None:
    """Clear state that is invalid for other masks: LBFGS keeps one history over all weights, which starts again."""
    if isinstance(optimizer, LBFGS):
        optimizer.state.clear()
