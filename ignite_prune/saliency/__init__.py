"""What a weight is worth: formulas, one family a file. Larger = more important.

Example:
    >>> import torch
    >>> from ignite_prune import saliency
    >>> saliency.Magnitude()("fc.weight", torch.tensor([[-2.0, 0.5]]))
    tensor([[2.0000, 0.5000]])
"""

from typing import TYPE_CHECKING

from ignite_prune.lazy import importer

if TYPE_CHECKING:
    from ignite_prune.saliency.activation import ActivationTaylor, APoZ, BatchNormScale, HRank, Sensitivity
    from ignite_prune.saliency.base import Bound, Informed, MissingEvidence, NonFiniteSaliency, Saliency, as_saliency
    from ignite_prune.saliency.change import Change
    from ignite_prune.saliency.fpgm import FPGM
    from ignite_prune.saliency.given import FromCallable, Given
    from ignite_prune.saliency.gradient import Gradient, Movement, Taylor
    from ignite_prune.saliency.grasp import GraSP
    from ignite_prune.saliency.heads import HeadImportance
    from ignite_prune.saliency.inverted import Inverted
    from ignite_prune.saliency.magnitude import Magnitude
    from ignite_prune.saliency.needs import Memory
    from ignite_prune.saliency.obd import OBD, EmpiricalFisher, Exact, GaussNewton, Hutchinson
    from ignite_prune.saliency.random import Random
    from ignite_prune.saliency.shapley import Shapley
    from ignite_prune.saliency.snip import SNIP, SNIPMomentum
    from ignite_prune.saliency.surgeon import OBS, SparseGPT
    from ignite_prune.saliency.synflow import SynFlow
    from ignite_prune.saliency.wanda import Wanda

__all__ = [
    "FPGM",
    "OBD",
    "OBS",
    "SNIP",
    "APoZ",
    "ActivationTaylor",
    "BatchNormScale",
    "Bound",
    "Change",
    "EmpiricalFisher",
    "Exact",
    "FromCallable",
    "GaussNewton",
    "Given",
    "GraSP",
    "Gradient",
    "HRank",
    "HeadImportance",
    "Hutchinson",
    "Informed",
    "Inverted",
    "Magnitude",
    "Memory",
    "MissingEvidence",
    "Movement",
    "NonFiniteSaliency",
    "Random",
    "SNIPMomentum",
    "Saliency",
    "Sensitivity",
    "Shapley",
    "SparseGPT",
    "SynFlow",
    "Taylor",
    "Wanda",
    "as_saliency",
]

_FILES = {
    "ActivationTaylor": "activation",
    "APoZ": "activation",
    "BatchNormScale": "activation",
    "HRank": "activation",
    "Sensitivity": "activation",
    "Bound": "base",
    "Informed": "base",
    "MissingEvidence": "base",
    "NonFiniteSaliency": "base",
    "Saliency": "base",
    "as_saliency": "base",
    "Change": "change",
    "FPGM": "fpgm",
    "FromCallable": "given",
    "Given": "given",
    "Gradient": "gradient",
    "Movement": "gradient",
    "Taylor": "gradient",
    "GraSP": "grasp",
    "HeadImportance": "heads",
    "Inverted": "inverted",
    "Magnitude": "magnitude",
    "Memory": "needs",
    "OBD": "obd",
    "EmpiricalFisher": "obd",
    "Exact": "obd",
    "GaussNewton": "obd",
    "Hutchinson": "obd",
    "Random": "random",
    "Shapley": "shapley",
    "SNIP": "snip",
    "SNIPMomentum": "snip",
    "OBS": "surgeon",
    "SparseGPT": "surgeon",
    "SynFlow": "synflow",
    "Wanda": "wanda",
}
__getattr__ = importer(__name__, _FILES)
