"""Neural Compressor's recipes: which of its formats a file has, and the epochs of 1.x."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ignite_prune._utils.arguments import near
from ignite_prune.recipe.dialects.draft import Draft
from ignite_prune.recipe.dialects.heads import HeadSensitivity, is_structured
from ignite_prune.recipe.dialects.names import params_of_names
from ignite_prune.recipe.dialects.steps import number, pattern_of_text
from ignite_prune.recipe.dialects.weight_config import read_steps
from ignite_prune.recipe.recipe_error import Path
from ignite_prune.recipe.source import Source

PRUNE_TYPES = ("basic_magnitude", "magnitude", "gradient_sensitivity", "group_lasso", "pattern_lock")
_NO_EFFECT = {
    "method": "each weight is compared within itself",
    "tuning": "tuning of accuracy is no part of a recipe",
    "evaluation": "evaluate with an Ignite evaluator",
    "device": "the model's device is the recipe's",
    "model": "the model is given to attach()",
    "version": "an internal field",
    "quantization": "quantization: torchao or torch.ao on the pruned model, see docs/quantization.md",
}
_KEYS = {"pruners", "pruning_configs", "pruning_type", "pruning_scope", "op_names", "prune_type", "prune_domain"}
_KEYS |= {"sparsity_decay_type", "target_sparsity"}


def is_neural_compressor(data: Any) -> bool:
    """Return whether some data is one of its formats."""
    if isinstance(data, list) or (isinstance(data, Mapping) and set(data) == {"list"}):
        listed = data if isinstance(data, list) else data["list"]
        return bool(listed) and all(isinstance(each, Mapping) and _KEYS & set(each) for each in listed)
    return isinstance(data, Mapping) and ("pruning" in data or "approach" in data or bool(_KEYS & set(data)))


def read_neural_compressor(source: Source) -> Draft:
    """Return the draft of one of its files.

    Raises:
        RecipeError: there is no pruner in it, or a field that cannot be read.
    """
    path: Path = ()
    draft, data = Draft(source, "Neural Compressor"), source.data
    if isinstance(data, Mapping) and isinstance(data.get("list"), list):
        data = {"pruning_configs": data["list"]}
    for where, first, again in source.repeated:
        draft.report.add("skipped", str(where[-1]), first, f"it stands in line {again} again, and the last one counts")
    for at, tag in source.tags.items():
        if tag.startswith("!!python"):
            draft.report.add(
                "skipped", tag, source.line(at), "a tag that would build an object; it is data, and skipped"
            )
    for key in ("pruning", "approach"):
        if isinstance(data.get(key), Mapping):
            _noted(draft, {k: v for k, v in data.items() if k != key}, path)
            data, path = data[key], (*path, key)
    if "weight_compression_pytorch" in data:
        read_steps(draft, data["weight_compression_pytorch"], (*path, "weight_compression_pytorch"))
    elif "weight_compression" in data:
        _read_epochs(draft, data["weight_compression"], (*path, "weight_compression"))
    elif any(str(each.get("prune_type")) in PRUNE_TYPES and "start_step" not in data for each in _pruners(data)):
        _read_epochs(draft, data, path)
    elif _KEYS & set(data):
        read_steps(draft, data, path)
    else:
        raise source.error("pruning should have approach: weight_compression, or pruners", path)
    return draft


def _pruners(data: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    listed = data.get("pruners")
    return [each for each in listed if isinstance(each, Mapping)] if isinstance(listed, list) else []


def _noted(draft: Draft, data: Mapping[str, Any], path: Path) -> None:
    """Report what stands next to the pruners: training, evaluation, tuning."""
    for key, value in data.items():
        line = draft.line((*path, key))
        if key == "train" and isinstance(value, Mapping):
            if isinstance(value.get("epoch"), int):
                draft.top["epochs"] = value["epoch"]
                draft.report.add(
                    "translated", "train.epoch", draft.line((*path, key, "epoch")), f"epochs: {value['epoch']}"
                )
            for inner, each in value.items():
                if inner != "epoch":
                    why = f"train with an Ignite trainer: {inner} {each!r:.80}"
                    draft.report.add("handed on", f"train.{inner}", draft.line((*path, key, inner)), why)
        elif key in _NO_EFFECT:
            draft.report.add("handed on" if key == "quantization" else "skipped", str(key), line, _NO_EFFECT[key])
        else:
            draft.report.add("skipped", str(key), line, "it says nothing about pruning")


def _read_epochs(draft: Draft, data: Any, path: Path) -> None:
    """Read ``weight_compression``: pruners that act at the start of epochs."""
    if not isinstance(data, Mapping) or not _pruners(data):
        raise draft.source.error("weight_compression should have pruners", path)
    common = {key: value for key, value in data.items() if key != "pruners"}
    sensitivity = HeadSensitivity(draft)
    for index, each in enumerate(_pruners(data)):
        at: Path = (*path, "pruners", index)
        asked = {**common, **{key: value for key, value in each.items() if value is not None}}
        try:
            if is_structured(asked):
                sensitivity.add(asked, at)
            else:
                _add(draft, asked, at)
        except (ValueError, TypeError) as error:
            field = next((key for key in each if str(error).startswith(str(key))), None)
            raise draft.source.error(str(error), at if field is None else (*at, field)) from None
    sensitivity.finish()
    if "event" not in draft.settings and draft.groups:
        draft.settings["event"] = "epoch_started"


def _add(draft: Draft, asked: dict[str, Any], path: Path) -> None:
    kind = asked.get("prune_type", "basic_magnitude")
    if kind not in PRUNE_TYPES:
        raise ValueError(f"prune_type {kind!r} is not known; {near(str(kind), list(PRUNE_TYPES))}")
    parameters = asked.get("parameters") or {}
    params = params_of_names(asked.get("names"))
    if kind == "pattern_lock":
        draft.settings["masks"] = "nonzero"
        held = {"type": "Held", "schedule": {"type": "Constant", "sparsity": 0}, "every": 1}
        draft.group(path, params=params, schedule=held, allocation="Uniform")
        draft.report.add("translated", kind, draft.line(path), "masks: nonzero, what is zero at the start stays zero")
        return
    pattern = pattern_of_text(asked.get("pattern", parameters.get("pattern", "1x1")), "sum")
    group: dict[str, Any] = {
        "params": params,
        "schedule": _schedule(asked),
        "pattern": pattern,
        "allocation": "Uniform",
    }
    if kind == "gradient_sensitivity":
        group["saliency"] = "Taylor"
    draft.group(path, **group)
    why = "a parameter group with a Held schedule that acts when epochs start"
    if kind == "group_lasso":
        alpha = number("alpha", parameters.get("alpha"))
        draft.handler(path, type="GroupLasso", strength=alpha, pattern=pattern, params=params, proximal=False)
        draft.handlers[-1]["name"] = f"group_lasso_{len(draft.handlers)}"
        why += ", and handlers: GroupLasso"
    draft.report.add("translated", kind, draft.line(path), why)
    used = {"prune_type", "names", "start_epoch", "end_epoch", "initial_sparsity", "target_sparsity", "frequency"}
    for key in set(asked) - used - {"update_frequency", "parameters", "pattern"}:
        draft.report.add("skipped", str(key), draft.line((*path, key)), _NO_EFFECT.get(key, "it is not known here"))


def _schedule(asked: dict[str, Any]) -> dict[str, Any]:
    """Return s0 + (sT − s0)·⌊(e − start + 1)/f⌋·f/(end − start + 1), for epochs e counted from 0 at their start."""
    start, end = number("start_epoch", asked.get("start_epoch", 0)), number("end_epoch", asked.get("end_epoch", 0))
    every = number("update_frequency", asked.get("update_frequency", asked.get("frequency", 1)))
    final = number("target_sparsity", asked.get("target_sparsity"))
    initial = number("initial_sparsity", asked.get("initial_sparsity", 0))
    if end < start:
        raise ValueError(f"end_epoch {end:g} is before start_epoch {start:g}")
    if every <= 0:
        raise ValueError(f"update_frequency should be above 0, but given {every:g}")
    ramp = {"type": "Linear", "final": final, "begin": start, "end": end + 1, "initial": initial}
    return {"type": "Held", "schedule": ramp, "every": every, "begin": start, "to_end": False}
