"""Kinds of evidence that a formula can require; ``ignite_prune.evidence`` collects them.

They are compared by value: groups with equal needs share one collection.
"""

from __future__ import annotations

import inspect
import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

Term = Callable[[Tensor, Tensor, Tensor], Tensor]
"""``(running sum, gradient, weight) -> new running sum``, all of one shape; it may work in place."""


@dataclass(frozen=True)
class Memory:
    """Accumulation of evidence over steps: decay, dtype, and whether mask updates reset it.

    Args:
        decay: factor of the running sum at each step, in (0, 1]: 1 is a plain sum, less a moving window of about
            ``1 / (1 - decay)`` steps.
        dtype: dtype of the running sums; None: that of the parameter, but float32 for half precision.
        lasting: keep accumulating across mask updates; otherwise the first evidence after an update replaces the sum.

    Raises:
        TypeError: ``dtype`` is not a floating-point ``torch.dtype``, or ``lasting`` not a bool.
        ValueError: ``decay`` outside (0, 1].
    """

    decay: float = 1.0
    dtype: torch.dtype | None = None
    lasting: bool = False

    def __post_init__(self) -> None:
        if isinstance(self.decay, bool) or not isinstance(self.decay, (int, float)) or not 0 < self.decay <= 1:
            raise ValueError(f"Argument decay should be a number in (0, 1], but given {self.decay!r}")
        if self.dtype is not None and not (isinstance(self.dtype, torch.dtype) and self.dtype.is_floating_point):
            raise TypeError(f"Argument dtype should be a floating-point torch.dtype, but given {self.dtype!r}")
        if not isinstance(self.lasting, bool):
            raise TypeError(f"Argument lasting should be a bool, but given {self.lasting!r}")

    @property
    def keys(self) -> list[str]:
        """The parts of a need's key that differ from the defaults."""
        decay = [] if self.decay == 1 else [f"decay={float(self.decay)!r}"]
        dtype = [] if self.dtype is None else [str(self.dtype).removeprefix("torch.")]
        return [*decay, *dtype, *(["lasting"] if self.lasting else [])]


@dataclass(frozen=True)
class Need(ABC):
    """Base class of the kinds of evidence; users cannot add others."""

    @property
    @abstractmethod
    def key(self) -> str:
        """Identifies the evidence in checkpoints: short, and independent of the names of classes and functions."""


@dataclass(frozen=True)
class Gradients(Need):
    """A running sum, over training steps or calibration batches, of a function of gradient and weight.

    Memory: one number per entry (``by_unit``: one per unit). Time: one pass over the parameters per step.

    Args:
        term: ``(running sum, gradient, weight) -> new running sum``, see :data:`Term`; for example ``add_size`` of
            ``saliency.gradient``.
        memory: decay and dtype of the sum, and whether mask updates reset it.
        mean: divide by the number of steps.
        per_sample: in a calibration pass use the gradient of each sample (one backward pass per sample).
        by_unit: sum the product of gradient and weight over each slice of dim 0 and its bias before the term.
        name: identifies the term in checkpoints; None: the function's module and name.
    """

    term: Term
    memory: Memory = Memory()
    mean: bool = False
    per_sample: bool = False
    by_unit: bool = False
    name: str | None = None

    @property
    def key(self) -> str:
        name = function_key(self.term) if self.name is None else self.name
        flags = {"mean": self.mean, "per-sample": self.per_sample, "by-unit": self.by_unit}
        return "/".join(["gradients", name, *(flag for flag, is_set in flags.items() if is_set), *self.memory.keys])


@dataclass(frozen=True)
class Initial(Need):
    """The parameter's value when collection began. Memory: one number per entry."""

    @property
    def key(self) -> str:
        return "initial"


@dataclass(frozen=True)
class FisherBlocks(Need):
    """Diagonal blocks of the empirical Fisher matrix, the mean of ``g gᵀ``, without damping.

    Memory: ``block`` numbers per entry.

    Args:
        block: entries per block.
        per_sample: see :class:`Gradients`.
    """

    block: int
    per_sample: bool = True

    @property
    def key(self) -> str:
        return f"fisher-blocks/{self.block}" + ("" if self.per_sample else "/batch")


@dataclass(frozen=True)
class InputNorms(Need):
    """Sum, sum of squares and number of values of each layer input, over all samples and positions.

    Memory: three numbers per layer input (for a convolution: per entry of its kernel). Time: one pass over the inputs.
    """

    @property
    def key(self) -> str:
        return "input-norms"


