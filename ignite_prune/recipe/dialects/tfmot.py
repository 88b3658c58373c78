"""``pruning_schedule`` dicts of TensorFlow Model Optimization."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ignite_prune._utils.arguments import near
from ignite_prune.recipe.dialects.draft import Draft
from ignite_prune.recipe.recipe_error import Path
from ignite_prune.recipe.source import Source

_CLASSES = ("PolynomialDecay", "ConstantSparsity")
_FIELDS = {
    "PolynomialDecay": {"initial_sparsity", "final_sparsity", "begin_step", "end_step", "power", "frequency"},
    "ConstantSparsity": {"target_sparsity", "begin_step", "end_step", "frequency"},
}


def find_schedule(data: Any, path: Path = ()) -> tuple[Path, Mapping[str, Any]] | None:
    """Return a schedule's dict and where it stands, within a layer's config too."""
    if not isinstance(data, Mapping) or len(path) > 4:
        return None
    if data.get("class_name") in _CLASSES and isinstance(data.get("config"), Mapping):
        return path, data
    return next((found for key, each in data.items() if (found := find_schedule(each, (*path, key)))), None)


def is_schedule(data: Any) -> bool:
    """Return whether some data holds a schedule."""
    return find_schedule(data) is not None


def read_schedule(source: Source) -> Draft:
    """Return the draft of a schedule: updates at ``(step − begin_step) % frequency == 0``, up to ``end_step``.

    Raises:
        RecipeError: a field that cannot be read.
    """
    draft, found = Draft(source, "TensorFlow Model Optimization"), find_schedule(source.data)
    if found is None:
        raise source.error(f"pruning_schedule should have class_name {' or '.join(_CLASSES)}, and config")
    path, data = found
    kind, config, at = data["class_name"], data["config"], (*path, "config")
    for key in config:
        if key not in _FIELDS[kind]:
            raise source.error(f"unknown field; {near(str(key), sorted(_FIELDS[kind]))}", (*at, key))
    values = {key: _number(source, (*at, key), config[key]) for key in config}
    begin, end = values.get("begin_step", 0), values.get("end_step", -1)
    every = values.get("frequency", 100)
    schedule: dict[str, Any]
    if kind == "PolynomialDecay":
        if end < begin:
            raise source.error(f"end_step {end:g} is before begin_step {begin:g}", (*at, "end_step"))
        schedule = {"type": "Polynomial", "final": values.get("final_sparsity"), "begin": begin, "end": end}
        schedule |= {"initial": values.get("initial_sparsity", 0), "power": values.get("power", 3)}
    else:
        schedule = {"type": "OneShot", "sparsity": values.get("target_sparsity"), "at": begin}
    held = {"type": "Held", "schedule": schedule, "every": every, "begin": begin, "to_end": False}
    draft.group(path, schedule=held, allocation="Uniform")
    draft.settings["event"] = {"type": "iteration_completed", "every": "schedule"}
    draft.report.add("translated", kind, source.line(path), f"a Held schedule of steps, every {every:g}")
    if kind == "ConstantSparsity" and end > begin:
        why = "later updates choose the same number of weights again; masks that only grow change no more"
        draft.report.add("skipped", "end_step", source.line((*at, "end_step")), why)
    return draft


def _number(source: Source, path: Path, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise source.error(f"should be a number, but given {value!r:.60}", path)
    return value
