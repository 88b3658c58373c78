"""Helpers that depend on torch only: argument checks, lazy imports, bit operations, top-k, collectives."""
