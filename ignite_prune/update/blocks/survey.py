"""How the blocks of a model follow each other, found by one forward of a sample and checked by replaying it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor, nn

from ignite_prune._utils.nested import tensors_in
from ignite_prune.core.batches import Batch
from ignite_prune.saliency import MissingEvidence
from ignite_prune.update.blocks.activation_store import is_plain_form
from ignite_prune.update.blocks.placeholders import cloned
from ignite_prune.update.blocks.relay import Forward, handled
from ignite_prune.update.blocks.replay import Inputs, Replay


class Present(Protocol):
    """Brings weights; see :class:`.BlockWeights`."""

    def present(self, name: str) -> AbstractContextManager[None]:
        """Bring those of one block inside a ``with`` block."""

    def complete(self) -> bool:
        """Load all weights outside of the blocks; return whether some were missing."""


@dataclass(frozen=True)
class Route:
    """The nodes of a relay, and the inputs that each needs.

    Args:
        nodes: modules by name, in the order of their calls: those ahead of the blocks that are run once for each batch,
            as an encoder that is not pruned, then the blocks.
        first: the number of nodes ahead of the blocks.
        needed: for each node, the places of earlier nodes whose outputs its inputs are made of.
        input_use: the last place whose inputs are made of floating-point tensors of the batch; -1 if it has none.
    """

    nodes: dict[str, nn.Module]
    first: int
    needed: tuple[frozenset[int], ...]
    input_use: int

    def last_use(self, node: int) -> int:
        """Return the place of the last node that needs the output of this one; its own, if none does."""
        return max((place for place, needed in enumerate(self.needed) if node in needed), default=node)


def survey(
    model: nn.Module,
    blocks: Mapping[str, nn.Module],
    samples: Sequence[Batch],
    weights: Present,
    run: Callable[..., Any] = lambda name, forward, args, kwargs: forward(*args, **kwargs),
) -> Route:
    """Run the model once on a sample, and replay the way to each block; return what was found.

    Args:
        model: unwrapped.
        blocks: by name.
        samples: the first one that the model takes is used.
        weights: brings them.
        run: called as ``run(name, forward, args, kwargs)`` to run a block the first time.

    Raises:
        TypeError: a block returns something that cannot be stored.
        ValueError: a block is not called, called twice or not in the order given; or gets inputs that cannot be had
            again from the outputs of the nodes before it.
    """
    ahead = dict(_beside(model, blocks))
    seen, sample = _first_run(_Recorder(blocks, weights, run), {**ahead, **blocks}, samples)
    _check_calls(list(blocks), seen.calls)
    nodes = {name: ahead[name] for name in _worth_storing(seen, ahead, next(iter(blocks)))} | dict(blocks)
    for name in blocks:
        check_output(name, seen.outputs[name])
    first = len(nodes) - len(blocks)
    replay = Replay(nodes, seen.inputs, seen.outputs, sample, weights.present)
    needed = [frozenset[int]()] * first
    for place in range(first, len(nodes)):
        needed.append(replay.needed(place, needed[-1] if needed else frozenset()))
    return Route(nodes, first, tuple(needed), replay.input_use(needed, first))


def _first_run(seen: _Recorder, nodes: Mapping[str, nn.Module], samples: Sequence[Batch]) -> tuple[_Recorder, Batch]:
    """Run the first sample that the model takes; if it takes none, with all weights outside of the blocks there."""
    while True:
        for sample in samples:
            seen = seen.new()
            try:
                with handled(nodes, seen):
                    sample.output()
                return seen, sample
            except MissingEvidence:
                raise
            except Exception:
                if sample is samples[-1] and not seen.weights.complete():
                    raise


class _Recorder:
    """Records the calls of nodes: their order, the inputs of the blocks, and all outputs."""

    def __init__(self, blocks: Mapping[str, nn.Module], weights: Present, run: Callable[..., Any]) -> None:
        self.weights = weights
        self.calls: list[str] = []
        self.inputs: dict[str, Inputs] = {}
        self.outputs: dict[str, Any] = {}
        self._blocks, self._run = blocks, run

    def new(self) -> _Recorder:
        """Return an empty one."""
        return _Recorder(self._blocks, self.weights, self._run)

    def __call__(self, name: str, original: Forward, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        self.calls.append(name)
        if name not in self._blocks:
            output = original(*args, **kwargs)
        else:
            self.inputs[name] = (cloned(args), cloned(dict(kwargs)))
            with self.weights.present(name):
                output = self._run(name, original, args, kwargs)
        self.outputs[name] = cloned(output)
        return output


def _beside(model: nn.Module, blocks: Mapping[str, nn.Module], prefix: str = "") -> Iterator[tuple[str, nn.Module]]:
    """Yield the outermost modules that neither are blocks nor contain one."""
    for name, child in model.named_children():
        path = f"{prefix}{name}"
        if child in blocks.values():
            continue
        holds = any(each in blocks.values() for each in child.modules())
        if holds or isinstance(child, (nn.ModuleList, nn.ModuleDict)):
            yield from _beside(child, blocks, f"{path}.")
        else:
            yield path, child


def _worth_storing(seen: _Recorder, ahead: Mapping[str, nn.Module], first: str) -> Iterator[str]:
    """Yield the modules called once, ahead of the blocks, that hold more than embeddings, norms and tables."""
    begin = seen.calls.index(first)
    for place, name in enumerate(seen.calls[:begin]):
        weights = [
            parameter
            for module in ahead[name].modules()
            if not isinstance(module, (nn.Embedding, nn.EmbeddingBag))
            for parameter in module.parameters(recurse=False)
            if parameter.ndim > 1
        ]
        if weights and seen.calls.count(name) == 1 and place < begin and _is_storable(seen.outputs[name]):
            yield name


def _check_calls(blocks: Sequence[str], calls: Sequence[str]) -> None:
    called = [name for name in calls if name in blocks]
    for name in blocks:
        if name not in called:
            raise ValueError(
                f"Block {name!r} is not called in a forward of the model; leave it out of blocks=, or give data that "
                "reaches it"
            )
        if called.count(name) > 1:
            raise ValueError(
                f"Block {name!r} is called {called.count(name)} times in a forward; a block that is used several times "
                "has no one place in the order of blocks: prune the model with prune_model"
            )
    if called != list(blocks):
        place = next(index for index, name in enumerate(called) if name != blocks[index])
        raise ValueError(
            f"The forward calls block {called[place]!r} where {blocks[place]!r} stands in blocks=; list the blocks in "
            f"the order of their calls: {called[:8]}{'...' if len(called) > 8 else ''}"
        )


def check_output(name: str, output: Any, plain: bool = False) -> None:
    """Raise TypeError unless a block's output is of tensors in containers, at least one of them floating point.

    Args:
        name: of the block.
        output: what it returned.
        plain: containers may be tuples, lists and dicts alone.
    """
    if not _is_storable(output) or (plain and not is_plain_form(output)):
        raise TypeError(
            f"Block {name!r} should return a tensor, or a tuple, list or mapping that holds one (and None, numbers), "
            f"but it returned {_described(output)}"
        )


def _described(output: Any) -> str:
    if isinstance(output, (tuple, list)):
        return f"a {type(output).__name__} of {', '.join(type(each).__name__ for each in output) or 'nothing'}"
    return f"{type(output)}"


def _is_storable(value: Any) -> bool:
    return _leaves_are_plain(value) and any(tensor.is_floating_point() for tensor in tensors_in(value))


def _leaves_are_plain(value: Any) -> bool:
    if isinstance(value, Mapping):
        return all(map(_leaves_are_plain, value.values()))
    if isinstance(value, (tuple, list)):
        return all(map(_leaves_are_plain, value))
    return value is None or isinstance(value, (Tensor, bool, int, float, complex, str))
