"""Neural Compressor's ``gradient_sensitivity`` over whole heads and neurons.

Query, key, value and output projection are pruners of their own there, with one importance. Here they are one coupled
group of a traced structure: the pruners of the same importance give one parameter group, and the output projection
(``transpose: True``), which takes the units rather than makes them, follows by itself.
"""

from __future__ import annotations

from typing import Any

from ignite_prune.recipe.dialects.draft import Draft
from ignite_prune.recipe.dialects.names import params_of_names
from ignite_prune.recipe.dialects.steps import number
from ignite_prune.recipe.recipe_error import Path

_KNOWN = {"target", "stride", "transpose", "normalize", "importance_inputs", "importance_metric"}


def is_structured(asked: dict[str, Any]) -> bool:
    """Return whether a pruner removes whole units."""
    return asked.get("prune_type") == "gradient_sensitivity" and bool(asked.get("parameters"))


class HeadSensitivity:
    """The pruners over units, gathered by importance, which are one group each.

    Args:
        draft: what they are added to.
    """

    def __init__(self, draft: Draft) -> None:
        self.draft = draft
        self.found: dict[tuple[Any, ...], dict[str, Any]] = {}

    def add(self, asked: dict[str, Any], path: Path) -> None:
        """Add a pruner.

        Raises:
            ValueError: a field that cannot be read.
        """
        given = asked["parameters"]
        if not isinstance(given, dict):
            raise ValueError(f"parameters should be a mapping, but given {given!r:.60}")
        metric = given.get("importance_metric", "abs_gradient")
        if metric not in ("abs_gradient", "weighted_gradient"):
            raise ValueError(
                f"parameters: importance_metric should be abs_gradient or weighted_gradient, not {metric!r}"
            )
        target, stride = (int(number(f"parameters: {key}", given.get(key, 1))) for key in ("target", "stride"))
        inputs = given.get("importance_inputs") or []
        inputs = tuple(map(str, inputs)) if isinstance(inputs, list) else (str(inputs),)
        at = number("start_epoch", asked.get("start_epoch", 0)) + 1
        key = (metric, target, stride, inputs, at, bool(given.get("normalize", True)))
        entry = self.found.setdefault(key, {"names": [], "path": path})
        line = self.draft.line(path)
        for name in set(given) - _KNOWN:
            self.draft.report.add("not possible", f"parameters.{name}", line, "it is not known")
        names = asked.get("names") or []
        if given.get("transpose"):
            why = "these take the units, and are sliced along their inputs with the weights that make them"
        else:
            entry["names"] += [each for each in names if not str(each).endswith(".bias")]
            entry["path"] = path if len(entry["names"]) == len(names) else entry["path"]
            why = f"whole units of {stride} rows by importance, until {target} are left; structure: trace"
        self.draft.report.add("translated", f"gradient_sensitivity of {', '.join(map(str, names))}", line, why)

    def finish(self) -> None:
        """Add the groups, and the handler that slices the units off.

        Raises:
            RecipeError: a pruner whose units no weight makes.
        """
        for (metric, target, stride, _, at, normalize), entry in self.found.items():
            if not entry["names"]:
                raise self.draft.source.error(
                    "there is no pruner with transpose: False of this importance", entry["path"]
                )
            heads = metric == "abs_gradient"
            saliency: Any = {"type": "HeadImportance", "normalize": normalize, "per_sample": False}
            self.draft.group(
                entry["path"],
                params=params_of_names(entry["names"]),
                keep={"units": target, "rows": stride, "at": at},
                saliency=saliency if heads else {"type": "Taylor", "by_unit": True},
                pattern={"type": "Coupled", "normalise": None, "combine": "first"},
                allocation="Uniform",
            )
            self.draft.settings |= {"structure": "trace", "event": "epoch_completed"}
        if self.found:
            last = max(int(key[4]) for key in self.found)
            event = {"type": "epoch_completed", "once": last}
            self.draft.handler(next(iter(self.found.values()))["path"], type="ShrinkHandler", event=event)
