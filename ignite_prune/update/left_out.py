"""Parameters that a saliency cannot score are left out of an update, with one warning for each.

Frozen ones have no evidence from gradients. Others are used in a way that a saliency is not defined for, such as the
weights of an LSTM under Wanda. The rest of the model is pruned all the same.
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

_FROZEN = "frozen (requires_grad=False), so that it has no evidence until it trains"


def leave_out(update: GroupUpdate, evidence: Evidence | None, store: MaskStore | None = None) -> dict[str, str]:
    """Leave parameters that cannot be scored out of an update; return their names with the reason.

    Frozen ones are only left out if ``store`` is given, as training goes on and may unfreeze them.

    An update in which nothing would be left is not changed: it raises. Of coupled units no frozen weight is left out.
    """
    coupled, saliency = update.group["structure"] is not None, update.group["saliency"]
    known = evidence.unusable(saliency.need) if evidence is not None and isinstance(saliency, Informed) else {}
    out = dict[str, str]()
    for name, each in update.scores.items():
        if each.lacks_evidence:
            if store is not None and not store.parameters[name].requires_grad and not coupled:
                out[name] = _FROZEN
            elif name in known:
                out[name] = known[name].partition(": leave it out")[0]
    if len(out) == len(update.scores):
        return {}
    update.scores = {name: each for name, each in update.scores.items() if name not in out}
    return out


def warn_of_left_out(group: ParamGroup, left_out: Mapping[str, str], warned: set[str]) -> None:
    """Warn once of each parameter that an update of a group leaves out; ``warned`` holds those named before."""
    by_reason = dict[str, list[str]]()
    for name, reason in left_out.items():
        if name not in warned:
            by_reason.setdefault(reason, []).append(name)
    for reason, names in by_reason.items():
        warned.update(names)
        advice = "Magnitude()" if reason != _FROZEN else "one without gradients, as Magnitude()"
        warnings.warn(
            f"{', '.join(names)}: {reason}. {type(group['saliency']).__name__} cannot score it, so mask updates leave "
            f"it out, and the group's sparsity is divided over its other parameters. To prune it, take {advice} in a "
            "group of its own",
            stacklevel=2,
        )
