"""Reads recipes of other tools."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from ignite_prune._utils.arguments import near
from ignite_prune.recipe.dialects.draft import Draft
from ignite_prune.recipe.dialects.masked_state import is_masked_state, plain_state
from ignite_prune.recipe.dialects.modifiers import is_modifiers
from ignite_prune.recipe.dialects.neural_compressor import is_neural_compressor, read_neural_compressor
from ignite_prune.recipe.dialects.report import Report
from ignite_prune.recipe.dialects.sparseml import read_modifiers
from ignite_prune.recipe.dialects.tfmot import is_schedule, read_schedule
from ignite_prune.recipe.recipe import Recipe
from ignite_prune.recipe.recipe_error import RecipeError
from ignite_prune.recipe.source import Source, document_of, is_text, parsed, text_of_file


@dataclass
class Reading:
    """What became of another tool's recipe.

    Args:
        recipe: the recipe; None where nothing in the file prunes.
        report: what became of each part of the file.
        masks: of a state_dict: the masks, True = kept.
        state_dict: of a state_dict: the plain one, with pruned weights 0 and without masks.
    """

    recipe: Recipe | None
    report: Report
    masks: dict[str, Tensor] = field(default_factory=dict)
    state_dict: dict[str, Any] = field(default_factory=dict)

    def attach(self, trainer: Any, **options: Any) -> Any:
        """Attach the recipe, with :attr:`masks` if there are any; see :meth:`.Recipe.attach`.

        Raises:
            RecipeError: there is no recipe.
        """
        given = {"masks": self.masks} if self.masks else {}
        return self._checked().attach(trainer, **{**given, **options})

    def dump(self, path: Any = None) -> str:
        """Return the recipe as YAML, and write it; see :meth:`.Recipe.dump`.

        Raises:
            RecipeError: there is no recipe.
        """
        return self._checked().dump(path)

    def _checked(self) -> Recipe:
        if self.recipe is None:
            raise RecipeError(f"nothing in it prunes:\n{self.report}")
        return self.recipe


def read(given: Any, dialect: str | None = None, *, variables: Mapping[str, Any] | None = None) -> Reading:
    """Return another tool's recipe as one of this package, with a report of what became of each part.

    Args:
        given: a path (YAML, Markdown, JSON; or a checkpoint), text, a mapping, or a state_dict.
        dialect: ``"sparseml"`` (llm-compressor too), ``"neural_compressor"`` (1.x, ``weight_compression_pytorch`` and
            2.x), ``"tfmot"``, ``"torch"`` (masked state_dicts of ``torch.nn.utils.prune`` and Lightning) or
            ``"ignite_prune"``; None: what it looks like.
        variables: of SparseML's files, which go before those of the file.

    Raises:
        TypeError: neither a path, text nor a mapping.
        RecipeError: nothing that is known, or a part that cannot be read; the line is named.

    Example:
        >>> from ignite_prune import recipe
        >>> found = recipe.read('''
        ... modifiers:
        ...   - !GMPruningModifier
        ...     {init_sparsity: 0.05, final_sparsity: 0.8, start_epoch: 0, end_epoch: 4, params: __ALL_PRUNABLE__}
        ... ''')
        >>> found.report.translated[0].what, found.recipe.prune.handler.schedule.horizon
        ('GMPruningModifier', 4)
    """
    names = [*_READERS, "torch"]
    if dialect is not None and dialect not in names:
        raise ValueError(f"Argument dialect: there is none {dialect!r}; {near(str(dialect), names)}")
    if is_masked_state(given, dialect):
        return _of_state(given)
    source = _source(given)
    if not isinstance(source.data, (dict, list)):
        raise source.error("a recipe should be a mapping, but this is text")
    chosen = dialect or _recognised(source)
    if variables is not None and chosen != "sparseml":
        raise ValueError(f"Argument variables: a file of {chosen} has none")
    return _of_modifiers(source, variables) if chosen == "sparseml" else _READERS[chosen](source)


def _source(given: Any) -> Source:
    """Return the data of a file or text; of Markdown that of its front matter or of its first YAML block."""
    if isinstance(given, (Mapping, list)):
        return document_of(given if isinstance(given, Mapping) else {"list": given})
    if not isinstance(given, (str, os.PathLike)):
        raise TypeError(f"A recipe should be a path, text or a mapping, but given {type(given)}")
    text, name = (given, None) if is_text(given) else (text_of_file(given), os.fspath(given))
    blocks = markdown_blocks(str(text))
    if not blocks:
        return parsed(str(text), name)
    found = [parsed(block, name, first) for first, block in blocks]
    chosen = next((each for each in found if is_modifiers(each)), found[0])
    for each in found:
        if each is not chosen and is_modifiers(each):
            chosen.repeated.append((("another block",), chosen.line(()) or 1, each.line(()) or 1))
    return chosen


def markdown_blocks(text: str) -> list[tuple[int, str]]:
    """Return the YAML of Markdown text with the number of its first line: front matter, and fenced blocks.

    Empty for text that is not Markdown.
    """
    lines = text.splitlines()
    found = []
    if lines and lines[0].strip() == "---":
        end = next((n for n, line in enumerate(lines[1:], 1) if line.strip() == "---"), None)
        if end is not None:
            found.append((2, "\n".join(lines[1:end])))
    for match in re.finditer(r"^```+\s*(?:yaml|yml)[^\n]*\n(.*?)^```+\s*$", text, re.MULTILINE | re.DOTALL):
        found.append((text[: match.start(1)].count("\n") + 1, match.group(1)))
    return found


def _recognised(source: Source) -> str:
    data = source.data
    if is_modifiers(source):
        return "sparseml"
    if is_schedule(data):
        return "tfmot"
    if is_neural_compressor(data):
        return "neural_compressor"
    if isinstance(data, dict) and ({"prune", "handlers"} & set(data) or "schedule" in data):
        return "ignite_prune"
    raise source.error(
        "this looks like no recipe that is known: SparseML's has modifiers, Neural Compressor's pruning or pruners, "
        "TFMOT's pruning_schedule with class_name; name it with dialect="
    )


def _finished(draft: Draft) -> Reading:
    data = draft.result()
    recipe = None if data is None else Recipe.from_source(data)
    return Reading(recipe, draft.report)


def _of_modifiers(source: Source, variables: Mapping[str, Any] | None) -> Reading:
    return _finished(read_modifiers(source, variables or {}))


def _own(source: Source) -> Reading:
    return Reading(Recipe.from_source(source.strict()), Report("ignite_prune"))


def _of_state(given: Any) -> Reading:
    plain, masks, report = plain_state(given)
    recipe = Recipe.from_source(document_of({"prune": {"params": list(masks), "masks": "nonzero"}}))
    return Reading(recipe, report, masks, plain)


_READERS: dict[str, Callable[[Source], Reading]] = {
    "ignite_prune": _own,
    "neural_compressor": lambda source: _finished(read_neural_compressor(source)),
    "sparseml": lambda source: _of_modifiers(source, None),
    "tfmot": lambda source: _finished(read_schedule(source)),
}
