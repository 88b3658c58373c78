"""Losses of knowledge distillation: how far a student's outputs, hidden states and attentions are from a teacher's.

All compute in float32 at least, and none has a gradient for the teacher.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import kl_div, log_softmax, mse_loss, normalize

from ignite_prune._utils.arguments import check_positive


def soft_targets(student: Tensor, teacher: Tensor, temperature: float = 2.0, dim: int = -1) -> Tensor:
    r"""Return the divergence of softened outputs, :math:`T^2\,\mathrm{KL}(\sigma(t / T) \,\|\, \sigma(s / T))`.

    The factor :math:`T^2` keeps the size of the gradients as the temperature changes. The mean is over everything but
    the classes.

    Args:
        student: logits, any shape.
        teacher: logits of the same shape.
        temperature: :math:`T`, above 0.
        dim: the dimension of the classes, which are at least two.

    Returns:
        A 0-dimensional tensor, at least 0, in nats.

    Raises:
        ValueError: other shapes, a single class, or a temperature that is not above 0.

    Example:
        >>> soft_targets(torch.tensor([[0.0, 0.0]]), torch.tensor([[2.0, 0.0]]), temperature=1.0)
        tensor(0.3278)

    References:
        Hinton, Vinyals, Dean, "Distilling the knowledge in a neural network", 2015, arXiv 1503.02531.
    """
    check_positive("temperature", temperature)
    student, teacher = _alike(student, teacher)
    if student.dim() == 0 or student.shape[dim] < 2:
        raise ValueError(
            f"Softened outputs need at least two classes in dimension {dim}, but logits have shape "
            f"{tuple(student.shape)}; for a single output take the squared error of logits"
        )
    of_student, of_teacher = log_softmax(student / temperature, dim), log_softmax(teacher / temperature, dim)
    rows = student.numel() // student.shape[dim]
    total = kl_div(of_student, of_teacher, reduction="sum", log_target=True)
    return total * (temperature**2 / max(rows, 1))


def logits_error(student: Tensor, teacher: Tensor) -> Tensor:
    r"""Return the mean squared error of logits, :math:`\frac1n \sum (s - t)^2`.

    Args:
        student: logits, any shape.
        teacher: logits of the same shape.

    Raises:
        ValueError: other shapes.

    Example:
        >>> logits_error(torch.tensor([1.0, 2.0]), torch.tensor([1.0, 4.0]))
        tensor(2.)

    References:
        Ba, Caruana, "Do deep nets really need to be deep?", 2014, arXiv 1312.6184.
    """
    return mse_loss(*_alike(student, teacher))


def hidden_error(student: Tensor, teacher: Tensor, normalised: bool = False, dim: int = -1) -> Tensor:
    r"""Return the mean squared error of hidden states.

    Args:
        student: hidden states, any shape, after a projection where the widths differ.
        teacher: hidden states of the same shape.
        normalised: compare directions, :math:`\|s/\|s\| - t/\|t\|\|^2`, the mean over all vectors along ``dim``.
        dim: the dimension of the features.

    Raises:
        ValueError: other shapes.

    Example:
        >>> hidden_error(torch.tensor([[3.0, 0.0]]), torch.tensor([[0.0, 5.0]]), normalised=True)
        tensor(2.)

    References:
        Romero et al., "FitNets: hints for thin deep nets", 2014, arXiv 1412.6550.
    """
    student, teacher = _alike(student, teacher)
    if not normalised:
        return mse_loss(student, teacher)
    return (normalize(student, dim=dim) - normalize(teacher, dim=dim)).square().sum(dim).mean()


def attention_error(student: Tensor, teacher: Tensor) -> Tensor:
    r"""Return the mean squared error of attention maps, of their means over heads where the numbers of heads differ.

    Args:
        student: attentions ``(batch, heads, queries, keys)``, or ``(batch, queries, keys)``.
        teacher: attentions of the same batch, queries and keys.

    Raises:
        ValueError: other shapes.

    Example:
        >>> attention_error(torch.full((1, 2, 1, 2), 0.5), torch.tensor([[[1.0, 0.0]]]))
        tensor(0.2500)

    References:
        Jiao et al., "TinyBERT: distilling BERT for natural language understanding", 2019, arXiv 1909.10351.
    """
    if student.shape != teacher.shape:
        student, teacher = (each.mean(1) if each.dim() == 4 else each for each in (student, teacher))
    return mse_loss(*_alike(student, teacher))


def _alike(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    if student.shape != teacher.shape:
        raise ValueError(
            f"Student and teacher should give tensors of one shape, but they have {tuple(student.shape)} and "
            f"{tuple(teacher.shape)}"
        )
    dtype = torch.promote_types(torch.promote_types(student.dtype, teacher.dtype), torch.float32)
    return student.to(dtype), teacher.detach().to(dtype)
