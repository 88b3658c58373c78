"""Hostile states: every node of a state dict is replaced by what does not belong there.

Right: ``load_state_dict`` raises TypeError or ValueError and nothing has changed, to the bit; or it loads, and training
and ``state_dict()`` work, or raise an error that names what is wrong. :func:`attacked` tries a seeded sample of the
states of one run of the catalogue, and yields what went wrong; at scale::

    python -m tests.hostile 700 3 learnt rounds   # states of each object, a seed, parts of the names of runs
"""

from __future__ import annotations

import copy
import random
import sys
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from ignite.engine import Events
from torch import Tensor

from ignite_prune.saliency import NonFiniteSaliency
from tests.catalogue import HANDLERS, SALIENCIES, SPARSIFIERS
from tests.catalogue.runs import Run, build
from tests.models import assert_same_bits

Path = tuple[Any, ...]
PLAIN: list[tuple[str, Any]] = [
    *(
        (repr(value), value)
        for value in (None, True, "x", "", b"x", -1, 0, 1, 7, 2**70, -(2**70), 0.5, -0.5, 1e308, 1j)
    ),
    *(
        (repr(value), value)
        for value in (float("nan"), float("inf"), [], [None], [[1]], {}, {"x": 1}, {1: {}}, (), {1})
    ),
    ("an ellipsis", ...),
    ("an empty tensor", torch.zeros(0)),
    ("a scalar tensor", torch.tensor(1.0)),
    ("an int tensor", torch.tensor([1, 2])),
    ("a bool tensor", torch.tensor([True, False])),
    ("a meta tensor", torch.zeros(2, device="meta")),
    ("an empty uint8 tensor", torch.zeros(0, dtype=torch.uint8)),
]
"""What replaces any node."""


def _other_tensors(value: Tensor) -> Iterator[tuple[str, Any]]:
    yield "meta", value.to("meta")
    yield "float64", value.to(torch.float64)
    yield "float16", value.to(torch.float16)
    yield "int64", value.to(torch.int64) if not value.is_complex() else value
    yield "bool", value.bool()
    yield "complex", value.to(torch.complex64)
    yield "sparse", value.to_sparse()
    yield "one more dimension", value.unsqueeze(0)
    yield "flat", value.reshape(-1)
    yield "twice", torch.cat([value.reshape(-1)] * 2)
    yield "one less", value.reshape(-1)[:-1]
    yield "a list", value.tolist()
    yield "numpy", value.numpy()
    yield "ones", torch.ones_like(value)
    if value.is_floating_point():
        yield "NaNs", torch.full_like(value, float("nan"))
        yield "infinities", torch.full_like(value, float("inf"))
        yield "negative", -value.abs() - 1
        yield "with grad", value.clone().requires_grad_()
        yield "expanded", value.new_zeros(()).expand(value.shape)
    if value.dtype == torch.uint8:
        yield "full bytes", torch.full_like(value, 255)
        yield "flipped", 255 - value
    if value.ndim > 1:
        yield "transposed", value.transpose(0, 1)


def replacements(value: Any) -> Iterator[tuple[str, Any]]:
    """Yield what replaces a node, with a name."""
    yield from PLAIN
    if isinstance(value, Tensor):
        yield from _other_tensors(value)
    elif isinstance(value, Mapping):
        yield "a key more", {**value, "more": 1}
        yield "an int key more", {**value, 3: None}
        yield "items", list(value.items())
        for key in value:
            yield f"without {key!r}", {k: v for k, v in value.items() if k != key}
    elif isinstance(value, list | tuple):
        yield "an entry more", type(value)([*value, *(value[-1:] or [0])])
        yield "an entry less", value[:-1]
        yield "the other kind of sequence", tuple(value) if isinstance(value, list) else list(value)
        yield "backwards", value[::-1]
        yield "a dict", dict(enumerate(value))
    elif type(value) in (int, float):
        yield from (
            ("negated", -value),
            ("one more", value + 1),
            ("a tensor", torch.tensor(value)),
            ("a str", str(value)),
        )
        yield "a wide tensor", torch.full((2,), value)


def nodes(state: Any, path: Path = ()) -> Iterator[tuple[Path, Any]]:
    """Yield each node of a nest with its path."""
    yield path, state
    nest = isinstance(state, list | tuple)
    items = state.items() if isinstance(state, Mapping) else enumerate(state) if nest else ()
    for key, value in items:
        yield from nodes(value, (*path, key))


