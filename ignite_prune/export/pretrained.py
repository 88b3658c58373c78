"""Saving of transformers' models, for ``from_pretrained`` if the config describes them, else for ``load_shrunk``."""

from __future__ import annotations

import os
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ignite_prune.core.selection import unwrap
from ignite_prune.export.sparse_file import check_indices
from ignite_prune.structure.slicing.checkpoint import shrunk_state
from ignite_prune.structure.slicing.model_edit import Indices

SHRUNK = "shrunk.pt"


@dataclass(frozen=True)
class SavedModel:
    """The folder of a saved model and the call that loads it; ``print`` shows the call.

    Attributes:
        folder: path of the folder with its files.
        call: the Python expression that loads it.
        reason: why ``from_pretrained`` cannot; empty if it can.
    """

    folder: Path
    call: str
    reason: str

    def __str__(self) -> str:
        return self.call if not self.reason else f"{self.call}  # {self.reason}"


def save_pretrained(
    model: Any, folder: str | PathLike[str], indices: Indices | None = None, *, overwrite: bool = False
) -> SavedModel:
    """Save a pruned or sliced model of transformers; loading it gives the same weights bit for bit.

    A masked model is saved as any other. The config of a sliced one is tried: if a model that is built from it has the
    same modules and shapes, ``from_pretrained`` loads it. A config has one width for all layers, and most derive the
    size of a head from the number of heads, so that it often cannot; then the folder holds ``shrunk.pt`` alone, for
    :func:`~ignite_prune.load_shrunk`, which takes the model at its full size, and a warning says so.

    Args:
        model: a ``transformers.PreTrainedModel``; wrapped or compiled.
        folder: of the new files; it appears when all are written.
        indices: of a model that was sliced: ``report.indices`` or ``ShrinkHandler.left``.
        overwrite: write into a folder that exists.

    Returns:
        The folder, and how the model is loaded from it.

    Raises:
        TypeError: the model is not one of transformers.
        FileExistsError: ``folder`` exists.
        ValueError: the config does not describe the model, and ``indices`` were not given or are of another model.
            Nothing is written then.
    """
    bare: Any = unwrap(model)
    folder = Path(folder)
    if not any(each.__name__ == "PreTrainedModel" for each in type(bare).__mro__):
        raise TypeError(
            f"Argument model should be a transformers.PreTrainedModel, but given {type(bare)}; use export.save"
        )
    if folder.exists() and not overwrite:
        raise FileExistsError(f"Argument folder: {str(folder)!r} exists; use another name, or overwrite=True")
    if not folder.absolute().parent.is_dir():
        raise FileNotFoundError(f"Argument folder: there is no folder {str(folder.parent)!r}")
    if indices is not None:
        check_indices(bare.state_dict(), indices)
    name, reason = type(bare).__name__, _misfit(bare)
    if reason and indices is None:
        raise ValueError(
            f"The config does not describe the model: {reason}. If it was sliced, give the indices that are left: "
            "save_pretrained(model, folder, report.indices)"
        )
    call = f"{name}.from_pretrained({str(folder)!r})"
    if reason:
        call = f"load_shrunk({name}(full_size_config), {str(folder / SHRUNK)!r})"
    with _appearing(folder) as place:
        if reason:
            torch.save(shrunk_state(bare, indices or {}), place / SHRUNK)
        else:
            bare.save_pretrained(place)
    if reason:
        warnings.warn(f"from_pretrained cannot load this model: {reason}. Load it by {call}", stacklevel=2)
    return SavedModel(folder, call, reason)


def _misfit(model: Any) -> str:
    """Return why a model that is built from the config is another one; empty if it is the same."""
    try:
        with tempfile.TemporaryDirectory() as folder:  # a config is checked when it is written
            model.config.save_pretrained(folder)
            config = type(model.config).from_pretrained(folder)
        with torch.device("meta"):
            fresh = type(model)(config)
    except Exception as error:  # each config has checks of its own
        return f"its config is refused: {str(error).strip().splitlines()[-1].strip():.200}"
    mine, other = dict(model.named_modules()), dict(fresh.named_modules())
    for name in [*mine, *other]:
        one, two = mine.get(name), other.get(name)
        if one is None or two is None or type(one) is not type(two):
            return f"module {name!r} is another one"
        numbers = {key: (value, vars(two).get(key)) for key, value in vars(one).items() if type(value) is int}
        for key, (value, expected) in numbers.items():
            if value != expected:
                return f"{key} of {name!r} is {value}, by the config {expected}"
    return _other_shape(model.state_dict(), fresh.state_dict())


def _other_shape(mine: dict[str, Tensor], other: dict[str, Tensor]) -> str:
    for name in [*mine, *other]:
        if name not in mine or name not in other:
            return f"{name!r} is in one of them alone"
        if mine[name].shape != other[name].shape:
            return f"{name!r} has shape {tuple(mine[name].shape)}, by the config {tuple(other[name].shape)}"
    return ""


@contextmanager
def _appearing(folder: Path) -> Iterator[Path]:
    """Yield a temporary folder, whose files are moved into ``folder`` at the end; after an error nothing is there."""
    with tempfile.TemporaryDirectory(dir=folder.absolute().parent, prefix=f".{folder.name}.") as temporary:
        place = Path(temporary) / folder.name
        place.mkdir()
        yield place
        if not folder.exists():
            os.replace(place, folder)
            return
        for each in place.iterdir():
            os.replace(each, folder / each.name)
