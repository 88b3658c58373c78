"""What a recipe holds, and what becomes of it at attach."""

import json
import re
from pathlib import Path

import pytest
import torch
from ignite.engine import Events, create_supervised_trainer
from torch import nn

from ignite_prune import PruneHandler, recipe, schedule
from ignite_prune.recipe.event import Event
from tests.models import assert_same_bits, batches, small_net


def test_the_page_on_recipes_runs(capsys):
    text = (Path(__file__).parents[2] / "docs" / "recipes.md").read_text()
    space = {}
    for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
        exec(compile(block, "recipes.md", "exec"), space)
    assert "handed on" in capsys.readouterr().out


def fired(event, length=4, epochs=3, schedules=()):
    """The counts at which a recipe's event fires."""
    trainer, counts = create_supervised_trainer(nn.Linear(1, 1), None, None), []
    trainer._process_function = lambda engine, batch: None
    resolved = Event.model_validate(event).resolve(length, schedules)
    key = "iteration" if "ITERATION" in resolved.name else "epoch"
    trainer.add_event_handler(resolved, lambda engine: counts.append(getattr(engine.state, key)))
    trainer.run([0] * length, max_epochs=epochs)
    return counts


@pytest.mark.parametrize(
    ("event", "counts"),
    [
        ("epoch_completed", [1, 2, 3]),
        ({"type": "EPOCH_STARTED", "every": 2}, [2]),
        ({"type": "iteration_completed", "every": 5}, [5, 10]),
        ({"type": "iteration_completed", "every": 5, "begin": 2}, [2, 7, 12]),
        ({"type": "iteration_completed", "every": 5, "begin": 2, "end": 11}, [2, 7]),
        ({"type": "iteration_completed", "every": 4, "end": 8}, [4, 8]),
        ({"type": "iteration_completed", "once": 3}, [3]),
        ({"type": "iteration_completed", "after": 3, "before": 6}, [4, 5]),
        ({"type": "iteration_completed", "unit": "epochs", "every": 0.5, "begin": 1}, [4, 6, 8, 10, 12]),
        ({"type": "iteration_completed", "unit": "epochs", "every": 0.375, "begin": 1}, [4, 6, 7, 9, 10, 12]),
        ({"type": "iteration_completed", "unit": "epochs", "once": 2}, [8]),
    ],
)
def test_events_fire_at_the_steps_of_their_unit(event, counts):
    assert fired(event) == counts


def test_updates_are_those_of_held_schedules():
    held = [schedule.Held(schedule.Linear(0.5, begin=2, end=9), every=3, begin=2)]
    held.append(schedule.Held(schedule.Linear(0.5, begin=4, end=6), every=4, begin=4, to_end=False))
    assert fired({"type": "iteration_completed", "every": "schedule"}, schedules=held) == [2, 4, 5, 8, 9]


@pytest.mark.parametrize(
    "event",
    [
        Events.EPOCH_STARTED,
        Events.EPOCH_COMPLETED(every=2),
        Events.ITERATION_COMPLETED(once=5),
        Events.ITERATION_COMPLETED(once=[2, 5]),
        Events.ITERATION_COMPLETED(after=2, before=7),
        Events.ITERATION_COMPLETED(every=3, after=2),
    ],
    ids=range(6),
)
def test_ignites_filters_are_written_and_read(event):
    model = small_net()
    trainer = create_supervised_trainer(model, torch.optim.SGD(model.parameters(), lr=0.1), nn.functional.cross_entropy)
    pruner = PruneHandler(model, schedule=schedule.Linear(0.5, 0, 9), exclude="0.weight")
    pruner.attach(trainer, event)
    again = recipe.load(recipe.Recipe.of(pruner).dump())
    back = again.prune.event.resolve(None)
    assert back.name == event.name
    if event.filter is not None:
        assert [back.filter(trainer, n) for n in range(1, 12)] == [event.filter(trainer, n) for n in range(1, 12)]
    pruner.detach()
    pruner.attach(trainer, Events.EPOCH_COMPLETED(lambda engine, count: True))
    with pytest.raises(ValueError, match=r"a function of your own, which a file cannot hold; give event="):
        recipe.Recipe.of(pruner)
    assert recipe.Recipe.of(pruner, event="epoch_completed").prune.event.type == "epoch_completed"


def test_rounds_rewind():
    model = small_net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    trainer = create_supervised_trainer(model, optimizer, nn.functional.cross_entropy)
    text = """
    schedule: {type: Geometric, rate: 0.5, every: 1}
    rounds: {rounds: 3, epochs: 1, rewind: {to: 1}, fine_tune: 1}
    """
    found = recipe.load(text)
    assert recipe.load(found.dump()).dump() == found.dump()
    attached = found.attach(trainer, model=model, optimizer=optimizer, loader=batches(2))
    attached.engine.run(max_epochs=attached.rounds)
    assert attached.pruner.sparsity == pytest.approx(0.875, abs=1e-3)
    assert "pruner" in attached.to_save(model=model, optimizer=optimizer)
    assert recipe.Recipe.of(attached) == recipe.Recipe.of(attached.engine) == found


