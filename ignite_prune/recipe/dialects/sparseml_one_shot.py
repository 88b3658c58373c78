"""SparseML's and llm-compressor's modifiers that prune once: SparseGPT, Wanda, magnitude."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ignite_prune.recipe.dialects.draft import Draft
from ignite_prune.recipe.dialects.modifiers import Modifier
from ignite_prune.recipe.dialects.sparseml_fields import pattern_of_mask_type, required_number, targets_of


def one_shot(saliency: Any, repair: Any) -> Callable[[Draft, Modifier], str]:
    """Return a reader of modifiers that prune once, when the run starts."""

    def read(draft: Draft, modifier: Modifier) -> str:
        sparsity = modifier.take("sparsity", modifier.take("final_sparsity"))
        profile = modifier.take("sparsity_profile")
        pattern = pattern_of_mask_type("unstructured", modifier.take("mask_structure"))
        owl = {"type": "OWL", "threshold": modifier.take("owl_m", 5), "spread": modifier.take("owl_lmbda", 0.08)}
        if profile not in (None, "owl"):
            raise ValueError(f"sparsity_profile should be owl, but given {profile!r}")
        fields = {}
        if saliency == "SparseGPT":
            fields = {
                "block": modifier.take("block_size", 128),
                "damping": modifier.take("dampening_frac", modifier.take("percdamp", 0.01)),
            }
        modifier.take("percdamp")
        shared: dict[str, Any] = {
            "saliency": {"type": saliency, **fields} if isinstance(saliency, str) else saliency,
            "pattern": pattern,
            "allocation": owl if profile == "owl" else "Uniform",
        }
        if repair is not None:
            shared["repair"] = {"type": repair, **fields}
        if modifier.take("preserve_sparsity_mask", False):
            draft.settings["masks"] = "nonzero"
        targets, ignore = modifier.take("targets", ["Linear"]), modifier.take("ignore")
        targets = [targets] if isinstance(targets, str) else targets
        several = list(zip(targets, sparsity)) if isinstance(sparsity, list) else [(targets, sparsity)]
        if isinstance(sparsity, list) and len(sparsity) != len(targets):
            raise ValueError(f"sparsity should have one number for each of the {len(targets)} targets")
        for names, each in several:
            schedule = {"type": "OneShot", "sparsity": required_number("sparsity", each), "at": 0}
            draft.group(modifier.path, params=targets_of(names, ignore), schedule=schedule, **shared)
        draft.settings["event"] = "started"
        needs = "" if saliency == "Magnitude" else "; attach(..., data=) of calibration"
        return f"one shot when the run starts, saliency {saliency}{needs}"

    return read
