"""Where a forward pass fails while it is exported: the module and the line, without torch's own frames."""

from __future__ import annotations

import linecache
from pathlib import Path
from types import FrameType

import torch
from torch import nn

_NOT_THE_USERS = tuple(str(Path(each).parent) for each in (torch.__file__, __file__))


def told(error: BaseException, model: nn.Module) -> str:
    """Return an error in an export as one sentence: where it is raised, and its first line.

    Args:
        error: the error.
        model: the module that was exported.
    """
    first = next((line.strip() for line in str(error).splitlines() if line.strip()), "").rstrip(".")
    return f"{_place(_frames(error), model)}{type(error).__name__}: {first:.300}"


def _frames(error: BaseException) -> list[tuple[FrameType, int]]:
    """Return the frames outside torch with their line numbers, the innermost last."""
    found, at = [], error.__traceback__
    while at is not None:
        if not at.tb_frame.f_code.co_filename.startswith(_NOT_THE_USERS):
            found.append((at.tb_frame, at.tb_lineno))
        at = at.tb_next
    return found


def _place(frames: list[tuple[FrameType, int]], model: nn.Module) -> str:
    """Return the innermost module of the model in the frames, and the innermost line in or below its ``forward``."""
    names = {id(module): name for name, module in model.named_modules()}
    modules = [
        frame.f_locals.get(frame.f_code.co_varnames[0]) if frame.f_code.co_argcount else None for frame, _ in frames
    ]
    inside = [number for number, module in enumerate(modules) if id(module) in names]
    if not inside:
        return ""
    module, (frame, line) = modules[inside[-1]], frames[-1]
    name, file = names[id(module)], frame.f_code.co_filename
    source = linecache.getline(file, line).strip()
    within = f"in {name!r} ({type(module).__name__})" if name else f"in {type(module).__name__}"
    return f"{within}, {Path(file).name} line {line}" + (f", `{source:.120}`: " if source else ": ")
