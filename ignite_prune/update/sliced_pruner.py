"""The pruner of a model that has been sliced."""

from __future__ import annotations

from ignite_prune._utils.kept import kept_of
from ignite_prune.structure import Indices, Structure
from ignite_prune.update.pruner import Pruner


def sliced_pruner(pruner: Pruner, structure: Structure, indices: Indices) -> Pruner:
    """Return a pruner of the same settings, masks and targets over the model now that it has been sliced.

    Its hooks are not installed, and its evidence is empty; the pruner given is not changed.

    Args:
        pruner: of the model before.
        structure: what is left.
        indices: which indices of each parameter were kept.
    """
    masks = {name: kept_of(mask, indices.get(name, {})) for name, mask in pruner.masks.items()}
    params, settings = pruner.given
    settings = {**settings, "structure": structure}
    made = Pruner(pruner.model, pruner.optimizers, params, settings, pruner.calibration, masks, pruner.weights.strict)
    made.weights.clock, made.weights.warned = pruner.weights.clock, pruner.weights.warned
    for group, before in zip(made.groups, pruner.groups):  # the user may have changed these
        group["sparsity"], group["schedule"] = before["sparsity"], before["schedule"]
        group["allocation"] = before["allocation"]
    made.set_generator_states(pruner.generator_states())
    made.on_commit = pruner.on_commit
    made.forget_scores(pruner.reached())
    return made
