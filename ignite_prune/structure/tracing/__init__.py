"""Tracing a model to find the groups of coupled units, which can only be pruned together."""
