"""RunWarning, and the texts of those that a PruneHandler gives."""

from __future__ import annotations


class RunWarning(UserWarning):
    """A run cannot end as a handler was asked to; the text says what will be reached, and what to write instead."""


AGAIN = (
    "A new run begins at epoch 0 with the masks of an earlier one (sparsity {sparsity:.4g}); its schedule starts "
    "again, but pruned weights stay 0. For a fresh start (a fold, after an LR finder) restore the pruner with "
    "the model: pruner.load_state_dict(first), where first = copy.deepcopy(pruner.state_dict()), or pruner.restore(); "
    "an LR finder takes to_save={{..., 'pruner': pruner}}. To continue the earlier run, give a larger max_epochs each "
    "time, not run(max_epochs=1) again; to train on with fixed masks, set pruner.param_groups[i]['schedule'] = None"
)
NOTHING = (
    "This run prunes nothing: the PruneHandler has no schedule and no sparsity. Give it a schedule, "
    "PruneHandler(..., schedule=schedule.Polynomial(final=0.9, begin=0, end=8)), or call pruner.step(0.9) before"
)
UNUSED = "finalize(): the PruneHandler has never pruned anything, so the model is dense. {why}"
NEVER_ATTACHED = "Call pruner.attach(trainer) before trainer.run(), or pruner.step() in a loop of your own"
NOT_UPDATED = "Its schedule had not begun: let it begin and end within the run"
