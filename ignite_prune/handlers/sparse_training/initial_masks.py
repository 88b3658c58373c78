"""The masks that a sparse network starts with."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from ignite_prune.allocation import Layer
from ignite_prune.allocation.base import once
from ignite_prune.core.mask_store import MaskStore
from ignite_prune.update.param_group import ParamGroup
from ignite_prune.update.scores import choose


def start(
    groups: Sequence[ParamGroup],
    parameters: Mapping[str, nn.Parameter],
    scores: Callable[[Tensor], Tensor],
    sparsity: Callable[[ParamGroup], float],
) -> dict[str, Tensor]:
    """Return a mask for each parameter that does not stay dense.

    Args:
        groups: from :func:`ignite_prune.update.param_groups.build`.
        parameters: by name.
        scores: returns a parameter's scores; the largest are kept.
        sparsity: returns a group's.
    """
    masks: dict[str, Tensor] = {}
    for group in groups:
        layers = [_layer(name, parameters[name], scores) for name in group["params"]]
        masks |= {layer.name: mask for layer, mask in choose(layers, group["allocation"], sparsity(group))}
    return masks


def checked_sparsity(group: ParamGroup) -> float:
    """Return a group's sparsity.

    Raises:
        ValueError: it is not in (0, 1): something has to be left to train, and something to grow.
    """
    sparsity = group["sparsity"]
    if sparsity is None or not 0 < sparsity < 1:
        raise ValueError(f"Argument sparsity should be in (0, 1), but given {sparsity!r}")
    return float(sparsity)


def _layer(name: str, parameter: nn.Parameter, scores: Callable[[Tensor], Tensor]) -> Layer:
    held: Any = once(lambda: scores(parameter.detach()))
    return Layer(name, tuple(parameter.shape), parameter.numel(), held, None, parameter.numel())


def check_room(masks: Mapping[str, Tensor], store: MaskStore) -> None:
    """Raise if nothing can grow by first masks, or nothing is left; warn of layers without a connection.

    Args:
        masks: the first masks; a parameter that they leave out is dense.
        store: of the parameters.
    """
    if all(bool(mask.all()) for mask in masks.values()):
        raise ValueError("Every layer is full, so nothing can grow: give a larger sparsity")
    if not any(bool(masks[name].any()) if name in masks else True for name in store):
        raise ValueError("No connection is left to train: give a smaller sparsity")
    empty = [name for name, mask in masks.items() if mask.numel() and not mask.any()]
    if empty:
        warnings.warn(
            f"No connection is left in {', '.join(empty)}, and none grows where none is: give a smaller sparsity, or "
            "exclude them",
            stacklevel=4,
        )
