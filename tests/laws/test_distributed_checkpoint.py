"""Law 7: a state passes torch.distributed.checkpoint unchanged, which fills the state_dict of a new handler.

It flattens what it saves and leaves out what the new handler's state_dict does not have.
"""

import os

import pytest
import torch
import torch.distributed.checkpoint as dcp
from ignite.engine import Events
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

from tests.catalogue import HANDLERS
from tests.catalogue.runs import Handlers, build
from tests.laws.resuming import OTHER_SEED, loaded, saved
from tests.models import assert_same_bits
from tests.ranks import on_two_ranks

pytestmark = [
    pytest.mark.filterwarnings("ignore:Pruning left less than 1 %"),
    pytest.mark.filterwarnings("ignore:torch.distributed is"),
]
BY_EVIDENCE = ("random", "taylor", "movement", "obd_hutchinson", "obs", "wanda", "apoz", "change", "synflow")
OPTIONS = [
    *({"handler": row.name} for row in HANDLERS),
    *({"saliency": name, "event": "spaced", "keep_dense": True} for name in BY_EVIDENCE),
    {"sparsifier": "k_winners_scheduled"},
    {"shrinks": "taylor"},
    {"rounds": 2},
]


def handlers_of(run):
    """What a checkpoint holds of this package: the handlers, and the pruning engine in the place of the trainer."""
    own = {name: each for name, each in run.objects.items() if isinstance(each, Handlers)}
    return own | {name: each for name, each in run.objects.items() if name == "pruning_engine"}


def at(iteration, **options):
    """Return a run that has stopped in mid-epoch, with evidence gathered since the last update."""
    run = build(**options)
    run.attach()
    run.trainer.add_event_handler(Events.ITERATION_COMPLETED(once=iteration), lambda engine: engine.terminate())
    run.start()
    return run


@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: "-".join(map(str, options.values())))
def test_it_fills_the_state_of_a_new_handler(options, tmp_path):
    run = at(5, **options)
    handlers = handlers_of(run)
    wanted = loaded(saved({name: each.state_dict() for name, each in handlers.items()}))
    dcp.save(dict(handlers), checkpoint_id=tmp_path / "a", no_dist=True)
    run.detach()
    other = build(OTHER_SEED, **options)
    other.attach()
    for name, each in handlers_of(other).items():  # one by one: a ShrinkHandler has to be loaded before the pruner
        dcp.load({name: each}, checkpoint_id=tmp_path / "a", no_dist=True)
    found = {name: each.state_dict() for name, each in handlers_of(other).items()}
    other.detach()
    assert_same_bits(loaded(saved(found)), wanted)


@pytest.mark.parametrize("name", ["learnt_threshold", "sparse_momentum", "k_winners", "alternating"])
def test_it_fills_the_state_of_a_handler_that_has_trained_on_and_of_one_that_is_not_attached(name, tmp_path):
    run = at(5, handler=name)
    handlers = handlers_of(run)
    wanted = loaded(saved({name: each.state_dict() for name, each in handlers.items()}))
    state = {name: each.state_dict() for name, each in handlers.items()}
    dcp.async_save(state, checkpoint_id=tmp_path / "a", no_dist=True).result()
    run.start()
    new = build(OTHER_SEED, handler=name)
    for each in (run, new):
        found = {name: handler.state_dict() for name, handler in handlers_of(each).items()}
        dcp.load(found, checkpoint_id=tmp_path / "a", no_dist=True)
        assert_same_bits(loaded(saved(found)), wanted)
    run.detach()


def test_a_checkpoint_that_is_converted_to_one_file_loads(tmp_path):
    run = at(5, saliency="wanda", event="spaced")
    wanted = loaded(saved({"pruner": run.objects["pruner"].state_dict()}))
    dcp.save({"pruner": run.objects["pruner"]}, checkpoint_id=tmp_path / "a", no_dist=True)
    dcp_to_torch_save(tmp_path / "a", tmp_path / "a.pt")
    run.detach()
    assert_same_bits(torch.load(tmp_path / "a.pt", weights_only=True), wanted)


def on_a_rank(rank, folder):
    run = at(5, saliency="taylor", event="spaced", keep_dense=True)
    wanted = loaded(saved(run.objects["pruner"].state_dict()))
    dcp.save({"pruner": run.objects["pruner"]}, checkpoint_id=folder)
    run.detach()
    other = build(OTHER_SEED, saliency="taylor", event="spaced", keep_dense=True)
    dcp.load({"pruner": other.objects["pruner"]}, checkpoint_id=folder)
    found = loaded(saved(other.objects["pruner"].state_dict()))
    other.detach()
    assert_same_bits(found, wanted)
    return len(os.listdir(folder))


def test_two_ranks(tmp_path):
    assert on_two_ranks(on_a_rank, str(tmp_path / "a")) == (3, 3)
