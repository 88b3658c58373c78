"""What a case of the drill came to."""

from __future__ import annotations

from dataclasses import dataclass, field, fields


@dataclass
class Outcome:
    """Counts, and what went wrong in words.

    Args:
        runs: that were interrupted, killed or limited, and checked.
        differing: of them, those that did not end with the bits of an undisturbed run, or were half done.
        inputs: hostile states, files and arguments.
        others: exceptions that are neither TypeError nor ValueError, at once or later.
        hangs: that did not end within the limit.
        changed: inputs that were refused and have changed something, or were taken although damaged.
        failures: one line each.
    """

    runs: int = 0
    differing: int = 0
    inputs: int = 0
    others: int = 0
    hangs: int = 0
    changed: int = 0
    failures: list[str] = field(default_factory=list)

    def add(self, other: Outcome) -> None:
        for each in fields(self):
            setattr(self, each.name, getattr(self, each.name) + getattr(other, each.name))

    def differs(self, told: str) -> None:
        self.differing += 1
        self.failures.append(told)

    def raised(self, told: str) -> None:
        self.others += 1
        self.failures.append(told)

    def has_changed(self, told: str) -> None:
        self.changed += 1
        self.failures.append(told)
