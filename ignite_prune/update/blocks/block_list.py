"""Finds the modules that are a model's blocks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

from torch import nn

from ignite_prune._utils.arguments import near
from ignite_prune.core.selection import COMPILED, named_parameters


def find_blocks(model: nn.Module, blocks: Any) -> dict[str, nn.Module]:
    """Return the blocks by name, in the order given; the matches of one glob in the model's order.

    Args:
        model: unwrapped.
        blocks: a name or glob of modules, or several. ``*`` stands for a part of a name between two dots:
            ``"model.layers.*"`` matches ``model.layers.0``, not ``model.layers.0.mlp``. Modules of the model, as
            ``model.layers``, are taken as well.

    Raises:
        TypeError: ``blocks`` is none of these.
        ValueError: a glob matches no module, a module is a block twice, or a block is inside another one.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.Linear(2, 2), nn.ReLU()))
        >>> list(find_blocks(model, "*")), list(find_blocks(model, "1.*"))
        (['0', '1'], ['1.0', '1.1'])
    """
    every = {_plain(name): module for name, module in model.named_modules(remove_duplicate=False) if name}
    found: dict[str, nn.Module] = {}
    for rule in _listed(blocks):
        names = _matches(every, rule)
        repeated = [name for name in names if name in found]
        if repeated:
            raise ValueError(f"Argument blocks: {repeated[0]!r} is matched twice; name each block once")
        found |= {name: every[name] for name in names}
    _check_apart(found)
    return found


def _plain(name: str) -> str:
    return f"{name}.".replace(COMPILED, "")[:-1]


def _listed(blocks: Any) -> list[str | nn.Module]:
    listed = [blocks] if isinstance(blocks, str) or not isinstance(blocks, Iterable) else list(blocks)
    if isinstance(blocks, Mapping) or not listed or not all(isinstance(each, (str, nn.Module)) for each in listed):
        raise TypeError(
            'Argument blocks should be a name or glob of modules ("model.layers.*"), modules, or a sequence of them, '
            f"but given {blocks!r:.80}"
        )
    return listed


def _matches(every: Mapping[str, nn.Module], rule: str | nn.Module) -> list[str]:
    if isinstance(rule, nn.Module):
        names = [name for name, module in every.items() if module is rule]
        if not names:
            raise ValueError(f"Argument blocks: a {type(rule).__name__} that is given is not a module of the model")
        return names
    parts = rule.split(".")
    names = [name for name in every if name == rule] or [
        name for name in every if name.count(".") == len(parts) - 1 and all(map(fnmatchcase, name.split("."), parts))
    ]
    if not names:
        lists = [f"{name}.*" for name, module in every.items() if isinstance(module, (nn.ModuleList, nn.Sequential))]
        raise ValueError(f"Argument blocks: no module matches {rule!r}; {near(rule, lists or list(every))}")
    return names


def _check_apart(blocks: Mapping[str, nn.Module]) -> None:
    """Raise if one module is in two blocks, or a block inside another."""
    owners: dict[nn.Module, str] = {}
    for name, block in blocks.items():
        for module in block.modules():
            if module in blocks.values() and module is not block:
                inner = next(other for other, each in blocks.items() if each is module)
                raise ValueError(
                    f"Argument blocks: {inner!r} is inside {name!r}, which is a block too; name one of them"
                )
            if module in owners and any(True for _ in module.parameters()):
                raise ValueError(
                    f"Argument blocks: {owners[module]!r} and {name!r} share a module ({type(module).__name__}), so "
                    "that pruning one would change the other; prune the model with prune_model"
                )
            owners[module] = name


def check_unshared(model: nn.Module, blocks: Mapping[str, nn.Module], chosen: Mapping[str, Sequence[str]]) -> None:
    """Raise if a weight that is pruned in a block is also used by another block, or outside of the blocks.

    Args:
        model: unwrapped.
        blocks: by name.
        chosen: the names of the parameters that are pruned, by block.

    Raises:
        ValueError: names the weight and where else it is used.
    """
    first = {id(parameter): name for name, parameter in named_parameters(model).items()}
    names: dict[str, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(first[id(parameter)], []).append(_plain(name))
    for block, weights in chosen.items():
        for weight in weights:
            outside = [name for name in names[weight] if not name.startswith(f"{block}.")]
            if outside:
                raise ValueError(
                    f"Parameter {weight!r} of block {block!r} is shared with {outside[0]!r} outside of this block: "
                    "pruning it here would change the model there as well; leave it out with exclude="
                )
