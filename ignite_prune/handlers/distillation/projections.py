"""Linear maps from a student's hidden states to the widths of a teacher's, which are trained."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import linear
from torch.optim import Optimizer

from ignite_prune._utils.arguments import check_generator
from ignite_prune.core.optimizers import as_optimizers
from ignite_prune.handlers.distillation.terms import HiddenMSE, Term
from ignite_prune.structure.slicing.model_edit import ModelEdit, undone_on_error


class Projections(nn.Module):
    """One matrix ``(width of the teacher, width of the student)`` for each term that asks for it.

    Args:
        terms: the terms of the loss.
        student: the unwrapped student.
        teacher: the unwrapped teacher.
        optimizer: gets the matrices as a param group of its own; None: the caller gives them to one.
        generator: of the initial values; None: torch's default.

    Raises:
        ValueError: ``project=True`` where a module does not state its width; no or several optimizers.
    """

    def __init__(
        self,
        terms: Sequence[Term],
        student: nn.Module,
        teacher: nn.Module,
        optimizer: Optimizer | None,
        generator: torch.Generator | None,
    ) -> None:
        super().__init__()
        check_generator(generator)
        self._optimizers = as_optimizers(optimizer)
        like = next((each for each in student.parameters() if each.is_floating_point()), torch.empty(0))
        self.matrices = nn.ParameterDict()
        for index, term in enumerate(terms):
            if isinstance(term, HiddenMSE) and term.project is not False:
                narrow, wide = _widths(term, student, teacher)
                values = torch.rand(wide, narrow, generator=generator, device=generator.device if generator else None)
                matrix = (2 * values - 1) / math.sqrt(narrow)
                self.matrices[str(index)] = nn.Parameter(matrix.to(like.device, like.dtype))
        if self.matrices and len(self._optimizers) > 1:
            raise ValueError("Argument optimizer should be one, the one to which the projections are added")

    def enter_optimizer(self) -> None:
        """Add the matrices to the optimizer, if there is one and it does not train them."""
        for optimizer in self._optimizers:
            held = {each for group in optimizer.param_groups for each in group["params"]}
            new = [matrix for matrix in self.matrices.values() if matrix not in held]
            if new:
                optimizer.add_param_group({"params": new})

    def leave_optimizer(self) -> None:
        """Remove the matrices, their state and their group from the optimizer."""
        mine = set(self.matrices.values())
        for optimizer in self._optimizers:
            for group in list(optimizer.param_groups):
                if any(each in mine for each in group["params"]):
                    group["params"] = [each for each in group["params"] if each not in mine]
                    if not group["params"]:
                        optimizer.param_groups.remove(group)
            for each in mine:
                optimizer.state.pop(each, None)

    def map(self, index: int, features: Tensor, dim: int) -> Tensor:
        """Return the features of a term in the teacher's width; unchanged where the term has no projection."""
        if str(index) not in self.matrices:
            return features
        return linear(features.movedim(dim, -1), self.matrices[str(index)].to(features.dtype)).movedim(-1, dim)

    def width(self, index: int) -> int | None:
        """Return the width of the student's features that a term's projection takes; None without one."""
        return int(self.matrices[str(index)].shape[1]) if str(index) in self.matrices else None

    def keep(self, positions: Mapping[int, Tensor]) -> None:
        """Keep only some columns of the terms' matrices, in the optimizer's state too."""
        edit = ModelEdit(self, self._optimizers)
        with undone_on_error([edit]):
            edit.slice({f"matrices.{index}": {1: each} for index, each in positions.items()})


def _widths(term: HiddenMSE, student: nn.Module, teacher: nn.Module) -> tuple[int, int]:
    if not isinstance(term.project, bool):
        return term.project[0], term.project[1]
    names = (term.student, term.student if term.teacher is None else term.teacher)
    found = [features_of(model.get_submodule(name)) for model, name in zip((student, teacher), names)]
    for who, name, width in zip(("student", "teacher"), names, found):
        if width is None:
            raise ValueError(
                f"HiddenMSE: the {who}'s module {name!r} does not state the width of its output; write "
                "project=(width of the student, width of the teacher)"
            )
    return int(found[0] or 0), int(found[1] or 0)


def features_of(module: nn.Module) -> int | None:
    """Return the number of features of a layer's output; None where its class does not state it."""
    if isinstance(module, nn.Linear):
        return module.out_features
    if isinstance(module, nn.modules.conv._ConvNd):
        return int(module.out_channels)
    if isinstance(module, nn.modules.batchnorm._BatchNorm):
        return module.num_features
    if isinstance(module, nn.LayerNorm | nn.RMSNorm):
        return int(module.normalized_shape[-1])
    if isinstance(module, nn.GroupNorm):
        return int(module.num_channels)
    if isinstance(module, nn.Embedding):
        return module.embedding_dim
    if isinstance(module, nn.MultiheadAttention):
        return int(module.embed_dim)
    return features_of(module.self_attn) if isinstance(module, nn.TransformerEncoderLayer) else None
