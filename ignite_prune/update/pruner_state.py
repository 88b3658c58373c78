"""PrunerState: what a PruneHandler writes into a checkpoint, checked when it is loaded."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from ignite_prune._utils.arguments import check_generator_state
from ignite_prune._utils.sparsity import as_sparsity
from ignite_prune.core.dense_values import DenseValues
from ignite_prune.core.mask_state import unpacked
from ignite_prune.update.param_group import ParamGroup
from ignite_prune.update.pruner import Pruner

_NAMED_BY_NEED = 3  # the state version from which evidence carries the key of its need


def state_of(pruner: Pruner, evidence: list[dict[str, Any]], compress: bool = False) -> dict[str, Any]:
    """Return a pruner's masks, targets, generators, kept values and evidence as plain data.

    Those of sharded parameters are DTensors: see :mod:`~ignite_prune.update.sharded.state`.
    """
    dense = {} if pruner.dense is None else pruner.dense.state_dict()
    if pruner.masks.is_sharded:
        from ignite_prune.update.sharded.state import apart  # slow to import

        collectors = [] if pruner.evidence is None else list(pruner.evidence.collectors.values())
        names = [] if pruner.dense is None else pruner.dense.names
        masks, evidence = apart(pruner.masks, dense, names, collectors, evidence)
        dense = {}
    else:
        masks = pruner.masks.state_dict(compress)
    return {
        "masks": masks,
        "sparsities": [float(group["sparsity"] or 0.0) for group in pruner.groups],
        "generators": pruner.generator_states(),
        "dense": dense,
        "evidence": tuple(evidence),  # a list of mappings would not pass torch.distributed.checkpoint unchanged
        "reached": pruner.reached(),
    }


def loader_of(pruner: Pruner, state: PrunerState) -> Callable[[], None]:
    """Check a state against a pruner and return the function that loads it; nothing changes before it is called."""
    dense = DenseValues(pruner.masks, []) if pruner.dense is None else pruner.dense
    masks = pruner.masks.unpacked(state.masks)
    whole = partial(unpacked, state.masks, pruner.masks.parameters)
    values, replaced = dense.unpacked(state.dense, masks, whole), pruner.masks.replaced(masks)

    def load() -> None:
        pruner.masks.put(replaced)
        dense.load(values)
        for group, sparsity in zip(pruner.groups, state.sparsities):
            group["sparsity"] = sparsity
        pruner.set_generator_states(state.generators)
        pruner.forget_scores(state.reached)
        pruner.keep()

    return load


@dataclass(frozen=True)
class PrunerState:
    """A state that fits some groups; masks, dense values and evidence are checked by the objects that load them."""

    masks: Any
    sparsities: list[float]
    generators: list[Any]
    dense: Any
    evidence: Any
    reached: list[float | None]

    @classmethod
    def checked(cls, state: Mapping[str, Any], groups: Sequence[ParamGroup]) -> PrunerState:
        """Return the state, which has all keys, or raise.

        Raises:
            TypeError, ValueError: of other groups, or damaged.
        """
        for key in ("sparsities", "generators", "reached"):
            if not isinstance(state[key], list) or len(state[key]) != len(groups):
                raise ValueError(f"The checkpoint's pruner should have {len(groups)} groups, but its {key} are others")
        for generator, group in zip(state["generators"], groups):
            _check_generator(generator, group)
        sparsities = [as_sparsity(value) for value in state["sparsities"]]
        reached = [None if value is None else as_sparsity(value) for value in state["reached"]]
        masks, dense, evidence = state["masks"], state["dense"], state["evidence"]
        return cls(masks, sparsities, state["generators"], dense, evidence, reached)


def _check_generator(state: Any, group: ParamGroup) -> None:
    generator = group["generator"]
    if (state is None) != (generator is None):
        raise ValueError("The checkpoint's pruner and this one should both have a generator in a group, or neither")
    if generator is not None:
        check_generator_state(generator, state)


def checked_evidence(pruner: Pruner, state: Any, version: int) -> list[dict[str, Any]]:
    """Return the evidence of a checkpoint that was written with a state version, in the form that is loaded.

    Raises:
        ValueError: it does not fit what the pruner gathers.
    """
    try:
        if pruner.evidence is not None:
            return pruner.evidence.checked(state)
        if not isinstance(state, (list, tuple)) or state:
            raise ValueError(
                "The checkpoint's pruner and this one should gather the same evidence (the same saliency and repair)"
            )
    except ValueError as error:
        if version >= _NAMED_BY_NEED:  # a misfit is the user's then, not the version's
            raise
        raise ValueError(
            f"The checkpoint was written with state version {version}, and its evidence does not fit: {error}. To "
            "continue with the masks alone, replace each entry of its 'evidence' by {}"
        ) from error
    return []
