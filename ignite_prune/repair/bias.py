"""Bias: bias correction, which restores the mean of each output."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from ignite_prune.core.selection import named_parameters
from ignite_prune.repair.base import PrunedParameter, Repair, RepairContext, evidence_for
from ignite_prune.saliency.needs import InputNorms


@dataclass(frozen=True)
class Bias(Repair):
    r"""Adds the mean change of each output to its bias: :math:`b \leftarrow b + (W - \hat W)\, E[x]`.

    Layers without a bias are not changed. The cost is small; the input means are part of the evidence of
    ``saliency.Wanda()``, and shared with it.

    Raises:
        ValueError: (from an update) no pruned layer has a bias.

    References:
        Nagel, van Baalen, Blankevoort, Welling, "Data-free quantization through weight equalization and bias
        correction", 2019, arXiv 1906.04721.
    """

    @property
    def needs(self) -> tuple[InputNorms]:
        return (InputNorms(),)

    def __call__(self, context: RepairContext, pruned: Sequence[PrunedParameter]) -> None:
        everything, found = named_parameters(context.model), False
        for parameter in pruned:
            head, dot, leaf = parameter.name.rpartition(".")
            name = f"{head}{dot}{leaf.replace('weight', 'bias')}"
            if name == parameter.name or name not in everything:
                continue
            found = True
            sums = evidence_for(context, self, parameter.name)
            bias = context.values.get(name, everything[name].detach())
            context.values[name] = bias + self._lost(context, parameter.name, sums).to(bias.dtype)
        if pruned and not found:
            raise ValueError(f"repair.Bias() found no bias next to {', '.join(each.name for each in pruned)}")

    def _lost(self, context: RepairContext, name: str, sums: Tensor) -> Tensor:
        """Return the mean loss of each output."""
        was, mask = context.parameters[name].detach(), context.masks[name]
        now = context.weight(name) * mask
        lost = (was - now).to(sums.dtype) * (sums[0] / sums[2].clamp(min=1))
        outputs = 1 if sums.ndim == 3 and sums.shape[2] == 1 and sums.shape[1] > 1 else 0
        return lost.sum([dim for dim in range(lost.ndim) if dim != outputs])
