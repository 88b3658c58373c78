"""State over a model: which parameters are selected, their masks, and the hooks that keep pruned entries at 0."""
