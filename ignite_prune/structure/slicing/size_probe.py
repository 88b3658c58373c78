"""Trial runs with one unit removed, which find sizes that are hard-coded in ``forward``.

In an exported graph ``x.view(n, 64)`` and ``x.view(n, x.shape[1])`` look the same: both hold the number 64. Only
running the model at another width shows whether its program computes the size or has it written in. Some removals run
and give other outputs, such as a cut at half of a width that the program has written in, so those groups that depend
on such operations are compared with the masked model, too.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from ignite_prune._utils.copies import copy_of
from ignite_prune.structure.slicing.compare import (
    difference_without_chance,
    masked_copy,
    relative_difference,
    run_with,
    tolerance,
)
from ignite_prune.structure.slicing.model_edit import Indices, ModelEdit
from ignite_prune.structure.slicing.trial_model import TrialModel
from ignite_prune.structure.structure import Structure
from ignite_prune.structure.unit_group import UnitGroup


class Trial(NamedTuple):
    """How trials are run: with which model and inputs, in which modes (True = training), and whether with data."""

    model: TrialModel
    inputs: Any
    modes: tuple[bool, ...]
    has_data: bool


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
        self._trial: Trial | None = None
        self._mode = False
        self.stops = self.stopped = False
        self.multiples: dict[str, int] = {}

    def failing(
        self, structure: Structure, by_kind: bool = False, among: Collection[str] | None = None
    ) -> dict[str, str]:
        """Return the groups that cannot lose a unit because the model then fails, with the error.

        Args:
            structure: of the model.
            by_kind: whether to try groups whose names differ in numbers alone together, which takes fewer trials; if
                one of them fails, all are returned.
            among: groups that may fail, if the others are known not to.
        """
        groups = [group.name for group in structure if group.size > 1]
        kinds: dict[str, list[str]] = {}
        for name in groups if among is None else [each for each in groups if each in among]:
            kinds.setdefault(re.sub(r"\d+", "*", name) if by_kind else name, []).append(name)
        sound = [] if among is None else [name for name in groups if name not in among]
        self.stopped = False
        if self.stops:
            if not self._error(groups, structure):
                return {}
            if self._mode:
                self.stopped = True
                return {}
        return self._among(list(kinds.values()), sound, structure)

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
        base, given, worst = self._precise
        masked = masked_copy(base, structure.masks(kept), structure.normalised(kept))
        model = copy_of(base)
        ModelEdit(model).slice(structure.indices(kept))

        def run(model: nn.Module) -> list[Tensor]:
            return run_with(model, *given)[0]

        try:
            error = relative_difference(run(model), run(masked))
            if not error <= worst:
                error, _ = difference_without_chance(model, masked, run)
        except ValueError as problem:
            return str(problem).partition("\n")[0]
        return "" if error <= worst else f"the outputs change by {error:.0e}"

    @cached_property
    def _precise(self) -> tuple[nn.Module, tuple[Any, dict[str, Any]], float]:
        """The model and its inputs in double precision, if it is small and runs so, and the difference to allow.

        The outputs of a model that was not trained yet depend little on the size of its heads.
        """
        if sum(each.numel() for each in self._model.parameters()) <= _PRECISE:
            try:
                model, given = copy_of(self._model).double(), tree_map_only(Tensor, _doubled, self._given)
                run_with(model, *given)
            except (RuntimeError, TypeError, ValueError):  # its program names a dtype, or a tensor has no such one
                return self._model, self._given, tolerance(self._model)
            return model, given, _TOLERANCE
        return self._model, self._given, tolerance(self._model)

    def _half(self, group: UnitGroup) -> int:
        """Return the number of units that a trial removes."""
        multiple = self.multiples.get(group.name, 1)
        return max(group.size // 2 // multiple, 1) * multiple

    def _first_trial(self, structure: Structure) -> Trial:
        """Return the model to begin with: on the meta device if it is large, where only shapes are computed."""
        small = structure.flops() <= _SMALL and structure.parameters() <= _SMALL / 10
        return self._with_data() if small else self._on_meta()

    def _with_data(self) -> Trial:
        return Trial(TrialModel(copy_of(self._model)), self._given, (False, True), True)

    def _on_meta(self) -> Trial:
        given = tree_map_only(Tensor, lambda each: each.to("meta"), self._given)
        return Trial(TrialModel(_on_meta(self._model)), given, (False, True), False)

    def _sound_trial(self, trial: Trial) -> Trial:
        """Return a trial in the modes in which the whole model runs; with data if it lacks one on the meta device."""
        modes = tuple(mode for mode in (False, True) if not _error_without(trial, {}, mode))
        if len(modes) < 2 and not trial.has_data:
            return self._sound_trial(self._with_data())
        return trial._replace(modes=modes)

    def _among(self, kinds: Sequence[Sequence[str]], sound: Sequence[str], structure: Structure) -> dict[str, str]:
        """Return the failing ones of some groups, by bisection.

        Args:
            kinds: the groups, those that fail together in one.
            sound: groups that are known to lose a unit safely.
            structure: of the model.
        """
        groups = [name for kind in kinds for name in kind]
        error = self._error([*sound, *groups], structure) if groups else ""
        if not error:
            return {}
        if len(kinds) == 1:
            if _ALIGNED in error and all(structure.groups[name].size % _MULTIPLE == 0 for name in groups):
                self.multiples.update(dict.fromkeys(groups, _MULTIPLE))
                if not self._error([*sound, *groups], structure):
                    return {}
                for name in groups:
                    del self.multiples[name]
            return dict.fromkeys(groups, error)
        first, second = kinds[: len(kinds) // 2], kinds[len(kinds) // 2 :]
        found = self._among(first, sound, structure)
        sound = [*sound, *(name for kind in first for name in kind if name not in found)]
        return found | self._among(second, sound, structure)

    def _error(self, groups: Sequence[str], structure: Structure) -> str:
        kept = {name: torch.arange(structure.groups[name].size) >= self.multiples.get(name, 1) for name in groups}
        indices = structure.indices(kept)
        if self._trial is None:
            self._trial = self._first_trial(structure)
            if not any(_error_without(self._trial, indices, mode) for mode in self._trial.modes):
                return ""
            self._trial = self._sound_trial(self._trial)
        for mode in self._trial.modes:
            self._mode = mode
            error = _error_without(self._trial, indices, mode)
            if error:
                return error
        return ""


_SMALL = 1e9  # operations: tiny layers are computed faster than their shapes are on the meta device
_PRECISE = 4_000_000  # parameters: three copies in double precision, the masked and the sliced one too, take 96 MB
_TOLERANCE = 1e-6  # parts of a model may compute in single precision all the same
_ALIGNED = "multiple of 16 bytes"  # grouped_mm's words for experts
_MULTIPLE = 8  # numbers of 2 bytes


def _error_without(trial: Trial, indices: Indices, training: bool) -> str:
    """Run a sliced model and return the error that it raises as text; empty if there is none."""
    args, kwargs = trial.inputs
    with trial.model.sliced(indices) as model:
        model.train(training)
        try:
            with torch.no_grad(), torch.random.fork_rng():
                model(*args, **kwargs)
        except Exception as error:
            return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
    return ""


def _doubled(tensor: Tensor) -> Tensor:
    return tensor.double() if tensor.is_floating_point() else tensor


def _on_meta(model: nn.Module) -> nn.Module:
    """Return a copy of the model whose tensors are on the meta device."""
    memo: dict[int, Any] = {}
    for tensor in [*model.parameters(), *model.buffers()]:
        empty = tensor.detach().to("meta")
        memo[id(tensor)] = nn.Parameter(empty, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else empty
    return copy_of(model, memo)
