"""What a cut through a tape entails: which of its steps are to be run again, and whether the tape has seen enough."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from ignite_prune.evidence.forward.recording import Step, storage_of


@dataclass(frozen=True, slots=True)
class Plan:
    """What a cut entails.

    Attributes:
        start: the first step after the cut.
        steps: those to run again.
        reached: whether the result depends on the cut.
        faithful: whether the tape has seen all that it needs to.
    """

    start: int
    steps: tuple[int, ...]
    reached: bool
    faithful: bool


def plan(
    steps: Sequence[Step], readings: Sequence[tuple[int, Tensor]], result: Tensor, cut: Tensor, version: int
) -> Plan:
    """Return what a cut entails.

    Args:
        steps: all the steps of the pass.
        readings: before which step which tensor's value was handed to Python.
        result: the pass's result.
        cut: the tensor.
        version: how often it had been written to at the moment that counts.
    """
    start = _start(steps, cut, version)
    dependent, faithful = _dependent(steps, readings, cut, start)
    needed = _needed(steps, dependent, result)
    unseen = {storage for step in steps for storage in step.versions if storage not in step.before}
    faithful &= not any(storage in unseen for index in needed for _, storage in steps[index].takes)
    return Plan(start, needed, bool(needed) or result is cut, faithful)


def is_given(steps: Sequence[Step], storage: int) -> bool:
    """Whether a storage was there before the pass, and is not to be written to."""
    for step in steps:
        if any(taken == storage for _, taken in step.takes):
            return True
        if any(made == storage for _, made in step.makes):
            return False
    return True


def _start(steps: Sequence[Step], cut: Tensor, version: int) -> int:
    """The step before which the cut has come to this version."""
    storage = storage_of(cut)
    written = [i + 1 for i, step in enumerate(steps) if step.versions.get(storage, version + 1) <= version]
    made = (i + 1 for i, step in enumerate(steps) if any(name == id(cut) for name, _ in step.makes))
    return max(0, *written, next(made, 0))


def _dependent(
    steps: Sequence[Step], readings: Sequence[tuple[int, Tensor]], cut: Tensor, start: int
) -> tuple[list[int], bool]:
    """The steps that depend on the cut, and whether the tape can follow them all.

    It cannot where a value goes to Python, or where the cut's memory is read through a view older than the cut.
    """
    names, storages, own = {id(cut)}, set[int](), storage_of(cut)
    dependent, faithful = [], True
    for index in range(start, len(steps)):
        takes = steps[index].takes
        if any(name in names or storage in storages for name, storage in takes):
            dependent.append(index)
            names.update(name for name, _ in steps[index].makes)
            storages.update(steps[index].versions)
        faithful &= all(storage != own or name in names for name, storage in takes)
    for index, tensor in readings:
        faithful &= index < start or not (id(tensor) in names or storage_of(tensor) in storages)
    return dependent, faithful


def _needed(steps: Sequence[Step], dependent: list[int], result: Tensor) -> tuple[int, ...]:
    """Those of the dependent steps that the result depends on."""
    wanted, needed = {storage_of(result)}, []
    for index in reversed(dependent):
        step = steps[index]
        if wanted & {*step.versions, *(storage for _, storage in step.makes)}:
            wanted.update(storage for _, storage in step.takes)
            needed.append(index)
    return tuple(reversed(needed))
