"""Every piece of the catalogue is written into a file and read back, with equal masks bit for bit."""

import contextlib
import functools
import inspect

import pytest
import torch
from ignite.engine import Events, create_supervised_trainer
from torch import nn

from ignite_prune import PruneHandler, allocation, recipe, saliency, schedule
from ignite_prune.recipe.kinds import KINDS, pieces
from ignite_prune.recipe.models import read_piece
from ignite_prune.recipe.source import parsed
from ignite_prune.recipe.writing import written
from tests.catalogue import (
    ALLOCATIONS,
    COUPLED,
    GATES,
    HANDLERS,
    PATTERNS,
    REPAIRS,
    SALIENCIES,
    SCHEDULES,
    SPARSIFIERS,
    fits,
    net_for,
    options_for,
)
from tests.marks import CUT_SHORT
from tests.models import batches, small_net

ROWS = {
    "saliency": SALIENCIES,
    "pattern": [*PATTERNS, *COUPLED],
    "allocation": ALLOCATIONS,
    "schedule": SCHEDULES,
    "repair": REPAIRS,
    "gate": GATES,
}
UNWRITABLE = {"constant_ties", "learnt_movement_rising"}  # a lambda has no name


def as_file(data):
    """What YAML makes of data."""
    import yaml

    return parsed(yaml.safe_dump({"it": data})).data["it"]


def made(kind, row):
    return row.make(small_net()) if kind == "saliency" else row.make()


@pytest.mark.parametrize("kind", ROWS)
def test_every_piece_of_the_catalogue_is_written_and_read(kind):
    for row in ROWS[kind]:
        piece = made(kind, row)
        if row.name in UNWRITABLE:
            with pytest.raises(ValueError, match="no name that a file could give"):
                written(saliency.as_saliency(piece))
            continue
        for each in piece if isinstance(piece, list) else [piece]:
            back = read_piece(kind, as_file(written(each)))
            assert written(back) == written(each), row
            if row.name != "given":  # tensors
                assert back == (saliency.as_saliency(each) if kind == "saliency" else each), row


def test_every_public_piece_has_a_model():
    from ignite_prune.recipe.models import model_of

    assert {kind: len(pieces(kind)) for kind in KINDS if not pieces(kind)} == {}
    for kind in KINDS:
        for piece in pieces(kind).values():
            assert set(model_of(piece).model_fields) <= set(inspect.signature(piece).parameters) | {
                name for base in piece.__mro__ for name in inspect.signature(base.__init__).parameters
            }


