"""What a formula may ask for: records of evidence, which ``ignite_prune.evidence`` knows how to gather.

A record is a value: two groups that ask for equal ones share what is gathered.
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
"""``(sum so far, gradient, weight) -> sum with this step in it``, all of one shape; it may work in place."""


@dataclass(frozen=True)
class Memory:
    """How gathered evidence is kept.

    Args:
        decay: what is left of earlier steps at each new one, in (0, 1]; 1 keeps a plain sum. A window of about
            ``1 / (1 - decay)`` steps.
        dtype: of the running sums; None: the parameter's own, but float32 for half precision.
        lasting: go on over mask updates; otherwise what is gathered after an update replaces what was before.

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
    """A kind of evidence; the subclasses are all there are."""

    @property
    @abstractmethod
    def key(self) -> str:
        """Identifies the evidence in checkpoints: short, and independent of the names of classes and functions."""


@dataclass(frozen=True)
class Gradients(Need):
    """A running sum over training steps, or calibration batches, of a term in gradient and weight.

    Memory: one number an entry (``by_unit``: one a unit). Time: one pass over the parameters a step.

    Args:
        term: ``(sum so far, gradient, weight) -> sum with this step in it``, see :data:`Term`; ``add_size`` and others
            of ``saliency.gradient`` are there.
        memory: how the sum is kept.
        mean: divide by the number of steps.
        per_sample: in a calibration pass take every sample's own gradient (one backward pass a sample).
        by_unit: add the product of gradient and weight up over each slice of dim 0 (its bias too) before the term.
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
    """The parameter's value when gathering began. Memory: one number an entry."""

    @property
    def key(self) -> str:
        return "initial"


@dataclass(frozen=True)
class FisherBlocks(Need):
    """The blocks on the diagonal of the empirical Fisher matrix, mean of ``g gᵀ``, not damped.

    Memory: ``block`` numbers an entry.

    Args:
        block: entries a block.
        per_sample: as for :class:`Gradients`.
    """

    block: int
    per_sample: bool = True

    @property
    def key(self) -> str:
        return f"fisher-blocks/{self.block}" + ("" if self.per_sample else "/batch")


@dataclass(frozen=True)
class InputNorms(Need):
    """Of every input of a layer, over all samples and positions: how many, sum, and sum of squares.

    Memory: three numbers a layer input (for a convolution: an input of its kernel). Time: one pass over the inputs.
    """

    @property
    def key(self) -> str:
        return "input-norms"


@dataclass(frozen=True)
class InputMoments(Need):
    r"""The second moments of a layer's inputs, :math:`\sum x x^T`, and their number.

    Memory: the square of the number of inputs. Time: as many products as the layer itself times inputs/outputs.
    """

    @property
    def key(self) -> str:
        return "input-moments"


@dataclass(frozen=True)
class Activations(Need):
    """A mean over samples of something of each unit's activation, measured after the norm and activation that follow.

    Memory: one number a unit, and the activations of a forward pass until they are consumed.

    Args:
        measure: ``(z, gradient) -> (samples, units)``, both ``(samples, units, positions)``; gradient of the sample's
            own loss, or None.
        gradient: whether the gradient is needed.
        maps: refuse layers without feature maps.
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
    """The scale of the BatchNorm that a layer's output goes through. Memory: one number a unit."""

    @property
    def key(self) -> str:
        return "following-scale"


@dataclass(frozen=True)
class HeadGates(Need):
    r"""Mean over samples of :math:`|\partial L / \partial gate_h|` of every attention head.

    Memory: one number a head.

    Args:
        per_sample: each sample's own magnitude; otherwise that of the batch.
    """

    per_sample: bool = True

    @property
    def key(self) -> str:
        return "head-gates" if self.per_sample else "head-gates/batch"


@dataclass(frozen=True)
class Curvature(Need):
    """The diagonal of the loss's curvature, from passes of its own over batches.

    Memory: one number an entry, and what ``method`` needs beside it.
    """

    method: Any

    @property
    def key(self) -> str:
        return f"curvature/{self.method.key}"


@dataclass(frozen=True)
class HessianGradient(Need):
    """The Hessian times the gradient, ``Hg``, at a softmax temperature, from passes of its own over batches.

    Memory: one number an entry, and a graph of second order.
    """

    temperature: float

    @property
    def key(self) -> str:
        return f"hessian-gradient/temperature={float(self.temperature)!r}"


@dataclass(frozen=True)
class SynapticFlow(Need):
    """The shapes of the model's inputs; flows are computed from them when they are asked for.

    Args:
        bias: let the biases take part.
    """

    bias: bool = True

    @property
    def key(self) -> str:
        return "synaptic-flow" if self.bias else "synaptic-flow/no-bias"


@dataclass(frozen=True)
class UnitRemoval(Need):
    """The increase of the loss as units go, from passes of its own over batches: Shapley values.

    Args:
        samples: permutations.
        seed: of the permutations.
        exact: enumerate every coalition of layers with at most this many units.
    """

    samples: int
    seed: int
    exact: int = 8

    @property
    def key(self) -> str:
        return f"unit-removal/samples={self.samples}/seed={self.seed}/exact={self.exact}"


class Fisher(NamedTuple):
    """Evidence of :class:`FisherBlocks`: not divided yet, as that would take the memory twice.

    Attributes:
        sums: ``(blocks, block, block)``, the sum of ``g gᵀ``.
        number: how many gradients.
    """

    sums: Tensor
    number: float


class Moments(NamedTuple):
    r"""Evidence of :class:`InputMoments`.

    Attributes:
        sums: ``(groups, inputs, inputs)``, the sum of ``x xᵀ``.
        scale: the Hessian of the layer's mean squared error is ``scale · sums``.
        transposed: the weight's outputs lie along its dim 1.
    """

    sums: Tensor
    scale: float
    transposed: bool = False


def function_key(function: Callable[..., Any]) -> str:
    """Return what identifies a function in checkpoints: its module and name, and for a lambda or a local function a
    checksum of its code too, since several have one name.
    """
    name = f"{function.__module__}.{function.__qualname__}" if inspect.isfunction(function) else repr(function)
    if not inspect.isfunction(function) or "<" not in name:
        return name
    code = function.__code__
    return f"{name}#{zlib.crc32(repr((code.co_code, code.co_consts, code.co_names)).encode()):08x}"
