"""Cost of evidence and of the formulas that use it, compared with the same work without it or a direct transcription.

Run as a script, it scores with OBS once, in a separate process, and prints the seconds and the extra bytes.
"""

from __future__ import annotations

import copy
import ctypes
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import MappingProxyType

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from clock import Contestant, race
from ignite_prune import PruneHandler, saliency, score
from ignite_prune.allocation import Uniform
from ignite_prune.evidence.collectors.gradients import FisherBlockSums
from ignite_prune.repair.sparsegpt_sweep import block_counts, by_count, sweep
from ignite_prune.saliency.needs import FisherBlocks
from nets import Stack, resnet18
from rows import Missing, Row, Settings, ratio_row

_STATUS, _RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")

# Training step that collects evidence


def gathering(settings: Settings) -> Iterator[Row]:
    """Compare a training step that collects gradients with one that prunes by magnitude, under the same masks."""
    model = resnet18().to(settings.device)
    inputs = torch.randn(32, 3, 32, 32, device=settings.device)
    pruner = PruneHandler(copy.deepcopy(model), allocation=Uniform())
    pruner.step(0.9)
    saliencies: dict[str, saliency.Saliency] = {
        "magnitude": saliency.Magnitude(),
        "Taylor": saliency.Taylor(),
        "SNIP": saliency.SNIP(anytime=True),
        "OBD": saliency.OBD(),
    }
    contestants = {name: Contestant(_step(model, inputs, pruner.masks, s)) for name, s in saliencies.items()}
    times = race(contestants, _fewer(settings, 7), settings.device)
    first = "training step, ResNet-18, collecting evidence for Taylor, against Magnitude"
    for name, what in (("Taylor", first), ("SNIP", "  for SNIP"), ("OBD", "  for OBD")):
        yield ratio_row(what, times.ratios(name, "magnitude"), "×", at_most=1.10)


def _step(model: nn.Module, inputs: Tensor, masks: object, formula: saliency.Saliency) -> Callable[[], None]:
    model = copy.deepcopy(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4, momentum=0.9)
    pruner = PruneHandler(model, optimizer, saliency=formula, allocation=Uniform(), masks=masks)

    def step(held: PruneHandler = pruner) -> None:  # a reference keeps it alive
        optimizer.zero_grad()
        model(inputs).square().mean().backward()
        optimizer.step()

    return step


# Calibration pass


def wanda(settings: Settings) -> Iterator[Row]:
    """Compare computing Wanda's scores with the forward passes alone."""
    linear = Stack(8, settings.device, relu=True).model.eval()
    tokens = [torch.randn(1024, 1024, device=settings.device) for _ in range(4)]
    yield _wanda_row("Wanda's scores, 8 Linear(1024), against plain forward passes", linear, tokens, settings)
    images = [torch.randn(32, 3, 32, 32, device=settings.device) for _ in range(4)]
    yield _wanda_row("  of ResNet-18", resnet18().to(settings.device).eval(), images, settings)


def _wanda_row(what: str, model: nn.Module, data: list[Tensor], settings: Settings) -> Row:
    @torch.no_grad()
    def plain() -> None:
        for batch in data:
            model(batch)

    def ours() -> None:
        score(model, saliency=saliency.Wanda(), data=data)

    times = race({"plain": Contestant(plain), "ours": Contestant(ours)}, _fewer(settings, 7), settings.device)
    return ratio_row(what, times.ratios("ours", "plain"), "×", at_most=1.15)


# SparseGPT's sweep


