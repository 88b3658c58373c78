"""Which settings of parameter groups are possible with sharded parameters."""

from __future__ import annotations

from collections.abc import Sequence

from ignite_prune.allocation import ERK, LAMP, OWL, Bucket, Global, Isomorphic, StdThreshold, Uniform
from ignite_prune.pattern import Block, Channel, Coupled, NofM, Unstructured
from ignite_prune.saliency import (
    OBD,
    SNIP,
    Change,
    Gradient,
    Magnitude,
    Movement,
    Random,
    Saliency,
    SNIPMomentum,
    SparseGPT,
    Taylor,
    Wanda,
)
from ignite_prune.saliency.from_callable import FromCallable
from ignite_prune.saliency.given import Given
from ignite_prune.saliency.needs import Gradients, Initial, InputMoments, InputNorms
from ignite_prune.update.param_group import ParamGroup

_SALIENCIES = (
    *(Magnitude, Random, Given, FromCallable, Change),
    *(Gradient, Taylor, SNIP, SNIPMomentum, Movement, OBD),
    *(Wanda, SparseGPT),
)
_ALLOCATIONS = (Global, Uniform, ERK, Isomorphic, LAMP, OWL, StdThreshold, Bucket)
_PATTERNS = (Unstructured, NofM, Block, Channel, Coupled)


def check_settings(groups: Sequence[ParamGroup]) -> None:
    """Raise if a group of a sharded model has a setting that is made for whole parameters.

    Raises:
        ValueError: names the setting, and those that shards take.
    """
    for group in groups:
        _check_kind("saliency", group["saliency"], _SALIENCIES)
        _check_needs(group["saliency"])
        _check_kind("allocation", group["allocation"], _ALLOCATIONS)
        _check_kind("pattern", group["pattern"], _PATTERNS)
        if group["repair"]:
            raise ValueError(
                "Argument repair needs whole parameters, but some of them are sharded (DTensors, of fully_shard or "
                "parallelize_module): leave it out, or prune before the model is sharded"
            )


def _check_needs(saliency: Saliency) -> None:
    for need in saliency.needs:
        by_unit = isinstance(need, Gradients) and need.by_unit
        if by_unit or not isinstance(need, Gradients | Initial | InputNorms | InputMoments):
            raise ValueError(
                f"Argument saliency={saliency!r:.80} needs {type(need).__name__} of whole parameters, but some of them "
                "are sharded (DTensors). With shards evidence is of gradients, one number for each weight, or of the "
                "inputs of layers: Taylor(), Movement(), OBD(EmpiricalFisher()), Wanda(), SparseGPT(), ..."
            )


def _check_kind(key: str, given: object, taken: tuple[type, ...]) -> None:
    if not isinstance(given, taken):
        raise ValueError(
            f"Argument {key}={given!r:.60} needs whole parameters, but some of them are sharded (DTensors, of "
            f"fully_shard or parallelize_module). With shards {key} may be {', '.join(each.__name__ for each in taken)}"
        )
