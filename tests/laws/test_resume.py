"""Law 5: a run that goes on from a checkpoint ends with the same bits as one that was never stopped.

Checkpoints are taken at every iteration, by a handler attached before the piece and by one attached after it: what
the first misses of its event is made up for. Over the events and the rounds both are taken at every iteration, over all
other rows one of them in turn.
"""

import pytest
from ignite.engine import Events

from ignite_prune import Rewind
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
)
from tests.catalogue.runs import build
from tests.laws.resuming import ALTERNATING, BOTH, assert_resumes
from tests.marks import CUT_SHORT
from tests.models import assert_same_bits

pytestmark = pytest.mark.filterwarnings("ignore:Pruning left less than 1 %")
ENDS = ("iteration_completed", "epoch_completed", "epoch_started")
ALL_MOMENTS = (*ENDS, "masks_updated")


@pytest.mark.parametrize("row", EVENTS, ids=str)
def test_events(row):
    # What is written in the middle of an iteration leaves out its second half: Ignite goes on with the next.
    moments = ENDS if row.name == "iteration_started" else ALL_MOMENTS
    # The step counts epochs for epoch events: a schedule over 6 steps ends in both.
    assert assert_resumes(moments, BOTH, event=row.name) > 11


@pytest.mark.parametrize("row", SALIENCIES, ids=str)
def test_saliencies(row):
    # A callable that reads gradients finds them only where the checkpoint did not come between: law 5's evidence is
    # what a saliency keeps, and a bare callable keeps none.
    orders = ("last",) if row.name == "callable" else ALTERNATING
    assert_resumes(orders=orders, saliency=row.name, event="spaced", keep_dense=True)


@pytest.mark.parametrize("row", REPAIRS, ids=str)
def test_repairs(row):
    assert_resumes(repair=row.name, event="spaced")


@pytest.mark.parametrize("row", [row for row in PATTERNS if row.make().share >= 0.75], ids=str)
def test_patterns(row):
    assert_resumes(pattern=row.name, length=3, epochs=2)


@pytest.mark.parametrize("row", COUPLED, ids=str)
def test_coupled(row):
    assert_resumes(coupled=row.name, length=3, epochs=2)


@pytest.mark.parametrize("row", SCHEDULES, ids=str)
def test_schedules(row):
    assert_resumes(schedule=row.name, keep_dense=True, epochs=2)


@pytest.mark.parametrize("row", [row for row in OPTIMIZERS if not row.notes], ids=str)
def test_optimizers(row):
    assert_resumes(optimizer=row.name, epochs=2)


@pytest.mark.parametrize("row", HANDLERS, ids=str)
def test_handlers(row):
    moments = ALL_MOMENTS if row.published == "sparsity" else ENDS
    assert_resumes(moments, handler=row.name, epochs=4 if row.notes.get("by_epochs") else 3)


def test_accumulated_gradients():
    """Updates are due at 3, 6, 9, 12 and made at the steps 4, 6, 10, 12; gradients are in no checkpoint but ours."""
    assert_resumes(every=2, handler="rigl", accumulate=2)


@pytest.mark.parametrize("name", ["group_lasso", "learnt_threshold", "slimming_proximal"])
def test_regularisers_beside_a_pruner(name):
    assert_resumes(ALL_MOMENTS, handler=name, event="epoch_completed", pruned=True)


@pytest.mark.parametrize("row", SPARSIFIERS, ids=str)
def test_sparsifiers(row):
    assert_resumes(sparsifier=row.name, event="iteration_completed")


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("name", ["k_winners_scheduled", "k_winners_2d", "learnt"])
def test_sparsifiers_by_epochs(name, after):
    assert_resumes(ENDS, sparsifier=name, after=after)


@pytest.mark.parametrize("name", ["magnitude", "taylor"])
def test_shrinking(name):
    assert_resumes(ALL_MOMENTS, shrinks=name)


ROUND_MOMENTS = ("iteration_completed", "epoch_completed", "masks_updated", "round_started", "trained", "pruned")


def test_rounds():
    # 6, 3, 3 and 3 iterations: every round, the last fine-tuning and every border.
    assert_resumes((*ROUND_MOMENTS, "rewound", "round"), BOTH, rounds=3)


@pytest.mark.parametrize(
    ("rewind", "saliency"),
    [
        (None, "taylor"),
        (Rewind(), "obd_fisher"),
        (Rewind(to=3, weights=False), "random"),
        (Rewind(to=4, optimizer=False), "change"),
        (Rewind(schedule=False), "wanda"),
    ],
)
def test_rounds_with_other_rewindings_and_evidence(rewind, saliency):
    assert_resumes(ROUND_MOMENTS, rounds=3, rewind=rewind, saliency=saliency, fine_tune=0, keep_dense=True)


def test_rounds_cut_short_and_run_again_in_the_same_process():
    whole, cut = build(rounds=3), build(rounds=3)
    whole.start()
    engine = cut.objects["pruning_engine"]
    cut.trainer.add_event_handler(Events.ITERATION_COMPLETED(once=11), lambda _: engine.terminate())
    cut.start()
    assert engine.state.epoch == 1 and len(engine.results) == 1
    cut.start()
    assert len(engine.results) == 4
    assert_same_bits(cut.state(), whole.state())


@pytest.mark.filterwarnings("ignore::ignite_prune.SparsityWarning")  # masks are not loaded, on purpose
@CUT_SHORT
def test_a_run_that_is_not_restored_is_told_apart():
    """The law can fail: with another generator, or an optimizer that begins again, the end differs."""
    run = build(handler="set")
    run.attach()
    states = []
    run.trainer.add_event_handler(Events.ITERATION_COMPLETED(once=5), lambda: states.append(run.state()))
    run.start()
    for lost in ("optimizer", "handler"):
        other = build(handler=find(HANDLERS, "set").name)
        other.attach()
        for name, each in other.objects.items():
            if name != lost:
                each.load_state_dict(states[0][name])
        other.start()
        with pytest.raises(AssertionError):
            assert_same_bits(other.result(), run.result())
