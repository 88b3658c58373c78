"""Whether a pruner has reached the end of its schedules."""

from __future__ import annotations

from ignite_prune.update.pruner import Pruner


def is_at_target(pruner: Pruner, step: float | None, end: float | None, resumed: float | None) -> bool:
    """Return whether the last update had the final target in every group.

    Args:
        pruner: the groups and masks.
        step: the schedules' step of the last update; None: not known, and targets are compared.
        end: the last step that there will be, for schedules without an end; None: not known.
        resumed: the last step that a checkpoint tells of.
    """
    for group, met in zip(pruner.groups, pruner.reached()):
        schedule = group["schedule"]
        if schedule is None:
            masks = pruner.masks.so_far(group["params"]).values()
            there = met == group["sparsity"] if group["sparsity"] else any(mask is not None for mask in masks)
        else:
            last = schedule.horizon if schedule.ends else end
            if met is None or last is None:
                return False
            lifted = schedule.regrows and (resumed is None or resumed < last)
            there = (met == schedule(last) and not lifted) if step is None else step >= last
        if not there:
            return False
    return True
