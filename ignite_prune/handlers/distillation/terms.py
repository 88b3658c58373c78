"""The terms of a distillation's loss: plain records of what is compared, and with which weight."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ignite_prune._utils.arguments import check_finite, check_is, check_positive
from ignite_prune.regularise.distillation import attention_error, hidden_error, logits_error, soft_targets


def _check_weight(weight: float) -> None:
    if check_finite("weight", weight) < 0:
        raise ValueError(f"Argument weight should be at least 0, but given {weight}")


def _check_names(student: str, teacher: str | None) -> None:
    check_is("student", student, str)
    if teacher is not None:
        check_is("teacher", teacher, str)


@dataclass(frozen=True)
class SoftTargets:
    """The divergence of outputs softened with a temperature; see :func:`ignite_prune.regularise.soft_targets`.

    Args:
        temperature: above 0; 1 compares the probabilities themselves.
        weight: of this term, at least 0.
        dim: the dimension of the classes: -1, or 1 for images ``(batch, classes, height, width)``.

    Raises:
        TypeError, ValueError: a bad argument.

    Example:
        >>> SoftTargets(temperature=4.0)
        SoftTargets(temperature=4.0, weight=1.0, dim=-1)
    """

    temperature: float = 2.0
    weight: float = 1.0
    dim: int = -1

    def __post_init__(self) -> None:
        check_positive("temperature", self.temperature)
        _check_weight(self.weight)
        if type(self.dim) is not int:
            raise TypeError(f"Argument dim should be an int, but given {self.dim!r}")

    def __call__(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Return the divergence of logits, without the weight."""
        return soft_targets(student, teacher, self.temperature, self.dim)


@dataclass(frozen=True)
class LogitsMSE:
    """The mean squared error of outputs; see :func:`ignite_prune.regularise.logits_error`.

    Args:
        weight: of this term, at least 0.

    Raises:
        TypeError, ValueError: a bad argument.

    Example:
        >>> LogitsMSE(weight=0.1)
        LogitsMSE(weight=0.1)
    """

    weight: float = 1.0

    def __post_init__(self) -> None:
        _check_weight(self.weight)

    def __call__(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Return the error of logits, without the weight."""
        return logits_error(student, teacher)


@dataclass(frozen=True)
class HiddenMSE:
    """The mean squared error of two modules' outputs; see :func:`ignite_prune.regularise.hidden_error`.

    Args:
        student: name of the student's module.
        teacher: name of the teacher's module; None: the same name.
        weight: of this term, at least 0.
        project: learn a linear map of the student's features to the teacher's, for unlike widths: True where both
            modules state their width, else ``(width of the student, width of the teacher)``.
        normalised: compare the directions of feature vectors.
        dim: the dimension of the features; None: 1 for images and the outputs of 1-D convolutions and BatchNorms, else
            the last.

    Raises:
        TypeError, ValueError: a bad argument.

    Example:
        >>> HiddenMSE("encoder.1", "encoder.3", project=(128, 768)).weight
        1.0
    """

    student: str
    teacher: str | None = None
    weight: float = 1.0
    project: bool | tuple[int, int] = False
    normalised: bool = False
    dim: int | None = None

    def __post_init__(self) -> None:
        _check_names(self.student, self.teacher)
        _check_weight(self.weight)
        check_is("normalised", self.normalised, bool)
        if self.dim is not None and type(self.dim) is not int:
            raise TypeError(f"Argument dim should be an int or None, but given {self.dim!r}")
        if not isinstance(self.project, bool):
            if not isinstance(self.project, (tuple, list)) or len(self.project) != 2:
                raise TypeError(
                    "Argument project should be True, False or (width of the student, width of the teacher), but given "
                    f"{self.project!r}"
                )
            for width in self.project:
                check_positive("project", width, whole=True)

    def __call__(self, student: Tensor, teacher: Tensor, dim: int = -1) -> Tensor:
        """Return the error of hidden states, without the weight."""
        return hidden_error(student, teacher, self.normalised, dim)


@dataclass(frozen=True)
class AttentionMSE:
    """The mean squared error of two modules' attention maps; see :func:`ignite_prune.regularise.attention_error`.

    Args:
        student: name of the student's attention module, whose output is ``(values, attentions, ...)``.
        teacher: name of the teacher's module; None: the same name.
        weight: of this term, at least 0.

    Raises:
        TypeError, ValueError: a bad argument.

    Example:
        >>> AttentionMSE("layers.0.attention").student
        'layers.0.attention'
    """

    student: str
    teacher: str | None = None
    weight: float = 1.0

    def __post_init__(self) -> None:
        _check_names(self.student, self.teacher)
        _check_weight(self.weight)

    def __call__(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Return the error of attentions, without the weight."""
        return attention_error(student, teacher)


Term = SoftTargets | LogitsMSE | HiddenMSE | AttentionMSE


def names_of(terms: tuple[Term, ...]) -> list[str]:
    """Return a name for each term, under which it is published: its kind and module, with a number if used again."""
    found: list[str] = []
    for term in terms:
        kind = {SoftTargets: "soft_targets", LogitsMSE: "logits", HiddenMSE: "hidden", AttentionMSE: "attention"}
        name = kind[type(term)] + (f".{term.student}" if isinstance(term, HiddenMSE | AttentionMSE) else "")
        found.append(name if name not in found else f"{name}.{len(found)}")
    return found
