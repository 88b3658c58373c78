"""Every kind in turn for DRILL_MINUTES: ``python -m tests.drill``; one case: ``python -m tests.drill KIND SEED``."""

from __future__ import annotations

import os
import random
import sys
import time
from dataclasses import fields

from tests.drill.cases import KINDS, case
from tests.drill.outcome import Outcome


def tell(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def main(minutes: float, first: int) -> bool:
    """Run cases of every kind, of seeds from the first on; return whether nothing was found."""
    until, seed = time.monotonic() + 60 * minutes, first
    totals = {kind: Outcome() for kind in KINDS}
    spent = dict.fromkeys(KINDS, 0.0)
    while time.monotonic() < until:
        kind = min(spent, key=spent.__getitem__)  # each kind has as much time
        began = time.monotonic()
        outcome = case(kind, seed)
        spent[kind] += time.monotonic() - began
        for failure in outcome.failures:
            tell(f"FOUND {failure}\n  again: python -m tests.drill {kind} {seed}")
        totals[kind].add(outcome)
        seed += 1
    names = [each.name for each in fields(Outcome) if each.name != "failures"]
    tell(
        f"\nseeds {first} to {seed - 1}, {minutes:g} minutes\n{'kind':12s}" + "".join(f"{name:>11s}" for name in names)
    )
    for kind, outcome in totals.items():
        tell(f"{kind:12s}" + "".join(f"{getattr(outcome, name):11,d}" for name in names))
    return not any(outcome.failures for outcome in totals.values())


if __name__ == "__main__":
    if len(sys.argv) == 3:
        result = case(sys.argv[1], int(sys.argv[2]))
        tell("\n".join([*result.failures, repr(result)]))
        sys.exit(bool(result.failures))
    drawn_seed = int(os.environ.get("DRILL_SEED") or random.SystemRandom().randrange(10**6))
    sys.exit(not main(float(os.environ.get("DRILL_MINUTES") or 5), drawn_seed))
