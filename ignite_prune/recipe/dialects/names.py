"""Names of parameters in Neural Compressor's 1.x files."""

from __future__ import annotations

import re
from typing import Any


def params_of_names(names: Any) -> Any:
    """Return rules for names of parameters, in which ``*`` stands for a layer's number."""
    if not names:
        return {"layers": ["Linear", "Conv1d", "Conv2d", "Conv3d"]}
    listed = [names] if isinstance(names, str) else names
    if not isinstance(listed, list) or not all(isinstance(each, str) for each in listed):
        raise ValueError(f"names should be a list of parameters, but given {names!r:.80}")
    rules = [{"regex": re.escape(e).replace(r"\*", r"\d+") + "$"} if "*" in e else e for e in listed]
    return rules[0] if len(rules) == 1 else rules
