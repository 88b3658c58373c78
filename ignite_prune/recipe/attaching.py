"""Attaches a recipe: creates its handlers, checks them against the run, and attaches all of them or none."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, Protocol

import torch
from ignite.engine import Engine
from torch import nn
from torch.optim import Optimizer

from ignite_prune.core.mask_store import MaskStore
from ignite_prune.core.selection import named_parameters, select, unwrap
from ignite_prune.handlers.progressive_masks import ProgressiveMasks
from ignite_prune.handlers.prune_handler import PruneHandler
from ignite_prune.handlers.shrink_handler import ShrinkHandler
from ignite_prune.recipe.attached import Attached
from ignite_prune.recipe.calibration_model import CalibrationModel
from ignite_prune.recipe.entry import Entry
from ignite_prune.recipe.epochs import Epochs
from ignite_prune.recipe.models import needs
from ignite_prune.recipe.problems import mentioned
from ignite_prune.recipe.recipe_error import Path, RecipeError
from ignite_prune.recipe.rules import resolved
from ignite_prune.recipe.source import Source
from ignite_prune.update.calibration import as_calibration
from ignite_prune.update.param_groups import as_dicts

_MORE = (
    "example_inputs",
    "data",
    "loss_fn",
    "prepare_batch",
    "calibration",
    "scaler",
    "ema",
    "evaluator",
    "teacher",
    "masks",
)


class Document(Protocol):
    """The parts of a :class:`.Recipe` that are attached."""

    epochs: Any
    seed: int | None
    calibration: CalibrationModel | None
    prune: Any
    handlers: Any
    rounds: Any

    @property
    def source(self) -> Source:
        """The data that it was read from."""
        ...


class Attaching:
    """One call of :meth:`.Recipe.attach`, whose arguments these are."""

    def __init__(
        self,
        recipe: Document,
        trainer: Engine,
        model: nn.Module,
        optimizer: Optimizer | Sequence[Optimizer] | None,
        loader: Iterable[Any] | None,
        steps_per_epoch: int | None,
        max_epochs: int | None,
        more: dict[str, Any],
    ) -> None:
        unknown = [name for name in more if name not in _MORE]
        if unknown:
            raise TypeError(f"attach() has no argument {unknown[0]!r}; there are {', '.join(_MORE)}")
        if not isinstance(trainer, Engine):
            raise TypeError(f"Argument trainer should be an ignite.engine.Engine, but given {type(trainer)}")
        self.recipe, self.trainer, self.loader = recipe, trainer, loader
        self.model, self.optimizer, self.more = model, optimizer, more
        self.length = _length(loader, steps_per_epoch)
        self.epochs = max_epochs or recipe.epochs or trainer.state.max_epochs
        self.handlers: dict[str, Any] = {}
        self.engine: Any = None

    def run(self) -> Attached:
        """Make and attach; after an error everything is as it was."""
        plain = unwrap(self.model)
        prune = self.recipe.prune
        writes = bool(self.recipe.handlers) or (prune is not None and prune.masks is not None)
        weights = named_parameters(plain) if writes else {}  # what making a handler may write
        before = {name: each.detach().clone() for name, each in weights.items()}
        try:
            context = self._context(plain)
            events = [self._make(entry, path, context) for entry, path in self._entries()]
            for (entry, path), event in zip(self._entries(), events):
                self._attach(entry, path, event)
        except BaseException:
            for each in reversed(list(self.handlers.values())):
                each.detach()
            with torch.no_grad():
                for name, parameter in weights.items():
                    if not torch.equal(parameter, before[name]):  # NaN counts as changed, and is written back
                        parameter.copy_(before[name])
            raise
        rounds = self.recipe.rounds
        return Attached(self.handlers, self.engine, 0 if rounds is None else rounds.rounds)

    def _entries(self) -> Iterator[tuple[Entry, Path]]:
        if self.recipe.prune is not None:
            yield self.recipe.prune, ("prune",)
        for index, entry in enumerate(self.recipe.handlers):
            yield entry, ("handlers", index)

    def _context(self, plain: nn.Module) -> dict[str, Any]:
        """Return what handlers need besides their arguments, by name."""
        found: dict[str, Any] = {"model": self.model, "optimizer": self.optimizer}
        found |= {name: self.more[name] for name in ("example_inputs", "ema", "scaler", "teacher") if name in self.more}
        with self._placed(("calibration",)):
            found["calibration"] = self._calibration()
        for entry, path in self._entries():
            with self._placed((*path, "structure")):
                if entry.structure is not None and "structure" not in found:
                    if "example_inputs" not in self.more:
                        raise ValueError("structure: trace needs attach(..., example_inputs=) of the model")
                    from ignite_prune.structure import trace  # slow to import

                    found["structure"] = trace(plain, self.more["example_inputs"])
        return found

    def _calibration(self) -> Any:
        given = [self.more.get(name) for name in ("data", "loss_fn", "prepare_batch")]
        if self.more.get("calibration") is not None:
            return as_calibration(self.more["calibration"], *given)
        if self.recipe.calibration is None and all(each is None for each in given):
            return None
        data, loss_fn, prepare_batch = given
        return (self.recipe.calibration or CalibrationModel()).make(data, self.loader, loss_fn, prepare_batch)

    def _make(self, entry: Entry, path: Path, context: dict[str, Any]) -> Any:
        """Make an entry's handler and return its event; None for the handler's default."""
        if entry.event is not None:
            with self._placed((*path, "event")):
                entry.event.factor(self.length)
        with self._placed(path):
            context = {name: each for name, each in context.items() if name != "structure" or entry.structure}
            if entry.masks == "nonzero":
                given = self.more.get("masks")
                context["masks"] = self._nonzero(entry) if given is None else given
            if "pruner" in self.handlers:
                context["pruner"] = self.handlers["pruner"]
            shrinkers = [each for each in self.handlers.values() if isinstance(each, ShrinkHandler)]
            if shrinkers:
                context["shrinker"] = shrinkers[0]
            change = partial(self._fitted, entry)
            handler = entry.handler.make(_needed(entry, context), change, seed=self.recipe.seed)
            self.handlers[entry.key] = handler
            self._check_end(entry, handler)
            if entry.event is None:
                return None
            return entry.event.resolve(self.length, handler._schedules())

    def _fitted(self, entry: Entry, value: Any) -> Any:
        """Return a value for this model and run: rules as names, schedules in what the event counts."""
        if isinstance(value, list) and value and all(isinstance(each, dict) for each in value):
            return [self._group(entry, group) for group in value]
        if isinstance(value, Epochs):
            return value.iterations(self.length)
        value = resolved(value, self.model)
        return value if entry.event is None else entry.event.scaled(value, self.length)

    def _group(self, entry: Entry, group: dict[str, Any]) -> dict[str, Any]:
        fitted = {key: self._fitted(entry, each) for key, each in group.items() if key != "keep"}
        if "keep" in group:
            fitted["schedule"] = group["keep"].schedule(self.model, fitted["params"])
        return fitted

    def _nonzero(self, entry: Entry) -> dict[str, torch.Tensor]:
        given = {name: self._fitted(entry, each) for name, each in entry.handler.given().items()}
        chosen: dict[str, nn.Parameter] = {}
        for group in as_dicts(given.get("params")):
            chosen |= select(self.model, group["params"], group.get("exclude", given.get("exclude", ())))
        return dict(MaskStore.from_nonzero(chosen))

    def _check_end(self, entry: Entry, handler: Any) -> None:
        """Raise if a schedule ends after the run."""
        if self.epochs is None or self.recipe.rounds is not None:
            return
        counts = "iterations" if entry.event is not None and entry.event.type.startswith("iteration") else "epochs"
        if counts == "iterations" and self.length is None:
            return
        last = self.epochs * (self.length or 1) if counts == "iterations" else self.epochs
        for schedule in handler._schedules():
            if schedule.ends and schedule.horizon > last + 1e-6:
                raise ValueError(
                    f"{schedule} ends at {schedule.horizon:g}, but the run has {last:g} {counts}; end it earlier, or "
                    "train longer"
                )

    def _attach(self, entry: Entry, path: Path, event: Any) -> None:
        handler, rounds = self.handlers[entry.key], self.recipe.rounds
        with self._placed(path):
            if isinstance(handler, PruneHandler) and rounds is not None and path == ("prune",):
                self._start_rounds(handler)
            elif isinstance(handler, PruneHandler) and any(_is_progressive(each) for each in self.recipe.handlers):
                return  # ProgressiveMasks attaches it
            else:
                given = {} if event is None else {"event": event}
                handler.attach(self.trainer, **given, **({} if entry.name is None else {"name": entry.name}))

    def _start_rounds(self, pruner: PruneHandler) -> None:
        from ignite_prune.handlers.lottery.create_pruning_engine import create_pruning_engine

        assert self.recipe.rounds is not None
        if self.loader is None:
            raise ValueError("rounds need attach(..., loader=) of the trainer")
        given = {
            name: getattr(self.recipe.rounds, name) for name in ("epochs", "rewind", "fine_tune", "floor", "target")
        }
        evaluator = self.more.get("evaluator")
        self.engine = create_pruning_engine(
            self.trainer, pruner, self.loader, evaluator=evaluator, epoch_length=self.length, **given
        )

    @contextmanager
    def _placed(self, path: Path) -> Iterator[None]:
        """Give errors the line that they are about."""
        try:
            yield
        except RecipeError:
            raise
        except (ValueError, TypeError) as error:
            source, text = self.recipe.source, str(error)
            raise source.error(text, next(mentioned(source.data, path, text), path)) from error


def _length(loader: Any, steps_per_epoch: int | None) -> int | None:
    if steps_per_epoch is not None:
        if type(steps_per_epoch) is not int or steps_per_epoch < 1:
            raise ValueError(f"Argument steps_per_epoch should be an int of at least 1, but given {steps_per_epoch!r}")
        return steps_per_epoch
    try:
        return None if loader is None else len(loader)
    except TypeError:
        return None


_GIVEN_BY = {
    "pruner": "prune in the recipe",
    "example_inputs": "attach(..., example_inputs=)",
    "teacher": "teacher: self, or attach(..., teacher=)",
}


def _needed(entry: Entry, context: dict[str, Any]) -> dict[str, Any]:
    """Return the context, or raise if the handler needs something that is missing."""
    piece = entry.handler.piece
    for name, given in _GIVEN_BY.items():
        if name in needs(piece) and name not in context and name not in entry.handler.given():
            raise ValueError(f"{piece.__name__} needs {given}")
    return context


def _is_progressive(entry: Entry) -> bool:
    return entry.handler.piece is ProgressiveMasks
