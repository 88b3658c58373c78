"""LogRecord: the values of a pruner that are logged at one step, independent of the logger."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

_LISTED = 6  # layers that a line of text names


@dataclass(frozen=True)
class LogRecord:
    """Everything that is logged at one step, by tag.

    Args:
        step: of the attached event, or what ``global_step_transform`` returns.
        scalars: sparsities and numbers of flipped mask entries.
        pictures: float tensors ``(3, height, width)`` in [0, 1], on the CPU.
        histograms: float tensors of one dimension, on the CPU.
        sparsities: of the parameters by name, and ``"global"``.
    """

    step: int
    scalars: dict[str, float] = field(default_factory=dict)
    pictures: dict[str, Tensor] = field(default_factory=dict)
    histograms: dict[str, Tensor] = field(default_factory=dict)
    sparsities: dict[str, float] = field(default_factory=dict)

    def text(self, tag: str = "") -> str:
        """Return the sparsities as one line: the global one, then the layers, at most six of them.

        Args:
            tag: what the line begins with.

        Example:
            >>> LogRecord(3, sparsities={"global": 0.5, "0.weight": 0.625, "2.weight": 0.25}).text()
            'sparsity 0.5000 at step 3 (0.weight 0.6250, 2.weight 0.2500)'
        """
        layers = [f"{name} {value:.4f}" for name, value in self.sparsities.items() if name != "global"]
        more = [f"{len(layers) - _LISTED} more"] if len(layers) > _LISTED else []
        listed = ", ".join(layers[:_LISTED] + more)
        line = f"{tag}sparsity {self.sparsities['global']:.4f} at step {self.step}"
        return f"{line} ({listed})" if listed else line


def as_bytes(picture: Tensor) -> Tensor:
    """Return a picture as uint8 ``(height, width, 3)``, the form of most libraries.

    Example:
        >>> import torch
        >>> as_bytes(torch.ones(3, 1, 2)).tolist()
        [[[255, 255, 255], [255, 255, 255]]]
    """
    return (picture.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).contiguous()
