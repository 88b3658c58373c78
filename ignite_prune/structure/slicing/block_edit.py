"""Removal of whole blocks from a model's lists, with an update of the attributes that count and number them.

A model stores how many blocks it has in more places than its list: configs from which it is built again, attributes,
the index of each layer (a cache is addressed by it), lists of one entry a layer. Each is set to what a model would
have that is built with fewer blocks, and each change can be undone.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from ignite_prune.structure.slicing.module_attributes import configs_along

_COUNT = re.compile(r"(num|n|encoder|decoder)_?(hidden_|encoder_|decoder_)?(layers?|blocks?)|depth")
_PER_LAYER = re.compile(r".*(layer_types|no_rope_layers|attention_layers|layers_block_type)")
_INDEX = re.compile(r"(layer|block)_?(idx|id|index|number|num)")


class BlockEdit:
    """The removal of blocks from one model, which :meth:`undo` takes back.

    Args:
        model: the unwrapped model.
        optimizers: the optimizers that train it.
    """

    def __init__(self, model: nn.Module, optimizers: Sequence[Optimizer]) -> None:
        self._model, self._optimizers = model, optimizers
        self._undo: list[Callable[[], object]] = []

    def drop(self, path: str, blocks: Sequence[str], gone: Sequence[str]) -> None:
        """Remove blocks of one list.

        Args:
            path: of the list.
            blocks: the keys of all its blocks; it may hold other modules between them.
            gone: those to remove.
        """
        self.remove(path, blocks, gone)
        for owner, name, value in _counts(self._model, path, len(blocks), [key not in gone for key in blocks]):
            self.assign(owner, name, value)

    def remove(self, path: str, blocks: Sequence[str], gone: Sequence[str]) -> None:
        """Remove items of one list as :meth:`drop` does, without setting the numbers of layers."""
        holder = self._model.get_submodule(path)
        stay = [key for key in blocks if key not in gone]
        before = dict(holder._modules)
        self._renumber([before[key] for key in blocks], [number for number, key in enumerate(blocks) if key in stay])
        numbers = all(key.isdigit() for key in before)
        left = [(key, module) for key, module in before.items() if key not in gone]
        new = dict(zip(stay, blocks))  # the first keys, as in a model built with fewer blocks
        after = {str(at) if numbers else new.get(key, key): module for at, (key, module) in enumerate(left)}
        self._exchange(holder, after, before)
        self._forget({parameter for key in gone for parameter in before[key].parameters()})  # type: ignore[union-attr]

    def undo(self) -> None:
        """Restore the model and the optimizers."""
        while self._undo:
            self._undo.pop()()

    def _exchange(self, holder: nn.Module, after: Mapping[str, Any], before: Mapping[str, Any]) -> None:
        holder._modules.clear()
        holder._modules.update(after)
        self._undo.append(lambda: holder._modules.update(before))
        self._undo.append(holder._modules.clear)

    def assign(self, owner: Any, name: str, value: Any) -> None:
        """Set an attribute of a module or config."""
        before = getattr(owner, name)
        setattr(owner, name, value)
        self._undo.append(lambda: setattr(owner, name, before))

    def _renumber(self, blocks: Sequence[Any], stay: Sequence[int]) -> None:
        """Set the attributes that hold a layer's index, which count up over all blocks."""
        held = [dict(_indices(block)) for block in blocks]
        for place, (_, name, first) in held[0].items():
            values = [each[place][2] if place in each else None for each in held]
            if values == [first + number for number in range(len(blocks))]:
                for new, old in enumerate(stay):
                    self.assign(held[old][place][0], name, first + new)

    def _forget(self, gone: set[nn.Parameter]) -> None:
        """Remove parameters that the model no longer has from its optimizers, with their state."""
        gone = gone - set(self._model.parameters())
        for optimizer in self._optimizers:
            for group in optimizer.param_groups:
                before = list(group["params"])
                group["params"] = [each for each in before if each not in gone]
                self._undo.append(lambda group=group, before=before: group.update(params=before))  # type: ignore[misc]
            slots: dict[Tensor, Any] = {each: optimizer.state.pop(each) for each in gone if each in optimizer.state}
            self._undo.append(lambda optimizer=optimizer, slots=slots: optimizer.state.update(slots))  # type: ignore[misc]


def _indices(block: nn.Module) -> Iterator[tuple[str, tuple[nn.Module, str, int]]]:
    """Yield the attributes of a block and its submodules that look like the index of a layer, by path."""
    for path, module in block.named_modules():
        for name, value in vars(module).items():
            if type(value) is int and _INDEX.fullmatch(name):
                yield f"{path}.{name}", (module, name, value)


def _counts(model: nn.Module, path: str, count: int, stay: Sequence[bool]) -> Iterator[tuple[Any, str, Any]]:
    """Yield the owners, names and new values of attributes that hold the number of blocks, or one entry for each."""
    parts = path.split(".")
    side = next((each for each in ("decoder", "encoder") if each in parts), "")
    other = {"decoder": "encoder", "encoder": "decoder"}.get(side, "-")
    above = [model.get_submodule(".".join(parts[:length])) for length in range(len(parts))]
    for owner in {id(each): each for each in [*above, *configs_along(model, path)]}.values():
        held = {name: value for name, value in vars(owner).items() if other not in name}
        names = [
            name for name, value in held.items() if _COUNT.fullmatch(name) and (type(value), value) == (int, count)
        ]
        own = [name for name in names if side and side in name]
        yield from ((owner, name, sum(stay)) for name in (own if own and side == "decoder" else names))
        for name, value in held.items():
            if isinstance(value, (list, tuple)) and len(value) == len(stay) and _PER_LAYER.fullmatch(name):
                yield owner, name, type(value)(each for each, left in zip(value, stay) if left)
            stage = next((int(part) for part in reversed(parts) if part.isdigit()), -1)
            if name == "depths" and 0 <= stage < len(value) and value[stage] == count:
                yield owner, name, type(value)([*value[:stage], sum(stay), *value[stage + 1 :]])
