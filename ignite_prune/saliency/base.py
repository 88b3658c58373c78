"""The one interface every saliency has."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor


class NonFiniteSaliency(ValueError):
    """A saliency held NaN or infinity: nothing was pruned by it."""


class Saliency(ABC):
    """A formula from a parameter's name and value to one score an entry, larger = more important.

    A formula is config: frozen and stateless. Two class attributes tell the caller how to treat it.

    Attributes:
        data_dependent: it may differ from rank to rank, so it is asked for once an update and averaged over ranks.
        randomised: it draws; :meth:`draw` throws its dice.
    """

    data_dependent: ClassVar[bool] = False
    randomised: ClassVar[bool] = False

    @abstractmethod
    def __call__(self, name: str, parameter: Tensor) -> Tensor:
        """Return the scores of ``parameter``: its shape, or 1-D with one score a unit."""

    def draw(self, generator: torch.Generator) -> Saliency:
        """Return this formula with its randomness fixed by ``generator``: from then on a pure function."""
        return self


def as_saliency(value: Saliency | Callable[[str, Tensor], Tensor]) -> Saliency:
    """Take a :class:`Saliency` as it is and wrap a plain callable ``(name, parameter) -> scores``.

    Raises:
        TypeError: ``value`` is neither.
    """
    from ignite_prune.saliency.given import FromCallable

    if isinstance(value, Saliency):
        return value
    if isinstance(value, type) or not callable(value):
        raise TypeError(
            "Argument saliency should be one of ignite_prune.saliency (saliency.Magnitude(), ...) or a callable "
            f"(name, parameter) -> scores, but given {_told(value)}"
        )
    return FromCallable(value)


def _told(value: Any) -> str:
    return f"the class {value.__name__} (write {value.__name__}())" if isinstance(value, type) else repr(value)
