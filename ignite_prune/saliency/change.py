"""Change: the distance of a weight from its initial value."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

from ignite_prune.saliency.base import Informed
from ignite_prune.saliency.needs import Initial, Need


@dataclass(frozen=True)
class Change(Informed):
    r"""Distance of the weight from its initial value, :math:`s = |w - w_0|`.

    :math:`w_0` is the value when the ``PruneHandler`` was created; it is stored in checkpoints. Memory: one number per
    entry.

    Args:
        initial: :math:`w_0` by parameter name, such as an earlier ``state_dict()``; required without a handler.

    Raises:
        TypeError: ``initial`` is not a mapping of tensors.
        ValueError: (from an update) a tensor of ``initial`` has another shape than its parameter.

    Example:
        >>> import torch
        >>> Change().formula(torch.tensor([1.0, 2.0]), torch.tensor([0.0, 2.5]))
        tensor([1.0000, 0.5000])

    References:
        Zhou, Lan, Liu, Yosinski, "Deconstructing lottery tickets", 2019, arXiv 1905.01067 (its "movement").
    """

    initial: Mapping[str, Tensor] | None = field(default=None, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.initial is not None and not (
            isinstance(self.initial, Mapping) and all(isinstance(v, Tensor) for v in self.initial.values())
        ):
            raise TypeError(f"Argument initial should be a mapping {{name: Tensor}}, but given {type(self.initial)}")

    @property
    def need(self) -> Initial:
        return Initial()

    @property
    def needs(self) -> tuple[Need, ...]:
        return (self.need,) if self.initial is None else ()

    def __call__(self, name: str, parameter: Tensor) -> Tensor:
        if self.initial is None or name not in self.initial:
            return super().__call__(name, parameter)
        start = self.initial[name]
        if start.shape != parameter.shape:
            raise ValueError(
                f"Argument initial should have {name!r} in the parameter's shape {tuple(parameter.shape)}, but given "
                f"{tuple(start.shape)}"
            )
        return self.formula(parameter.detach(), start)

    def formula(self, weight: Tensor, evidence: Tensor) -> Tensor:
        return (weight - evidence.to(weight.device, weight.dtype)).abs()
