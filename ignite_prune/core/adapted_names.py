"""Names of the same weight with and without adapters (LoRA, ...) around its layer."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping

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
    """Return the names that parameters have in another model: the same, or with other adapters around the layer.

    Args:
        targets: the other model's parameters.
        parameters: those that are looked for.
        names: which of them.
        rename: returns the other model's name of a parameter.

    Raises:
        ValueError: the other model lacks a parameter, or has it in another shape.
    """
    bare = {bare_name(target): target for target in targets}
    found = {}
    for name in names:
        given = name if rename is None else rename(name)
        target = given if given in targets else bare.get(bare_name(given))
        if target is None:
            raise ValueError(f"Argument model has no parameter {given!r}; {near(given, list(targets))}")
        if targets[target].shape != parameters[name].shape:
            raise ValueError(
                f"Parameter {target!r} of the model given has shape {tuple(targets[target].shape)}, but the mask "
                f"{tuple(parameters[name].shape)}"
            )
        found[name] = target
    return found
