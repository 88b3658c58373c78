"""The sparse training methods that are compared, each with the event that drives it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch
from ignite.engine import Engine, Events
from sparse_tasks import Task
from torch import nn
from torch.optim import Optimizer

from ignite_prune import PruneHandler, allocation, schedule
from ignite_prune.handlers import SET, AlternatingSparse, LearntSparsity, RigL, SparseMomentum, SRigL, TopKAST
from ignite_prune.regrow import CosineDrop
from ignite_prune.regularise import SoftThreshold


class Sparse(Protocol):
    """A handler that makes a model sparse."""

    @property
    def sparsity(self) -> float: ...

    def attach(self, engine: Engine, *event: Any) -> None: ...


Made = tuple[Sparse, tuple[Any, ...]]  # and the event, if it is not the handler's default
Method = Callable[[nn.Module, Optimizer, Task, float], Made]


def static(model: nn.Module, optimizer: Optimizer, task: Task, sparsity: float) -> Made:
    return SET(model, optimizer, sparsity=sparsity, end=1), ()  # ends before its first update


def evolutionary(model: nn.Module, optimizer: Optimizer, task: Task, sparsity: float) -> Made:
    drop = CosineDrop(task.drop)
    return SET(model, optimizer, sparsity=sparsity, every=task.every, drop_fraction=drop), ()


def rigged(model: nn.Module, optimizer: Optimizer, task: Task, sparsity: float) -> Made:
    return RigL(model, optimizer, sparsity=sparsity, every=task.every, drop_fraction=task.drop), ()


def structured(model: nn.Module, optimizer: Optimizer, task: Task, sparsity: float) -> Made:
    return SRigL(model, optimizer, sparsity=sparsity, every=task.every, drop_fraction=task.drop), ()


def momentum(model: nn.Module, optimizer: Optimizer, task: Task, sparsity: float) -> Made:
    return SparseMomentum(model, optimizer, sparsity=sparsity, every=task.every, drop_fraction=task.drop), ()


def top(model: nn.Module, optimizer: Optimizer, task: Task, sparsity: float) -> Made:
    explored = max(0.0, 1 - 10 * (1 - sparsity))
    return TopKAST(model, optimizer, sparsity=sparsity, backward_sparsity=explored, every=task.every), ()


def alternating(model: nn.Module, optimizer: Optimizer, task: Task, sparsity: float) -> Made:
    tenth = max(1, task.iterations // 10)
    phases = {"begin": tenth, "phase": tenth, "end": 7 * tenth, "reset_momentum": True}
    pruner = AlternatingSparse(model, optimizer, sparsity=sparsity, allocation=allocation.ERK(), **phases)
    return pruner, (Events.ITERATION_STARTED,)


def one_shot(model: nn.Module, optimizer: Optimizer, task: Task, sparsity: float) -> Made:
    quarter = max(1, task.iterations // 4)
    once = schedule.OneShot(sparsity, at=quarter)
    pruner = PruneHandler(model, optimizer, schedule=once, allocation=allocation.ERK())
    return pruner, (Events.ITERATION_COMPLETED(once=quarter),)


def gradual(model: nn.Module, optimizer: Optimizer, task: Task, sparsity: float) -> Made:
    rise = schedule.Polynomial(sparsity, begin=0.1 * task.iterations, end=0.75 * task.iterations)
    pruner = PruneHandler(model, optimizer, schedule=rise, allocation=allocation.ERK())
    return pruner, (Events.ITERATION_COMPLETED(every=task.every),)


def learnt(model: nn.Module, optimizer: Optimizer, task: Task, sparsity: float) -> Made:
    def learner(thresholds: list[nn.Parameter]) -> Optimizer:
        return torch.optim.Adam(thresholds, lr=0.03)

    return LearntSparsity(model, gate=SoftThreshold(start_at=-5.0), strength=1.0, learner=learner), ()


METHODS: dict[str, Method | None] = {
    "dense": None,
    "static": static,
    "SET": evolutionary,
    "RigL": rigged,
    "sparse momentum": momentum,
    "gradual": gradual,
}
MORE: dict[str, Method | None] = {
    "SRigL": structured,
    "Top-KAST": top,
    "AC/DC": alternating,
    "one shot": one_shot,
    "STR": learnt,
}
