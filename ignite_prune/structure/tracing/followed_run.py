"""The graph of one run, for models whose program branches on the values of tensors, which ``torch.export`` refuses.

Many models ask whether a mask has zeros, or whether a token is there. The graph of such a model is that of the branches
that the example takes. It is only used if these questions are about masks and indices, that is tensors of integers and
bools: a branch on activations may be left once units are removed. It is not used if it leaves out a layer, which the
other branch may need.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from ignite_prune.structure.tracing.graph import ASKS, Graph, name_of


def followed_run(model: nn.Module, given: Sequence[Tensor]) -> Graph:
    """Return the graph of a model's run.

    Args:
        model: a copy, whose forward pass takes tensors alone; it is run, which may change its buffers.
        given: the tensors.

    Raises:
        ValueError: a branch depends on weights or on real numbers, or a layer is not used.
    """
    from torch.fx.experimental.proxy_tensor import make_fx  # slow to import

    held = {**dict(model.named_parameters(remove_duplicate=False)), **dict(model.named_buffers(remove_duplicate=False))}
    names = list(held)

    def run(*tensors: Tensor) -> Any:
        values = dict(zip(names, tensors))
        return torch.func.functional_call(model, values, tensors[len(names) :], tie_weights=False)

    vars(run)["_orig_mod"] = model  # whose modules torch records
    made = make_fx(run, pre_dispatch=True, record_module_stack=True, _error_on_data_dependent_ops=False)(
        *held.values(), *given
    )
    places = [node for node in made.graph.nodes if node.op == "placeholder"]
    _check_questions(made.graph, {node for node in places if _is_real(node)})
    _check_constants(made)
    _check_layers(model, {name for name, node in zip(names, places) if node.users})
    return Graph(made.graph, made, [*names, *(None for _ in given)])


def _is_real(node: fx.Node) -> bool:
    value = node.meta["val"]
    return bool(value.is_floating_point() or value.is_complex())


def _check_questions(graph: fx.Graph, real: set[fx.Node]) -> None:
    """Raise ValueError if the value of a tensor that the program reads depends on real inputs or weights."""
    depends = set(real)
    for node in graph.nodes:
        if any(each in depends for each in node.all_input_nodes):
            depends.add(node)
            if node.op == "call_function" and name_of(node.target) in ASKS:
                raise ValueError("the branch depends on weights or on real numbers")


def _check_constants(made: fx.GraphModule) -> None:
    """Raise ValueError if the graph holds real numbers that were computed outside torch."""
    for node in made.graph.nodes:
        value = node.meta.get("val") if node.op == "get_attr" else None
        if isinstance(value, Tensor) and value.numel() > 1 and _is_real(node):
            raise ValueError("the graph holds numbers that were computed outside torch")


def _check_layers(model: nn.Module, used: set[str]) -> None:
    for path, module in model.named_modules():
        weight = module._parameters.get("weight")
        name = f"{path}.weight" if path else "weight"
        if weight is not None and weight.dim() > 1 and name not in used:
            raise ValueError(f"the branch leaves out {path!r}")
