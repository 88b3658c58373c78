"""Distillation: a teacher's outputs and hidden states are part of the loss."""