def sparsegpt(settings: Settings) -> Iterator[Row]:
    """Compare the sweep with a direct transcription of the published algorithm."""
    weight = torch.randn(768, 3072, device=settings.device)
    inputs = torch.randn(6144, 3072, device=settings.device) @ torch.randn(3072, 3072, device=settings.device) / 55
    hessian = inputs.T @ inputs * (2 / len(inputs))
    counts = block_counts(weight.numel() // 2, tuple(weight.shape), 128)
    found: dict[str, Tensor] = {}

    def ours() -> None:
        found["ours"] = sweep(weight, hessian, damping=0.01, block=128, choose=by_count(counts, 128))[0]

    def plain() -> None:
        found["plain"] = _published(weight, hessian)

    times = race({"plain": Contestant(plain), "ours": Contestant(ours)}, _fewer(settings, 5), settings.device)
    errors = {name: float(((weight - w) @ inputs.T).norm() / (weight @ inputs.T).norm()) for name, w in found.items()}
    note = f"{times.median('ours'):.2f} s; output error {errors['ours']:.4f}, theirs {errors['plain']:.4f}"
    what = "SparseGPT's sweep, 768×3072 at 50 %, against the published algorithm"
    yield ratio_row(what, times.ratios("ours", "plain"), "×", note=note, at_most=1.0)


def _published(weight: Tensor, hessian: Tensor, block: int = 128, sparsity: float = 0.5) -> Tensor:
    """Return the pruned weight by the algorithm of arXiv 2301.00774, with a threshold that gives the exact count."""
    weight, hessian = weight.clone(), hessian.clone()
    diagonal = hessian.diagonal()
    dead = diagonal == 0
    diagonal[dead] = 1
    weight[:, dead] = 0
    diagonal += 0.01 * diagonal.mean()
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(hessian))
    factor = torch.linalg.cholesky(inverse, upper=True)
    for start in range(0, weight.shape[1], block):
        stop = min(start + block, weight.shape[1])
        part, within = weight[:, start:stop].clone(), factor[start:stop, start:stop]
        kept, errors = torch.zeros_like(part), torch.zeros_like(part)
        scores = part.square() / within.diagonal().square()
        threshold = scores.flatten().sort().values[int(scores.numel() * sparsity) - 1]
        pruned = scores <= threshold
        for i in range(stop - start):
            column = part[:, i]
            q = column.clone()
            q[pruned[:, i]] = 0
            kept[:, i] = q
            error = (column - q) / within[i, i]
            part[:, i:] -= error.unsqueeze(1) @ within[i, i:].unsqueeze(0)
            errors[:, i] = error
        weight[:, start:stop] = kept
        weight[:, stop:] -= errors @ factor[start:stop, stop:]
    return weight


# Optimal Brain Surgeon


def obs(settings: Settings) -> Iterator[Row | Missing]:
    """Measure OBS on a million weights with blocks of 50 and 64 gradients."""
    what = "OBS, 1 M weights, blocks of 50, 64 gradients: extra peak memory"
    if settings.device.type != "cpu" or not sys.platform.startswith("linux"):
        yield Missing(what, "measured on the CPU under Linux")
        return
    threads = str(torch.get_num_threads())
    answers = {}
    for name in ("ours", "plain"):
        command = [sys.executable, __file__, name, threads]
        answer = subprocess.run(command, capture_output=True, text=True, check=False)
        if answer.returncode:
            yield Missing(what, f"{answer.stderr.strip().splitlines()[-1]}")
            return
        answers[name] = [float(each) for each in answer.stdout.split()]
    blocks = 4 * 50 * 10**6
    (gather, formula, extra), (plain_gather, plain_formula, plain_extra) = answers["ours"], answers["plain"]
    note = f"{extra / 2**20:.0f} MiB on {blocks / 2**20:.0f}; direct transcription {plain_extra / blocks:.2f}×"
    yield Row(what, extra / blocks, "× blocks", at_most=1.2, note=note)
    note = f"{gather:.2f} s collecting, {formula:.2f} s scoring; plain {plain_gather:.2f} and {plain_formula:.2f} s"
    yield Row("  time", gather + formula, "s", note=note)
    ratio = (gather + formula) / (plain_gather + plain_formula)
    yield Row("  against a direct transcription with outer products and inverses", ratio, "×")


