"""Bias correction: the mean of each output is put back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from ignite_prune.core.selection import named_parameters
from ignite_prune.repair.base import PrunedParameter, Repair, RepairContext, evidence_for
from ignite_prune.saliency.needs import InputNorms


@dataclass(frozen=True)
class Bias(Repair):
    r"""Add to each bias what its output loses on average: :math:`b \leftarrow b + (W - \hat W)\, E[x]`.

    Layers without a bias stay as they are. Costs next to nothing; the means come with Wanda's norms, shared with it.

    Raises:
        ValueError: (from an update) no layer that is pruned has a bias.

    References:
        Nagel, van Baalen, Blankevoort, Welling, "Data-free quantization through weight equalization and bias
        correction", 2019, arXiv 1906.04721.
    """

    @property
    def needs(self) -> tuple[InputNorms]:
        return (InputNorms(),)

    def __call__(self, patient: RepairContext, cuts: Sequence[PrunedParameter]) -> None:
        everything, found = named_parameters(patient.model), False
        for cut in cuts:
            head, dot, leaf = cut.name.rpartition(".")
            name = f"{head}{dot}{leaf.replace('weight', 'bias')}"
            if name == cut.name or name not in everything:
                continue
            found = True
            sums = evidence_for(patient, self, cut.name)
            bias = patient.values.get(name, everything[name].detach())
            patient.values[name] = bias + self._lost(patient, cut.name, sums).to(bias.dtype)
        if cuts and not found:
            raise ValueError(f"repair.Bias() found no bias beside {', '.join(cut.name for cut in cuts)}")

    def _lost(self, patient: RepairContext, name: str, sums: Tensor) -> Tensor:
        """What each output loses on average."""
        was, mask = patient.parameters[name].detach(), patient.masks[name]
        now = patient.weight(name) * mask
        lost = (was - now).to(sums.dtype) * (sums[0] / sums[2].clamp(min=1))
        outputs = 1 if sums.ndim == 3 and sums.shape[2] == 1 and sums.shape[1] > 1 else 0
        return lost.sum([dim for dim in range(lost.ndim) if dim != outputs])
