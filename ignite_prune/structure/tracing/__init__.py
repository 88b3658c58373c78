"""From a model to the groups of units that have to be pruned together."""
