"""Whole residual blocks as units: which of them change their input least, and a model without them.

A block that adds to its input can be left out: its place is taken by the identity, so the widths around it still fit.
``skipped`` runs the model that way; ``drop`` removes the blocks and compares the two.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from fnmatch import fnmatchcase
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DataParallel, DistributedDataParallel

from ignite_prune._utils.arguments import near
from ignite_prune.core.batches import Batch, LossFn, PrepareBatch, batches
from ignite_prune.core.optimizers import as_optimizers
from ignite_prune.core.selection import unwrap
from ignite_prune.core.undisturbed import undisturbed
from ignite_prune.structure.kept_indices import KeptIndices
from ignite_prune.structure.model_io import tensors_of
from ignite_prune.structure.slicing.block_edit import BlockEdit
from ignite_prune.structure.slicing.compare import run, run_without
from ignite_prune.structure.slicing.model_edit import check_free, undone_on_error
from ignite_prune.structure.slicing.shrink import Report, parameter_count

Scores = dict[str, float]
"""One number a block, larger = more important."""


def blocks(model: nn.Module, rule: str) -> ResidualBlocks:
    """Return the residual blocks of a model that a glob matches.

    Args:
        model: bare, or wrapped in ``torch.compile``.
        rule: glob over paths of modules, matched part by part: ``"encoder.layer.*"``. Each block should be an item of
            an ``nn.ModuleList`` or ``nn.Sequential``, and its output should have its input's shape.

    Raises:
        TypeError: ``rule`` is not a string, or the model is wrapped in DDP.
        ValueError: nothing matches, or a match is not an item of a list.

    Example:
        >>> layer = nn.TransformerEncoderLayer(8, 2, norm_first=True, dropout=0.0)
        >>> blocks(nn.TransformerEncoder(layer, 3, enable_nested_tensor=False), "layers.*")
        ResidualBlocks(['layers.0', 'layers.1', 'layers.2'])
    """
    if isinstance(model, (DistributedDataParallel, DataParallel)):
        raise TypeError("Argument model is wrapped in DDP, which holds every parameter; give model.module")
    if not isinstance(rule, str):
        raise TypeError(f"Argument rule should be a glob over paths of modules, but given {rule!r}")
    model, parts = unwrap(model), rule.split(".")
    paths = [path for path, _ in model.named_modules() if path]
    found = [path for path in paths if _fits(path.split("."), parts)]
    if not found:
        raise ValueError(f"Argument rule: no module matches {rule!r}; {near(rule, paths)}")
    for path in found:
        holder = model.get_submodule(path.rpartition(".")[0])
        if not isinstance(holder, (nn.ModuleList, nn.Sequential)):
            raise ValueError(
                f"Block {path!r} should be an item of a ModuleList or Sequential, but is of {type(holder)}"
            )
    return ResidualBlocks(model, found)


def _joined(path: str, key: str) -> str:
    return f"{path}.{key}" if path else key


def _fits(path: Sequence[str], rule: Sequence[str]) -> bool:
    return len(path) == len(rule) and all(fnmatchcase(*each) for each in zip(path, rule))


class ResidualBlocks:
    """The blocks of one model, made by :func:`blocks`.

    Attributes:
        names: paths of the blocks, in the model's order; after :meth:`drop` those that are left.
    """

    def __init__(self, model: nn.Module, names: Sequence[str]) -> None:
        self._model, self.names = model, list(names)

    def __repr__(self) -> str:
        return f"ResidualBlocks({self.names})"

    def cosine(self, data: Any, *, prepare_batch: PrepareBatch | None = None) -> Scores:
        r"""Return :math:`1 - \cos(x, f(x))` of each block's input and output, a mean over positions and batches.

        Positions are the vectors along the last dimension, or along dimension 1 of images. ShortGPT: Layers in Large
        Language Models are More Redundant Than You Expect (Men et al., 2024), block influence.

        Args:
            data: batches.
            prepare_batch: as of Ignite, for batches of another form than ``(x, y)`` or ``x``.
        """

        def score(batch: Batch, seen: Mapping[str, tuple[Tensor, Tensor]]) -> Scores:
            return {name: float((1 - _cosine(x, y)).mean()) for name, (x, y) in seen.items()}

        return self._mean(data, None, prepare_batch, lambda batch: score(batch, self._seen(batch)[1]))

    def taylor(self, data: Any, loss_fn: LossFn, *, prepare_batch: PrepareBatch | None = None) -> Scores:
        r"""Return :math:`|\sum g (f(x) - x)|` with the loss's gradient g: the first-order change of loss without it.

        Args:
            data: batches.
            loss_fn: ``loss_fn(output, target)``, a mean.
            prepare_batch: as of Ignite.
        """

        def score(batch: Batch) -> Scores:
            output, seen = self._seen(batch)
            pairs = [(x.detach(), y) for x, y in seen.values()]
            found = torch.autograd.grad(batch.loss(output), [y for _, y in pairs])
            changes = [abs(float((g * (y.detach() - x)).sum())) for g, (x, y) in zip(found, pairs)]
            return dict(zip(seen, changes))

        return self._mean(data, loss_fn, prepare_batch, score)

    def loss(self, data: Any, loss_fn: LossFn, *, prepare_batch: PrepareBatch | None = None) -> Scores:
        """Return by how much the loss rises without each block: one pass over the data a block.

        Args:
            data: batches, which can be read more than once.
            loss_fn: ``loss_fn(output, target)``, a mean.
            prepare_batch: as of Ignite.
        """

        def score(batch: Batch) -> Scores:
            found = {}
            with torch.no_grad():
                whole = float(batch.loss())
                for name in self.names:
                    with self.skipped([name]):
                        found[name] = float(batch.loss()) - whole
            return found

        return self._mean(data, loss_fn, prepare_batch, score)

    @contextmanager
    def skipped(self, names: Sequence[str]) -> Iterator[None]:
        """Return a context in which the named blocks return their input, as if their residual branches were 0."""
        self._check(names)
        with ExitStack() as stack:
            for name in names:
                hook = _returning_input(name)
                stack.callback(self._block(name).register_forward_hook(hook, with_kwargs=True).remove)
            yield

    def drop(
        self,
        which: int | Sequence[str],
        example_inputs: Any,
        *,
        scores: Mapping[str, float] | None = None,
        optimizer: Any = None,
    ) -> Report:
        """Remove blocks from the model, in place; it then equals the model that skips them.

        The list keeps its type, and later blocks move up. Attributes and config entries that hold the number of blocks
        (``num_hidden_layers``) or an entry for each (``layer_types``), and the index of each layer (``layer_idx``) are
        set as in a model built with fewer blocks, which loads the ``state_dict``. Optimizers lose the parameters. Make
        a ``PruneHandler`` afterwards.

        Args:
            which: paths of the blocks; or how many, those with the smallest ``scores``.
            example_inputs: inputs of the model, for the comparison.
            scores: of all blocks, such as :meth:`cosine`.
            optimizer: the optimizer or optimizers that train the model.

        Returns:
            The sizes before and after; ``units`` holds the number of blocks of each list.

        Raises:
            TypeError, ValueError: a name is unknown, none would be left, scores are missing or not finite, parameters
                have hooks, or the outputs differ from those of the model that skips the blocks. Nothing has changed
                then.
        """
        gone = self._chosen(which, scores)
        check_free(self._model, [f"{name}.{own}" for name in gone for own, _ in self._block(name).named_parameters()])
        parameters, (_, flops) = parameter_count(self._model), run(self._model, example_inputs, True)
        with self.skipped(gone):
            expected, _ = run(self._model, example_inputs)
        edit = BlockEdit(self._model, as_optimizers(optimizer))
        with undone_on_error([edit]):
            units = self._edit(edit, gone)
            reference = (
                "the one that skips them, so it was put back: a block does more than change its input, or forward() "
                "tells blocks by their place"
            )
            fewer, error = run_without(self._model, example_inputs, expected, ", ".join(gone), reference)
        lists = self._names_by_list().items()
        self.names = [_joined(path, key) for path, keys in lists for key in keys[: units.get(path, (0, len(keys)))[1]]]
        return Report(units, (parameters, parameter_count(self._model)), (flops, fewer), error, KeptIndices())

    def _edit(self, edit: BlockEdit, gone: Sequence[str]) -> dict[str, tuple[int, int]]:
        """Remove blocks, and return how many each list had and has."""
        units = {}
        for path, keys in self._names_by_list().items():
            without = [key for key in keys if _joined(path, key) in gone]
            if without:
                edit.drop(path, keys, without)
                units[path] = (len(keys), len(keys) - len(without))
        return units

    def _names_by_list(self) -> dict[str, list[str]]:
        """Return the keys of the blocks in each list, by its path."""
        lists: dict[str, list[str]] = {}
        for name in self.names:
            lists.setdefault(name.rpartition(".")[0], []).append(name.rpartition(".")[2])
        return lists

    def _block(self, name: str) -> nn.Module:
        return self._model.get_submodule(name)

    def _check(self, names: Sequence[str]) -> None:
        for name in names:
            if name not in self.names:
                raise ValueError(f"There is no block {name!r}; {near(str(name), self.names)}")

    def _chosen(self, which: int | Sequence[str], scores: Mapping[str, float] | None) -> list[str]:
        if isinstance(which, bool) or (not isinstance(which, int) and isinstance(which, str)):
            raise TypeError(f"Argument which should be a number of blocks or their paths, but given {which!r}")
        if isinstance(which, int):
            if scores is None:
                raise ValueError("Argument scores should be given with a number of blocks: drop(2, x, scores=...)")
            missing = [name for name in self.names if name not in scores]
            if missing or not all(torch.tensor([float(scores[name]) for name in self.names]).isfinite()):
                raise ValueError(f"Argument scores should be finite numbers for every block, but given {dict(scores)}")
            names = sorted(self.names, key=lambda name: scores[name])[: max(which, 0)]  # ties by position
        else:
            names = list(dict.fromkeys(which))
        self._check(names)
        if not names or len(names) >= len(self.names):
            raise ValueError(f"Argument which should leave some of the {len(self.names)} blocks, but given {which!r}")
        return [name for name in self.names if name in names]

    def _seen(self, batch: Batch) -> tuple[Any, dict[str, tuple[Tensor, Tensor]]]:
        """Run the model and return its output, and the last input and output of each block."""
        seen: dict[str, tuple[Tensor, Tensor]] = {}
        with ExitStack() as stack:
            for name in self.names:
                hook = _recording(name, seen)
                stack.callback(self._block(name).register_forward_hook(hook, with_kwargs=True).remove)
            output = batch.output()
        unused = next((name for name in self.names if name not in seen), None)
        if unused is not None:
            raise ValueError(f"Block {unused!r} is not called by the forward pass, so it has no score")
        return output, {name: seen[name] for name in self.names}

    def _mean(
        self, data: Any, loss_fn: LossFn | None, prepare: PrepareBatch | None, score: Callable[[Batch], Scores]
    ) -> Scores:
        """Return the mean of scores over the samples of the data."""
        total, size = dict.fromkeys(self.names, 0.0), 0
        device = next(iter(self._model.parameters())).device
        with undisturbed(self._model):
            for batch in batches(self._model, data, loss_fn, prepare, device):
                size += batch.size
                for name, value in score(batch).items():
                    total[name] += value * batch.size
        found = {name: value / max(size, 1) for name, value in total.items()}
        wrong = next((name for name, value in found.items() if not abs(value) < float("inf")), None)
        if wrong is not None:
            raise ValueError(f"The score of block {wrong!r} is {found[wrong]}")
        return found


def _returning_input(name: str) -> Callable[..., Any]:
    def hook(module: nn.Module, args: Any, kwargs: Any, output: Any) -> Any:
        x, _ = _ends(name, args, kwargs, output)
        return x if isinstance(output, Tensor) else type(output)([x, *output[1:]])

    return hook


def _recording(name: str, seen: dict[str, tuple[Tensor, Tensor]]) -> Callable[..., Any]:
    def hook(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        seen[name] = _ends(name, args, kwargs, output)

    return hook


def _ends(name: str, args: Any, kwargs: Any, output: Any) -> tuple[Tensor, Tensor]:
    """Return the input and output of a block: the first floating-point tensor, and the first of several outputs."""
    y = output if isinstance(output, Tensor) else output[0] if isinstance(output, (tuple, list)) and output else None
    x = next((each for each in tensors_of([*args, *kwargs.values()]) if each.is_floating_point()), None)
    if x is None or not isinstance(y, Tensor) or x.shape != y.shape:
        shapes = [tuple(each.shape) if isinstance(each, Tensor) else type(each).__name__ for each in (x, y)]
        raise ValueError(f"Block {name!r} should give a tensor of its input's shape {shapes[0]}, but gives {shapes[1]}")
    return x, y


def _cosine(x: Tensor, y: Tensor) -> Tensor:
    return F.cosine_similarity(x.detach().double(), y.detach().double(), dim=1 if x.dim() > 3 else -1)
