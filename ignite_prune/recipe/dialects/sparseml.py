"""SparseML's and llm-compressor's recipes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ignite_prune._utils.arguments import near
from ignite_prune.recipe.dialects.draft import Draft
from ignite_prune.recipe.dialects.handed_on import HANDED_ON
from ignite_prune.recipe.dialects.modifiers import Modifier, modifiers
from ignite_prune.recipe.dialects.sparseml_fields import (
    NO_EFFECT,
    allocation_of,
    number,
    params_of,
    pattern_of,
    schedule_of,
    targets_of,
)
from ignite_prune.recipe.source import Source

_UNSTRUCTURED = "Unstructured"


def read_modifiers(source: Source) -> Draft:
    """Return the draft of a file's modifiers.

    Raises:
        RecipeError: a field that cannot be read.
    """
    llm = isinstance(source.data, dict) and ("stages" in source.data or any(map(_is_stage, source.data)))
    draft = Draft(source, "llm-compressor" if llm else "SparseML")
    for path, tag in source.tags.items():
        if tag.startswith("!!python"):
            draft.report.add(
                "skipped", tag, source.line(path), "a tag that would build an object; it is data, and skipped"
            )
    for path, first, again in source.repeated:
        draft.report.add("skipped", str(path[-1]), first, f"it stands in line {again} again, and the last one counts")
    everything = list(modifiers(source, lambda name: name in _PRUNING or name == "EpochRangeModifier"))
    for each in sorted(everything, key=lambda one: one.name == "ConstantPruningModifier"):
        _read(draft, each)
    if draft.groups and "event" not in draft.settings:
        draft.settings["event"] = {"type": "iteration_completed", "unit": "epochs", "every": "schedule"}
    return draft


def _is_stage(key: Any) -> bool:
    return str(key).endswith("_stage")


def _read(draft: Draft, modifier: Modifier) -> None:
    line, name = draft.line(modifier.path), modifier.name
    if name in HANDED_ON:
        outcome, why = HANDED_ON[name](modifier)
        if name == "EpochRangeModifier" and isinstance(modifier.fields.get("end_epoch"), (int, float)):
            draft.top["epochs"] = max(modifier.fields["end_epoch"], draft.top.get("epochs", 0))
        draft.report.add(outcome, name, line, why)
        return
    read = _PRUNING.get(name)
    if read is None:
        draft.report.add("not possible", name, line, f"it is not known; {near(name, [*_PRUNING, *HANDED_ON])}")
        return
    try:
        why = read(draft, modifier)
    except (ValueError, TypeError) as error:
        given, text = draft.source.at(modifier.path), str(error)
        keys = sorted(given, key=lambda key: not text.startswith(f"{key} ")) if isinstance(given, dict) else []
        field = next((key for key in keys if f"{key} " in text), None)
        raise draft.source.error(f"{name}: {error}", (*modifier.path, field) if field else modifier.path) from None
    draft.report.add("translated", name, line, why)
    for key in modifier.fields:
        at = draft.line((*modifier.path, key))
        if key in NO_EFFECT:
            draft.report.add("skipped", f"{name}.{key}", at, NO_EFFECT[key])
        else:
            draft.report.add("not possible", f"{name}.{key}", at, "this field has no counterpart")


def _gradual(
    saliency: Any = None, repair: Any = None, is_global: bool | None = None
) -> Callable[[Draft, Modifier], str]:
    def read(draft: Draft, modifier: Modifier) -> str:
        if modifier.one_shot or "targets" in modifier.fields:
            return _one_shot(saliency or "Magnitude", repair)(draft, modifier)
        asked = modifier.take("score_type", "magnitude")
        if asked not in ("magnitude", "movement"):
            raise ValueError(f"score_type should be magnitude or movement, but given {asked!r}")
        chosen = {"type": "Movement"} if asked == "movement" else saliency
        if modifier.take("phased", False):
            return _alternating(draft, modifier)
        glob = modifier.take("global_sparsity", bool(is_global))
        pattern = pattern_of(modifier.take("mask_type", "unstructured"), modifier.take("mask_structure"))
        final, params = modifier.take("final_sparsity"), modifier.take("params")
        shared: dict[str, Any] = {"allocation": allocation_of(glob), "pattern": pattern}
        if pattern != _UNSTRUCTURED and isinstance(pattern, dict) and pattern["type"] == "NofM":
            modifier.take("init_sparsity")
        if callable(chosen):
            chosen, repair_of = chosen(modifier)
            shared["repair"] = repair_of
        if chosen is not None:
            shared["saliency"] = chosen
        if repair is not None:
            shared["repair"] = repair
        several = [(final, params)] if not isinstance(final, dict) else [(f, p) for f, p in final.items()]
        if isinstance(final, dict) and params:
            raise ValueError("params should be empty where final_sparsity maps sparsities to params")
        schedules = schedule_of(modifier, [number("final_sparsity", each) for each, _ in several], draft)
        for (_, names), schedule in zip(several, schedules):
            group = {"params": params_of(names), "schedule": schedule, **shared}
            if any(each["params"] == group["params"] for each in draft.groups):
                raise ValueError("params are those of an earlier modifier; a parameter has one schedule")
            draft.group(modifier.path, **group)
        finals = ", ".join(f"{number('final_sparsity', each):g}" for each, _ in several)
        return f"a parameter group with a Held schedule to {finals}, {shared['allocation']}"

    return read


def _fisher(modifier: Modifier) -> tuple[Any, Any]:
    """Return oBERT's saliency and weight update; M-FAC approximates the same inverse."""
    fields = {"block": modifier.take("fisher_block_size", 50), "damping": modifier.take("damp", 1e-7)}
    return {"type": "OBS", **fields}, {"type": "OBS", **fields}


