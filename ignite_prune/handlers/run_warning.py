"""RunWarning, and the messages for the cases in which a PruneHandler gives it."""

from __future__ import annotations


class RunWarning(UserWarning):
    """A run will not reach its handler's target; the message gives the sparsity that it reaches, and how to change
    that.
    """


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
OUT_OF_REACH = (
    "The target of {target:.4g} is out of reach: in the last round, {rounds}, the schedule gives {last:.4g}. Run for "
    "more rounds, run(max_epochs=...), or give a schedule that rises faster"
)
STATIC = (
    "finalize(): this {who} was never attached to a trainer that ran, so its masks are those of its construction. Call "
    "attach(trainer) before trainer.run()"
)
UNMOVED = (
    "{who} moves no connection in this run: it has {iterations} iterations, the first update is due at iteration "
    "{every} (every={every}), and none from iteration {last:g} on (end=). Give a smaller every=, or run for longer"
)
BEYOND = (
    "{who} moves connections until the end of the run, as end={end} is behind its last iteration, {iterations}: those "
    "that grow last are not trained. Give end= in iterations, or None for three quarters of the run"
)
