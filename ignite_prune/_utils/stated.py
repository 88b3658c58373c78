"""Class attributes that describe one method, and do not hold for a subclass that overrides the method."""

from __future__ import annotations


def stated(kind: type, attribute: str, method: str) -> bool:
    """Return what is said about a method by the class that defines it; what a derived class overrides is not covered.

    Example:
        >>> class Double:
        ...     pointwise = True
        ...     def __call__(self, values): return 2 * values
        >>> class Sum(Double):
        ...     def __call__(self, values): return values.sum()
        >>> stated(Double, "pointwise", "__call__"), stated(Sum, "pointwise", "__call__")
        (True, False)
    """
    defining = next(each for each in kind.__mro__ if method in vars(each))
    return bool(vars(defining).get(attribute, False))
