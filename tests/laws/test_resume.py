"""Law 5: a killed and resumed run ends with the same bits as one that was never stopped."""

import itertools
import multiprocessing
import random

import pytest
import torch

from tests.catalogue import EVENTS, OPTIMIZERS, PATTERNS, REPAIRS, SALIENCIES, SCHEDULES
from tests.laws import resume_run
from tests.models import assert_same_bits

pytestmark = pytest.mark.filterwarnings("ignore:Pruning left less than 1 %")
SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["torch._dynamo", "tests.laws.resume_run"])  # what every child would import


def in_a_process(options, run=resume_run.run):
    process = SERVER.Process(target=run, args=(options,))
    process.start()
    process.join(120)
    return process.exitcode


def assert_resumes(tmp_path, die_at, run=resume_run.run, **options):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    run({**options, "folder": str(whole), "result": "end.result"})
    killed = in_a_process({**options, "folder": str(broken), "result": "never.result", "die_at": die_at}, run)
    assert killed == -9 and not (broken / "never.result").exists()
    assert in_a_process({**options, "folder": str(broken), "result": "end.result", "resume": True}, run) == 0
    load = {"weights_only": True}
    assert_same_bits(torch.load(whole / "end.result", **load), torch.load(broken / "end.result", **load))


ORDERS = list(itertools.product(["epoch_completed", "iteration_completed", "every_2"], [False, True]))
rng = random.Random(20)


@pytest.mark.parametrize("event", EVENTS, ids=str)
@pytest.mark.parametrize(("checkpoint", "first"), ORDERS)
def test_events_and_orders(tmp_path, event, checkpoint, first):
    options = {"event": event.name, "checkpoint": checkpoint, "checkpoint_first": first}
    # The step counts epochs for epoch events: a schedule over 6 steps ends in both.
    assert_resumes(tmp_path, rng.randint(3, 19), **options)


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("checkpoint", ["epoch_started", "masks_updated", "epoch_completed"])
def test_more_moments(tmp_path, checkpoint, late):
    assert_resumes(tmp_path, 10, checkpoint=checkpoint, event="epoch_completed", die_late=late, checkpoint_first=True)


@pytest.mark.parametrize("row", SALIENCIES, ids=str)
def test_saliencies(tmp_path, row):
    # A callable that reads gradients finds them only where the checkpoint did not come between: law 5's evidence is
    # what a saliency keeps, and a bare callable keeps none.
    assert_resumes(tmp_path, rng.randint(3, 19), saliency=row.name, keep_dense=True, checkpoint="iteration_completed")


@pytest.mark.parametrize("row", [row for row in SALIENCIES if row.notes.get("informed")], ids=str)
@pytest.mark.parametrize("first", [False, True])
def test_evidence_half_gathered(tmp_path, row, first):
    # Updates at 3 and 6: killed in between, with evidence of a step or two in the checkpoint.
    options = {"saliency": row.name, "event": "every_3_iterations", "checkpoint": "iteration_completed"}
    assert_resumes(tmp_path, rng.choice([4, 5, 6]), checkpoint_first=first, **options)


@pytest.mark.parametrize("row", REPAIRS, ids=str)
def test_repairs(tmp_path, row):
    options = {"repair": row.name, "event": "every_3_iterations", "checkpoint": "iteration_completed"}
    assert_resumes(tmp_path, rng.choice([4, 5, 6]), checkpoint_first=True, **options)


@pytest.mark.parametrize("row", [row for row in PATTERNS if row.make().share >= 0.75], ids=str)
def test_patterns(tmp_path, row):
    assert_resumes(tmp_path, rng.randint(3, 19), pattern=row.name)


@pytest.mark.parametrize("row", SCHEDULES, ids=str)
def test_schedules(tmp_path, row):
    assert_resumes(tmp_path, rng.randint(3, 19), schedule=row.name, keep_dense=True, checkpoint_first=True)


@pytest.mark.parametrize("row", [row for row in OPTIMIZERS if not row.notes], ids=str)
def test_optimizers(tmp_path, row):
    assert_resumes(tmp_path, rng.randint(3, 19), optimizer=row.name, checkpoint_first=True)
