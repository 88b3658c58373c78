"""Recipes of other tools, read into recipes of this package with a report of what became of each part."""
