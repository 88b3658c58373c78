"""Trials: values of a model pruned in many ways, each computed once, and kept in a file."""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from numbers import Real
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ignite_prune._utils.extras import needed
from ignite_prune.measure.prunable import Prunables
from ignite_prune.measure.unchanged import unchanged

FORMAT, VERSION = "ignite_prune.trials", 1
Evaluate = Callable[[nn.Module], Any]
Counts = tuple[tuple[str, int], ...]


class Trials:
    """Evaluates a model pruned in one way after another; in between and afterwards it is as it was, to the bit.

    Args:
        model: what ``evaluate`` is called with.
        evaluate: ``model -> number``.
        prunables: how the model is pruned.
        saliency: what it is pruned by; its description is part of the file.
        path: JSON file of the values found so far, written after each; an existing one is continued.
        progress: show a bar; None: if the standard error is a terminal, and tqdm is installed.

    Raises:
        TypeError: ``evaluate`` is not callable.
        ValueError: the file is another one's, or damaged.
    """

    def __init__(
        self,
        model: nn.Module,
        evaluate: Evaluate,
        prunables: Prunables,
        saliency: Any,
        path: str | PathLike[str] | None,
        progress: bool | None,
    ) -> None:
        if not callable(evaluate):
            raise TypeError(f"Argument evaluate should be callable, model -> number, but given {evaluate!r:.80}")
        if progress is not None and not isinstance(progress, bool):
            raise TypeError(f"Argument progress should be True, False or None, but given {progress!r}")
        if progress:
            needed("tqdm", "progress=True")
        self._model, self._evaluate, self._prunables, self._progress = model, evaluate, prunables, progress
        self._path = None if path is None else _checked_path(path)
        self._of = "" if path is None else _digest(prunables, saliency)
        self._values: dict[Counts, float] = {}
        self._used: set[Counts] = set()
        self._bar: Any = None
        self.baseline = 0.0
        if self._path is not None and self._path.exists():
            self._values = _read(self._path, self._of)

    @property
    def tried(self) -> int:
        """The number of different ways in which the model was pruned."""
        return len(self._used - {()})

    @contextmanager
    def running(self, what: str, total: int) -> Iterator[None]:
        """Show a progress bar of ``total`` values, and find the value of the dense model, :attr:`baseline`."""
        shown = sys.stderr.isatty() and find_spec("tqdm") is not None if self._progress is None else self._progress
        if shown:
            from tqdm.auto import tqdm

            self._bar = tqdm(total=total + 1, desc=what, file=sys.stderr)
        try:
            known = None if self._used else self._values.pop((), None)
            self.baseline = self.value({})
            if not math.isfinite(self.baseline):
                raise ValueError(
                    f"evaluate(model) of the dense model should be a finite number, but is {self.baseline}"
                )
            if known is not None and not math.isclose(known, self.baseline, rel_tol=1e-4, abs_tol=1e-9):
                warnings.warn(
                    f"evaluate(model) of the dense model is {self.baseline:g}, but {known:g} in {str(self._path)!r}: "
                    "is that file of other data, or is evaluate random? Delete it to begin again",
                    stacklevel=4,
                )
            yield
        finally:
            if self._bar is not None:
                self._bar.close()
                self._bar = None

    def value(self, pruned: Mapping[str, int]) -> float:
        """Return the value of the model with that many pruned units in each layer."""
        key: Counts = tuple(sorted((name, count) for name, count in pruned.items() if count))
        self._used.add(key)
        if key not in self._values:
            with unchanged(self._prunables.model):
                if key:
                    self._prunables.prune(dict(key))
                value = _as_number(self._evaluate(self._model))
            self._values[key] = value
            if self._path is not None:
                _write(self._path, self._of, self._values)
        if self._bar is not None:
            self._bar.update()
        return self._values[key]


def _as_number(value: Any) -> float:
    if isinstance(value, Tensor) and value.numel() == 1:
        value = value.item()
    if isinstance(value, bool) or not isinstance(value, Real):
        hint = "; return one of them" if isinstance(value, (Mapping, tuple, list)) else ""
        raise TypeError(f"Argument evaluate should return a number, but it gave {value!r:.80}{hint}")
    return float(value)


def _checked_path(path: Any) -> Path:
    if not isinstance(path, (str, PathLike)):
        raise TypeError(f"Argument path should be a path, but given {path!r:.80}")
    found = Path(path)
    if not found.parent.is_dir():
        raise FileNotFoundError(f"Argument path: there is no folder {str(found.parent)!r}")
    return found


def _digest(prunables: Prunables, saliency: Any) -> str:
    """Return a digest of the weights, and of what decides which of them are pruned."""
    found = hashlib.sha256()
    described = f"{saliency!r} {prunables.pattern!r} {prunables.layers!r}"
    found.update(re.sub(r" at 0x[0-9a-f]+", "", described).encode())
    for name, parameter in prunables.model.named_parameters():
        values = parameter.detach().cpu().contiguous().reshape(-1)
        found.update(f"\n{name} {parameter.dtype} {tuple(parameter.shape)}\n".encode())
        if values.numel():
            found.update(values.view(torch.uint8).numpy().data)
    return found.hexdigest()


def _read(path: Path, of: str) -> dict[Counts, float]:
    try:
        held = json.loads(path.read_text())
        if held["format"] != FORMAT or held["version"] != VERSION:
            raise KeyError("format")
        values = {
            tuple(sorted((str(n), int(k)) for n, k in key.items())): float(value) for key, value in held["values"]
        }
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"Argument path: {str(path)!r} is not a file of this version's trials, or is damaged; delete it, or use "
            "another name"
        ) from error
    if held["of"] != of:
        raise ValueError(
            f"Argument path: {str(path)!r} is of other weights, or of another saliency, pattern, structure or choice "
            "of layers; use another name"
        )
    return values


def _write(path: Path, of: str, values: Mapping[Counts, float]) -> None:
    """Write to a temporary file, which is then renamed."""
    held = {
        "format": FORMAT,
        "version": VERSION,
        "of": of,
        "values": [[dict(key), value] for key, value in values.items()],
    }
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "w") as file:
            json.dump(held, file)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
