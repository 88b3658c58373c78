"""Names of the same weight in a model that holds this one, or has adapters (LoRA, ...) around its layers."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence

from torch import Tensor

from ignite_prune._utils.arguments import near

_WRAPPERS = re.compile(r"^base_model\.model\.|(?<=\.)base_layer\.|^base_layer\.")


def bare_name(name: str) -> str:
    """Return a parameter's name without the parts that peft adds.

    Example:
        >>> bare_name("base_model.model.encoder.0.query.base_layer.weight")
        'encoder.0.query.weight'
    """
    return _WRAPPERS.sub("", name)


def names_in(
    targets: Mapping[str, Tensor],
    parameters: Mapping[str, Tensor],
    names: Iterable[str],
    rename: Callable[[str], str] | None = None,
) -> dict[str, str]:
    """Return the names that parameters have in another model: the same, with a prefix, or with other adapters.

    Args:
        targets: the other model's parameters.
        parameters: those that are looked for.
        names: which of them.
        rename: returns the other model's name of a parameter.

    Raises:
        ValueError: the other model lacks a parameter, has it in another shape, or holds several copies.
    """
    bare = {bare_name(target): target for target in targets}
    wanted = {name: name if rename is None else rename(name) for name in names}
    prefix = _prefix(bare, [bare_name(given) for given in wanted.values()])
    found = {}
    for name, given in wanted.items():
        target = given if given in targets else bare.get(prefix + bare_name(given))
        if target is None:
            raise ValueError(f"Argument model has no parameter {given!r}; {near(given, list(targets))}")
        if targets[target].shape != parameters[name].shape:
            raise ValueError(
                f"Parameter {target!r} of the model given has shape {tuple(targets[target].shape)}, but the mask "
                f"{tuple(parameters[name].shape)}"
            )
        found[name] = target
    return found


def _prefix(known: Iterable[str], names: Sequence[str]) -> str:
    """Return what all names lack in another model: ``"module."`` in torch's ``AveragedModel``.

    Raises:
        ValueError: several prefixes fit.
    """
    given = dict.fromkeys(known)
    missing = next((name for name in names if name not in given), None)
    if missing is None:
        return ""
    prefixes = [each.removesuffix(missing) for each in given if each.endswith("." + missing)]
    prefixes = [prefix for prefix in prefixes if all(prefix + name in given for name in names)]
    if len(prefixes) > 1:
        modules = ", ".join(f"model.{prefix.rstrip('.')}" for prefix in prefixes)
        raise ValueError(f"Argument model holds several models with these parameters; give one of {modules}")
    return prefixes[0] if prefixes else ""
