"""Measurement of models: a table of layers, latency, and the comparison of two models."""

from typing import TYPE_CHECKING

from ignite_prune._utils.lazy import importer

if TYPE_CHECKING:
    from ignite_prune.measure.latency import Timing, interleaved, latency
    from ignite_prune.measure.summary import Summary, summary

__all__ = ["Summary", "Timing", "interleaved", "latency", "summary"]

_FILES = {
    "Summary": "summary",
    "Timing": "latency",
    "interleaved": "latency",
    "latency": "latency",
    "summary": "summary",
}
__getattr__ = importer(__name__, _FILES)
