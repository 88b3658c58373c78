"""Rules for parameters, as a file gives them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from ignite_prune._utils.arguments import near

_LAYERS = [name for name, each in vars(nn).items() if isinstance(each, type) and issubclass(each, nn.Module)]


def read_rules(value: Any) -> Any:
    """Return rules for parameters: names, globs, and ``{layer: Conv2d}`` as the layer's type."""
    if isinstance(value, Mapping):
        if set(value) != {"layer"}:
            raise ValueError(f"should be a name, a glob or {{layer: NAME}}, but given {dict(value)!r:.80}")
        if value["layer"] not in _LAYERS:
            raise ValueError(f"torch.nn has no layer {value['layer']!r}; {near(str(value['layer']), _LAYERS)}")
        return vars(nn)[value["layer"]]
    if isinstance(value, (list, tuple)):
        return [read_rules(each) for each in value]
    if value is not None and not isinstance(value, (str, type)):
        raise ValueError(f"should be a name, a glob or a list of them, but given {value!r:.80}")
    return value
