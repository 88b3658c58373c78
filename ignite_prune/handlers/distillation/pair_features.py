"""What a term compares: logits, hidden states or attentions of a student's and a teacher's forward pass."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ignite_prune._utils.state import checked_mapping, checked_tensor
from ignite_prune.handlers.distillation.forward_capture import CapturedCall
from ignite_prune.handlers.distillation.projections import Projections
from ignite_prune.handlers.distillation.terms import AttentionMSE, HiddenMSE, Term
from ignite_prune.handlers.shrink_handler import ShrinkHandler

_OVER_CHANNELS = (nn.modules.conv._ConvNd, nn.modules.batchnorm._BatchNorm, nn.GroupNorm)


class PairFeatures:
    """Compares two forward passes by the terms, also when the student has been sliced.

    Args:
        terms: of the loss.
        student: unwrapped.
        projections: of the terms.
        shrinker: says which of the student's units are left.
        logits: takes the logits of an output.

    Attributes:
        kept: by the term's index, which of the student's features at first are left; absent where all are.
    """

    def __init__(
        self,
        terms: tuple[Term, ...],
        student: nn.Module,
        projections: Projections,
        shrinker: ShrinkHandler | None,
        logits: Callable[[Any], Tensor],
    ) -> None:
        self._terms, self._student, self._projections = terms, student, projections
        self._shrinker, self._logits = shrinker, logits
        self.kept: dict[str, Tensor] = {}

    def parameters(self) -> Iterator[nn.Parameter]:
        """Yield the matrices of the projections."""
        yield from self._projections.parameters()

    def compare(self, index: int, student: CapturedCall, teacher: CapturedCall) -> Tensor:
        """Return a term's loss, the mean over the calls of its module.

        Raises:
            ValueError: other shapes; names the module and how the shapes can be made equal.
        """
        term = self._terms[index]
        if not isinstance(term, HiddenMSE | AttentionMSE):
            return term(self._logits(student.output), self._logits(teacher.output))
        name = term.student if term.teacher is None else term.teacher
        one, two = student.features[term.student], teacher.features[name]
        if not one or len(one) != len(two):
            raise ValueError(
                f"{type(term).__name__}: in a forward pass {term.student!r} of the student ran {len(one)} times and "
                f"{name!r} of the teacher {len(two)} times; they should run equally often, outside torch.compile"
            )
        if isinstance(term, AttentionMSE):
            pairs = [(attention_of(s, term.student), attention_of(t, name)) for s, t in zip(one, two)]
            return torch.stack([term(s, t) for s, t in pairs]).mean()
        return torch.stack([self._hidden(index, term, tensor_of(s), tensor_of(t)) for s, t in zip(one, two)]).mean()

    def _hidden(self, index: int, term: HiddenMSE, student: Tensor, teacher: Tensor) -> Tensor:
        module, rank = self._student.get_submodule(term.student), student.dim()
        over_channels = rank > 3 or (rank == 3 and isinstance(module, _OVER_CHANNELS))
        dim = term.dim if term.dim is not None else 1 if over_channels else -1
        width, projected = student.shape[dim], self._projections.width(index)
        if width != (teacher.shape[dim] if projected is None else projected):
            self._follow(index, term, width)
        if projected is None and str(index) in self.kept:
            teacher = teacher.index_select(dim, self.kept[str(index)].to(teacher.device))
        mapped = self._projections.map(index, student, dim)
        if mapped.shape != teacher.shape:
            raise ValueError(
                f"HiddenMSE: {term.student!r} of the student gives {tuple(student.shape)}, and the teacher's states "
                f"have {tuple(teacher.shape)}; for other widths write project=True, for other dimensions dim=, "
                "for a student that is sliced shrinker="
            )
        return term(mapped, teacher, dim)

    def _follow(self, index: int, term: HiddenMSE, width: int) -> None:
        """Bring a term to the width of a student that has been sliced."""
        left = self._left(term.student)
        if left is None or len(left) != width:
            return  # the shapes are refused later
        if self._projections.width(index) is not None:
            before = self.kept.get(str(index))
            position = left if before is None else torch.searchsorted(before, left)
            self._projections.keep({index: position})
        self.kept[str(index)] = left

    def _left(self, name: str) -> Tensor | None:
        """Return which of a module's first outputs are left, where the shrinker knows it of its parameters."""
        left: Mapping[str, Mapping[int, Tensor]] = {} if self._shrinker is None else self._shrinker.left
        module = self._student.get_submodule(name)
        outputs = 1 if isinstance(module, nn.modules.conv._ConvTransposeNd) else 0
        for leaf, dim in (("bias", 0), ("weight", outputs)):
            if dim in left.get(f"{name}.{leaf}", {}):
                return left[f"{name}.{leaf}"][dim].cpu()
        return None

    # Checkpoints

    def checked(self, kept: Any, projections: Mapping[str, Any]) -> dict[str, Tensor]:
        """Return the indices of a checkpoint, if they fit the terms and the checkpoint's projections."""
        known = {str(index) for index, term in enumerate(self._terms) if isinstance(term, HiddenMSE)}
        found = {
            name: checked_tensor(f"kept of {name!r}", each, dtype=torch.int64)
            for name, each in checked_mapping("kept", kept, known, whole=False).items()
        }
        for name, each in found.items():
            if each.dim() != 1 or not each.numel() or int(each.min()) < 0 or bool((each.diff() <= 0).any()):
                raise ValueError(f"The checkpoint's kept of {name!r} should be rising indices of at least 0")
        for name, matrix in self._projections.matrices.items():
            now = self.kept.get(name)
            columns = len(found[name]) if name in found else matrix.shape[1] if now is None else -1
            checked_tensor(
                f"projection {name!r}", projections[name], shape=(matrix.shape[0], columns), dtype=matrix.dtype
            )
            if name in found and int(found[name][-1]) >= matrix.shape[1] and now is None:
                raise ValueError(f"The checkpoint's kept of {name!r} should be below {matrix.shape[1]}")
            if now is not None and (name not in found or not torch.equal(now, found[name])):
                raise ValueError(
                    "The student has been sliced already; load a checkpoint into one that is freshly built"
                )
        return found

    def load(self, kept: Mapping[str, Tensor]) -> None:
        """Slice the projections as those of the checkpoint are."""
        new = {name: each for name, each in kept.items() if name not in self.kept}
        self._projections.keep({int(name): each for name, each in new.items() if name in self._projections.matrices})
        self.kept = {name: each.clone() for name, each in kept.items()}


