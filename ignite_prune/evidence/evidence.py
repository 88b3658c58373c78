"""Evidence: everything that saliencies and repairs need besides the weights; collected, summed over ranks, saved."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ignite_prune._utils.distributed import raise_together, world_size
from ignite_prune._utils.kept import Kept
from ignite_prune._utils.shard import is_sharded
from ignite_prune.core.batches import Batch, LossFn, PrepareBatch, batches
from ignite_prune.core.undisturbed import undisturbed
from ignite_prune.evidence.collectors.activations import ActivationMeans, FollowingScales
from ignite_prune.evidence.collectors.base import Collector, observer_of
from ignite_prune.evidence.collectors.gradients import FisherBlockSums, GradientSums
from ignite_prune.evidence.collectors.head_gates import HeadGateMeans
from ignite_prune.evidence.collectors.initial_values import InitialValues
from ignite_prune.evidence.collectors.input_shapes import InputShapes
from ignite_prune.evidence.collectors.inputs import InputMomentSums, InputNormSums
from ignite_prune.evidence.collectors.second_order import CurvatureSums, HessianGradients, gradients_of
from ignite_prune.evidence.collectors.unit_removal import UnitRemovalValues
from ignite_prune.evidence.ranks import FAILED, RankStates, own_part, parts_of, totals_over_ranks
from ignite_prune.evidence.running_sums import Totals
from ignite_prune.evidence.sharded_pass import gradients_of_parts, in_step
from ignite_prune.saliency import needs
from ignite_prune.saliency.needs import Need

COLLECTORS: dict[type[Need], type[Collector[Any]]] = {
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
    needs.UnitRemoval: UnitRemovalValues,
}
"""The collector of each need."""


class Evidence:
    """Collectors by need; equal needs of several groups share one.

    Args:
        model: the unwrapped model.
        wanted: the parameters of each need, by name.
        from_data: whether each mask update computes it from data, so that sums are not saved.
    """

    def __init__(
        self, model: nn.Module, wanted: Mapping[Need, Mapping[str, nn.Parameter]], from_data: bool = False
    ) -> None:
        self.model, self.from_data = model, from_data
        unknown = [need for need in wanted if type(need) not in COLLECTORS]
        if unknown:
            raise TypeError(f"A saliency's need should be a record of saliency.needs, but given {unknown[0]!r}")
        self.collectors = {need: COLLECTORS[type(need)](need, over, model) for need, over in wanted.items()}
        self._totals: dict[Need, Totals] = {}
        names = sorted({name for over in wanted.values() for name in over})
        self._ranks = RankStates(f"ignite_prune/{zlib.crc32(repr((names, [n.key for n in wanted])).encode()):08x}")

    def __bool__(self) -> bool:
        return bool(self.collectors)

    @property
    def probes(self) -> bool:
        """Whether collectors run passes of their own, which need the loss."""
        return any(collector.probes for collector in self.collectors.values())

    def probe(self, batch: Batch, batch_statistics: bool = False) -> None:
        """Run the collectors' own passes over one batch of a trainer; the model is left as it was."""
        with undisturbed(self.model, batch_statistics):
            collect(batch, [collector for collector in self.collectors.values() if collector.probes])

    def calibrate(
        self,
        data: Iterable[Any],
        loss_fn: LossFn | None = None,
        prepare_batch: PrepareBatch | None = None,
        batch_statistics: bool = False,
    ) -> None:
        """Collect everything from one pass over ``data``, after a reset; the model is left as it was.

        Raises:
            TypeError, ValueError: bad data or a bad loss; ValueError if another rank failed.
        """
        self.reset()
        error, collectors = None, list(self.collectors.values())
        try:
            device = next(p.device for each in collectors for p in each.parameters.values())
            with undisturbed(self.model, batch_statistics):
                every = batches(self.model, data, loss_fn, prepare_batch, device)
                if any(map(is_sharded, self.model.parameters())):
                    in_step(every, lambda batch: collect(batch, collectors))
                else:
                    for batch in every:
                        collect(batch, collectors)
        except Exception as raised:  # the other ranks must not wait for this one
            error = raised
            self.reset()
        raise_together(error, FAILED)

    def reset(self, start: bool = False) -> None:
        """Drop what passes have collected; with ``start`` also what was collected at construction."""
        for collector in self.collectors.values():
            if start or not collector.initial:
                collector.reset()
        self._totals.clear()

    def used(self) -> None:
        """Mark the evidence as used by a mask update: the next events start from zeros."""
        for collector in self.collectors.values():
            collector.record.stale = not collector.lasting
        split = {n for n, each in self.collectors.items() if any(map(is_sharded, each.parameters.values()))}
        self._totals = {n: held for n, held in self._totals.items() if n in split and not self.collectors[n].by_part}

    def sum_over_ranks(self, averaged: bool = False) -> None:
        """Reduce the evidence for :meth:`found`, on every rank; ``averaged``: gradients are means over ranks."""
        self._totals.clear()
        for each in self.collectors.values():
            each.settle()
        raise_together(None, FAILED)
        for need, each in self.collectors.items():
            alike = averaged and each.replicated, each.shared
            self._totals[need] = totals_over_ranks(each.record, each.zeros, need.key, *alike)

    def found(self, need: Need, masks: Mapping[str, Tensor | None]) -> dict[str, Any]:
        """Return a need's evidence by parameter name; parameters without any are left out."""
        return self.collectors[need].results(*self.totals(need), masks)

    def totals(self, need: Need) -> Totals:
        """Return a need's sums and counts, over all ranks after :meth:`sum_over_ranks`."""
        record = self.collectors[need].record
        return self._totals.get(need, (record.sums, record.counts))

    def reasons(self, need: Need) -> dict[str, str]:
        """Return the reasons why parameters have no evidence."""
        each = self.collectors[need]
        return {name: each.reason(name) for name in each.parameters if not each.record.counts.get(name)}

    def unusable(self, need: Need) -> dict[str, str]:
        """Return the reasons of those parameters that no data could give evidence of."""
        refused = self.collectors[need].refused
        return {name: reason for name, reason in self.reasons(need).items() if name in refused}

    def not_reached(self, need: Need) -> dict[str, str]:
        """Return the reasons of those parameters that other data may give evidence of."""
        each = self.collectors[need]
        left = {name for name in each.parameters if not (each.is_frozen(name) or name in each.refused)}
        return {name: reason for name, reason in self.reasons(need).items() if name in left}

    def state_dict(self) -> list[dict[str, Any]]:
        """Return the state of each collector on this rank, in the order of the needs."""
        return [each.state_dict(sums=self._saves(each)) for each in self.collectors.values()]

    def sliced_state(self, indices: Mapping[str, Kept]) -> list[dict[str, Any]]:
        """Return the state for parameters that keep these indices, by name and dimension."""
        return [each.sliced_state(indices, sums=self._saves(each)) for each in self.collectors.values()]

    def _saves(self, collector: Collector[Any]) -> bool:
        return collector.initial or not self.from_data

    def state_of_ranks(self, iteration: int) -> list[dict[str, Any]]:
        """Return the state with the evidence that differs between ranks of each of them, if all ranks call this.

        On one rank alone it waits for :data:`~.ranks.PATIENCE`, warns and returns the state of that rank.

        Args:
            iteration: of the training.
        """
        states, collectors = self.state_dict(), list(self.collectors.values())
        differ = [index for index, state in enumerate(states) if state and not collectors[index].alike]
        if world_size() > 1 and differ:
            gathered = self._ranks.gathered([states[index] for index in differ], iteration)
            for index, state in zip(differ, gathered):
                states[index] = state
        return states

    def checked(self, state: Any) -> list[dict[str, Any]]:
        """Return a state that fits, or raise TypeError or ValueError."""
        if not isinstance(state, list | tuple) or len(state) != len(self.collectors):
            raise ValueError(
                "The checkpoint's pruner and this one should gather the same evidence (the same saliency and repair)"
            )
        return [
            {} if isinstance(each, Mapping) and not each else _checked(collector, each)
            for collector, each in zip(self.collectors.values(), state)
        ]

    def load_state_dict(self, state: Sequence[Mapping[str, Any]]) -> None:
        """Load a checked state."""
        for collector, each in zip(self.collectors.values(), state):
            if each:
                collector.load_state_dict(each)
            else:
                collector.reset()
        self._totals.clear()


