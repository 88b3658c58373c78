"""The state of a pruning engine in a checkpoint: the phases of a round, and the checks before a state is loaded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

VERSION = 2  # 1 had a list of results
BETWEEN, TRAINING, TRAINED, PRUNED, TUNING = PHASES = ("between", "training", "trained", "pruned", "tuning")


def checked_form(state_dict: Any) -> tuple[Mapping[str, Any], str]:
    """Return the part of a state that is the rounds', and its phase.

    Raises:
        TypeError: not a state of a pruning engine.
        ValueError: of another version, or in an unknown phase.
    """
    state = state_dict.get("pruning") if isinstance(state_dict, Mapping) else None
    if not isinstance(state, Mapping) or not {"version", "phase", "trainer", "results", "snapshot"} <= set(state):
        raise TypeError("Argument state_dict should be a pruning engine's, with 'pruning', but it is not")
    version, phase = state["version"], state["phase"]
    if type(version) is not int or version not in (1, VERSION):
        raise ValueError(
            f"The checkpoint's pruning engine has version {version!r:.40}, this one reads versions up to {VERSION}"
        )
    if not isinstance(phase, str) or phase not in PHASES:
        raise ValueError(f"The checkpoint's pruning engine is in an unknown phase {phase!r:.40}")
    return state, phase


def checked_rounds(state_dict: Mapping[str, Any], user_keys: Sequence[str]) -> dict[str, Any]:
    """Return the part of a state that Ignite's ``Engine`` loads, whose epochs are rounds.

    Args:
        state_dict: with the number of rounds done, ``"iteration"``.
        user_keys: further keys that the engine saves.

    Raises:
        ValueError: it is damaged.
    """
    rounds = {key: value for key, value in state_dict.items() if key != "pruning"}
    done = rounds.get("iteration")
    if type(done) is not int or not 0 <= done < 2**62:
        raise ValueError("Argument state_dict should hold how many rounds are done, 'iteration', an int from 0 on")
    ends = [rounds[name] for name in ("max_epochs", "max_iters") if rounds.get(name) is not None]
    if not all(type(each) is int and done <= each < 2**62 for each in ends):
        raise ValueError(f"Argument state_dict should end at a round from {done} on, but ends at {ends!r:.60}")
    if type(rounds.get("epoch_length")) is not int or rounds["epoch_length"] != 1:
        raise ValueError("Argument state_dict should have an 'epoch_length' of 1: a round is one iteration")
    lost = [key for key in user_keys if key not in rounds]
    if lost or not ({"max_epochs", "max_iters"} & set(rounds)):
        raise ValueError(f"Argument state_dict is damaged: it lacks {lost or 'max_epochs'}")
    return rounds
