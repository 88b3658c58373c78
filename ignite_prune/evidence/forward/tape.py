"""A tape of one forward pass, played again from a tensor onward with another value in its place."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ignite_prune.evidence.forward.op_tables import tensors_in
from ignite_prune.evidence.forward.recording import Recorder, Substitution, mapped, snapshot, storage_of, view_on
from ignite_prune.evidence.forward.replay_plan import Plan, is_given, plan


@dataclass(frozen=True, slots=True)
class Cut:
    """A tensor as it is at one moment; an in-place operation may change it later.

    Attributes:
        tensor: the tensor itself.
        version: how often it had been written to.
        value: its value, a copy.

    Example:
        >>> x = torch.zeros(2)
        >>> cut = Cut.of(x)
        >>> x.add_(1), cut.value
        (tensor([1., 1.]), tensor([0., 0.]))
    """

    tensor: Tensor
    version: int
    value: Tensor

    @classmethod
    def of(cls, tensor: Tensor) -> Cut:
        """Note a tensor as it is now: in ``on_activation``, while the tape records."""
        return cls(tensor, tensor._version, tensor.detach().clone())


class Tape:
    """One forward pass under ``no_grad``, call by call, with all results.

    ``replay`` runs again what lies between a tensor and the result and takes everything else as recorded. The pass
    should be without random numbers (eval mode). In-place operations run on copies: recorded tensors never change.

    Memory: every intermediate result of the pass, and what each in-place operation overwrote.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1)).eval()
        >>> hidden = []
        >>> handle = model[1].register_forward_hook(lambda module, args, output: hidden.append(output))
        >>> x = torch.ones(4, 2)
        >>> tape = Tape.record(model, lambda: model(x))
        >>> tape.is_exact(hidden[0]), bool((tape.replay(hidden[0], torch.zeros(4, 3)) == model[2].bias).all())
        (True, True)
    """

    def __init__(self, recorder: Recorder, call: Callable[[], Tensor], result: Tensor) -> None:
        self.result = result
        self.steps = recorder.steps
        self._call = call
        self._readings = recorder.readings
        self._writers: dict[int, list[int]] = {}
        for index, step in enumerate(self.steps):
            for storage in step.versions:
                self._writers.setdefault(storage, []).append(index)
        self._plans: dict[tuple[int, int], Plan] = {}

    @classmethod
    def record(cls, model: nn.Module, call: Callable[[], Tensor]) -> Tape:
        """Run ``call`` under ``no_grad`` and keep what it does.

        Args:
            model: the model that it runs, in eval mode.
            call: runs the forward, and the loss if that is wanted, and returns one tensor.

        Raises:
            TypeError: ``call`` does not return a tensor.
            ValueError: the model is in training mode.
        """
        if model.training:
            raise ValueError("A tape takes a model in eval mode, but the model given is in training mode")
        recorder = Recorder()
        with torch.inference_mode(False), torch.no_grad(), recorder:
            result = call()
        if not isinstance(result, Tensor):
            raise TypeError(f"Argument call should return a tensor, but returned {type(result)}")
        return cls(recorder, call, result)

    @torch.no_grad()
    def replay(self, cut: Tensor | Cut, replacement: Tensor) -> Tensor:
        """Return the recorded result as it is with ``replacement`` in the place of ``cut``.

        Args:
            cut: a tensor of the recorded pass, as it stands now; a :class:`Cut` where an in-place operation may have
                written to it after the moment that counts.
            replacement: of its shape and type; it is not changed.

        Returns:
            The result; the recorded one if it does not depend on the cut.

        Raises:
            ValueError: ``replacement`` is of another shape or type.
        """
        tensor, _ = _where(cut)
        planned = self._plan(cut)
        return (
            _Player(self, planned.steps, tensor, _like(replacement, tensor)).play() if planned.reached else self.result
        )

    @torch.no_grad()
    def rerun(self, cut: Tensor | Cut, replacement: Tensor) -> Tensor | None:
        """Return the same by running the whole ``call`` again; None if it takes another way to the cut than before,
        or the cut is no result of the pass's own.

        Whatever follows the cut is the model's own doing, so this is right where a replay is not.

        Raises:
            ValueError: ``replacement`` is of another shape or type.
        """
        tensor, _ = _where(cut)
        steps = self.steps[: self._plan(cut).start]
        names = [name for name, _ in (*steps[-1].makes, *steps[-1].takes)] if steps else []
        if id(tensor) not in names or is_given(self.steps, storage_of(tensor)):
            return None
        mode = Substitution(steps, names.index(id(tensor)), _like(replacement, tensor))
        with mode:
            result = self._call()
        return result if mode.done else None

    def is_exact(self, cut: Tensor | Cut) -> bool:
        """Whether a replay from the cut can be trusted.

        It must give the recorded result bit for bit from the cut's own value, and what :meth:`rerun` gives from another
        one, so it costs a forward pass; and no value that depends on the cut may have been handed to Python
        (``.item()``, ``if tensor:``), where the tape ends.
        """
        planned = self._plan(cut)
        value = cut.value if isinstance(cut, Cut) else cut
        if not (planned.reached and planned.faithful and _same_bits(self.replay(cut, value), self.result)):
            return False
        other = value.detach().clone()
        other.view(-1)[::2] = 0
        expected = self.rerun(cut, other)
        return expected is not None and _same_bits(self.replay(cut, other), expected)

    def value(self, tensor: Tensor, step: int) -> Tensor:
        """Return a recorded tensor as it was before ``step``, later writes undone."""
        storage = storage_of(tensor)
        later = next((w for w in self._writers.get(storage, ()) if w >= step), None)
        return tensor if later is None else view_on(self.steps[later].before[storage], tensor)

    def _plan(self, cut: Tensor | Cut) -> Plan:
        tensor, version = _where(cut)
        if (id(tensor), version) not in self._plans:
            self._plans[id(tensor), version] = plan(self.steps, self._readings, self.result, tensor, version)
        return self._plans[id(tensor), version]


class _Player:
    """One replay: the values of the tensors that depend on the cut, and copies of storages written to on the way."""

    def __init__(self, tape: Tape, steps: tuple[int, ...], cut: Tensor, replacement: Tensor) -> None:
        self._tape = tape
        self._steps = steps
        own = storage_of(cut)
        written = any(own in tape.steps[index].versions for index in steps)
        self._values = {id(cut): replacement.clone() if written else replacement}
        self._copies: dict[int, torch.UntypedStorage] = {}

    def play(self) -> Tensor:
        for index in self._steps:
            step = self._tape.steps[index]
            for storage in step.versions:
                held = any(name in self._values for name, of in step.takes if of == storage)
                if not held and storage not in self._copies:
                    self._copies[storage] = snapshot(step.before[storage])
            value = partial(self._value, step=index)
            self._keep(step.result, step.func(*mapped(step.args, value), **mapped(step.kwargs, value)))
        return self._value(self._tape.result, len(self._tape.steps))

    def _value(self, tensor: Tensor, step: int) -> Tensor:
        if id(tensor) in self._values:
            return self._values[id(tensor)]
        copy = self._copies.get(storage_of(tensor)) if self._copies else None
        return self._tape.value(tensor, step) if copy is None else view_on(copy, tensor)

    def _keep(self, recorded: Any, result: Any) -> None:
        for old, new in zip(tensors_in(recorded), tensors_in(result)):
            self._values[id(old)] = new


def _where(cut: Tensor | Cut) -> tuple[Tensor, int]:
    return (cut.tensor, cut.version) if isinstance(cut, Cut) else (cut, cut._version)


def _like(replacement: Tensor, cut: Tensor) -> Tensor:
    """The replacement laid out in memory as the cut is, since ``view`` and its like ask for that."""
    if replacement.shape != cut.shape or replacement.dtype != cut.dtype:
        raise ValueError(
            f"Argument replacement should be {cut.dtype} of shape {tuple(cut.shape)} as the cut is, but given "
            f"{replacement.dtype} of shape {tuple(replacement.shape)}"
        )
    if replacement.stride() == cut.stride():
        return replacement.detach()
    return torch.empty_like(cut, memory_format=torch.preserve_format).copy_(replacement)


def _same_bits(a: Tensor, b: Tensor) -> bool:
    return (a.shape, a.dtype) == (b.shape, b.dtype) and torch.equal(_bits(a), _bits(b))


def _bits(tensor: Tensor) -> Tensor:
    return tensor.detach().reshape(-1).contiguous().view(torch.uint8)