def _checked(collector: Collector[Any], state: Any) -> dict[str, Any]:
    """Return this rank's part of a state, with copies of the sums on the parameters' devices."""
    if collector.alike or not isinstance(state, Mapping):
        checked = collector.checked(state)
    else:
        checked = own_part([collector.checked(part) for part in parts_of(state)])
    devices = {name: parameter.device for name, parameter in collector.parameters.items()}
    return {**checked, "sums": {name: held.to(devices[name], copy=True) for name, held in checked["sums"].items()}}


def collect(batch: Batch, collectors: Sequence[Collector]) -> None:
    """Run a forward pass and, if a collector needs it, a backward pass over a batch; then the collectors' own."""
    at_once = [each for each in collectors if not each.probes and not each.per_sample]
    by_sample = [each for each in collectors if not each.probes and each.per_sample]
    if at_once:
        _one_pass(batch, at_once)
    for sample in batch.samples() if by_sample else ():
        _one_pass(sample, by_sample)
    for collector in collectors:
        if collector.probes:
            if collector.record.stale:
                collector.record.reset()
            collector.on_batch(batch)


def _one_pass(batch: Batch, collectors: Sequence[Collector]) -> None:
    backward = any(each.backward for each in collectors)
    wanted = {name: p for each in collectors for name, p in each.differentiated.items() if p.requires_grad}
    with torch.set_grad_enabled(backward), observer_of(collectors).installed(batch.model):
        output = batch.output()
    if backward:
        # The gradients of activations need a backward pass past them, whichever weights' gradients are wanted.
        past = not wanted or any(each.backward and not each.differentiated for each in collectors)
        targets = wanted | {n: p for n, p in batch.model.named_parameters() if p.requires_grad} if past else wanted
        if any(map(is_sharded, targets.values())):
            found = gradients_of_parts(batch.loss(output), batch.model, targets)
        else:
            found = gradients_of(batch.loss(output), targets)
        for each in collectors:
            if each.differentiated:
                each.on_gradients({name: found[name] for name in each.differentiated if name in found})
