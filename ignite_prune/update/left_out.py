"""Parameters without evidence that an update leaves out, with one warning for each.

Frozen parameters have no gradients. A layer that no data has reached, such as an expert without tokens, cannot be
scored: its saliency raises, or, with ``unreached="keep"``, it keeps what it has.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING

from ignite_prune.core.mask_store import MaskStore
from ignite_prune.saliency import Informed
from ignite_prune.update.param_groups import ParamGroup
from ignite_prune.update.plan import GroupUpdate

if TYPE_CHECKING:
    from ignite_prune.evidence import Evidence

_FROZEN = "frozen (requires_grad=False)"


def leave_out(update: GroupUpdate, store: MaskStore, evidence: Evidence | None) -> dict[str, str]:
    """Leave parameters out of an update that have no evidence because they are frozen or, by request, unreached.

    An update in which nothing would be left, or whose units are coupled, is not changed: it raises.

    Returns:
        The reasons by name.
    """
    lacking = [name for name, each in update.scores.items() if each.lacks_evidence]
    out = {name: _FROZEN for name in lacking if not store.parameters[name].requires_grad}
    saliency = update.saliency
    if update.group["unreached"] == "keep" and evidence is not None and isinstance(saliency, Informed):
        reasons = evidence.reasons(saliency.need, unreached=True)
        out |= {name: reasons[name] for name in lacking if name in reasons and name not in out}
    if len(out) == len(update.scores) or update.group["structure"] is not None:
        return {}
    update.scores = {name: each for name, each in update.scores.items() if name not in out}
    return out


def warn_of_left_out(group: ParamGroup, out: Mapping[str, str], warned: set[str]) -> None:
    """Warn once of each parameter that an update of a group leaves out; ``warned`` holds those named before."""
    new = {name: reason for name, reason in out.items() if name not in warned}
    warned.update(new)
    for frozen in (True, False):
        names = [name for name, reason in new.items() if (reason == _FROZEN) is frozen]
        if names:
            kind, reason = type(group["saliency"]).__name__, new[names[0]]
            warnings.warn(
                f"{', '.join(names)}: {reason}, so that {kind} has no evidence; left out of mask updates until "
                + ("they train" if frozen else "data reaches them")
                + ". The group's sparsity is divided over its other parameters"
                + (
                    ". To prune frozen parameters, take a saliency without gradients, as Magnitude()"
                    if frozen
                    else " (unreached='keep')"
                ),
                stacklevel=2,
            )
