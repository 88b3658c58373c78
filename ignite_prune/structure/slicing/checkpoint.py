"""Saving a shrunk model, and loading it into a freshly built full-size one."""

from __future__ import annotations

from collections.abc import Mapping
from os import PathLike
from typing import Any

import torch
from torch import Tensor, nn

from ignite_prune._utils.pairs import from_pairs
from ignite_prune._utils.state import is_plain
from ignite_prune.core.selection import unwrap
from ignite_prune.structure.kept_indices import KeptIndices, attributes_of, entry_of, value_at
from ignite_prune.structure.slicing.model_edit import Indices, ModelEdit, undone_on_error
from ignite_prune.structure.slicing.module_attributes import dropout_rates
from ignite_prune.structure.slicing.stored_sizes import check_sizes, stored_sizes


def shrunk_state(model: nn.Module, indices: Indices) -> dict[str, Any]:
    """Return a shrunk model's state_dict and the kept indices as plain data, for :func:`load_shrunk`.

    Args:
        model: the shrunk model.
        indices: ``report.indices`` after one :func:`~ignite_prune.shrink`; ``ShrinkHandler.left`` after several.
    """
    model = unwrap(model)
    state = {"left": to_plain(indices), "rates": dropout_rates(model), "model": model.state_dict()}
    state["sizes"] = stored_sizes(model, indices)
    attributes = attributes_of(indices)
    return {**state, "attributes": attributes} if attributes else state


def load_shrunk(
    fresh_model: nn.Module, source: str | PathLike[str] | Mapping[str, Any], strict: bool = True
) -> nn.Module:
    """Slice a freshly built full-size model to a shrunk one's shapes, in place, and load its weights.

    Args:
        fresh_model: an instance of the class and arguments that the shrunk model was built with; one of transformers
            is built from the configuration of the unpruned model, as slicing changes ``model.config`` in place.
        source: the result of :func:`shrunk_state`, or a file that holds it; or a ``Checkpoint`` that holds a
            ``ShrinkHandler`` as ``"shrinker"`` and the model as ``"model"``. Files are read with ``weights_only=True``.
        strict: passed to ``load_state_dict``.

    Returns:
        ``fresh_model``.

    Raises:
        TypeError: ``source`` has neither form.
        ValueError: ``source`` was saved from another model, or one whose modules have other sizes, such as those of
            heads; ``fresh_model`` is left unchanged.

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
    kept = state if "left" in state else state["shrinker"]
    edit = ModelEdit(model)
    with undone_on_error([edit]):
        left = KeptIndices(from_plain(kept["left"], model), _attributes(kept.get("attributes", {}), model))
        edit.slice(left, rates_from_plain(kept.get("rates", {}), model))
        check_sizes(model, left, kept.get("sizes", {}))
        before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        try:
            model.load_state_dict(state["model"], strict=strict)
        except RuntimeError as error:
            model.load_state_dict(before)  # torch copies what fits before it raises
            raise ValueError(f"The weights do not fit the model: {error}") from error
    return fresh_model


def _attributes(state: Any, model: nn.Module) -> dict[str, dict[str, int]]:
    """Return the attributes stored with kept indices, checked against the full-size model."""
    if not isinstance(state, Mapping) or not all(isinstance(values, Mapping) for values in state.values()):
        raise TypeError("The attributes of a shrunk model should be a mapping by path and name")
    for path, values in state.items():
        for name, value in values.items():
            try:
                known = type(entry_of(value_at(model, path), name)) is int
            except AttributeError:
                known = False
            if not known or type(value) is not int:
                raise ValueError(f"The weights were saved from another model: this one has no {name!r} in {path!r}")
    return {path: dict(values) for path, values in state.items()}


def then(first: Indices, second: Indices) -> KeptIndices:
    """Return the indices left after two slicings in a row, in terms of the tensors before the first.

    Example:
        >>> then({"w": {0: torch.tensor([0, 2, 3])}}, {"w": {0: torch.tensor([1, 2])}})
        {'w': {0: tensor([2, 3])}}
    """
    left = {name: dict(dims) for name, dims in first.items()}
    for name, dims in second.items():
        kept = left.setdefault(name, {})
        for dim, stay in dims.items():
            kept[dim] = kept[dim][stay] if dim in kept else stay
    attributes = attributes_of(first)
    for path, values in attributes_of(second).items():
        attributes = {**attributes, path: {**attributes.get(path, {}), **values}}
    return KeptIndices(left, attributes)


def to_plain(indices: Indices) -> dict[str, dict[str, Tensor]]:
    """Return indices in the form stored in checkpoints."""
    return {
        name: {str(dim): stay.to(torch.int64) for dim, stay in sorted(dims.items())}
        for name, dims in sorted(indices.items())  # the order tells nothing of how often the model was sliced
    }


def from_plain(state: Any, model: nn.Module) -> dict[str, dict[int, Tensor]]:
    """Return the indices stored in a checkpoint, checked against the full-size model.

    Raises:
        TypeError: ``state`` does not have the form of :func:`to_plain`.
        ValueError: the indices are of another model, or out of range.
    """
    state = from_pairs(state)
    if not isinstance(state, Mapping) or not all(isinstance(dims, Mapping) for dims in state.values()):
        raise TypeError("The kept indices of a checkpoint should be a mapping by name and dimension")
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    found: dict[str, dict[int, Tensor]] = {}
    for name, dims in state.items():
        if name not in tensors:
            raise ValueError(f"The checkpoint was made from another model: this one has no {name!r}")
        for dim, stay in dims.items():
            if dim not in map(str, range(tensors[name].dim())):
                raise ValueError(f"The checkpoint keeps indices of dimension {dim!r:.20} of {name!r}, which has none")
            found.setdefault(name, {})[int(dim)] = _checked(name, int(dim), stay, tensors[name])
    return found


def rates_from_plain(state: Any, model: nn.Module) -> dict[str, float]:
    """Return the rates of Dropout modules stored in a checkpoint, by module path.

    Raises:
        TypeError: ``state`` is not a mapping of floats.
        ValueError: the rates are of another model, or outside [0, 1].
    """
    known, state = dropout_rates(model), from_pairs(state)
    if not isinstance(state, Mapping) or not all(isinstance(rate, float) for rate in state.values()):
        raise TypeError("The Dropout rates of a checkpoint should be numbers by path")
    for path, rate in state.items():
        if path not in known:
            raise ValueError(f"The checkpoint was made from another model: this one has no Dropout {path!r}")
        if not 0 <= rate <= 1:
            raise ValueError(f"The checkpoint's rate of {path!r} should be in [0, 1], but it is {rate}")
    return dict(state)


def _checked(name: str, dim: int, stay: Any, tensor: Tensor) -> Tensor:
    if not isinstance(stay, Tensor) or not is_plain(stay) or stay.dtype != torch.int64 or stay.dim() != 1:
        raise TypeError(f"The kept indices of {name!r} should be 1-D int64 tensors by dimension")
    if stay.numel() and not 0 <= int(stay.min()) <= int(stay.max()) < tensor.shape[dim]:
        raise ValueError(
            f"The checkpoint keeps index {int(stay.max())} of dimension {dim} of {name!r}, which has "
            f"{tensor.shape[dim]}; give the model at its full size"
        )
    return stay