def replaced(state: Any, path: Path, value: Any) -> Any:
    """Return a nest with one node replaced; the others are shared."""
    if not path:
        return value
    made: Any = list(state) if isinstance(state, tuple) else type(state)(state)
    made[path[0]] = replaced(state[path[0]], path[1:], value)
    return tuple(made) if isinstance(state, tuple) else made


def hostile_states(state: Any) -> Iterator[tuple[str, Any]]:
    """Yield every state with one node replaced, with a name."""
    for path, node in nodes(state):
        for name, value in replacements(node):
            yield f"{'.'.join(map(str, path)) or 'the whole'} = {name}", replaced(state, path, value)


def sampled(state: Any, number: int, seed: int) -> list[tuple[str, Any]]:
    """Return some of the hostile states, drawn with a seed."""
    whole = list(hostile_states(state))
    return random.Random(seed).sample(whole, min(number, len(whole)))


def attack(run: Run, name: str, state: Any, before: Any) -> str:
    """Load a state into one of a run's objects and train on; return "refused", "loaded", or what went wrong.

    Args:
        run: attached, not started.
        name: of the object.
        state: what is loaded.
        before: a copy of ``run.state()``.
    """
    given = copy.deepcopy(state)
    try:
        run.objects[name].load_state_dict(state)
    except (TypeError, ValueError) as error:
        told = f"{type(error).__name__}: {error!s:.200}"
        try:
            assert_same_bits(run.state(), before)
        except AssertionError as problem:
            return f"changed {problem!s:.100} though refused by {told}"
        return "refused"
    except Exception as error:
        return f"refused by {type(error).__name__}: {error!s:.200}"
    try:
        run.start()
        copy.deepcopy(run.state())
        assert_same_bits(state, given, "changed in the loaded state: ")
    except (TypeError, ValueError) as error:
        return "loaded" if isinstance(error, NonFiniteSaliency) else f"named later: {error!s:.200}"
    except Exception as error:
        return f"a crash later, {type(error).__name__}: {error!s:.200}"
    return "loaded"


def runs() -> dict[str, dict[str, Any]]:
    """Return the options of :func:`tests.catalogue.runs.build` by name: everything that has a state of its own."""
    found: dict[str, dict[str, Any]] = {f"handler {row}": {"handler": row.name} for row in HANDLERS}
    for index, row in enumerate(SALIENCIES):
        pattern = {"pattern": "filter"} if row.notes.get("units") else {}
        options = {"saliency": row.name, "event": "spaced", "keep_dense": index % 2 == 0}
        found[f"saliency {row}"] = {**options, **pattern}
    found |= {f"sparsifier {row}": {"sparsifier": row.name} for row in SPARSIFIERS}
    return {**found, "shrinks": {"shrinks": "taylor"}, "rounds": {"rounds": 2}, "repair": {"repair": "three"}}


def attacked(options: dict[str, Any], number: int, seed: int) -> Iterator[tuple[str, str]]:
    """Yield "object.path = value" and the outcome, see :func:`attack`, of some hostile states of a run."""
    states: dict[str, Any] = {}
    run = build(**options)
    run.attach()
    run.trainer.add_event_handler(Events.ITERATION_COMPLETED(once=5), lambda: states.update(copy.deepcopy(run.state())))
    run.start()
    run.detach()

    def fresh() -> tuple[Run, Any]:
        again = build(3, **options)
        again.attach()
        if "shrinker" not in again.objects:
            again.load(copy.deepcopy(states))
        return again, copy.deepcopy(again.state())

    for name in set(run.objects) - {"model", "optimizer", "trainer", "lr"}:
        again, before = fresh()
        for where, state in sampled(states[name], number, seed):
            outcome = attack(again, name, state, before)
            yield f"{name}.{where}", outcome
            if outcome != "refused":
                again.detach()
                again, before = fresh()
        again.detach()


if __name__ == "__main__":
    warnings.filterwarnings("ignore")
    for title, options in runs().items():
        if any(part in title for part in sys.argv[3:]) or not sys.argv[3:]:
            outcomes = list(attacked(options, int(sys.argv[1]), int(sys.argv[2])))
            sys.stdout.write(f"{title} {dict(Counter(outcome.split(':')[0][:60] for _, outcome in outcomes))}\n")
            for where, outcome in outcomes:
                if outcome not in ("refused", "loaded"):
                    sys.stdout.write(f"    {where} | {outcome:.250}\n")
