"""Measurement of models: a table of layers, latency, and the comparison of two models."""

from typing import TYPE_CHECKING

from ignite_prune._utils.lazy import lazy

if TYPE_CHECKING:
    from ignite_prune.measure.model_summary import Comparison, Summary, compare, summary
    from ignite_prune.measure.timing import Timing, latency

__all__ = ["Comparison", "Summary", "Timing", "compare", "latency", "summary"]

_FILES = {
    "Comparison": "model_summary",
    "Summary": "model_summary",
    "Timing": "timing",
    "compare": "model_summary",
    "latency": "timing",
    "summary": "model_summary",
}
if not TYPE_CHECKING:
    __getattr__, __dir__ = lazy(__name__, _FILES)
