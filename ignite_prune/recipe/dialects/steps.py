"""Fields that Neural Compressor's formats share: patterns, criteria, schedules in steps."""

from __future__ import annotations

import re
from typing import Any

from ignite_prune._utils.arguments import near

RAMPS = {"exp": "Exponential", "cos": "QuarterCosine", "cube": "Power", "linear": "Linear"}
SALIENCIES: dict[str, Any] = {
    "magnitude": "Magnitude",
    "basic_magnitude": "Magnitude",
    "snip": {"type": "SNIP", "anytime": True},
    "snip_momentum": "SNIPMomentum",
}


def number(name: str, value: Any) -> float:
    """Return a number of the file.

    Raises:
        ValueError: it is none.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ValueError(f"{name} should be a number, but given {value!r:.60}")
    return value


def pattern_of_text(value: Any, reduce: str = "mean") -> Any:
    """Return the pattern of ``4x1`` (outputs by inputs), ``1xchannel``, ``2:4`` or ``2in4`` (N is what is pruned)."""
    text = str(value).lower().replace(" ", "").removeprefix("tile_pattern_")
    if text == "1x1":
        return "Unstructured"
    if text == "1xchannel":
        return {"type": "Channel", "dim": 0, "norm": 1}
    if text == "channelx1":
        return {"type": "Channel", "dim": 1, "norm": 1}
    block, group = re.fullmatch(r"(\d{1,4})x(\d{1,4})", text), re.fullmatch(r"(\d{1,4})(?::|in)(\d{1,4})", text)
    if block and min(map(int, block.groups())) > 0:
        return {"type": "Block", "shape": [int(each) for each in block.groups()], "reduce": reduce}
    if group and 0 < int(group[1]) < int(group[2]):
        return {"type": "NofM", "keep": int(group[2]) - int(group[1]), "of": int(group[2])}
    raise ValueError(f"pattern should be NxM, N:M, NinM, 1xchannel or channelx1, but given {value!r}")


def saliency_of(value: Any) -> Any:
    """Return the saliency of a ``prune_type`` or ``pruning_type``."""
    if value not in SALIENCIES:
        raise ValueError(f"pruning_type {value!r} is not known; {near(str(value), list(SALIENCIES))}")
    return SALIENCIES[value]


def ramp_of(shape: Any, final: float, begin: float, end: float, every: float, initial: float = 0) -> dict[str, Any]:
    """Return Neural Compressor's schedule in steps, with updates at ``(t − begin) % every == 0``, the k-th of a total.

    The total is ``(end − begin + every) // every − 1``, so the ramp ends at ``begin + total · every``.
    """
    if shape not in RAMPS:
        raise ValueError(f"sparsity_decay_type {shape!r} is not known; {near(str(shape), list(RAMPS))}")
    if end < begin:
        raise ValueError(f"end_step {end:g} is before start_step {begin:g}")
    if every <= 0:
        raise ValueError(f"pruning_frequency should be above 0, but given {every:g}")
    total = (end - begin + every) // every - 1
    if total < 1:
        return {"type": "OneShot", "sparsity": final, "at": begin}
    ramp = {"type": RAMPS[shape], "final": final, "begin": begin, "end": begin + total * every}
    if initial:
        ramp["initial"] = initial
    return {"type": "Held", "schedule": ramp, "every": every, "begin": begin}
