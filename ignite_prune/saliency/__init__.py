"""Saliency criteria: formulas that score weights, larger = more important. One family per file.

Example:
    >>> import torch
    >>> from ignite_prune import saliency
    >>> saliency.Magnitude()("fc.weight", torch.tensor([[-2.0, 0.5]]))
    tensor([[2.0000, 0.5000]])
"""

from typing import TYPE_CHECKING

from ignite_prune._utils.lazy import importer

if TYPE_CHECKING:
    from ignite_prune.saliency.activation_taylor import ActivationTaylor
    from ignite_prune.saliency.apoz import APoZ
    from ignite_prune.saliency.base import Bound, Informed, MissingEvidence, NonFiniteSaliency, Saliency
    from ignite_prune.saliency.batch_norm_scale import BatchNormScale
    from ignite_prune.saliency.change import Change
    from ignite_prune.saliency.fpgm import FPGM
    from ignite_prune.saliency.from_callable import FromCallable, as_saliency
    from ignite_prune.saliency.given import Given
    from ignite_prune.saliency.gradient import Gradient
    from ignite_prune.saliency.grasp import GraSP
    from ignite_prune.saliency.heads import HeadImportance
    from ignite_prune.saliency.hrank import HRank
    from ignite_prune.saliency.inverted import Inverted
    from ignite_prune.saliency.magnitude import Magnitude
    from ignite_prune.saliency.movement import Movement
    from ignite_prune.saliency.needs import Memory
    from ignite_prune.saliency.obd import OBD, EmpiricalFisher, Exact, GaussNewton, Hutchinson
    from ignite_prune.saliency.obs import OBS
    from ignite_prune.saliency.random import Random
    from ignite_prune.saliency.sensitivity import Sensitivity
    from ignite_prune.saliency.shapley import Shapley
    from ignite_prune.saliency.snip import SNIP, SNIPMomentum
    from ignite_prune.saliency.sparsegpt import SparseGPT
    from ignite_prune.saliency.synflow import SynFlow
    from ignite_prune.saliency.taylor import Taylor
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
    "ActivationTaylor": "activation_taylor",
    "APoZ": "apoz",
    "BatchNormScale": "batch_norm_scale",
    "HRank": "hrank",
    "Sensitivity": "sensitivity",
    "Bound": "base",
    "Informed": "base",
    "MissingEvidence": "base",
    "NonFiniteSaliency": "base",
    "Saliency": "base",
    "as_saliency": "from_callable",
    "Change": "change",
    "FPGM": "fpgm",
    "FromCallable": "from_callable",
    "Given": "given",
    "Gradient": "gradient",
    "Movement": "movement",
    "Taylor": "taylor",
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
    "OBS": "obs",
    "SparseGPT": "sparsegpt",
    "SynFlow": "synflow",
    "Wanda": "wanda",
}
if not TYPE_CHECKING:
    __getattr__, __dir__ = importer(__name__, _FILES)
