"""Train a small net, pruned to 90 % on the way, under every optimizer that is installed: zeros kept, or diverged?

    python benchmarks/optimizers.py [--only NAME]

Optimizers are those of torch and, where they are installed, of ``pytorch_optimizer``, ``timm``, ``schedulefree`` and
``torchao``. A run diverges if its loss is not finite, or far above that of an unpruned run and of one that is masked by
hand. bitsandbytes is left out: it is large, and its 8-bit optimizers need a GPU.
"""

from __future__ import annotations

import argparse
import importlib
import math
import warnings
from collections import Counter
from collections.abc import Callable, Iterator

import torch
from rich.console import Console
from torch import Tensor, nn

from ignite_prune import PruneHandler

Make = Callable[[list[nn.Parameter]], torch.optim.Optimizer]
STEPS, CHANGES = 60, {10: 0.3, 20: 0.6, 30: 0.9}


def optimizers() -> Iterator[tuple[str, Make]]:
    """Yield a name and a constructor for each optimizer."""
    for name in torch.optim.__all__:
        kind = getattr(torch.optim, name)
        if (
            isinstance(kind, type)
            and issubclass(kind, torch.optim.Optimizer)
            and name not in ("Optimizer", "SparseAdam")
        ):
            yield f"torch {name}", _with_rate(kind)
    for package, names, load in (
        ("pytorch_optimizer", "get_supported_optimizers", "load_optimizer"),
        ("timm.optim", "list_optimizers", "get_optimizer_class"),
    ):
        try:
            module = importlib.import_module(package)
        except ImportError:
            continue
        for name in getattr(module, names)():
            yield f"{package} {name}", _loaded(getattr(module, load), name)
    for package, kinds in (
        ("schedulefree", ("AdamWScheduleFree", "SGDScheduleFree", "RAdamScheduleFree")),
        ("torchao.optim", ("AdamW8bit", "AdamW4bit", "AdamWFp8")),
    ):
        try:
            module = importlib.import_module(package)
        except ImportError:
            continue
        for name in kinds:
            yield f"{package} {name}", _with_rate(getattr(module, name))


def _with_rate(kind: type[torch.optim.Optimizer]) -> Make:
    def make(params: list[nn.Parameter]) -> torch.optim.Optimizer:
        try:
            return kind(params, lr=1e-3)  # type: ignore[call-arg]
        except (TypeError, ValueError):
            return kind(params)  # type: ignore[call-arg]

    return make


def _loaded(load: Callable[[str], type[torch.optim.Optimizer]], name: str) -> Make:
    def make(params: list[nn.Parameter]) -> torch.optim.Optimizer:
        return _with_rate(load(name))(params)

    return make


def batches() -> list[tuple[Tensor, Tensor]]:
    dice = torch.Generator().manual_seed(1)
    teacher = torch.randn(64, 10, generator=dice)
    inputs = [torch.randn(32, 64, generator=dice) for _ in range(8)]
    return [(x, (x @ teacher).argmax(1)) for x in inputs]


def train(make: Make, how: str) -> tuple[float, int]:
    """Return the mean loss of the last steps, and how many pruned weights were alive after a step at most."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 128, bias=False), nn.ReLU(), nn.Linear(128, 128, bias=False), nn.ReLU())
    model.append(nn.Linear(128, 10, bias=False))
    optimizer, data, losses, alive = make(list(model.parameters())), batches(), [], 0
    pruner = PruneHandler(model, optimizer if how == "pruned" else None)
    if isinstance(getattr(optimizer, "train", None), Callable):  # schedule-free
        optimizer.train()
    for index in range(STEPS):
        if index in CHANGES and how != "dense":
            pruner.step(CHANGES[index])
            if how == "by hand":
                pruner.detach()
        loss = _step(model, optimizer, data[index % len(data)], pruner if how == "by hand" else None)
        losses.append(loss)
        alive = max(alive, sum(int((p[~pruner.masks[n]] != 0).sum()) for n, p in pruner.masks.parameters.items()))
    return sum(losses[-8:]) / 8, alive


def _step(
    model: nn.Module, optimizer: torch.optim.Optimizer, batch: tuple[Tensor, Tensor], by_hand: PruneHandler | None
) -> float:
    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(batch[0]), batch[1])
        loss.backward()
        if by_hand is not None:
            for name, parameter in by_hand.masks.parameters.items():
                parameter.grad.mul_(by_hand.masks[name])
        return loss

    loss = closure()
    if isinstance(optimizer, torch.optim.LBFGS):
        optimizer.step(closure)
    else:
        optimizer.step()
    if by_hand is not None:
        by_hand.masks.apply_()
    return float(loss)


def verdict(make: Make) -> tuple[str, str]:
    """Return what became of the zeros, and the losses or the error."""
    try:
        dense, _ = train(make, "dense")
    except Exception as error:
        return "does not run", f"{type(error).__name__}: {error!s:.60}"
    try:
        by_hand, _ = train(make, "by hand")
        pruned, alive = train(make, "pruned")
    except TypeError as error:
        return "refused", f"{error!s:.90}"
    losses = f"dense {dense:.3g}, by hand {by_hand:.3g}, pruned {pruned:.3g}"
    if alive:
        return "weights revived", losses
    limit = 1.3 * max(dense, by_hand) + 0.2
    good = (math.isfinite(pruned) and pruned < limit) or not math.isfinite(by_hand)
    return ("zeros kept", losses) if good else ("diverged", losses)


def main() -> None:
    parser = argparse.ArgumentParser(description="Every installed optimizer under pruning.")
    parser.add_argument("--only", default="", metavar="NAME", help="optimizers whose name contains this")
    wanted = parser.parse_args().only
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    totals, console = Counter[str](), Console(width=160)
    for name, make in optimizers():
        if wanted.lower() in name.lower():
            result, detail = verdict(make)
            totals[result] += 1
            console.print(f"{name:36} {result:16} {detail}", highlight=False)
    console.print(", ".join(f"{result}: {count}" for result, count in totals.most_common()))


if __name__ == "__main__":
    main()
