"""The masks that a sparse network starts with."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from ignite_prune.allocation import Layer
from ignite_prune.allocation.base import once
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
