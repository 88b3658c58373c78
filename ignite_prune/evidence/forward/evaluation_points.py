"""The best evaluation point of a layer's units: behind the norm and the activation that follow it in the data flow.

A layer's output starts a chain. What one call makes of the units alone carries the chain on; anything else ends it,
and the newest tensor that counts is delivered before that call runs, as the call may write to it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ignite_prune.evidence.forward.op_tables import (
    ACTIVATIONS,
    ARITHMETIC,
    COMPARISONS,
    DROPOUT,
    NORMS,
    PASSING,
    POOLING,
    REGROUPING,
    Call,
    pools_units,
    tensors_in,
)
from ignite_prune.evidence.forward.tensor_tags import Notes

Deliver = Callable[[str, Tensor, int, int], object]


class Chain:
    """One use of a layer and how far its units have come.

    Attributes:
        name: the weight's name.
        dim: the unit dim, counted from the end.
        units: how many there are.
        best: the newest tensor that counts; None once the chain has ended.
        active: whether an activation lies behind ``best``.
        batch: how many samples there are, where they lie along dim 1, behind the sequence; None: along dim 0.
    """

    __slots__ = ("active", "batch", "best", "dim", "name", "units")

    def __init__(self, name: str, output: Tensor, dim: int, batch: int | None) -> None:
        self.name = name
        self.dim = dim
        self.units = output.shape[dim]
        self.best: Any = output
        self.active = False
        self.batch = batch

    @property
    def samples(self) -> int:
        """The dim of the samples in ``best``."""
        return int(self.batch is not None and self.best.dim() == 3 and self.best.shape[1] == self.batch)


@dataclass(frozen=True, slots=True)
class Step:
    """What a call does for a chain.

    Attributes:
        chain: the chain.
        active: whether an activation lies behind its output.
        counts: whether its output counts.
        regroups: whether it shapes anew, which a chain outlives if only the dims before the units' change.
    """

    chain: Chain
    active: bool
    counts: bool
    regroups: bool = False


class Points:
    """Follows every layer's output to its evaluation point.

    - A norm, an activation or arithmetic on the units alone (scalars, parameters and buffers may take part) carries
      the chain on, and its output counts. Behind an activation, a norm ends the chain.
    - Dropout and pooling over space carry it on, but their output does not count, so they matter if a norm or an
      activation follows; behind an activation they end it.
    - So does a change of shape that regroups the dims before the units' alone; its output counts if it has more of them
      (``addmm`` works on a matrix, and samples are told apart afterwards).
    - Casts and copies carry it on; comparisons do for arithmetic (``x * (x > 0)``).
    - Anything else ends it: another layer, another branch, a change of shape, a softmax, a loss.

    Args:
        notes: where tensors are noted.
        deliver: called as ``deliver(name, tensor, dim, samples)`` once for each use, with the dims of the units,
            counted from the end, and of the samples.
        is_constant: whether a tensor is a parameter or a buffer, or a view of one.
    """

    def __init__(self, notes: Notes, deliver: Deliver, is_constant: Callable[[Tensor], bool]) -> None:
        self.norms: dict[str, nn.Parameter] = {}
        self._notes = notes
        self._deliver = deliver
        self._is_constant = is_constant
        self._open: dict[int, Chain] = {}

    def start(self, name: str, output: Tensor, dim: int, batch: int | None = None) -> None:
        """Begin a chain at a layer's output."""
        chain = Chain(name, output, dim, batch)
        self._open[id(chain)] = chain
        self._mark(output, chain, active=False)

    def before(self, call: Call) -> Step | None:
        """Deliver what the call ends; return what it carries on."""
        chains = {id(chain): chain for chain in map(self._chain, call.tensors) if chain is not None}
        if not chains:
            return None
        step = self._step(next(iter(chains.values())), call) if len(chains) == 1 else None
        if step is None:
            for chain in chains.values():
                self._end(chain)
        return step

    def after(self, step: Step, result: Any) -> None:
        """Take the result of a call that carried a chain on."""
        chain = step.chain
        if step.regroups and chain.best.shape[chain.dim :] != result.shape[chain.dim :]:
            self._end(chain)
            return
        for output in tensors_in(result):
            if output.dim() < -chain.dim or output.shape[chain.dim] != chain.units:
                continue
            self._mark(output, chain, active=step.active)
            counts = output.is_floating_point() and (step.active or not chain.active)
            if counts and (step.counts or (step.regroups and output.dim() > chain.best.dim())):
                chain.best, chain.active = output, step.active

    def finish(self) -> None:
        """Deliver what nothing has ended; the forward is over."""
        for chain in list(self._open.values()):
            self._end(chain)

    def clear(self) -> None:
        """Forget what is on its way; the forward has failed."""
        self._open.clear()

    def _end(self, chain: Chain) -> None:
        del self._open[id(chain)]
        best, samples = chain.best, chain.samples
        chain.best = None  # notes go on knowing the chain: it must not keep the tensor
        self._deliver(chain.name, best, chain.dim, samples)

    def _mark(self, tensor: Tensor, chain: Chain, active: bool) -> None:
        note = self._notes.at(tensor)
        note.chain, note.active = chain, active

    def _chain(self, tensor: Tensor) -> Chain | None:
        note = self._notes.of(tensor)
        chain: Chain | None = None if note is None else note.chain
        return chain if chain is not None and chain.best is not None else None

    def _step(self, chain: Chain, call: Call) -> Step | None:
        taken = [note for note in map(self._notes.of, call.tensors) if note is not None and note.chain is chain]
        active = any(note.active for note in taken)
        op = call.op
        if op in NORMS:
            self._record_norm(chain, call)
            return None if active or self._chain(call.input) is not chain else Step(chain, active=False, counts=True)
        if op in DROPOUT or op in POOLING:
            spoils = call.in_place and bool(call.argument(2, "training", True))
            over_units = op in POOLING and pools_units(op, chain.dim)
            return None if active or spoils or over_units else Step(chain, active=False, counts=False)
        if op in REGROUPING:
            return Step(chain, active, counts=False, regroups=True)
        if op in PASSING:
            return Step(chain, active, counts=False)
        if not self._is_alone(chain, call):
            return None
        if op in ACTIVATIONS:
            return Step(chain, active=True, counts=True)
        if op in ARITHMETIC and not (op in ("max", "min") and len(call.tensors) < 2):
            return Step(chain, active, counts=True)
        return Step(chain, active=True, counts=False) if op in COMPARISONS else None

    def _record_norm(self, chain: Chain, call: Call) -> None:
        """Batch norm's scale, of which each unit has one; it counts behind an activation too."""
        if call.op == "batch_norm" and self._chain(call.input) is chain:
            weight = call.argument(1 if call.func is torch.batch_norm else 3, "weight")
            if isinstance(weight, nn.Parameter):
                self.norms[chain.name] = weight

    def _is_alone(self, chain: Chain, call: Call) -> bool:
        """Whether no tensor takes part but this chain's, numbers, parameters and buffers."""
        return all(
            self._chain(tensor) is chain or tensor.dim() == 0 or tensor.shape == (1,) or self._is_constant(tensor)
            for tensor in call.tensors
        )
