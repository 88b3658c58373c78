"""Plain functions as saliencies."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from ignite_prune.saliency.base import Saliency


@dataclass(frozen=True)
class FromCallable(Saliency):
    """Wraps a function ``(name, parameter) -> scores`` as a saliency; it is called once per parameter and update.

    Raises:
        TypeError: ``function`` is not callable, or does not return a tensor.

    Example:
        >>> import torch
        >>> FromCallable(lambda name, p: -p)("fc.weight", torch.ones(2))
        tensor([-1., -1.])
    """

    function: Callable[[str, Tensor], Tensor]
    data_dependent: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not callable(self.function):
            raise TypeError(f"Argument function should be callable, but given {self.function!r}")

    def __call__(self, name: str, parameter: Tensor) -> Tensor:
        scores = self.function(name, parameter)
        if not isinstance(scores, Tensor):
            raise TypeError(f"The saliency of parameter {name!r} should be a Tensor, but given {type(scores)}")
        return scores.detach()


def as_saliency(value: Saliency | Callable[[str, Tensor], Tensor]) -> Saliency:
    """Return ``value`` if it is a :class:`Saliency`; wrap a callable ``(name, parameter) -> scores``.

    Raises:
        TypeError: ``value`` is neither.
    """
    if isinstance(value, Saliency):
        return value
    if isinstance(value, type) or not callable(value):
        raise TypeError(
            "Argument saliency should be one of ignite_prune.saliency (saliency.Magnitude(), ...) or a callable "
            f"(name, parameter) -> scores, but given {_described(value)}"
        )
    return FromCallable(value)


def _described(value: Any) -> str:
    return f"the class {value.__name__} (write {value.__name__}())" if isinstance(value, type) else repr(value)
