"""sensitivity: the model's quality with one layer pruned alone, at each of several sparsities."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from os import PathLike
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ignite_prune._utils.arguments import check_is, near
from ignite_prune._utils.extras import needed
from ignite_prune._utils.sparsity import as_sparsity
from ignite_prune._utils.table import as_table
from ignite_prune.core.batches import LossFn, PrepareBatch
from ignite_prune.measure.prunable import Prunables
from ignite_prune.measure.trials import Evaluate, Trials
from ignite_prune.pattern import Pattern, Unstructured
from ignite_prune.saliency import Magnitude, Saliency
from ignite_prune.update.calibration import Calibration, as_calibration

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from ignite_prune.structure import Structure

SPARSITIES = (0.25, 0.5, 0.75, 0.9, 0.95, 0.98)


@dataclass(frozen=True)
class Point:
    """The value of a model with one pruned layer.

    Attributes:
        sparsity: of the layer: pruned units over all units, times the pattern's largest sparsity.
        pruned: number of pruned units.
        value: what ``evaluate`` returned.
    """

    sparsity: float
    pruned: int
    value: float


@dataclass(frozen=True)
class LayerCurve:
    """The points of one layer.

    Attributes:
        name: of its weight; of coupled units, of the weight that produces them.
        units: number of units that may be pruned or kept.
        points: in order of sparsity.
    """

    name: str
    units: int
    points: tuple[Point, ...]


@dataclass(frozen=True)
class Sensitivity:
    """What :func:`sensitivity` found; ``print`` shows it as a table of values.

    Attributes:
        baseline: value of the dense model.
        layers: a curve for each layer, in the model's order.
        sparsities: that were asked for; a point of each curve for each of them.
        higher_is_better: whether a high value is good.
    """

    baseline: float
    layers: tuple[LayerCurve, ...]
    sparsities: tuple[float, ...]
    higher_is_better: bool

    def damage(self, name: str, sparsity: float) -> float:
        """Return by how much the value gets worse if one layer is pruned; linear between points, at least 0.

        Args:
            name: of the layer.
            sparsity: in [0, 1]; beyond the last point its damage is returned.
        """
        names = [each.name for each in self.layers]
        if name not in names:
            raise ValueError(f"Argument name: there is no layer {name!r}; {near(str(name), names)}")
        before = (0.0, 0.0)
        for at, loss in self._losses(self.layers[names.index(name)]):
            if at >= sparsity:
                share = (sparsity - before[0]) / (at - before[0]) if at > before[0] else 1.0
                return before[1] if share == 0 else before[1] + share * (loss - before[1])
            before = (at, loss)
        return before[1]

    def _losses(self, layer: LayerCurve) -> list[tuple[float, float]]:
        sign = 1 if self.higher_is_better else -1
        losses = [(each.sparsity, sign * (self.baseline - each.value)) for each in layer.points]
        return [(at, math.inf if math.isnan(loss) else max(loss, 0.0)) for at, loss in losses]

    def order(self, sparsity: float | None = None) -> list[str]:
        """Return the names of the layers, the least sensitive first.

        Args:
            sparsity: by the damage at this sparsity; None: by the mean damage of all points.
        """

        def mean(layer: LayerCurve) -> float:
            losses = [loss for _, loss in self._losses(layer)]
            return sum(losses) / max(len(losses), 1)

        if sparsity is None:
            return [each.name for each in sorted(self.layers, key=mean)]
        at = as_sparsity(sparsity)
        return sorted((each.name for each in self.layers), key=lambda name: self.damage(name, at))

    def plot(self, ax: Axes | None = None) -> Axes:
        """Plot the value over the sparsity of each layer, and return the axes (requires matplotlib)."""
        needed("matplotlib")
        import matplotlib.pyplot as plt

        axes = plt.subplots(figsize=(6, 4))[1] if ax is None else ax
        for each in self.layers:
            points = [(0.0, self.baseline), *((point.sparsity, point.value) for point in each.points)]
            axes.plot(*zip(*points), marker="o", ms=3, label=each.name)
        axes.axhline(self.baseline, color="0.5", lw=0.8, ls="--")
        axes.set(xlabel="sparsity of one layer", ylabel="value of the model")
        axes.legend(fontsize="small")
        return axes

    def __str__(self) -> str:
        rows = [
            [each.name, f"{each.units:,}", f"{self.baseline:.4g}", *(f"{point.value:.4g}" for point in each.points)]
            for each in self.layers
        ]
        return as_table(["layer", "units", "dense", *(f"{each:.4g}" for each in self.sparsities)], rows)

    __repr__ = __str__


def sensitivity(
    model: nn.Module,
    evaluate: Evaluate,
    *,
    sparsities: Sequence[float] = SPARSITIES,
    params: Any = None,
    exclude: Any = (),
    saliency: Saliency | Callable[[str, Tensor], Tensor] = Magnitude(),
    pattern: Pattern = Unstructured(),
    structure: Structure | None = None,
    data: Iterable[Any] | None = None,
    loss_fn: LossFn | None = None,
    prepare_batch: PrepareBatch | None = None,
    calibration: Calibration | None = None,
    generator: torch.Generator | None = None,
    higher_is_better: bool = True,
    path: str | PathLike[str] | None = None,
    progress: bool | None = None,
) -> Sensitivity:
    """Evaluate the model with each layer, or each group of coupled units, pruned alone: once per layer and sparsity.

    The model is pruned in place for each evaluation and restored to the bit afterwards, also after an error or Ctrl-C:
    parameters, gradients, buffers, modes and random state. So ``evaluate`` may use its argument or an engine that holds
    the model, and it may train the model before it measures it.

    Args:
        model: bare, wrapped or compiled; what ``evaluate`` is called with, in eval mode.
        evaluate: ``model -> number``, such as an accuracy. Use data that is not the test set.
        sparsities: of a layer, in (0, 1]; with N:M at most 1 − N/M.
        params: rules for the weights; None for the default selection.
        exclude: rules for weights to leave out.
        saliency: what is pruned first; computed once, for the dense model.
        pattern: which entries are pruned together.
        structure: from :func:`ignite_prune.trace`: groups of coupled units instead of layers.
        data: batches for a saliency that needs evidence, see :func:`~ignite_prune.prune_model`.
        loss_fn: ``(output, target) -> scalar``, for evidence that is made of gradients.
        prepare_batch: Ignite's ``(batch, device, non_blocking) -> (x, y)``.
        calibration: ``data``, ``loss_fn`` and ``prepare_batch`` as one value, instead of the three.
        generator: for random saliencies.
        higher_is_better: False if ``evaluate`` returns a loss, an error or a perplexity.
        path: JSON file to continue from, written after each evaluation; made if there is none.
        progress: show a progress bar (tqdm); None: on a terminal.

    Raises:
        TypeError: an argument is of another type, or ``evaluate`` does not return a number.
        ValueError: an argument is out of range, ``path`` is another model's file or damaged, or the dense model's value
            is not finite.

    Example:
        >>> from ignite_prune import measure
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> x = torch.randn(16, 4)
        >>> before = model(x).detach()
        >>> found = measure.sensitivity(model, lambda net: -(net(x) - before).abs().mean(), sparsities=[0.5, 1])
        >>> len(found.layers), [point.pruned for point in found.layers[0].points], torch.equal(model(x), before)
        (2, [16, 32], True)
    """
    wanted = checked_sparsities(sparsities)
    check_is("higher_is_better", higher_is_better, bool)
    calibration = as_calibration(calibration, data, loss_fn, prepare_batch)
    prunables = Prunables(model, params, exclude, saliency, pattern, structure, calibration, generator)
    prunables.check(wanted)
    return scan(Trials(model, evaluate, prunables, saliency, path, progress), prunables, wanted, higher_is_better)


def scan(trials: Trials, prunables: Prunables, sparsities: Sequence[float], higher_is_better: bool) -> Sensitivity:
    """Evaluate each layer alone at each sparsity."""
    curves = []
    with trials.running("sensitivity", len(prunables.layers) * len(sparsities)):
        for layer in prunables.layers:
            points = []
            for pruned in (layer.pruned(each) for each in sparsities):
                points.append(Point(layer.sparsity(pruned), pruned, trials.value({layer.name: pruned})))
            curves.append(LayerCurve(layer.name, layer.units, tuple(points)))
    found = Sensitivity(trials.baseline, tuple(curves), tuple(sparsities), higher_is_better)
    _warn_of_direction(found)
    return found


def checked_sparsities(sparsities: Any) -> list[float]:
    """Return sparsities to scan, sorted; raise TypeError or ValueError if they are others."""
    if isinstance(sparsities, (str, int, float)) or not isinstance(sparsities, Iterable):
        raise TypeError(f"Argument sparsities should be a sequence of numbers in (0, 1], but given {sparsities!r}")
    found = sorted({as_sparsity(each, "sparsities") for each in sparsities} - {0.0})
    if not found:
        raise ValueError("Argument sparsities should hold at least one number above 0")
    return found


def _warn_of_direction(found: Sensitivity) -> None:
    sign = 1 if found.higher_is_better else -1
    gains = [sign * (each.points[-1].value - found.baseline) for each in found.layers]
    if len(gains) > 1 and all(each > 0.1 * abs(found.baseline) for each in gains):
        other = "higher_is_better=False" if found.higher_is_better else "higher_is_better=True"
        warnings.warn(
            f"evaluate(model) improves with every layer that is pruned to {found.sparsities[-1]:g}; if it returns a "
            f"loss or an error, say so: {other}",
            stacklevel=4,
        )
