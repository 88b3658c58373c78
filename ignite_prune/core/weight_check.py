"""WeightCheck: verifies that pruned weights are 0, masks them again where they are not, and warns of the cause.

The hooks of :class:`~ignite_prune.core.mask_enforcer.MaskEnforcer` keep zeros through the steps of the optimizers
that a handler was given. Everything else that writes to a weight is unknown to them: another optimizer, a wrapper that
writes after the step, a state_dict that is loaded. The published sparsity counts the masks, and would be wrong without
any sign of it. So the weights are read: a few pruned entries of each parameter after every iteration, other ones each
time, and all of them before an update, at an epoch's end and before a state is saved.

With ``strict`` an error is raised, and with several ranks on all of them, as the others would wait for one that raised
alone: what a rank has found is raised at the next meeting, which each of these readings is but that before a state is
saved, as rank 0 may be the only one that saves it.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from ignite_prune._utils.bits import is_masked
from ignite_prune._utils.distributed import raise_together, world_size
from ignite_prune._utils.shard import collected, local, reshard
from ignite_prune.core.check_report import (
    CheckReport,
    PrunedWeightsAlive,
    SparsityWarning,
    likely_cause,
    listed,
    replaced,
)
from ignite_prune.core.mask_enforcer import MaskEnforcer
from ignite_prune.core.mask_store import MaskStore
from ignite_prune.core.parameter_places import ParameterPlaces
from ignite_prune.core.selection import is_number

_SAMPLE = 64  # pruned entries of each parameter that are read after an iteration
_APART = 16  # iterations from one reading to the next on an accelerator, as reading waits for it


@dataclass
class WeightCheck:
    """Reads the weights of a handler's parameters.

    Args:
        model: unwrapped.
        masks: the handler's.
        enforcer: its hooks keep the zeros; without them nothing is verified.
        owner: name of the handler's class.
        strict: raise an error instead of masking again with a warning.
        clock: returns the iteration of the engine that the handler is attached to; None without an engine.
        warned: the kinds of causes that a warning has named.
    """

    model: nn.Module
    masks: MaskStore
    enforcer: MaskEnforcer
    owner: str
    strict: bool = False
    clock: Callable[[], int | None] | None = None
    warned: set[str] = field(default_factory=set)
    _steps: int = field(default=0, init=False)  # of the enforcer, when all was last right
    _iteration: int | None = field(default=None, init=False)  # when all was last right
    _samples: list[tuple[str, nn.Parameter, Tensor]] = field(default_factory=list, init=False)
    _drawn_at: int = field(default=-1, init=False)  # which state of the masks the samples are of
    _calls: int = field(default=0, init=False)
    _renewed: int = field(default=0, init=False)  # samples that were drawn again; not each call is a reading
    _generator: torch.Generator | None = field(default=None, init=False)
    _found: PrunedWeightsAlive | None = field(default=None, init=False)  # to be raised on all ranks
    _places: ParameterPlaces | None = field(default=None, init=False)  # once something is pruned

    def before_step(self) -> None:
        """Warn of weights that were written between two steps of the optimizers, before the hook masks them again.

        Raises:
            PrunedWeightsAlive: with ``strict``; nothing is changed then. With several ranks it is raised later.
        """
        self._tell(self._alive(), between=True)

    def report(self) -> CheckReport:
        """Compare all weights with the masks; nothing is changed."""
        counted = self.masks.over_ranks({name: count for name, (count, _) in self._alive().items()})
        alive = {name: (count, self._pruned(name)) for name, count in counted.items() if count}
        if self.masks.is_sharded:
            reshard(self.model)
        model = [p for p in self.model.parameters() if is_number(p)]
        every = dict.fromkeys([*model, *self.masks.parameters.values()])  # in one order on all ranks
        zeros = {p: int(collected(p.detach().eq(0).sum())) for p in every}
        pruned = sum(map(self._pruned, self.masks))
        dead = pruned - sum(count for count, _ in alive.values())
        return CheckReport(
            alive,
            pruned,
            sum(zeros[parameter] for parameter in self.masks.parameters.values()) - dead,
            self.masks.sparsity,
            sum(zeros[parameter] for parameter in model) / max(sum(parameter.numel() for parameter in model), 1),
            self._cause()[1] if alive else "",
            () if self.masks.is_sharded else tuple(ParameterPlaces(self.model, self.masks.parameters).lost()),
            self.owner,
        )

    def all(self) -> None:
        """Verify every pruned weight. Those that are not 0 are masked again, with one warning for each kind of cause.

        Raises:
            PrunedWeightsAlive: with ``strict``, on every rank; nothing is changed then.
        """
        self.read()
        self._meet()

    def before_saving(self, attached: bool) -> None:
        """Verify every pruned weight, without a meeting of the ranks unless their parts are saved together.

        Raises:
            PrunedWeightsAlive: with ``strict``; on several ranks at their next meeting if they are ``attached``.
        """
        self.read()
        if self.masks.is_sharded:
            self._meet()
        elif self._found is not None and not attached:
            raise self._found

    def read(self) -> None:
        """Verify every pruned weight as :meth:`all` does, without a meeting of the ranks."""
        if not self.enforcer.is_installed:
            return
        self._look_up()
        if not self.enforcer.is_applied:  # masks were changed by their owner, to be applied at the next step
            self.enforcer.apply()
        elif alive := self._alive():
            self._tell(alive)
            if not self.strict:
                self.enforcer.settle()
        self._is_right()

    def some(self) -> None:
        """Verify a few pruned weights of each parameter, other ones each time; :meth:`all` if one of them is not 0.

        Raises:
            PrunedWeightsAlive: with ``strict``, on every rank; nothing is changed then.
        """
        self._read_some()
        self._meet()

    @torch.no_grad()
    def _read_some(self) -> None:
        self._calls += 1
        if self._drawn_at != self.masks.changes:
            self._draw()
        if not self._samples:
            return self._is_right()
        if self._places is None or ("replaced" not in self.warned and self._places.some_lost()):
            self._look_up()
        if not self._samples[0][1].is_cpu and self._calls % _APART:
            return None
        self._renewed += 1
        index = self._renewed % len(self._samples)
        name, parameter, _ = self._samples[index]
        self._samples[index] = name, parameter, self._sample(name)
        if any(positions.device != parameter.device for _, parameter, positions in self._samples):
            self._draw()  # the model was moved
        read = [local(parameter).take(positions) for _, parameter, positions in self._samples]
        alike = len({values.device for values in read}) == 1
        if bool(torch.cat(read).any()) if alike else any(bool(values.any()) for values in read):
            self.read()
        else:
            self._is_right()

    def _look_up(self) -> None:
        """Warn if the model does not hold the masked parameters any more."""
        if not self.masks.is_sharded:  # their places are taken by whole ones for a forward pass
            self._places = self._places or ParameterPlaces(self.model, self.masks.parameters)
            if (lost := self._places.lost()) and any(self.masks.pruned(name) is not None for name in lost):
                self._say("replaced", replaced(lost, self.owner), "")

    def _meet(self) -> None:
        """Raise on every rank what one has found."""
        if self.strict and world_size() > 1:
            error, self._found = self._found, None
            try:
                raise_together(error, "Pruned weights are not 0 on another rank")
            except ValueError as theirs:
                if f"raised {PrunedWeightsAlive.__name__}: " not in str(theirs):
                    raise
                elsewhere = PrunedWeightsAlive(str(theirs))
                vars(elsewhere).update(vars(theirs))  # that all ranks know it
                raise elsewhere from None

    def follow(self, clock: Callable[[], int | None] | None) -> None:
        """Take the iterations of another engine; the weights have just been masked."""
        self.clock = clock
        self._is_right()

    def _is_right(self) -> None:
        self._steps, self._iteration = self.enforcer.steps, None if self.clock is None else self.clock()

    def _draw(self) -> None:
        drawn = [(name, parameter, self._sample(name)) for name, parameter in self.masks.parameters.items()]
        self._samples, self._drawn_at = [each for each in drawn if each[2].numel()], self.masks.changes

    def _sample(self, name: str) -> Tensor:
        """Return some pruned positions of a parameter; none where nothing is pruned."""
        mask = self.masks.pruned(name)
        if mask is None:
            return torch.empty(0, dtype=torch.long)
        self._generator = self._generator or torch.Generator().manual_seed(0)
        drawn = torch.randint(mask.numel(), (4 * _SAMPLE,), generator=self._generator).to(mask.device)
        pruned = drawn[~mask.take(drawn)]
        if not pruned.numel():  # few are
            places = mask.logical_not().flatten().nonzero().flatten()
            pruned = places[torch.randint(len(places), (_SAMPLE,), generator=self._generator).to(mask.device)]
        return pruned[:_SAMPLE]

    def _alive(self) -> dict[str, tuple[int, int]]:
        """Return the parameters with pruned weights that are not 0: how many, and how many are pruned."""
        counts = dict[str, Tensor]()
        for name, parameter in self.masks.parameters.items():
            mask = self.masks.pruned(name)
            if mask is not None and not (parameter.is_cpu and is_masked(parameter, mask)):
                counts[name] = local(parameter).detach().ne(0).gt(mask).count_nonzero()
        numbers: Iterable[Tensor] = list(counts.values())
        if len({number.device for number in numbers}) == 1:
            numbers = torch.stack(list(numbers)).cpu()  # waits for the device once
        return {name: (int(count), self._pruned(name)) for name, count in zip(counts, numbers) if count}

    def _pruned(self, name: str) -> int:
        return self.masks.parameters[name].numel() - self.masks.kept(name)

    def _tell(self, alive: Mapping[str, tuple[int, int]], between: bool = False) -> None:
        kind, cause = self._cause(between)
        self._say(kind, f"{listed(alive)}. {cause}", "They have been masked again")

    def _say(self, kind: str, text: str, done: str) -> None:
        if self.strict and world_size() > 1:
            self._found = self._found or PrunedWeightsAlive(text)
        elif self.strict:
            raise PrunedWeightsAlive(f"{text}. Nothing was changed" + "; masks.apply_() masks them again" * bool(done))
        elif kind not in self.warned:
            self.warned.add(kind)
            warnings.warn(f"{text}. {done}".removesuffix(". "), SparsityWarning, stacklevel=2)

    def _cause(self, between: bool = False) -> tuple[str, str]:
        given = ", ".join(dict.fromkeys(type(each).__name__ for each in self.enforcer.optimizers))
        now = None if self.clock is None else self.clock()
        trained = now is not None and self._iteration is not None and now > self._iteration
        return likely_cause(self.owner, given, self.enforcer.steps > self._steps, trained, between)
