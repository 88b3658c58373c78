"""Short training runs of any row, for the laws that build a run again and for those that kill one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from ignite.engine import Engine, Events, create_supervised_evaluator, create_supervised_trainer
from ignite.handlers import PiecewiseLinear
from ignite.metrics import Accuracy
from torch import nn

from ignite_prune import PruneEvents, PruneHandler, Rewind, ShrinkHandler, allocation, schedule, trace
from ignite_prune.handlers import (
    SRSTE,
    ActivationSparsity,
    Distillation,
    DynamicSparse,
    GroupLasso,
    LearntSparsity,
    ProgressiveMasks,
    PruningEvents,
    Slimming,
    TopKAST,
    create_pruning_engine,
)
from tests.catalogue import (
    COUPLED,
    EVENTS,
    HANDLERS,
    OPTIMIZERS,
    PATTERNS,
    REPAIRS,
    SALIENCIES,
    SCHEDULES,
    SPARSIFIERS,
    find,
    net_for,
    options_for,
)
from tests.models import batches, small_net
from tests.structure.zoo import Residual, image

Handlers = (
    PruneHandler,
    ActivationSparsity,
    Distillation,
    DynamicSparse,
    GroupLasso,
    LearntSparsity,
    ProgressiveMasks,
    ShrinkHandler,
    Slimming,
    SRSTE,
    TopKAST,
)
LENGTH = 4  # iterations of an epoch: updates at each third fall everywhere in it
# Spaced, with evidence of several iterations in between, and one after the other.
SPACED = Events.ITERATION_COMPLETED(lambda engine, iteration: iteration in (3, 6, 7, 11))


class InPlace:
    """Batches that begin where the trainer is: Ignite itself would begin a resumed epoch at its first."""

    def __init__(self, data: list[Any], trainer: Engine) -> None:
        self.data, self.trainer = data, trainer

    def __len__(self) -> int:
        return len(self.data)

    def __iter__(self) -> Iterator[Any]:
        return iter(self.data[self.trainer.state.iteration % len(self.data) :])


@dataclass
class Run:
    """One run that has not begun: what a checkpoint holds, in the order in which it is loaded."""

    objects: dict[str, Any]
    trainer: Engine
    attach: Callable[[], None]
    start: Callable[[], Any]
    moments: dict[str, tuple[Engine, Any]] = field(default_factory=dict)
    any_order: bool = True  # objects may be loaded in any order

    def __post_init__(self) -> None:
        for name in ("iteration_completed", "epoch_completed", "epoch_started"):
            self.moments.setdefault(name, (self.trainer, Events[name.upper()]))
        self.moments.setdefault("every_2", (self.trainer, Events.ITERATION_COMPLETED(every=2)))
        self.moments.setdefault("masks_updated", (self.trainer, PruneEvents.MASKS_UPDATED))

    def state(self) -> dict[str, Any]:
        return {name: each.state_dict() for name, each in self.objects.items()}

    def load(self, state: dict[str, Any], backwards: bool = False) -> None:
        for name in reversed(self.objects) if backwards and self.any_order else self.objects:
            self.objects[name].load_state_dict(state[name])

    def detach(self) -> None:
        """Take hooks off the model and off all optimizers, which later runs would call."""
        for each in self.objects.values():
            if isinstance(each, Handlers):
                each.detach()

    def result(self) -> dict[str, Any]:
        """Return every bit that there is at the end."""
        model = self.objects["model"]
        published = {k: repr(v) for k, v in vars(self.trainer.state).items() if k not in ("batch", "output", "times")}
        published = {k: v for k, v in published.items() if k not in ("dataloader", "metrics", "seed")}  # NaN equals NaN
        return {**self.state(), "grads": [p.grad for p in model.parameters()], "published": published}


def build(seed: int = 0, **options: Any) -> Run:
    """Return the run that the options name; the seed is that of the model alone."""
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    for kind, make in (("handler", _handler), ("sparsifier", _sparsifier), ("shrinks", _shrinks), ("rounds", _rounds)):
        if kind in options:
            return make(seed, **options)
    return _pruner(seed, **options)


def _train(objects: dict[str, Any], trainer: Engine, attach: Any, data: Any, epochs: int, **settings: Any) -> Run:
    data = InPlace(data, trainer)
    start = lambda: trainer.run(data, max_epochs=epochs, epoch_length=len(data))  # noqa: E731
    return Run({**objects, "trainer": trainer}, trainer, attach, start, **settings)


def _event(name: str | None) -> Any:
    return SPACED if name == "spaced" else None if name is None else find(EVENTS, name).make()


def _settings(model: nn.Module, row: Any, options: dict[str, Any]) -> dict[str, Any]:
    """Keywords of a PruneHandler with evidence from training."""
    settings = {"pattern": find(PATTERNS, options.get("pattern", "unstructured")).make()}
    settings |= options_for(row, model, calibrated=False)
    if "coupled" in options:
        settings |= {"pattern": find(COUPLED, options["coupled"]).make(), "structure": trace(model, batches(1)[0][0])}
    if "repair" in options:
        chosen = find(REPAIRS, options["repair"])
        settings["repair"] = chosen.make()
        if chosen.notes.get("data"):
            settings |= {"data": batches(3, seed=9), "loss_fn": nn.functional.cross_entropy}
    return {
        "schedule": find(SCHEDULES, options.get("schedule", "polynomial")).make(),
        "keep_dense": options.get("keep_dense", False),
        "generator": torch.Generator().manual_seed(7),
        **settings,
    }


def _pruner(
    seed: int, event: str = "iteration_completed", epochs: int = 3, length: int = LENGTH, **options: Any
) -> Run:
    row = find(SALIENCIES, options.get("saliency", "magnitude"))
    model = net_for(row, seed)
    optimizer = find(OPTIMIZERS, options.get("optimizer", "adam_amsgrad")).make(model.parameters())
    trainer = create_supervised_trainer(model, optimizer, nn.functional.cross_entropy)
    settings = _settings(model, row, options)
    if "epoch" in event or event in ("once", "two_events"):  # the schedule of the catalogue is for iterations
        last = {"every_2_epochs": epochs // 2 * 2, "once": 2}.get(event, epochs)
        settings["schedule"] = schedule.Polynomial(0.75, begin=0, end=last)
    pruner = PruneHandler(model, optimizer, **settings)
    objects = {"model": model, "optimizer": optimizer, "pruner": pruner}
    return _train(objects, trainer, lambda: pruner.attach(trainer, _event(event)), batches(length), epochs)


def _handler(
    seed: int, handler: str, event: str | None = None, pruned: bool = False, accumulate: int = 1, epochs: int = 3
) -> Run:
    row, model = find(HANDLERS, handler), small_net(seed)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01, amsgrad=True, weight_decay=0.01)
    objects = row.objects(model, optimizer)
    trainer = create_supervised_trainer(model, optimizer, row.loss_fn(objects), gradient_accumulation_steps=accumulate)
    if pruned:
        objects["beside"] = PruneHandler(model, optimizer, schedule=schedule.Linear(0.5, begin=0, end=12), shared=True)

    def attach() -> None:
        if pruned:
            objects["beside"].attach(trainer, Events.ITERATION_COMPLETED(every=3))
        row.attach(objects, trainer, _event(event))

    return _train(objects, trainer, attach, batches(LENGTH), epochs, any_order=row.first is None)


def _sparsifier(seed: int, sparsifier: str, after: bool = False, event: str = "epoch_completed") -> Run:
    row = find(SPARSIFIERS, sparsifier)
    model = row.net()
    handler = ActivationSparsity(model, {"0": row.make()}, boost_decay=0.85, after_activation=after)
    optimizer = torch.optim.Adam([*model.parameters(), *handler.parameters()], lr=0.01)
    dice = torch.Generator().manual_seed(1)
    data = [
        (torch.randn(row.input(), generator=dice), torch.randint(5, (row.input()[0],), generator=dice))
        for _ in range(LENGTH)
    ]

    def loss_fn(y: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return nn.functional.cross_entropy(y.flatten(1, -2).mean(1) if y.ndim > 2 else y, target) + handler.penalty()

    trainer = create_supervised_trainer(model, optimizer, loss_fn)
    objects = {"model": model, "optimizer": optimizer, "handler": handler}
    return _train(objects, trainer, lambda: handler.attach(trainer, _event(event)), data, 3)


def _shrinks(seed: int, shrinks: str) -> Run:
    model = Residual().double()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    trainer = create_supervised_trainer(model, optimizer, nn.functional.cross_entropy)
    pruner = PruneHandler(
        model,
        optimizer,
        structure=trace(model, image()),
        saliency=find(SALIENCIES, shrinks).make(model),
        schedule=schedule.Linear(0.75, begin=0, end=4),
        allocation=allocation.Uniform(),
    )
    shrinker = ShrinkHandler(pruner, image())
    dice = torch.Generator().manual_seed(1)
    data = [
        (torch.randn(4, 3, 8, 8, generator=dice, dtype=torch.float64), torch.randint(5, (4,), generator=dice))
        for _ in range(2)
    ]

    def attach() -> None:
        pruner.attach(trainer, Events.EPOCH_COMPLETED)
        shrinker.attach(trainer, Events.EPOCH_COMPLETED(every=2))

    objects = shrinker.to_save(model=model, optimizer=optimizer, pruner=pruner)
    return _train(objects, trainer, attach, data, 5, any_order=False)


def _rounds(
    seed: int, rounds: int, rewind: Any = Rewind(to=3), fine_tune: int = 2, length: int = 3, **options: Any
) -> Run:
    row = find(SALIENCIES, options.get("saliency", "magnitude"))
    model = net_for(row, seed)
    optimizer = find(OPTIMIZERS, options.get("optimizer", "adam_amsgrad")).make(model.parameters())
    trainer = create_supervised_trainer(model, optimizer, nn.functional.cross_entropy)
    lr = PiecewiseLinear(optimizer, "lr", [(0, 0.002), (4, 0.02), (10, 0.001)])
    trainer.add_event_handler(Events.ITERATION_STARTED, lr)
    settings = _settings(model, row, options) | {"schedule": schedule.Linear(0.75, begin=0, end=rounds)}
    pruner = PruneHandler(model, optimizer, **settings)
    engine = create_pruning_engine(
        trainer,
        pruner,
        InPlace(batches(length), trainer),
        epochs=2,
        rewind=rewind,
        evaluator=create_supervised_evaluator(model, {"accuracy": Accuracy()}),
        data=batches(2, seed=5),
        fine_tune=fine_tune,
    )
    moments = {
        "round_started": (engine, PruningEvents.ROUND_STARTED),
        "trained": (engine, PruningEvents.TRAINED),
        "pruned": (engine, PruningEvents.PRUNED),
        "rewound": (engine, PruningEvents.REWOUND),
        "round": (engine, Events.EPOCH_COMPLETED),
    }
    objects = engine.to_save(model=model, optimizer=optimizer, lr=lr)
    start = lambda: engine.run(max_epochs=rounds)  # noqa: E731
    return Run(objects, trainer, lambda: None, start, moments, any_order=False)
