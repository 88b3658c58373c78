"""report: one self-contained page about a pruned model."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ignite_prune._utils.copies import copy_of
from ignite_prune._utils.extras import needed
from ignite_prune.core.selection import unwrap
from ignite_prune.measure import engines
from ignite_prune.report.curves import curves_of_history, grouped
from ignite_prune.report.findings import Findings, ReportSource
from ignite_prune.report.layers import layers_of, thin_layers, total_of
from ignite_prune.report.png import picture_of
from ignite_prune.report.rendering import TEMPLATES, is_report, rendered, write_whole
from ignite_prune.report.sizes import sizes_of
from ignite_prune.report.source import environment, read_source

_PICTURES = 24


def report(
    source: Any,
    path: str | PathLike[str] = "report.html",
    *,
    model: nn.Module | None = None,
    example_inputs: Any = None,
    history: Any = None,
    warnings: Iterable[Any] = (),
    title: str | None = None,
    overwrite: bool = False,
) -> Path:
    """Write one self-contained page about a pruned model, as HTML or Markdown (requires jinja2).

    It shows what was asked, curves, the table of layers, pictures of the masks, thin layers, sizes in several formats,
    and with ``example_inputs`` the measured time in every engine that is installed.

    Args:
        source: a pruner; a model; the file of a checkpoint, of a state_dict or of ``export.save``; or the folder of a
            run, of which the newest checkpoint with masks and TensorBoard's curves are read. Files are read with
            ``weights_only=True``.
        path: of the page, ``.html`` or ``.md``. An earlier report is replaced, another file is not.
        model: of a checkpoint's weights, for FLOPs and times; a copy is used.
        example_inputs: of the model, with the batch size that it will be used with.
        history: curves to show: ``{name: values}``; a list of ``{name: number}``, one for each epoch; or
            ``{run: list}`` of several runs.
        warnings: messages to show, such as those of ``warnings.catch_warnings(record=True)``.
        title: of the page; None: the name of the model, file or folder.
        overwrite: replace a file that is no report.

    Returns:
        The path of the page.

    Raises:
        ImportError: jinja2 is not installed.
        FileNotFoundError: there is no such file, or no folder for the page.
        FileExistsError: ``path`` exists and is no report.
        TypeError: an argument is of another type.
        ValueError: the source cannot be read, or ``path`` ends otherwise; no page is written then.

    Example:
        >>> import tempfile
        >>> from ignite_prune import prune_model
        >>> model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> masks = prune_model(model, sparsity=0.5)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     page = report(model, f"{folder}/report.md").read_text()
        >>> page.splitlines()[0]
        '# Sequential: 44.4 % pruned'
    """
    needed("jinja2")
    path = _checked_path(path, overwrite)
    found = read_source(source)
    if title is not None:
        found.title = str(title)
    if history is not None:
        found.curves |= curves_of_history(history)
    found.warnings += [_text(each) for each in warnings]
    if model is not None:
        found.model = _with_state(model, found)
    if example_inputs is not None and found.model is None:
        raise ValueError("Argument example_inputs needs the model: report(checkpoint, model=model, example_inputs=x)")
    write_whole(path, rendered(_findings(found, example_inputs), TEMPLATES[path.suffix]))
    return path


def _findings(source: ReportSource, example_inputs: Any) -> Findings:
    layers = layers_of(source, example_inputs)
    masks = source.masks
    if masks is None:
        masks = {name: each != 0 for name, each in source.state.items() if each.dim() > 1 and each.is_floating_point()}
    pictured = sorted(masks, key=lambda name: -masks[name].numel())[:_PICTURES]
    return Findings(
        title=source.title,
        where=source.where,
        asked=source.asked,
        layers=layers,
        total=total_of(layers),
        thin=thin_layers(masks),
        curves=grouped(source.curves),
        pictures=[picture_of(name, masks[name]) for name in masks if name in pictured],
        sizes=sizes_of(source.state, source.masks),
        engines=None if example_inputs is None or source.model is None else engines(source.model, example_inputs),
        environment=environment(),
        warnings=source.warnings,
    )


def _checked_path(path: Any, overwrite: bool) -> Path:
    if not isinstance(path, (str, PathLike)):
        raise TypeError(f"Argument path should be a path, but given {path!r:.80}")
    found = Path(path)
    if found.suffix not in TEMPLATES:
        raise ValueError(f"Argument path should end with {' or '.join(TEMPLATES)}, but given {str(found)!r}")
    if not found.parent.is_dir():
        raise FileNotFoundError(f"Argument path: there is no folder {str(found.parent)!r}")
    if found.is_dir() or (found.exists() and not overwrite and not is_report(found)):
        raise FileExistsError(
            f"Argument path: {str(found)!r} exists and is no report; use another name, or overwrite=True"
        )
    return found


def _text(warning: Any) -> str:
    message = warning.message if isinstance(warning, warnings.WarningMessage) else warning
    kind = f"{type(message).__name__}: " if isinstance(message, Warning) else ""
    return f"{kind}{message}"


def _with_state(model: Any, source: ReportSource) -> nn.Module:
    """Return a copy of a model with the weights of a file."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"Argument model should be a torch.nn.Module, but given {type(model)}")
    copy = copy_of(unwrap(model)).cpu() if source.file is not None else copy_of(unwrap(model))
    try:
        copy.load_state_dict(source.state)
    except RuntimeError as error:
        raise ValueError(f"Argument model is another one than that of {source.where!r}: {error}") from error
    with torch.no_grad():
        for name, mask in (source.masks or {}).items():
            copy.get_parameter(name).mul_(mask)
    return copy
