"""The coupled units of a model, and conversions between units, masks and indices."""

from __future__ import annotations

import math
from collections.abc import Collection, Container, Iterator, Mapping, Sequence
from types import MappingProxyType

import torch
from torch import Tensor

from ignite_prune._utils.arguments import near
from ignite_prune.structure.description import described
from ignite_prune.structure.group_names import group_named, groups_made_by
from ignite_prune.structure.kept_indices import KeptIndices
from ignite_prune.structure.unit_group import Axis, Kept, UnitGroup, Work, units_alive

NOTHING: Kept = MappingProxyType({})


class Structure:
    """The groups of coupled units of a model (a dependency graph): which can be removed, and which must stay.

    Made by :func:`trace` or :func:`declare`.

    Attributes:
        groups: the unit groups by name, in the order of the model's parameters.
        shapes: shape of every parameter and buffer.
        frozen: the reason why a parameter's dimension must keep its size, by ``(name, dim)``.
        unknown: operations without a rule, with the path of the module that calls them.
        origin: the structure of the model before any slicing; itself if nothing has been sliced off.
    """

    def __init__(
        self,
        groups: Sequence[UnitGroup],
        shapes: Mapping[str, torch.Size],
        parameters: Collection[str],
        frozen: Mapping[tuple[str, int], str] = MappingProxyType({}),
        unknown: Sequence[str] = (),
        work: Sequence[Work] = (),
        dropouts: Mapping[str, Sequence[Sequence[Axis]]] = MappingProxyType({}),
        normalised: Mapping[str, Axis] = MappingProxyType({}),
        attributes: Mapping[tuple[str, str], Axis] = MappingProxyType({}),
        origin: tuple[Structure, Kept] | None = None,
    ) -> None:
        self.groups = {group.name: group for group in groups}
        if len(self.groups) < len(groups):
            raise ValueError("Groups of units should have distinct names")
        self.shapes, self.frozen, self.unknown = dict(shapes), dict(frozen), tuple(dict.fromkeys(unknown))
        self._parameters, self._work, self._dropouts = frozenset(parameters), tuple(work), dict(dropouts)
        self._normalised, self._attributes = dict(normalised), dict(attributes)
        self.origin, self._left = (self, {}) if origin is None else origin

    def __iter__(self) -> Iterator[UnitGroup]:
        return iter(self.groups.values())

    def __len__(self) -> int:
        return len(self.groups)

    def indices(self, kept: Kept) -> KeptIndices:
        """Return the indices to keep, by tensor name and dimension, of every parameter and buffer that loses some."""
        found = KeptIndices({}, self._values(kept))
        for name, dims in self._stay(kept).items():
            cut = {dim: stay.nonzero().squeeze(1) for dim, stay in dims.items() if not stay.all()}
            if cut:
                found[name] = cut
        return found

    def _values(self, kept: Kept) -> dict[str, dict[str, int]]:
        """Return the new values of the attributes that hold sizes and change, by path of the module."""
        whole, found = self._of_origin(kept), dict[str, dict[str, int]]()
        for (path, name), axis in self.origin._attributes.items():
            if (left := axis.left(whole)) != axis.size:
                found.setdefault(path, {})[name] = left
        return found

    def without(self, gone: Mapping[str, Sequence[int]]) -> dict[str, Tensor]:
        """Return which units are kept if the given ones are removed.

        Args:
            gone: numbers of the units to remove, by a name of their group, see :meth:`named`.

        Raises:
            TypeError: a number is not an int.
            ValueError: a name has no units, or a number is out of range.

        Example:
            >>> from ignite_prune import trace
            >>> net = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.ReLU(), torch.nn.Linear(3, 2))
            >>> trace(net, torch.zeros(1, 4)).without({"0.weight": [1]})
            {'0.weight': tensor([ True, False,  True])}
        """
        kept = {group.name: torch.ones(group.size, dtype=torch.bool) for group in self}
        for name, numbers in gone.items():
            group = self.named(name)
            for number in numbers:
                if type(number) is not int:
                    raise TypeError(f"The units of {name!r} should be given as whole numbers, but given {number!r}")
                if not 0 <= number < group.size:
                    raise ValueError(f"There is no unit {number} of {name!r}, which has {group.size}")
                kept[group.name][number] = False
        return kept

    def named(self, name: str) -> UnitGroup:
        """Return the group of a name: its own, or that of any tensor that has its units.

        ``"name[1]"`` means dimension 1. Without a dimension a tensor means the units that it produces, else those in
        dimension 0, else the only ones that it has: either end of a residual connection names its channels.

        Raises:
            ValueError: no group, or several, go by the name.
        """
        return group_named(self.groups, name)

    def made_by(self, weights: Collection[str], exact: Collection[str] = ()) -> list[UnitGroup]:
        """Return the groups whose units are produced by some of the weights.

        Args:
            weights: names of the weights.
            exact: those of them that name a group although another weight comes first in it, such as the other end of
                a residual connection. If the weights come first in no group, all do.
        """
        return groups_made_by(self.groups, weights, exact)

    def sliced(self, kept: Kept) -> Structure:
        """Return the structure of the sliced model."""
        stay = {(name, dim): left for name, dims in self._stay(kept).items() for dim, left in dims.items()}
        groups = [group.sliced(kept.get(group.name, torch.ones(group.size, dtype=torch.bool)), stay) for group in self]
        shapes = {
            name: torch.Size(int(stay[name, d].sum()) if (name, d) in stay else size for d, size in enumerate(shape))
            for name, shape in self.shapes.items()
        }
        origin = self.origin, self._of_origin(kept)
        return Structure(groups, shapes, self._parameters, self.frozen, self.unknown, origin=origin)

    def parameters(self, kept: Kept = NOTHING) -> int:
        """Return the number of parameter elements with only these units kept; groups not given keep all units."""
        left = {name: {dim: int(stay.sum()) for dim, stay in dims.items()} for name, dims in self._stay(kept).items()}
        shapes = ((left.get(name, {}), self.shapes[name]) for name in self._parameters)
        return sum(math.prod(dims.get(d, size) for d, size in enumerate(shape)) for dims, shape in shapes)

    @property
    def counts_flops(self) -> bool:
        """Whether FLOPs can be counted: true of a traced structure, false of a declared one."""
        return bool(self.origin._work)

    def flops(self, kept: Kept = NOTHING) -> int:
        """Return the FLOPs of a forward pass over the inputs that the model was traced with.

        Matrix products, convolutions, attention and recurrent layers are counted; a multiply-add is two operations.

        Args:
            kept: the kept units by group; groups not given keep all units.

        Raises:
            ValueError: the structure was declared, not traced.
        """
        if not self.counts_flops:
            raise ValueError("This structure does not know the model's operations, as it was not traced")
        whole = self._of_origin(kept)
        return sum(work.left(whole) for work in self.origin._work)

    def rates(self, kept: Kept) -> dict[str, float]:
        """Return the fraction of input units that remains, for each Dropout module whose input loses units.

        A module that is called several times with different fractions is left out.
        """
        before, after = self._of_origin(NOTHING), self._of_origin(kept)
        found = {}
        for path, uses in self.origin._dropouts.items():
            left = {
                math.prod(axis.left(after) for axis in axes) / max(1, math.prod(axis.left(before) for axis in axes))
                for axes in uses
            }
            if len(left) == 1 and left != {1.0}:
                found[path] = left.pop()
        return found

    def normalised(self, kept: Kept = NOTHING) -> dict[str, Tensor]:
        """Return which indices of the normalised dimension are left, bool, by path of a norm.

        Only norms whose units may be removed, ``trace(through_norms=True)``, are returned.

        Args:
            kept: the kept units by group; groups not given keep all units.
        """
        before, after = self._of_origin(NOTHING), self._of_origin(kept)
        axes = self.origin._normalised
        return {path: axis.stay(after)[axis.stay(before)] for path, axis in axes.items()}

    def _of_origin(self, kept: Kept) -> dict[str, Tensor]:
        """Return which units of the original model are left."""
        found, kept = {}, {self.named(name).name: units for name, units in kept.items()}
        for name, group in self.origin.groups.items():
            left = self._left.get(name)
            left = torch.ones(group.size, dtype=torch.bool) if left is None else left.clone()
            if name in kept:
                left[left.clone()] = kept[name].cpu()
            found[name] = left
        return found

    def masks(self, kept: Kept, without: Container[str] = ()) -> dict[str, Tensor]:
        """Return masks, True = kept, of every parameter and buffer that has units, biases and norms included.

        Args:
            kept: the kept units by group.
            without: names of tensors to leave out.
        """
        masks = {}
        for name, dims in self._stay(kept).items():
            if name in without:
                continue
            mask = torch.ones(self.shapes[name], dtype=torch.bool)
            for dim, stay in dims.items():
                mask &= stay.view([-1 if d == dim else 1 for d in range(mask.dim())])
            masks[name] = mask
        return masks

    def kept(self, masks: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return which units the masks keep.

        Raises:
            ValueError: a name or shape is unknown, or the masks do not prune whole units.
        """
        unknown = set(masks) - set(self.shapes)
        if unknown:
            raise ValueError(f"The model has no parameter {min(unknown)!r}; {near(min(unknown), list(self.shapes))}")
        for name, mask in masks.items():
            if mask.shape != self.shapes[name]:
                raise ValueError(
                    f"The mask of {name!r} is {tuple(mask.shape)}, but in the structure it is "
                    f"{tuple(self.shapes[name])}: has the model been sliced since it was traced?"
                )
        kept = {group.name: units_alive(group, masks) for group in self}
        for name, mask in self.masks(kept, without=self.shapes.keys() - masks.keys()).items():
            if not torch.equal(mask, masks[name].cpu()):
                raise ValueError(
                    f"The mask of {name!r} is not made of whole units; prune with PruneHandler(structure=...)"
                )
        return kept

    def kept_by(self, indices: Mapping[str, Mapping[int, Tensor]]) -> dict[str, Tensor]:
        """Return which units are left if only these indices of the tensors are kept.

        Raises:
            ValueError: the indices do not remove whole units.
        """
        kept = {}
        for group in self:
            kept[group.name] = torch.ones(group.size, dtype=torch.bool)
            for slot in group.slots:
                stay = indices.get(slot.name, {}).get(slot.dim)
                if stay is not None:
                    gone = torch.ones(len(slot.units), dtype=torch.bool)
                    gone[stay] = False
                    kept[group.name][slot.units[gone & (slot.units >= 0)]] = False
        whole = {name: {d: i.tolist() for d, i in dims.items()} for name, dims in self.indices(kept).items()}
        if whole != {name: {d: i.tolist() for d, i in dims.items()} for name, dims in indices.items() if dims}:
            raise ValueError("The checkpoint's kept indices are not whole units of this model's structure")
        return kept

    def _stay(self, kept: Kept) -> dict[str, dict[int, Tensor]]:
        """Return which indices of each tensor's dimensions are kept, bool; groups not given keep all units."""
        found: dict[str, dict[int, Tensor]] = {}
        for name, units in kept.items():
            for slot in self.named(name).slots:
                dims = found.setdefault(slot.name, {})
                stay = dims.setdefault(slot.dim, torch.ones(len(slot.units), dtype=torch.bool))
                in_group = slot.units >= 0
                stay[in_group] &= units.cpu()[slot.units[in_group]]
        return found

    def __str__(self) -> str:
        one = {group.name: torch.arange(group.size) < 1 for group in self}
        shares = {"parameters": 1 - self.parameters(one) / max(1, self.parameters())}
        if self.counts_flops:
            shares["FLOPs"] = 1 - self.flops(one) / max(1, self.flops())
        return described(list(self), self.frozen, self.unknown, shares)
