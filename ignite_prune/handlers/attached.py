"""What every handler is that owns something on a model: attached to one engine at a time, until it is finished."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ignite.engine import Engine
from torch import nn

from ignite_prune.core.selection import named_parameters
from ignite_prune.handlers.attachment import Attachment


class Attached:
    """Whether it is attached, and whether it may be."""

    _attachment: Attachment | None = None
    _finished = False

    def _check_attachable(self, engine: Any) -> None:
        self._check_usable()
        if not isinstance(engine, Engine):
            raise TypeError(f"Argument engine should be an ignite.engine.Engine, but given {type(engine)}")
        if self._attachment is not None:
            raise ValueError(f"This {type(self).__name__} is attached already; detach() it first")

    def _let_go(self) -> None:
        """Take every handler off the engine."""
        if self._attachment is not None:
            self._attachment.remove()
            self._attachment = None

    def _check_usable(self) -> None:
        if self._finished:
            raise ValueError(f"This {type(self).__name__} is finished: finalize() was called; make a new one")


def check_same(model: nn.Module, parameters: Mapping[str, nn.Parameter], handler: str) -> None:
    """Raise where the model has other parameter objects by now than those that a handler acts on.

    Args:
        model: unwrapped.
        parameters: as they were.
        handler: what to make anew.

    Raises:
        ValueError: names a parameter.
    """
    now = named_parameters(model)
    replaced = [name for name, parameter in parameters.items() if now.get(name) is not parameter]
    if replaced:
        raise ValueError(
            f"Parameter {replaced[0]!r} of the model has been replaced by another object (a layer was exchanged or "
            f"sliced, or a state_dict loaded with assign=True); make a new {handler}"
        )
