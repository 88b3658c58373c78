"""GradientMasking: makes the gradients of pruned weights 0, and knows which of them it has masked.

Gradients are masked as soon as they are accumulated: they are in the cache then, and nothing has read them yet, neither
a clipping of norms, which pruned entries would add to, nor what a user logs. They are masked once more before the step,
if something may have written to them since. On the CPU that is known from the storage and the version counter of the
tensor that was masked, and a few pruned entries are read as well, because writes through ``.data`` are not counted. On
an accelerator masking again costs less than reading the answer.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field

import torch
import torch.distributed
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

from ignite_prune._utils.bits import zero_any_
from ignite_prune._utils.shard import PLAIN, local
from ignite_prune.core.gradient_hooks import after_reduction
from ignite_prune.core.mask_store import MaskStore
from ignite_prune.core.probes import Probes

_DISTRIBUTED = torch.distributed.is_available()


@dataclass(eq=False)
class GradientMasking:
    """The gradients of a store's parameters.

    Args:
        masks: of the gradients.
        hooked: names of the parameters whose gradients are masked as they are accumulated.
        probes: which entries are read.

    Attributes:
        passing: names of parameters whose gradients are not masked for now.
        awaits_reduction: whether the gradients are masked again at the end of the backward pass that is running.
    """

    masks: MaskStore
    hooked: Collection[str]
    probes: Probes
    passing: set[str] = field(default_factory=set, init=False)
    awaits_reduction: bool = field(default=False, init=False)
    _clean: dict[str, tuple[StorageWeakRef, int]] = field(default_factory=dict, init=False)  # masked, at which version

    def accumulated(self, name: str, grad: Tensor | None) -> None:
        """Mask a gradient that has just been accumulated."""
        mask = self.masks.pruned(name)
        if mask is not None and grad is not None and name not in self.passing:
            self.zero(name, grad, mask)
            if _DISTRIBUTED and not self.awaits_reduction and torch.distributed.is_initialized():
                self.awaits_reduction = True
                after_reduction(self._reduced)

    @torch.no_grad()
    def _reduced(self) -> None:
        self.awaits_reduction = False
        for name in self.hooked:
            mask = self.masks.pruned(name)
            if mask is not None:
                self.mask_again(name, self.masks.parameters[name].grad, mask)

    def mask_again(self, name: str, grad: Tensor | None, mask: Tensor) -> None:
        """Mask a gradient unless nothing has written to it since it was masked."""
        if grad is None or name in self.passing:
            return
        part = grad if type(grad) in PLAIN else local(grad)
        if not self.is_unwritten(name, part) or part.take(self.probes(name, mask)).any():
            self.zero(name, part, mask)

    def zero(self, name: str, grad: Tensor, mask: Tensor) -> None:
        """Mask a gradient now."""
        grad = grad if type(grad) in PLAIN else local(grad)
        zero_any_(grad, mask)
        if torch.compiler.is_compiling():  # a compiled step cannot make the reference, and nothing is remembered
            return
        if grad.is_cpu and grad.layout == torch.strided:  # no weak reference to the tensor, see ``claims``
            held = StorageWeakRef(grad.untyped_storage())  # type: ignore[no-untyped-call]
            self._clean[name] = (held, grad._version)

    def is_unwritten(self, name: str, grad: Tensor) -> bool:
        """Return whether a gradient is the one that was masked, at the same version; False if that is not known."""
        seen, version = self._clean.get(name, (None, -1))
        return (
            seen is not None
            and version == grad._version
            and grad.is_cpu
            and grad.layout == torch.strided
            and seen.cdata == grad.untyped_storage()._cdata
        )

    def forget(self) -> None:
        """Forget which gradients have been masked."""
        self._clean.clear()
