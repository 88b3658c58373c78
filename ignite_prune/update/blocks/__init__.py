"""Pruning a model block by block: each block is calibrated on what the pruned blocks before it give out."""
