"""Cost of tracing and slicing, and speed of the smaller model."""

from __future__ import annotations

import contextlib
import copy
import functools
import importlib
import io
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from clock import Contestant, race
from ignite_prune import PruneHandler, ShrinkHandler, shrink, trace
from ignite_prune.allocation import Uniform
from ignite_prune.structure import Report, Structure
from ignite_prune.structure.slicing.model_edit import ModelEdit
from ignite_prune.structure.tracing.export import Exports, trace_units
from ignite_prune.structure.tracing.trace import shapes_of
from ignite_prune.structure.tracing.unit_grouping import UnitGrouping
from nets import resnet18
from rows import Missing, Row, Settings, ratio_row

_TIMES = 3  # best of three: the first run allocates memory


def slicing(settings: Settings) -> Iterator[Row | Missing]:
    """Time tracing and slicing half the units of large models, compared with torch-pruning if it supports them."""
    transformers = _module("transformers")
    if transformers is None:
        yield Missing("tracing and slicing", "needs transformers")
        return
    transformers.logging.set_verbosity_error()
    trace(nn.Linear(2, 2), torch.zeros(1, 2))  # imports
    image, tokens = torch.randn(1, 3, 224, 224), torch.randint(0, 100, (1, 16))
    llama = transformers.LlamaConfig(
        hidden_size=2048, num_hidden_layers=2, num_attention_heads=32, num_key_value_heads=8, intermediate_size=5504
    )
    models: list[tuple[str, float, Callable[[], nn.Module], Any]] = [
        ("ViT-B", 3.0, lambda: transformers.ViTModel(transformers.ViTConfig()), image),
        ("ResNet-50", 2.0, lambda: transformers.ResNetModel(transformers.ResNetConfig()), image),
        (
            "Llama, 2 layers",
            2.0,
            lambda: transformers.LlamaModel(copy.deepcopy(llama)),
            {"input_ids": tokens, "use_cache": False},
        ),
    ]
    for name, most, build, inputs in models:
        seconds, report = min((_ours(build().eval(), inputs) for _ in range(_TIMES)), key=lambda each: each[0])
        note = f"{report.parameters[0] / 1e6:.1f} → {report.parameters[1] / 1e6:.1f} M parameters"
        yield Row(f"tracing and slicing {name}", seconds, "s", at_most=most, note=note)
        if isinstance(inputs, Tensor):
            what = "  against torch-pruning"
            if _module("torch_pruning") is None:
                yield Missing(what, "not installed")
            else:
                theirs = min(_theirs(build().eval(), inputs) for _ in range(_TIMES))
                bare = min(_unchecked(build().eval(), inputs) for _ in range(_TIMES))
                yield Row(what, bare / theirs, "×", at_most=4.0, note="the same work: no size probes, no verification")
                yield Row("  with size probes and verification", seconds / theirs, "×")


def _ours(model: nn.Module, inputs: Any) -> tuple[float, Report]:
    start = time.perf_counter()
    report = shrink(model, _half(model, structure := trace(model, inputs)), inputs, structure=structure)
    return time.perf_counter() - start, report


def _unchecked(model: nn.Module, inputs: Tensor) -> float:
    """Trace and slice without any checks."""
    start = time.perf_counter()
    traced, shapes = trace_units(Exports(model, (inputs,), {})), shapes_of(model)
    structure = Structure(
        UnitGrouping(traced, list(shapes)).groups, shapes, [name for name, _ in model.named_parameters()]
    )
    kept = structure.kept(_half(model, structure))
    ModelEdit(model).slice(structure.indices(kept))
    return time.perf_counter() - start


def _half(model: nn.Module, structure: Structure) -> dict[str, Tensor]:
    kept = {group.name: torch.arange(group.size) >= group.size // 2 for group in structure}
    masks = structure.masks(kept)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name in masks:
                parameter.mul_(masks[name])
    return masks


def _theirs(model: nn.Module, inputs: Tensor) -> float:
    peer = _module("torch_pruning")
    importance = peer.importance.MagnitudeImportance(p=2)
    start = time.perf_counter()
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        peer.pruner.MagnitudePruner(model, inputs, importance=importance, pruning_ratio=0.5).step()
    return time.perf_counter() - start


def _module(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError:
        return None


class _Stages(nn.Module):
    """64 layers of 16 neurons; each may have a head that runs in training alone."""

    def __init__(self, heads: bool, written: bool = False) -> None:
        super().__init__()
        self.stages = nn.ModuleList(nn.Linear(16, 16) for _ in range(64))
        self.heads = nn.ModuleList(nn.Linear(16, 10) for _ in range(64 if heads else 0))
        self.out, self.written = nn.Linear(16, 10), written

    def forward(self, x: Tensor) -> Any:
        found = []
        for number, stage in enumerate(self.stages):
            x = torch.relu(stage(x))
            if self.training and self.heads:
                found.append(self.heads[number](x.reshape(-1, 16) if self.written else x))
        return (self.out(x), found) if found else self.out(x)


def heads(settings: Settings) -> Iterator[Row]:
    """Compare the tracing of a model with heads that run in training alone with that of the model without."""
    inputs = torch.zeros(2, 16)
    models = {"without": _Stages(False), "with": _Stages(True), "written": _Stages(True, written=True)}
    contestants = {name: Contestant(functools.partial(trace, model, inputs)) for name, model in models.items()}
    times = race(contestants, min(settings.rounds, 5), settings.device)
    what = "tracing 64 stages with heads of training, against without"
    yield ratio_row(what, times.ratios("with", "without"), "×", at_most=2)
    yield ratio_row("  heads that write their input's size", times.ratios("written", "without"), "×")


def smaller(settings: Settings) -> Iterator[Row]:
    """Compare a convolutional network with its half-width version, and time the slicing during training."""
    images = torch.randn(32, 3, 32, 32)
    whole = resnet18()
    structure = trace(whole, images)
    optimizer = torch.optim.SGD(whole.parameters(), lr=1e-3, momentum=0.9)

    def step() -> None:
        optimizer.zero_grad()
        whole(images).square().mean().backward()
        optimizer.step()

    step()
    start = time.perf_counter()
    for _ in range(5):
        step()
    seconds = (time.perf_counter() - start) / 5
    before = copy.deepcopy(whole).eval()
    pruner = PruneHandler(whole, optimizer, structure=structure, allocation=Uniform())
    pruner.step(0.5)
    shrinker = ShrinkHandler(pruner, images[:1])
    start = time.perf_counter()
    report = shrinker.shrink()
    cost = (time.perf_counter() - start) / seconds
    whole.eval()
    with torch.no_grad():
        times = race(
            {"whole": Contestant(lambda: before(images)), "half": Contestant(lambda: whole(images))},
            settings.rounds,
            settings.device,
        )
    what = "ResNet-18, batch of 32, half the channels: throughput"
    yield ratio_row(what, times.ratios("whole", "half"), "×", note=_fewer(report.flops), at_least=2.0)
    yield Row("  slicing it in training, in training steps", cost, "steps", at_most=20)


def _fewer(flops: tuple[int, int]) -> str:
    return f"{flops[1] / flops[0]:.2f} of the FLOPs"
