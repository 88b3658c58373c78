"""PrunerState: what a PruneHandler writes into a checkpoint, checked when it is loaded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ignite_prune._utils.sparsity import as_sparsity
from ignite_prune.update.param_groups import ParamGroup

VERSION = 3  # 1 had no evidence; 2 named evidence by the representation of its fields


@dataclass(frozen=True)
class PrunerState:
    """A state_dict that fits some groups. Masks, dense values, progress and evidence are checked by their owners."""

    masks: Any
    sparsities: list[float]
    progress: Any
    generators: list[Any]
    dense: Any
    evidence: Any
    reached: list[float | None]

    @classmethod
    def checked(cls, state: Any, groups: Sequence[ParamGroup]) -> PrunerState:
        """Return the state, or raise.

        Raises:
            TypeError: not a state_dict of a PruneHandler.
            ValueError: of a later version, damaged, or of other groups.
        """
        _check_version(state)
        if state["version"] == 1:
            state = {**state, "evidence": [], "reached": [None] * len(groups)}
        missing = {"masks", "sparsities", "progress", "generators", "dense", "evidence", "reached"} - set(state)
        if missing:
            raise ValueError(f"The checkpoint's pruner is damaged: it lacks {sorted(missing)}")
        for key in ("sparsities", "generators", "reached"):
            if not isinstance(state[key], list) or len(state[key]) != len(groups):
                raise ValueError(f"The checkpoint's pruner should have {len(groups)} groups, but its {key} are others")
        for generator, group in zip(state["generators"], groups):
            _check_generator(generator, group)
        sparsities = [as_sparsity(value) for value in state["sparsities"]]
        reached = [None if value is None else as_sparsity(value) for value in state["reached"]]
        return cls(
            state["masks"],
            sparsities,
            state["progress"],
            state["generators"],
            state["dense"],
            state["evidence"],
            reached,
        )


def _check_version(state: Any) -> None:
    if not isinstance(state, Mapping):
        raise TypeError(f"Argument state_dict should be a mapping, but given {type(state)}")
    version = state.get("version")
    if type(version) is not int:
        raise TypeError("Argument state_dict should be a PruneHandler's, with a whole 'version', but it has none")
    if not 1 <= version <= VERSION:
        raise ValueError(
            f"The checkpoint's pruner has version {version}, this one reads versions up to {VERSION}; update "
            "ignite_prune"
        )


def _check_generator(state: Any, group: ParamGroup) -> None:
    generator = group["generator"]
    if (state is None) != (generator is None):
        raise ValueError("The checkpoint's pruner and this one should both have a generator in a group, or neither")
    if generator is not None:
        try:
            torch.Generator(device=generator.device).set_state(state.cpu())
        except (AttributeError, TypeError, RuntimeError) as error:
            raise ValueError(f"The checkpoint's generator state is damaged: {error}") from None