@dataclass(frozen=True)
class InputMoments(Need):
    r"""Second moments of a layer's inputs, :math:`\sum x x^T`, and the number of input vectors.

    Memory: the square of the number of inputs. Time: that of the layer itself times inputs/outputs.
    """

    @property
    def key(self) -> str:
        return "input-moments"


@dataclass(frozen=True)
class Activations(Need):
    """Mean over samples of a measure of each unit's activation, taken after the norm and activation that follow.

    Memory: one number per unit, and the activations of a forward pass until they are consumed.

    Args:
        measure: ``(z, gradient) -> (samples, units)``; ``z`` and the gradient of the sample's loss (or None) are
            ``(samples, units, positions)``.
        gradient: whether ``measure`` needs the gradient.
        maps: raise an error for layers without feature maps.
        name: identifies the measure in checkpoints; None: the function's module and name.
    """

    measure: Callable[[Tensor, Tensor | None], Tensor]
    gradient: bool = False
    maps: bool = False
    name: str | None = None

    @property
    def key(self) -> str:
        flags = {"gradient": self.gradient, "maps": self.maps}
        name = function_key(self.measure) if self.name is None else self.name
        return "/".join(["activations", name, *(flag for flag, is_set in flags.items() if is_set)])


@dataclass(frozen=True)
class FollowingScale(Need):
    """The scale of the BatchNorm that follows a layer. Memory: one number per unit."""

    @property
    def key(self) -> str:
        return "following-scale"


@dataclass(frozen=True)
class HeadGates(Need):
    r"""Mean over samples of :math:`|\partial L / \partial gate_h|` for every attention head.

    Memory: one number per head.

    Args:
        per_sample: take the absolute value per sample; otherwise of the sum over a batch.
    """

    per_sample: bool = True

    @property
    def key(self) -> str:
        return "head-gates" if self.per_sample else "head-gates/batch"


@dataclass(frozen=True)
class Curvature(Need):
    """Diagonal of the Hessian of the loss or of an approximation, from extra passes over batches.

    Memory: one number per entry, plus that of ``method``.
    """

    method: Any

    @property
    def key(self) -> str:
        return f"curvature/{self.method.key}"


@dataclass(frozen=True)
class HessianGradient(Need):
    """Hessian-gradient product ``Hg`` at a softmax temperature, from extra passes over batches.

    Memory: one number per entry, and a second-order graph.
    """

    temperature: float

    @property
    def key(self) -> str:
        return f"hessian-gradient/temperature={float(self.temperature)!r}"


@dataclass(frozen=True)
class SynapticFlow(Need):
    """Shapes of the model's inputs, from which the flow of SynFlow is computed at each update.

    Args:
        bias: include the biases.
    """

    bias: bool = True

    @property
    def key(self) -> str:
        return "synaptic-flow" if self.bias else "synaptic-flow/no-bias"


@dataclass(frozen=True)
class UnitRemoval(Need):
    """Shapley values: mean increase of the loss when a unit is removed, from extra passes over batches.

    Args:
        samples: number of permutations.
        seed: seed of the permutations.
        exact: layers with at most this many units are computed exactly, over all coalitions.
    """

    samples: int
    seed: int
    exact: int = 8

    @property
    def key(self) -> str:
        return f"unit-removal/samples={self.samples}/seed={self.seed}/exact={self.exact}"


class Fisher(NamedTuple):
    """Evidence of :class:`FisherBlocks`: the sum instead of the mean, because a mean would need a second copy.

    Attributes:
        sums: ``(blocks, block, block)``, the sum of ``g gᵀ``.
        number: number of gradients.
    """

    sums: Tensor
    number: float


class Moments(NamedTuple):
    r"""Evidence of :class:`InputMoments`.

    Attributes:
        sums: ``(groups, inputs, inputs)``, the sum of ``x xᵀ``.
        scale: the Hessian of the layer's mean squared error is ``scale · sums``.
        transposed: whether dim 1 of the weight is the output dimension.
    """

    sums: Tensor
    scale: float
    transposed: bool = False


def function_key(function: Callable[..., Any]) -> str:
    """Return the key of a function in checkpoints: module and qualified name.

    Lambdas and local functions, whose names are not unique, also get a checksum of their code.
    """
    name = f"{function.__module__}.{function.__qualname__}" if inspect.isfunction(function) else repr(function)
    if not inspect.isfunction(function) or "<" not in name:
        return name
    code = function.__code__
    return f"{name}#{zlib.crc32(repr((code.co_code, code.co_consts, code.co_names)).encode()):08x}"
