"""Pieces of an update: saliencies, repairs, patterns, allocations and schedules."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ignite_prune import allocation, pattern, repair, saliency, schedule
from tests.catalogue.row import Row
from tests.models import attention_net, batches, small_net


def gradient_times_weight(name: str, parameter: nn.Parameter) -> Tensor:
    """A data-dependent saliency as a user writes one."""
    grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
    return (grad * parameter).abs()


class AnyScores(dict):
    """Scores for every name, as ``Given`` takes them: cosines, so that they are fixed and differ."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__(
            {name: torch.arange(float(p.numel())).cos().view(p.shape).abs() for name, p in model.named_parameters()}
        )


# make(model) -> saliency
SALIENCIES = [
    Row("magnitude", lambda model: saliency.Magnitude()),
    Row("magnitude_squared", lambda model: saliency.Magnitude(p=2)),
    Row("random", lambda model: saliency.Random()),
    Row("given", lambda model: saliency.Given(AnyScores(model))),
    Row("callable", lambda model: gradient_times_weight),
    Row("constant_ties", lambda model: lambda name, p: torch.ones_like(p)),
    Row("gradient", lambda model: saliency.Gradient(), {"informed": True}),
    Row("taylor", lambda model: saliency.Taylor(), {"informed": True}),
    Row("taylor_squared", lambda model: saliency.Taylor(squared=True, memory=saliency.Memory(0.9)), {"informed": True}),
    Row("taylor_by_unit", lambda model: saliency.Taylor(by_unit=True), {"informed": True, "units": True}),
    Row("snip", lambda model: saliency.SNIP(anytime=True), {"informed": True}),
    Row("snip_momentum", lambda model: saliency.SNIPMomentum(), {"informed": True}),
    Row("grasp", lambda model: saliency.GraSP(anytime=True), {"informed": True, "signed": True}),
    Row("synflow", lambda model: saliency.SynFlow(rounds=4, anytime=True), {"informed": True}),
    Row("movement", lambda model: saliency.Movement(), {"informed": True, "signed": True}),
    Row("change", lambda model: saliency.Change(), {"informed": True}),
    Row("obd_fisher", lambda model: saliency.OBD(), {"informed": True}),
    Row("obd_gauss_newton", lambda model: saliency.OBD(saliency.GaussNewton()), {"informed": True}),
    Row("obd_hutchinson", lambda model: saliency.OBD(saliency.Hutchinson(2)), {"informed": True, "signed": True}),
    Row("obs", lambda model: saliency.OBS(block=16, damping=1e-3), {"informed": True}),
    Row("wanda", lambda model: saliency.Wanda(), {"informed": True}),
    Row("sparsegpt", lambda model: saliency.SparseGPT(block=16), {"informed": True}),
    Row("fpgm", lambda model: saliency.FPGM(), {"units": True}),
    Row("batch_norm_scale", lambda model: saliency.BatchNormScale(), {"informed": True, "units": True, "only": "0.*t"}),
    Row("hrank", lambda model: saliency.HRank(), {"informed": True, "units": True, "only": "0.*t"}),
    Row("apoz", lambda model: saliency.APoZ(), {"informed": True, "units": True}),
    Row("sensitivity", lambda model: saliency.Sensitivity(), {"informed": True, "units": True}),
    Row("activation_taylor", lambda model: saliency.ActivationTaylor(), {"informed": True, "units": True}),
    Row("shapley", lambda model: saliency.Shapley(samples=2), {"informed": True, "units": True}),
    Row("inverted", lambda model: saliency.Inverted(saliency.Random()), {"signed": True}),
    Row("inverted_taylor", lambda model: saliency.Inverted(saliency.Taylor()), {"informed": True, "signed": True}),
    Row("heads", lambda model: saliency.HeadImportance(), {"informed": True, "units": True, "attention": True}),
]

# make() -> repair
REPAIRS = [
    Row("obs", lambda: repair.OBS(block=16, damping=1e-3)),
    Row("sparsegpt", lambda: repair.SparseGPT(block=16)),
    Row("bias", repair.Bias),
    Row("dsnot", repair.DSnoT),
    Row("batch_norm", repair.BatchNorm, {"data": True}),
    Row("batch_norm_variance", lambda: repair.BatchNorm(variance_repair=True), {"data": True}),
    Row("three", lambda: [repair.OBS(16, 1e-3), repair.Bias(), repair.BatchNorm()], {"data": True}),
]


def net_for(row: Row, seed: int = 0) -> nn.Module:
    """The model that a saliency is tried on."""
    return attention_net(seed) if row.notes.get("attention") else small_net(seed)


def options_for(row: Row, model: nn.Module, calibrated: bool = True) -> dict[str, Any]:
    """Keywords of a PruneHandler with a row's saliency; evidence from data, or from training if not calibrated."""
    options: dict[str, Any] = {"saliency": row.make(model)}
    if row.notes.get("informed"):
        options["loss_fn"] = nn.functional.cross_entropy
        if calibrated:
            options["data"] = batches(2)
    if row.notes.get("units"):
        options["pattern"] = pattern.Head(size=8, parts=3) if row.notes.get("attention") else pattern.Channel()
    if row.notes.get("attention"):
        options["params"] = "attention.in_proj_weight"
    elif row.notes.get("only"):
        options["params"] = row.notes["only"]
    return options


