"""Small runs whose checkpoints are kept: what an earlier version of the package wrote has to load into this one.

Each row builds one run from public names alone. ``python -m tests.states.runs FOLDER`` writes a file a row: the state
in the middle of the run, and the model that the run ended with. The files in ``version_2`` were written by the commit
that ``WRITTEN_BY`` names; they are never written again.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Engine, Events, create_supervised_trainer
from torch import nn

from ignite_prune import PruneHandler, Rewind, create_pruning_engine, saliency, schedule
from ignite_prune import pattern as patterns
from ignite_prune.handlers import SET, RigL, SparseMomentum, SRigL
from tests.catalogue import HANDLERS, HandlerRow, find
from tests.catalogue.handlers import moving
from tests.catalogue.runs import InPlace
from tests.models import batches

WRITTEN_BY = "d10432a"
KILLED, ENDS = 10, 15  # iterations: the state is taken at the first, the run ends at the second
EPOCH = 3
MOVING = {"set": SET, "rigl": RigL, "srigl": SRigL, "sparse_momentum": SparseMomentum}
KEPT = (
    "top_kast",
    "sr_ste",
    "group_lasso",
    "slimming",
    "learnt_threshold",
    "learnt_movement",
    "k_winners",
    "alternating",
    "shrunk",
    "progressive",
)


class Run:
    """One run: its objects, in the order in which a checkpoint loads them, and the trainer."""

    def __init__(self, objects: dict[str, Any], engine: Engine, go: Callable[[int], None]) -> None:
        self.objects, self.engine, self.go = objects, engine, go

    def state(self) -> dict[str, Any]:
        return {name: each.state_dict() for name, each in self.objects.items()}

    def load(self, state: dict[str, Any]) -> None:
        for name, each in self.objects.items():
            each.load_state_dict(state[name])


def _parts() -> tuple[nn.Module, torch.optim.Optimizer, Engine]:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(4, 8, 3),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.AvgPool2d(3),
        nn.Flatten(),
        nn.Linear(32, 8),
        nn.Tanh(),
        nn.Linear(8, 4),
    )
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    return model, optimizer, create_supervised_trainer(model, optimizer, nn.functional.cross_entropy)


def _trained(objects: dict[str, Any], trainer: Engine) -> Run:
    """Return a run of the trainer; it stops within an epoch, and goes on where it was."""
    data = InPlace(batches(EPOCH), trainer)

    def go(end: int) -> None:
        stop = trainer.add_event_handler(Events.ITERATION_COMPLETED(once=end), lambda engine: engine.terminate())
        trainer.run(data, max_epochs=10)
        stop.remove()

    return Run({**objects, "trainer": trainer}, trainer, go)


def _pruner(make: Callable[[], Any], **settings: Any) -> Callable[[], Run]:
    """A PruneHandler that updates at each third iteration: evidence of one iteration is in the checkpoint."""

    def build() -> Run:
        model, optimizer, trainer = _parts()
        pruner = PruneHandler(
            model,
            optimizer,
            saliency=make(),
            schedule=schedule.Polynomial(0.75, begin=1, end=15),
            loss_fn=nn.functional.cross_entropy,
            generator=torch.Generator().manual_seed(7),
            **settings,
        )
        pruner.attach(trainer, Events.ITERATION_COMPLETED(every=3))
        return _trained({"model": model, "optimizer": optimizer, "pruner": pruner}, trainer)

    return build


def _handler(row: HandlerRow) -> Callable[[], Run]:
    def build() -> Run:
        model, optimizer, trainer = _parts()
        objects = row.objects(model, optimizer)
        row.attach(objects, trainer)
        return _trained(objects, trainer)

    return build


def _rounds() -> Run:
    model, optimizer, trainer = _parts()
    pruner = PruneHandler(model, optimizer, saliency=saliency.Taylor(), schedule=schedule.Geometric(0.5, every=1))
    data = InPlace(batches(EPOCH), trainer)
    engine = create_pruning_engine(trainer, pruner, data, epochs=2, rewind=Rewind(to=2))

    def go(end: int) -> None:
        stop = trainer.add_event_handler(Events.ITERATION_COMPLETED(once=end), lambda: engine.terminate())
        engine.run(max_epochs=3)
        stop.remove()

    objects = engine.to_save(model=model, optimizer=optimizer)
    return Run(objects, trainer, go)


ROWS: dict[str, Callable[[], Run]] = {
    "taylor": _pruner(saliency.Taylor),
    "taylor_squared": _pruner(
        lambda: saliency.Taylor(squared=True, by_unit=True, memory=saliency.Memory(0.9)), pattern=patterns.Channel()
    ),
    "gradient": _pruner(saliency.Gradient),
    "movement": _pruner(saliency.Movement),
    "snip": _pruner(lambda: saliency.SNIP(anytime=True)),
    "snip_momentum": _pruner(saliency.SNIPMomentum),
    "change": _pruner(saliency.Change),
    "grasp": _pruner(lambda: saliency.GraSP(anytime=True)),
    "synflow": _pruner(lambda: saliency.SynFlow(rounds=3, anytime=True)),
    "obd_fisher": _pruner(saliency.OBD),
    "obd_gauss_newton": _pruner(lambda: saliency.OBD(saliency.GaussNewton())),
    "obd_hutchinson": _pruner(lambda: saliency.OBD(saliency.Hutchinson(2))),
    "obs": _pruner(lambda: saliency.OBS(block=16, damping=1e-3)),
    "wanda": _pruner(saliency.Wanda),
    "sparsegpt": _pruner(lambda: saliency.SparseGPT(block=16)),
    "apoz": _pruner(saliency.APoZ, pattern=patterns.Channel()),
    "hrank": _pruner(saliency.HRank, pattern=patterns.Channel(), params="0.weight"),
    "sensitivity": _pruner(saliency.Sensitivity, pattern=patterns.Channel()),
    "batch_norm_scale": _pruner(saliency.BatchNormScale, pattern=patterns.Channel(), params="0.weight"),
    "activation_taylor": _pruner(saliency.ActivationTaylor, pattern=patterns.Channel()),
    "shapley": _pruner(lambda: saliency.Shapley(samples=2), pattern=patterns.Channel()),
    "random_dense": _pruner(saliency.Random, keep_dense=True),
    **{name: _handler(find(HANDLERS, name)) for name in KEPT},
    **{name: _handler(moving(name, kind, end=14)) for name, kind in MOVING.items()},
    "rounds": _rounds,
}


def write(folder: Path) -> None:
    """Write a file a row."""
    folder.mkdir(exist_ok=True, parents=True)
    for name, build in ROWS.items():
        torch.manual_seed(0)
        run, path = build(), folder / f"{name}.pt"
        run.engine.add_event_handler(Events.ITERATION_COMPLETED(once=KILLED), lambda: torch.save(run.state(), path))
        run.go(ENDS)
        torch.save({"state": torch.load(path, weights_only=True), "end": run.objects["model"].state_dict()}, path)


if __name__ == "__main__":
    torch.set_num_threads(1)
    write(Path(sys.argv[1]))
