"""A sparsity divided over one group's parameters and spread into masks.

score → pattern.group → allocation → exact top-k → pattern.spread. Nothing is changed on the way: the new masks are the
only result.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

from torch import Tensor

from ignite_prune._utils.topk import keep_top, keep_top_by_row
from ignite_prune.allocation import Allocation, Layer
from ignite_prune.allocation.base import once
from ignite_prune.pattern import Pattern
from ignite_prune.update.param_groups import Group, as_unit_fraction
from ignite_prune.update.scores import ParameterScores


def divide(
    scorers: Mapping[str, ParameterScores], masks: Mapping[str, Tensor | None], group: Group
) -> dict[str, Tensor]:
    """Return the masks that bring a group to its ``"sparsity"``, those so far nesting around them.

    Args:
        scorers: one for each parameter of the group.
        masks: the masks so far, None where nothing is pruned; not changed.
        group: from :func:`ignite_prune.update.param_groups.build`.

    Returns:
        Masks of the parameters that get sparser; the others are as sparse as asked already.

    Raises:
        NonFiniteSaliency: a score is NaN or infinite; names the parameter.
        TypeError, ValueError: scores of the wrong type or shape, an unreachable target.
    """
    pattern, allocation = group["pattern"], group["allocation"]
    layers = [_layer(scorer, pattern, masks[name]) for name, scorer in scorers.items()]
    ceiling = pattern.share if group["sparsity"] is None else group["sparsity"]
    planned: dict[str, Tensor] = {}
    for layer, chosen in choose(layers, allocation, as_unit_fraction(pattern, ceiling)):
        rows = group["saliency"].rows(layer.name) if pattern.streams else None
        units = chosen
        if rows is not None:
            units = keep_top_by_row(layer.scores(), layer.alive, int(chosen.count_nonzero()), rows)
        planned[layer.name] = pattern.spread(units, scorers[layer.name].spreading(), masks[layer.name])
    return planned


def choose(
    layers: Sequence[Layer], allocation: Allocation, fraction: float, least: Callable[[Layer], int] = lambda layer: 0
) -> Iterator[tuple[Layer, Tensor]]:
    """Yield the units that stay, bool, of each layer that gets sparser; ``least`` tells how many it keeps anyhow."""
    for pool in allocation.divide(layers, fraction):
        floors = [
            max(floor, min(least(layer), layer.living))
            for floor, layer in zip(pool.floors or [0] * len(pool.layers), pool.layers)
        ]
        keep = max(pool.keep, sum(min(floor, layer.living) for floor, layer in zip(floors, pool.layers)))
        if keep >= sum(layer.living for layer in pool.layers):
            continue
        kept = keep_top(
            [layer.scores for layer in pool.layers],
            [layer.alive for layer in pool.layers],
            [layer.living for layer in pool.layers],
            keep,
            floors,
        )
        yield from zip(pool.layers, kept)


def _layer(scorer: ParameterScores, pattern: Pattern, mask: Tensor | None) -> Layer:
    units = pattern.count(scorer.shape)
    alive = None if mask is None else pattern.alive(mask)
    if pattern.streams:
        scores: Callable[[], Tensor] = scorer.scores
    else:
        scores = once(lambda: scorer.units(mask))
    living = units if alive is None else int(alive.count_nonzero())
    return Layer(scorer.name, scorer.shape, units, scores, alive, living)
