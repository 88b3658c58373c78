"""What a weight is worth: formulas, one family a file. Larger = more important.

Example:
    >>> import torch
    >>> from ignite_prune import saliency
    >>> saliency.Magnitude()("fc.weight", torch.tensor([[-2.0, 0.5]]))
    tensor([[2.0000, 0.5000]])
"""

from ignite_prune.saliency.activation import ActivationTaylor, APoZ, BatchNormScale, HRank, Sensitivity
from ignite_prune.saliency.base import Bound, Informed, MissingEvidence, NonFiniteSaliency, Saliency, as_saliency
from ignite_prune.saliency.change import Change
from ignite_prune.saliency.fpgm import FPGM
from ignite_prune.saliency.given import FromCallable, Given
from ignite_prune.saliency.gradient import Gradient, Movement, Taylor
from ignite_prune.saliency.grasp import GraSP
from ignite_prune.saliency.heads import HeadImportance
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
