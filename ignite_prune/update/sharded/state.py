"""The state of a sharded pruner: its tensors in mappings by name, which torch.distributed.checkpoint saves by shards.

It splits nested mappings, and fills the ones that a new pruner's state has; lists and tuples are pickled unchanged.
So kept values and sums of evidence, which may have other entries from time to time, stand next to the masks, for every
parameter, and :func:`joined` puts them back in their places.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ignite_prune._utils.bits import pack
from ignite_prune._utils.shard import is_sharded, like
from ignite_prune.core.mask_store import MaskStore
from ignite_prune.evidence.collectors.base import Collector


def apart(
    masks: MaskStore,
    values: Mapping[str, Tensor],
    names: Sequence[str],
    collectors: Sequence[Collector[Any]],
    evidence: Sequence[dict[str, Any]],
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Return the state of the masks with kept values and sums next to it, and the evidence without its sums.

    Args:
        masks: the store.
        values: kept values, by name.
        names: of the parameters whose values are kept.
        collectors: of the evidence.
        evidence: the collectors' states.
    """
    state, sums, rest = masks.state_dict(), dict[str, Any](), list[dict[str, Any]]()
    for index, each in enumerate(evidence):
        if each and collectors[index].by_part:
            collector, held = collectors[index], each["sums"]
            sums[str(index)] = {n: held.get(n, _zeros(collector, n)) for n in collector.parameters}
            rest.append({**each, "sums": {}})
        else:
            rest.append(each)
    state["dense"] = {name: values.get(name, torch.zeros_like(masks.parameters[name])) for name in names}
    return {**state, "sums": sums}, rest


def _zeros(collector: Collector[Any], name: str) -> Tensor:
    zeros, parameter = collector.zeros(name), collector.parameters[name]
    return like(zeros, parameter) if is_sharded(parameter) else zeros


def joined(state: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return a pruner's state with kept values and sums in their places; that of a plain run as it is."""
    masks = state["masks"]
    if not isinstance(masks, Mapping) or "shards" not in masks:
        return state
    sums, evidence = masks.get("sums", {}), list[Any]()
    for index, each in enumerate(state["evidence"] if isinstance(state["evidence"], list | tuple) else ()):
        held = sums.get(str(index)) if isinstance(sums, Mapping) else None
        counts = each.get("counts") if isinstance(each, Mapping) else None
        if isinstance(counts, Mapping) and isinstance(held, Mapping):
            evidence.append({**each, "sums": {name: held[name] for name in counts if name in held}})
        else:
            evidence.append(each)
    return {**state, "dense": masks.get("dense", {}), "evidence": evidence}


def whole(state: Mapping[str, Any], collect: Callable[[Tensor], Tensor]) -> dict[str, Any]:
    """Return a sharded pruner's state in the form of a run that is not sharded.

    Args:
        state: of the pruner.
        collect: returns a DTensor as a whole on a rank that keeps it, and an empty tensor on others.
    """
    shards, dense = state["masks"]["shards"], list[tuple[str, Tensor]]()
    evidence = []
    for each in joined(state)["evidence"]:
        sums = {n: collect(held) if is_sharded(held) else held for n, held in each["sums"].items()} if each else {}
        evidence.append({**each, "sums": sums} if each else each)
    bits = []
    for name, shard in shards.items():
        mask = collect(shard)
        bits.append(pack(mask))
        if name in state["masks"]["dense"]:
            values = collect(state["masks"]["dense"][name])
            if not bool(mask.all()):
                dense.append((name, values[~mask]))
    masks = {"names": state["masks"]["names"], "shapes": state["masks"]["shapes"], "bits": torch.cat(bits)}
    return {**state, "masks": masks, "dense": dense, "evidence": tuple(evidence)}
