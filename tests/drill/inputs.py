"""Hostile states, arguments and files: refused by name with nothing changed, or taken and of use."""

from __future__ import annotations

import random
import tempfile
from pathlib import Path

import torch

from ignite_prune import PruneHandler, export
from tests.drill.options import drawn
from tests.drill.outcome import Outcome
from tests.hostile import attacked, runs
from tests.hostile_arguments import VALUES, attack, calls
from tests.models import assert_same_bits, small_net

STATES, ARGUMENTS, FILES = 25, 60, 60


def states(seed: int) -> Outcome:
    """Every node of a state is replaced by what does not belong there; half of the runs are of the laws."""
    dice, outcome = random.Random(f"states {seed}"), Outcome()
    options = dice.choice(list(runs().values())) if dice.random() < 0.5 else drawn(dice)
    for where, what in attacked(options, STATES, seed):
        outcome.inputs += 1
        told = f"{options} {where}: {what:.200}"
        if what.startswith("changed"):
            outcome.has_changed(told)
        elif what not in ("refused", "loaded") and not what.startswith("named later"):
            outcome.raised(told)
    return outcome


def arguments(seed: int) -> Outcome:
    """One or two arguments of a public constructor or function are replaced."""
    dice, outcome = random.Random(f"arguments {seed}"), Outcome()
    every = calls()
    for _ in range(ARGUMENTS):
        name = dice.choice(list(every))
        names = every[name][1]
        chosen = dice.sample(names, min(len(names), dice.choice([1, 1, 2])))
        given = {argument: dice.choice(VALUES) for argument in chosen}
        what = attack(every[name][0], {argument: value for argument, (_, value) in given.items()})
        outcome.inputs += 1
        if what not in ("refused", "accepted"):
            outcome.raised(f"{name}({', '.join(f'{a}={told}' for a, (told, _) in given.items())}): {what}")
    return outcome


def files(seed: int) -> Outcome:
    """Bytes of a compressed file are changed, lost or added."""
    dice, outcome = random.Random(f"files {seed}"), Outcome()
    model = small_net(seed)
    pruner = PruneHandler(model)
    pruner.step(dice.choice([0.0, 0.5, 0.9, 0.99]))
    kept = {name: value.clone() for name, value in model.state_dict().items()}
    with tempfile.TemporaryDirectory() as place:
        path = Path(place, "model.safetensors")
        export.save(model, path, masks=pruner.masks)
        whole = path.read_bytes()
        for _ in range(FILES):
            path.write_bytes(_spoilt(whole, dice))
            target = small_net(seed + 1)
            before = {name: value.clone() for name, value in target.state_dict().items()}
            outcome.inputs += 1
            try:
                export.load(target, path)
            except (TypeError, ValueError, OSError):
                if any(not torch.equal(value, before[name]) for name, value in target.state_dict().items()):
                    outcome.has_changed("a damaged file was refused, and the model has changed")
            except Exception as error:
                outcome.raised(f"a damaged file: {type(error).__name__}: {error!s:.150}")
            else:
                try:
                    assert_same_bits(dict(target.state_dict()), kept)
                except AssertionError as difference:
                    outcome.has_changed(f"a damaged file was loaded: {difference!s:.100}")
    return outcome


def _spoilt(whole: bytes, dice: random.Random) -> bytes:
    at, other = dice.randrange(len(whole)), bytes(dice.randrange(256) for _ in range(dice.choice([1, 1, 8, 64])))
    near = dice.randrange(min(len(whole), 400))  # in the header
    way = dice.choice(["changed", "header", "cut", "added", "lost", "twice", "empty", "noise"])
    return {
        "changed": whole[:at] + other + whole[at + len(other) :],
        "header": whole[:near] + other + whole[near + len(other) :],
        "cut": whole[:at],
        "added": whole + other,
        "lost": whole[:at] + whole[at + len(other) :],
        "twice": whole + whole,
        "empty": b"",
        "noise": bytes(dice.randrange(256) for _ in range(200)),
    }[way]