def fits(row: Row, shape: Row) -> bool:
    """Whether a saliency is tried with a pattern: units with units, norms with scores of one sign."""
    if row.notes.get("units"):
        return shape.name == "filter" and not row.notes.get("attention")
    if row.notes.get("signed") and isinstance(shape.make(), (pattern.Channel, pattern.Head)):
        return False
    if row.notes.get("informed"):  # one pattern of each kind does
        return shape.name in ("unstructured", "2_of_4", "block_2x2_sum", "filter")
    return True


# make() -> pattern; every one fits the models of tests/models.py
PATTERNS = [
    Row("unstructured", pattern.Unstructured),
    Row("2_of_4", lambda: pattern.NofM(keep=2, of=4)),
    Row("1_of_4", lambda: pattern.NofM(keep=1, of=4)),
    Row("1_of_2_outputs", lambda: pattern.NofM(keep=1, of=2, dim=0)),
    Row("block_4x1", lambda: pattern.Block((4, 1))),
    Row("block_2x2_sum", lambda: pattern.Block((2, 2), reduce="sum")),
    Row("block_max", lambda: pattern.Block((1, 4), reduce="max")),
    Row("filter", pattern.Channel),
    Row("input_channel_l1", lambda: pattern.Channel(dim=1, norm=1)),
    Row("kernel_max", lambda: pattern.Channel(dim=(0, 1), norm=float("inf"))),
    Row("head", lambda: pattern.Head(size=2)),
    Row("head_in_parts", lambda: pattern.Head(size=1, parts=2)),
    Row("head_of_inputs", lambda: pattern.Head(size=2, dim=1)),
]

# make() -> pattern over a structure's units
COUPLED = [
    Row("coupled", pattern.Coupled, {"exact": True}),
    Row("coupled_sum_l1", lambda: pattern.Coupled(norm=1, combine="sum"), {"exact": True}),
    Row("coupled_max", lambda: pattern.Coupled(norm=float("inf"), combine="max"), {"exact": True}),
    Row("coupled_first", lambda: pattern.Coupled(combine="first"), {"exact": True}),
    Row("coupled_signed", lambda: pattern.Coupled(norm=None), {"exact": True, "signed": True}),
    Row("coupled_by_group", lambda: pattern.Coupled(normalise="group"), {"exact": True}),
    Row("coupled_as_is", lambda: pattern.Coupled(normalise=None), {"exact": True}),
    Row("coupled_rounded", lambda: pattern.Coupled(round_to=4, at_least=2)),
]

# make() -> allocation; totals: the kept units add up to round-half-even of the target
ALLOCATIONS = [
    Row("global", allocation.Global, {"totals": True}),
    Row("global_min_density", lambda: allocation.Global(min_density=0.05), {"totals": True}),
    Row("global_max_sparsity", lambda: allocation.Global(max_sparsity=0.95), {"totals": True}),
    Row("uniform", allocation.Uniform),
    Row("erk", allocation.ERK, {"totals": True}),
    Row("er", lambda: allocation.ERK(kernel=False), {"totals": True}),
    Row("isomorphic", allocation.Isomorphic),
    Row("lamp", allocation.LAMP, {"totals": True}),
    Row("owl", allocation.OWL, {"totals": True}),
    Row("distributed", allocation.StdThreshold, {"totals": True}),
    Row("han", lambda: allocation.StdThreshold(q=0.5)),
    Row("bucket", lambda: allocation.Bucket(0.5, relative=True)),
]

# make(final, begin, end, initial) -> ramp
RAMPS = [
    Row("linear", schedule.Linear),
    Row("polynomial", schedule.Polynomial),
    Row("polynomial_1.5", lambda *a, **k: schedule.Polynomial(*a, **k, power=1.5)),
    Row("exponential", schedule.Exponential),
    Row("cosine", schedule.Cosine),
    Row("one_cycle", schedule.OneCycle),
    Row("power", schedule.Power),
    Row("quarter_cosine", schedule.QuarterCosine),
]
# make() -> schedule over steps 0 to 6 that ends at 0.75
SCHEDULES = [
    *(Row(row.name, lambda make=row.make: make(0.75, begin=1, end=5, initial=0.0)) for row in RAMPS),
    Row("constant", lambda: schedule.Constant(0.75)),
    Row("one_shot", lambda: schedule.OneShot(0.75, at=3)),
    Row("geometric", lambda: schedule.Geometric(rate=0.5, every=2.5)),
    Row("steps", lambda: schedule.Steps({1: 0.25, 4: 0.75})),
    Row("held", lambda: schedule.Held(schedule.Linear(0.75, begin=1, end=5), every=1.5, begin=1)),
    Row("in_epochs", lambda: schedule.InEpochs(schedule.Linear(0.75, begin=0.5, end=2.5), length=2)),
    Row("dense_sparse", lambda: schedule.DenseSparse(0.75, begin=1, end=5), {"regrows": True}),
]
