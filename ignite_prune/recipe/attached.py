"""Attached: the handlers that a recipe has created, by name."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from ignite_prune.handlers.shrink_handler import ShrinkHandler

if TYPE_CHECKING:
    from ignite_prune.handlers.lottery.pruning_engine import PruningEngine
    from ignite_prune.handlers.prune_handler import PruneHandler


class Attached(Mapping[str, Any]):
    """The handlers that a recipe has made and attached, by name: ``attached["pruner"]``, ``attached["group_lasso"]``.

    Args:
        handlers: by name, in the order in which they are attached.
        engine: that of ``rounds``.
        rounds: how many the recipe asks for.
    """

    def __init__(self, handlers: Mapping[str, Any], engine: PruningEngine | None = None, rounds: int = 0) -> None:
        self._handlers, self._engine, self.rounds = dict(handlers), engine, rounds

    def __getitem__(self, name: str) -> Any:
        return self._handlers[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._handlers)

    def __len__(self) -> int:
        return len(self._handlers)

    def __repr__(self) -> str:
        return f"Attached({', '.join(self._handlers)})"

    @property
    def pruner(self) -> PruneHandler:
        """The handler of ``prune``.

        Raises:
            AttributeError: the recipe has no ``prune``.
        """
        if "pruner" not in self._handlers:
            raise AttributeError(f"this recipe has no prune; there are {list(self._handlers)}")
        return self._handlers["pruner"]  # type: ignore[no-any-return]

    @property
    def engine(self) -> PruningEngine:
        """The engine of ``rounds``: ``attached.engine.run(max_epochs=attached.rounds)``.

        Raises:
            AttributeError: the recipe has no ``rounds``.
        """
        if self._engine is None:
            raise AttributeError("this recipe has no rounds; run the trainer")
        return self._engine

    def to_save(self, **others: Any) -> dict[str, Any]:
        """Return what a ``Checkpoint`` saves, in the order in which it is loaded.

        Args:
            others: model, optimizer, trainer and the like, by name.

        Raises:
            ValueError: a name is taken.
        """
        twice = sorted(set(others) & set(self._handlers))
        if twice:
            raise ValueError(f"the recipe's handlers are named {twice} too; give others another name")
        first = {name: each for name, each in self._handlers.items() if isinstance(each, ShrinkHandler)}
        rest = {name: each for name, each in self._handlers.items() if name not in first}
        if self._engine is not None:
            return self._engine.to_save(**{**first, **others, **{n: each for n, each in rest.items() if n != "pruner"}})
        return {**first, **others, **rest}

    def detach(self) -> None:
        """Detach all handlers, the last first."""
        for each in reversed(list(self._handlers.values())):
            each.detach()

    def finalize(self) -> None:
        """Make the results permanent in a plain model, and detach all handlers."""
        for each in self._handlers.values():
            each.finalize()
