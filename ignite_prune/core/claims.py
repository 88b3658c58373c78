"""Claims: which object masks which parameters, so that two handlers do not fight over one.

Two handlers that mask the same weights with different masks undo each other's work at every step, and each publishes a
sparsity that the other one breaks. So a handler claims its parameters when it begins to mask them (when it is attached,
or at its first update or load), and a second one that would mask one of them is refused by name, unless it was made
with ``shared=True``. Weak references are recorded: when a handler is dropped without ``detach()``, its claim ends as
soon as it is collected. The parameters of a model may be replaced by other objects meanwhile; a handler that would then
mask what no forward pass reads refuses to act (:func:`check_same`).
"""

from __future__ import annotations

import gc
from collections.abc import Mapping
from typing import Any
from weakref import WeakKeyDictionary

from torch import nn

from ignite_prune.core.selection import COMPILED

_OWNERS: WeakKeyDictionary[Any, frozenset[int]] = WeakKeyDictionary()
"""The ids of the parameters that each living object masks, and keeps alive.

Weak references to parameters or gradients would forbid ``torch.utils.swap_tensors``, and with it ``model.to()`` under
``torch.__future__.set_swap_module_params_on_conversion(True)``.
"""


def claim(owner: Any, parameters: Mapping[str, nn.Parameter], shared: bool = False, check: bool = True) -> bool:
    """Record that an object masks the parameters, until :func:`release`; return True.

    Neither the parameters nor the owner are kept alive by the record.

    Args:
        owner: a handler.
        parameters: by name.
        shared: other objects may mask them too, so nothing is recorded.
        check: raise if another object masks one of them.

    Raises:
        ValueError: another object masks one of them; see :func:`check_free`.
    """
    if shared:
        return True
    masked = frozenset(map(id, parameters.values()))
    if check and any(other is not owner and masked & others for other, others in list(_OWNERS.items())):
        check_free(owner, parameters)
    _OWNERS[owner] = masked
    return True


def release(owner: Any) -> None:
    """Record that an object masks no parameters any longer."""
    _OWNERS.pop(owner, None)


def check_free(owner: Any, parameters: Mapping[str, nn.Parameter]) -> None:
    """Raise if an object other than ``owner`` masks one of the parameters.

    Raises:
        ValueError: names the parameter and both objects.
    """
    names = {id(parameter): name for name, parameter in parameters.items()}
    if all(other is owner or names.keys().isdisjoint(masked) for other, masked in list(_OWNERS.items())):
        return
    gc.collect()  # a trainer and its handlers refer to each other: they live until then after their last name is gone
    for other, masked in list(_OWNERS.items()):
        for each in names if other is not owner else ():
            if each in masked:
                raise ValueError(
                    f"Parameter {names[each]!r} is masked by another handler, {type(other).__name__}, and this "
                    f"{type(owner).__name__} would fight it: detach() or finalize() that one first, or allow it with "
                    f"{type(owner).__name__}(..., shared=True)"
                )


def check_same(model: nn.Module, parameters: Mapping[str, nn.Parameter], handler: str) -> None:
    """Raise if the model's parameters are no longer the objects that a handler acts on.

    Args:
        model: unwrapped.
        parameters: by name, as they were when the handler was made.
        handler: which handler to make again, for the message.

    Raises:
        ValueError: names a parameter.
    """
    now = {name.replace(COMPILED, ""): parameter for name, parameter in model.named_parameters()}
    replaced = [name for name, parameter in parameters.items() if now.get(name) is not parameter]
    if replaced:
        raise ValueError(
            f"Parameter {replaced[0]!r} of the model has been replaced by another object (a layer was exchanged or "
            f"sliced, the model sharded, or a state_dict loaded with assign=True); make a new {handler}"
        )
