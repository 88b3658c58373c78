"""Measurement of models: a table of layers, latency, comparison of engines, and each layer's sensitivity to pruning."""

from typing import TYPE_CHECKING

from ignite_prune._utils.lazy import importer

if TYPE_CHECKING:
    from ignite_prune.measure.engine_times import Engines, engines
    from ignite_prune.measure.model_summary import Comparison, Summary, compare, summary
    from ignite_prune.measure.sensitivity_scan import Sensitivity, sensitivity
    from ignite_prune.measure.sparsity_search import FoundSparsities, search_sparsities
    from ignite_prune.measure.timing import Timing, latency

__all__ = [
    "Comparison",
    "Engines",
    "FoundSparsities",
    "Sensitivity",
    "Summary",
    "Timing",
    "compare",
    "engines",
    "latency",
    "search_sparsities",
    "sensitivity",
    "summary",
]

_FILES = {
    "Comparison": "model_summary",
    "Engines": "engine_times",
    "FoundSparsities": "sparsity_search",
    "Sensitivity": "sensitivity_scan",
    "Summary": "model_summary",
    "Timing": "timing",
    "compare": "model_summary",
    "engines": "engine_times",
    "latency": "timing",
    "search_sparsities": "sparsity_search",
    "sensitivity": "sensitivity_scan",
    "summary": "model_summary",
}
if not TYPE_CHECKING:
    __getattr__, __dir__ = importer(__name__, _FILES)
