"""Prunable: a part of a model that can be pruned alone: one weight, or the coupled units of some weights."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ignite_prune._utils.sparsity import as_unit_fraction
from ignite_prune.allocation import Allocation, Global
from ignite_prune.core.mask_store import MaskStore
from ignite_prune.core.selection import select, unwrap
from ignite_prune.pattern import Coupled, Pattern
from ignite_prune.saliency import Given, Saliency
from ignite_prune.update.calibration import Calibration
from ignite_prune.update.one_shot import prune_model, score
from ignite_prune.update.param_groups import build, pattern_of

if TYPE_CHECKING:
    from ignite_prune.structure import Structure


@dataclass(frozen=True)
class Prunable:
    """One layer, or one group of coupled units.

    Attributes:
        name: of the weight, or of the weight that produces the units.
        params: names of the weights that are scored for it.
        units: number of units of the pattern.
        most: how many of them can be pruned.
        share: the sparsity with all units pruned: 1, for N:M 1 − N/M.
    """

    name: str
    params: tuple[str, ...]
    units: int
    most: int
    share: float

    def pruned(self, sparsity: float) -> int:
        """Return how many units are pruned at a sparsity, rounded half to even."""
        return min(round(self.units * min(sparsity / self.share, 1.0)), self.most)

    def sparsity(self, pruned: int) -> float:
        """Return the sparsity with that many pruned units."""
        return pruned / self.units * self.share


class Prunables:
    """The layers of a model that can be pruned each by its own sparsity, with scores of the model as it is now.

    Args:
        model: bare, wrapped or compiled.
        params: rules for the weights; None for the default selection.
        exclude: rules for weights to leave out.
        saliency, pattern, structure, calibration, generator: as of :func:`~ignite_prune.prune_model`.

    Raises:
        TypeError, ValueError: as of :func:`~ignite_prune.prune_model`; nothing can be pruned.
    """

    def __init__(
        self,
        model: nn.Module,
        params: Any,
        exclude: Any,
        saliency: Saliency | Callable[[str, Tensor], Tensor],
        pattern: Pattern,
        structure: Structure | None,
        calibration: Calibration,
        generator: torch.Generator | None,
    ) -> None:
        self.model, self.structure = unwrap(model), structure
        if isinstance(params, Mapping) or (isinstance(params, (list, tuple)) and any(map(_is_group, params))):
            raise TypeError("Argument params should be rules such as names and globs; groups are made one per layer")
        settings = {"pattern": pattern, "structure": structure, "saliency": saliency, "exclude": exclude}
        group = build(self.model, params, sparsity=0.0, allocation=Global(), **settings)[0]
        self.pattern: Pattern = group["pattern"]
        self._group = group
        names = group["scored"] if structure is not None or params is not None else None
        found = score(
            self.model,
            names,
            saliency=saliency,
            calibration=calibration,
            generator=generator,
            exclude=() if names else exclude,
        )
        self.saliency = Given(found)
        self.layers = tuple(
            self._weights(found) if structure is None else self._coupled(structure, group["units"], list(found))
        )

    def _weights(self, names: Mapping[str, Tensor]) -> list[Prunable]:
        units = {
            name: pattern_of(self._group, name).count(parameter.shape)
            for name, parameter in select(self.model, list(names)).items()
        }
        return [Prunable(name, (name,), size, size, self.pattern.share) for name, size in units.items() if size]

    def _coupled(self, structure: Structure, groups: Sequence[str], scored: Sequence[str]) -> list[Prunable]:
        """Return one layer for each weight that produces units, which may be of several groups, as of a fused qkv."""
        assert isinstance(self.pattern, Coupled)
        found: dict[str, Prunable] = {}
        makers = {structure.groups[name].slots[structure.groups[name].maker].name for name in groups}
        for name in groups:
            each = structure.groups[name]
            maker = each.slots[each.maker]
            others = [s.name for s in each.slots if s.dim == maker.dim and s.name in scored and s.name not in makers]
            rule = maker.name if maker.name in scored else others[0]
            params = tuple(dict.fromkeys([rule, *others]))
            one = Prunable(rule, params, each.size, each.size - self.pattern.left(0, each.size), 1.0)
            two = found.get(rule)
            if two is not None:
                params = tuple(dict.fromkeys([*two.params, *params]))
                one = Prunable(rule, params, one.units + two.units, one.most + two.most, 1.0)
            found[rule] = one
        return list(found.values())

    def groups(self, pruned: Mapping[str, int]) -> list[dict[str, Any]]:
        """Return group dicts, as ``PruneHandler`` and ``prune_model`` take them, from numbers of pruned units."""
        return [
            {"params": list(each.params), "sparsity": each.sparsity(pruned[each.name])}
            for each in self.layers
            if each.name in pruned
        ]

    def prune(self, pruned: Mapping[str, int]) -> MaskStore:
        """Prune the model in place: that many units of each layer; layers not given stay dense."""
        return self._prune(self.groups(pruned))

    def counts(self, allocation: Allocation, sparsity: float) -> dict[str, int]:
        """Prune the model in place by an allocation, and return how many units of each layer it pruned."""
        names = [name for each in self.layers for name in each.params]
        masks = self._prune([{"params": names, "sparsity": sparsity}], allocation)
        if self.structure is None:
            gone = masks.sparsities()
            return {each.name: each.pruned(gone[each.name]) for each in self.layers}
        kept, counts = self.structure.kept(masks), dict[str, int]()
        for each in self.layers:
            made = self.structure.made_by(set(each.params), set(each.params))
            counts[each.name] = sum(int((~kept[group.name]).sum()) for group in made)
        return counts

    def _prune(self, groups: list[dict[str, Any]], allocation: Allocation = Global()) -> MaskStore:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Pruning left less than 1 %")  # it is being tried
            warnings.filterwarnings("ignore", message="Of the groups of coupled units")
            return prune_model(
                self.model,
                groups,
                saliency=self.saliency,
                pattern=self.pattern,
                structure=self.structure,
                allocation=allocation,
            )

    def check(self, sparsities: Sequence[float]) -> None:
        """Raise ValueError if the pattern does not reach one of the sparsities."""
        for each in sparsities:
            as_unit_fraction(self.pattern, each)


def _is_group(value: Any) -> bool:
    return isinstance(value, Mapping)