def _constant(draft: Draft, modifier: Modifier) -> str:
    start = number("start", modifier.take("start_epoch", modifier.take("start", 0)))
    for key in ("end_epoch", "end", "update_frequency"):
        modifier.take(key)
    params = params_of(modifier.take("params")) if "params" in modifier.fields else None
    if params is None:
        params = targets_of(modifier.take("targets"), modifier.take("ignore"))
    if any(group["params"] == params or start > 0 for group in draft.groups):
        return "nothing to do: masks stay in place once they are made"
    draft.settings["masks"] = "nonzero"
    draft.group(
        modifier.path,
        params=params,
        schedule={"type": "Held", "schedule": {"type": "Constant", "sparsity": 0}, "every": 1},
    )
    return "masks: nonzero, what is zero at the start stays zero"


def _alternating(draft: Draft, modifier: Modifier) -> str:
    phase = number("update_frequency", modifier.take("update_frequency"))
    if phase != int(phase) or phase < 1:
        raise ValueError(f"update_frequency should be whole epochs here, but given {phase:g}")
    draft.handler(
        modifier.path,
        type="AlternatingSparse",
        sparsity=number("compression_sparsity", modifier.take("compression_sparsity", modifier.take("final_sparsity"))),
        begin=number("start_epoch", modifier.take("start_epoch", 0)),
        end=number("end_epoch", modifier.take("end_epoch")),
        phase=int(phase),
        reset_momentum=bool(modifier.take("momentum_buffer_reset", True)),
        allocation=allocation_of(modifier.take("global_sparsity", True)),
        pattern=pattern_of(modifier.take("mask_type", "unstructured"), None),
        params=params_of(modifier.take("params")),
    )
    modifier.take("init_sparsity")
    return "handlers: AlternatingSparse (AC/DC)"


def _rigl(draft: Draft, modifier: Modifier) -> str:
    strategy = modifier.take("sparsity_strategy", "erdos_renyi_kernel")
    kinds = {"uniform": "Uniform", "erdos_renyi": {"type": "ERK", "kernel": False}, "erdos_renyi_kernel": "ERK"}
    if strategy not in kinds:
        raise ValueError(f"sparsity_strategy {strategy!r} is not known; {near(str(strategy), list(kinds))}")
    pattern_of(modifier.take("mask_type", "unstructured"), None)
    modifier.take("global_sparsity")
    start = number("start_epoch", modifier.take("start_epoch", 0))
    draft.handler(
        modifier.path,
        type="RigL",
        sparsity=number("final_sparsity", modifier.take("final_sparsity")),
        every={"epochs": _frequency(modifier)},
        end={"epochs": number("end_epoch", modifier.take("end_epoch"))},
        drop_fraction=number("init_update_fraction", modifier.take("init_update_fraction", 0.3)),
        allocation=kinds[strategy],
        params=params_of(modifier.take("params")),
    )
    late = f"; it begins with the run, not at epoch {start:g}" if start > 0 else ""
    return "handlers: RigL, which grows by the gradient of one iteration" + late


