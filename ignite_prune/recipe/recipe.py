"""Recipe: all settings of a PruneHandler and the handlers around it, as one typed document."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path as FilePath
from typing import TYPE_CHECKING, Annotated, Any, Literal

from ignite.engine import Engine
from pydantic import PlainValidator, PrivateAttr, StrictInt, ValidationError, WithJsonSchema, model_validator
from pydantic_core import PydanticCustomError
from torch import nn
from torch.optim import Optimizer

from ignite_prune._utils.arguments import near
from ignite_prune._utils.extras import needed
from ignite_prune.handlers.prune_handler import PruneHandler
from ignite_prune.recipe.annotations import Number
from ignite_prune.recipe.calibration_model import CalibrationModel
from ignite_prune.recipe.entry import OWN, Entry, read_entry
from ignite_prune.recipe.models import model_of
from ignite_prune.recipe.problems import as_recipe_error
from ignite_prune.recipe.recipe_model import RecipeModel
from ignite_prune.recipe.rounds import Rounds
from ignite_prune.recipe.source import Source, document_of
from ignite_prune.recipe.writing import written

if TYPE_CHECKING:
    from ignite_prune.recipe.attached import Attached

_PRUNE = Annotated[
    Any, PlainValidator(partial(read_entry, piece=PruneHandler)), WithJsonSchema({"x-entry": "PruneHandler"})
]
_HANDLER = Annotated[Any, PlainValidator(read_entry), WithJsonSchema({"x-entry": "handler"})]


class Recipe(RecipeModel):
    """What prunes a model, and how: written down, attached with :meth:`attach`, and written again with :meth:`dump`.

    The fields of ``prune`` may also stand at the top.

    Args:
        version: of the format.
        epochs: how many a run has; schedules that end later are refused.
        seed: of every handler that draws random numbers and has no seed of its own.
        calibration: the data that evidence is computed from; None: what ``attach`` is given, or training's steps.
        prune: the arguments of a ``PruneHandler``, and its ``event``.
        handlers: further ones by ``type``: regularisers, dynamic sparse training, slicing, activation sparsity, ...
        rounds: training, pruning and rewinding in rounds.

    Example:
        >>> from ignite_prune import recipe
        >>> found = recipe.load('''
        ... saliency: taylor
        ... schedule: {type: Polynomial, final: 0.9, begin: 1, end: 8}
        ... ''')
        >>> found.prune.handler.schedule
        Polynomial(final=0.9, begin=1, end=8, initial=0.0, power=3)
    """

    version: Literal[1] = 1
    epochs: Number | None = None
    seed: StrictInt | None = None
    calibration: CalibrationModel | None = None
    prune: _PRUNE = None
    handlers: tuple[_HANDLER, ...] = ()
    rounds: Rounds | None = None
    _source: Source = PrivateAttr(default_factory=lambda: Source(None, {}))

    @model_validator(mode="before")
    @classmethod
    def _gathered(cls, value: Any) -> Any:
        """Gather the fields of ``prune`` that stand at the top."""
        if not isinstance(value, Mapping):
            return value
        value = {key: each for key, each in value.items() if each is not None or key not in cls.model_fields}
        loose = {key: each for key, each in value.items() if key not in cls.model_fields}
        if not loose:
            return value
        known = [*cls.model_fields, *model_of(PruneHandler).model_fields, *OWN]
        for key in loose:
            if key not in known:
                raise PydanticCustomError(
                    "unknown", "unknown field; {known}", {"known": near(str(key), known), "field": key}
                )
        if value.get("prune") is not None:
            names = ", ".join(map(repr, map(str, loose)))
            raise ValueError(f"{names} should stand under prune, which is given too")
        return {**{key: each for key, each in value.items() if key in cls.model_fields}, "prune": loose}

    @model_validator(mode="after")
    def _does_something(self) -> Recipe:
        if self.prune is None and not self.handlers:
            raise ValueError("a recipe should have prune, or handlers; it would do nothing")
        if self.rounds is not None and self.prune is None:
            raise ValueError("rounds need prune, whose schedule counts them")
        names = [each.key for each in self.entries]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"handlers {twice} have the same name; give each a name: of its own")
        return self

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Recipe) and self.data() == other.data()

    __hash__ = None  # type: ignore[assignment]

    def __reduce__(self) -> Any:
        return load, (self.data(),)

    @property
    def entries(self) -> list[Entry]:
        """The handlers in the order in which they are attached: the pruner first."""
        return [*([self.prune] if self.prune is not None else []), *self.handlers]

    @property
    def source(self) -> Source:
        """The data that it was read from, with lines."""
        return self._source

    @classmethod
    def from_source(cls, source: Source) -> Recipe:
        """Return the recipe of some data.

        Raises:
            RecipeError: a field is unknown, missing or wrong; all problems are named.
        """
        try:
            recipe = cls.model_validate(source.data)
        except ValidationError as error:
            raise as_recipe_error(source, error) from None
        recipe._source = source
        return recipe

    @classmethod
    def of(cls, pruner: Any, event: Any = None) -> Recipe:
        """Return the recipe of a pruner or other handlers: their settings, and the events that they are attached to.

        Args:
            pruner: a ``PruneHandler``, a handler of ``ignite_prune.handlers``, several of them, what :meth:`attach`
                returned, or a pruning engine (``rounds``); attached or not. Masks that it was given, calibration data
                and teachers are not part of a recipe; :meth:`attach` takes them.
            event: as in a file, for an event whose filter is a function of your own.

        Raises:
            TypeError: it is none of these.
            ValueError: a file cannot hold a part of it: a lambda, a class of your own, a filter of your own.
        """
        from ignite_prune.recipe.of_handlers import data_of

        return cls.from_source(document_of(data_of(pruner, event)))

    def data(self) -> dict[str, Any]:
        """Return plain data, as a recipe file holds it."""
        found: dict[str, Any] = {}
        for name in ("epochs", "seed", "calibration", "rounds"):
            if getattr(self, name) is not None:
                found[name] = written(getattr(self, name))
        if self.prune is not None:
            found["prune"] = self.prune.data(typed=False)
        if self.handlers:
            found["handlers"] = [each.data() for each in self.handlers]
        return {"version": self.version, **found}

    def dump(self, path: Any = None) -> str:
        """Return the recipe as YAML, and write it to a file if one is given; ``load`` reads an equal one back.

        Raises:
            ValueError: a file cannot hold a part of it.
        """
        needed("yaml")
        import yaml

        text: str = yaml.safe_dump(self.data(), sort_keys=False, default_flow_style=None, width=100)
        if path is not None:
            FilePath(path).write_text(text, encoding="utf-8")
        return text

    def attach(
        self,
        trainer: Engine,
        *,
        model: nn.Module,
        optimizer: Optimizer | Sequence[Optimizer] | None = None,
        loader: Iterable[Any] | None = None,
        steps_per_epoch: int | None = None,
        max_epochs: int | None = None,
        **more: Any,
    ) -> Attached:
        """Make the handlers and attach them to a trainer; if anything is wrong, nothing is attached or changed.

        Args:
            trainer: the Ignite engine that trains.
            model: bare, DDP-wrapped or compiled.
            optimizer: those that train it.
            loader: the trainer's data; its length is that of an epoch.
            steps_per_epoch: the number of iterations of an epoch, instead.
            max_epochs: of the run; by default the recipe's ``epochs``, or the trainer's. Schedules that end later are
                refused.
            more: ``example_inputs`` (for structures, slicing and latency), ``data``, ``loss_fn``, ``prepare_batch`` or
                ``calibration`` (for evidence), ``teacher`` (for distillation), ``masks`` (instead
                of those that ``masks: nonzero`` finds), ``scaler``, ``ema``, and ``evaluator``.

        Raises:
            TypeError: an argument of another type.
            RecipeError: the recipe does not fit the model, the trainer or the run; the line is named.
        """
        from ignite_prune.recipe.attaching import Attaching

        return Attaching(self, trainer, model, optimizer, loader, steps_per_epoch, max_epochs, more).run()


def load(given: Any) -> Recipe:
    r"""Return the recipe of a file, a text or a mapping.

    Args:
        given: a path, YAML or JSON text, or a mapping (of OmegaConf too).

    Raises:
        TypeError: none of these.
        RecipeError: it is no recipe; file, line, field and near matches are named. Recipes of other tools are read by
            :func:`ignite_prune.recipe.read`.

    Example:
        >>> from ignite_prune import recipe
        >>> recipe.load({"schedule": {"type": "OneShot", "sparsity": 0.5, "at": 2}}).dump()
        'version: 1\nprune:\n  schedule: {type: OneShot, sparsity: 0.5, at: 2}\n'
    """
    return Recipe.from_source(document_of(given).strict())


def dump(recipe: Recipe, path: Any = None) -> str:
    """Return a recipe as YAML, and write it to a file if one is given; see :meth:`Recipe.dump`."""
    if not isinstance(recipe, Recipe):
        raise TypeError(f"Argument recipe should be a Recipe, but given {type(recipe)}; Recipe.of(pruner) makes one")
    return recipe.dump(path)
