"""Finds out by replays of a sample which outputs each block needs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn

from ignite_prune._utils.nested import tensors_in
from ignite_prune.core.batches import Batch
from ignite_prune.update.blocks.placeholders import cloned, placeholder, without_numbers
from ignite_prune.update.blocks.relay import Forward, Relay, call

Presence = Callable[[str], AbstractContextManager[None]]
"""Called with a block's name: its weights are there inside the ``with`` block."""
Inputs = tuple[tuple[Any, ...], Mapping[str, Any]]
"""Positional and keyword arguments of a block."""


class Replay:
    """Runs a sample up to blocks with some outputs real and the others unknown, and compares the blocks' inputs.

    Inputs that earlier blocks write to, as a list that serves as a cache, differ in a replay. Blocks with such inputs
    are run, and their outputs compared instead.
    """

    def __init__(
        self,
        nodes: Mapping[str, nn.Module],
        inputs: Mapping[str, Inputs],
        outputs: Mapping[str, Any],
        sample: Batch,
        present: Presence,
    ) -> None:
        self._relay, self._sample, self._present = Relay(nodes), sample, present
        self._outputs = [outputs[name] for name in nodes]
        self._inputs = [inputs.get(name) for name in nodes]
        self._runs = set[int]()  # places of blocks whose outputs are compared

    def needed(self, place: int, before: frozenset[int]) -> frozenset[int]:
        """Return the nodes whose outputs a block's inputs are made of.

        Args:
            place: of the block.
            before: those of the node before it.

        Raises:
            ValueError: all together do not give the same inputs, or outputs, again.
        """
        last, every = frozenset((place - 1,) if place else ()), frozenset(range(place))
        tried = [last, last | before, every]
        found = next((real for real in tried if self._fits(place, real)), None)
        if found is None:
            self._runs.add(place)
            found = next((real for real in tried if self._fits(place, real)), None)
        if found is None:
            raise ValueError(
                f"Block {self._relay.names[place]!r} gives something else when the same sample is run again with the "
                "same outputs of the blocks before it: the forward of the model is random, keeps a state, or passes "
                "something between blocks that is not in their outputs"
            )
        for node in sorted(found - last):
            if self._fits(place, found - {node}):
                found -= {node}
        return found

    def input_use(self, needed: Sequence[frozenset[int]], first: int) -> int:
        """Return the last place whose inputs are made of floating-point tensors of the batch."""
        if not any(tensor.is_floating_point() for tensor in tensors_in(self._sample.x)):
            return -1
        unknown = self._sample.given(without_numbers(self._sample.x))
        for place in range(len(needed) - 1, first, -1):
            if not self._fits(place, needed[place], unknown):
                return place
        return first

    def _fits(self, place: int, real: frozenset[int], sample: Batch | None = None) -> bool:
        values = [cloned(each) if k in real else placeholder(each) for k, each in enumerate(self._outputs[:place])]
        runs, batch = place in self._runs, self._sample if sample is None else sample
        try:
            with (
                self._relay.at(place, call if runs else _inputs) as run,
                self._present(self._relay.names[place] if runs else ""),
            ):
                found = run(batch, values)
        except Exception:  # of numbers that are unknown
            return False
        return _equal(found, self._outputs[place] if runs else self._inputs[place])


def _inputs(forward: Forward, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Inputs:
    return args, kwargs


def _equal(given: Any, expected: Any) -> bool:
    """Return whether two structures hold the same tensors and numbers; other objects are not compared."""
    if isinstance(expected, Tensor):
        if not isinstance(given, Tensor) or given.shape != expected.shape or given.dtype != expected.dtype:
            return False
        return torch.equal(given, expected) or (
            torch.equal(given.isnan(), expected.isnan()) and torch.equal(given.nan_to_num(), expected.nan_to_num())
        )
    if isinstance(expected, Mapping):
        return (
            isinstance(given, Mapping)
            and given.keys() == expected.keys()
            and all(_equal(given[key], value) for key, value in expected.items())
        )
    if isinstance(expected, (tuple, list)):
        return isinstance(given, (tuple, list)) and len(given) == len(expected) and all(map(_equal, given, expected))
    if isinstance(expected, (bool, int, float, str)):
        return bool(given == expected)
    return True
