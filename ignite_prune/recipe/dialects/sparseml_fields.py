"""Fields of SparseML's modifiers: params, masks, schedules."""

from __future__ import annotations

from typing import Any

from ignite_prune.recipe.dialects import steps
from ignite_prune.recipe.dialects.draft import Draft
from ignite_prune.recipe.dialects.modifiers import Modifier

PRUNABLE = {"layers": ["Linear", "Conv1d", "Conv2d", "Conv3d"]}
NO_EFFECT = {
    "leave_enabled": "masks stay in place until finalize(), which leaves a plain model with its zeros",
    "log_types": "loggers are attached to the trainer; see loggers.MaskHandler",
    "num_grads": "evidence is gathered over all steps between two updates",
    "grad_sampler_kwargs": "evidence is gathered from the trainer's own steps, or from attach(..., data=)",
    "num_recomputations": "each update computes its saliency once",
    "grads_device": "evidence is kept on the parameter's device",
    "num_pages": "evidence is kept on the parameter's device",
    "available_gpus": "evidence is kept on the parameter's device",
    "available_devices": "evidence is kept on the parameter's device",
    "use_gradient_buffering": "evidence is gathered from the trainer's own steps",
    "sequential_update": "evidence of all layers is gathered in one pass",
    "sequential_targets": "evidence of all layers is gathered in one pass",
    "offload_hessians": "evidence is kept on the parameter's device",
    "num_samples": "all of attach(..., data=) is used",
    "target_ids": "an internal field",
    "index": "an internal field",
    "group": "an internal field",
    "enabled": "an internal field",
    "initialized_structure_": "an internal field",
    "initialized_": "an internal field",
    "finalized_": "an internal field",
    "started_": "an internal field",
    "ended_": "an internal field",
}


def required_number(name: str, value: Any) -> float:
    """Return a number of the file.

    Raises:
        ValueError: it is missing, or no number.
    """
    if value is None:
        raise ValueError(f"{name} is missing")
    return steps.number(name, value)


def params_of_sparseml(value: Any) -> Any:
    """Return rules for SparseML's ``params``."""
    if value in (None, [], "__ALL_PRUNABLE__", ["__ALL_PRUNABLE__"]):
        return dict(PRUNABLE)
    if value in ("__ALL__", ["__ALL__"]):
        return {"regex": ".*"}
    listed = [value] if isinstance(value, str) else value
    if not isinstance(listed, list) or not all(isinstance(each, str) for each in listed):
        raise ValueError(f"params should be names and re: expressions, but given {value!r:.80}")
    rules = [_rule(each) for each in listed]
    return rules[0] if len(rules) == 1 else rules


def _rule(name: str) -> Any:
    if name == "__ALL_PRUNABLE__":
        return dict(PRUNABLE)
    return {"regex": name.removeprefix("re:")} if name.startswith("re:") else name


def targets_of(targets: Any, ignore: Any) -> Any:
    """Return rules for llm-compressor's ``targets`` and ``ignore``, which name modules."""
    listed = [targets] if isinstance(targets, str) else targets or ["Linear"]
    listed = ["Linear" if each == "__ALL_PRUNABLE__" else each for each in listed]
    left_out = [ignore] if isinstance(ignore, str) else ignore or []
    if not all(isinstance(each, str) for each in [*listed, *left_out]):
        raise ValueError(
            f"targets should be names of modules or classes, and re: expressions, but given {targets!r:.80}"
        )
    return {"modules": listed, **({"ignore": left_out} if left_out else {})}


def pattern_of_mask_type(mask_type: Any, mask_structure: Any) -> Any:
    """Return the pattern of a ``mask_type`` or ``mask_structure``; N of N:M counts what is pruned."""
    value = mask_type if mask_structure in (None, "0:0", "unstructured") else mask_structure
    if value in ("unstructured", "0:0"):
        return "Unstructured"
    if value == "block4":
        return {"type": "Block", "shape": [1, 4]}
    if value in ("filter", "channel"):
        return {"type": "Channel", "dim": 0 if value == "filter" else 1, "norm": 1}
    if value == "tensorrt":
        value = "2:4"
    if isinstance(value, str) and value.count(":") == 1:
        pruned, of = (int(each) if each.strip().isdigit() else 0 for each in value.split(":"))
        if 0 < pruned < of:
            return {"type": "NofM", "keep": of - pruned, "of": of}
    if isinstance(value, list) and len(value) == 2 and all(type(each) is int and each > 0 for each in value):
        return {"type": "Block", "shape": value}
    raise ValueError(
        f"mask_type should be unstructured, block4, [rows, columns], N:M, filter or channel, but given {value!r}"
    )


def allocation_of(is_global: Any) -> str:
    """Return the allocation: one sparsity for each layer, or one ranking."""
    return "Global" if is_global else "Uniform"


def schedule_of(modifier: Modifier, finals: list[float], draft: Draft) -> list[dict[str, Any]]:
    """Return a schedule for each final sparsity, in epochs, held between updates."""
    start = max(0, required_number("start_epoch", modifier.take("start_epoch", modifier.take("start", 0))))
    end = required_number("end_epoch", modifier.take("end_epoch", modifier.take("end", -1)))
    end = start if end < 0 else end
    frequency = required_number("update_frequency", modifier.take("update_frequency", -1))
    initial, shape = (
        modifier.take("init_sparsity", 0),
        modifier.take("inter_func", modifier.take("update_scheduler", "cubic")),
    )
    if initial == "__FROM_PARAM__":
        where = (*modifier.path, "init_sparsity")
        draft.report.add("not possible", "init_sparsity: __FROM_PARAM__", draft.line(where), "the ramp begins at 0")
        initial = 0
    powers: dict[Any, dict[str, Any]] = {
        "linear": {"type": "Linear"},
        "cubic": {"type": "Polynomial"},
        "inverse_cubic": {"type": "Polynomial", "power": 1 / 3},
    }
    if shape not in powers:
        raise ValueError(f"inter_func should be linear, cubic or inverse_cubic, but given {shape!r}")
    if end < start:
        raise ValueError(f"end_epoch {end:g} is before start_epoch {start:g}")
    every = frequency if frequency > 0 else 1
    ramps = [
        {
            **powers[shape],
            "final": final,
            "begin": start,
            "end": end,
            "initial": min(required_number("init_sparsity", initial), final),
        }
        for final in finals
    ]
    return [{"type": "Held", "schedule": ramp, "every": every, "begin": start} for ramp in ramps]
