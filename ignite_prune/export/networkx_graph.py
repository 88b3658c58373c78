"""Export of masks to a networkx graph: neurons or channels are nodes, kept weights are edges."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ignite_prune._utils.arguments import near
from ignite_prune._utils.extras import needed
from ignite_prune.core.selection import named_parameters, unwrap

if TYPE_CHECKING:
    import networkx

_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


def to_networkx(
    model: nn.Module, masks: Mapping[str, Tensor], follows: Mapping[str, str | None] | None = None
) -> networkx.DiGraph:
    """Return a directed graph of the kept connections (requires networkx).

    A node is ``(layer, index)``: an output of the layer, a neuron or a channel. Nodes have ``layer``, ``index`` and
    ``kind`` (``"neuron"``, ``"channel"`` or ``"input"``); a neuron without kept inputs is a node without incoming
    edges. An edge has ``weight``, the value of the weight, and ``parameter``, its name; between channels the weight is
    the norm of the kernel, and ``kept`` the number of its kept entries. If a layer has several weights (recurrent
    layers), each weight is treated as a layer.

    Masks do not show which layer feeds which: the layers are assumed to form a chain in the model's order. If the
    previous layer has fewer outputs (channels that are flattened), each of its nodes stands for equally many
    consecutive inputs; if the widths do not match, the layer gets separate input nodes ``(layer + ".input", i)``.

    Args:
        model: bare, wrapped or compiled.
        masks: bool masks by parameter name, True = kept: ``pruner.masks``, masks of an earlier step, ...
        follows: corrections of the chain: ``{layer: previous layer}``; None as value for separate input nodes.

    Raises:
        TypeError, ValueError: a mask has an unknown name, a wrong shape or fewer than two dimensions, or a layer in
            ``follows`` does not exist.

    Example:
        >>> from ignite_prune import prune_model
        >>> model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
        >>> graph = to_networkx(model, prune_model(model, sparsity=0.5))
        >>> len(graph), graph.number_of_edges(), graph.nodes["2", 0]
        (9, 9, {'layer': '2', 'index': 0, 'kind': 'neuron'})
    """
    needed("networkx")
    import networkx

    weights = _checked(model, masks)
    layers = {name.rpartition(".")[0] or name: name for name in weights}
    if len(layers) < len(weights):
        layers = {name: name for name in weights}  # layers with several weights: recurrent, attention
    for reader, read in (follows or {}).items():
        for name in [reader] if read is None else [reader, read]:
            if name not in layers:
                raise ValueError(f"Argument follows: no layer {name!r} has a mask; {near(name, list(layers))}")
    graph = networkx.DiGraph()
    modules = dict(unwrap(model).named_modules())
    before: str | None = None
    outputs: dict[str, int] = {}
    for layer, name in layers.items():
        weight, mask, groups = _as_matrix(modules.get(name.rpartition(".")[0]), weights[name], masks[name])
        kind = "channel" if weight.ndim > 2 else "neuron"
        outputs[layer] = len(weight)
        graph.add_nodes_from(_nodes(layer, len(weight), kind))
        source = (follows or {}).get(layer, before)
        width = weight.shape[1] * groups
        repeat = 0 if source is None or width % outputs.get(source, width + 1) else width // outputs[source]
        if source is None or repeat == 0 or (repeat > 1 and groups > 1):
            source, repeat = f"{layer}.input", 1
            graph.add_nodes_from(_nodes(source, width, "input"))
        graph.add_edges_from(_edges(layer, name, source, repeat, weight, mask, groups))
        before = layer
    return graph


def _checked(model: nn.Module, masks: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights that have masks, in the model's order."""
    if not isinstance(masks, Mapping):
        raise TypeError(f"Argument masks should be a mapping {{name: bool tensor}}, but given {type(masks)}")
    everything = named_parameters(model)
    for name in masks:
        if name not in everything:
            raise ValueError(f"Argument masks: the model has no parameter {name!r}; {near(name, list(everything))}")
        if not isinstance(masks[name], Tensor) or masks[name].dtype != torch.bool:
            raise TypeError(f"The mask of {name!r} should be a tensor of torch.bool (True = kept)")
        if masks[name].shape != everything[name].shape or masks[name].ndim < 2:
            raise ValueError(
                f"The mask of {name!r} should have the parameter's shape {tuple(everything[name].shape)}, of at least "
                f"two dimensions, but given {tuple(masks[name].shape)}"
            )
    return {name: everything[name].detach() for name in everything if name in masks}


def _as_matrix(module: nn.Module | None, weight: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, int]:
    """Return weight and mask as (outputs, inputs of a group, ...), and the number of groups."""
    groups = module.groups if isinstance(module, nn.modules.conv._ConvNd) else 1
    if isinstance(module, _TRANSPOSED):  # (inputs, outputs of a group, ...)
        both = [
            each.reshape(groups, len(each) // groups, *each.shape[1:]).transpose(1, 2).flatten(0, 1)
            for each in (weight, mask)
        ]
        return both[0], both[1], groups
    return weight, mask, groups


def _nodes(layer: str, count: int, kind: str) -> Iterable[tuple[tuple[str, int], dict[str, Any]]]:
    return (((layer, index), {"layer": layer, "index": index, "kind": kind}) for index in range(count))


def _edges(
    layer: str, name: str, source: str, repeat: int, weight: Tensor, mask: Tensor, groups: int
) -> Iterable[tuple[tuple[str, int], tuple[str, int], dict[str, Any]]]:
    """Yield the kept connections; inputs that share a node become one edge with the norm of their weights."""
    outputs, inputs = len(weight), weight.shape[1]
    squares = (weight * mask).reshape(outputs, inputs, -1)
    single = squares.shape[2] == 1 and repeat == 1
    values = squares[..., 0] if single else squares.double().square().sum(2)
    kept = mask.reshape(outputs, inputs, -1).sum(2)
    group = torch.arange(outputs, device=weight.device) // (outputs // groups) * inputs
    if repeat > 1:
        values, kept = (each.reshape(outputs, inputs // repeat, repeat).sum(2) for each in (values, kept))
    rows, columns = kept.nonzero(as_tuple=True)
    starts = columns + group[rows]
    found = values[rows, columns] if single else values[rows, columns].sqrt()
    counts = kept[rows, columns].tolist()
    for start, end, value, count in zip(starts.tolist(), rows.tolist(), found.tolist(), counts):
        attributes = {"weight": value, "parameter": name}
        yield (source, start), (layer, end), attributes if single else {**attributes, "kept": count}
