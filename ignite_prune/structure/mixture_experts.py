"""Experts of mixtures as units: removed with their rows of the router, and with the numbers that configs hold.

A mixture is a module with a router, whose weight has one row for each expert, and with experts, which are the items of
an ``nn.ModuleList`` or the first dimension of three-dimensional parameters. A model without some experts equals the one
whose router gives them logits of minus infinity: no token is sent to them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DataParallel, DistributedDataParallel

from ignite_prune._utils.arguments import near
from ignite_prune.core.batches import PrepareBatch, batches
from ignite_prune.core.optimizers import as_optimizers
from ignite_prune.core.selection import unwrap
from ignite_prune.core.undisturbed import undisturbed
from ignite_prune.structure.kept_indices import KeptIndices
from ignite_prune.structure.mixture import (
    CHOSEN,
    COUNT,
    MixtureRouting,
    integers_of,
    mixtures_of,
    numbers_of,
    sliced_mixture,
)
from ignite_prune.structure.slicing.block_edit import BlockEdit
from ignite_prune.structure.slicing.compare import run, run_without
from ignite_prune.structure.slicing.model_edit import ModelEdit, check_free, undone_on_error
from ignite_prune.structure.slicing.module_attributes import configs_along
from ignite_prune.structure.slicing.shrink import Report, parameter_count

Numbers = Mapping[str, Sequence[int]]
"""Numbers of experts by path of a mixture."""


def experts(model: nn.Module) -> Experts:
    """Return the mixtures of experts of a model.

    Args:
        model: bare, or wrapped in ``torch.compile``.

    Raises:
        TypeError: the model is wrapped in DDP.
        ValueError: it has no mixture: no module with experts and a router with one row for each.

    Example:
        >>> class Mixture(nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.gate = nn.Linear(4, 3)
        ...         self.experts = nn.ModuleList(nn.Linear(4, 4) for _ in range(3))
        ...     def forward(self, x):
        ...         share = self.gate(x).softmax(-1)
        ...         return sum(share[..., i : i + 1] * each(x) for i, each in enumerate(self.experts))
        >>> model = nn.Sequential(Mixture())
        >>> mixtures = experts(model)
        >>> mixtures.sizes
        {'0': 3}
        >>> mixtures.drop({"0": [1]}, torch.randn(2, 4)).units
        {'0': (3, 2)}
    """
    if isinstance(model, (DistributedDataParallel, DataParallel)):
        raise TypeError("Argument model is wrapped in DDP, which holds every parameter; give model.module")
    return Experts(unwrap(model))


class Experts:
    """The experts of one model, made by :func:`experts`.

    Attributes:
        sizes: the number of experts by path of the mixture; after :meth:`drop` of those that are left.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model, self._mixtures = model, dict(mixtures_of(model))
        if not self._mixtures:
            raise ValueError(
                f"Argument model: {type(model).__name__} has no mixture of experts: a module with a ModuleList or "
                "three-dimensional parameters of experts, and a router whose weight has a row for each of them"
            )

    @property
    def sizes(self) -> dict[str, int]:
        return {path: each.size for path, each in self._mixtures.items()}

    def __repr__(self) -> str:
        return f"Experts({self.sizes})"

    def usage(self, data: Any, *, prepare_batch: PrepareBatch | None = None) -> dict[str, Tensor]:
        """Return the mean probability that each router gives each expert, ``(experts,)``, by path of the mixture.

        Args:
            data: batches.
            prepare_batch: as of Ignite, for batches of another form than ``(x, y)`` or ``x``.

        Raises:
            ValueError: a router is not called, or does not compute its logits with ``linear``.
        """
        total = {path: torch.zeros(each.size, dtype=torch.float64) for path, each in self._mixtures.items()}
        rows = dict.fromkeys(total, 0)

        def add(path: str, logits: Tensor) -> Tensor:
            shares = logits.detach().flatten(0, -2).double().softmax(-1)
            total[path] += shares.sum(0).cpu()
            rows[path] += len(shares)
            return logits

        device = next(self._model.parameters()).device
        with undisturbed(self._model), torch.no_grad(), MixtureRouting(self._mixtures, add):
            for batch in batches(self._model, data, None, prepare_batch, device):
                batch.output()
        self._check_called({path for path, count in rows.items() if count})
        return {path: each / rows[path] for path, each in total.items()}

    @contextmanager
    def masked(self, gone: Numbers) -> Iterator[set[str]]:
        """Return a context in which the routers send nothing to the given experts."""
        gone, called = self._checked(gone), set[str]()

        def without(path: str, logits: Tensor) -> Tensor:
            called.add(path)
            return logits.index_fill(-1, torch.tensor(gone.get(path, []), device=logits.device).long(), -torch.inf)

        with MixtureRouting(self._mixtures, without):
            yield called

    def drop(
        self,
        which: int | Numbers,
        example_inputs: Any,
        *,
        scores: Mapping[str, Tensor] | None = None,
        optimizer: Any = None,
    ) -> Report:
        """Remove experts, in place; the model then equals the one whose routers send nothing to them.

        Rows of the routers, attributes and config entries that hold the number of experts, and optimizers follow. Make
        a ``PruneHandler`` afterwards.

        Args:
            which: numbers of the experts by path of the mixture; or how many of each mixture, those with the smallest
                ``scores``.
            example_inputs: inputs of the model, for the comparison.
            scores: of all experts, such as :meth:`usage`.
            optimizer: the optimizer or optimizers that train the model.

        Returns:
            The sizes before and after; ``units`` holds the number of experts of each mixture.

        Raises:
            TypeError, ValueError: an unknown mixture or expert, fewer would be left than a token is sent to, mixtures
                that share a config would differ in size, or the outputs differ from those of the model with masked
                routers. Nothing has changed then.
        """
        gone = self._chosen(which, scores)
        self._check_left(gone)
        check_free(self._model, [name for path in gone for name in self._names(path)])
        parameters, (_, flops) = parameter_count(self._model), run(self._model, example_inputs, True)
        with self.masked(gone) as called:
            expected, _ = run(self._model, example_inputs)
        self._check_called(called & set(gone) | (set(self._mixtures) - set(gone)))
        stay = {
            path: torch.tensor([i for i in range(self.sizes[path]) if i not in each]) for path, each in gone.items()
        }
        optimizers = as_optimizers(optimizer)
        edits = ModelEdit(self._model, optimizers), BlockEdit(self._model, optimizers)
        indices = {name: {0: stay[path]} for path in gone for name in self._mixtures[path].tensors}
        with undone_on_error(edits):
            for path, each in gone.items():
                self._edit(edits[1], path, each)
            edits[0].slice(indices)
            reference = "the one whose routers send nothing to them, so it was put back"
            fewer, error = run_without(self._model, example_inputs, expected, "these experts", reference)
        before = self.sizes
        self._mixtures = {path: sliced_mixture(self._model, each) for path, each in self._mixtures.items()}
        units = {path: (before[path], self.sizes[path]) for path in gone}
        sizes = parameters, parameter_count(self._model)
        return Report(units, sizes, (flops, fewer), error, KeptIndices(indices))

    def _names(self, path: str) -> list[str]:
        """Return the names of all parameters and buffers of a mixture's experts and of its router."""
        mixture = self._mixtures[path]
        inside = [
            f"{each}.{name}" for each in mixture.lists for name, _ in self._model.get_submodule(each).named_parameters()
        ]
        return [*mixture.tensors, *inside]

    def _edit(self, edit: BlockEdit, path: str, gone: Sequence[int]) -> None:
        mixture = self._mixtures[path]
        for each in mixture.lists:
            keys = list(self._model.get_submodule(each)._modules)
            edit.remove(each, keys, [keys[number] for number in gone])
        for owner, name in numbers_of(self._model, path, mixture, COUNT):
            if getattr(owner, name) == mixture.size:
                edit.assign(owner, name, mixture.size - len(gone))

    def _checked(self, which: Numbers) -> dict[str, list[int]]:
        found = {}
        for path, numbers in which.items():
            if path not in self._mixtures:
                raise ValueError(f"There is no mixture {path!r}; {near(str(path), list(self._mixtures))}")
            wrong = [each for each in numbers if type(each) is not int]
            if wrong:
                raise TypeError(f"The experts of {path!r} should be given as whole numbers, but given {wrong[0]!r}")
            found[path] = sorted(set(numbers))
            wrong = [each for each in numbers if not 0 <= each < self.sizes[path]]
            if wrong:
                raise ValueError(f"There is no expert {wrong[0]} of {path!r}, which has {self.sizes[path]}")
        return {path: numbers for path, numbers in found.items() if numbers}

    def _chosen(self, which: int | Numbers, scores: Mapping[str, Tensor] | None) -> dict[str, list[int]]:
        if isinstance(which, Mapping):
            gone = self._checked(which)
        elif type(which) is not int:
            raise TypeError(f"Argument which should be a number of experts or a mapping, but given {which!r}")
        elif scores is None:
            raise ValueError("Argument scores should be given with a number of experts: drop(2, x, scores=...)")
        elif not 0 < which < min(self.sizes.values()):
            raise ValueError(
                f"Argument which should be a number of experts from 1 to {min(self.sizes.values()) - 1}, as each "
                f"mixture keeps at least one, but given {which}"
            )
        else:
            gone = {}
            for path, size in self.sizes.items():
                each = torch.as_tensor(scores.get(path, ()), dtype=torch.float64)
                if each.shape != (size,) or not each.isfinite().all():
                    raise ValueError(
                        f"Argument scores should hold {size} finite numbers for {path!r}, but given {each}"
                    )
                gone[path] = sorted(each.argsort(stable=True)[:which].tolist())
        if not any(gone.values()):
            raise ValueError(f"Argument which should name experts to remove, but given {which!r}")
        return gone

    def _check_left(self, gone: Mapping[str, Sequence[int]]) -> None:
        """Raise ValueError if too few experts would be left, or if one config described mixtures of several sizes."""
        sizes: dict[tuple[int, str], set[int]] = {}
        for path, mixture in self._mixtures.items():
            left = mixture.size - len(gone.get(path, ()))
            chosen = [getattr(*each) for each in numbers_of(self._model, path, mixture, CHOSEN)]
            least = max([1, *(each for each in chosen if each <= mixture.size)])
            if left < least:
                raise ValueError(
                    f"{left} of the {mixture.size} experts of {path!r} would be left, but its router sends each token "
                    f"to {least}"
                )
            for config in configs_along(self._model, path):
                for name in (name for name, _ in integers_of(config) if COUNT.fullmatch(name)):
                    sizes.setdefault((id(config), name), set()).add(left)
        if any(len(each) > 1 for each in sizes.values()):
            raise ValueError(
                f"The mixtures {', '.join(self._mixtures)} share a config with one number of experts: remove as many "
                "of each"
            )

    def _check_called(self, called: set[str]) -> None:
        missing = [path for path in self._mixtures if path not in called]
        if missing:
            raise ValueError(
                f"The router of {missing[0]!r} is not called with linear(x, weight), so its logits are not known"
            )
