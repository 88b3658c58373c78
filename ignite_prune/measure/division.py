"""Divisions of a number of pruned units over layers: greedy by a scan, and improved by evolution."""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from ignite_prune.measure.sensitivity_scan import Sensitivity

_STEPS = 200  # in which the greedy division prunes a layer
_PRIOR = 0.05  # weight of evenness, of the mean largest damage of a layer
_BEYOND = 4.0  # slope of the damage after the last point, of the slope before it
_PARENTS = 8

Counts = tuple[int, ...]


@dataclass(frozen=True)
class Division:
    """What is divided.

    Attributes:
        units: of each layer.
        most: how many of them can be pruned.
        total: how many are pruned in all layers together.
    """

    units: Counts
    most: Counts
    total: int


def greedy(division: Division, scan: Sensitivity) -> Counts:
    r"""Prune, step by step, the layer whose damage grows least per unit.

    The damage of a layer is the lower convex hull of its points, as a sum of convex functions has its minimum where all
    slopes are equal, plus a small :math:`-\lambda n_l \ln(1 - s_l)`, which is least for even sparsities: an accuracy
    often does not change over a wide range, and layers pruned together lose more than the sum of what each loses alone.
    """
    hulls = [_hull(scan, each.name, units) for each, units in zip(scan.layers, division.units)]
    prior = _PRIOR * sum(hull[-1][1] for hull in hulls) / len(hulls) + 1e-12
    everything = sum(division.units)
    counts, left = [0] * len(hulls), division.total

    def slope(layer: int) -> float:
        units = division.units[layer]
        return _slope(hulls[layer], counts[layer]) + prior / everything / (1 - counts[layer] / units + 0.5 / units)

    queue = [(slope(layer), layer) for layer in range(len(hulls)) if division.most[layer]]
    heapq.heapify(queue)
    while left:
        _, layer = heapq.heappop(queue)
        step = min(max(division.units[layer] // _STEPS, 1), division.most[layer] - counts[layer], left)
        counts[layer] += step
        left -= step
        if counts[layer] < division.most[layer]:
            heapq.heappush(queue, (slope(layer), layer))
    return tuple(counts)


def _hull(scan: Sensitivity, name: str, units: int) -> list[tuple[float, float]]:
    """Return the lower convex hull of a layer's damage over its pruned units; (0, 0) is the first point."""
    layer = next(each for each in scan.layers if each.name == name)
    points, worst = [(0.0, 0.0)], 0.0
    for each in layer.points:
        worst = max(worst, scan.damage(name, each.sparsity))
        if each.pruned > points[-1][0]:
            points.append((float(each.pruned), min(worst, _LARGE)))
    hull: list[tuple[float, float]] = []
    for point in points:
        while len(hull) > 1 and _rise(hull[-2], hull[-1]) >= _rise(hull[-1], point):
            hull.pop()
        hull.append(point)
    return hull if len(hull) > 1 else [*hull, (float(units), 0.0)]


_LARGE = 1e30  # instead of infinity, which has no slope


def _rise(one: tuple[float, float], two: tuple[float, float]) -> float:
    return (two[1] - one[1]) / (two[0] - one[0])


def _slope(hull: Sequence[tuple[float, float]], count: int) -> float:
    for one, two in pairwise(hull):
        if count < two[0]:
            return _rise(one, two)
    return _BEYOND * _rise(hull[-2], hull[-1])


def moved_to_total(division: Division, counts: Sequence[float]) -> Counts:
    """Return whole numbers near ``counts``, within their bounds, that add up to the total.

    Example:
        >>> moved_to_total(Division((10, 10, 4), (9, 9, 3), 12), [5, 5, 5])
        (4, 5, 3)
    """
    found = [min(max(round(count), 0), most) for count, most in zip(counts, division.most)]
    while (missing := division.total - sum(found)) != 0:
        rooms = [most - count if missing > 0 else count for count, most in zip(found, division.most)]
        whole = sum(rooms)
        for layer in sorted(range(len(found)), key=lambda each: -rooms[each]):
            part = min(-(-rooms[layer] * abs(missing) // whole), rooms[layer], abs(division.total - sum(found)))
            found[layer] += part if missing > 0 else -part
    return tuple(found)


def evolved(
    division: Division, first: Sequence[Counts], quality: Callable[[Counts], float], evaluations: int, seed: int
) -> Counts:
    """Return the best division found: children of the best ones replace the worst.

    Args:
        division: what is divided.
        first: divisions to begin with.
        quality: of a division, higher is better.
        evaluations: number of children.
        seed: of the choices.
    """
    chance, seen = random.Random(seed), set(first)
    pool = sorted(((quality(each), each) for each in dict.fromkeys(first)), reverse=True)
    for _ in range(evaluations):
        child = _child(division, [each for _, each in pool], chance)
        for _ in range(20):
            if child not in seen:
                break
            child = _child(division, [each for _, each in pool], chance)
        else:
            break  # there are hardly other divisions
        seen.add(child)
        pool = sorted([*pool, (quality(child), child)], reverse=True)[:_PARENTS]
    return pool[0][1]


def _child(division: Division, pool: Sequence[Counts], chance: random.Random) -> Counts:
    """Return a mixture of two divisions, or one of them, with some units moved from one layer to another."""
    one, two = (min(chance.sample(range(len(pool)), min(2, len(pool)))) for _ in range(2))  # the better of two
    counts = [float(each) for each in pool[one]]
    if one != two and chance.random() < 0.5:
        shares = [chance.random() for _ in counts]
        counts = [share * a + (1 - share) * b for share, a, b in zip(shares, pool[one], pool[two])]
    for _ in range(chance.choice((1, 1, 2, 3))):
        _move(division, counts, chance)
    return moved_to_total(division, counts)


def _move(division: Division, counts: list[float], chance: random.Random) -> None:
    """Keep more of one layer and less of another, by a factor of its kept units."""
    if len(counts) < 2:
        return
    source, target = chance.sample(range(len(counts)), 2)
    room = min(counts[source], division.most[target] - counts[target])
    kept = min(division.units[source] - counts[source], division.units[target] - counts[target])
    size = max(1.0, min(room, max(kept, 1.0)) * chance.uniform(0.05, 0.8))
    moved = min(size, room)
    counts[source] -= moved
    counts[target] += moved
