"""Running sums by parameter name, with their counts: saved, checked, loaded and sliced."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

Kept = Mapping[int, Tensor]
"""The indices that a parameter keeps, by dimension."""
Zeros = Callable[[str], Tensor]
"""Returns zeros in the form of a parameter's sum, by the parameter's name."""


class RunningSums:
    """Sums and counts over parameters.

    Args:
        parameters: by name.

    Attributes:
        sums: the sum of each parameter that has one.
        counts: how much was added up, by name.
        forms: what the shape of a sum depends on if only data shows it; ranks without data get it from the others.
        stale: whether a mask update has used the sums; the next addition starts from zeros then.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter]) -> None:
        self.parameters = parameters
        self.sums: dict[str, Tensor] = {}
        self.counts: dict[str, float] = {}
        self.forms: dict[str, tuple[int, ...]] = {}
        self.stale = False

    def at(self, name: str, zeros: Zeros) -> Tensor:
        """Return the sum of a parameter, to add to in place, on the parameter's device; at first it is zeros."""
        self.drop_stale()
        held = self.sums.get(name)
        if held is None:
            held = self.sums[name] = zeros(name)
        elif held.device != self.parameters[name].device:  # the model was moved
            held = self.sums[name] = held.to(self.parameters[name].device)
        return held

    def count(self, name: str, weight: float = 1.0, decay: float = 1.0) -> None:
        """Add to a count, after decay of what it was."""
        self.counts[name] = self.counts.get(name, 0.0) * decay + weight

    def drop_stale(self) -> None:
        """Drop the sums if a mask update has used them."""
        if self.stale:
            self.reset()

    def reset(self) -> None:
        """Drop all sums and counts."""
        self.sums, self.counts, self.stale = {}, {}, False

    # State

    def state_dict(self) -> dict[str, Any]:
        """Return sums, counts and staleness."""
        return {"sums": dict(self.sums), "counts": dict(self.counts), "stale": self.stale}

    def sliced(self, indices: Mapping[str, Kept], cut: Callable[[str, Tensor, Kept], Tensor | None]) -> dict[str, Any]:
        """Return the state for parameters that keep these indices.

        Args:
            indices: by name and dimension; of the parameters before slicing.
            cut: returns what is left of a sum, or None to drop it.
        """
        left = {name: cut(name, total, indices.get(name, {})) for name, total in self.sums.items()}
        sums = {name: total for name, total in left.items() if total is not None}
        return {**self.state_dict(), "sums": sums, "counts": {name: self.counts[name] for name in sums}}

    def checked(self, state: Any, zeros: Zeros) -> dict[str, Any]:
        """Return a state that fits.

        Raises:
            TypeError: it is not made of mappings.
            ValueError: it is of other parameters, shapes or types.
        """
        if not isinstance(state, Mapping) or not all(isinstance(state.get(k), Mapping) for k in ("sums", "counts")):
            raise TypeError("The evidence of a pruner's state_dict should be mappings 'sums' and 'counts'")
        for name, held in state["sums"].items():
            if name not in self.parameters or not isinstance(held, Tensor):
                raise ValueError(f"The checkpoint's evidence is of another parameter: {name!r}")
            like = zeros(name)
            if held.shape != like.shape or held.dtype != like.dtype:
                raise ValueError(
                    f"The checkpoint's evidence of {name!r} is {tuple(held.shape)} of {held.dtype}, but should be "
                    f"{tuple(like.shape)} of {like.dtype}"
                )
        if set(state["counts"]) != set(state["sums"]) or not all(
            isinstance(n, (int, float)) and n >= 0 for n in state["counts"].values()
        ):
            raise ValueError("The checkpoint's evidence is damaged: its counts do not fit its sums")
        return dict(state)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Load a checked state."""
        self.sums = {name: held.to(self.parameters[name].device, copy=True) for name, held in state["sums"].items()}
        self.counts = {name: float(number) for name, number in state["counts"].items()}
        self.stale = bool(state.get("stale", False))


def kept_of(tensor: Tensor, kept: Kept) -> Tensor:
    """Return the entries of a tensor that are kept."""
    for dim, indices in kept.items():
        tensor = tensor.index_select(dim, indices.to(tensor.device))
    return tensor


def wide(parameter: Tensor, dtype: torch.dtype | None = None) -> torch.dtype:
    """Return the type of running sums over a parameter: at least float32, as half precision would lose small terms."""
    return dtype or (torch.float32 if parameter.itemsize < 4 else parameter.dtype)
