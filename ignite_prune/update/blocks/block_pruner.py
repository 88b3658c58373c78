"""The order in which blocks are pruned: gather, prune, run again, next block."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import nn

from ignite_prune._utils.commit import to_the_end
from ignite_prune._utils.distributed import raise_together
from ignite_prune._utils.freed_memory import give_back_freed
from ignite_prune.allocation import OWL
from ignite_prune.core.batches import Batch
from ignite_prune.core.mask_store import MaskStore
from ignite_prune.core.selection import named_parameters
from ignite_prune.core.undisturbed import undisturbed
from ignite_prune.evidence.collectors.base import observer_of
from ignite_prune.evidence.evidence import Evidence
from ignite_prune.evidence.ranks import FAILED
from ignite_prune.update.blocks.activation_store import ActivationStore
from ignite_prune.update.blocks.block_masks import BlockReport
from ignite_prune.update.blocks.block_plan import (
    block_layer,
    by_block,
    evidence_for_block,
    owl_targets,
    plan_block,
)
from ignite_prune.update.blocks.placeholders import placeholder, without_numbers
from ignite_prune.update.blocks.progress import Advance
from ignite_prune.update.blocks.relay import Relay, call, observable
from ignite_prune.update.blocks.survey import Present, Route, check_output
from ignite_prune.update.param_group import ParamGroup
from ignite_prune.update.plan import UpdatePlan, write_values

INPUT = -1
"""The node of a batch itself, in an :class:`.ActivationStore`."""


class Weights(Present, Protocol):
    """Brings the weights of blocks; see :class:`.BlockWeights`."""

    def around(self) -> AbstractContextManager[None]:
        """Bring what is outside of the blocks, inside a ``with`` block."""


@dataclass
class BlockPruner:
    """Prunes the blocks of a model one after another.

    Args:
        model: unwrapped, in eval mode.
        route: the nodes that batches run through.
        groups: by block, for blocks with parameters to prune.
        weights: brings a block's weights.
        store: of the batches and of what nodes give out.
        batches: their number.
        sequential: whether a block runs on the outputs of the pruned blocks before it; otherwise of the dense ones.
        keep: called with a block's plan before its weights are changed.
        commit: called with a block's name and plan once they are; it may be repeated.
        advance: called after each pass of a batch.
        targets: the sparsity of each block, by name, once it is known.
        resumable: whether what a node was run on is kept until ``done`` was called for it.
        forms: by batch and node, placeholders of outputs.
    """

    model: nn.Module
    route: Route
    groups: Mapping[str, ParamGroup]
    weights: Weights
    store: ActivationStore
    batches: int
    sequential: bool
    keep: Callable[[UpdatePlan], object]
    commit: Callable[[str, UpdatePlan], object]
    advance: Advance
    targets: dict[str, float | None] = field(default_factory=dict)
    resumable: bool = False
    forms: dict[tuple[int, int], Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.relay = Relay(self.route.nodes)
        self.names = self.relay.names
        self.last_use = [self.route.last_use(place) for place in range(len(self.names))]
        self.at = ""

    @property
    def passes(self) -> int:
        """The number of passes of batches that :meth:`run` makes, for a bar."""
        owl = any(isinstance(group["allocation"], OWL) for group in self.groups.values())
        blocks = len(self.names) - self.route.first
        again = sum(name in self.groups and self.last_use[p] > p for p, name in enumerate(self.names))
        per_batch = self.route.first + blocks * (2 if owl else 1) + (again if self.sequential else 0)
        return per_batch * self.batches

    def run(self, done: Callable[[int, BlockReport], None], finished: int = 0) -> None:
        """Prune all blocks.

        Args:
            done: called with a node's place after it, with its report.
            finished: number of nodes that are done; what the blocks among them gave out is in the store. Nodes ahead of
                the blocks run in any case.

        Raises:
            TypeError, ValueError: a block cannot be pruned; those before it are.
        """
        with _quiet(self.model), self.weights.around():
            if not self.targets:
                self.targets = {name: group["sparsity"] for name, group in self.groups.items()}
                if any(isinstance(group["allocation"], OWL) for group in self.groups.values()):
                    self._find_targets()
            left = range(max(finished, self.route.first), len(self.names))
            for place in (*range(self.route.first), *left):
                self.at, began = self.names[place], time.perf_counter()
                kept, numel = self._node(place)
                done(place, BlockReport(self.names[place], kept, numel, time.perf_counter() - began))
                self._drop_before(place)

    def _find_targets(self) -> None:
        """Run the dense model block by block for the ratios of outliers that OWL divides by."""
        ratios: dict[str, float] = {}
        for place, name in enumerate(self.names):
            with self.weights.present(name):
                evidence = self._gather(place, keep=True)
                if name in self.groups:
                    group, store = self.groups[name], self._store_of(name)
                    allocation = group["allocation"]
                    assert isinstance(allocation, OWL)
                    ratios[name] = allocation.outliers(block_layer(group, store, evidence))
                    if evidence is not None:
                        evidence.reset(start=True)
            self._drop_before(place)
        groups = [self.groups[name] for name in ratios]
        owl = groups[0]["allocation"]
        assert isinstance(owl, OWL)
        self.targets = dict(zip(ratios, owl_targets(owl, list(ratios.values()), groups)))
        for batch in range(self.batches):
            for place in range(len(self.names)):
                self.store.drop(batch, place)

    def _store_of(self, name: str) -> MaskStore:
        parameters = named_parameters(self.model)
        return MaskStore({each: parameters[each] for each in self.groups[name]["params"]})

    def _node(self, place: int) -> tuple[int, int]:
        """Run one node over all batches, and prune it if it is a block; return its kept entries and all."""
        name = self.names[place]
        with self.weights.present(name):
            if name not in self.groups:
                self._outputs(place)
                return 0, 0
            store = self._store_of(name)
            evidence = self._gather(place, keep=not self.sequential)
            self._prune(name, store, evidence)
            if evidence is not None:
                evidence.reset(start=True)  # collectors refer to themselves, and would live on
            give_back_freed()
            if self.sequential:
                self._outputs(place)
        return sum(map(store.kept, store)), store.numel

    def _prune(self, name: str, store: MaskStore, evidence: Evidence | None) -> None:
        group = by_block(self.groups[name])
        plan = plan_block(self.model, group, self.targets[name], store, evidence)
        replaced = store.replaced(plan.masks)
        self.keep(plan)

        def change() -> None:
            write_values(self.model, plan.values)
            store.put(replaced)
            store.apply_()
            self.commit(name, plan)

        to_the_end(change)

    def _gather(self, place: int, keep: bool) -> Evidence | None:
        """Run a node with evidence gathered; ``keep``: store what it gives out."""
        name, evidence = self.names[place], None
        if name in self.groups:
            evidence = evidence_for_block(self.model, self.groups[name], self._store_of(name).parameters)
        keep = keep and self.last_use[place] > place
        error = None
        try:
            if evidence is not None:
                root = observable(self.route.nodes[name])
                with observer_of(list(evidence.collectors.values())).installed(root):
                    self._all_batches(place, root, keep, "gathering")
            elif keep:
                self._all_batches(place, call, True, "running")
        except Exception as raised:  # the other ranks must not wait for this one
            error = raised
        raise_together(error, FAILED)
        return evidence

    def _outputs(self, place: int) -> None:
        """Run a node, and store what it gives out."""
        if self.last_use[place] > place:
            self._all_batches(place, call, True, "running")

    def _all_batches(self, place: int, run: Callable[..., Any], keep: bool, doing: str) -> None:
        with self.relay.at(place, run) as forward:
            for batch in range(self.batches):
                x = Batch(self.model, self.store.get(batch, INPUT), None, None)
                output = forward(x, [self._value(batch, node, place) for node in range(place)])
                if keep:
                    check_output(self.names[place], output, plain=self.resumable and place >= self.route.first)
                    self.forms[batch, place] = placeholder(output)
                    self.store.put(batch, place, output, () if self.resumable else self._unneeded(place))
                self.advance(f"{doing} {self.names[place]}")

    def _value(self, batch: int, node: int, place: int) -> Any:
        return self.store.get(batch, node) if node in self.route.needed[place] else self.forms[batch, node]

    def _unneeded(self, place: int) -> list[int]:
        """Return the nodes whose outputs no node after this one needs."""
        return [node for node in self.route.needed[place] if self.last_use[node] <= place]

    def _drop_before(self, place: int) -> None:
        for batch in range(self.batches):
            for node in self._unneeded(place):
                self.store.drop(batch, node)
            if place == self.route.input_use:
                self.store.put(batch, INPUT, without_numbers(self.store.get(batch, INPUT)))


@contextmanager
def _quiet(model: nn.Module) -> Iterator[None]:
    with undisturbed(model), torch.no_grad():
        yield