def logits_of(output: Any) -> Tensor:
    """Return the logits of a model's output: itself, its ``"logits"``, or its first tensor with a batch dimension.

    Raises:
        TypeError: another output.
    """
    if isinstance(output, Tensor):
        return output
    if isinstance(output, Mapping) and isinstance(output.get("logits"), Tensor):
        found: Tensor = output["logits"]
        return found
    if isinstance(output, tuple | list):
        for each in output:
            if isinstance(each, Tensor) and each.dim() > 0:
                return each
    raise TypeError(f"The logits of an output of {type(output)} are not known; write logits=lambda output: ...")


def tensor_of(output: Any) -> Tensor:
    """Return the hidden states of a module's output: itself, or the first of a tuple.

    Raises:
        TypeError: another output.
    """
    first = output[0] if isinstance(output, tuple | list) and output else output
    if not isinstance(first, Tensor):
        raise TypeError(f"HiddenMSE needs modules that return a tensor or a tuple of them, but given {type(output)}")
    return first


def attention_of(output: Any, name: str) -> Tensor:
    """Return the attentions of a module's output ``(values, attentions, ...)``.

    Raises:
        TypeError: there are none.
    """
    found = output[1] if isinstance(output, tuple | list) and len(output) > 1 else None
    if not isinstance(found, Tensor):
        raise TypeError(
            f"AttentionMSE: {name!r} returned no attentions; MultiheadAttention needs need_weights=True, models of "
            'transformers attn_implementation="eager"'
        )
    return found
