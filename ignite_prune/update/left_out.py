"""Parameters without evidence that an update leaves out, with one warning for each.

Frozen parameters have no gradients. Others are used in a way that a saliency is not defined for, such as the weights of
an LSTM under Wanda; the rest of the model is pruned all the same. A layer that no data has reached, such as an expert
without tokens, cannot be scored: its saliency raises, or, with ``unreached="keep"``, it keeps what it has.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING

from ignite_prune.core.mask_store import MaskStore
from ignite_prune.saliency import Informed
from ignite_prune.update.param_group import ParamGroup
from ignite_prune.update.plan import GroupUpdate

if TYPE_CHECKING:
    from ignite_prune.evidence import Evidence

_FROZEN = "frozen (requires_grad=False)"
_UNTIL = {  # by kind: what ends it, or what else to do
    "frozen": "until they train",
    "unreached": "until data reaches them",
    "unusable": "always",
}
_ADVICE = {
    "frozen": ". To prune frozen parameters, take a saliency without gradients, as Magnitude()",
    "unreached": " (unreached='keep')",
    "unusable": ". To prune them, take Magnitude() in a group of their own",
}


def leave_out(update: GroupUpdate, store: MaskStore | None, evidence: Evidence | None) -> dict[str, tuple[str, str]]:
    """Leave parameters out of an update that have no evidence: frozen or unusable ones, by request unreached ones.

    An update in which nothing would be left is not changed: it raises. So does one of coupled units, unless its
    parameters are unusable.

    Args:
        update: the update.
        store: of the parameters; None: frozen ones are not left out.
        evidence: what has been gathered.

    Returns:
        Kind and reason by name.
    """
    lacking = [name for name, each in update.scores.items() if each.lacks_evidence]
    out, saliency = dict[str, tuple[str, str]](), update.saliency
    if evidence is not None and isinstance(saliency, Informed):
        known = evidence.unusable(saliency.need)
        out |= {name: ("unusable", known[name].partition(": leave it out")[0]) for name in lacking if name in known}
        if update.group["structure"] is None and update.group["unreached"] == "keep":
            reasons = evidence.not_reached(saliency.need)
            out |= {name: ("unreached", reasons[name]) for name in lacking if name in reasons}
    if store is not None and update.group["structure"] is None:
        out |= {name: ("frozen", _FROZEN) for name in lacking if not store.parameters[name].requires_grad}
    if len(out) == len(update.scores):
        return {}
    update.scores = {name: each for name, each in update.scores.items() if name not in out}
    return out


def warn_of_left_out(group: ParamGroup, out: Mapping[str, tuple[str, str]], warned: set[str]) -> None:
    """Warn once of each parameter that an update of a group leaves out; ``warned`` holds those named before."""
    new = {name: why for name, why in out.items() if name not in warned}
    warned.update(new)
    for kind, until in _UNTIL.items():
        names = [name for name, why in new.items() if why[0] == kind]
        if names:
            warnings.warn(
                f"{', '.join(names)}: {new[names[0]][1]}, so that {type(group['saliency']).__name__} has no evidence; "
                f"left out of mask updates {until}. The group's sparsity is divided over its other parameters"
                f"{_ADVICE[kind]}",
                stacklevel=2,
            )
