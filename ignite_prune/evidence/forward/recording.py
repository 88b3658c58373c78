"""What a tape is made of: the torch calls of one forward pass, with what in-place operations overwrote."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from ignite_prune.evidence.forward.op_tables import enter_attention, op_name, tensors_in, writes

_READERS = "item tolist bool float int index complex numpy array equal allclose is_nonzero contains iter format"
_VALUES = frozenset(_READERS.split())
"""Functions that hand a tensor's values to Python, where a tape cannot follow."""


@dataclass(frozen=True, slots=True)
class Step:
    """One call.

    Attributes:
        func: what was called.
        args: its arguments, in containers of their own.
        kwargs: its keyword arguments.
        result: what it returned.
        takes: id and storage of each tensor among the arguments.
        makes: id and storage of each tensor in the result.
        versions: the storages that it wrote to, with the version that they then had.
        before: what they held before.
    """

    func: Callable[..., Any]
    args: Sequence[Any]
    kwargs: Mapping[str, Any]
    result: Any
    takes: tuple[tuple[int, int], ...]
    makes: tuple[tuple[int, int], ...]
    versions: Mapping[int, int]
    before: Mapping[int, torch.UntypedStorage]


class Recorder(TorchFunctionMode):
    """Keeps every call that makes or writes to a tensor, and who reads values.

    Attributes:
        steps: the calls in order.
        readings: before which step which tensor's value was handed to Python.
    """

    def __init__(self) -> None:
        super().__init__()
        self.steps: list[Step] = []
        self.readings: list[tuple[int, Tensor]] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is F.multi_head_attention_forward:
            return enter_attention(self, args, kwargs)
        args, kwargs = copied(args), copied(kwargs)
        taken = tuple(tensors_in((args, kwargs)))
        before = {storage_of(t): snapshot(t.untyped_storage()) for t in taken} if writes(func, kwargs) else {}
        versions = [t._version for t in taken]
        result = func(*args, **kwargs)
        if op_name(func) in _VALUES:
            self.readings += [(len(self.steps), t) for t in taken]
        written = {storage_of(t): t._version for t, version in zip(taken, versions) if t._version != version}
        takes, makes = _marks(taken), _marks(tuple(tensors_in(result)))
        if makes or written:
            kept = {storage: held for storage, held in before.items() if storage in written}
            self.steps.append(Step(func, args, kwargs, copied(result), takes, makes, written, kept))
        return result


class Substitution(TorchFunctionMode):
    """Writes a value over what one step of a repeated pass makes.

    Args:
        steps: the recorded steps up to that one, which this pass must repeat.
        place: which of its tensors, those of the result first and the arguments then.
        replacement: the value.

    Attributes:
        done: whether it has happened.
    """

    def __init__(self, steps: Sequence[Step], place: int, replacement: Tensor) -> None:
        super().__init__()
        self.done = False
        self._steps = steps
        self._place = place
        self._replacement = replacement
        self._seen = 0
        self._astray = False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self.done or self._astray:
            return func(*args, **kwargs)
        if func is F.multi_head_attention_forward:
            return enter_attention(self, args, kwargs)
        taken = tuple(tensors_in((args, kwargs)))
        versions = [t._version for t in taken]
        result = func(*args, **kwargs)
        made = tuple(tensors_in(result))
        if made or any(t._version != version for t, version in zip(taken, versions)):
            self._count(func, (*made, *taken))
        return result

    def _count(self, func: Any, tensors: tuple[Tensor, ...]) -> None:
        self._astray = op_name(func) != op_name(self._steps[self._seen].func)
        self._seen += 1
        if not self._astray and self._seen == len(self._steps):
            tensors[self._place].copy_(self._replacement)
            self.done = True


def copied(value: Any) -> Any:
    """Return nested lists, tuples and dicts anew, with the same things in them: the caller may go on changing his."""
    return mapped(value, lambda tensor: tensor)


def mapped(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """Return nested lists, tuples and dicts with their tensors changed.

    Example:
        >>> mapped([torch.tensor(1), {"a": (torch.tensor(2), "x")}], lambda t: t + 1)
        [tensor(2), {'a': (tensor(3), 'x')}]
    """
    if isinstance(value, Tensor):
        return change(value)
    if type(value) is tuple or type(value) is list:
        return type(value)(mapped(part, change) for part in value)
    if type(value) is dict:
        return {key: mapped(part, change) for key, part in value.items()}
    if isinstance(value, tuple) and any(True for _ in tensors_in(value)):  # what torch.max and its like return
        return tuple(mapped(part, change) for part in value)
    return value


def storage_of(tensor: Tensor) -> int:
    """Return what tells one tensor's memory from another's while both live."""
    return int(tensor.untyped_storage()._cdata)


def snapshot(storage: torch.UntypedStorage) -> torch.UntypedStorage:
    """Return a copy of a storage."""
    copy: torch.UntypedStorage = storage.clone()  # type: ignore[no-untyped-call]
    return copy


def view_on(storage: torch.UntypedStorage, like: Tensor) -> Tensor:
    """Return ``like`` as it would be on another storage."""
    made = torch.empty(0, dtype=like.dtype, device=like.device)
    return made.set_(storage, like.storage_offset(), like.size(), like.stride())


def _marks(tensors: tuple[Tensor, ...]) -> tuple[tuple[int, int], ...]:
    return tuple((id(tensor), storage_of(tensor)) for tensor in tensors)
