"""All the evidence that some saliencies and repairs need: gathered, reduced over ranks, saved, forgotten."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ignite_prune._utils.distributed import raise_together
from ignite_prune.evidence.calibration import Batch, LossFn, PrepareBatch, batches, undisturbed
from ignite_prune.evidence.collectors.activations import ActivationMeans, FollowingScales, HeadGateMeans
from ignite_prune.evidence.collectors.base import Gatherer
from ignite_prune.evidence.collectors.curvature import CurvatureSums, HessianGradients, gradients_of
from ignite_prune.evidence.collectors.gradients import FisherBlockSums, GradientSums
from ignite_prune.evidence.collectors.initial import InitialValues
from ignite_prune.evidence.collectors.inputs import InputMomentSums, InputNormSums
from ignite_prune.evidence.collectors.shapley import RemovalValues
from ignite_prune.evidence.collectors.synflow import InputShapes
from ignite_prune.evidence.dispatch import watch_for
from ignite_prune.evidence.reduce import FAILED, totals
from ignite_prune.saliency import needs
from ignite_prune.saliency.needs import Need

GATHERERS: dict[type[Need], type[Gatherer]] = {
    needs.Activations: ActivationMeans,
    needs.Curvature: CurvatureSums,
    needs.FisherBlocks: FisherBlockSums,
    needs.FollowingScale: FollowingScales,
    needs.Gradients: GradientSums,
    needs.HeadGates: HeadGateMeans,
    needs.HessianGradient: HessianGradients,
    needs.Initial: InitialValues,
    needs.InputMoments: InputMomentSums,
    needs.InputNorms: InputNormSums,
    needs.SynapticFlow: InputShapes,
    needs.UnitRemoval: RemovalValues,
}
"""Which gatherer gathers which need."""


class Evidence:
    """Gatherers for some needs; equal needs of several groups share one.

    Args:
        model: the unwrapped model.
        wanted: the parameters each need is gathered over, by name.
    """

    def __init__(self, model: nn.Module, wanted: Mapping[Need, Mapping[str, nn.Parameter]]) -> None:
        self.model = model
        unknown = [need for need in wanted if type(need) not in GATHERERS]
        if unknown:
            raise TypeError(f"A saliency's need should be a record of saliency.needs, but given {unknown[0]!r}")
        self.gatherers = {need: GATHERERS[type(need)](need, over, model) for need, over in wanted.items()}
        self._summed: dict[Need, tuple[Mapping[str, Tensor], Mapping[str, float]]] = {}

    def __bool__(self) -> bool:
        return bool(self.gatherers)

    @property
    def probes(self) -> bool:
        """Whether passes of its own are needed, and so the loss."""
        return any(gatherer.probes for gatherer in self.gatherers.values())

    # Gathering

    def probe(self, batch: Batch, batch_statistics: bool = False) -> None:
        """Let those with passes of their own run over one batch of a trainer's; the model is left as it was."""
        with undisturbed(self.model, batch_statistics):
            hear(batch, [gatherer for gatherer in self.gatherers.values() if gatherer.probes])

    def calibrate(
        self,
        data: Iterable[Any],
        loss_fn: LossFn | None = None,
        prepare_batch: PrepareBatch | None = None,
        batch_statistics: bool = False,
    ) -> None:
        """Gather everything anew from one pass over ``data``; the model is left as it was.

        Raises:
            TypeError, ValueError: bad data, or a bad loss, on this rank; ValueError where another rank failed.
        """
        self.reset()
        error: Exception | None = None
        try:
            self._pass_over(data, loss_fn, prepare_batch, batch_statistics)
        except Exception as raised:  # told to the others first: none must wait for this rank
            error = raised
        if error is not None:
            self.reset()
        raise_together(error, FAILED)

    def _pass_over(
        self, data: Iterable[Any], loss_fn: LossFn | None, prepare: PrepareBatch | None, batch_statistics: bool
    ) -> None:
        gatherers = list(self.gatherers.values())
        device = next(p.device for g in gatherers for p in g.parameters.values())
        with undisturbed(self.model, batch_statistics):
            for batch in batches(self.model, data, loss_fn, prepare, device):
                hear(batch, gatherers)

    def reset(self, start: bool = False) -> None:
        """Forget what can be gathered anew; with ``start`` the values at the start too, as there was none."""
        for gatherer in self.gatherers.values():
            if start or not isinstance(gatherer, InitialValues):
                gatherer.reset()
        self._summed.clear()

    def used(self) -> None:
        """Tell that an update has used what there is: what is gathered from now on replaces it."""
        for gatherer in self.gatherers.values():
            gatherer.stale = not gatherer.lasting
        self._summed.clear()

    # Reading

    def sum_over_ranks(self, averaged: bool = False) -> None:
        """Take everybody's sums: to be called on all ranks alike before :meth:`found`.

        Args:
            averaged: gradients were averaged over ranks already, as in training.
        """
        self._summed.clear()
        for need, gatherer in self.gatherers.items():
            gatherer.settled()
            self._summed[need] = totals(gatherer, averaged and gatherer.replicated)

    def found(self, need: Need, masks: Mapping[str, Tensor | None]) -> dict[str, Any]:
        """Return a need's evidence by parameter name; what is missing is not there."""
        gatherer = self.gatherers[need]
        if isinstance(gatherer, InputShapes):
            return dict(gatherer.flows(masks))
        sums, counts = self.totals(need)
        return {name: gatherer.answer(name, sums[name], counts[name]) for name in sums if counts.get(name)}

    def totals(self, need: Need) -> tuple[Mapping[str, Tensor], Mapping[str, float]]:
        """Return a need's sums and counts, of all ranks where these were added up."""
        gatherer = self.gatherers[need]
        return self._summed.get(need, (gatherer.sums, gatherer.counts))

    def reasons(self, need: Need) -> dict[str, str]:
        """Return why parameters have none."""
        gatherer = self.gatherers[need]
        return {name: gatherer.reason(name) for name in gatherer.parameters if name not in gatherer.counts}

    # State

    def state_dict(self, lasting_alone: bool = False) -> list[dict[str, Any]]:
        """Return what is gathered, need by need in order, as plain data.

        Args:
            lasting_alone: leave out what is gathered anew at each update: the values at the start alone.
        """
        return [
            gatherer.state_dict() if not lasting_alone or isinstance(gatherer, InitialValues) else {}
            for gatherer in self.gatherers.values()
        ]

    def sliced_state(
        self, indices: Mapping[str, Mapping[int, Tensor]], lasting_alone: bool = False
    ) -> list[dict[str, Any]]:
        """Return the state that is left of it where parameters keep these indices of their dimensions."""
        return [
            gatherer.sliced_state(indices) if not lasting_alone or isinstance(gatherer, InitialValues) else {}
            for gatherer in self.gatherers.values()
        ]

    def checked(self, state: Any) -> list[dict[str, Any]]:
        """Return a state that fits, or raise.

        Raises:
            TypeError, ValueError: it is of other evidence.
        """
        if not isinstance(state, Sequence) or isinstance(state, str) or len(state) != len(self.gatherers):
            raise ValueError(
                "The checkpoint's pruner and this one should gather the same evidence (the same saliency and repair)"
            )
        return [gatherer.checked(each) if each else {} for gatherer, each in zip(self.gatherers.values(), state)]

    def load_state_dict(self, state: Sequence[Mapping[str, Any]]) -> None:
        """Take a checked state."""
        for gatherer, each in zip(self.gatherers.values(), state):
            if each:
                gatherer.load_state_dict(each)
            else:
                gatherer.reset()
        self._summed.clear()


