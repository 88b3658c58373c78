"""Handlers beside PruneHandler, and gates of learnt sparsity."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from ignite.engine import Events
from torch import nn
from torch.nn.functional import cross_entropy

from ignite_prune import PruneHandler, activation, handlers, regularise, saliency, schedule, trace
from ignite_prune import pattern as patterns
from tests.catalogue.row import Row
from tests.models import batches, small_net


@dataclass(frozen=True)
class HandlerRow(Row):
    """A handler under the laws: ``make(model, optimizer)`` gives all handlers of a run, by name.

    Attributes:
        event: What it is attached to; None for its own default.
        attached: Names of those that are attached, in this order.
        first: Name of one that a checkpoint has to load before the model.
        published: Attribute of the trainer's state where it publishes; None for none.

    Notes that laws read: ``zero``, masked weights, gradients and optimizer state are 0 after every step;
    ``masked``, the weights are 0 after every step where ``masks`` says so.
    """

    event: Any = None
    attached: tuple[str, ...] = ("handler",)
    first: str | None = None
    published: str | None = "sparsity"

    def loss_fn(self, objects: dict[str, Any]) -> Any:
        """Return the loss that the trainer takes: a distillation's own mixes its teacher in."""
        handler = objects.get("handler")
        return handler.wrap(cross_entropy) if isinstance(handler, handlers.Distillation) else cross_entropy

    def objects(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
        """Return what a checkpoint holds, in the order in which it is loaded."""
        made = self.make(model, optimizer)
        first = {self.first: made.pop(self.first)} if self.first else {}
        return {**first, "model": model, "optimizer": optimizer, **made}

    def attach(self, objects: dict[str, Any], engine: Any, event: Any = None) -> None:
        """Attach the handlers to an engine."""
        event = self.event if event is None else event
        for name in self.attached:
            objects[name].attach(engine, *(() if event is None else (event,)))


def _alone(make: Callable[[nn.Module, torch.optim.Optimizer], Any]) -> Callable[..., dict[str, Any]]:
    return lambda model, optimizer: {"handler": make(model, optimizer)}


def _alternating(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    settings = {"sparsity": 0.5, "begin": 1, "phase": 1, "end": 3, "reset_momentum": True}
    return {"pruner": handlers.AlternatingSparse(model, optimizer, **settings)}


def _shrunk(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    inputs = batches(1)[0][0]
    pruner = PruneHandler(
        model,
        optimizer,
        saliency=saliency.Taylor(),
        schedule=schedule.Steps({1: 0.25, 3: 0.5}),
        structure=trace(model, inputs),
    )
    return {"pruner": pruner, "shrinker": handlers.ShrinkHandler(pruner, inputs)}


def _progressive(steps: int) -> Callable[..., dict[str, Any]]:
    def make(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
        plan = schedule.Steps({1: 0.25, 5: 0.75})
        pruner = PruneHandler(model, optimizer, pattern=patterns.Block((4, 1)), schedule=plan)
        return {"pruner": pruner, "progressive": handlers.ProgressiveMasks(pruner, steps=steps)}

    return make


def _teacher() -> nn.Module:
    return nn.Sequential(*small_net(5)[:5], nn.Linear(128, 24), nn.Tanh(), nn.Linear(24, 4))


ITERATION = Events.ITERATION_COMPLETED
RISE = schedule.Linear(0.5, begin=0, end=12)  # in iterations
_TERMS = [handlers.SoftTargets(4.0), handlers.HiddenMSE("5", project=True), handlers.HiddenMSE("0", normalised=True)]
_channels = patterns.Channel()


def moving(name: str, kind: Any, end: int = 12) -> HandlerRow:
    """A row of dynamic sparse training that moves connections until an iteration."""

    def make(model: nn.Module, optimizer: torch.optim.Optimizer) -> Any:
        dice = torch.Generator().manual_seed(7)
        return kind(model, optimizer, sparsity=0.5, every=3, end=end, generator=dice)

    return HandlerRow(name, _alone(make), {"zero": True})


# make() -> gate
GATES = [
    Row("threshold", lambda: regularise.SoftThreshold(start_at=-3.0)),
    Row("movement", lambda: regularise.SoftMovement(0.49)),
]

# make(model, optimizer) -> handlers by name. States of an earlier version are kept of some rows, see tests/states:
# their settings stay as they are.
HANDLERS = [
    moving("set", handlers.SET),
    moving("rigl", handlers.RigL),
    moving("srigl", handlers.SRigL),
    moving("sparse_momentum", handlers.SparseMomentum),
    HandlerRow("top_kast", _alone(lambda m, o: handlers.TopKAST(m, o, sparsity=0.5, every=3))),
    HandlerRow("top_kast_decays", _alone(lambda m, o: handlers.TopKAST(m, o, sparsity=0.8, every=2, strength=0.05))),
    HandlerRow("sr_ste", _alone(lambda m, o: handlers.SRSTE(m, o))),
    HandlerRow("sr_ste_decays", _alone(lambda m, o: handlers.SRSTE(m, o, strength=0.05))),
    HandlerRow("alternating", _alternating, {"zero": True, "by_epochs": True}, attached=("pruner",)),
    HandlerRow("progressive", _progressive(4), {"zero": True}, event=ITERATION, attached=("progressive",)),
    HandlerRow(
        "shrunk",
        _shrunk,
        {"zero": True, "by_epochs": True, "optional": {"rates"}},
        event=Events.EPOCH_COMPLETED,
        attached=("pruner", "shrinker"),
        first="shrinker",
    ),
    HandlerRow(
        "group_lasso",
        _alone(lambda m, o: handlers.GroupLasso(m, strength=schedule.Linear(0.5, 1, 3), pattern=_channels)),
        published="group_lasso",
    ),
    HandlerRow(
        "group_lasso_of_inputs",
        _alone(lambda m, o: handlers.GroupLasso(m, strength=RISE, pattern=patterns.Channel(dim=1))),
        event=ITERATION,
        published="group_lasso",
    ),
    HandlerRow(
        "group_lasso_by_gradient",
        _alone(lambda m, o: handlers.GroupLasso(m, strength=RISE, pattern=patterns.NofM(2, 4), proximal=False)),
        event=ITERATION,
        published="group_lasso",
    ),
    HandlerRow("slimming", _alone(lambda m, o: handlers.Slimming(m, strength=0.1)), published="slimming"),
    HandlerRow(
        "slimming_proximal",
        _alone(lambda m, o: handlers.Slimming(m, strength=RISE, proximal=True)),
        event=ITERATION,
        published="slimming",
    ),
    HandlerRow(
        "learnt_threshold",
        _alone(lambda m, o: handlers.LearntSparsity(m, strength=0.01)),
        {"masked": True},
        published="learnt_sparsity",
    ),
    HandlerRow(
        "learnt_movement",
        _alone(lambda m, o: handlers.LearntSparsity(m, strength=0.01, gate=regularise.SoftMovement())),
        {"masked": True},
        published="learnt_sparsity",
    ),
    *(
        HandlerRow(
            f"learnt_{gate.name}_rising",
            _alone(
                lambda m, o, gate=gate, options=options: handlers.LearntSparsity(
                    m, strength=RISE, gate=gate.make(), **options
                )
            ),
            {"masked": True},
            event=ITERATION,
            published="learnt_sparsity",
        )
        for gate, options in zip(GATES, ({}, {"learner": lambda p: torch.optim.SGD(p, lr=50.0, momentum=0.5)}))
    ),
    HandlerRow(
        "k_winners",
        _alone(lambda m, o: handlers.ActivationSparsity(m, {"5": activation.KWinners(density=0.25)}, boost_decay=0.9)),
        published="activation",
    ),
    HandlerRow(
        "distilled",
        _alone(lambda m, o: handlers.Distillation(_teacher(), m, optimizer=o, losses=_TERMS, hardness=RISE)),
        event=ITERATION,
        published="distillation",
    ),
    HandlerRow(
        "distilled_from_itself",
        _alone(lambda m, o: handlers.Distillation("self", m, losses=handlers.LogitsMSE(), hardness=0.5)),
        published="distillation",
    ),
]
