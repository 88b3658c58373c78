"""Reads tests/golden."""

import functools
from pathlib import Path

import numpy as np
import torch


@functools.cache
def arrays(name: str) -> dict[str, np.ndarray]:
    with np.load(Path(__file__).parent / "golden" / f"{name}.npz", allow_pickle=False) as file:
        return dict(file)


def tensor(name: str, key: str) -> torch.Tensor:
    return torch.from_numpy(arrays(name)[key].copy())


def keys(name: str, start: str = "", end: str = "") -> list[str]:
    return [key for key in arrays(name) if key.startswith(start) and key.endswith(end)]
