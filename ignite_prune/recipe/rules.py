"""Rules for parameters in a recipe file: names, globs, and rules that need the model to be resolved.

The rules of :func:`ignite_prune.core.selection.select` are names, globs and layer types. A file may also hold a regular
expression, several layer types of which a model need not have all, and names of modules; they become names of
parameters when the recipe is attached.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from torch import nn

from ignite_prune._utils.arguments import near
from ignite_prune.core.selection import named_parameters, unwrap

_LAYERS = [name for name, each in vars(nn).items() if isinstance(each, type) and issubclass(each, nn.Module)]
_MOST, _FEW = 5, 20  # repetitions in an expression; times that count as limited
_MODULE = "module."  # DistributedDataParallel's prefix


@dataclass(frozen=True)
class RegexRule:
    """All parameters whose names a regular expression matches from the start.

    Args:
        regex: without ``re:``; dots that are not escaped match any character.
    """

    regex: str

    def __post_init__(self) -> None:
        compiled(self.regex)

    def names(self, model: nn.Module) -> list[str]:
        """Return the names, of a model with or without ``module.`` in front."""
        pattern = compiled(self.regex)
        everything = list(named_parameters(model))
        return _some(
            [n for n in everything if pattern.match(n) or pattern.match(_MODULE + n)], f"re:{self.regex}", model
        )


@dataclass(frozen=True)
class LayersRule:
    """The weights of all layers of some types, by the types' names; a model need not have all of them.

    Args:
        layers: names of classes, of torch.nn or not.
    """

    layers: tuple[str, ...]

    def names(self, model: nn.Module) -> list[str]:
        """Return the names of the weights."""
        found = [
            f"{name}.weight".removeprefix(".")
            for name, module in unwrap(model).named_modules()
            if {each.__name__ for each in type(module).__mro__} & set(self.layers)
        ]
        return _some(_existing(found, model), " | ".join(self.layers), model)


@dataclass(frozen=True)
class ModulesRule:
    """The weights of linear and convolutional layers in some modules.

    Args:
        modules: names of modules or of their weights, regular expressions over them as ``re:...``, or names of classes.
        ignore: those to leave out, in the same way.
    """

    modules: tuple[str, ...]
    ignore: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for each in (*self.modules, *self.ignore):
            if each.startswith("re:"):
                compiled(each.removeprefix("re:"))

    def names(self, model: nn.Module) -> list[str]:
        """Return the names of the weights."""
        found, modules = [], dict(unwrap(model).named_modules())
        for name, module in modules.items():
            if isinstance(module, (nn.Linear, nn.modules.conv._ConvNd)) or "Conv1D" in type(module).__name__:
                parts = name.split(".")
                around = {".".join(parts[: n + 1]): modules[".".join(parts[: n + 1])] for n in range(len(parts))}
                around[f"{name}.weight"] = module
                if _is_named(self.modules, around) and not _is_named(self.ignore, around):
                    found.append(f"{name}.weight".removeprefix("."))
        return _some(_existing(found, model), ", ".join(self.modules), model)


Rule = (RegexRule, LayersRule, ModulesRule)


def compiled(regex: str) -> re.Pattern[str]:
    """Return a regular expression that is matched quickly.

    Raises:
        ValueError: it is none, is long, has many repetitions, or repeats what has choices or repetitions within: a
            match may take exponential time then.
    """
    if len(regex) > 500:
        raise ValueError(f"the regular expression has {len(regex)} characters, and 500 at most are read")
    try:
        pattern = re.compile(regex)
        tree = import_module("re._parser" if sys.version_info >= (3, 11) else "sre_parse").parse(regex)
        count = _repetitions(tree, False)
    except (re.error, OverflowError, RecursionError) as error:
        raise ValueError(f"re:{regex} is not a regular expression: {error}") from None
    if count > _MOST:
        raise ValueError(
            f"re:{regex:.60} has more than {_MOST} repetitions, or repeats what has choices or repetitions within, so "
            "that a match may take for ever; simplify it"
        )
    return pattern


def _repetitions(tree: Any, inside: bool) -> int:
    """Return how many unlimited repetitions there are; many, if one has choices or repetitions within."""
    found = 0
    for operation, argument in tree:
        repeats = "REPEAT" in str(operation) and int(argument[1]) > _FEW
        if inside and (repeats or "BRANCH" in str(operation) or "REPEAT" in str(operation)):
            return _MOST + 1
        found += repeats
        for each in argument if isinstance(argument, (tuple, list)) else [argument]:
            for inner in each if isinstance(each, list) else [each]:
                if type(inner).__name__ == "SubPattern":
                    found += _repetitions(inner, inside or repeats)
    return found


def _is_named(rules: tuple[str, ...], around: Mapping[str, nn.Module]) -> bool:
    for rule in rules:
        for name, module in around.items():
            if rule.startswith("re:"):
                if compiled(rule.removeprefix("re:")).match(name):
                    return True
            elif rule.removeprefix(_MODULE) == name or rule == type(module).__name__:
                return True
    return False


def _existing(names: list[str], model: nn.Module) -> list[str]:
    everything = named_parameters(model)
    return [name for name in names if name in everything]


def _some(names: list[str], rule: str, model: nn.Module) -> list[str]:
    if not names:
        raise ValueError(f"no parameter matches {rule!r}; {near(rule, list(named_parameters(model)))}")
    return names


def read_rules(value: Any) -> Any:
    """Return rules for parameters from a file.

    Names and globs; ``{layer: Conv2d}``, ``{layers: [Conv2d, Linear]}``, ``{regex: ...}``, ``{modules: [...]}``.
    """
    if isinstance(value, Mapping):
        return _read_rule(value)
    if isinstance(value, (list, tuple)):
        return [read_rules(each) for each in value]
    if value is not None and not isinstance(value, (str, type, *Rule)):
        raise ValueError(f"should be a name, a glob or a list of them, but given {value!r:.80}")
    return value


def is_rule(value: Mapping[Any, Any]) -> bool:
    """Return whether a mapping is one rule, and not ``{rule: settings}``."""
    return bool({"layer", "layers", "regex", "modules"} & set(value)) and not isinstance(
        next(iter(value.values())), Mapping
    )


def _read_rule(value: Mapping[str, Any]) -> Any:
    kinds: dict[str, Any] = {"regex": RegexRule, "layers": LayersRule, "modules": ModulesRule}
    if set(value) == {"layer"}:
        if value["layer"] not in _LAYERS:
            raise ValueError(f"torch.nn has no layer {value['layer']!r}; {near(str(value['layer']), _LAYERS)}")
        return vars(nn)[value["layer"]]
    for key, rule in kinds.items():
        if key in value and set(value) <= {key, "ignore"} and ("ignore" not in value or key == "modules"):
            given = {name: (each if key == "regex" else _texts(each)) for name, each in value.items()}
            if key == "regex" and not isinstance(value[key], str):
                break
            return rule(**given)
    raise ValueError(
        "should be a name, a glob, or {layer: NAME}, {layers: [...]}, {regex: ...} or {modules: [...]}, but given "
        f"{dict(value)!r:.80}"
    )


def _texts(value: Any) -> tuple[str, ...]:
    listed = [value] if isinstance(value, str) else value
    if not isinstance(listed, (list, tuple)) or not all(isinstance(each, str) for each in listed):
        raise ValueError(f"should be a list of names, but given {value!r:.80}")
    return tuple(listed)


def resolved(value: Any, model: nn.Module) -> Any:
    """Return rules in which those that need the model are resolved to parameter names; other values are unchanged."""
    if isinstance(value, Rule):
        return value.names(model)
    if isinstance(value, (list, tuple)) and any(isinstance(each, (str, *Rule)) for each in value):
        found: list[Any] = []
        for each in value:
            names = resolved(each, model)
            found.extend(names if isinstance(names, list) else [names])
        return list(dict.fromkeys(found))
    if isinstance(value, str) and value.startswith(_MODULE) and value not in named_parameters(model):
        return value.removeprefix(_MODULE)
    return value


def written_rule(value: Any) -> dict[str, Any]:
    """Return a rule as a file holds it."""
    if isinstance(value, RegexRule):
        return {"regex": value.regex}
    if isinstance(value, LayersRule):
        return {"layers": list(value.layers)}
    return {"modules": list(value.modules), **({"ignore": list(value.ignore)} if value.ignore else {})}
