"""ParameterPlaces: whether a model still holds the parameters that are masked.

When a layer is exchanged, a weight is tied or parametrized, or a state_dict is loaded with ``assign=True``, the model
trains another parameter from then on. Masks and hooks stay with the former one, whose pruned entries remain 0: reading
weights finds nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import islice

from torch import nn

_AT_ONCE = 8  # names that are looked up after an iteration


@dataclass
class ParameterPlaces:
    """Looks masked parameters up in a model.

    Args:
        model: unwrapped.
        parameters: those that are masked, by name.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
        >>> places = ParameterPlaces(model, dict(model.named_parameters()))
        >>> places.lost()
        []
        >>> model[1] = nn.Linear(2, 2)
        >>> places.lost()
        ['1.weight', '1.bias']
    """

    model: nn.Module
    parameters: Mapping[str, nn.Parameter]
    _now: dict[str, str] = field(init=False)  # where each was found the last time: adapters rename what they wrap
    _next: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        self._now = {name: name for name in self.parameters}

    def some_lost(self) -> bool:
        """Return whether one of a few parameters, other ones each time, may not be where it was."""
        looked_up = list(islice(self._now, self._next, self._next + _AT_ONCE))
        self._next = self._next + _AT_ONCE if self._next + _AT_ONCE < len(self._now) else 0
        return any(self._is_elsewhere(name) for name in looked_up)

    def lost(self) -> list[str]:
        """Return the names of all parameters that the model does not hold, or holds under a parametrization."""
        moved = [name for name in self._now if self._is_elsewhere(name)]
        if not moved:
            return []
        held = self.model.named_parameters(remove_duplicate=False)
        places = {parameter: name for name, parameter in held if "parametrizations." not in name}
        self._now |= {name: places[self.parameters[name]] for name in moved if self.parameters[name] in places}
        return [name for name in moved if self.parameters[name] not in places]

    def _is_elsewhere(self, name: str) -> bool:
        return self._at(self._now[name]) is not self.parameters[name]

    def _at(self, name: str) -> nn.Parameter | None:
        module: nn.Module | None = self.model
        *path, leaf = name.split(".")
        for part in path:
            module = None if module is None else module._modules.get(part)
        return None if module is None else module._parameters.get(leaf)
