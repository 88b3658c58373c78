"""Observing a forward pass: layer inputs, activations and attention heads."""
