"""Findings: the data of a report, as records."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor, nn

from ignite_prune.measure import Engines

Series = list[tuple[float, float]]
"""Points ``(step, value)``."""


@dataclass
class ReportSource:
    """What was read from a pruner, a file or a folder.

    Attributes:
        title: of the page.
        where: what it was read from.
        masks: bool masks by parameter name; None if there are none, and zeros count as pruned.
        state: the state_dict; empty if the source holds none.
        model: the model; None if the source is a file and none was given.
        asked: labels and texts: what the pruner was asked to do.
        curves: by name of the quantity, and by run.
        warnings: texts.
        file: the file that it was read from.
        sparsity_of: where the masks are from.
    """

    title: str
    where: str
    masks: Mapping[str, Tensor] | None = None
    state: Mapping[str, Tensor] = field(default_factory=dict)
    model: nn.Module | None = None
    asked: list[tuple[str, str]] = field(default_factory=list)
    curves: dict[str, dict[str, Series]] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    file: Path | None = None
    sparsity_of: str = "zeros"


@dataclass(frozen=True)
class LayerFinding:
    """A row of the table of layers; None is not known without a model, or without example inputs."""

    name: str
    kind: str
    shape: str
    parameters: int
    kept: int
    pattern: str
    flops: int | None = None
    effective_flops: int | None = None
    seconds: float | None = None

    @property
    def sparsity(self) -> float:
        """The pruned fraction."""
        return 1 - self.kept / self.parameters if self.parameters else 0.0


@dataclass(frozen=True)
class Size:
    """Bytes that a model takes in one format."""

    name: str
    bytes: int
    ratio: float
    note: str


@dataclass(frozen=True)
class Picture:
    """A mask as a PNG image."""

    name: str
    png: bytes
    width: int
    height: int
    sparsity: float


@dataclass(frozen=True)
class Findings:
    """All that a page shows."""

    title: str
    where: str
    asked: list[tuple[str, str]]
    layers: list[LayerFinding]
    total: LayerFinding
    thin: list[str]
    curves: dict[str, dict[str, Series]]
    pictures: list[Picture]
    sizes: list[Size]
    engines: Engines | None
    environment: list[tuple[str, str]]
    warnings: list[str]
