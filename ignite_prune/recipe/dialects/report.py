"""Report: how each part of another tool's recipe was translated."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

Outcome = Literal["translated", "handed on", "not possible", "skipped"]


@dataclass(frozen=True)
class Item:
    """One part of a recipe.

    Args:
        outcome: ``translated``; ``handed on`` to something else than pruning, which ``why`` names; ``not possible``; or
            ``skipped``, which changes nothing of what is pruned.
        what: the part, as the file names it.
        line: its line in the file.
        why: what it was translated to, or why it was not.
    """

    outcome: Outcome
    what: str
    line: int | None
    why: str


@dataclass
class Report:
    """How each part of another tool's recipe was translated; ``print`` shows it.

    Args:
        dialect: the format of the recipe.
        items: one for each part, in the order in which they were read.
    """

    dialect: str
    items: list[Item] = field(default_factory=list)

    def add(self, outcome: Outcome, what: str, line: int | None, why: str) -> None:
        """Add a part, unless it is there already."""
        item = Item(outcome, what, line, why)
        if item not in self.items:
            self.items.append(item)

    def __iter__(self) -> Iterator[Item]:
        return iter(self.items)

    def __len__(self) -> int:
        return len(self.items)

    def of(self, outcome: Outcome) -> list[Item]:
        """Return the parts with an outcome."""
        return [each for each in self.items if each.outcome == outcome]

    @property
    def translated(self) -> list[Item]:
        """What the recipe does."""
        return self.of("translated")

    @property
    def handed_on(self) -> list[Item]:
        """What something else has to do: learning rates, quantization."""
        return self.of("handed on")

    @property
    def not_possible(self) -> list[Item]:
        """What the recipe does not do."""
        return self.of("not possible")

    @property
    def skipped(self) -> list[Item]:
        """What has no effect on pruning."""
        return self.of("skipped")

    def __str__(self) -> str:
        lines = [f"{self.dialect}:"]
        for each in self.items:
            where = f"line {each.line}, " if each.line else ""
            lines.append(f"  {each.outcome}: {where}{each.what}: {each.why}")
        return "\n".join(lines)
