"""Law 5 for regularisers: killed and resumed, the same bits."""

import copy
import io

import pytest
import torch
from ignite.engine import Engine

from tests.laws.test_resume import assert_resumes
from tests.models import assert_same_bits, batches, small_net, train_step
from tests.regularise import resume_run


@pytest.mark.parametrize("name", resume_run.REGULARISERS)
def test_killed_and_resumed(tmp_path, name):
    # Checkpoints are written before the event's strength is taken: what is missed is made up for.
    assert_resumes(tmp_path, 8, run=resume_run.run, regulariser=name, event="iteration", checkpoint_first=True)


@pytest.mark.parametrize("first", [False, True])
@pytest.mark.parametrize("die_at", [6, 7, 8])
def test_between_two_masks(tmp_path, die_at, first):
    options = {"regulariser": "progressive", "event": "iteration", "checkpoint_first": first}
    assert_resumes(tmp_path, die_at, run=resume_run.run, **options)


@pytest.mark.parametrize("name", ["proximal", "soft_threshold"])
def test_beside_a_pruner_and_by_epochs(tmp_path, name):
    assert_resumes(tmp_path, 12, run=resume_run.run, regulariser=name, event="epoch", pruned=True)


@pytest.mark.parametrize("name", resume_run.REGULARISERS)
def test_state_is_plain_and_continues_in_one_process(name):
    def train(model, optimizer, data):
        for batch in data:
            train_step(model, optimizer, batch)

    data, ends, state = batches(6), [], None
    for half in (False, True):
        model = small_net()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
        handler = resume_run.REGULARISERS[name](model)
        handler.param_groups[0]["strength"] = 0.3
        handler.attach(Engine(lambda engine, batch: None))
        if half:
            saved = torch.load(io.BytesIO(state), weights_only=True)
            kept = copy.deepcopy(saved)
            for each, loaded in zip((model, optimizer, handler), saved):
                each.load_state_dict(loaded)
            assert_same_bits(handler.state_dict()["strengths"], kept[2]["strengths"])
            train(model, optimizer, data[3:])
        else:
            train(model, optimizer, data[:3])
            file = io.BytesIO()
            torch.save([each.state_dict() for each in (model, optimizer, handler)], file)
            state = file.getvalue()
            train(model, optimizer, data[3:])
        handler.detach()
        ends.append([each.state_dict() for each in (model, optimizer, handler)])
    assert_same_bits(*ends)