def test_calibration_comes_from_the_loader():
    model = small_net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    trainer = create_supervised_trainer(model, optimizer, nn.functional.cross_entropy)
    text = """
    calibration: {batches: 2, loss_fn: cross_entropy}
    schedule: {type: OneShot, sparsity: 0.5, at: 0}
    saliency: snip
    event: started
    """
    attached = recipe.load(text).attach(trainer, model=model, optimizer=optimizer, loader=batches(3))
    assert len(attached.pruner.pruning.calibration.data) == 2
    trainer.run(batches(1), max_epochs=1)
    assert attached.pruner.sparsity == 0.5
    assert recipe.Recipe.of(attached.pruner).calibration.loss_fn == "cross_entropy"


def test_other_mappings_and_targets_of_hydra():
    from collections import UserDict

    ramp = UserDict({"_target_": "ignite_prune.schedule.Linear", "final": 0.5, "begin": 0, "end": 2})
    found = recipe.load(UserDict({"schedule": ramp}))
    assert found.prune.handler.schedule == schedule.Linear(0.5, begin=0, end=2)
    assert recipe.load('{"schedule": {"linear": {"final": 5e-1, "begin": 0, "end": 2}}}').dump() == found.dump()


def test_the_schema_describes_what_is_read():
    schema = recipe.json_schema()
    assert "x-" not in json.dumps(schema)
    assert {"saliency", "schedule", "handler"} <= set(schema["$defs"]) | {"handler"}
    kinds = schema["$defs"]["schedule"]["anyOf"]
    linear = next(each for each in kinds if each.get("title") == "Linear")
    assert linear["required"] == ["type", "final", "begin", "end"] and linear["additionalProperties"] is False
    jsonschema = pytest.importorskip("jsonschema")
    check = jsonschema.Draft202012Validator(schema)
    for text in ("saliency: taylor\nevent: epoch_started\n", "handlers: [{type: RigL, sparsity: 0.5, seed: 3}]\n"):
        assert not list(check.iter_errors(recipe.load(text).data())), text
    assert list(check.iter_errors({"schedule": {"type": "Linear", "finl": 0.5}}))


def test_a_run_with_a_recipe_resumes_exactly():
    from ignite.handlers import Checkpoint

    text = """
    prune:
      saliency: random
      schedule: {type: Held, schedule: {linear: {final: 0.8, begin: 0, end: 3}}, every: 0.5}
      event: {type: iteration_completed, unit: epochs, every: schedule}
    handlers: [{type: GroupLasso, strength: 0.01, pattern: channel}]
    seed: 5
    """

    def run(epochs, state=None):
        model = small_net()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
        trainer = create_supervised_trainer(model, optimizer, nn.functional.cross_entropy)
        attached = recipe.load(text).attach(trainer, model=model, optimizer=optimizer, loader=batches(4), max_epochs=3)
        objects = attached.to_save(model=model, optimizer=optimizer, trainer=trainer)
        if state is not None:
            Checkpoint.load_objects(objects, state)
        trainer.run(batches(4), max_epochs=epochs)
        state = {name: each.state_dict() for name, each in objects.items()}
        attached.detach()
        return state

    whole, parts = run(3), run(3, run(1))
    for name in ("model", "pruner"):
        assert_same_bits(parts[name], whole[name])
    assert whole["pruner"]["progress"]["last"] > 4


class Logged(PruneHandler):
    """Adds behaviour, and an argument of its own."""

    def __init__(self, *args, log=None, **settings):
        super().__init__(*args, **settings)
        self.log = log

    def attach(self, engine, *where):
        super().attach(engine, *where)


class Named(PruneHandler):
    def __init__(self, model, title, **settings):
        super().__init__(model, **settings)


def test_a_subclass_of_a_pruner_is_written_as_a_pruner():
    settings = {"schedule": schedule.Linear(0.5, begin=0, end=3)}
    wanted = recipe.Recipe.of(PruneHandler(small_net(), **settings))
    pruner = Logged(small_net(), log=[], **settings)
    assert recipe.Recipe.of(pruner) == recipe.Recipe.of([pruner]) == wanted
    pruner.attach(create_supervised_trainer(nn.Linear(1, 1), None, None))
    assert recipe.Recipe.of(pruner, "EPOCH_STARTED") == recipe.Recipe.of(
        PruneHandler(small_net(), **settings), "EPOCH_STARTED"
    )
    with pytest.raises(TypeError, match="Named'> also requires title"):
        recipe.Recipe.of(Named(small_net(), "mine", **settings))
