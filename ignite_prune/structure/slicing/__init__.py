"""Slicing pruned units off a model, its optimizer and its checkpoints."""
