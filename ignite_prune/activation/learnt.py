"""Learnt: a sparsity that is learnt by gradient descent."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from ignite_prune._utils.arguments import check_positive
from ignite_prune._utils.recorded_arguments import RecordedArguments
from ignite_prune.schedule.base import check_sparsity


class Learnt(RecordedArguments, nn.Module):
    r"""A learnt sparsity :math:`a = \sigma(\theta)`, for ``TopK``; give :math:`\theta` to an optimizer.

    The forward pass drops exactly the fraction a. To first order, dropping a set of winners changes the loss by
    :math:`-\sum g x` over the set, so the gradient is a finite difference between the winners at :math:`a - w` and at
    :math:`a + w`:

    .. math:: \frac{\partial L}{\partial a} \approx -\frac{1}{2w} \sum_{i \in W(a-w) \setminus W(a+w)} g_i x_i

    Add :meth:`penalty` to the loss: without it there is no incentive for sparsity.

    Args:
        initial: initial sparsity, in (0, 1).
        target: sparsity at which the penalty is 0, in [0, 1].
        strength: factor of the penalty, above 0.
        width: w, in (0, 0.5].

    Raises:
        TypeError, ValueError: an argument is not a number, or out of its range.

    Example:
        >>> amount = Learnt(initial=0.5, target=0.9, strength=2.0)
        >>> amount.value, round(amount.penalty().item(), 4)
        (0.5, 0.32)
    """

    def __init__(self, initial: float = 0.5, target: float = 1.0, strength: float = 1.0, width: float = 0.05) -> None:
        super().__init__()
        check_sparsity("initial", initial)
        if not 0 < initial < 1:
            raise ValueError(f"Argument initial should be in (0, 1), where it has a slope, but given {initial}")
        check_sparsity("target", target)
        check_positive("strength", strength)
        check_positive("width", width)
        if width > 0.5:
            raise ValueError(f"Argument width should be at most 0.5, but given {width}")
        self.target, self.strength, self.width = float(target), float(strength), float(width)
        self.logit = nn.Parameter(torch.tensor(math.log(initial / (1 - initial))))

    def forward(self) -> Tensor:
        """Return the sparsity."""
        return self.logit.sigmoid()

    @property
    def value(self) -> float:
        """The sparsity as a number."""
        return float(self().item())

    def penalty(self) -> Tensor:
        """Return strength · (target − sparsity)², a term to add to the loss."""
        penalty: Tensor = self.strength * (self.target - self()) ** 2
        return penalty

    def extra_repr(self) -> str:
        return f"{self.value:.4g}, target={self.target:g}, strength={self.strength:g}"


def with_slope(y: Tensor, x: Tensor, amount: Tensor, moved: Tensor, width: float) -> Tensor:
    """Return ``y`` with a gradient to ``amount``.

    Args:
        y: the output.
        x: the input.
        amount: the learnt sparsity.
        moved: bool, entries of ``x`` that win at the lower end of the finite difference, and not at the upper end.
        width: the width of the finite difference.

    Example:
        >>> x, amount = torch.tensor([[3.0, 1.0]]), torch.tensor(0.5, requires_grad=True)
        >>> y = with_slope(torch.tensor([[3.0, 0.0]]), x, amount, torch.tensor([[False, True]]), 0.5)
        >>> y.sum().backward()
        >>> y.detach(), amount.grad
        (tensor([[3., 0.]]), tensor(-2.))
    """
    wide = torch.promote_types(x.dtype, torch.float32)  # a sum over a batch overflows in half precision
    dropped = torch.where(moved, x.detach(), 0).nan_to_num().to(wide)
    return y + (dropped * ((amount.detach() - amount) / width)).to(y.dtype)
