"""Hostile arguments: every argument of the public constructors and functions is replaced by what does not belong there.

Right: TypeError or ValueError, or it is accepted; never another exception. Endless ones are not tried.
"""

from __future__ import annotations

import inspect
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import islice, product
from typing import Any

import torch
from torch import nn

from ignite_prune import (
    PruneHandler,
    activation,
    allocation,
    functional,
    handlers,
    pattern,
    prune_model,
    regrow,
    regularise,
    repair,
    saliency,
    schedule,
)
from ignite_prune.core.mask_store import MaskStore
from ignite_prune.structure import trace
from tests.hostile import PLAIN
from tests.models import batches, small_net

VALUES = [
    *PLAIN,
    ("10**400", 10**400),
    ("-10**400", -(10**400)),
    ("a wide tensor", torch.ones(3)),
    ("NaN tensor", torch.tensor(float("nan"))),
    ("an object", object()),
    ("a type", int),
    ("a lambda", lambda: None),
    ("a module", nn.Linear(2, 2)),
    ("{'params': 3}", {"params": 3}),
    ("[{}]", [{}]),
    ("[{'params': None, 'x': 1}]", [{"params": None, "x": 1}]),
]


def _pruner(**options: Any) -> PruneHandler:
    model = small_net()
    return PruneHandler(model, torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9), **options)


def _handler(kind: Any, **given: Any) -> Callable[..., Any]:
    def make(**options: Any) -> Any:
        model = small_net()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        names = inspect.signature(kind).parameters
        held = {"model": model, **({"optimizer": optimizer} if "optimizer" in names else {}), **given}
        return kind(**{**held, **options})

    return make


def _names(function: Any) -> list[str]:
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return [name for name, p in inspect.signature(function).parameters.items() if p.kind in kinds]


def calls() -> dict[str, tuple[Callable[..., Any], list[str]]]:
    """Return a function of keywords, and the keywords to spoil, by name."""
    found: dict[str, tuple[Callable[..., Any], list[str]]] = {}
    for room in (saliency, pattern, allocation, schedule, repair, regrow, activation, regularise):
        for name in room.__all__:
            kind = getattr(room, name)
            if inspect.isclass(kind) and not inspect.isabstract(kind) and not issubclass(kind, Exception):
                needed = {"sparsity": 0.5, "final": 0.5, "begin": 0, "end": 4, "at": 1, "rate": 0.5, "every": 1}
                fields = _names(kind)
                given = {k: v for k, v in needed.items() if k in fields}
                found[f"{room.__name__.split('.')[-1]}.{name}"] = (
                    lambda kind=kind, given=given, **options: kind(**{**given, **options}),
                    fields,
                )
    made = {
        "PruneHandler": (_pruner, _names(PruneHandler)),
        "prune_model": (
            lambda **o: prune_model(**{"model": small_net(), "sparsity": 0.5, **o}),
            _names(prune_model),
        ),
        "step": (lambda **o: _pruner().step(**o), ["sparsity", "at"]),
        "attach": (lambda **o: _pruner().attach(**o), ["engine", "event", "name"]),
        "MaskStore": (lambda **o: MaskStore(**{"parameters": small_net(), **o}), ["parameters", "masks", "whole"]),
        "update": (lambda **o: MaskStore(small_net()).update(**o), ["masks"]),
        "apply_": (lambda **o: _pruner().masks.apply_(**o), ["model"]),
        "load_state_dict": (lambda **o: MaskStore(small_net()).load_state_dict(**o), ["state"]),
        "trace": (
            lambda **o: trace(**{"model": small_net(), "example_inputs": batches(1)[0][0], **o}),
            _names(trace),
        ),
    }
    for name in ("mask", "prune", "prune_"):
        function = getattr(functional, name)
        tensors = {"tensor": torch.randn(4, 4), "amount": 0.5}
        made[name] = (lambda function=function, **o: function(**{**tensors, **o}), _names(function))
    for kind, given in (
        (handlers.SET, {"sparsity": 0.5}), (handlers.RigL, {"sparsity": 0.5}), (handlers.SRigL, {"sparsity": 0.5}),
        (handlers.SparseMomentum, {"sparsity": 0.5}), (handlers.TopKAST, {"sparsity": 0.5}), (handlers.SRSTE, {}),
        (handlers.GroupLasso, {"strength": 0.1, "pattern": pattern.Channel()}), (handlers.Slimming, {"strength": 0.1}),
        (handlers.LearntSparsity, {"strength": 0.1}),
        (handlers.ActivationSparsity, {"layers": {"0": activation.TopK(0.5)}}),
        (handlers.AlternatingSparse, {"sparsity": 0.5, "begin": 1, "phase": 1, "end": 3}),
    ):  # fmt: skip
        made[kind.__name__] = (_handler(kind, **given), _names(kind))
    return {**found, **made}


def attack(call: Callable[..., Any], given: dict[str, Any]) -> str:
    """Return "refused", "accepted" or the other exception of a call."""
    try:
        call(**given)
    except (TypeError, ValueError):
        return "refused"
    except Exception as error:
        return f"{type(error).__name__}: {error!s:.150}"
    return "accepted"


def attacked(name: str, every: int = 1) -> Iterator[tuple[str, str]]:
    """Yield "function(argument=value)" and "refused", "accepted" or the other exception, of every n-th value."""
    call, arguments = calls()[name]
    for argument, (told, value) in islice(product(arguments, VALUES), 0, None, every):
        yield f"{name}({argument}={told})", attack(call, {argument: value})


if __name__ == "__main__":
    warnings.filterwarnings("ignore")
    outcomes = {where: outcome for name in sys.argv[1:] or calls() for where, outcome in attacked(name)}
    for where, outcome in outcomes.items():
        if outcome not in ("refused", "accepted"):
            sys.stdout.write(f"{where} | {outcome}\n")
    sys.stdout.write(f"{Counter(o if o in ('refused', 'accepted') else 'other' for o in outcomes.values())}\n")
