"""Mask updates of models whose parameters lie on several ranks: parts are scored, and counts are exchanged."""
