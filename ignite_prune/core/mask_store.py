"""MaskStore: one bool mask for each parameter, exact counts, and one bit for each entry in a checkpoint."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from ignite_prune._utils.arguments import near
from ignite_prune._utils.bits import count_true, zero_
from ignite_prune._utils.state import is_plain
from ignite_prune.core.adapted_names import names_in
from ignite_prune.core.mask_state import compressed, packed, unpacked
from ignite_prune.core.selection import is_number, named_parameters, select

if TYPE_CHECKING:
    from ignite_prune._utils.exchange import Exchange


class MaskStore(Mapping[str, Tensor]):
    """Masks by parameter name: ``torch.bool``, the parameter's shape, True = kept.

    A read-only mapping. It is changed by :meth:`update` and :meth:`load_state_dict`, which check everything first and
    change nothing if they raise. It is the one owner of the parameters that are pruned, of their names and of their
    masks; it does not know how masks are chosen.

    Args:
        parameters: ``{name: Parameter}``, or a model, whose default selection is used.
        masks: initial masks; a parameter without one is dense.
        whole: number of entries of a parameter before it was sliced; sliced-off entries count as pruned.

    Attributes:
        parameters: the parameters by name; not to be changed.
        name_of: the name of each parameter.
        flips: number of entries of each mask that the last update changed.
        changes: number of times that the masks have changed.

    Raises:
        TypeError: a mask is not a bool tensor.
        ValueError: a mask of an unknown name or another shape.

    Example:
        >>> layer = nn.Linear(2, 2)
        >>> store = MaskStore({"weight": layer.weight}, {"weight": torch.tensor([[True, False], [True, True]])})
        >>> store.sparsity, store.kept("weight")
        (0.25, 3)
    """

    is_sharded: ClassVar[bool] = False
    """Whether each rank holds a part of the masks: see :class:`.ShardedMaskStore`."""
    exchange: Exchange | None = None
    """The collectives of the last change, where it takes some."""

    def __init__(
        self,
        parameters: Mapping[str, nn.Parameter] | nn.Module,
        masks: Mapping[str, Tensor] | None = None,
        whole: Mapping[str, int] = MappingProxyType({}),
    ) -> None:
        chosen = select(parameters) if isinstance(parameters, nn.Module) else parameters
        if not isinstance(chosen, Mapping) or not all(isinstance(p, Tensor) for p in chosen.values()):
            given = type(parameters)
            raise TypeError(f"Argument parameters should be a model or {{name: Parameter}}, but given {given}")
        self.parameters: Mapping[str, nn.Parameter] = dict(chosen)
        self.name_of = {parameter: name for name, parameter in chosen.items()}
        self._masks: dict[str, Tensor] = {}  # only where something is pruned
        self._kept = {name: p.numel() for name, p in chosen.items()}
        self._whole = {**self._kept, **whole}
        self.flips: dict[str, int] = dict.fromkeys(chosen, 0)
        self.changes = 0
        if masks is not None:
            self.update(masks)

    @classmethod
    def from_nonzero(cls, parameters: Mapping[str, nn.Parameter] | nn.Module) -> MaskStore:
        """Return the masks that a sparse model already has: kept where the weight is not 0 (pattern lock).

        Example:
            >>> layer = nn.Linear(2, 1)
            >>> _ = layer.weight.data.copy_(torch.tensor([[0.0, 2.0]]))
            >>> MaskStore.from_nonzero({"weight": layer.weight})["weight"]
            tensor([[False,  True]])
        """
        store = cls(parameters)
        store.update({name: p.detach() != 0 for name, p in store.parameters.items()})
        return store

    def __getitem__(self, name: str) -> Tensor:
        """Return a copy of the mask of ``name``, all True where nothing is pruned."""
        if name not in self.parameters:
            raise KeyError(name)
        mask, parameter = self.pruned(name), self.parameters[name]
        return torch.ones_like(parameter, dtype=torch.bool, requires_grad=False) if mask is None else mask.clone()

    def __iter__(self) -> Iterator[str]:
        return iter(self.parameters)

    def __len__(self) -> int:
        return len(self.parameters)

    def __repr__(self) -> str:
        return f"MaskStore({len(self)} parameters, {sum(self._kept.values())} of {self.numel} kept)"

    def pruned(self, name: str) -> Tensor | None:
        """Return the mask (True = kept) on its parameter's device, not copied; None if nothing is pruned."""
        mask = self._masks.get(name)
        device = self.parameters[name].device
        if mask is not None and mask.device != device:  # the model was moved
            mask = self._masks[name] = mask.to(device)
        return mask

    def so_far(self, names: Iterable[str] | None = None) -> dict[str, Tensor | None]:
        """Return the masks of some parameters (None: of all) as :meth:`pruned` does, not copied."""
        return {name: self.pruned(name) for name in (self.parameters if names is None else names)}

    @property
    def held(self) -> Mapping[str, Tensor]:
        """The masks of the parameters of which something is pruned, not copied."""
        return self._masks

    def kept(self, name: str) -> int:
        """Return the number of kept entries of a parameter."""
        return self._kept[name]

    def whole(self, name: str) -> int:
        """Return the number of entries of a parameter before any were sliced off."""
        return self._whole[name]

    @property
    def numel(self) -> int:
        """Number of entries of all parameters."""
        return sum(p.numel() for p in self.parameters.values())

    @property
    def sparsity(self) -> float:
        """The pruned fraction of all parameters together: exact count / exact count."""
        whole = sum(self._whole.values())
        return (whole - sum(self._kept.values())) / whole if whole else 0.0

    def sparsity_of(self, model: nn.Module) -> float:
        """Return the pruned fraction of all floating-point parameters of the model that holds the store's."""
        rest = sum(p.numel() for p in model.parameters() if is_number(p) and p not in self.name_of)
        whole = sum(self._whole.values()) + rest
        return (whole - rest - sum(self._kept.values())) / whole if whole else 0.0

    def sparsities(self) -> dict[str, float]:
        """Return the pruned fraction of each parameter."""
        return {name: (n - self._kept[name]) / n if n else 0.0 for name, n in self._whole.items()}

    def published(self, model: nn.Module) -> dict[str, float]:
        """Return the sparsity of all parameters (``"global"``), of the whole model (``"model"``), and of each one.

        A parameter that is named ``"model"`` takes the place of the whole model's.
        """
        found = {"global": 0.0, "model": self.sparsity_of(model)}
        return found | self.sparsities() | {"global": self.sparsity}

    def update(self, masks: Mapping[str, Tensor], *, copy: bool = True) -> None:
        """Replace the masks of the parameters named, all or none.

        Args:
            masks: bool tensors by name; a parameter that is not named keeps its mask.
            copy: copy the tensors; otherwise the store owns them from now on, where their layout fits.

        Raises:
            TypeError: a mask is not a bool tensor.
            ValueError: a mask of an unknown name or another shape.
        """
        if not isinstance(masks, Mapping):
            raise TypeError(f"Argument masks should be a mapping {{name: bool tensor}}, but given {type(masks)}")
        for name, mask in masks.items():
            self._check(name, mask)
        self.put(self.replaced({name: self._owned(name, mask, copy) for name, mask in masks.items()}))

    def _check(self, name: str, mask: Any) -> None:
        if name not in self.parameters:
            raise ValueError(f"Argument masks: no parameter {name!r} is pruned here; {near(name, list(self))}")
        if not isinstance(mask, Tensor) or mask.dtype != torch.bool or not is_plain(mask):
            given = f"a {mask.layout} tensor of {mask.dtype}" if isinstance(mask, Tensor) else f"{type(mask)}"
            raise TypeError(f"The mask of {name!r} should be a tensor of torch.bool (True = kept), but given {given}")
        if mask.shape != self.parameters[name].shape:
            raise ValueError(
                f"The mask of {name!r} should have the parameter's shape {tuple(self.parameters[name].shape)}, "
                f"but given {tuple(mask.shape)}"
            )

    def _owned(self, name: str, mask: Tensor, copy: bool) -> Tensor:
        """Return a mask with the memory layout of its parameter."""
        parameter = self.parameters[name]
        if mask.device == parameter.device and mask.stride() == parameter.stride():
            return mask.detach().clone() if copy else mask
        return torch.empty_like(parameter, dtype=torch.bool, requires_grad=False).copy_(mask)

    def replaced(self, masks: Mapping[str, Tensor]) -> dict[str, Any]:
        """Return what :meth:`put` takes to change to masks of the right shape, which the store will own."""
        held, kept, flips = dict(self._masks), dict(self._kept), dict.fromkeys(self.parameters, 0)
        for name, given in masks.items():
            mask = given if given.stride() == self.parameters[name].stride() else self._owned(name, given, copy=False)
            earlier, numel, count = self.pruned(name), mask.numel(), count_true(mask)
            flips[name] = numel - count if earlier is None else count_true(mask ^ earlier)
            kept[name] = count
            if count == numel:
                held.pop(name, None)
            else:
                held[name] = mask
        return {"_masks": held, "_kept": kept, "flips": flips, "changes": self.changes + bool(masks)}

    def put(self, replaced: Mapping[str, Any]) -> None:
        """Change all at once to what :meth:`replaced` returned; it may be repeated."""
        vars(self).update(replaced)

    @torch.no_grad()
    def apply_(self, model: nn.Module | None = None) -> None:
        """Make every pruned weight exactly 0, in the store's own parameters or in ``model``'s of the same names.

        ``masks.apply_(ema.ema_model)`` makes an averaged copy as sparse as the model, ``masks.apply_(merged)`` one with
        merged adapters: a prefix of the names, as of ``AveragedModel``, and parts that peft adds make no difference.

        Raises:
            ValueError: ``model`` lacks a parameter, has it in another shape, or holds several copies; nothing is
                changed then.
        """
        targets: Mapping[str, nn.Parameter] = self.parameters if model is None else named_parameters(model)
        found = names_in(targets, self.parameters, self._masks)
        for name, target in found.items():
            mask = self.pruned(name)
            if mask is not None:
                zero_(targets[target], mask.to(targets[target].device))

    def for_model(self, model: nn.Module, rename: Callable[[str], str] | None = None) -> MaskStore:
        """Return a store with copies of these masks for another model that has the same layers; nothing is zeroed.

        Args:
            model: for example the model after ``get_peft_model`` or ``merge_and_unload``.
            rename: returns the name that a parameter has in ``model``; parts that peft adds (``base_model.model.``,
                ``.base_layer``) need none.

        Raises:
            ValueError: ``model`` lacks a parameter, or has it in another shape.

        Example:
            >>> masks = MaskStore(nn.Sequential(nn.Linear(2, 2)))
            >>> list(masks.for_model(nn.Linear(2, 2), lambda name: name.removeprefix("0.")))
            ['weight']
        """
        targets = named_parameters(model)
        found = names_in(targets, self.parameters, self, rename)
        masks, whole = {found[n]: self[n] for n in self._masks}, {found[n]: self.whole(n) for n in self}
        return MaskStore({target: targets[target] for target in found.values()}, masks, whole)

    def settle(self) -> None:
        """Check that all ranks that hold parts of these parameters fit together: here there is one."""

    def over_ranks(self, counts: Mapping[str, int]) -> dict[str, int]:
        """Return the counts of each parameter, summed over the ranks that hold parts of it; unsharded, they are
        returned as given.
        """
        return dict(counts)

    def clear(self) -> None:
        """Remove every mask: all parameters are dense."""
        kept = {name: p.numel() for name, p in self.parameters.items()}
        flips = {name: numel - self._kept[name] for name, numel in kept.items()}
        self.put({"_masks": {}, "_kept": kept, "flips": flips, "changes": self.changes + 1})

    def state_dict(self, compress: bool = False) -> dict[str, Any]:
        """Return names, shapes and all masks in one uint8 tensor: one bit for each entry, each mask starts a byte.

        Args:
            compress: with an entropy code instead, 0.48 bits for each entry at 90 % (requires NumPy).
        """
        return compressed(self) if compress else packed(self)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Load the masks of a :meth:`state_dict`, on the parameters' devices.

        Raises:
            TypeError: ``state`` is not of that form.
            ValueError: other names or shapes, or bits cut short; nothing is changed then.
        """
        self.put(self.replaced(self.unpacked(state)))

    def unpacked(self, state: Mapping[str, Any]) -> dict[str, Tensor]:
        """Check a ``state`` and return its masks, of a sharded store this rank's parts; nothing is changed."""
        return {name: self._owned(name, mask, copy=False) for name, mask in unpacked(state, self.parameters)}


def warn_of_nearly_empty(masks: MaskStore, warned: set[str]) -> None:
    """Warn once of each parameter of which less than 1 % is kept; ``warned`` holds those named before."""
    names = [name for name, sparsity in masks.sparsities().items() if sparsity > 0.99 and name not in warned]
    if names and masks.sparsity < 1:
        warned.update(names)
        named = ", ".join(f"{name} ({masks.kept(name)} of {masks.whole(name)} kept)" for name in names)
        warnings.warn(
            f"Pruning left less than 1 % of {named}. If accuracy falls, divide the sparsity otherwise: "
            "allocation=LAMP(), ERK(), or Global(min_density=0.02)",
            stacklevel=3,
        )
