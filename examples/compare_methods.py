"""Methods of the saliency comparison, one row each. To compare a custom saliency, add a row."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from compare_nets import LOSS
from torch import Tensor, nn

from ignite_prune import allocation, repair, saliency

GLOBAL, UNIFORM = allocation.Global(), allocation.Uniform()
SMOOTHED = nn.CrossEntropyLoss(label_smoothing=0.1)


def loss_in_double(output: Tensor, target: Tensor) -> Tensor:
    """Return the loss in float64: for confident predictions, 1 - p cancels in float32."""
    return LOSS(output.double(), target)


# Kinds of information that a method uses; the colours of the plots.
CONTROL, WEIGHTS, GRADIENTS, CURVATURE, ACTIVATIONS, TRAINING = (
    "control",
    "weights only",
    "gradients",
    "curvature",
    "activations",
    "collected in training",
)


@dataclass(frozen=True)
class Method:
    """A pruning method.

    Args:
        name: name in tables and plots.
        uses: kind of information it uses.
        saliency: saliency of entries or units.
        allocation: division of the sparsity over the layers.
        repair: repairs applied after the mask.
        batches: number of calibration batches; None for all.
        loss_fn: loss function for gradients.
        inverted: whether to keep what the saliency would prune.
        rescore: whether to score again at each sparsity, because the scores alone do not determine the mask (rounds,
            rows, repairs).
        by_layer: whether to prune layer by layer, with inputs from the layers that are already pruned.
        bold: whether to draw a curve.
    """

    name: str
    uses: str
    saliency: saliency.Saliency | Callable[[str, Tensor], Tensor]
    allocation: allocation.Allocation = GLOBAL
    repair: Sequence[repair.Repair] = ()
    batches: int | None = None
    loss_fn: Callable[[Tensor, Tensor], Tensor] = field(default=LOSS, repr=False)
    inverted: bool = False
    rescore: bool = False
    by_layer: bool = False
    bold: bool = False


FISHER = saliency.OBD(saliency.EmpiricalFisher())

ON_THE_TRAINED_NET = [
    Method("Magnitude, global", WEIGHTS, saliency.Magnitude(), bold=True),
    Method("Magnitude, uniform", WEIGHTS, saliency.Magnitude(), UNIFORM, bold=True),
    Method("Magnitude, LAMP", WEIGHTS, saliency.Magnitude(), allocation.LAMP()),
    Method("SynFlow", WEIGHTS, saliency.SynFlow(), rescore=True),
    Method("Gradient", GRADIENTS, saliency.Gradient()),
    Method("Taylor", GRADIENTS, saliency.Taylor(), bold=True),
    Method("SNIP", GRADIENTS, saliency.SNIP()),
    Method("GraSP", GRADIENTS, saliency.GraSP()),
    Method("OBD, Fisher", CURVATURE, FISHER, bold=True),
    Method("OBD, Fisher, smoothed loss", CURVATURE, FISHER, loss_fn=SMOOTHED),
    Method("OBD, Gauss-Newton", CURVATURE, saliency.OBD(saliency.GaussNewton()), batches=4, loss_fn=loss_in_double),
    Method("OBD, Hutchinson", CURVATURE, saliency.OBD(saliency.Hutchinson(samples=4))),
    Method("OBS", CURVATURE, saliency.OBS()),
    Method("OBS + repair", CURVATURE, saliency.OBS(), repair=[repair.OBS()], rescore=True),
    Method("Wanda", ACTIVATIONS, saliency.Wanda(), UNIFORM, rescore=True),
    Method("SparseGPT", ACTIVATIONS, saliency.SparseGPT(), UNIFORM),
    Method(
        "SparseGPT + repair", ACTIVATIONS, saliency.SparseGPT(), UNIFORM, [repair.SparseGPT()], rescore=True, bold=True
    ),
    Method(
        "SparseGPT + repair, by layer",
        ACTIVATIONS,
        saliency.SparseGPT(),
        UNIFORM,
        [repair.SparseGPT()],
        rescore=True,
        by_layer=True,
    ),
    Method("Random", CONTROL, saliency.Random(), UNIFORM, bold=True),
    Method("Magnitude, inverted", CONTROL, saliency.Magnitude(), inverted=True, bold=True),
]
# Evidence collected during training: a PruneHandler is attached from the first step to the last.
IN_TRAINING = [
    Method("Gradient in training", TRAINING, saliency.Gradient()),
    Method("Taylor in training", TRAINING, saliency.Taylor()),
    Method("OBD, Fisher in training", TRAINING, FISHER, bold=True),
    Method("Movement in training", TRAINING, saliency.Movement()),
    Method("SNIPMomentum in training", TRAINING, saliency.SNIPMomentum()),
    Method("Change in training", TRAINING, saliency.Change()),
    Method("OBD in training, inverted", CONTROL, FISHER, inverted=True),
]
# Pruning at initialisation: pruned once before training, then trained with fixed masks.
AT_INIT = [
    Method("SNIP", GRADIENTS, saliency.SNIP(), batches=4),
    Method("GraSP", GRADIENTS, saliency.GraSP(), batches=4),
    Method("SynFlow", WEIGHTS, saliency.SynFlow(), batches=1, rescore=True),
    Method("Magnitude, global", WEIGHTS, saliency.Magnitude()),
    Method("Random", CONTROL, saliency.Random(), UNIFORM),
    Method("SNIP, inverted", CONTROL, saliency.SNIP(), batches=4, inverted=True),
]


def filter_norm(name: str, weight: Tensor) -> Tensor:
    """Return the L2 norm of each filter, as ``Channel()`` computes it: a saliency can be a plain function."""
    return weight.flatten(1).norm(dim=1)


# Filters of the convolutional network; BatchNorm statistics are re-estimated after each, as is recommended.
OF_UNITS = [
    Method("L2 norm", WEIGHTS, saliency.Magnitude(), UNIFORM, bold=True),
    Method("FPGM", WEIGHTS, saliency.FPGM(), UNIFORM),
    Method("BatchNormScale", WEIGHTS, saliency.BatchNormScale(), UNIFORM, batches=1),
    Method("HRank", ACTIVATIONS, saliency.HRank(), UNIFORM, batches=4, bold=True),
    Method("APoZ", ACTIVATIONS, saliency.APoZ(), UNIFORM),
    Method("Sensitivity", GRADIENTS, saliency.Sensitivity(), UNIFORM),
    Method("ActivationTaylor", GRADIENTS, saliency.ActivationTaylor(), UNIFORM, bold=True),
    Method("Taylor, by unit", GRADIENTS, saliency.Taylor(by_unit=True), UNIFORM),
    Method("Shapley", ACTIVATIONS, saliency.Shapley(), UNIFORM, batches=2, bold=True),
    Method("Random", CONTROL, saliency.Random(), UNIFORM, bold=True),
    Method("Shapley, inverted", CONTROL, saliency.Shapley(), UNIFORM, batches=2, inverted=True, bold=True),
    Method("L2 norm, inverted", CONTROL, filter_norm, UNIFORM, inverted=True),
]
REPAIRS_OF_MLP = [
    Method("MLP: magnitude", WEIGHTS, saliency.Magnitude(), UNIFORM, rescore=True),
    Method("MLP: magnitude + Bias", WEIGHTS, saliency.Magnitude(), UNIFORM, [repair.Bias()], rescore=True),
    Method("MLP: magnitude + DSnoT", WEIGHTS, saliency.Magnitude(), UNIFORM, [repair.DSnoT()], rescore=True),
    Method("MLP: magnitude + SparseGPT", WEIGHTS, saliency.Magnitude(), UNIFORM, [repair.SparseGPT()], rescore=True),
    Method("MLP: Wanda", ACTIVATIONS, saliency.Wanda(), UNIFORM, rescore=True),
    Method("MLP: Wanda + DSnoT", ACTIVATIONS, saliency.Wanda(), UNIFORM, [repair.DSnoT()], rescore=True),
    Method("MLP: Wanda, OWL", ACTIVATIONS, saliency.Wanda(), allocation.OWL(), rescore=True),
    Method("MLP: Wanda + SparseGPT", ACTIVATIONS, saliency.Wanda(), UNIFORM, [repair.SparseGPT()], rescore=True),
]
BATCH_NORM = repair.BatchNorm()
REPAIRS_OF_CONV = [
    Method("conv: magnitude", WEIGHTS, saliency.Magnitude(), rescore=True),
    Method("conv: magnitude + Bias", WEIGHTS, saliency.Magnitude(), repair=[repair.Bias()], rescore=True),
    Method("conv: magnitude + DSnoT", WEIGHTS, saliency.Magnitude(), repair=[repair.DSnoT()], rescore=True),
    Method(
        "conv: magnitude + DSnoT, BatchNorm",
        WEIGHTS,
        saliency.Magnitude(),
        repair=[repair.DSnoT(), BATCH_NORM],
        rescore=True,
    ),
    Method("conv: magnitude + BatchNorm", WEIGHTS, saliency.Magnitude(), repair=[BATCH_NORM], rescore=True),
    Method(
        "conv: magnitude + BatchNorm, variance",
        WEIGHTS,
        saliency.Magnitude(),
        repair=[repair.BatchNorm(variance_repair=True)],
        rescore=True,
    ),
]