def trained(model, attach):
    """The masks after a short run."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    trainer = create_supervised_trainer(model, optimizer, nn.functional.cross_entropy)
    optimizer.model = model
    pruner = attach(trainer, optimizer)
    trainer.run(batches(2), max_epochs=2)
    pruner.detach()
    return pruner


FILTER = next(row for row in PATTERNS if row.name == "filter")
ENTRIES = next(row for row in PATTERNS if row.name == "unstructured")
RUN = [row for row in SALIENCIES if row.name not in UNWRITABLE | {"heads"}]


@pytest.mark.parametrize("row", RUN, ids=str)
def test_a_pruner_is_written_and_read_with_equal_masks(row):
    options = options_for(row, small_net(), calibrated=False)
    options.setdefault("pattern", (FILTER if not fits(row, ENTRIES) else ENTRIES).make())
    options |= {"schedule": schedule.OneShot(0.5, at=2), "allocation": allocation.LAMP()}
    if row.notes.get("signed") or row.name == "shapley":
        options["allocation"] = allocation.Uniform()
    generator = torch.Generator().manual_seed(5)
    written_of = []

    def by_hand(trainer, optimizer):
        pruner = PruneHandler(optimizer.model, optimizer, generator=generator, **options)
        pruner.attach(trainer, Events.EPOCH_COMPLETED(every=2))
        written_of.append(recipe.Recipe.of(pruner).dump())
        return pruner

    def from_file(trainer, optimizer):
        found = recipe.load(written_of[0])
        assert found.dump() == written_of[0]
        return found.attach(trainer, model=optimizer.model, optimizer=optimizer, loss_fn=options.get("loss_fn")).pruner

    ended = [trained(net_for(row), attach) for attach in (by_hand, from_file)]
    for name in ended[0].masks:
        assert torch.equal(ended[0].masks[name], ended[1].masks[name])
    assert 0 < ended[0].sparsity < 1


@contextlib.contextmanager
def recorded(classes):
    """Record the arguments of every instance of some classes, by its id."""
    found, original = {}, {cls: cls.__init__ for cls in classes}

    def wrap(cls):
        @functools.wraps(original[cls])
        def init(self, *args, **kwargs):
            if type(self) is cls:
                found[id(self)] = (self, args, kwargs)
            original[cls](self, *args, **kwargs)

        return init

    wrapped = {cls: wrap(cls) for cls in classes}
    own = {cls for cls in classes if "__init__" in vars(cls)}
    for cls in classes:
        cls.__init__ = wrapped[cls]
    try:
        yield found
    finally:
        for cls in classes:
            if cls in own:
                cls.__init__ = original[cls]
            else:
                del cls.__init__


def data_of(instance, found):
    """What a file says of an instance whose arguments were recorded."""
    self, args, kwargs = found[id(instance)]
    names = list(inspect.signature(type(self)).parameters)
    given = {**dict(zip(names, args)), **kwargs}
    data = {"type": type(self).__name__}
    for name, value in given.items():
        if name in ("model", "optimizer", "pruner", "example_inputs", "scaler") or (
            name == "teacher" and value != "self"
        ):
            continue
        nested = value.values() if isinstance(value, dict) else [value]
        if any(id(each) in found for each in nested):
            fields = {
                key: data_of(each, found) for key, each in (value if isinstance(value, dict) else {0: value}).items()
            }
            data[name] = fields if isinstance(value, dict) else fields[0]
        else:
            data[name] = written(value)
    return data


SPARSE = [*pieces("sparsifier").values(), __import__("ignite_prune").activation.Learnt]


def test_every_sparsifier_of_the_catalogue_is_written_and_read():
    for row in SPARSIFIERS:
        with recorded(SPARSE) as found:
            data = data_of(row.make(), found)
        with recorded(SPARSE) as again:
            back = read_piece("sparsifier", as_file(data)).make()
            assert data_of(back, again) == data, row
        assert repr(back) == repr(row.make()), row


HANDLER_CLASSES = [*pieces("handler").values()]


@CUT_SHORT
@pytest.mark.parametrize("row", [r for r in HANDLERS if r.name not in ("shrunk", "progressive")], ids=str)
def test_every_handler_of_the_catalogue_is_written_and_attached(row):
    model = small_net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    with recorded([*HANDLER_CLASSES, *SPARSE]) as found:
        handler = next(iter(row.make(model, optimizer).values()))
        if row.name in UNWRITABLE:
            with pytest.raises(ValueError, match="no name that a file could give"):
                data_of(handler, found)
            return
        data = as_file(data_of(handler, found))
    model = small_net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    mixed = []  # distillation mixes the loss
    loss_fn = lambda y, t: (mixed[0].mix if mixed else lambda loss: loss)(nn.functional.cross_entropy(y, t))  # noqa: E731
    trainer = create_supervised_trainer(model, optimizer, loss_fn)
    event = "iteration_completed" if row.event is not None and "ITERATION" in row.event.name else None
    asked = recipe.load({"handlers": [{**data, **({} if event is None else {"event": event})}]})
    assert recipe.load(asked.dump()).dump() == asked.dump()
    more = {} if data.get("teacher") == "self" or not row.name.startswith("distilled") else {"teacher": small_net(1)}
    (name,) = attached = asked.attach(trainer, model=model, optimizer=optimizer, **more)
    mixed += [attached[name]] if row.name.startswith("distilled") else []
    assert type(attached[name]) is type(handler) and attached[name].attached_to is trainer
    assert list(attached.to_save(model=model)) == ["model", name]
    trainer.run(batches(2), max_epochs=1)
    attached.detach()


@pytest.mark.parametrize("row", [r for r in HANDLERS if r.name not in {"shrunk", "progressive", *UNWRITABLE}], ids=str)
@CUT_SHORT
def test_handlers_are_written_from_objects_with_equal_results(row):
    """Trained with the catalogue's handler, and with the one that its recipe makes."""
    ended, text = [], []
    for again in (False, True):
        model, mixed = small_net(), []
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
        loss_fn = lambda y, t, mixed=mixed: (  # noqa: E731
            (mixed[0].mix if mixed else lambda loss: loss)(nn.functional.cross_entropy(y, t))
        )
        trainer = create_supervised_trainer(model, optimizer, loss_fn)
        if again:
            asked = recipe.load(text[0])
            more = {"teacher": small_net(1)} if "Distillation" in text[0] and "teacher: self" not in text[0] else {}
            (handler,) = asked.attach(trainer, model=model, optimizer=optimizer, **more).values()
        else:
            handler = next(iter(row.make(model, optimizer).values()))
            handler.attach(trainer, **({} if row.event is None else {"event": row.event}))
            text.append(recipe.Recipe.of(handler).dump())
        mixed += [handler] if row.name.startswith("distilled") else []
        trainer.run(batches(3), max_epochs=2)
        ended.append((handler, model, recipe.Recipe.of(handler).dump()))
    (one, model, _), (other, same, dumped) = ended
    assert dumped == text[0] and type(one) is type(other)
    if "Distillation" not in text[0]:
        assert all(torch.equal(a, b) for a, b in zip(model.parameters(), same.parameters()))
        assert all(torch.equal(m, other.masks[n]) for n, m in getattr(one, "masks", {}).items())


def test_slicing_structure_and_progress_are_attached():
    model = small_net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    trainer = create_supervised_trainer(model, optimizer, nn.functional.cross_entropy)
    text = """
    prune:
      structure: trace
      target: {type: Parameters}
      pattern: {type: Coupled, round_to: 2}
      schedule: {type: OneShot, sparsity: 0.5, at: 1}
    handlers:
      - {type: ShrinkHandler, event: {type: epoch_completed, once: 1}}
    """
    attached = recipe.load(text).attach(trainer, model=model, optimizer=optimizer, example_inputs=batches(1)[0][0])
    assert list(attached.to_save(model=model)) == ["shrink_handler", "model", "pruner"]
    trainer.run(batches(1), max_epochs=1)
    assert model[0].out_channels < 8
    asked = recipe.load(text).data()
    asked["prune"]["event"] = "epoch_completed"
    assert recipe.Recipe.of(attached).data() == recipe.Recipe.of(attached["shrink_handler"]).data() == asked
    model = small_net()
    trainer = create_supervised_trainer(model, optimizer, nn.functional.cross_entropy)
    text = (
        "prune:\n  schedule: {type: OneShot, sparsity: 0.5, at: 1}\nhandlers:\n  - {type: ProgressiveMasks, steps: 1}\n"
    )
    attached = recipe.load(text).attach(trainer, model=model)
    trainer.run(batches(1), max_epochs=1)
    assert attached.pruner.sparsity == 0.5 and "ProgressiveMasks, steps: 1" in recipe.Recipe.of(attached).dump()
