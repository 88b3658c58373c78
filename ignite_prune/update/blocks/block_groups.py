"""Parameter groups by block, and the checks of a model that is pruned block by block."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from ignite_prune.core.selection import named_parameters, select
from ignite_prune.update.blocks.block_list import check_unshared
from ignite_prune.update.param_group import ParamGroup
from ignite_prune.update.param_groups import build


def check_model(model: nn.Module) -> None:
    """Raise unless a model is in eval mode and has plain parameters.

    Raises:
        ValueError: names the module or parameter.
    """
    training = next((name or type(model).__name__ for name, module in model.named_modules() if module.training), None)
    if training is not None:
        raise ValueError(
            f"The model should be in eval mode, but {training!r} is in training mode, in which dropout and batch "
            "statistics change what blocks give out; call model.eval() first"
        )
    for name, parameter in named_parameters(model).items():
        if any(kind.__name__ == "DTensor" for kind in type(parameter.data).__mro__):
            raise ValueError(
                f"Parameter {name!r} is a DTensor, of which a rank holds a piece; blocks are pruned on one process: "
                "prune the model before it is sharded, or its checkpoint with prune_checkpoint"
            )
    if not any(True for _ in model.parameters()):
        raise ValueError(f"The model {type(model).__name__} has no parameters to prune")


def block_groups(
    model: nn.Module, blocks: Mapping[str, nn.Module], params: Any, exclude: Any, **settings: Any
) -> dict[str, ParamGroup]:
    """Return the group of each block that has parameters to prune, each setting checked.

    Args:
        model: unwrapped.
        blocks: by name.
        params: rules for parameters, see :func:`~ignite_prune.core.selection.select`.
        exclude: rules for those to leave out.
        settings: of every group, see :func:`~ignite_prune.update.param_groups.build`.

    Raises:
        TypeError, ValueError: a bad argument; no block has a parameter to prune, or one is shared with another.
    """
    names = _names_by_block(blocks, select(model, params, exclude), model)
    if not names:
        raise ValueError(
            f"No parameter of the blocks {', '.join(list(blocks)[:4])} is selected; name some with params="
        )
    check_unshared(model, blocks, names)
    groups = {}
    for block, chosen in names.items():
        (groups[block],) = build(model, chosen, **settings)
        if groups[block]["sparsity"] is None and not groups[block]["allocation"].sets_own:
            raise ValueError("Argument sparsity should be given")
    return groups


def _names_by_block(
    blocks: Mapping[str, nn.Module], chosen: Mapping[str, Tensor], model: nn.Module
) -> dict[str, list[str]]:
    """Return the parameters chosen in each block that has some."""
    first = {id(parameter): name for name, parameter in named_parameters(model).items()}
    found: dict[str, list[str]] = {}
    for block, module in blocks.items():
        names: Sequence[str] = [first[id(parameter)] for parameter in module.parameters()]
        inside = [name for name in names if name in chosen]
        if inside:
            found[block] = inside
    return found
