"""Helpers that know torch alone: argument checks, lazy imports, bit operations, top-k, collectives."""
