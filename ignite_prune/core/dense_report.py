"""One warning about the tensors that the default selection leaves dense, if they are much of the model."""

from __future__ import annotations

import re
import sys
import warnings
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

from torch import nn
from torch.nn.parameter import UninitializedParameter

from ignite_prune.core.weight_kinds import Kind

_PACKAGE = Path(__file__).parents[1]
KNOWN_SHARE = 0.5
"""Embeddings and other tensors that are no weights may hold this share of a model without a warning."""
UNKNOWN_SHARE = 0.1
"""Tensors that no rule knows may hold this share of a model without a warning."""


def warn_of_dense(everything: Mapping[str, nn.Parameter], left: Mapping[str, Kind], computed: set[str]) -> None:
    """Warn once of reparametrised layers, and of tensors left dense that hold much of the model.

    Args:
        everything: the model's parameters by name.
        left: the tensors of two dimensions or more that are neither selected nor named by the user.
        computed: the weights that a parametrisation computes.
    """
    texts = []
    if computed:
        texts.append(
            "Left out of pruning, as their layers are reparametrised (spectral norm, weight norm, ...): "
            f"{', '.join(sorted(computed))}"
        )
    sizes = {name: p.numel() for name, p in everything.items() if not isinstance(p, UninitializedParameter)}
    dense = {name: sizes[name] for name in left}
    unknown = sum(size for name, size in dense.items() if left[name] is Kind.UNKNOWN)
    whole = sum(sizes.values())
    if unknown >= UNKNOWN_SHARE * whole > 0 or sum(dense.values()) > KNOWN_SHARE * whole:
        texts.append(_described(dense, left, whole))
    if texts:
        warnings.warn(". ".join(texts), stacklevel=_callers())


def _described(dense: Mapping[str, int], left: Mapping[str, Kind], whole: int) -> str:
    groups: defaultdict[str, int] = defaultdict(int)
    for name, size in dense.items():
        groups[_glob(name)] += size
    largest = sorted(groups, key=groups.__getitem__, reverse=True)
    named = ", ".join(f"{glob} ({groups[glob] / whole:.1%})" for glob in largest[:8])
    unknown = [glob for glob in largest if any(left[n] is Kind.UNKNOWN for n in dense if _glob(n) == glob)]
    why = f"No rule says whether {', '.join(unknown[:4])} multiplies inputs. " if unknown else ""
    return (
        f"Left dense by the default selection: {sum(dense.values()) / whole:.0%} of the model: {named}"
        f"{', ...' if len(largest) > 8 else ''}. {why}The sparsity counts the selected parameters alone. To prune "
        "these too, name all that should be pruned in params= (layer types, names or globs); to leave them dense "
        "without this warning, name them in exclude="
    )


def _callers() -> int:
    """Return the stack level of the user's line, seen from the caller of this function."""
    frame, level = sys._getframe(1), 1
    while frame.f_back is not None and Path(frame.f_code.co_filename).is_relative_to(_PACKAGE):
        frame, level = frame.f_back, level + 1
    return level


def _glob(name: str) -> str:
    """Return a name with ``*`` for the numbers of layers."""
    return re.sub(r"(?<=\.)\d+(?=\.)", "*", name)
