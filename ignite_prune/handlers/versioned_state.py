"""VersionedState: the state of a handler in a checkpoint, which later versions of the package still read.

A state is plain data with a version. It is loaded in two steps: everything is checked and nothing is changed, then
all is assigned at once, and repeated to its end if something (Ctrl-C) cuts that short. So a refused checkpoint leaves a
handler, its masks and its model as they were.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

from ignite_prune._utils.commit import to_the_end
from ignite_prune._utils.pairs import as_pairs, from_pairs
from ignite_prune.handlers.attachment import Progress


class VersionedState(ABC):
    """An object with a state_dict, until it is finalized.

    Attributes:
        VERSION: of the state_dict; older ones from 1 on are read, see :meth:`_upgraded`.
        KEYS: of the state_dict in their order, without ``"version"``.
        VARYING: those keys whose mappings have other entries from time to time: saved as lists of pairs.
    """

    VERSION: ClassVar[int] = 2  # 1 had no lists of pairs
    KEYS: ClassVar[tuple[str, ...]]
    VARYING: ClassVar[tuple[str, ...]] = ()
    _progress: Progress
    _finalized = False

    @abstractmethod
    def _state(self) -> dict[str, Any]:
        """Return the state as plain data, without version and progress."""

    @abstractmethod
    def _checked(self, state: Mapping[str, Any]) -> Callable[[], None]:
        """Return a function that loads a state with all keys, or raise and change nothing."""

    @abstractmethod
    def _verify_saved(self) -> None:
        """Verify what a state is saved of."""

    @abstractmethod
    def _publish(self) -> None:
        """Publish what was loaded."""

    def _upgraded(self, state: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return a state of an older version in the form of this one."""
        return state

    def _loaded(self) -> None:
        """Act on a state that has been loaded."""

    def _check_parameters(self) -> None:
        """Raise ValueError if the model's parameters have been replaced."""

    def _check_usable(self) -> None:
        if self._finalized:
            raise ValueError(f"This {type(self).__name__} is finished: finalize() was called; make a new one")

    def state_dict(self) -> dict[str, Any]:
        """Return the state as plain data, which ``torch.load(weights_only=True)`` reads.

        ``torch.distributed.checkpoint`` loads it into the state_dict of a new handler without loss.

        Raises:
            PrunedWeightsAlive: a strict handler's pruned weights are not 0; attached on several ranks it is raised at
                the next iteration or epoch's end, on all of them.
        """
        self._verify_saved()
        parts = {"progress": self._progress.state_dict(), **self._state()}
        assert set(parts) <= {*self.KEYS, "progress"}, f"{type(self).__name__}.KEYS should name all of its state"
        parts |= {key: as_pairs(parts[key]) for key in self.VARYING}
        return {"version": self.VERSION, **{key: parts[key] for key in self.KEYS}}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Load a state. Everything is checked first; if it is refused, nothing has changed.

        Raises:
            TypeError: not a state_dict of this class.
            ValueError: of another handler, parameters, shapes or groups, of a later version, or damaged; or this object
                is finalized, or the model's parameters have been replaced.
        """
        self._check_usable()
        self._check_parameters()
        state = self._checked_form(state_dict)
        progress = Progress.from_state(state["progress"]) if "progress" in state else self._progress
        load = self._checked(state)

        def commit() -> None:
            load()
            self._progress.__dict__.update(vars(progress))
            self._loaded()

        to_the_end(commit)
        self._publish()

    def _checked_form(self, state: Any) -> Mapping[str, Any]:
        """Return a state of this version with all keys, or raise."""
        kind = type(self).__name__
        version = state.get("version") if isinstance(state, Mapping) else None
        if not isinstance(state, Mapping) or type(version) is not int:
            raise TypeError(
                f"Argument state_dict should be a {kind}'s, a mapping with a whole 'version', but given {type(state)}"
            )
        if not 1 <= version <= self.VERSION:
            raise ValueError(
                f"The checkpoint's {kind} has version {version}, this one reads versions up to {self.VERSION}; update "
                "ignite_prune"
            )
        if not isinstance(state.get("kind", kind), str) or state.get("kind", kind) != kind:
            raise ValueError(f"The checkpoint is of {state['kind']!r:.40}, but this is a {kind}")
        upgraded = self._upgraded(state)
        missing = set(self.KEYS) - set(upgraded)
        if missing:
            raise ValueError(f"The checkpoint's {kind} is damaged: it lacks {sorted(missing)}")
        return {**upgraded, **{key: from_pairs(upgraded[key]) for key in self.VARYING}}
