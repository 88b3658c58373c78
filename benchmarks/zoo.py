"""How much of real architectures can go, whether slicing is right, and how long tracing takes; beside torch-pruning.

Every model runs in a process of its own with a time limit. ``python benchmarks/zoo.py --only "timm:*" --json FILE``;
what the file has already is not measured again.
"""

from __future__ import annotations

import argparse
import copy
import json
import multiprocessing
import resource
import statistics
import time
import traceback
import warnings
from collections.abc import Iterator, Sequence
from contextlib import suppress
from fnmatch import fnmatchcase
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_map_only

import zoo_models
from ignite_prune import shrink, trace
from ignite_prune.structure.model_io import as_arguments, tensors_of

LAYERS = (nn.Linear, nn.modules.conv._ConvNd, nn.RNNBase, nn.MultiheadAttention, nn.Bilinear)
PARTS = ("plain", "norms", "torch-pruning")
Row = dict[str, Any]


def measured(name: str, parts: Sequence[str], limit: float) -> Iterator[Row]:
    """Yield what is measured of one model, after each part; a part that passes the limit ends the process."""
    torch.manual_seed(0)
    row: Row = {"name": name}
    try:
        model, inputs = zoo_models.models()[name]()
    except Exception as error:
        yield {**row, "missing": f"{type(error).__name__}: {error}"[:200]}
        return
    model, inputs = _doubled(_perturbed(model), inputs)
    measures = {"plain": _ours, "norms": partial(_ours, norms=True), "torch-pruning": _theirs}
    for part in parts:
        yield {**row, part: {"late": True}}
        most = int(time.process_time() + limit + 1)
        resource.setrlimit(resource.RLIMIT_CPU, (most, resource.RLIM_INFINITY))
        row[part] = measures[part](model, inputs)
        yield row


def _doubled(model: nn.Module, inputs: Any) -> tuple[nn.Module, Any]:
    """Return a model and its inputs in float64, if it runs so."""
    doubled = copy.deepcopy(model).double(), tree_map_only(torch.Tensor, _double, inputs)
    try:
        _run(*doubled)
    except Exception:  # some operations take float32 alone
        return model, inputs
    return doubled


def _double(x: torch.Tensor) -> torch.Tensor:
    return x.double() if x.is_floating_point() else x


def _perturbed(model: nn.Module) -> nn.Module:
    """Give every vector of parameters, and the statistics of BatchNorm, values of their own."""
    with torch.no_grad():
        for each in (*model.parameters(), *(b for n, b in model.named_buffers() if n.endswith(("_mean", "_var")))):
            if each.is_floating_point() and each.dim() == 1:
                each.add_(0.1 * torch.rand_like(each))
    return model


def _ours(model: nn.Module, inputs: Any, norms: bool = False) -> Row:
    model, row = copy.deepcopy(model), Row()
    started = time.process_time()
    try:
        structure = trace(model, inputs, through_norms=norms)
        row["seconds"] = time.process_time() - started
        none = {group.name: torch.zeros(group.size, dtype=torch.bool) for group in structure}
        row["free"] = _share(model, structure.masks(none))
        row["frozen"] = _reasons(model, structure.frozen)
        row["unknown"] = list(structure.unknown)
        kept = {group.name: _larger_half(model, group) for group in structure}
        if not kept:
            return row
        flops = structure.flops(), structure.flops(kept)
        row["flops"] = flops[1] / max(1, flops[0])
        masks, learns = structure.masks(kept), _can_learn(copy.deepcopy(model), inputs)
        expected = None if norms else _run(_masked(model, masks), inputs)
        report = shrink(model, masks, inputs, structure=structure)
        row["parameters"] = report.parameters[1] / report.parameters[0]
        row["error"] = report.error
        if expected is not None:
            row["independent"] = _apart(_run(model, inputs), expected)
        if learns:
            _learns(model, inputs)
        row["ok"] = True
    except Exception as error:
        row.setdefault("seconds", time.process_time() - started)
        row["fails"] = f"{type(error).__name__}: {error}"[:600]
        row["ours"] = isinstance(error, (ValueError, TypeError)) and "ignite_prune" in _last_file(error)
        row["trace"] = traceback.format_exc()[-1500:]
    return row


