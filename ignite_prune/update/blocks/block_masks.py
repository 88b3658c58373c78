"""The masks of a model that was pruned block by block, with the report of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from ignite_prune._utils.table import as_table
from ignite_prune.core.mask_store import MaskStore


@dataclass(frozen=True)
class BlockReport:
    """One pruned block.

    Args:
        name: of the module.
        kept: number of kept entries of its pruned parameters.
        numel: number of their entries.
        seconds: time that gathering, pruning and running it took.
    """

    name: str
    kept: int
    numel: int
    seconds: float

    @property
    def sparsity(self) -> float:
        """The pruned fraction."""
        return 1 - self.kept / self.numel if self.numel else 0.0


@dataclass(frozen=True)
class BlocksReport:
    """A model that was pruned block by block; ``print(report)`` shows a table.

    Args:
        blocks: in the order of their calls.
        seconds: the time of all, without ``evaluate``.
        before, after: what ``evaluate`` returned before and after pruning; None without it.
    """

    blocks: tuple[BlockReport, ...]
    seconds: float
    before: Any = None
    after: Any = None

    @property
    def sparsity(self) -> float:
        """The pruned fraction of the pruned parameters of all blocks."""
        numel = sum(block.numel for block in self.blocks)
        return 1 - sum(block.kept for block in self.blocks) / numel if numel else 0.0

    def __str__(self) -> str:
        rows = [[b.name, f"{b.numel:,}", f"{b.kept:,}", f"{b.sparsity:.4f}", f"{b.seconds:.1f}"] for b in self.blocks]
        lines = [as_table(["block", "weights", "kept", "sparsity", "seconds"], rows)]
        if self.before is not None or self.after is not None:
            lines.append(f"before: {self.before}, after: {self.after}")
        return "\n".join(lines)


class BlockMasks(MaskStore):
    """The masks that :func:`~ignite_prune.prune_blocks` returns: a :class:`~ignite_prune.MaskStore` with a report.

    Attributes:
        report: how the blocks were pruned, and what ``evaluate`` returned.
    """

    def __init__(
        self,
        parameters: Mapping[str, nn.Parameter] | nn.Module,
        masks: Mapping[str, Tensor] | None = None,
        *given: Any,
        **also: Any,
    ) -> None:
        super().__init__(parameters, masks, *given, **also)
        self.report = BlocksReport((), 0.0)
