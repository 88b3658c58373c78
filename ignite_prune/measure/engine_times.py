"""Engines: the same model in float32, bfloat16, int8, with sparse layers and in onnxruntime, measured in turns."""

from __future__ import annotations

import io
import math
import tempfile
import warnings
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ignite_prune._utils.arguments import near
from ignite_prune._utils.copies import copy_of
from ignite_prune._utils.interleaved import interleaved
from ignite_prune._utils.table import as_table, shown_seconds
from ignite_prune.core.selection import unwrap
from ignite_prune.measure.engine_kinds import MAKERS, EngineCall, Maker
from ignite_prune.structure.model_io import as_arguments, checked_device, tensors_of
from ignite_prune.structure.slicing.compare import run


@dataclass(frozen=True)
class Engine:
    """One way to run a model.

    Attributes:
        name: such as ``"sparse layers"`` or ``"onnxruntime int8"``.
        seconds: of one call with the example inputs; NaN if it did not run.
        gain: seconds of the model as it is, over these.
        difference: largest difference of its outputs from the model's, relative to the largest output.
        value: what ``evaluate`` returned; None without it.
        note: what was replaced, or why it did not run.
    """

    name: str
    seconds: float
    gain: float
    difference: float
    value: float | None
    note: str


@dataclass(frozen=True)
class Engines:
    """What :func:`engines` measured; ``print`` shows it as a table."""

    rows: tuple[Engine, ...]
    threads: int
    device: str

    def __str__(self) -> str:
        head = ["engine", "latency", "speed-up", "difference"]
        valued = any(each.value is not None for each in self.rows)
        rows = []
        for each in self.rows:
            ran = not math.isnan(each.seconds)
            row = [each.name, shown_seconds(each.seconds)]
            row += [f"{each.gain:.2f}" if ran else "-", f"{each.difference:.1g}" if ran else "-"]
            row += [("-" if each.value is None else f"{each.value:.4g}")] * valued
            rows.append([*row, each.note])
        return as_table([*head, *["value"] * valued, "note"], rows)

    __repr__ = __str__


def engines(
    model: nn.Module,
    example_inputs: Any,
    *,
    only: Sequence[str] | None = None,
    evaluate: Callable[[EngineCall], Any] | None = None,
) -> Engines:
    """Measure a model as it is, and in every other engine that is installed, in turns on this machine.

    These are ``export.sparse_inference``, bfloat16, dynamic int8 of the linear layers (``torch.ao``), and, on the CPU,
    onnxruntime in float32 and in dynamic int8. An engine that cannot run the model has a row that says why.

    Args:
        model: bare, wrapped or compiled; copies are made of it.
        example_inputs: a tensor, a tuple of arguments or a dict of keyword arguments, on the model's device, with the
            batch size that the model will be used with.
        only: names of engines: ``"sparse layers"``, ``"bfloat16"``, ``"int8"``, ``"onnxruntime"``,
            ``"onnxruntime int8"``; None: all.
        evaluate: ``call -> number``, such as an accuracy; ``call`` takes the model's arguments.

    Raises:
        TypeError: an argument is of another type.
        ValueError: an unknown engine, inputs on another device, or a forward pass that fails.

    Example:
        >>> from ignite_prune import measure
        >>> found = measure.engines(nn.Sequential(nn.Linear(16, 16)), torch.randn(4, 16), only=["sparse layers"])
        >>> found.rows[0].name, found.rows[0].gain, found.rows[1].note
        ('float32', 1.0, 'not run: no layer is faster')
    """
    if evaluate is not None and not callable(evaluate):
        raise TypeError(f"Argument evaluate should be callable, call -> number, but given {evaluate!r:.80}")
    wanted = _wanted(only)
    bare = unwrap(model)
    device = checked_device(bare, example_inputs)
    expected, _ = run(bare, example_inputs)
    args, kwargs = as_arguments(bare, example_inputs)
    base = copy_of(bare).eval()
    kinds = {each.dtype for each in base.parameters()}
    first = str(kinds.pop()).removeprefix("torch.") if len(kinds) == 1 else "as it is"
    calls: dict[str, EngineCall] = {first: base}
    notes = {first: ""}
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        for name, make in wanted.items():
            if name == first:
                continue
            try:
                with warnings.catch_warnings(), redirect_stderr(io.StringIO()), redirect_stdout(io.StringIO()):
                    warnings.simplefilter("ignore")  # of the exporters
                    call, notes[name] = make(copy_of(base), example_inputs, Path(folder))
                    call(*args, **kwargs)
                calls[name] = call
            except Exception as error:
                notes[name] = f"not run: {(str(error).strip() or type(error).__name__).splitlines()[0]:.160}"
        times = interleaved([_bound(call, args, kwargs) for call in calls.values()], seconds=0.01)
        seconds = dict(zip(calls, times))
        rows = []
        for name, note in notes.items():
            if name not in calls:
                rows.append(Engine(name, math.nan, math.nan, math.nan, None, note))
                continue
            value = None if evaluate is None else float(evaluate(calls[name]))
            difference = _difference(tensors_of(calls[name](*args, **kwargs)), expected)
            rows.append(Engine(name, seconds[name], seconds[first] / seconds[name], difference, value, note))
    return Engines(tuple(rows), torch.get_num_threads(), str(device))


def _wanted(only: Any) -> dict[str, Maker]:
    if only is None:
        return MAKERS
    if isinstance(only, str) or not isinstance(only, Sequence):
        raise TypeError(f"Argument only should be a sequence of names, but given {only!r:.80}")
    for each in only:
        if each not in MAKERS:
            raise ValueError(f"Argument only: there is no engine {each!r}; {near(str(each), list(MAKERS))}")
    return {name: MAKERS[name] for name in MAKERS if name in only}


def _bound(call: EngineCall, args: Any, kwargs: Any) -> Callable[[], Any]:
    return lambda: call(*args, **kwargs)


def _difference(found: list[Tensor], expected: list[Tensor]) -> float:
    if [each.shape for each in found] != [each.shape for each in expected]:
        return math.inf
    pairs = [(one.double(), two.double()) for one, two in zip(found, expected) if two.numel()]
    return max((float((one - two).abs().max() / two.abs().max().clamp(min=1e-12)) for one, two in pairs), default=0.0)