def hear(batch: Batch, gatherers: Sequence[Gatherer]) -> None:
    """Let gatherers hear a forward and, where one listens to it, a backward pass over a batch; then let them probe."""
    listening = [gatherer for gatherer in gatherers if not gatherer.probes]
    if listening:
        backward = any(gatherer.backward for gatherer in listening)
        by_sample = [gatherer for gatherer in listening if gatherer.per_sample]
        at_once = [gatherer for gatherer in listening if not gatherer.per_sample]
        if at_once:
            _one_pass(batch, at_once, any(gatherer.backward for gatherer in at_once))
        if by_sample:
            for sample in batch.samples():
                _one_pass(sample, by_sample, backward)
    for gatherer in gatherers:
        if gatherer.probes:
            gatherer.fresh()
            gatherer.probe(batch)


def _one_pass(batch: Batch, gatherers: Sequence[Gatherer], backward: bool) -> None:
    wanted = {name: p for g in gatherers for name, p in g.differentiated.items() if p.requires_grad}
    with torch.set_grad_enabled(backward), watch_for(batch.model, gatherers):
        output = batch.output()
    if backward:
        loss = batch.loss(output)
        # Activations' gradients flow past every weight before them, whether or not one wants its own.
        targets = wanted or {n: p for n, p in batch.model.named_parameters() if p.requires_grad}
        found = gradients_of(loss, targets)
        for gatherer in gatherers:
            if gatherer.differentiated:
                gatherer.gradients({name: found[name] for name in gatherer.differentiated if name in found})
