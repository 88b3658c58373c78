"""Optimal Brain Damage (second-order cost of a weight with a diagonal Hessian), and sources of the curvature."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from ignite_prune._utils.arguments import check_is, check_positive, check_seed
from ignite_prune.saliency.base import Informed
from ignite_prune.saliency.gradient import add_square
from ignite_prune.saliency.needs import Curvature, Gradients, Memory, Need


@dataclass(frozen=True)
class EmpiricalFisher:
    r"""Mean squared gradient, :math:`h = E[g^2]`: the cheapest curvature, never negative.

    With ``data`` the gradient of each sample is squared, one backward pass per sample. In training the batch gradient
    of each step is squared, which costs no extra pass: it is smaller by about the batch size, and differs by the mean
    gradient, but gives the same ranking near an optimum.

    Args:
        per_sample: False squares batch gradients with ``data`` too, one backward pass per batch.
        memory: decay and dtype of the running sum.

    Raises:
        TypeError: ``per_sample`` is not a bool, or ``memory`` not a ``Memory``.
    """

    per_sample: bool = True
    memory: Memory = Memory()

    def __post_init__(self) -> None:
        check_is("per_sample", self.per_sample, bool)
        check_is("memory", self.memory, Memory)

    @property
    def need(self) -> Need:
        return Gradients(add_square, self.memory, mean=True, per_sample=self.per_sample, name="square")


@dataclass(frozen=True)
class Exact:
    """Exact diagonal of the Hessian: one backward pass per weight, for small networks. May be negative.

    Args:
        limit: largest number of weights for which it is computed; more raise an error.
    """

    limit: int = 100_000

    def __post_init__(self) -> None:
        check_positive("limit", self.limit, whole=True)

    @property
    def need(self) -> Need:
        return Curvature(self)

    @property
    def key(self) -> str:
        """Identifies this estimator of the curvature in checkpoints."""
        return "exact"


@dataclass(frozen=True)
class GaussNewton:
    r"""Exact diagonal of the Gauss-Newton matrix :math:`J^T H_L J`; for softmax cross-entropy, the true Fisher.

    One backward pass per output and sample, 64 at a time. Never negative if the loss is convex in the outputs.

    Raises:
        TypeError: (from an update) the model's output is not one tensor.
        ValueError: (from an update) the loss is not convex in the outputs, or has no gradient in them.
    """

    @property
    def need(self) -> Need:
        return Curvature(self)

    @property
    def key(self) -> str:
        """Identifies this estimator of the curvature in checkpoints."""
        return "gauss-newton"


@dataclass(frozen=True)
class Hutchinson:
    r"""Unbiased estimate of the Hessian's diagonal, :math:`E[v \odot Hv]`, with random signs ``v``.

    Args:
        samples: vectors per batch; each costs about two training steps.
        seed: seed of the signs.

    Raises:
        TypeError, ValueError: ``samples`` is not an int of at least 1, or ``seed`` not an int of 64 bits.
    """

    samples: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        check_positive("samples", self.samples, whole=True)
        check_seed(self.seed)

    @property
    def need(self) -> Need:
        return Curvature(self)

    @property
    def key(self) -> str:
        """Identifies this estimator of the curvature in checkpoints."""
        return f"hutchinson/samples={self.samples}/seed={self.seed}"


@dataclass(frozen=True)
class OBD(Informed):
    r"""Second-order increase of the loss without the weight, with a diagonal Hessian: :math:`s = \tfrac12 h_{ii} w^2`.

    Args:
        curvature: method that computes :math:`h`: ``EmpiricalFisher()``, ``Exact()``, ``GaussNewton()`` or
            ``Hutchinson(samples)``.

    Raises:
        TypeError: ``curvature`` is none of these.

    Example:
        >>> import torch
        >>> OBD().formula(torch.tensor([2.0, 1.0]), torch.tensor([0.5, 4.0]))
        tensor([1., 2.])

    References:
        LeCun, Denker, Solla, "Optimal brain damage", 1990.
    """

    curvature: EmpiricalFisher | Exact | GaussNewton | Hutchinson = EmpiricalFisher()
    KINDS: ClassVar[tuple[type, ...]] = (EmpiricalFisher, Exact, GaussNewton, Hutchinson)

    def __post_init__(self) -> None:
        if not isinstance(self.curvature, self.KINDS):
            named = ", ".join(f"saliency.{kind.__name__}()" for kind in self.KINDS)
            raise TypeError(f"Argument curvature should be one of {named}, but given {self.curvature!r}")

    @property
    def need(self) -> Need:
        return self.curvature.need

    def formula(self, weight: Tensor, evidence: Tensor) -> Tensor:
        return weight.square() * evidence / 2