def _top_kast(draft: Draft, modifier: Modifier) -> str:
    draft.handler(
        modifier.path,
        type="TopKAST",
        sparsity=number("forward_sparsity", modifier.take("forward_sparsity")),
        backward_sparsity=number("backward_sparsity", modifier.take("backward_sparsity")),
        every={"epochs": _frequency(modifier)},
        strength=number(
            "active_weight_decay", modifier.take("active_weight_decay", modifier.take("acive_param_decay", 1e-4))
        ),
        allocation=allocation_of(modifier.take("global_sparsity", True)),
        params=params_of(modifier.take("params")),
    )
    for key in ("start_epoch", "end_epoch", "mask_type"):
        modifier.take(key)
    return "handlers: TopKAST, over the whole run"


def _frequency(modifier: Modifier) -> float:
    every = number("update_frequency", modifier.take("update_frequency", -1))
    return 1 if every <= 0 else every


def _structured(draft: Draft, modifier: Modifier) -> str:
    mask, coupled = modifier.take("mask_type", "filter"), modifier.take("param_groups")
    if mask not in ("filter", "channel"):
        raise ValueError(f"mask_type should be filter or channel, but given {mask!r}")
    params = params_of(modifier.take("params"))
    (schedule,) = schedule_of(modifier, [number("final_sparsity", modifier.take("final_sparsity"))], draft)
    if coupled:
        draft.settings["structure"] = "trace"
        draft.group(
            modifier.path,
            params=params,
            schedule=schedule,
            pattern={"type": "Coupled", "norm": 1},
            allocation="Uniform",
        )
        return "structure: trace, which finds the coupled groups itself; attach(..., example_inputs=)"
    channel = {"type": "Channel", "dim": 0 if mask == "filter" else 1, "norm": 1}
    draft.group(modifier.path, params=params, schedule=schedule, pattern=channel, allocation="Uniform")
    return f"a parameter group with pattern Channel(dim={channel['dim']})"


def _one_shot(saliency: Any, repair: Any) -> Callable[[Draft, Modifier], str]:
    def read(draft: Draft, modifier: Modifier) -> str:
        sparsity = modifier.take("sparsity", modifier.take("final_sparsity"))
        profile = modifier.take("sparsity_profile")
        pattern = pattern_of("unstructured", modifier.take("mask_structure"))
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
            schedule = {"type": "OneShot", "sparsity": number("sparsity", each), "at": 0}
            draft.group(modifier.path, params=targets_of(names, ignore), schedule=schedule, **shared)
        draft.settings["event"] = "started"
        needs = "" if saliency == "Magnitude" else "; attach(..., data=) of calibration"
        return f"one shot when the run starts, saliency {saliency}{needs}"

    return read


_PRUNING: dict[str, Callable[[Draft, Modifier], str]] = {
    "GMPruningModifier": _gradual(),
    "MagnitudePruningModifier": _gradual(),
    "GlobalMagnitudePruningModifier": _gradual(is_global=True),
    "MovementPruningModifier": _gradual({"type": "Movement"}),
    "OBSPruningModifier": _gradual(_fisher, is_global=True),
    "MFACPruningModifier": _gradual(_fisher),
    "ConstantPruningModifier": _constant,
    "ACDCPruningModifier": _alternating,
    "RigLPruningModifier": _rigl,
    "TopKASTPruningModifier": _top_kast,
    "StructuredPruningModifier": _structured,
    "SparseGPTModifier": _one_shot("SparseGPT", "SparseGPT"),
    "WandaPruningModifier": _one_shot("Wanda", None),
}
