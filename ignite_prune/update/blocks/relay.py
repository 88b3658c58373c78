"""Running a model up to one of its blocks, while the blocks before it return outputs that were stored.

Each pass is a real forward of the model: whatever it computes ahead of the blocks and between them (embeddings,
positions, masks, rotary embeddings, caches) is what it passes to the block, and nothing of it is stored. The modules
that were run before are left out, so a pass costs one block.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from torch import nn

from ignite_prune.core.batches import Batch

Forward = Callable[..., Any]
Handler = Callable[[str, Forward, tuple[Any, ...], Mapping[str, Any]], Any]
"""Called instead of a module's ``forward``: its name, the original, and the arguments."""


class _Reached(BaseException):
    """The block was run; no model catches it, as it is no Exception."""

    def __init__(self, output: Any) -> None:
        self.output = output


@contextmanager
def handled(modules: Mapping[str, nn.Module], handler: Handler) -> Iterator[None]:
    """Call ``handler`` instead of the ``forward`` of some modules inside a ``with`` block."""
    before = {name: vars(module).get("forward") for name, module in modules.items()}
    try:
        for name, module in modules.items():
            original = module.forward

            def forward(*args: Any, _name: str = name, _original: Forward = original, **kwargs: Any) -> Any:
                return handler(_name, _original, args, kwargs)

            vars(module)["forward"] = forward
        yield
    finally:
        for name, module in modules.items():
            if before[name] is None:
                vars(module).pop("forward", None)
            else:
                vars(module)["forward"] = before[name]


class _Observed(nn.Module):
    """A block as the root of an observed forward pass, which ends with the block."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block
        self.training = block.training

    def forward(self, original: Forward, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        return original(*args, **kwargs)


def observable(block: nn.Module) -> nn.Module:
    """Return a module to run a block with, as the root of observed forward passes: see :meth:`Relay.at`."""
    return _Observed(block)


def call(original: Forward, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """Run a block."""
    return original(*args, **kwargs)


class Relay:
    """Runs a model up to one of its nodes: modules that run one after another, the blocks among them.

    Args:
        nodes: by name, in the order of their calls.
    """

    def __init__(self, nodes: Mapping[str, nn.Module]) -> None:
        self.nodes, self.names = dict(nodes), list(nodes)
        self._position = {name: place for place, name in enumerate(nodes)}
        self._next = self._target = 0
        self._values: Sequence[Any] = ()
        self._run: Callable[..., Any] = call

    @contextmanager
    def at(self, target: int, run: Callable[..., Any] = call) -> Iterator[Callable[[Batch, Sequence[Any]], Any]]:
        """Yield ``(batch, values) -> output``, which runs the model up to node ``target`` and returns its output.

        ``values`` are what the nodes before the target give out, in their order. The modules are restored afterwards.

        Args:
            target: place of the node.
            run: called as ``run(forward, args, kwargs)`` to run it; :func:`call`, or what
                :func:`observable` returns.
        """
        self._target, self._run = target, run
        with handled(self.nodes, self._handle):
            yield self._pass

    def _pass(self, batch: Batch, values: Sequence[Any]) -> Any:
        self._next, self._values = 0, values
        try:
            batch.output()
        except _Reached as reached:
            return reached.output
        finally:
            self._values = ()
        missing = self.names[self._next]
        raise ValueError(f"The forward ended without a call of block {missing!r}, which the first batch had called")

    def _handle(self, name: str, original: Forward, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        place = self._position[name]
        if place != self._next:
            raise ValueError(
                f"The forward calls {name!r} where {self.names[self._next]!r} was to be called: with this batch "
                "blocks are called in another order than with the first"
            )
        self._next += 1
        if place < self._target:
            return self._values[place]
        raise _Reached(self._run(original, args, kwargs))
