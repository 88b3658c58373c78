"""Recipes: files that say how a model is pruned, and readers of the recipes of other tools.

Example:
    >>> from ignite_prune import recipe
    >>> print(recipe.load("schedule: {type: OneShot, sparsity: 0.5, at: 2}").dump())
    version: 1
    prune:
      schedule: {type: OneShot, sparsity: 0.5, at: 2}
    <BLANKLINE>
"""

from typing import TYPE_CHECKING

from ignite_prune._utils.lazy import importer

if TYPE_CHECKING:
    from ignite_prune.recipe.attached import Attached
    from ignite_prune.recipe.dialects.report import Report
    from ignite_prune.recipe.reading import Reading, read
    from ignite_prune.recipe.recipe import Recipe, dump, load
    from ignite_prune.recipe.recipe_error import RecipeError
    from ignite_prune.recipe.schema import json_schema

__all__ = ["Attached", "Reading", "Recipe", "RecipeError", "Report", "dump", "json_schema", "load", "read"]

_FILES = {
    "Attached": "attached",
    "Reading": "reading",
    "Recipe": "recipe",
    "RecipeError": "recipe_error",
    "Report": "dialects.report",
    "dump": "recipe",
    "json_schema": "schema",
    "load": "recipe",
    "read": "reading",
}
if not TYPE_CHECKING:
    __getattr__, __dir__ = importer(__name__, _FILES)
