"""Which tensors of a model have one entry for each token: the embedding, the heads that give logits, and biases.

The number of outputs does not distinguish a head from other layers: in a model of bytes, 256 is a usual width of an MLP
too. So each layer of that size is tried: ``nan`` in the logits of some tokens reaches just these entries of the model's
outputs if the layer is a head, and spreads to others if it is not.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from ignite_prune._utils.arguments import near
from ignite_prune.structure.slicing.compare import run


def named_heads(model: nn.Module, given: str | Sequence[str], size: int) -> list[nn.Linear]:
    """Return the heads at given paths.

    Raises:
        TypeError: ``given`` is neither a path nor a sequence of paths.
        ValueError: there is no Linear of that size at a path.
    """
    paths = [given] if isinstance(given, str) else list(given)
    found = dict(_of_size(model, size))
    for path in paths:
        if not isinstance(path, str):
            raise TypeError(f"Argument head should be a path or a sequence of paths, but given {given!r}")
        if path not in found:
            raise ValueError(
                f"Argument head: there is no nn.Linear {path!r} with {size} outputs; {near(path, list(found))}"
            )
    return [found[path] for path in paths]


def heads_by_trial(model: nn.Module, layer: nn.Embedding, kept: Tensor, example_inputs: Any) -> list[nn.Linear]:
    """Return the heads of a model: those with the embedding's weight, and those whose outputs are the logits.

    Args:
        model: the unwrapped model.
        layer: the embedding of its tokens.
        kept: ids of the tokens that are left, ascending.
        example_inputs: inputs of the model.

    Raises:
        ValueError: a layer that may be a head is not called.
    """
    size = layer.num_embeddings
    gone = torch.ones(size).index_fill(0, kept, 0).nonzero().flatten()
    found = []
    for path, module in _of_size(model, size):
        if module.weight is layer.weight or (len(gone) and _is_head(model, path, module, kept, gone, example_inputs)):
            found.append(module)
    return found


def vocabulary_tensors(model: nn.Module, layer: nn.Embedding, heads: Sequence[nn.Linear]) -> dict[str, int]:
    """Return the names of the tensors with one entry for each token, and the dimension of these entries."""
    size, width = layer.weight.shape
    rows = {id(layer.weight), *(id(each.weight) for each in heads), *(id(each.bias) for each in heads)}
    found = {name: 0 for name, each in model.named_parameters() if id(each) in rows}
    bare = [
        (f"{path}.{name}" if path else name, each)
        for path, module in model.named_modules()
        if module._parameters.get("weight") is None  # a bias that is added to the logits, not that of a layer
        for name, each in [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
        if name in ("bias", "final_logits_bias")
    ]
    return found | {
        name: each.dim() - 1
        for name, each in bare
        if name not in found and each.numel() == size != width and each.dim() < 3
    }


def _of_size(model: nn.Module, size: int) -> Iterator[tuple[str, nn.Linear]]:
    for path, module in model.named_modules():
        if isinstance(module, nn.Linear) and module.out_features == size:
            yield path, module


def _is_head(model: nn.Module, path: str, module: nn.Linear, kept: Tensor, gone: Tensor, example_inputs: Any) -> bool:
    called = False

    def without(module: nn.Module, args: Any, output: Tensor) -> Tensor:
        nonlocal called
        called = True
        return output.index_fill(-1, gone.to(output.device), torch.nan)

    with ExitStack() as stack:
        stack.callback(module.register_forward_hook(without).remove)
        try:
            outputs, _ = run(model, example_inputs)
        except ValueError:  # nan where the program takes none
            return False
    if not called:
        raise ValueError(
            f"The example does not call {path!r}, which has as many outputs as there are tokens: name the layer or "
            "layers that give the logits, head='lm_head'"
        )
    logits = [each for each in outputs if each.shape[-1:] == (len(kept) + len(gone),) and each.is_floating_point()]
    of_kept = [bool(each.index_select(-1, kept.to(each.device)).isnan().any()) for each in logits]
    of_gone = [bool(each.index_select(-1, gone.to(each.device)).isnan().all()) for each in logits]
    return any(of_gone) and not any(of_kept)
