"""Curves: of a history that a training kept, and of TensorBoard's files."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ignite_prune.report.findings import Series

Curves = dict[str, dict[str, Series]]


def is_history(value: Any) -> bool:
    """Return whether a value is a list of mappings with numbers: one for each epoch."""
    return (
        isinstance(value, Sequence)
        and not isinstance(value, (str, bytes))
        and len(value) > 1
        and all(isinstance(each, Mapping) and _flat(each) for each in value)
    )


def curves_of_history(history: Any, run: str = "run") -> Curves:
    """Return the curves of a history.

    Args:
        history: a mapping ``{name: values}``; a list of mappings with numbers, one for each epoch, nested or not; or a
            mapping of such lists by the name of the run.
        run: what the curves are called in each picture.

    Raises:
        TypeError: it is neither.
    """
    if isinstance(history, Mapping) and history and all(map(is_history, history.values())):
        found: Curves = {}
        for name, each in history.items():
            for quantity, runs in curves_of_history(each, str(name)).items():
                found.setdefault(quantity, {}).update(runs)
        return found
    if isinstance(history, Mapping) and all(isinstance(each, Sequence) for each in history.values()):
        rows: list[Mapping[str, Any]] = []
        for name, values in history.items():
            rows += [{} for _ in range(len(values) - len(rows))]
            for row, value in zip(rows, values):
                row[name] = value  # type: ignore[index]
        history = rows
    if not is_history(history) and history not in ([], ()):
        raise TypeError(
            "Argument history should be {name: values}, or a list of {name: number}, one for each epoch, but given "
            f"{history!r:.80}"
        )
    found = {}
    for epoch, entry in enumerate(history, start=1):
        for name, value in _flat(entry).items():
            found.setdefault(name, {}).setdefault(run, []).append((float(epoch), value))
    return found


def _flat(entry: Mapping[Any, Any], prefix: str = "") -> dict[str, float]:
    found: dict[str, float] = {}
    for name, value in entry.items():
        if isinstance(value, Mapping):
            found |= _flat(value, f"{prefix}{name}/")
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            found[f"{prefix}{name}"] = float(value)
    return found


def curves_of_folder(folder: Path) -> tuple[Curves, list[str]]:
    """Return the curves of TensorBoard's files in a folder and below it, and warnings."""
    files = sorted(folder.rglob("events.out.tfevents.*"))
    if not files:
        return {}, []
    if find_spec("tensorboard") is None:
        return {}, [
            f"{len(files)} TensorBoard files were not read, as tensorboard is not installed: "
            "pip install 'ignite-prune[tensorboard]'"
        ]
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found: Curves = {}
    for place in sorted({each.parent for each in files}):
        events = EventAccumulator(str(place), size_guidance={"scalars": 500, "images": 1, "tensors": 1})
        events.Reload()
        run = str(place.relative_to(folder)) if place != folder else "run"
        for tag in events.Tags()["scalars"]:
            if not tag.startswith("flips/"):
                points = [(float(each.step), float(each.value)) for each in events.Scalars(tag)]
                found.setdefault(tag, {})[run] = points
    return found, []


def grouped(curves: Curves) -> Curves:
    """Return one picture for each metric, and one for all sparsities of a run; values that are not finite are left out.

    ``sparsity/<layer>`` of all layers are curves of one picture.
    """
    found: Curves = {}
    for name, runs in curves.items():
        _, sparsity, layer = name.rpartition("sparsity/")
        for run, points in runs.items():
            finite = [(x, y) for x, y in points if math.isfinite(y)]
            if finite:
                title, label = (name.removesuffix(f"/{layer}"), layer) if sparsity else (name, run)
                found.setdefault(title, {})[label] = finite
    return dict(sorted(found.items(), key=lambda each: (not each[0].endswith("sparsity"), each[0])))
