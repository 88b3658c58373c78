"""Small models and data that every test shares."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn


def small_net(seed: int = 0) -> nn.Sequential:
    """A conv net whose weights every catalogue pattern fits: (8, 4, 3, 3), (16, 128), (4, 16)."""
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(4, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.AvgPool2d(2),
        nn.Flatten(),
        nn.Linear(128, 16),
        nn.Tanh(),
        nn.Linear(16, 4),
    )


class Net(nn.Module):
    """Layers by keyword, and a forward function of ``(net, *inputs)``."""

    def __init__(self, forward: Any, **layers: nn.Module) -> None:
        super().__init__()
        self.function = forward
        for name, layer in layers.items():
            setattr(self, name, layer)

    def forward(self, *inputs: Any) -> Any:
        return self.function(self, *inputs)


class Attention(nn.Module):
    """Self-attention over the channels of :func:`batches`' images: heads 8, of 8 each."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(64, 8, batch_first=True)
        self.out = nn.Linear(64, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x.flatten(2)
        return self.out((x + self.attention(x, x, x, need_weights=False)[0]).mean(1))


def attention_net(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return Attention()


WEIGHTS = ["0.weight", "5.weight", "7.weight"]


def batches(n: int = 5, seed: int = 1) -> list[tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    return [
        (torch.randn(6, 4, 8, 8, generator=generator), torch.randint(4, (6,), generator=generator)) for _ in range(n)
    ]


def train_step(model: nn.Module, optimizer: Any, batch: Any, closure: bool = False) -> None:
    def backward() -> torch.Tensor:
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(batch[0]), batch[1])
        loss.backward()
        return loss

    if closure:
        optimizer.step(backward)
    else:
        backward()
        optimizer.step()


def assert_zero(pruner: Any, *optimizers: torch.optim.Optimizer) -> None:
    """Law 4: weight, gradient and every slot are exactly 0 where pruned."""
    for name, parameter in pruner.masks.parameters.items():
        gone = ~pruner.masks[name]
        assert not parameter.detach()[gone].any(), f"{name} revived"
        if parameter.grad is not None and not parameter.grad.is_sparse:
            assert not parameter.grad[gone].any(), f"the gradient of {name} revived"
        for optimizer in optimizers:
            if not f"{type(optimizer).__module__}.".startswith("torch.optim."):
                continue  # which of its slots are moments is not known; tests/laws/test_optimizers.py
            for slot, value in optimizer.state.get(parameter, {}).items():
                if isinstance(value, torch.Tensor) and value.shape == parameter.shape:
                    assert not value[gone].any(), f"{slot} of {name} revived"


def assert_same_bits(a: Any, b: Any, path: str = "result") -> None:
    """Same structure, same types, same bits in every tensor."""
    assert type(a) is type(b), path
    if isinstance(a, torch.Tensor):
        assert a.dtype == b.dtype and a.shape == b.shape, path
        assert torch.equal(a.contiguous().view(torch.uint8), b.contiguous().view(torch.uint8)) if a.ndim else a == b, (
            path
        )
    elif isinstance(a, dict):
        assert list(a) == list(b), path
        for key in a:
            assert_same_bits(a[key], b[key], f"{path}.{key}")
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b), path
        for index, (x, y) in enumerate(zip(a, b)):
            assert_same_bits(x, y, f"{path}[{index}]")
    else:
        assert a == b or (a != a and b != b), path  # NaN
