"""SparseML's and llm-compressor's recipes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ignite_prune._utils.arguments import near
from ignite_prune.recipe.dialects.draft import Draft
from ignite_prune.recipe.dialects.handed_on import HANDED_ON
from ignite_prune.recipe.dialects.modifiers import Modifier, modifiers
from ignite_prune.recipe.dialects.sparseml_fields import (
    NO_EFFECT,
    PRUNABLE,
    allocation_of,
    params_of_sparseml,
    pattern_of_mask_type,
    required_number,
    schedule_of,
    targets_of,
)
from ignite_prune.recipe.dialects.sparseml_one_shot import one_shot
from ignite_prune.recipe.dialects.sparseml_training import alternating, rigl, structured, top_kast
from ignite_prune.recipe.source import Source

_UNSTRUCTURED = "Unstructured"
_ALL: list[Any] = [PRUNABLE, {"regex": ".*"}]


def read_modifiers(source: Source, variables: Mapping[str, Any]) -> Draft:
    """Return the draft of a file's modifiers.

    Args:
        source: the file.
        variables: that go before the file's own.

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
    everything = list(modifiers(source, lambda name: name in _PRUNING or name == "EpochRangeModifier", variables))
    for each in sorted(everything, key=lambda one: one.name == "ConstantPruningModifier"):
        _read(draft, each)
    _leave_out_the_narrower(draft)
    if draft.groups and "event" not in draft.settings:
        draft.settings["event"] = {"type": "iteration_completed", "unit": "epochs", "every": "schedule"}
    return draft


def _is_stage(key: Any) -> bool:
    return str(key).endswith("_stage")


def _leave_out_the_narrower(draft: Draft) -> None:
    """Exclude from the groups of all parameters those that other groups name: a parameter is in one group alone."""
    groups = [(index, group["params"]) for index, group in enumerate(draft.groups)]
    narrow = [(index, params) for index, params in groups if params not in _ALL]
    for index, params in groups:
        if narrow and params in _ALL:
            rules = [rule for _, each in narrow for rule in (each if isinstance(each, list) else [each])]
            draft.groups[index]["exclude"] = rules[0] if len(rules) == 1 else rules
            lines = ", ".join(str(draft.line_of_group(each)) for each, _ in narrow)
            why = f"those of line {lines} are left out of it: a parameter has one schedule, that of the narrower rule"
            draft.report.add("not possible", "params", draft.line_of_group(index), why)


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
        if not {"end_epoch", "end", "start_epoch", "start"} & set(modifier.fields):
            return one_shot(saliency or "Magnitude", repair)(draft, modifier)
        asked = modifier.take("score_type", "magnitude")
        if asked not in ("magnitude", "movement"):
            raise ValueError(f"score_type should be magnitude or movement, but given {asked!r}")
        chosen = {"type": "Movement"} if asked == "movement" else saliency
        if modifier.take("phased", False):
            return alternating(draft, modifier)
        glob = modifier.take("global_sparsity", modifier.take("apply_globally", bool(is_global)))
        pattern = pattern_of_mask_type(modifier.take("mask_type", "unstructured"), modifier.take("mask_structure"))
        final, params = modifier.take("final_sparsity"), modifier.take("params")
        named = targets_of(modifier.take("targets"), modifier.take("ignore")) if "targets" in modifier.fields else None
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
        schedules = schedule_of(modifier, [required_number("final_sparsity", each) for each, _ in several], draft)
        for (_, names), schedule in zip(several, schedules):
            group = {"params": named or params_of_sparseml(names), "schedule": schedule, **shared}
            if any(each["params"] == group["params"] for each in draft.groups):
                raise ValueError("params are those of an earlier modifier; a parameter has one schedule")
            draft.group(modifier.path, **group)
        finals = ", ".join(f"{required_number('final_sparsity', each):g}" for each, _ in several)
        return f"a parameter group with a Held schedule to {finals}, {shared['allocation']}"

    return read


def _fisher(modifier: Modifier) -> tuple[Any, Any]:
    """Return oBERT's saliency and weight update; M-FAC approximates the same inverse."""
    fields = {"block": modifier.take("fisher_block_size", 50), "damping": modifier.take("damp", 1e-7)}
    return {"type": "OBS", **fields}, {"type": "OBS", **fields}


def _constant(draft: Draft, modifier: Modifier) -> str:
    start = required_number("start", modifier.take("start_epoch", modifier.take("start", 0)))
    for key in ("end_epoch", "end", "update_frequency"):
        modifier.take(key)
    params = params_of_sparseml(modifier.take("params")) if "params" in modifier.fields else None
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


_PRUNING: dict[str, Callable[[Draft, Modifier], str]] = {
    "GMPruningModifier": _gradual(),
    "MagnitudePruningModifier": _gradual(),
    "GlobalMagnitudePruningModifier": _gradual(is_global=True),
    "MovementPruningModifier": _gradual({"type": "Movement"}),
    "OBSPruningModifier": _gradual(_fisher, is_global=True),
    "MFACPruningModifier": _gradual(_fisher),
    "ConstantPruningModifier": _constant,
    "ACDCPruningModifier": alternating,
    "RigLPruningModifier": rigl,
    "TopKASTPruningModifier": top_kast,
    "StructuredPruningModifier": structured,
    "SparseGPTModifier": one_shot("SparseGPT", "SparseGPT"),
    "WandaPruningModifier": one_shot("Wanda", None),
}
