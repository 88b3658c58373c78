"""A shrunk model saved, and loaded into a freshly built full-size one."""

from __future__ import annotations

from collections.abc import Mapping
from os import PathLike
from typing import Any

import torch
from torch import nn

from ignite_prune.core.selection import unwrap
from ignite_prune.structure.slicing.kept import from_plain, rates_from_plain, to_plain
from ignite_prune.structure.slicing.model_edit import Indices, ModelEdit, undone_on_error
from ignite_prune.structure.slicing.module_attributes import dropout_rates


def shrunk_state(model: nn.Module, indices: Indices) -> dict[str, Any]:
    """Return what :func:`load_shrunk` takes: a shrunk model's state_dict and which indices were kept, as plain data.

    Args:
        model: the shrunk model.
        indices: ``report.indices`` of one :func:`~ignite_prune.shrink`; of several, ``ShrinkHandler.left``.
    """
    model = unwrap(model)
    return {"left": to_plain(indices), "rates": dropout_rates(model), "model": model.state_dict()}


def load_shrunk(
    fresh_model: nn.Module, source: str | PathLike[str] | Mapping[str, Any], strict: bool = True
) -> nn.Module:
    """Slice a freshly built full-size model to a shrunk one's shapes, in place, and load its weights.

    Args:
        fresh_model: of the class and arguments that the shrunk model was built with.
        source: what :func:`shrunk_state` gave, or a file of it; or a ``Checkpoint`` that holds a ``ShrinkHandler`` as
            ``"shrinker"`` and the model as ``"model"``. Files are read with ``weights_only=True``.
        strict: as ``load_state_dict``'s.

    Returns:
        ``fresh_model``.

    Raises:
        TypeError: not of that form.
        ValueError: of another model; it is left whole then.

    Example:
        >>> from ignite_prune.structure import shrink, trace
        >>> def build():
        ...     return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> net, x = build(), torch.randn(1, 4)
        >>> report = shrink(net, trace(net, x).masks({"0.weight": torch.arange(8) < 3}), x)
        >>> loaded = load_shrunk(build(), shrunk_state(net, report.indices))
        >>> bool(torch.equal(loaded(x), net(x))), loaded[0].out_features
        (True, 3)
    """
    state = source if isinstance(source, Mapping) else torch.load(source, map_location="cpu", weights_only=True)
    if not isinstance(state, Mapping) or "model" not in state or not ("left" in state or "shrinker" in state):
        raise TypeError("Argument source should hold 'model' and 'left' (see shrunk_state), or 'model' and 'shrinker'")
    model = unwrap(fresh_model)
    cuts = state if "left" in state else state["shrinker"]
    surgery = ModelEdit(model)
    with undone_on_error([surgery]):
        surgery.slice(from_plain(cuts["left"], model), rates_from_plain(cuts.get("rates", {}), model))
        before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        try:
            model.load_state_dict(state["model"], strict=strict)
        except RuntimeError as error:
            model.load_state_dict(before)  # torch copies what fits before it raises
            raise ValueError(f"The weights do not fit the model: {error}") from error
    return fresh_model
