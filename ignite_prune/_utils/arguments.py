"""Checks of arguments, with uniform error messages."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Sequence
from typing import Any

import torch

LARGEST = sys.float_info.max


def check_positive(argument: str, value: Any, whole: bool = False) -> None:
    """Raise TypeError or ValueError unless an argument is a finite number above 0 (``whole``: an int of at least 1)."""
    if whole:
        if type(value) is not int:
            raise TypeError(f"Argument {argument} should be an int, but given {value!r}")
        if value < 1:
            raise ValueError(f"Argument {argument} should be at least 1, but given {value}")
    elif isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value <= LARGEST:
        raise ValueError(f"Argument {argument} should be a finite number above 0, but given {value!r}")


def check_finite(argument: str, value: Any) -> float:
    """Return an argument; raise TypeError or ValueError unless it is a finite number."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"Argument {argument} should be a number, but given {value!r}")
    if not -LARGEST <= value <= LARGEST:  # an int may be too large for a float
        raise ValueError(f"Argument {argument} should be finite, but given {value!r}")
    return value


def check_is(argument: str, value: Any, kind: type) -> None:
    """Raise TypeError unless an argument is an instance of ``kind``."""
    if not isinstance(value, kind):
        raise TypeError(f"Argument {argument} should be a {kind.__name__}, but given {value!r}")


def check_seed(value: Any) -> None:
    """Raise TypeError or ValueError unless an argument ``seed`` is an int that ``torch.Generator`` accepts."""
    if type(value) is not int:
        raise TypeError(f"Argument seed should be an int, but given {value!r}")
    if not -(2**63) <= value < 2**63:
        raise ValueError(f"Argument seed should be in [-2**63, 2**63), but given {value}")


def check_generator(value: Any) -> None:
    """Raise TypeError unless an argument ``generator`` is None or a ``torch.Generator``."""
    if value is not None and not isinstance(value, torch.Generator):
        raise TypeError(f"Argument generator should be a torch.Generator, but given {value!r}")


def check_generator_state(generator: torch.Generator, state: Any) -> None:
    """Raise if a checkpoint's state does not fit a generator, which is not changed."""
    try:
        torch.Generator(device=generator.device).set_state(state.cpu())
    except (AttributeError, TypeError, RuntimeError) as error:
        raise ValueError(f"The checkpoint's generator state is damaged: {error}") from None


def check_callable(argument: str, value: Any) -> None:
    """Raise TypeError unless an argument is None or callable."""
    if value is not None and not callable(value):
        raise TypeError(f"Argument {argument} should be callable, but given {value!r}")


def near(name: str, names: Sequence[str]) -> str:
    """Return the end of an error message about an unknown ``name``: near matches, or the first of ``names``."""
    close = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    if close:
        return f"near matches: {', '.join(map(repr, close))}"
    shown = ", ".join(map(repr, list(names)[:6]))
    return f"there are {shown}{', ...' if len(names) > 6 else ''}"
