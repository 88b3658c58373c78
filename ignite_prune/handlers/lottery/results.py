"""Results of a pruning engine's rounds: plain data, and a plot."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from numbers import Real
from typing import TYPE_CHECKING, Any

from ignite.engine import Engine
from torch import Tensor

from ignite_prune._utils.extras import needed
from ignite_prune.handlers.lottery.training_segment import forget_failure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Result = dict[str, Any]
"""``round``, ``stage`` ("trained" or "fine_tuned"), ``sparsity`` and ``metrics`` after a training."""
Evaluate = Callable[[], Mapping[str, Any]]


def as_evaluate(evaluator: Any, data: Iterable[Any] | None, loader: Iterable[Any]) -> Evaluate:
    """Return a function that evaluates the model and returns its metrics.

    Args:
        evaluator: an Ignite engine, run over ``data`` (None: ``loader``); a function that returns ``{name: value}``; or
            None.
        data: the evaluator's.
        loader: the trainer's.

    Raises:
        TypeError: none of these.
        ValueError: data for an evaluator that is not an engine.
    """
    if data is not None and not isinstance(evaluator, Engine):
        raise ValueError("Argument data is what an Ignite evaluator runs over, but evaluator is not an Ignite Engine")
    if evaluator is None:
        return dict
    if isinstance(evaluator, Engine):
        return _run(evaluator, loader if data is None else data)
    if not callable(evaluator):
        raise TypeError(
            "Argument evaluator should be an ignite.engine.Engine, a function that gives {name: value}, or None, but "
            f"given {type(evaluator)}"
        )
    return _checked(evaluator)


def _run(evaluator: Engine, data: Iterable[Any]) -> Evaluate:
    def evaluate() -> Mapping[str, Any]:
        forget_failure(evaluator)
        return dict(evaluator.run(data).metrics)

    return evaluate


def _checked(function: Callable[[], Any]) -> Evaluate:
    def evaluate() -> Mapping[str, Any]:
        metrics = function()
        if not isinstance(metrics, Mapping):
            raise TypeError(f"Argument evaluator should give a mapping {{name: value}}, but it gave {type(metrics)}")
        return metrics

    return evaluate


def as_plain(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """Return numbers as floats and tensors as numbers or lists, and leave out everything else."""
    plain: dict[str, Any] = {}
    for name, value in metrics.items():
        if isinstance(value, Tensor):
            plain[name] = value.tolist()
        elif isinstance(value, Real):
            plain[name] = float(value)
    return plain


_NAMES = {"round", "stage", "sparsity", "metrics"}


def _is_result(value: Any) -> bool:
    return (
        isinstance(value, Mapping)
        and set(value) == _NAMES
        and type(value["round"]) is int
        and isinstance(value["stage"], str)
        and isinstance(value["sparsity"], float)
        and isinstance(value["metrics"], Mapping)
        and all(isinstance(k, str) and isinstance(v, float | int | bool | list) for k, v in value["metrics"].items())
    )


def checked_results(results: Any) -> list[Result]:
    """Return a copy of a checkpoint's results.

    Raises:
        TypeError: they do not have the form of :data:`Result`.
    """
    if not isinstance(results, list | tuple) or not all(_is_result(each) for each in results):
        raise TypeError(f"The results in a pruning engine's state_dict should be a list of {sorted(_NAMES)}")
    return copy.deepcopy(list(results))


def plot(results: Sequence[Result], metric: str | None = None, ax: Axes | None = None, **style: Any) -> Axes:
    """Draw a metric against the density and return the axes (needs matplotlib).

    Args:
        results: a pruning engine's.
        metric: its name; None: the first.
        ax: axes to draw on; None: a new figure.
        style: keywords of matplotlib's ``plot``.

    Raises:
        ValueError: there are no results, or none of that metric.
    """
    needed("matplotlib")
    import matplotlib.pyplot as plt

    named = [metric] if metric is not None else list(results[0]["metrics"])[:1] if results else []
    points = [each for each in results if named and named[0] in each["metrics"]]
    if not points:
        raise ValueError(f"There is no round with a metric {metric!r} to draw; was an evaluator given?")
    axes = plt.subplots(figsize=(6, 4))[1] if ax is None else ax
    density = [100 * (1 - each["sparsity"]) for each in points]
    axes.plot(density, [each["metrics"][named[0]] for each in points], **{"marker": "o", **style})
    axes.set(xscale="log", xlabel="weights left (%)", ylabel=named[0])
    if not axes.xaxis_inverted():
        axes.invert_xaxis()
    return axes


def is_below(floor: Mapping[str, float], metrics: Mapping[str, Any]) -> bool:
    """Return whether a metric is below its floor; NaN is."""
    return any(not metrics[name] >= value for name, value in floor.items() if name in metrics)


def check_floor(floor: Mapping[str, float], metrics: Mapping[str, Any]) -> None:
    """Raise ValueError if the evaluator gives no number for a floor."""
    missing = [name for name in floor if not isinstance(metrics.get(name), float)]
    if missing:
        raise ValueError(f"Argument floor: the evaluator gives no number {missing[0]!r}; it gives {sorted(metrics)}")
