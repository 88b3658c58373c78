"""Trial runs with one unit removed, which find sizes that are hard-coded in ``forward``.

In an exported graph ``x.view(n, 64)`` and ``x.view(n, x.shape[1])`` look the same: both hold the number 64. Only
running the model at another width shows whether its program computes the size or has it written in. Some removals run
and give other outputs, such as a cut at half of a width that the program has written in, so those groups that depend
on such operations are compared with the masked model, too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from ignite_prune._utils.copies import copy_of
from ignite_prune._utils.reusable_copy import ReusableCopy
from ignite_prune.structure.slicing.compare import (
    difference,
    difference_without_chance,
    masked_copy,
    run_with,
    tolerance,
)
from ignite_prune.structure.slicing.model_edit import ModelEdit
from ignite_prune.structure.structure import Structure
from ignite_prune.structure.unit_group import UnitGroup


class SizeProbe:
    """Runs copies of a model with one unit of each group removed, on the meta device or, if that fails, with data.

    Args:
        model: the unwrapped model, which is not changed.
        args: positional arguments of its forward pass.
        kwargs: keyword arguments of its forward pass.

    Attributes:
        stops: whether to search no further if only the run in training fails, as its graph is to be followed then.
        stopped: whether the last search was not finished for that reason.
        multiples: by group, what the number of its units should be a multiple of, if that is not 1.
    """

    def __init__(self, model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        self._model, self._given = model, (args, dict(kwargs))
        self._copy = ReusableCopy(lambda: _on_meta(model))
        self._inputs = tree_map_only(Tensor, lambda each: each.to("meta"), self._given)
        self._modes: tuple[bool, ...] = (False, True)
        self._mode = False
        self.stops = self.stopped = False
        self.multiples: dict[str, int] = {}

    def failing(self, structure: Structure) -> dict[str, str]:
        """Return the groups that cannot lose a unit because the model then fails, with the error."""
        groups = [group.name for group in structure if group.size > 1]
        self.stopped = False
        if not self._error(groups, structure):
            return {}
        self._use_data()
        if self.stops and self._error(groups, structure) and self._mode:
            self.stopped = True
            return {}
        return self._among(groups, [], structure)

    def differing(self, structure: Structure, names: Sequence[str]) -> dict[str, str]:
        """Return those of the named groups that cannot lose half of their units because the outputs then differ.

        They differ from those of the model in which these units are masked.
        """
        if any(each.is_meta for each in self._model.parameters()):
            return {}
        return self._unlike([name for name in names if structure.groups[name].size > 1], [], structure)

    def _unlike(self, groups: Sequence[str], sound: Sequence[str], structure: Structure) -> dict[str, str]:
        """Return the differing ones of ``groups``, by bisection; groups in ``sound`` are known to be right."""
        error = self._difference([*sound, *groups], structure) if groups else ""
        if not error:
            return {}
        if len(groups) == 1:
            return {groups[0]: error}
        first, second = groups[: len(groups) // 2], groups[len(groups) // 2 :]
        found = self._unlike(first, sound, structure)
        return found | self._unlike(second, [*sound, *(name for name in first if name not in found)], structure)

    def _difference(self, groups: Sequence[str], structure: Structure) -> str:
        kept = {
            name: torch.arange(structure.groups[name].size) >= self._half(structure.groups[name]) for name in groups
        }
        masked = masked_copy(self._model, structure.masks(kept), structure.normalised(kept))
        model = copy_of(self._model)
        ModelEdit(model).slice(structure.indices(kept))
        try:
            error = difference(self._run(model), self._run(masked))
            if not error <= tolerance(model):
                error, _ = difference_without_chance(model, masked, self._run)
        except ValueError as problem:
            return str(problem).partition("\n")[0]
        return "" if error <= tolerance(model) else f"the outputs change by {error:.0e}"

    def _half(self, group: UnitGroup) -> int:
        """Return the number of units that a trial removes."""
        multiple = self.multiples.get(group.name, 1)
        return max(group.size // 2 // multiple, 1) * multiple

    def _run(self, model: nn.Module) -> list[Tensor]:
        return run_with(model, *self._given)[0]

    def _use_data(self) -> None:
        """Switch to real data, as devices may not match on the meta device, in the modes that the model supports."""
        self._copy, self._inputs = ReusableCopy(lambda: copy_of(self._model)), self._given
        whole = self._copy()
        self._modes = tuple(mode for mode in (False, True) if not _fails(whole.train(mode), self._inputs))

    def _among(self, groups: Sequence[str], sound: Sequence[str], structure: Structure) -> dict[str, str]:
        """Return the failing ones of ``groups``, by bisection; groups in ``sound`` are known to lose a unit safely."""
        error = self._error([*sound, *groups], structure) if groups else ""
        if not error:
            return {}
        if len(groups) == 1:
            if _ALIGNED in error and structure.groups[groups[0]].size % _MULTIPLE == 0:
                self.multiples[groups[0]] = _MULTIPLE
                if not self._error([*sound, *groups], structure):
                    return {}
                del self.multiples[groups[0]]
            return {groups[0]: error}
        first, second = groups[: len(groups) // 2], groups[len(groups) // 2 :]
        found = self._among(first, sound, structure)
        return found | self._among(second, [*sound, *(name for name in first if name not in found)], structure)

    def _error(self, groups: Sequence[str], structure: Structure) -> str:
        kept = {name: torch.arange(structure.groups[name].size) >= self.multiples.get(name, 1) for name in groups}
        model = self._copy()
        ModelEdit(model).slice(structure.indices(kept))
        for mode in self._modes:
            self._mode = mode
            error = _fails(model.train(mode), self._inputs)
            if error:
                return error
        return ""


_ALIGNED = "strides should be multiple of 16 bytes"  # grouped_mm's words for experts
_MULTIPLE = 8  # numbers of 2 bytes


def _fails(model: nn.Module, inputs: Any) -> str:
    """Run a model and return the error that it raises as text; empty if there is none."""
    args, kwargs = inputs
    try:
        with torch.no_grad(), torch.random.fork_rng():
            model(*args, **kwargs)
    except Exception as error:
        return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
    return ""


def _on_meta(model: nn.Module) -> nn.Module:
    """Return a copy of the model whose tensors are on the meta device."""
    memo: dict[int, Any] = {}
    for tensor in [*model.parameters(), *model.buffers()]:
        empty = tensor.detach().to("meta")
        memo[id(tensor)] = nn.Parameter(empty, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else empty
    return copy_of(model, memo)
