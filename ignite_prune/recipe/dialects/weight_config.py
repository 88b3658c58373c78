"""Neural Compressor's ``weight_compression_pytorch`` (1.14, 2.0) and ``WeightPruningConfig`` (2.x), both in steps."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ignite_prune._utils.arguments import near
from ignite_prune.recipe.dialects.draft import Draft
from ignite_prune.recipe.dialects.steps import number, pattern_of_text, ramp_of, saliency_of
from ignite_prune.recipe.recipe_error import Path

# both spellings, the later one as the name that is used here
_SPELLINGS = {
    "update_frequency": "pruning_frequency",
    "update_frequency_on_step": "pruning_frequency",
    "prune_type": "pruning_type",
    "prune_domain": "pruning_scope",
    "names": "op_names",
    "excluded_names": "excluded_op_names",
    "extra_excluded_names": "extra_excluded_op_names",
    "prune_layer_type": "pruning_op_types",
    "max_sparsity_ratio_per_layer": "max_sparsity_ratio_per_op",
    "max_layer_sparsity_ratio": "max_sparsity_ratio_per_op",
    "sparsity_criterion": "pruning_type",
    "initial_sparsity": "init_sparsity",
}
_DEFAULTS: dict[str, Any] = {
    "target_sparsity": 0.9,
    "pruning_type": "snip_momentum",
    "pattern": "4x1",
    "op_names": [],
    "excluded_op_names": [],
    "extra_excluded_op_names": [],
    "start_step": 0,
    "end_step": 0,
    "pruning_scope": "global",
    "pruning_frequency": 1,
    "min_sparsity_ratio_per_op": 0.0,
    "max_sparsity_ratio_per_op": 0.98,
    "sparsity_decay_type": "exp",
    "pruning_op_types": ["Conv", "Linear"],
    "criterion_reduce_type": "mean",
    "init_sparsity": 0.0,
    "lock_init_sparsity": False,
}
_NO_EFFECT = ("resume_from_pruned_checkpoint", "low_memory_usage", "name", "backend", "parameters")
_TYPES = {"Conv": ["Conv1d", "Conv2d", "Conv3d"], "Linear": ["Linear"]}


def read_steps(draft: Draft, data: Mapping[str, Any], path: Path, defaults: Mapping[str, Any] | None = None) -> None:
    """Add one config: shared settings and a list of pruners, ``pruners`` or ``pruning_configs``.

    Raises:
        RecipeError: a field that cannot be read.
    """
    listed = next((key for key in ("pruners", "pruning_configs") if key in data), None)
    common = {**(defaults or {}), **{k: v for k, v in data.items() if k not in ("pruners", "pruning_configs")}}
    if listed is None:
        _add(draft, common, path)
        return
    if not isinstance(data[listed], list) or not all(isinstance(each, Mapping) for each in data[listed]):
        raise draft.source.error("should be a list of mappings", (*path, listed))
    for index, each in enumerate(data[listed]):
        _add(draft, {**common, **each}, (*path, listed, index))
    if not data[listed]:
        _add(draft, common, path)


def _add(draft: Draft, data: Mapping[str, Any], path: Path) -> None:
    asked = dict(_DEFAULTS)
    for key, value in data.items():
        name = _SPELLINGS.get(key, key)
        if name in _DEFAULTS:
            asked[name] = _DEFAULTS[name] if value is None else value
        elif key in _NO_EFFECT:
            draft.report.add("skipped", key, draft.line((*path, key)), "it has no effect on what is pruned")
        else:
            why = f"it is not known; {near(str(key), [*_DEFAULTS, *_SPELLINGS])}"
            draft.report.add("not possible", str(key), draft.line((*path, key)), why)
    try:
        group = _group(draft, asked, path)
    except (ValueError, TypeError) as error:
        field = next((key for key in data if str(error).startswith(_SPELLINGS.get(key, key))), None)
        raise draft.source.error(str(error), path if field is None else (*path, field)) from None
    draft.settings["event"] = {"type": "iteration_completed", "every": "schedule"}
    draft.group(path, **group)
    what = f"pruner to {asked['target_sparsity']:g}, {asked['pruning_type']}, {asked['pattern']}"
    draft.report.add("translated", what, draft.line(path), f"a parameter group with {group['allocation']}")


def _group(draft: Draft, asked: dict[str, Any], path: Path) -> dict[str, Any]:
    steps = [number(key, asked[key]) for key in ("target_sparsity", "start_step", "end_step", "pruning_frequency")]
    final, begin, end, every = steps
    if asked["pruning_type"] == "pattern_lock" or asked["lock_init_sparsity"]:
        draft.settings["masks"] = "nonzero"
        asked["pruning_type"] = "magnitude" if asked["pruning_type"] == "pattern_lock" else asked["pruning_type"]
    if str(asked["pruning_type"]).endswith("_progressive"):
        asked["pruning_type"] = asked["pruning_type"].removesuffix("_progressive")
        if not draft.handlers:
            draft.handler(path, type="ProgressiveMasks")
    pattern = pattern_of_text(asked["pattern"], str(asked["criterion_reduce_type"]))
    initial = number("init_sparsity", asked["init_sparsity"])
    schedule = ramp_of(asked["sparsity_decay_type"], final, begin, end, every, initial)
    if schedule["type"] == "OneShot":
        schedule = {"type": "Held", "schedule": schedule, "every": every, "begin": begin}
    return {
        "params": _params(asked),
        "saliency": saliency_of(asked["pruning_type"]),
        "pattern": pattern,
        "allocation": _allocation(draft, asked, path),
        "schedule": schedule,
    }


def _allocation(draft: Draft, asked: dict[str, Any], path: Path) -> Any:
    if asked["pruning_scope"] not in ("global", "local"):
        raise ValueError(f"pruning_scope should be global or local, but given {asked['pruning_scope']!r}")
    if number("min_sparsity_ratio_per_op", asked["min_sparsity_ratio_per_op"]) > 0:
        why = "the least sparsity of a layer has no counterpart; one ranking decides"
        draft.report.add("not possible", "min_sparsity_ratio_per_op", draft.line(path), why)
    most = number("max_sparsity_ratio_per_op", asked["max_sparsity_ratio_per_op"])
    if asked["pruning_scope"] == "local":
        return "Uniform"
    return {"type": "Global", "max_sparsity": most} if most < 1 else "Global"


def _params(asked: dict[str, Any]) -> Any:
    """Return rules: regular expressions found anywhere in a module's name, and those to leave out from its start."""
    types = [name for each in _texts(asked["pruning_op_types"]) for name in _TYPES.get(each, [each])]
    names = _texts(asked["op_names"])
    left_out = [*_texts(asked["excluded_op_names"]), *_texts(asked["extra_excluded_op_names"])]
    if not names and not left_out:
        return {"layers": types}
    modules = [f"re:.*(?:{each})" for each in names] or types
    ignore = [f"re:{each}" for each in left_out]
    return {"modules": modules, **({"ignore": ignore} if ignore else {})}


def _texts(value: Any) -> list[str]:
    listed = [] if value is None else [value] if isinstance(value, str) else value
    if not isinstance(listed, list) or not all(isinstance(each, str) for each in listed):
        raise ValueError(f"op_names and op_types should be lists of text, but given {value!r:.80}")
    return listed
