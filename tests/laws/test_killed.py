"""Law 5 where a process ends: one killed run for each kind of handler, event, order and moment."""

import random

import pytest

from ignite_prune import Rewind
from tests.killed_run import assert_survives

pytestmark = pytest.mark.filterwarnings("ignore:Pruning left less than 1 %")
EPOCH, ITERATION = "epoch_completed", "iteration_completed"

# What is run, where checkpoints are written, and whether before the handler's own turn.
KILLED = {
    "by_epochs": ({"event": EPOCH, "epochs": 4}, EPOCH, False),
    "by_epochs_missed": ({"event": EPOCH, "epochs": 4}, EPOCH, True),
    "by_epochs_between": ({"event": EPOCH, "epochs": 4}, "every_2", True),
    "before_an_epoch": ({"event": "epoch_started", "epochs": 4}, "epoch_started", True),
    "by_iterations_missed": ({"saliency": "random", "keep_dense": True}, ITERATION, True),
    "on_an_update": ({"event": "every_3_iterations"}, "masks_updated", False),
    "evidence": ({"saliency": "taylor", "event": "spaced"}, ITERATION, True),
    "evidence_of_inputs": ({"saliency": "sparsegpt", "event": "spaced"}, "every_2", False),
    "repair": ({"repair": "three", "event": "spaced"}, ITERATION, True),
    "coupled": ({"coupled": "coupled"}, "every_2", True),
    "dynamic": ({"handler": "rigl"}, ITERATION, True),
    "dynamic_on_an_update": ({"handler": "sparse_momentum"}, "masks_updated", False),
    "dense_in_storage": ({"handler": "sr_ste_decays"}, ITERATION, False),
    "sub_steps": ({"handler": "progressive"}, ITERATION, True),
    "penalty": ({"handler": "group_lasso_of_inputs"}, ITERATION, True),
    "learnt": ({"handler": "learnt_movement_rising"}, ITERATION, True),
    "activations": ({"sparsifier": "learnt", "after": True}, EPOCH, True),
    "shrinking": ({"shrinks": "taylor"}, EPOCH, True),
}


@pytest.mark.parametrize("name", KILLED)
def test_killed(tmp_path, name):
    options, checkpoint, first = KILLED[name]
    # Drawn from the name alone, so that a failure can be run again; the first checkpoint of each is written by then.
    at = random.Random(name).randint(5, 9)
    assert_survives(tmp_path, (ITERATION, at), checkpoint, first=first, **options)


def test_killed_after_its_epoch(tmp_path):
    """At the end of an epoch, when handlers of its event have run."""
    assert_survives(tmp_path, (EPOCH, 2), EPOCH, event=EPOCH, first=True)


@pytest.mark.parametrize(
    ("checkpoint", "dies"),
    [(ITERATION, (ITERATION, 8)), ("masks_updated", ("masks_updated", 2)), ("trained", ("trained", 2))],
)
def test_killed_in_a_round(tmp_path, checkpoint, dies):
    assert_survives(tmp_path, dies, checkpoint, rounds=3, rewind=Rewind(to=3), saliency="taylor")
