"""The optimizers that train a model: the given ones, or those inside given wrappers.

SAM, Lookahead, accelerate's, Opacus' and torch's distributed optimizers hold the optimizer that makes the step as an
attribute. The innermost optimizers are used: their step hooks are called whichever way the wrapper steps, and their
state holds the moments. A wrapper's own hooks are used as well where torch calls them, since a wrapper may write to the
weights after the step of what it wraps.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from ignite_prune._utils.shard import is_sharded


class Optimizers(list[Optimizer]):
    """The optimizers that make the steps.

    Attributes:
        wrappers: optimizers around them whose own step hooks are called too.
    """

    wrappers: Sequence[Optimizer] = ()


def as_optimizers(optimizer: Any) -> Optimizers:
    """Return one optimizer, several or None as a list; of a wrapper, the optimizers that it holds as attributes.

    Raises:
        ValueError: Horovod's optimizer.
        TypeError: something else, or an optimizer whose step hooks torch does not call; names its class.
    """
    if optimizer is None:
        return Optimizers()
    if isinstance(optimizer, Optimizer) and f"{type(optimizer).__module__}.".startswith("torch.optim."):
        return Optimizers([optimizer])
    if any(base.__module__.startswith("horovod") for base in type(optimizer).__mro__):
        raise ValueError(
            "Argument optimizer is Horovod's DistributedOptimizer, whose ranks torch.distributed does not know: their "
            "masks would differ; train with torch.distributed.fsdp.fully_shard or "
            "torch.nn.parallel.DistributedDataParallel"
        )
    listed = list(optimizer.values()) if isinstance(optimizer, Mapping) else optimizer
    if not isinstance(listed, Sequence) or isinstance(listed, Optimizer | str):
        listed = [optimizer]
    found = [(each, _inner(each)) for each in listed]
    for each, inner in found:
        if not isinstance(each, Optimizer) and not (inner and callable(getattr(each, "step", None))):
            raise TypeError(
                "Argument optimizer should be a torch.optim.Optimizer, a wrapper that holds one as an attribute, a "
                f"sequence of them or None, but given {optimizer!r:.80}"
            )
        if not inner and not _calls_hooks(each):
            raise TypeError(
                f"Argument optimizer: torch does not call step hooks of {type(each).__name__}, because its __init__ "
                "does not call Optimizer.__init__, and no attribute of it is an optimizer; give the optimizer that it "
                "wraps, or None for the hooks of every optimizer that steps the parameters"
            )
    stepping = {id(one): one for each, inner in found for one in inner or [each]}
    result = Optimizers(stepping.values())
    result.wrappers = [each for each, inner in found if inner and id(each) not in stepping and _calls_hooks(each)]
    return result


def _inner(given: Any, depth: int = 4) -> list[Optimizer]:
    """Return the innermost optimizers among the attributes of ``given`` and in its lists and dicts.

    An optimizer that has no parameter in common with ``given`` is something else's.
    """
    found: list[Optimizer] = []
    own = _held(given) if isinstance(given, Optimizer) else None
    attributes = getattr(given, "__dict__", {}) if depth else {}
    for name, value in list(attributes.items()):
        held = value if isinstance(value, list | tuple) else value.values() if type(value) is dict else (value,)
        for each in held if name not in ("state", "param_groups", "defaults") else ():
            if isinstance(each, Optimizer) and each is not given and (own is None or own & _held(each)):
                found += _inner(each, depth - 1) or [each]
    return found


def _calls_hooks(optimizer: Any) -> bool:
    """Return whether torch calls an optimizer's step hooks; ``Optimizer.__init__`` prepares both."""
    prepared = isinstance(getattr(optimizer, "_optimizer_step_pre_hooks", None), dict)
    return prepared and bool(getattr(type(optimizer).step, "hooked", False))


def _held(optimizer: Optimizer) -> set[Tensor]:
    return {parameter for group in optimizer.param_groups for parameter in group["params"]}


def check_held(parameters: Mapping[str, nn.Parameter], optimizers: Sequence[Optimizer]) -> None:
    """Raise if there are optimizers and a trained parameter is in none of them.

    Raises:
        ValueError: names the parameters.
    """
    every = [*optimizers, *(optimizers.wrappers if isinstance(optimizers, Optimizers) else ())]
    held = {parameter for each in every for group in each.param_groups for parameter in group["params"]}
    loose = [name for name, parameter in parameters.items() if parameter.requires_grad and parameter not in held]
    if optimizers and loose:
        if any(is_sharded(parameters[name]) for name in loose):
            raise ValueError(
                f"Argument optimizer does not hold {len(loose)} of the parameters to prune, which are sharded: "
                f"{', '.join(loose[:5])}. fully_shard and parallelize_module replace a model's parameters: make the "
                "optimizer after them, optimizer = AdamW(model.parameters()), and then the pruner"
            )
        raise ValueError(
            f"Argument optimizer does not hold {len(loose)} of the parameters to prune: {', '.join(loose[:5])}"
            f"{', ...' if len(loose) > 5 else ''}; give every optimizer that trains them, freeze them, or use exclude="
        )
