"""Runs in which random numbers are constants, so that models of different widths can be compared."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

_DRAWS = (
    "rand", "randn", "rand_like", "randn_like", "normal", "normal_functional", "uniform", "bernoulli", "exponential",
    "log_normal", "cauchy", "geometric", "poisson", "_standard_gamma",
)  # fmt: skip


class HeldChance(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Replaces every random number by a constant; a dropout layer keeps all entries.

    A sliced model draws fewer numbers than the masked one, so no seed makes them equal.

    Attributes:
        drawn: names of the operations that drew random numbers.

    Example:
        >>> with HeldChance() as held:
        ...     print(torch.randn(2), sorted(held.drawn))
        tensor([0.5000, 0.5000]) ['randn']
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.drawn: set[str] = set()

    def __torch_dispatch__(
        self, func: Any, types: Iterable[type], args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        found = func(*args, **(kwargs or {}))
        name = func._schema.name.partition("::")[2]
        if name == "native_dropout":
            x, _, training = args
            if training or training is None:
                self.drawn.add(name)
                found = x.clone(), torch.ones_like(x, dtype=torch.bool)
        elif name.removesuffix("_") in _DRAWS:
            self.drawn.add(name)
            for each in tree_leaves(found):
                if isinstance(each, Tensor) and each.is_floating_point():
                    each.fill_(0.5)
        return found
