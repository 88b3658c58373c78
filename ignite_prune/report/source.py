"""Reads the data of a report from a pruner, a model, a checkpoint or a run's folder."""

from __future__ import annotations

import sys
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from ignite import __version__ as ignite_version
from torch import nn

from ignite_prune.core.selection import unwrap
from ignite_prune.handlers.describe import describe_group
from ignite_prune.handlers.prune_handler import PruneHandler
from ignite_prune.handlers.sparse_training.base import MaskedHandler
from ignite_prune.report.checkpoint_file import SUFFIXES, read_file
from ignite_prune.report.curves import curves_of_folder, curves_of_history, is_history
from ignite_prune.report.findings import ReportSource

_WHOLE = 8  # a checkpoint with a pruner's masks and the weights


def read_source(source: Any) -> ReportSource:
    """Return what a pruner, a model, a file or a folder holds.

    Raises:
        TypeError: it is none of them.
        FileNotFoundError: there is no such file or folder.
        ValueError: a file is no checkpoint, or a folder holds none.
    """
    if isinstance(source, (PruneHandler, MaskedHandler)):
        return _of_pruner(source)
    if isinstance(source, nn.Module):
        model = unwrap(source)
        _check_values(model)
        return ReportSource(type(model).__name__, f"a {type(model).__name__}", None, model.state_dict(), model)
    if isinstance(source, (str, PathLike)):
        path = Path(source)
        return _of_folder(path) if path.is_dir() else read_file(path)
    raise TypeError(
        f"Argument source should be a pruner, a model, a checkpoint's file or a run's folder, but given {type(source)}"
    )


def _check_values(model: nn.Module) -> None:
    for name, parameter in model.named_parameters():
        lazy = nn.parameter.is_lazy(parameter)
        if lazy or parameter.is_meta:
            what = "is not initialised (run the model once)" if lazy else "is on the meta device"
            raise ValueError(f"Parameter {name!r} {what}, so there is nothing to report")


def _of_pruner(pruner: PruneHandler | MaskedHandler) -> ReportSource:
    model = pruner.pruning.model if isinstance(pruner, PruneHandler) else pruner.model
    found = ReportSource(type(model).__name__, f"a {type(pruner).__name__}", pruner.masks, model.state_dict(), model)
    found.asked.append(("handler", type(pruner).__name__))
    for index, group in enumerate(pruner.param_groups if isinstance(pruner, PruneHandler) else ()):
        found.asked.append((f"group {index}", describe_group(group, dict(model.named_parameters()))))
        schedule = group["schedule"]
        if schedule is not None:
            planned = schedule.values(min(int(schedule.horizon) + 2, 500))
            points = [(float(step), value) for step, value in enumerate(planned)]
            found.curves.setdefault("planned sparsity", {})[f"group {index}"] = points
    if isinstance(pruner, PruneHandler):
        found.asked.append(("at its target", "yes" if pruner.reached else "no"))
        check = pruner.check()
        if not check:
            found.warnings.append(str(check))
    engine = pruner.attached_to
    if engine is not None:
        found.asked += [("epoch", str(engine.state.epoch)), ("iteration", str(engine.state.iteration))]
        history = vars(engine.state).get("history")
        if is_history(history):
            found.curves |= curves_of_history(history)
    return found


def _of_folder(folder: Path) -> ReportSource:
    """Return the newest checkpoint with a pruner and weights, else what is most like one, with TensorBoard's curves."""
    files = [each for each in folder.rglob("*") if each.suffix in SUFFIXES and each.is_file()]
    problems, found, best = list[str](), None, 0
    for file in sorted(files, key=lambda each: (-each.stat().st_mtime_ns, str(each))):
        try:
            read = read_file(file)
        except ValueError as error:
            problems.append(str(error))
            continue
        worth = 1 + 2 * bool(read.masks) + 4 * bool(read.masks and read.asked) + bool(read.state)
        if worth > best:
            found, best = read, worth
        if best == _WHOLE:
            break
    if found is None:
        why = f": {problems[0]}" if problems else f"; there is no file that ends with {', '.join(SUFFIXES)}"
        raise ValueError(f"The folder {str(folder)!r} holds no checkpoint that can be read{why}")
    curves, warned = curves_of_folder(folder)
    found.title, found.where = folder.name, str(found.file)
    found.curves = curves or found.curves
    found.warnings += warned
    return found


def environment() -> list[tuple[str, str]]:
    """Return the versions of what computed this, and torch's seed."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU, {torch.get_num_threads()} threads"
    version = vars(sys.modules["ignite_prune"])["__version__"]  # an import would make a loop
    return [
        ("ignite_prune", version),
        ("PyTorch", torch.__version__),
        ("PyTorch-Ignite", ignite_version),
        ("Python", ".".join(map(str, sys.version_info[:3]))),
        ("device", device),
        ("torch.initial_seed() of the report", str(torch.initial_seed())),
    ]
