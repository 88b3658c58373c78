"""Growth scores of inactive connections: random, by gradient, by momentum."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from ignite_prune.regrow.base import Connections


class Growth(ABC):
    """Scores for the entries of a layer; inactive entries with the largest scores are grown."""

    @abstractmethod
    def scores(self, layer: Connections, generator: torch.Generator) -> Tensor:
        """Return the scores, of the weight's shape.

        Raises:
            ValueError: the layer's evidence is missing.
        """


@dataclass(frozen=True)
class Random(Growth):
    """Uniform random scores: growth of SET.

    References:
        Mocanu et al., "Scalable training of artificial neural networks with adaptive sparse connectivity inspired by
        network science", 2018, arXiv 1707.04780.
    """

    def scores(self, layer: Connections, generator: torch.Generator) -> Tensor:
        return torch.rand(layer.weight.shape, generator=generator, device=generator.device).to(layer.weight.device)


@dataclass(frozen=True)
class ByGradient(Growth):
    """Magnitude of the dense gradient, where the loss decreases fastest: growth of RigL.

    References:
        Evci et al., "Rigging the lottery", 2020, arXiv 1911.11134.
    """

    def scores(self, layer: Connections, generator: torch.Generator) -> Tensor:
        return _magnitude(layer, "the dense gradient")


@dataclass(frozen=True)
class ByMomentum(Growth):
    """Magnitude of the dense momentum, a running mean of gradients: growth of sparse momentum.

    References:
        Dettmers, Zettlemoyer, "Sparse networks from scratch", 2019, arXiv 1907.04840.
    """

    def scores(self, layer: Connections, generator: torch.Generator) -> Tensor:
        return _magnitude(layer, "the dense momentum")


def _magnitude(layer: Connections, what: str) -> Tensor:
    if layer.evidence is None:
        raise ValueError(f"Growing in {layer.name!r} needs {what}, but none has been gathered")
    return layer.evidence.detach().abs()
