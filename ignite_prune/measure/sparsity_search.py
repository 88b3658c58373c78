"""A search for the sparsity of each layer at a given total: greedy from a scan, then evolutionary."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from os import PathLike
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ignite_prune._utils.arguments import check_is, check_seed
from ignite_prune._utils.sparsity import as_sparsity, as_unit_fraction
from ignite_prune._utils.table import as_table
from ignite_prune.allocation import ERK, LAMP, Allocation, Global, Uniform
from ignite_prune.core.batches import LossFn, PrepareBatch
from ignite_prune.measure.division import Division, evolved, greedy, moved_to_total
from ignite_prune.measure.prunable import Prunables
from ignite_prune.measure.sensitivity_scan import SPARSITIES, Sensitivity, checked_sparsities, scan
from ignite_prune.measure.trials import Evaluate, Trials
from ignite_prune.measure.unchanged import unchanged
from ignite_prune.pattern import Coupled, Pattern, Unstructured
from ignite_prune.saliency import Magnitude, Saliency
from ignite_prune.update.calibration import Calibration, as_calibration

if TYPE_CHECKING:
    from ignite_prune.structure import Structure

_RIVALS: dict[str, Allocation] = {"Uniform": Uniform(), "ERK": ERK(), "LAMP": LAMP(), "Global": Global()}


@dataclass(frozen=True)
class FoundSparsities:
    """What :func:`search_sparsities` found; ``print`` shows it as a table.

    Attributes:
        groups: group dicts with ``"params"`` and ``"sparsity"``, for ``PruneHandler(model, optimizer, groups)`` and
            ``prune_model(model, groups)``.
        sparsity: of all of them: pruned units over all units, times the pattern's largest sparsity.
        value: of the model pruned so.
        baseline: value of the dense model.
        starts: values of the divisions that the search began with: ``"greedy"``, ``"Uniform"``, ``"ERK"``, ``"LAMP"``,
            ``"Global"``, those that are possible.
        evaluations: number of different ways in which the model was pruned, the scan's included.
        scan: the sensitivity of each layer.
    """

    groups: list[dict[str, Any]]
    sparsity: float
    value: float
    baseline: float
    starts: dict[str, float]
    evaluations: int
    scan: Sensitivity

    def __str__(self) -> str:
        rows = [[", ".join(each["params"]), f"{each['sparsity']:.2%}", ""] for each in self.groups]
        rows.append(["all", f"{self.sparsity:.2%}", f"{self.value:.4g}"])
        rows += [[f"with {name}", f"{self.sparsity:.2%}", f"{value:.4g}"] for name, value in self.starts.items()]
        return as_table(["layer", "sparsity", "value"], [*rows, ["dense", "0.00%", f"{self.baseline:.4g}"]])

    __repr__ = __str__


def search_sparsities(
    model: nn.Module,
    evaluate: Evaluate,
    *,
    sparsity: float,
    sparsities: Sequence[float] | None = None,
    evaluations: int = 64,
    seed: int = 0,
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
) -> FoundSparsities:
    """Search for the sparsity of each layer, or group of coupled units, with which the model is best at a given total.

    Each layer alone is pruned to each of ``sparsities`` (:func:`~ignite_prune.measure.sensitivity`); a greedy division
    prunes where the scan shows the least damage per unit; this one, and those of Uniform, ERK, LAMP and Global, are the
    first generation of an evolutionary search, which moves units between layers and mixes divisions. The result is at
    least as good as each of them by ``evaluate``: use data that is neither trained on nor the test set. The model is
    restored to the bit after each evaluation.

    Args:
        model: bare, wrapped or compiled; what ``evaluate`` is called with, in eval mode.
        evaluate: ``model -> number``; it may train the model before it measures it, which finds the sparsities that are
            best after fine-tuning. A loss tells more than an accuracy, which is equal for many divisions.
        sparsity: of all layers together; the number of pruned units is exact.
        sparsities: of the scan; None: from 0.25 to 0.98, as far as the pattern allows.
        evaluations: how many divisions the evolutionary search tries after the scan; 0: none, the greedy one is taken.
        seed: of the evolutionary search; the same seed finds the same sparsities.
        params: rules for the weights; None for the default selection.
        exclude: rules for weights to leave out.
        saliency: what is pruned first; computed once, for the dense model.
        pattern: which entries are pruned together; ``sparsity`` is a fraction of its units.
        structure: from :func:`ignite_prune.trace`: groups of coupled units instead of layers.
        data: batches for a saliency that needs evidence.
        loss_fn: ``(output, target) -> scalar``, for evidence that is made of gradients.
        prepare_batch: Ignite's ``(batch, device, non_blocking) -> (x, y)``.
        calibration: ``data``, ``loss_fn`` and ``prepare_batch`` as one value, instead of the three.
        generator: for random saliencies.
        higher_is_better: False if ``evaluate`` returns a loss, an error or a perplexity.
        path: JSON file to continue from; it may be that of a scan, which is not repeated then.
        progress: show a progress bar (tqdm); None: on a terminal.

    Raises:
        TypeError, ValueError: as of :func:`~ignite_prune.measure.sensitivity`, or the sparsity is out of reach.

    Example:
        >>> from ignite_prune import measure, prune_model
        >>> model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))
        >>> x = torch.randn(16, 8)
        >>> before = model(x).detach()
        >>> found = measure.search_sparsities(
        ...     model, lambda net: (net(x) - before).abs().mean(), sparsity=0.5, evaluations=4,
        ...     higher_is_better=False)
        >>> prune_model(model, found.groups).sparsity
        0.5
    """
    target = as_sparsity(sparsity)
    check_seed(seed)
    check_is("higher_is_better", higher_is_better, bool)
    if type(evaluations) is not int or evaluations < 0:
        raise ValueError(f"Argument evaluations should be an int of at least 0, but given {evaluations!r}")
    calibration = as_calibration(calibration, data, loss_fn, prepare_batch)
    prunables = Prunables(model, params, exclude, saliency, pattern, structure, calibration, generator)
    wanted = checked_sparsities(
        [each for each in SPARSITIES if each <= prunables.pattern.share] or [prunables.pattern.share]
        if sparsities is None
        else sparsities
    )
    prunables.check([*wanted, target])
    division = _division(prunables, target)
    trials = Trials(model, evaluate, prunables, saliency, path, progress)
    found = scan(trials, prunables, wanted, higher_is_better)
    sign = 1 if higher_is_better else -1

    def quality(counts: tuple[int, ...]) -> float:
        value = sign * trials.value(dict(zip(names, counts)))
        return -math.inf if math.isnan(value) else value

    names = [each.name for each in prunables.layers]
    first = {"greedy": greedy(division, found)}
    if evaluations:
        first |= _rivals(prunables, division, target)
    with trials.running("search", len(first) + evaluations):
        starts = {name: sign * quality(counts) for name, counts in first.items()}
        best = evolved(division, list(first.values()), quality, evaluations, seed)
        value = sign * quality(best)
    return FoundSparsities(
        prunables.groups(dict(zip(names, best))),
        sum(best) / sum(division.units) * prunables.pattern.share,
        value,
        trials.baseline,
        starts,
        trials.tried,
        found,
    )


def _division(prunables: Prunables, sparsity: float) -> Division:
    """Return the layers' sizes and the number of units to prune."""
    pattern, layers = prunables.pattern, prunables.layers
    if isinstance(pattern, Coupled) and pattern.round_to > 1:
        raise ValueError(f"With {pattern} the number of units is rounded in each group; search with round_to=1")
    units = tuple(each.units for each in layers)
    total = round(sum(units) * as_unit_fraction(pattern, sparsity))
    some_left = tuple(min(each.most, each.units - 1) for each in layers)  # no layer is emptied, if that is possible
    most = some_left if sum(some_left) >= total else tuple(each.most for each in layers)
    if sum(most) < total:
        raise ValueError(
            f"A sparsity of {sparsity:g} is out of reach: of {sum(units)} units no more than {sum(most)} may be pruned"
        )
    return Division(units, most, total)


def _rivals(prunables: Prunables, division: Division, sparsity: float) -> dict[str, tuple[int, ...]]:
    """Return the divisions of other allocations, as far as they are possible, moved to the exact total."""
    found = {}
    for name, allocation in _RIVALS.items():
        try:
            with unchanged(prunables.model):
                counts = prunables.counts(allocation, sparsity)
        except ValueError:  # LAMP of negative scores, for example
            continue
        found[name] = moved_to_total(division, [counts[each.name] for each in prunables.layers])
    return found
