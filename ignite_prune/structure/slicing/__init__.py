"""Removal of pruned units from a model, its optimizers and its checkpoints."""
