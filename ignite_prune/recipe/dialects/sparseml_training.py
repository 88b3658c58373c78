"""SparseML's modifiers of sparse training and of whole filters."""

from __future__ import annotations

from ignite_prune._utils.arguments import near
from ignite_prune.recipe.dialects.draft import Draft
from ignite_prune.recipe.dialects.modifiers import Modifier
from ignite_prune.recipe.dialects.sparseml_fields import (
    allocation_of,
    params_of_sparseml,
    pattern_of_mask_type,
    required_number,
    schedule_of,
)


def alternating(draft: Draft, modifier: Modifier) -> str:
    """AC/DC: dense and sparse phases in turn."""
    phase = required_number("update_frequency", modifier.take("update_frequency"))
    start = required_number("start_epoch", modifier.take("start_epoch", 0))
    end = required_number("end_epoch", modifier.take("end_epoch"))
    if phase != int(phase) or phase < 1:
        raise ValueError(f"update_frequency should be whole epochs here, but given {phase:g}")
    draft.handler(
        modifier.path,
        type="AlternatingSparse",
        sparsity=required_number(
            "compression_sparsity", modifier.take("compression_sparsity", modifier.take("final_sparsity"))
        ),
        begin=start + phase,  # the first phase is dense, and epochs count from 1 when they start
        end=max(start + phase, end - phase + 1),
        phase=int(phase),
        reset_momentum=bool(modifier.take("momentum_buffer_reset", True)),
        allocation=allocation_of(modifier.take("global_sparsity", True)),
        pattern=pattern_of_mask_type(modifier.take("mask_type", "unstructured"), None),
        params=params_of_sparseml(modifier.take("params")),
    )
    modifier.take("init_sparsity")
    return "handlers: AlternatingSparse (AC/DC)"


def rigl(draft: Draft, modifier: Modifier) -> str:
    """RigL, by the gradient of one iteration."""
    strategy = modifier.take("sparsity_strategy", "erdos_renyi_kernel")
    kinds = {"uniform": "Uniform", "erdos_renyi": {"type": "ERK", "kernel": False}, "erdos_renyi_kernel": "ERK"}
    if strategy not in kinds:
        raise ValueError(f"sparsity_strategy {strategy!r} is not known; {near(str(strategy), list(kinds))}")
    pattern_of_mask_type(modifier.take("mask_type", "unstructured"), None)
    modifier.take("global_sparsity")
    start = required_number("start_epoch", modifier.take("start_epoch", 0))
    draft.handler(
        modifier.path,
        type="RigL",
        sparsity=required_number("final_sparsity", modifier.take("final_sparsity")),
        every={"epochs": _frequency(modifier)},
        end={"epochs": required_number("end_epoch", modifier.take("end_epoch"))},
        drop_fraction=required_number("init_update_fraction", modifier.take("init_update_fraction", 0.3)),
        allocation=kinds[strategy],
        params=params_of_sparseml(modifier.take("params")),
    )
    late = f"; it begins with the run, not at epoch {start:g}" if start > 0 else ""
    return "handlers: RigL, which grows by the gradient of one iteration" + late


def top_kast(draft: Draft, modifier: Modifier) -> str:
    """Top-KAST, over the whole run."""
    draft.handler(
        modifier.path,
        type="TopKAST",
        sparsity=required_number("forward_sparsity", modifier.take("forward_sparsity")),
        backward_sparsity=required_number("backward_sparsity", modifier.take("backward_sparsity")),
        every={"epochs": _frequency(modifier)},
        strength=required_number(
            "active_weight_decay", modifier.take("active_weight_decay", modifier.take("acive_param_decay", 1e-4))
        ),
        allocation=allocation_of(modifier.take("global_sparsity", True)),
        params=params_of_sparseml(modifier.take("params")),
    )
    for key in ("start_epoch", "end_epoch", "mask_type"):
        modifier.take(key)
    return "handlers: TopKAST, over the whole run"


def _frequency(modifier: Modifier) -> float:
    every = required_number("update_frequency", modifier.take("update_frequency", -1))
    return 1 if every <= 0 else every


def structured(draft: Draft, modifier: Modifier) -> str:
    """Filters or channels, coupled where ``param_groups`` says so."""
    mask, coupled = modifier.take("mask_type", "filter"), modifier.take("param_groups")
    if mask not in ("filter", "channel"):
        raise ValueError(f"mask_type should be filter or channel, but given {mask!r}")
    params = params_of_sparseml(modifier.take("params"))
    (schedule,) = schedule_of(modifier, [required_number("final_sparsity", modifier.take("final_sparsity"))], draft)
    if coupled:
        draft.settings["structure"] = "trace"
        draft.group(
            modifier.path,
            params=params,
            schedule=schedule,
            pattern={"type": "Coupled", "norm": 1},
            allocation="Uniform",
        )
        return "structure: trace, which finds the coupled groups itself; attach(..., example_inputs=)"
    channel = {"type": "Channel", "dim": 0 if mask == "filter" else 1, "norm": 1}
    draft.group(modifier.path, params=params, schedule=schedule, pattern=channel, allocation="Uniform")
    return f"a parameter group with pattern Channel(dim={channel['dim']})"
