"""Runs of the catalogue, drawn with a seed."""

from __future__ import annotations

import random
from typing import Any

from ignite_prune import Rewind
from tests.catalogue import COUPLED, EVENTS, HANDLERS, OPTIMIZERS, PATTERNS, REPAIRS, SALIENCIES, SCHEDULES, SPARSIFIERS
from tests.catalogue.runs import build

EPOCHS = "epoch_completed", "epoch_started"
EVENT_NAMES = ["spaced", *(row.name for row in EVENTS if row.name != "iteration_started")]
SEEN_AGAIN = [row for row in SALIENCIES if row.name != "callable"]  # which finds gradients that no checkpoint holds


def _pruner(dice: random.Random) -> dict[str, Any]:
    row = dice.choice(SEEN_AGAIN)
    options: dict[str, Any] = {"saliency": row.name, "event": dice.choice(EVENT_NAMES)}
    options["keep_dense"] = dice.random() < 0.5
    if dice.random() < 0.5:
        options["optimizer"] = dice.choice([each.name for each in OPTIMIZERS if not each.notes])
    if dice.random() < 0.5:
        options["schedule"] = dice.choice(SCHEDULES).name
    if row.notes.get("units"):
        options["pattern"] = "filter"
    elif dice.random() < 0.3:
        options["pattern"] = dice.choice([each.name for each in PATTERNS if each.make().share >= 0.75])
    elif dice.random() < 0.3:
        options["repair"] = dice.choice(REPAIRS).name
    if "epoch" in str(options["event"]):
        options["epochs"] = 5
    return options


def _handler(dice: random.Random) -> dict[str, Any]:
    options: dict[str, Any] = {"handler": dice.choice(HANDLERS).name}
    if options["handler"] in ("group_lasso", "learnt_threshold", "slimming_proximal") and dice.random() < 0.5:
        options |= {"pruned": True, "event": dice.choice(EPOCHS)}
    if options["handler"] in ("set", "rigl", "srigl") and dice.random() < 0.3:
        options["accumulate"] = 2
    return options


def _rounds(dice: random.Random) -> dict[str, Any]:
    rewind = dice.choice([None, Rewind(), Rewind(to=3), Rewind(to=3, weights=False), Rewind(to=2, optimizer=False)])
    return {"rounds": dice.choice([2, 3]), "rewind": rewind, "saliency": dice.choice(["magnitude", "taylor", "random"])}


def _others(dice: random.Random) -> dict[str, Any]:
    return dice.choice(
        [
            {"shrinks": dice.choice(["magnitude", "taylor"])},
            {"coupled": dice.choice(COUPLED).name},
            {"sparsifier": dice.choice(SPARSIFIERS).name, "after": dice.random() < 0.5},
        ]
    )


def drawn(dice: random.Random) -> dict[str, Any]:
    """Return options of :func:`tests.catalogue.runs.build`; combinations that are refused are drawn again."""
    while True:
        options = dice.choice([_pruner, _pruner, _handler, _handler, _rounds, _others])(dice)
        try:
            run = build(**options)
            run.attach()
            run.start()
            run.detach()
        except (TypeError, ValueError):  # a pattern that does not fit the net, an update before there is evidence
            continue
        return options