def _obs(d: int, plain: bool) -> tuple[float, float, float]:
    """Return the seconds for collecting and for scoring, and the peak extra bytes."""
    model = nn.Linear(d // 1000, 1000, bias=False)
    drawn = torch.randn(8, d)  # not counted
    ctypes.CDLL(None).malloc_trim(0)
    before = _resident("VmRSS")
    _RESET.write_text("5")
    run = _plain_obs if plain else _our_obs
    gathering, scoring = run(model, drawn)
    return gathering, scoring, _resident("VmHWM") - before


def _our_obs(model: nn.Linear, drawn: Tensor) -> tuple[float, float]:
    formula, need = saliency.OBS(), FisherBlocks(50)
    start = time.perf_counter()
    collector = FisherBlockSums(need, {"weight": model.weight}, model)
    for k in range(64):
        collector.on_gradients(MappingProxyType({"weight": drawn[k % 8].view_as(model.weight)}))
    collector.settle()
    middle = time.perf_counter()
    formula.formula(
        model.weight, collector.result("weight", collector.record.sums["weight"], collector.record.counts["weight"])
    )
    return middle - start, time.perf_counter() - middle


@torch.no_grad()
def _plain_obs(model: nn.Linear, drawn: Tensor) -> tuple[float, float]:
    start = time.perf_counter()
    fisher = torch.zeros(model.weight.numel() // 50, 50, 50)
    for k in range(64):
        cut = drawn[k % 8].view(-1, 50)
        fisher += cut.unsqueeze(2) * cut.unsqueeze(1) / 64
    middle = time.perf_counter()
    fisher += 1e-6 * torch.eye(50)
    inverse = torch.linalg.inv(fisher).diagonal(dim1=1, dim2=2)
    model.weight.square().view(-1, 50) / (2 * inverse)
    return middle - start, time.perf_counter() - middle


def _resident(field: str) -> int:
    line = next(line for line in _STATUS.read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) * 1024


# Shapley values


def shapley(settings: Settings) -> Iterator[Row]:
    """Compare the Shapley values of a layer with the same number of evaluations of the whole network."""
    widths = [(3, 32), (32, 32), (32, 64), (64, 64), (64, 64), (64, 64)]
    parts: list[nn.Module] = []
    for index, (inputs, outputs) in enumerate(widths):
        parts += [nn.Conv2d(inputs, outputs, 3, padding=1), nn.ReLU()]
        parts += [nn.MaxPool2d(2)] if index in (1, 3) else []
    model = nn.Sequential(*parts, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10)).to(settings.device).eval()
    layers = [name for name, part in model.named_children() if isinstance(part, nn.Conv2d)]
    x, y = torch.randn(16, 3, 32, 32, device=settings.device), torch.randint(10, (16,), device=settings.device)
    rounds = _fewer(settings, 3)
    for layer, what, target in (
        (layers[4], "Shapley values, 5th of 6 convolutions, speed-up over whole evaluations", {"at_least": 3.0}),
        (layers[3], "  4th of 6", {}),
    ):
        times = race(
            {
                "ours": Contestant(lambda: _ours_shapley(model, f"{layer}.weight", x, y)),  # noqa: B023
                "plain": Contestant(lambda: _plain_shapley(model, int(layer), x, y)),  # noqa: B023
            },
            rounds,
            settings.device,
        )
        yield ratio_row(what, times.ratios("plain", "ours"), "×", note=f"ours {times.median('ours'):.2f} s", **target)


def _ours_shapley(model: nn.Module, name: str, x: Tensor, y: Tensor) -> Tensor:
    found = score(model, name, saliency=saliency.Shapley(samples=5), data=[(x, y)], loss_fn=cross_entropy)
    return found[name]


@torch.no_grad()
def _plain_shapley(model: nn.Sequential, layer: int, x: Tensor, y: Tensor) -> Tensor:
    """Return the values computed by whole forward passes; units are removed after the ReLU, as in this package."""
    kept, values = torch.ones(64, device=x.device), torch.zeros(64)
    handle = model[layer + 1].register_forward_hook(lambda module, args, output: output * kept.view(-1, 1, 1))
    for _ in range(5):
        kept.fill_(1)
        before = float(cross_entropy(model(x), y))
        for unit in torch.randperm(64).tolist()[:-1]:
            kept[unit] = 0
            after = float(cross_entropy(model(x), y))
            values[unit] += (after - before) / 5
            before = after
    handle.remove()
    return values


def _fewer(settings: Settings, most: int) -> int:
    return min(settings.rounds, most)


if __name__ == "__main__":
    torch.set_num_threads(int(sys.argv[2]))
    torch.manual_seed(0)
    _obs(10_000, sys.argv[1] == "plain")  # loads libraries
    print(*_obs(10**6, sys.argv[1] == "plain"))
