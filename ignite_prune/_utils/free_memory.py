"""Free memory of a device, and the refusal of what would not fit."""

from __future__ import annotations

import os
from contextlib import suppress

import torch


def check_memory(size: int, device: torch.device, what: str, advice: str) -> None:
    """Raise ValueError before an allocation of ``size`` bytes that would not fit; give both figures."""
    free = _free_memory(device)
    if free is not None and size > free:
        raise ValueError(f"{what} would take {_readable(size)}, but {device} has {_readable(free)} free; {advice}")


def _readable(size: int) -> str:
    power = min(max(size.bit_length() - 1, 0) // 10, 4)
    return f"{size / 1024**power:.4g} {('B', 'KiB', 'MiB', 'GiB', 'TiB')[power]}"


def _free_memory(device: torch.device) -> int | None:
    if device.type == "cuda":  # memory that torch reserves and does not use is free too
        idle = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + idle
    with suppress(OSError), open("/proc/meminfo") as lines:
        for line in lines:
            if line.startswith("MemAvailable"):
                return int(line.split()[1]) * 1024
    with suppress(ValueError, OSError, AttributeError):
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return None
