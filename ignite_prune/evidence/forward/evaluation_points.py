"""The evaluation point of a layer's units: after the norm and the activation that follow it in the data flow.

A layer's output starts a path. A call on the units alone extends it; any other call ends it. The point is delivered
before the call that ends the path, because that call may overwrite it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ignite_prune._utils.nested import tensors_in
from ignite_prune.evidence.forward import op_tables as ops
from ignite_prune.evidence.forward.tensor_tags import TensorTags


@dataclass(slots=True, eq=False)
class UnitPath:
    """One call of a layer, and the data flow of its units."""

    name: str  # of the weight
    dim: int  # of the units, counted from the end
    units: int
    best: Any  # the evaluation point so far; None once the path has ended
    batch: int | None  # the number of samples if they are along dim 1, after the sequence; None: along dim 0
    active: bool = False  # whether an activation function precedes `best`


@dataclass(frozen=True, slots=True)
class PathStep:
    """How a call extends a path."""

    path: UnitPath
    active: bool  # whether an activation function precedes its output
    counts: bool  # whether its output may be the evaluation point
    regroups: bool = False  # whether it reshapes, which extends the path if only the dims before the units change


class EvaluationPoints:
    """Follows every layer's output to its evaluation point.

    The path of a layer is the sequence of tensors that hold its units, from its output on. The evaluation point is the
    last tensor of the path that counts: that is where saliencies of activations read the units.

    - A norm, an activation or arithmetic on the units alone (with scalars, parameters and buffers) extends the path,
      and its output counts. After an activation, a norm ends the path.
    - Dropout and pooling over space extend it, but their output does not count unless a norm or an activation follows;
      after an activation they end it.
    - A reshape of the dims before the units' extends it; its output counts if it has more of them (``addmm`` works on a
      matrix, which is split into samples afterwards).
    - Casts and copies extend it; comparisons do for arithmetic (``x * (x > 0)``).
    - Anything else ends it: another layer, another branch, a change of shape, a softmax, a loss.

    Args:
        tags: of the forward pass.
        deliver: called as ``on_activation`` of :meth:`.ForwardObserver.subscribe`, once for each layer call.
        is_constant: whether a tensor is a parameter or a buffer, or a view of one.

    Attributes:
        norms: the scale of the batch norm that last followed each weight's layer, by the weight's name.
    """

    def __init__(
        self,
        tags: TensorTags,
        deliver: Callable[[str, Tensor, int, int], object],
        is_constant: Callable[[Tensor], bool],
    ) -> None:
        self.norms: dict[str, nn.Parameter] = {}
        self._tags, self._deliver, self._is_constant = tags, deliver, is_constant
        self._open: dict[int, UnitPath] = {}

    def start(self, name: str, output: Tensor, dim: int, batch: int | None = None) -> None:
        """Start a path at a layer's output."""
        path = UnitPath(name, dim, output.shape[dim], output, batch)
        self._open[id(path)] = path
        self._mark(output, path, active=False)

    def before(self, call: ops.Call) -> PathStep | None:
        """Deliver the points of the paths that a call ends; return the step by which it extends one."""
        paths = {id(path): path for path in map(self._path, call.tensors) if path is not None}
        if not paths:
            return None
        step = self._step(next(iter(paths.values())), call) if len(paths) == 1 else None
        if step is None:
            for path in paths.values():
                self.end(path)
        return step

    def after(self, step: PathStep, result: Any) -> None:
        """Extend a path by the result of a call."""
        path = step.path
        if step.regroups and path.best.shape[path.dim :] != result.shape[path.dim :]:
            self.end(path)
            return
        for output in tensors_in(result):
            if output.dim() < -path.dim or output.shape[path.dim] != path.units:
                continue
            self._mark(output, path, active=step.active)
            counts = output.is_floating_point() and (step.active or not path.active)
            if counts and (step.counts or (step.regroups and output.dim() > path.best.dim())):
                path.best, path.active = output, step.active

    def finish(self) -> None:
        """Deliver the points of all open paths at the end of a forward pass."""
        for path in list(self._open.values()):
            self.end(path)

    def clear(self) -> None:
        """Drop all open paths without delivering."""
        self._open.clear()

    def end(self, path: UnitPath) -> None:
        """Deliver a path's point and close the path."""
        del self._open[id(path)]
        best, path.best = path.best, None  # tags still hold the path, which must not keep the tensor alive
        samples_second = path.batch is not None and best.dim() == 3 and best.shape[1] == path.batch
        self._deliver(path.name, best, path.dim, int(samples_second))

    def _mark(self, tensor: Tensor, path: UnitPath, active: bool) -> None:
        tag = self._tags.at(tensor)
        tag.path, tag.active = path, active

    def _path(self, tensor: Tensor) -> UnitPath | None:
        tag = self._tags.of(tensor)
        path: UnitPath | None = None if tag is None else tag.path
        return path if path is not None and path.best is not None else None

    def _step(self, path: UnitPath, call: ops.Call) -> PathStep | None:
        tags = map(self._tags.of, call.tensors)
        active = any(tag.active for tag in tags if tag is not None and tag.path is path)
        op = call.op
        if op in ops.NORMS:
            self._record_norm(path, call)
            return None if active or self._path(call.input) is not path else PathStep(path, active=False, counts=True)
        if op in ops.DROPOUT or op in ops.POOLING:
            spoils = call.in_place and bool(call.argument(2, "training", True))
            # A pooling is over as many of the last dims as its name says.
            over_units = op in ops.POOLING and -path.dim <= int(op.split("_pool")[1][0])
            return None if active or spoils or over_units else PathStep(path, active=False, counts=False)
        if op in ops.REGROUPING:
            return PathStep(path, active, counts=False, regroups=True)
        if op in ops.PASSING:
            return PathStep(path, active, counts=False)
        if not self._is_alone(path, call):
            return None
        if op in ops.ACTIVATIONS:
            return PathStep(path, active=True, counts=True)
        if op in ops.ARITHMETIC and not (op in ("max", "min") and len(call.tensors) < 2):
            return PathStep(path, active, counts=True)
        return PathStep(path, active=True, counts=False) if op in ops.COMPARISONS else None

    def _record_norm(self, path: UnitPath, call: ops.Call) -> None:
        """Record batch norm's scale, one entry a unit; also after an activation."""
        if call.op == "batch_norm" and self._path(call.input) is path:
            weight = call.argument(1 if call.func is torch.batch_norm else 3, "weight")
            if isinstance(weight, nn.Parameter):
                self.norms[path.name] = weight

    def _is_alone(self, path: UnitPath, call: ops.Call) -> bool:
        """Return whether every tensor of a call is on this path, a number, a parameter or a buffer."""
        return all(
            self._path(tensor) is path or tensor.dim() == 0 or tensor.shape == (1,) or self._is_constant(tensor)
            for tensor in call.tensors
        )
