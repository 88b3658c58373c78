"""Optimizers to train with and events to attach to."""

from __future__ import annotations

from typing import Any

import torch
from ignite.engine import Events

from tests.catalogue.row import Row

# make(parameters) -> optimizer
OPTIMIZERS = [
    Row("sgd", lambda p: torch.optim.SGD(p, lr=0.05)),
    Row("sgd_momentum", lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, weight_decay=0.01)),
    Row("sgd_nesterov", lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, nesterov=True)),
    Row("sgd_maximize", lambda p: torch.optim.SGD(p, lr=0.001, momentum=0.9, maximize=True)),
    Row("sgd_fused", lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, fused=True)),
    Row("adam", lambda p: torch.optim.Adam(p, lr=0.01)),
    Row("adam_amsgrad", lambda p: torch.optim.Adam(p, lr=0.01, amsgrad=True, weight_decay=0.01)),
    Row("adam_foreach", lambda p: torch.optim.Adam(p, lr=0.01, foreach=True)),
    Row("adam_fused", lambda p: torch.optim.Adam(p, lr=0.01, fused=True)),
    Row("adamw", lambda p: torch.optim.AdamW(p, lr=0.01, amsgrad=True)),
    Row("nadam", lambda p: torch.optim.NAdam(p, lr=0.01, weight_decay=0.01, decoupled_weight_decay=True)),
    Row("radam", lambda p: torch.optim.RAdam(p, lr=0.01)),
    Row("adamax", lambda p: torch.optim.Adamax(p, lr=0.01)),
    Row("adagrad", lambda p: torch.optim.Adagrad(p, lr=0.05, initial_accumulator_value=0.1)),
    Row("adadelta", lambda p: torch.optim.Adadelta(p, lr=1.0)),
    Row("adafactor", lambda p: torch.optim.Adafactor(p, lr=0.01)),
    Row("rmsprop", lambda p: torch.optim.RMSprop(p, lr=0.01, momentum=0.9, centered=True)),
    Row("rprop", lambda p: torch.optim.Rprop(p, lr=0.01)),
    Row("asgd", lambda p: torch.optim.ASGD(p, lr=0.05, t0=0, lambd=0.01)),
    Row("lbfgs", lambda p: torch.optim.LBFGS(p, lr=0.1, max_iter=4), {"closure": True}),
    Row("lbfgs_wolfe", lambda p: torch.optim.LBFGS(p, max_iter=4, line_search_fn="strong_wolfe"), {"closure": True}),
    Row("muon", lambda p: torch.optim.Muon(p, lr=0.01), {"matrices": True}),
    Row("sparse_adam", lambda p: torch.optim.SparseAdam(p, lr=0.01), {"sparse": True}),
    Row("unknown", lambda p: Unknown(p, lr=0.05)),
]


class Unknown(torch.optim.Optimizer):
    """Nobody's optimizer: it moves even what has no gradient, and remembers it."""

    def __init__(self, params: Any, lr: float) -> None:
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    memory = self.state[p].setdefault("memory", torch.ones_like(p))
                    memory.mul_(0.9).add_(p.grad).add_(0.01)
                    p.sub_(memory, alpha=group["lr"])


# make() -> event to attach to; unit: what the schedule's steps count
EVENTS = [
    Row("epoch_completed", lambda: Events.EPOCH_COMPLETED),
    Row("epoch_started", lambda: Events.EPOCH_STARTED),
    Row("iteration_completed", lambda: Events.ITERATION_COMPLETED),
    Row("iteration_started", lambda: Events.ITERATION_STARTED),
    Row("every_3_iterations", lambda: Events.ITERATION_COMPLETED(every=3)),
    Row("every_2_epochs", lambda: Events.EPOCH_COMPLETED(every=2)),
    Row("between", lambda: Events.ITERATION_COMPLETED(after=3, before=14)),
    Row("once", lambda: Events.EPOCH_COMPLETED(once=2)),
    Row("own_filter", lambda: Events.ITERATION_COMPLETED(lambda engine, count: count in (2, 5, 10))),
    Row("two_events", lambda: Events.EPOCH_STARTED | Events.EPOCH_COMPLETED(every=2)),
]
