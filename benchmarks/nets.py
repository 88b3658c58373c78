"""The networks that are measured."""

from __future__ import annotations

import itertools
import math

import torch
from torch import Tensor, nn

SIZE = 1024
MATRICES = 24


class Stack:
    """A chain of square linear layers without bias, and a copy of their initial values.

    Args:
        matrices: number of 1024×1024 matrices.
        dtype: dtype of the weights.
        device: device of the weights.
        relu: whether a ReLU follows each layer.
    """

    def __init__(
        self, matrices: int, device: torch.device, dtype: torch.dtype = torch.float32, relu: bool = False
    ) -> None:
        generator = torch.Generator(device).manual_seed(0)
        scale = math.sqrt((2 if relu else 1) / SIZE)  # keeps activations at a constant scale: denormal numbers are slow
        self.start = [
            torch.randn(SIZE, SIZE, generator=generator, device=device).mul_(scale).to(dtype) for _ in range(matrices)
        ]
        layers = [nn.utils.skip_init(nn.Linear, SIZE, SIZE, bias=False, device=device, dtype=dtype) for _ in self.start]
        self.model = nn.Sequential(*[part for layer in layers for part in ((layer, nn.ReLU()) if relu else (layer,))])
        self.layers = layers
        self.copy()

    @torch.no_grad()
    def copy(self) -> None:
        """Copy the initial weights: the unit of all measurements, and a reset of the model to dense."""
        for layer, start in zip(self.layers, self.start):
            layer.weight.copy_(start)

    @property
    def numel(self) -> int:
        return len(self.start) * SIZE * SIZE

    @property
    def nbytes(self) -> int:
        return self.numel * self.start[0].element_size()


class _Block(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.first = nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()
        )
        self.second = nn.Sequential(nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False), nn.BatchNorm2d(outputs))
        self.skip: nn.Module = nn.Identity()
        if stride > 1 or inputs != outputs:
            self.skip = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.second(self.first(x)) + self.skip(x))


def resnet18(imagenet_stem: bool = False) -> nn.Sequential:
    """Return a network with ResNet-18's architecture and 10 classes: 11.2 M parameters.

    The stem is the usual one for 32×32 images (3×3, stride 1); with ImageNet's stem (7×7, stride 2, pooling) the same
    weights take a sixteenth of the operations.
    """
    stem = [nn.Conv2d(3, 64, 3, 1, 1, bias=False), nn.BatchNorm2d(64), nn.ReLU()]
    if imagenet_stem:
        stem = [nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(3, 2, 1)]
    widths = [64, 64, 128, 256, 512]
    blocks = [
        _Block(inputs if first else outputs, outputs, 2 if first and outputs > 64 else 1)
        for inputs, outputs in itertools.pairwise(widths)
        for first in (True, False)
    ]
    return nn.Sequential(*stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, 10))
