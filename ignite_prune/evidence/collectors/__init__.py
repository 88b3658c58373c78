"""Collectors: one running sum for each kind of evidence."""
