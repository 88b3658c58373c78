"""Marks that several test files share."""

import pytest

CUT_SHORT = pytest.mark.filterwarnings("ignore::ignite_prune.handlers.RunWarning")
"""For tests that run a piece of what their handlers were made for, of which the handlers warn rightly."""
