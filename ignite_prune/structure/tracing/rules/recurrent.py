"""Rules of recurrent layers and cells."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ignite_prune.structure.tracing.rules.op import Op, Rule
from ignite_prune.structure.tracing.traced_tensor import Dim, TracedTensor, fixed


def lstm(op: Op, x: TracedTensor, hidden: Any, weights: Any, *args: Any) -> list[TracedTensor]:
    if isinstance(hidden, TracedTensor):  # a packed sequence: (data, batch_sizes, hidden, weights, ...)
        op.freeze(hidden.dims[0], "iterates over it")
        hidden, weights, args = weights, args[0], (*args[1:], False)
    return _recurrent(op, x, hidden, weights, args, gates=4)


def gru(op: Op, x: TracedTensor, hidden: Any, weights: Any, *args: Any) -> list[TracedTensor]:
    return _of_one(op, x, hidden, weights, args, gates=3)


def rnn(op: Op, x: TracedTensor, hidden: Any, weights: Any, *args: Any) -> list[TracedTensor]:
    return _of_one(op, x, hidden, weights, args, gates=1)


def _of_one(op: Op, x: TracedTensor, hidden: Any, weights: Any, args: Sequence[Any], gates: int) -> list[TracedTensor]:
    if isinstance(weights, TracedTensor):  # a packed sequence
        op.freeze(hidden.dims[0], "iterates over it")
        hidden, weights, args = weights, args[0], (*args[1:], False)
    return _recurrent(op, x, [hidden], weights, args, gates)


def _recurrent(
    op: Op,
    x: TracedTensor,
    hidden: Sequence[TracedTensor],
    weights: Sequence[TracedTensor],
    args: Sequence[Any],
    gates: int,
) -> list[TracedTensor]:
    """Recurrent layer: the gates of a hidden unit are tied, and so are all layers, which share their sizes."""
    biased, layers, bidirectional = args[0], args[1], args[4]
    directions = 2 if bidirectional else 1
    per = len(weights) // (layers * directions)
    projected = per == (4 if biased else 2) + 1
    for dim in (*x.dims[:-1], *(dim for state in hidden for dim in state.dims[:-1])):
        op.freeze(dim, "iterates over it")
    last = weights[per - 1]
    unit = last.dims[1] if projected else weights[1].dims[1]
    out = last.dims[0] if projected else unit
    below = x.dims[-1]
    for layer in range(layers):
        for direction in range(directions):
            first = per * (layer * directions + direction)
            into, within, *more = weights[first : first + per]
            _gates(op, gates, below, unit, out, into, within, more[:-1] if projected else more)
            if projected:
                op.makes.append(more[-1].dims[0])
                op.tie(more[-1].dims[0], out)
                op.tie(more[-1].dims[1], unit)
        below = out.repeat(directions)
    for state, its in zip(hidden, (out, unit)):
        if not op.is_frozen(state.dims[-1]):  # an initial state that is a parameter, not zeros of the hidden size
            op.tie(state.dims[-1], its)
    found = TracedTensor((*x.dims[:-1], below))
    states = [TracedTensor((*(fixed(n) for n in op.shapes[1][:-1]), its)) for _, its in zip(hidden, (out, unit))]
    return [found, *states]


def _gates(
    op: Op, gates: int, below: Dim, unit: Dim, out: Dim, into: TracedTensor, within: TracedTensor, more: Any
) -> None:
    op.makes.append(into.dims[0])
    op.tie(below, into.dims[1])
    op.tie(out, within.dims[1])
    for each in (into, within, *more):
        op.tie(each.dims[0], unit.repeat(gates))


def lstm_cell(
    op: Op, x: TracedTensor, hidden: Sequence[TracedTensor], into: TracedTensor, within: TracedTensor, *biases: Any
) -> list[TracedTensor]:
    return [_cell(op, x, state, into, within, biases, 4) for state in hidden]


def gru_cell(
    op: Op, x: TracedTensor, hidden: TracedTensor, into: TracedTensor, within: TracedTensor, *biases: Any
) -> TracedTensor:
    return _cell(op, x, hidden, into, within, biases, 3)


def rnn_cell(
    op: Op, x: TracedTensor, hidden: TracedTensor, into: TracedTensor, within: TracedTensor, *biases: Any
) -> TracedTensor:
    return _cell(op, x, hidden, into, within, biases, 1)


def _cell(
    op: Op, x: TracedTensor, state: TracedTensor, into: TracedTensor, within: TracedTensor, biases: Any, gates: int
) -> TracedTensor:
    unit = within.dims[1]
    _gates(op, gates, x.dims[-1], unit, unit, into, within, [each for each in biases if each is not None])
    op.tie(state.dims[-1], unit)
    return TracedTensor((*state.dims[:-1], unit))


RULES: dict[str, Rule] = {
    "lstm": lstm,
    "gru": gru,
    **dict.fromkeys(("rnn_tanh", "rnn_relu"), rnn),
    "lstm_cell": lstm_cell,
    "gru_cell": gru_cell,
    **dict.fromkeys(("rnn_tanh_cell", "rnn_relu_cell"), rnn_cell),
}
