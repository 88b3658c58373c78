"""Law 12: a handler that is dropped, with or without ``detach()``, is freed with its model, optimizer and engine.

The hooks of a pruner keep it alive as long as its model: masks are enforced although nobody holds the handler. That
makes cycles, which Python's garbage collector must be able to see: it does not follow what C++ refers to.
"""

import gc
import weakref

import pytest
import torch

from ignite_prune import prune_model, saliency
from ignite_prune.evidence.evidence import COLLECTORS, Evidence
from ignite_prune.evidence.running_sums import RunningSums
from tests.catalogue import COUPLED, HANDLERS, REPAIRS, SALIENCIES, SPARSIFIERS
from tests.catalogue.runs import build
from tests.marks import CUT_SHORT

pytestmark = pytest.mark.filterwarnings("ignore:Pruning left less than 1 %")
RUNS = {
    **{f"saliency {row.name}": {"saliency": row.name, "epochs": 1, "event": "spaced"} for row in SALIENCIES},
    **{f"repair {row.name}": {"repair": row.name, "epochs": 1} for row in REPAIRS},
    **{f"handler {row.name}": {"handler": row.name, "epochs": 1} for row in HANDLERS},
    **{f"sparsifier {row.name}": {"sparsifier": row.name} for row in SPARSIFIERS},
    "coupled": {"coupled": COUPLED[0].name, "epochs": 1},
    "shrinking": {"shrinks": "magnitude"},
    "rounds": {"rounds": 2},
}


def objects_of(options):
    """Run, and return weak references to all objects of the run."""
    run = build(**options)
    run.attach()
    run.start()
    return [weakref.ref(each) for each in (*run.objects.values(), run.trainer)]


@CUT_SHORT
def test_what_is_dropped_is_freed():
    alive = {name: objects_of(options) for name, options in RUNS.items()}
    gc.collect()
    lost = {name: [type(each()).__name__ for each in refs if each() is not None] for name, refs in alive.items()}
    assert not {name: types for name, types in lost.items() if types}


def test_evidence_is_freed_without_a_garbage_collector():
    """It collects by the number of objects, not by their bytes, and Hessians are few and large."""
    model, data = torch.nn.Linear(6, 4), [(torch.randn(8, 6), torch.randn(8, 4))]
    kinds = {Evidence, RunningSums, *COLLECTORS.values()}
    gc.collect()
    gc.disable()
    before = [each for each in gc.get_objects() if type(each) in kinds]  # held, so that their ids are not used again
    try:
        for kind in (saliency.SparseGPT(), saliency.Wanda(), saliency.Taylor(), saliency.OBS()):
            prune_model(model, sparsity=0.5, saliency=kind, data=data, loss_fn=torch.nn.functional.mse_loss)
        assert not [
            each for each in gc.get_objects() if type(each) in kinds and not any(each is other for other in before)
        ]
    finally:
        gc.enable()
