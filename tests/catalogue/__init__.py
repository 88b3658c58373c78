"""The one catalogue: a row enrols a piece in every law that fits it; see docs/extending.md."""

from tests.catalogue.handlers import GATES, HANDLERS, HandlerRow
from tests.catalogue.pieces import (
    ALLOCATIONS,
    COUPLED,
    PATTERNS,
    RAMPS,
    REPAIRS,
    SALIENCIES,
    SCHEDULES,
    AnyScores,
    fits,
    gradient_times_weight,
    net_for,
    options_for,
)
from tests.catalogue.row import Row, find
from tests.catalogue.sparsifiers import FLAT, MAPS, SPARSIFIERS, TOKENS, SparsifierRow
from tests.catalogue.training import EVENTS, OPTIMIZERS

__all__ = [
    "ALLOCATIONS",
    "COUPLED",
    "EVENTS",
    "FLAT",
    "GATES",
    "HANDLERS",
    "MAPS",
    "OPTIMIZERS",
    "PATTERNS",
    "RAMPS",
    "REPAIRS",
    "SALIENCIES",
    "SCHEDULES",
    "SPARSIFIERS",
    "TOKENS",
    "AnyScores",
    "HandlerRow",
    "Row",
    "SparsifierRow",
    "find",
    "fits",
    "gradient_times_weight",
    "net_for",
    "options_for",
]
