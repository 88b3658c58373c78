"""Handlers for Ignite's loggers."""

from ignite_prune.loggers.mask_handler import MaskHandler

__all__ = ["MaskHandler"]
