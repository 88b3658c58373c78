"""The mask store: one bool mask a parameter, exact counts, and one bit an entry in a checkpoint."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from ignite_prune._utils.arguments import near
from ignite_prune._utils.bits import pack, packed_size, unpack, zero_
from ignite_prune.core.selection import named_parameters, select


class MaskStore(Mapping[str, Tensor]):
    """Masks by parameter name: ``torch.bool``, the parameter's shape, True = kept.

    A read-only mapping; it changes by :meth:`update` and :meth:`load_state_dict`, which check everything first and
    change nothing if they refuse. It knows parameters and masks, nothing of how masks are chosen.

    Args:
        parameters: ``{name: Parameter}``, or a model, whose default selection is taken.
        masks: masks to start from; a parameter without one is dense.
        whole: how many entries a parameter had before it was sliced; what was cut off counts as pruned.

    Raises:
        TypeError: a mask is not a bool tensor.
        ValueError: a mask of an unknown name or another shape.

    Example:
        >>> layer = nn.Linear(2, 2)
        >>> store = MaskStore({"weight": layer.weight}, {"weight": torch.tensor([[True, False], [True, True]])})
        >>> store.sparsity, store.kept("weight")
        (0.25, 3)
    """

    def __init__(
        self,
        parameters: Mapping[str, nn.Parameter] | nn.Module,
        masks: Mapping[str, Tensor] | None = None,
        whole: Mapping[str, int] = MappingProxyType({}),
    ) -> None:
        chosen = select(parameters) if isinstance(parameters, nn.Module) else parameters
        if not isinstance(chosen, Mapping) or not all(isinstance(p, Tensor) for p in chosen.values()):
            raise TypeError(
                f"Argument parameters should be a model or {{name: Parameter}}, but given {type(parameters)}"
            )
        self._parameters: dict[str, nn.Parameter] = dict(chosen)
        self._masks: dict[str, Tensor] = {}  # only where something is pruned
        self._kept = {name: p.numel() for name, p in chosen.items()}
        self._whole = {**self._kept, **whole}
        self.flips: dict[str, int] = dict.fromkeys(chosen, 0)
        """How many entries of each mask the last update changed."""
        self.changes = 0
        """How often the masks have changed."""
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
        store.update({name: p.detach() != 0 for name, p in store._parameters.items()})
        return store

    def __getitem__(self, name: str) -> Tensor:
        """Return a copy of the mask of ``name``, all True where nothing is pruned."""
        if name not in self._parameters:
            raise KeyError(name)
        mask = self.pruned(name)
        return _all_kept(self._parameters[name]) if mask is None else mask.clone()

    def __iter__(self) -> Iterator[str]:
        return iter(self._parameters)

    def __len__(self) -> int:
        return len(self._parameters)

    def __repr__(self) -> str:
        return f"MaskStore({len(self)} parameters, {sum(self._kept.values())} of {self.numel} kept)"

    @property
    def parameters(self) -> Mapping[str, nn.Parameter]:
        """The parameters the masks lie over."""
        return self._parameters

    def pruned(self, name: str) -> Tensor | None:
        """Return the mask on its parameter's device, or None where nothing is pruned."""
        mask = self._masks.get(name)
        device = self._parameters[name].device
        if mask is not None and mask.device != device:  # the model was moved
            mask = self._masks[name] = mask.to(device)
        return mask

    def so_far(self, names: Iterable[str]) -> dict[str, Tensor | None]:
        """Return the masks of some parameters as :meth:`pruned` does."""
        return {name: self.pruned(name) for name in names}

    def kept(self, name: str) -> int:
        """Return how many entries of a parameter are kept."""
        return self._kept[name]

    def whole(self, name: str) -> int:
        """Return how many entries a parameter had before any were sliced off."""
        return self._whole[name]

    @property
    def numel(self) -> int:
        """Entries in all parameters together."""
        return sum(p.numel() for p in self._parameters.values())

    @property
    def sparsity(self) -> float:
        """The pruned fraction of all parameters together: exact count / exact count."""
        whole = sum(self._whole.values())
        return _fraction(whole - sum(self._kept.values()), whole)

    def sparsities(self) -> dict[str, float]:
        """Return the pruned fraction of each parameter."""
        return {name: _fraction(whole - self._kept[name], whole) for name, whole in self._whole.items()}

    def update(self, masks: Mapping[str, Tensor], *, copy: bool = True) -> None:
        """Take new masks for the parameters named, all or none.

        Args:
            masks: bool tensors by name; a parameter that is not named keeps its mask.
            copy: leave the tensors to the caller; without it they become the store's own where they fit.

        Raises:
            TypeError: a mask is not a bool tensor.
            ValueError: a mask of an unknown name or another shape.
        """
        if not isinstance(masks, Mapping):
            raise TypeError(f"Argument masks should be a mapping {{name: bool tensor}}, but given {type(masks)}")
        for name, mask in masks.items():
            self._check(name, mask)
        self._commit({name: self._owned(name, mask, copy) for name, mask in masks.items()})

    def _check(self, name: str, mask: Any) -> None:
        if name not in self._parameters:
            raise ValueError(f"Argument masks: no parameter {name!r} is pruned here; {near(name, list(self))}")
        if not isinstance(mask, Tensor) or mask.dtype != torch.bool or not _is_plain(mask):
            given = f"a {mask.layout} tensor of {mask.dtype}" if isinstance(mask, Tensor) else f"{type(mask)}"
            raise TypeError(f"The mask of {name!r} should be a tensor of torch.bool (True = kept), but given {given}")
        if mask.shape != self._parameters[name].shape:
            raise ValueError(
                f"The mask of {name!r} should have the parameter's shape {tuple(self._parameters[name].shape)}, "
                f"but given {tuple(mask.shape)}"
            )

    def _owned(self, name: str, mask: Tensor, copy: bool) -> Tensor:
        """Return a mask laid out in memory as its parameter is, shared with nobody outside where it is a copy."""
        parameter = self._parameters[name]
        if mask.device == parameter.device and mask.stride() == parameter.stride():
            return mask.detach().clone() if copy else mask
        return torch.empty_like(parameter, dtype=torch.bool, requires_grad=False).copy_(mask)

    def _commit(self, masks: Mapping[str, Tensor]) -> None:
        counts = {name: int(mask.count_nonzero()) for name, mask in masks.items()}
        self.changes += 1
        self.flips = dict.fromkeys(self._parameters, 0)
        for name, mask in masks.items():
            earlier = self.pruned(name)
            numel = mask.numel()
            self.flips[name] = numel - counts[name] if earlier is None else int((mask ^ earlier).count_nonzero())
            self._kept[name] = counts[name]
            if counts[name] == numel:
                self._masks.pop(name, None)
            else:
                self._masks[name] = mask

    @torch.no_grad()
    def apply_(self, model: nn.Module | None = None) -> None:
        """Make every pruned weight exactly 0, in the store's own parameters or in ``model``'s of the same names.

        ``masks.apply_(ema.ema_model)`` makes an averaged copy as sparse as the model.

        Raises:
            ValueError: ``model`` lacks a parameter, or has it in another shape; nothing is changed then.
        """
        targets: Mapping[str, nn.Parameter] = self._parameters if model is None else named_parameters(model)
        for name in self._masks:
            if name not in targets:
                raise ValueError(f"Argument model has no parameter {name!r}; {near(name, list(targets))}")
            if targets[name].shape != self._parameters[name].shape:
                raise ValueError(f"Parameter {name!r} of the model given has shape {tuple(targets[name].shape)}")
        for name in list(self._masks):
            mask = self.pruned(name)
            if mask is not None:
                zero_(targets[name], mask.to(targets[name].device))

    def clear(self) -> None:
        """Forget every mask: all parameters are dense."""
        self.flips = {name: p.numel() - self._kept[name] for name, p in self._parameters.items()}
        self._masks.clear()
        self.changes += 1
        self._kept = {name: p.numel() for name, p in self._parameters.items()}

    def state_dict(self) -> dict[str, Any]:
        """Return names, shapes and all masks in one uint8 tensor, one bit an entry, each mask from a new byte on."""
        packed = [pack(self[name]) for name in self]
        return {
            "names": list(self),
            "shapes": [list(p.shape) for p in self._parameters.values()],
            "bits": torch.cat(packed) if packed else torch.empty(0, dtype=torch.uint8),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take masks from :meth:`state_dict`'s answer, on the parameters' devices.

        Raises:
            TypeError: ``state`` is not of that form.
            ValueError: other names or shapes, or bits cut short; nothing is changed then.
        """
        self._commit(self.unpacked(state))

    def unpacked(self, state: Mapping[str, Any]) -> dict[str, Tensor]:
        """Return the masks in a checked ``state`` without taking them."""
        bits = _checked(state, {name: list(p.shape) for name, p in self._parameters.items()})
        masks, start = {}, 0
        for name, shape in zip(state["names"], state["shapes"]):
            entries = math.prod(shape)
            size = packed_size(entries)
            piece = bits[start : start + size].to(self._parameters[name].device)
            masks[name] = self._owned(name, unpack(piece, entries).view(shape), copy=False)
            start += size
        return masks


def _is_plain(tensor: Tensor) -> bool:
    return tensor.layout == torch.strided and not tensor.is_meta


def _all_kept(parameter: Tensor) -> Tensor:
    return torch.ones_like(parameter, dtype=torch.bool, requires_grad=False)


def _fraction(part: int, whole: int) -> float:
    return part / whole if whole else 0.0


def _checked(state: Any, shapes: Mapping[str, list[int]]) -> Tensor:
    """Return the bits of a mask state that fits ``shapes``, or raise."""
    if not isinstance(state, Mapping) or not {"names", "shapes", "bits"} <= set(state):
        raise TypeError("The masks of a state_dict should be a mapping with 'names', 'shapes' and 'bits'")
    names, bits = state["names"], state["bits"]
    if not isinstance(names, list) or not isinstance(state["shapes"], list) or len(names) != len(state["shapes"]):
        raise TypeError("The masks of a state_dict should have lists of names and shapes of one length")
    if len(set(map(str, names))) != len(names) or set(map(str, names)) != set(shapes):
        missing, extra = sorted(set(shapes) - set(map(str, names))), sorted(set(map(str, names)) - set(shapes))
        raise ValueError(
            "The checkpoint's masks are of other parameters"
            + (f"; it lacks {missing}" if missing else "")
            + (f"; it has {extra[0]!r} ({near(extra[0], list(shapes))})" if extra else "")
        )
    for name, shape in zip(names, state["shapes"]):
        if not isinstance(shape, list) or not all(type(size) is int for size in shape) or shape != shapes[name]:
            raise ValueError(
                f"The checkpoint's mask of {name!r} has shape {shape!r:.80}, but the parameter {shapes[name]}"
            )
    if not isinstance(bits, Tensor) or bits.dtype != torch.uint8 or bits.ndim != 1 or not _is_plain(bits):
        raise TypeError("The mask bits of a state_dict should be a 1-D uint8 tensor")
    expected = sum(packed_size(math.prod(shape)) for shape in shapes.values())
    if bits.numel() != expected:
        raise ValueError(f"The checkpoint's mask bits should be {expected} bytes, but there are {bits.numel()}")
    return bits
