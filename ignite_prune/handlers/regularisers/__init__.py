"""Penalties and gates around optimizer steps: ``GroupLasso``, ``Slimming``, ``LearntSparsity``."""
