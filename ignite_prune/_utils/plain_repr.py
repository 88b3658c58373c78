"""Representations that are the same in every process."""

from __future__ import annotations

import re
from typing import Any


def plain_repr(value: Any) -> str:
    """Return a value's representation without addresses.

    Example:
        >>> plain_repr(object())
        '<object object>'
    """
    return re.sub(r" at 0x[0-9a-fA-F]+", "", repr(value))
