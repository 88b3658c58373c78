"""Mixtures of experts in a model: where their experts and routers lie, and the numbers that describe them."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ignite_prune.structure.slicing.module_attributes import configs_along

COUNT = re.compile(r"(moe_)?(num|n)_?(local_|routed_|moe_)?experts?")
CHOSEN = re.compile(r"(moe_)?top_?k|k|num_experts_per_tok(en)?|num_selected_experts|(moe_)?num_experts_per_tok(en)?")


@dataclass(frozen=True)
class Mixture:
    """Where the experts of one mixture lie.

    Args:
        size: number of experts.
        router: path of the module that holds the router's weight.
        weight: the router's weight, a row for each expert.
        tensors: names of all parameters and buffers whose dimension 0 are the experts, those of the router included.
        lists: paths of the lists of experts.
    """

    size: int
    router: str
    weight: nn.Parameter
    tensors: tuple[str, ...]
    lists: tuple[str, ...]


class MixtureRouting(TorchFunctionMode):
    """Passes the logits of every router through a function of the mixture's path and the logits."""

    def __init__(self, mixtures: Mapping[str, Mixture], change: Callable[[str, Tensor], Tensor]) -> None:
        super().__init__()
        self._paths = {id(each.weight): path for path, each in mixtures.items()}
        self._change = change

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        if func is F.linear:
            weight = args[1] if len(args) > 1 else (kwargs or {}).get("weight")
            path = self._paths.get(id(weight))
            return found if path is None else self._change(path, found)
        return found


def mixtures_of(model: nn.Module) -> Iterator[tuple[str, Mixture]]:
    """Yield the mixtures of a model by path."""
    for path, module in model.named_modules():
        found = _mixture(path, module)
        if found is not None:
            yield path, found


def _mixture(path: str, module: nn.Module) -> Mixture | None:
    """Return the mixture that a module is, if it has experts and one router among its children."""
    children = dict(module.named_children())
    lists = {name: each for name, each in children.items() if isinstance(each, nn.ModuleList) and _alike(each)}
    stacks = {"": module, **children}
    stacked = {
        name: sizes.pop()
        for name, child in stacks.items()
        if len(sizes := {len(each) for each in child.parameters(recurse=False) if each.dim() == 3}) == 1
    }
    sizes = {len(each) for each in lists.values()} | set(stacked.values())
    weights = {name: each._parameters.get("weight") for name, each in children.items() if name not in stacked}
    routers = [(name, each) for name, each in weights.items() if each is not None and each.dim() == 2]
    routers = [each for each in routers if len(each[1]) in sizes]
    routers = [each for each in routers if re.search("gate|rout", each[0])] or routers
    if len(routers) != 1:
        return None
    (name, weight), size = routers[0], len(routers[0][1])
    prefix = f"{path}." if path else ""
    of_router = _rows(children[name], f"{prefix}{name}.", size, (1, 2))
    of_stacks = [
        own
        for stack in (each for each, rows in stacked.items() if rows == size)
        for own in _rows(stacks[stack], f"{prefix}{stack}." if stack else prefix, size, (1, 2, 3))
    ]
    held = tuple(f"{prefix}{each}" for each in lists if len(lists[each]) == size)
    if not held and not of_stacks:
        return None
    return Mixture(size, f"{prefix}{name}", weight, tuple(dict.fromkeys([*of_router, *of_stacks])), held)


def _alike(modules: nn.ModuleList) -> bool:
    return len(modules) > 1 and len({type(each) for each in modules}) == 1


def _rows(module: nn.Module, prefix: str, size: int, dims: Sequence[int]) -> list[str]:
    """Return the names of a module's own tensors that have a row for each expert."""
    own = [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
    return [f"{prefix}{name}" for name, each in own if each.dim() in dims and len(each) == size]


def sliced_mixture(model: nn.Module, mixture: Mixture) -> Mixture:
    """Return a mixture of the model as it is after experts were removed, also if only one is left."""
    weight = model.get_submodule(mixture.router)._parameters["weight"]
    assert weight is not None
    return replace(mixture, size=len(weight), weight=weight)


def numbers_of(model: nn.Module, path: str, mixture: Mixture, names: re.Pattern[str]) -> Iterator[tuple[Any, str]]:
    """Yield the owners and names of whole numbers of a mixture, of the modules around it and of their configs."""
    parts = path.split(".") if path else []
    above = [model.get_submodule(".".join(parts[:length])) for length in range(len(parts) + 1)]
    inside = [each for each in above[-1].children() if not isinstance(each, nn.ModuleList)]
    for owner in {id(each): each for each in [*above, *inside, *configs_along(model, path)]}.values():
        yield from ((owner, name) for name, _ in integers_of(owner) if names.fullmatch(name))


def integers_of(owner: Any) -> list[tuple[str, int]]:
    """Return the names and values of an object's attributes that are whole numbers."""
    return [(name, value) for name, value in vars(owner).items() if type(value) is int]