def _last_file(error: BaseException) -> str:
    return traceback.extract_tb(error.__traceback__)[-1].filename


def _larger_half(model: nn.Module, group: Any) -> torch.Tensor:
    slot = group.slots[group.maker]
    weight = {**dict(model.named_parameters()), **dict(model.named_buffers())}[slot.name].detach()
    norms = weight.double().movedim(slot.dim, 0).reshape(weight.shape[slot.dim], -1).norm(dim=1)
    here = slot.units >= 0
    score = torch.zeros(group.size, dtype=torch.double).index_add_(0, slot.units[here], norms[here])
    kept = torch.zeros(group.size, dtype=torch.bool)
    kept[score.argsort(descending=True)[: max(1, group.size - group.size // 2)]] = True
    return kept


def _masked(model: nn.Module, masks: Any) -> nn.Module:
    model = copy.deepcopy(model)
    with torch.no_grad():
        for name, each in model.named_parameters():
            if name in masks:
                each.mul_(masks[name])
    return model


def _run(model: nn.Module, inputs: Any) -> list[torch.Tensor]:
    torch.manual_seed(0)
    args, kwargs = as_arguments(model, copy.deepcopy(inputs))
    with torch.no_grad():
        return tensors_of(model.eval()(*args, **kwargs))


def _apart(found: list[torch.Tensor], expected: list[torch.Tensor]) -> float:
    pairs = [(a, b) for a, b in zip(found, expected) if a.numel()]
    return max(float((a - b).double().abs().max() / b.double().abs().max().clamp(min=1e-12)) for a, b in pairs)


def _learns(model: nn.Module, inputs: Any) -> None:
    args, kwargs = as_arguments(model, copy.deepcopy(inputs))
    outputs = [each for each in tensors_of(model(*args, **kwargs)) if each.requires_grad]
    if outputs:
        sum(each.abs().mean() for each in outputs).backward()
        torch.optim.SGD(model.parameters(), 1e-3).step()


def _can_learn(model: nn.Module, inputs: Any) -> bool:
    try:
        _learns(model, inputs)
    except Exception:  # some models need another mode for it, or cannot at all
        return False
    return True


def _weights(model: nn.Module) -> set[str]:
    """Return the names of the layers' weights: all parameters of two dimensions or more but tables of embeddings."""
    tables = {id(m.weight) for m in model.modules() if isinstance(m, (nn.Embedding, nn.EmbeddingBag))}
    return {name for name, each in model.named_parameters() if each.dim() > 1 and id(each) not in tables}


def _share(model: nn.Module, masks: Any) -> float:
    names, sizes = _weights(model), {name: each.numel() for name, each in model.named_parameters()}
    gone = sum(int((~masks[name]).sum()) for name in names if name in masks)
    return gone / max(1, sum(sizes[name] for name in names))


def _reasons(model: nn.Module, frozen: Any) -> dict[str, int]:
    """Return how many elements of weights are not free for each reason."""
    held, found = dict(model.named_parameters()), dict[str, int]()
    for (name, dim), why in frozen.items():
        if name in _weights(model) and dim < 2:
            found[why] = found.get(why, 0) + held[name].numel()
    return dict(sorted(found.items(), key=lambda each: -each[1])[:8])


def _theirs(model: nn.Module, inputs: Any) -> Row:
    """Return whether torch-pruning, with its defaults and the last layer kept, gives a smaller model that runs."""
    import torch_pruning as tp

    model, started, row = copy.deepcopy(model), time.process_time(), Row()
    try:
        before = sum(each.numel() for each in model.parameters())
        layers = [each for each in model.modules() if isinstance(each, LAYERS)]
        given = inputs if isinstance(inputs, (dict, torch.Tensor)) else tuple(inputs)
        pruner = tp.pruner.BasePruner(
            model, given, tp.importance.MagnitudeImportance(), pruning_ratio=0.5, ignored_layers=layers[-1:],
            output_transform=lambda out: sum(each.sum() for each in tensors_of(out)),
        )  # fmt: skip
        pruner.step()
        _run(model, inputs)
        row["parameters"] = sum(each.numel() for each in model.parameters()) / before
        row["ok"] = row["parameters"] < 1
    except Exception as error:
        row["fails"] = f"{type(error).__name__}: {error}"[:200]
    return {**row, "seconds": time.process_time() - started}


def _in_process(name: str, parts: Sequence[str], limit: float) -> Row:
    """Measure a model in a process of its own."""
    ours, theirs = multiprocessing.Pipe(False)
    process = multiprocessing.get_context("fork").Process(target=_send, args=(theirs, name, parts, limit))
    process.start()
    theirs.close()
    found: Row = {"name": name}
    with suppress(EOFError):  # it has ended
        while ours.poll(10 * limit):
            found = ours.recv()
    process.kill()
    process.join()
    return found


def _send(pipe: Connection, name: str, parts: Sequence[str], limit: float) -> None:
    torch.set_num_threads(1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for row in measured(name, parts, limit):
            pipe.send(row)


def table(rows: list[Row]) -> str:
    """Return a summary by family, in Markdown."""
    heads = ("family", "models", "sliced right", "≥ 90 % free", "through norms: right", "≥ 90 % free")
    lines = [" | ".join(["", *heads, "median trace", "torch-pruning runs", ""]).strip(), "|---|" + "--:|" * 7]
    made = [row for row in rows if "missing" not in row]
    families = sorted({row["name"].partition(":")[0] for row in made})
    for family in [*families, ""]:
        some = [row for row in made if row["name"].startswith(family)]
        each = [[row.get(kind, {}) for row in some] for kind in ("plain", "norms", "torch-pruning")]
        counted = [sum(bool(its.get("ok")) for its in kind) for kind in each]
        wide = [sum(its.get("free", 0) >= 0.9 for its in kind) for kind in each]
        seconds = statistics.median([its["seconds"] for its in each[0] if "seconds" in its] or [0.0])
        cells = (len(some), counted[0], wide[0], counted[1], wide[1], f"{seconds:.1f} s", counted[2])
        lines.append(f"| {family or 'all'} | " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines)


def _told(part: Row) -> str:
    fails = "LATE" if part.get("late") else repr(part.get("fails", ""))[:150]
    return f"{part.get('free', 0):4.0%} {part.get('seconds', 0):4.1f}s {fails}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="*", default=["*"], help="globs of names, family:model")
    parser.add_argument("--limit", type=float, default=60, help="seconds of CPU for a model")
    parser.add_argument("--json", type=Path, help="file for all that is measured, a line a model")
    parser.add_argument("--parts", nargs="*", default=PARTS, choices=PARTS, help="what to measure")
    options = parser.parse_args()
    zoo_models.preload()
    names = [name for name in zoo_models.models() if any(fnmatchcase(name, rule) for rule in options.only)]
    done = options.json is not None and options.json.exists()
    rows = [json.loads(line) for line in options.json.read_text().splitlines()] if done else []
    for name in names:
        if any(row["name"] == name for row in rows):
            continue
        row = _in_process(name, options.parts, options.limit)
        rows.append(row)
        both = [_told(row.get(kind, {})) for kind in ("plain", "norms")]
        print(f"{name:40} {row.get('missing') or ' | '.join(both)}", flush=True)
        if options.json:
            with options.json.open("a") as file:
                file.write(json.dumps(row) + "\n")
    print(table(rows))


if __name__ == "__main__":
    main()
