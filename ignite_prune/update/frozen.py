"""Frozen parameters have no evidence from gradients: an update leaves them out, with one warning for each."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

from ignite_prune.core.mask_store import MaskStore
from ignite_prune.update.param_groups import ParamGroup
from ignite_prune.update.plan import GroupUpdate


def leave_out_frozen(update: GroupUpdate, store: MaskStore) -> list[str]:
    """Leave parameters that are frozen, and have no evidence for that reason, out of an update; return their names.

    An update in which nothing would be left, or whose units are coupled, is not changed: it raises.
    """
    frozen = [name for name, each in update.scores.items() if not store.parameters[name].requires_grad]
    out = [name for name in frozen if update.scores[name].lacks_evidence]
    if len(out) == len(update.scores) or update.group["structure"] is not None:
        return []
    update.scores = {name: each for name, each in update.scores.items() if name not in out}
    return out


def warn_of_left_out(group: ParamGroup, names: Sequence[str], warned: set[str]) -> None:
    """Warn once of each parameter that an update of a group leaves out; ``warned`` holds those named before."""
    if new := [name for name in names if name not in warned]:
        warned.update(new)
        warnings.warn(
            f"{', '.join(new)}: frozen (requires_grad=False), so that {type(group['saliency']).__name__} has no "
            "evidence; left out of mask updates until they train. The group's sparsity is divided over its other "
            "parameters. To prune frozen parameters, take a saliency without gradients, as Magnitude()",
            stacklevel=2,
        )
