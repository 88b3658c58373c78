"""Train a small net, pruned on the way, under every optimizer that is installed: zeros kept, or diverged?

    python benchmarks/optimizers.py [--only NAME] [--limit SECONDS]

Each optimizer is run in a process of its own, which is ended after ``--limit`` seconds. A run diverges if its loss is
not finite, or far above that of an unpruned run and of one that is masked by hand. After every step, what the pruner
publishes is compared with the zeros of the weights. bitsandbytes' 8-bit optimizers need a GPU.
"""

from __future__ import annotations

import argparse
import contextlib
import math
import multiprocessing
import os
import warnings
from collections import Counter
from collections.abc import Callable
from multiprocessing.connection import Connection

os.environ["TORCHDYNAMO_DISABLE"] = "1"  # compiling steps, as heavyball and torchao do, takes minutes for each

import torch
from rich.console import Console
from torch import Tensor, nn

from ignite_prune import PruneHandler, SparsityWarning
from optimizer_kinds import Make, optimizers

STEPS, CHANGES = 60, {10: 0.2, 20: 0.4, 30: 0.6}


def batches() -> list[tuple[Tensor, Tensor]]:
    dice = torch.Generator().manual_seed(1)
    teacher = torch.randn(64, 10, generator=dice)
    inputs = [torch.randn(32, 64, generator=dice) for _ in range(8)]
    return [(x, (x @ teacher).argmax(1)) for x in inputs]


def train(make: Make, how: str) -> tuple[float, str]:
    """Return the mean loss of the last steps, and what was wrong with the published sparsity after a step."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 128, bias=False), nn.ReLU(), nn.Linear(128, 128, bias=False), nn.ReLU())
    model.append(nn.Linear(128, 10, bias=False))
    optimizer, data, losses, wrong = make(model), batches(), [], ""
    pruner = PruneHandler(model, optimizer if how == "pruned" else None)
    if isinstance(getattr(optimizer, "train", None), Callable):  # schedule-free
        optimizer.train()
    for index in range(STEPS):
        if index in CHANGES and how != "dense":
            pruner.step(CHANGES[index])
            if how == "by hand":
                pruner.detach()
        losses.append(_step(model, optimizer, data[index % len(data)], pruner if how == "by hand" else None))
        if how == "pruned":
            wrong = wrong or _lie(model, pruner)
    return sum(losses[-8:]) / 8, wrong


def _lie(model: nn.Module, pruner: PruneHandler) -> str:
    """Return how the published sparsity differs from the zeros of the weights; empty if it does not."""
    parameters, masks = dict(model.named_parameters()), pruner.masks
    dead = sum(int((parameters[name][~mask] == 0).sum()) for name, mask in masks.items())
    kept = sum(int((parameters[name][mask] == 0).sum()) for name, mask in masks.items())
    whole = sum(parameter.numel() for parameter in parameters.values())
    if pruner.sparsity != dead / whole:
        return f"published {pruner.sparsity:.4f}, real {dead / whole:.4f}"
    return f"{kept} kept weights are 0" if kept > whole / 100 else ""


def _step(
    model: nn.Module, optimizer: torch.optim.Optimizer, batch: tuple[Tensor, Tensor], by_hand: PruneHandler | None
) -> float:
    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(batch[0]), batch[1])
        loss.backward(create_graph=by_second_derivatives)
        if by_hand is not None:
            for name, parameter in by_hand.masks.parameters.items():
                if parameter.grad is not None:
                    parameter.grad.data.mul_(by_hand.masks[name])
        return loss

    by_second_derivatives = type(optimizer).__name__ in ("AdaHessian", "Adahessian", "SophiaH", "SPlus")
    loss = closure()
    try:
        optimizer.step(closure) if isinstance(optimizer, torch.optim.LBFGS) else optimizer.step()
    except Exception as error:
        if "closure" not in f"{error}{type(error)}".lower():
            raise
        optimizer.step(closure)
    if by_hand is not None:
        by_hand.masks.apply_()
    return float(loss.detach())


def verdict(make: Make) -> tuple[str, str]:
    """Return what became of the zeros, and the losses or the error."""
    try:
        dense, _ = train(make, "dense")
    except Exception as error:
        return "does not run", f"{type(error).__name__}: {error!s:.80}"
    try:
        by_hand, _ = train(make, "by hand")
    except Exception:
        by_hand = math.inf
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", SparsityWarning)
            pruned, wrong = train(make, "pruned")
    except SparsityWarning as error:
        return "warned", f"{error!s:.90}"
    except (TypeError, ValueError) as error:
        return "refused", f"{error!s:.90}"
    except Exception as error:
        return "fails", f"{type(error).__name__}: {error!s:.90}"
    losses = f"dense {dense:.3g}, by hand {by_hand:.3g}, pruned {pruned:.3g}"
    if wrong:
        return "published is not real", f"{wrong}; {losses}"
    limit = 1.3 * max(dense, min(by_hand, 1e3 * dense)) + 0.2
    good = (math.isfinite(pruned) and pruned < limit) or not math.isfinite(dense)
    return ("zeros kept", losses) if good else ("diverged", losses)


def within(seconds: float, make: Make) -> tuple[str, str]:
    """Return the verdict that a process of its own reaches in time."""
    context = multiprocessing.get_context("fork")
    mine, theirs = context.Pipe()
    process = context.Process(target=_send, args=(theirs, make), daemon=True)
    process.start()
    theirs.close()
    try:
        return mine.recv() if mine.poll(seconds) else ("too slow", f"not done in {seconds:g} s")
    except EOFError:
        return "does not run", "the process has died"
    finally:
        process.kill()
        process.join()


def _send(to: Connection, make: Make) -> None:
    torch.set_num_threads(1)
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
        to.send(verdict(make))


def main() -> None:
    parser = argparse.ArgumentParser(description="Every installed optimizer under pruning.")
    parser.add_argument("--only", default="", metavar="NAME", help="optimizers whose name contains this")
    parser.add_argument("--after", default="", metavar="NAME", help="those that come after the one of this name")
    parser.add_argument("--limit", type=float, default=60, metavar="SECONDS", help="for one optimizer (default: 60)")
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    totals, console = Counter[str](), Console(width=160)
    behind = not given.after
    for name, make in optimizers():
        if not behind:
            behind = name == given.after
            continue
        if given.only.lower() in name.lower():
            result, detail = within(given.limit, make)
            totals[result] += 1
            console.print(f"{name:36} {result:22} {detail}", highlight=False, markup=False)
    console.print(", ".join(f"{result}: {count}" for result, count in totals.most_common()))


if __name__ == "__main__":
    main()
