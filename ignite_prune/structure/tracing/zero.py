"""Zero: whether the entries of pruned units in a traced tensor are known to be 0."""

from enum import IntEnum


class Zero(IntEnum):
    """Whether all entries of a pruned unit are 0 in a tensor, in every dimension that has units.

    A sum over such a dimension does not change if the unit is removed.
    """

    NO = 0
    """They need not be."""
    COMPUTED = 1
    """They are as far as the rules know: a layer's output, whose weight and bias are masked. What depends on it is
    verified by a trial that compares values."""
    MASKED = 2
    """They are: a parameter, its transpose, its product with a number."""
