"""Copies of the state of a model, its optimizers and learning-rate schedulers, restored under the masks."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any, Protocol, runtime_checkable

import torch
from ignite.handlers.param_scheduler import BaseParamScheduler
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from ignite_prune._utils.bits import masked_copy_
from ignite_prune._utils.commit import to_the_end
from ignite_prune._utils.pairs import as_pairs, from_pairs
from ignite_prune._utils.state import check_alike, checked_tensor
from ignite_prune.core.mask_store import MaskStore
from ignite_prune.core.optimizer_loading import check_can_step, check_slots, stand_in
from ignite_prune.core.optimizer_state import put_slots, slots_of
from ignite_prune.core.optimizers import as_optimizers
from ignite_prune.core.selection import named_parameters, unwrap
from ignite_prune.handlers.lottery.rewind import Rewind

VERSION = 2  # 1 had no list of pairs
_TRIED = 3  # steps of a learning-rate scheduler whose state is checked


@runtime_checkable
class Stateful(Protocol):
    """An object with a state dict, such as a learning-rate scheduler of torch or Ignite."""

    def state_dict(self) -> Any: ...

    def load_state_dict(self, state_dict: Any) -> Any: ...


class Snapshot:
    """A copy, in memory, of the state that a :class:`Rewind` restores. It can be used without an engine.

    Args:
        rewind: what to copy and restore.
        model: bare, DDP-wrapped or compiled.
        optimizer: one, several or None.
        schedulers: learning-rate schedulers, with ``state_dict`` and ``load_state_dict``.

    Raises:
        TypeError: an argument has the wrong type.

    Example:
        >>> model = nn.Linear(3, 1)
        >>> snapshot = Snapshot(Rewind(), model)
        >>> snapshot.take()
        >>> before = model.weight.detach().clone()
        >>> masks = MaskStore(model, {"weight": torch.tensor([[True, False, True]])})
        >>> _ = nn.init.ones_(model.weight)
        >>> snapshot.restore(masks)
        >>> torch.equal(model.weight, before * masks["weight"])
        True
    """

    def __init__(
        self,
        rewind: Rewind,
        model: nn.Module,
        optimizer: Optimizer | Sequence[Optimizer] | None = None,
        schedulers: Sequence[Stateful] = (),
    ) -> None:
        if not isinstance(rewind, Rewind):
            raise TypeError(f"Argument rewind should be a Rewind, but given {rewind!r}")
        self.rewind = rewind
        self._model, self._optimizers = unwrap(model), as_optimizers(optimizer)
        if not isinstance(schedulers, Sequence) or not all(isinstance(each, Stateful) for each in schedulers):
            raise TypeError(
                "Argument schedulers should be a sequence of learning-rate schedulers, each with state_dict and "
                f"load_state_dict, but given {schedulers!r:.80}"
            )
        self.schedulers = list(schedulers)
        self._held: dict[str, Any] | None = None

    @property
    def taken(self) -> bool:
        """Whether there is a copy to restore."""
        return self._held is not None

    @torch.no_grad()
    def take(self) -> None:
        """Copy the current state."""
        held: dict[str, Any] = {}
        if self.rewind.weights:
            held["tensors"] = {name: tensor.detach().clone() for name, tensor in self._tensors()}
        if self.rewind.optimizer:
            held["slots"] = [slots_of(each) for each in self._optimizers]
        if self.rewind.schedule:
            held["settings"] = [_settings(each) for each in self._optimizers]
            held["schedulers"] = [copy.deepcopy(each.state_dict()) for each in self.schedulers]
        self._held = held

    @torch.no_grad()
    def restore(self, masks: MaskStore | None = None) -> None:
        """Restore the copy; entries that ``masks`` prune become 0 in weights and optimizer slots.

        Raises:
            ValueError: there is no copy, or the model's shapes or an optimizer's groups have changed; nothing is
                restored then.
        """
        if self._held is None:
            raise ValueError(
                f"Rewinding to {self.rewind.to!r}: iteration {self.rewind.iteration} was never snapshotted"
            )
        self._check(self._held)
        held = self._held
        to_the_end(lambda: self._put(held, masks))

    def _put(self, copied: Mapping[str, Any], masks: MaskStore | None) -> None:
        """Write a checked copy into model, optimizers and schedulers; it may be repeated."""
        for name, tensor in self._tensors() if self.rewind.weights else ():
            pruned = masks.pruned(name) if masks is not None and name in masks else None
            held = copied["tensors"][name]
            if tensor.shape != held.shape:  # a buffer that is empty before the first batch
                tensor.resize_(held.shape)
            masked_copy_(tensor, held, pruned)
        if self.rewind.weights:
            reread_buffers(self._model)
        by_parameter: dict[Tensor, Tensor] = {}
        if masks is not None:
            found = ((parameter, masks.pruned(name)) for name, parameter in masks.parameters.items())
            by_parameter = {parameter: mask for parameter, mask in found if mask is not None}
        for optimizer, slots in zip(self._optimizers, copied.get("slots", [])):
            put_slots(optimizer, slots, by_parameter)
        for optimizer, settings in zip(self._optimizers, copied.get("settings", [])):
            _put_settings(optimizer, settings)
        for scheduler, state in zip(self.schedulers, copied.get("schedulers", [])):
            scheduler.load_state_dict(copy.deepcopy(state))

    def forget(self) -> None:
        """Free the copy."""
        self._held = None

    def _tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Yield parameters and all buffers by name, including buffers that are not in the state dict."""
        yield from named_parameters(self._model).items()
        for name, buffer in self._model.named_buffers():
            yield name.replace("_orig_mod.", ""), buffer

    def _check(self, held: Mapping[str, Any]) -> None:
        wanted = self._wanted()
        if set(held) != wanted:
            raise ValueError(f"The snapshot should hold {sorted(wanted)}, but it holds {sorted(held)}")
        if "tensors" in held:
            now = {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in self._tensors()}
            then = {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in held["tensors"].items()}
            for name in now.keys() & then.keys() - named_parameters(self._model).keys():
                if (0,) in (now[name][0], then[name][0]) and now[name][1] == then[name][1]:
                    now[name] = then[name]  # a buffer that has no size before the first batch
            other = sorted(name for name in now.keys() | then.keys() if now.get(name) != then.get(name))
            if other:
                raise ValueError(
                    f"The snapshot does not fit the model: {other[0]!r} was {then.get(other[0])}, but is "
                    f"{now.get(other[0])} (sliced, or another model?)"
                )
        sizes = [len(optimizer.param_groups) for optimizer in self._optimizers]
        if "settings" in held and [len(groups) for groups in held["settings"]] != sizes:
            raise ValueError("The snapshot does not fit the optimizers: their parameter groups have changed")
        if "slots" in held and len(held["slots"]) != len(sizes):
            raise ValueError("The snapshot does not fit the optimizers: their number has changed")
        if "schedulers" in held and len(held["schedulers"]) != len(self.schedulers):
            raise ValueError("The snapshot does not fit the learning-rate schedulers: their number has changed")

    def _wanted(self) -> set[str]:
        wanted = {"tensors"} if self.rewind.weights else set()
        wanted |= {"slots"} if self.rewind.optimizer else set()
        return wanted | ({"settings", "schedulers"} if self.rewind.schedule else set())

    # Checkpoints

    def state_dict(self) -> dict[str, Any]:
        """Return the state as plain data; tensors are not copied again."""
        held = None if self._held is None else as_pairs(self._held)
        return {"version": VERSION, "rewind": asdict(self.rewind), "held": held}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Load the copy of a checkpoint.

        Raises:
            TypeError: ``state`` is not the state of a Snapshot.
            ValueError: ``state`` has another ``Rewind`` or version, or does not match the model; nothing is loaded.
        """
        self.loader_of(state)()

    def loader_of(self, state: Any) -> Callable[[], None]:
        """Return a function that loads a state, or raise the errors of :meth:`load_state_dict`."""
        self._check_state(state)
        copied = None if state["held"] is None else copy.deepcopy(dict(from_pairs(state["held"])))

        def load() -> None:
            self._held = copied

        return load

    def _check_state(self, state: Any) -> None:
        if not isinstance(state, Mapping) or not {"version", "rewind", "held"} <= set(state):
            raise TypeError("A Snapshot's state_dict should be a mapping with 'version', 'rewind' and 'held'")
        if type(state["version"]) is not int or state["version"] not in (1, VERSION):
            raise ValueError(
                f"The checkpoint's snapshot has version {state['version']!r:.40}, this one reads versions up to "
                f"{VERSION}"
            )
        mine, rewind = asdict(self.rewind), state["rewind"]
        if not isinstance(rewind, Mapping) or {k: (type(v), repr(v)) for k, v in rewind.items()} != {
            k: (type(v), repr(v)) for k, v in mine.items()
        }:
            raise ValueError(f"The checkpoint rewinds by {rewind!r:.200}, this one by {self.rewind}")
        held = from_pairs(state["held"])
        if held is not None:
            if not isinstance(held, Mapping) or not _is_well_formed(held):
                raise TypeError(
                    "A Snapshot's state_dict should hold a mapping of tensors by name, slots and settings, but does not"
                )
            self._check(held)
            for name, tensor in held.get("tensors", {}).items():
                checked_tensor(f"snapshot of {name!r}", tensor)
            for optimizer, slots in zip(self._optimizers, held.get("slots", [])):
                check_slots(optimizer, slots)
            for optimizer, settings in zip(self._optimizers, held.get("settings", [])):
                check_can_step(optimizer, settings)
            for scheduler, saved in zip(self.schedulers, held.get("schedulers", [])):
                _check_scheduler(scheduler, saved, self._optimizers)


def _check_scheduler(scheduler: Stateful, state: Any, optimizers: Sequence[Optimizer]) -> None:
    """Raise ValueError unless a learning-rate scheduler takes a state and can go on from it."""
    check_alike("learning-rate scheduler", state, scheduler.state_dict())
    trial = copy.deepcopy(scheduler, {id(each): stand_in(each) for each in optimizers})
    try:
        trial.load_state_dict(copy.deepcopy(state))
        for _ in range(_TRIED):
            _advance(trial)
    except _Ended:
        return
    except Exception as error:
        raise ValueError(
            f"The checkpoint's learning-rate scheduler does not fit a {type(scheduler).__name__}: "
            f"{type(error).__name__}: {error}"
        ) from error


class _Ended(Exception):
    """A scheduler is at its end, as ``OneCycleLR`` is after its last step."""


def _advance(scheduler: Stateful) -> None:
    """Make a step of a scheduler of torch or Ignite; nothing is known of others."""
    if isinstance(scheduler, BaseParamScheduler):
        scheduler(None)  # type: ignore[operator]  # its subclasses are callable
    elif isinstance(scheduler, LRScheduler):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # there was no step of the optimizer before it
            try:
                scheduler.step(0.0) if isinstance(scheduler, ReduceLROnPlateau) else scheduler.step()
            except ValueError as error:
                raise _Ended from error


def reread_buffers(model: nn.Module) -> None:
    """Call ``reread_buffers()`` of modules that cache a buffer's value as a number, as sparsifiers do."""
    for module in model.modules():
        reread = getattr(module, "reread_buffers", None)  # by name, so that this file does not depend on activation
        if callable(reread):
            reread()


def _is_well_formed(held: Mapping[str, Any]) -> bool:
    tensors = held.get("tensors", {})
    lists = [held.get(name, []) for name in ("slots", "settings", "schedulers")]
    if not isinstance(tensors, Mapping) or not all(isinstance(each, list) for each in lists):
        return False
    slots, settings, _ = lists
    return (
        all(isinstance(each, Tensor) for each in tensors.values())
        and all(isinstance(each, Mapping) and all(isinstance(v, Mapping) for v in each.values()) for each in slots)
        and all(isinstance(each, list) and all(isinstance(v, Mapping) for v in each) for each in settings)
    )


def _settings(optimizer: Optimizer) -> list[dict[str, Any]]:
    groups = optimizer.param_groups
    return [copy.deepcopy({key: value for key, value in group.items() if key != "params"}) for group in groups]


def _put_settings(optimizer: Optimizer, settings: Sequence[Mapping[str, Any]]) -> None:
    for group, saved in zip(optimizer.param_groups, settings):
        for key, value in saved.items():
            if isinstance(group.get(key), Tensor) and isinstance(value, Tensor):
                group[key].copy_(value)  # in place, because a captured CUDA graph refers to this tensor
            else:
                group[key] = copy.deepcopy(value)
