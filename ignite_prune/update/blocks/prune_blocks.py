"""Pruning a model in one shot, block by block: :func:`prune_blocks`."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ignite_prune._utils.arguments import check_callable
from ignite_prune._utils.bits import pack, unpack
from ignite_prune._utils.commit import to_the_end
from ignite_prune.allocation import Allocation, Uniform
from ignite_prune.core.batches import PrepareBatch
from ignite_prune.core.mask_store import warn_of_nearly_empty
from ignite_prune.core.selection import named_parameters, unwrap
from ignite_prune.pattern import Pattern, Unstructured
from ignite_prune.repair.base import Repair
from ignite_prune.saliency import Saliency, Wanda
from ignite_prune.update.blocks.activation_store import ActivationStore, Offload, stored
from ignite_prune.update.blocks.block_groups import block_groups, check_model
from ignite_prune.update.blocks.block_list import find_blocks
from ignite_prune.update.blocks.block_masks import BlockMasks, BlockReport, BlocksReport
from ignite_prune.update.blocks.block_pruner import BlockPruner
from ignite_prune.update.blocks.block_weights import BlockWeights
from ignite_prune.update.blocks.calibration_batches import prepared
from ignite_prune.update.blocks.progress import check_progress, shown
from ignite_prune.update.blocks.unfinished_blocks import UnfinishedBlocks, progress_text
from ignite_prune.update.calibration import Calibration, as_calibration
from ignite_prune.update.param_group import ParamGroup
from ignite_prune.update.plan import UpdatePlan, write_values


def prune_blocks(
    model: nn.Module,
    blocks: Any,
    *,
    data: Iterable[Any] | None = None,
    sparsity: float | None = None,
    saliency: Saliency | Callable[[str, Tensor], Tensor] = Wanda(),
    repair: Repair | Sequence[Repair] | None = None,
    pattern: Pattern = Unstructured(),
    allocation: Allocation = Uniform(),
    params: Any = None,
    exclude: Any = (),
    sequential: bool = True,
    device: torch.device | str | None = None,
    offload: Offload | None = "cpu",
    offload_folder: str | Path | None = None,
    prepare_batch: PrepareBatch | None = None,
    calibration: Calibration | None = None,
    generator: torch.Generator | None = None,
    evaluate: Callable[[nn.Module], Any] | None = None,
    progress: bool = False,
    atomic: bool = False,
) -> BlockMasks:
    """Prune a model in one shot, block by block, as SparseGPT and Wanda are published.

    For each block in turn: its evidence is gathered from all calibration batches, its layers are pruned, and it runs
    again with the pruned weights, whose outputs are the inputs of the next block. Memory: one block's evidence, and one
    block's outputs for all batches.

    Each pass is a forward of the model that ends with the block; the blocks before it return what was stored.
    Embeddings, positions, masks, rotary embeddings and caches are therefore those that the model itself passes to each
    block, also if blocks get different ones, or if encoder and decoder are both in the list.

    Args:
        model: in eval mode; bare, or wrapped in DDP or ``torch.compile``.
        blocks: a glob over module names, in which ``*`` stands for the part between two dots (``"model.layers.*"``),
            several of them, or modules (``model.layers``); in the order of their calls.
        data: calibration batches, as :func:`~ignite_prune.prune_model` takes them; gone over once.
        sparsity: of the selected parameters of each block, in [0, 1].
        saliency: scores the entries, larger = kept.
        repair: one of ``ignite_prune.repair``, or several in order, of those that work on single layers.
        pattern: which entries are pruned together.
        allocation: divides the sparsity over the parameters of a block. ``OWL()`` divides it over the blocks, by a pass
            over the dense model ahead; within a block it is uniform then.
        params: None, or rules for parameters, of which those in blocks are pruned.
        exclude: rules for parameters to leave out.
        sequential: whether a block is calibrated on what the pruned blocks before it give out; otherwise on what the
            dense ones do, which saves a pass and is less accurate.
        device: where blocks run, one at a time; None: where they are. What is outside of the blocks is moved too.
        offload: where outputs are kept between blocks: ``"cpu"``, ``"disk"``, or None: where they are computed.
        offload_folder: with ``"disk"``, a folder in which a temporary one is made; None: the system's.
        prepare_batch: Ignite's ``(batch, device, non_blocking) -> (x, y)``.
        calibration: ``data`` and ``prepare_batch`` as one value.
        generator: for random saliencies; None uses torch's default generator.
        evaluate: called with the model before and after, without gradients; its results are in the report.
        progress: show a bar with the time left (tqdm).
        atomic: undo all blocks if one fails. The old weights of pruned blocks are kept until the end for this, where
            ``offload`` says.

    Returns:
        The masks, a :class:`~ignite_prune.MaskStore` with ``masks.report``. Pruned weights are zero. To train on with
        the zeros kept, pass the masks to ``PruneHandler(masks=...)``.

    Raises:
        TypeError, ValueError: a bad argument, blocks that are not called once each in this order, or data that they
            cannot be run on. Nothing is changed then.
        UnfinishedBlocks: pruning failed at a later block (a RuntimeError and a ValueError); it names the blocks that
            are pruned. With ``atomic=True`` none is.

    Example:
        >>> model = nn.Sequential(nn.Linear(8, 8), nn.Sequential(nn.Linear(8, 8), nn.ReLU()), nn.Linear(8, 2)).eval()
        >>> masks = prune_blocks(model, "*", data=[torch.randn(16, 8)], sparsity=0.5)
        >>> print(masks.report.sparsity, masks.kept("1.0.weight"))
        0.5 32

    References:
        Frantar, Alistarh, "SparseGPT", 2023, arXiv 2301.00774. Sun, Liu, Bair, Kolter, "A simple and effective pruning
        approach for large language models", 2023, arXiv 2306.11695.
    """
    calibration = as_calibration(calibration, data, None, prepare_batch)
    _check_flags(sequential=sequential, atomic=atomic)
    check_progress(progress)
    check_callable("evaluate", evaluate)
    target = None if device is None else torch.device(device)
    model = unwrap(model)
    check_model(model)
    modules = find_blocks(model, blocks)
    groups = block_groups(
        model,
        modules,
        params,
        exclude,
        sparsity=sparsity,
        saliency=saliency,
        pattern=pattern,
        allocation=allocation,
        generator=generator,
        repair=repair,
    )
    where = target or next(model.parameters()).device
    with stored(offload, offload_folder, where) as store:
        weights = BlockWeights(model, modules, target)
        number, route = prepared(model, modules, groups, calibration, store, weights, where)
        before = _evaluated(model, evaluate)
        found, kept = dict[str, Tensor](), _Undo(model, store if atomic else None)
        pruner = BlockPruner(
            model, route, groups, weights, store, number, sequential, kept.keep, partial(_put, found), lambda what: None
        )
        reports, began = list[BlockReport](), time.perf_counter()
        with shown(progress, pruner.passes) as pruner.advance, _explained(pruner, reports, kept):
            pruner.run(lambda place, report: reports.append(report) if report.name in groups else None)
    seconds, masks = time.perf_counter() - began, _masks_of(model, groups, found)
    warn_of_nearly_empty(masks, set())
    masks.report = BlocksReport(tuple(reports), seconds, before, _evaluated(model, evaluate))
    return masks


@torch.no_grad()
def _evaluated(model: nn.Module, evaluate: Callable[[nn.Module], Any] | None) -> Any:
    return None if evaluate is None else evaluate(model)


def _check_flags(**flags: Any) -> None:
    for name, value in flags.items():
        if not isinstance(value, bool):
            raise TypeError(f"Argument {name} should be a bool, but given {value!r}")


def _masks_of(model: nn.Module, groups: Mapping[str, ParamGroup], bits: dict[str, Tensor]) -> BlockMasks:
    """Return masks of one bit for each entry as bool tensors; ``bits`` is empty afterwards."""
    parameters, masks = named_parameters(model), {}
    while bits:
        name, packed = bits.popitem()
        parameter = parameters[name]
        masks[name] = unpack(packed, parameter.numel()).view(parameter.shape).to(parameter.device)
    found = BlockMasks({name: parameters[name] for group in groups.values() for name in group["params"]})
    found.put(found.replaced(masks))
    return found


def _put(bits: dict[str, Tensor], name: str, plan: UpdatePlan) -> None:
    """Keep masks in one bit for each entry, as those of all blocks are a quarter of a model's memory otherwise."""
    bits |= {each: pack(mask) for each, mask in plan.masks.items()}


class _Undo:
    """Stores the values that pruning changes, to undo it.

    Args:
        model: unwrapped.
        store: where to keep it; None: it cannot be undone.
    """

    def __init__(self, model: nn.Module, store: ActivationStore | None) -> None:
        self._model, self._store, self._number = model, store, 0

    @property
    def possible(self) -> bool:
        """Whether changes are undone."""
        return self._store is not None

    def keep(self, plan: UpdatePlan) -> None:
        """Store the values that a plan changes."""
        if self._store is not None:
            parameters, buffers = named_parameters(self._model), dict(self._model.named_buffers())
            names = [*plan.masks, *(name for name in plan.values if name not in plan.masks)]
            now = {name: (parameters[name] if name in parameters else buffers[name]).detach().clone() for name in names}
            self._store.put(_KEPT, self._number, now)
            self._number += 1

    def undo(self) -> None:
        """Write everything back."""
        if self._store is not None:
            for number in range(self._number):
                write_values(self._model, self._store.get(_KEPT, number))


_KEPT = -1  # a batch of its own


@contextmanager
def _explained(pruner: BlockPruner, reports: Sequence[BlockReport], kept: _Undo) -> Iterator[None]:
    """Say which blocks are pruned if an error ends pruning, or undo it."""
    try:
        yield
    except BaseException as error:
        if kept.possible:
            to_the_end(kept.undo)
            raise
        done = [report.name for report in reports]
        if not done:
            raise
        text = progress_text(pruner.at, done)
        if not isinstance(error, Exception):  # Ctrl-C stays what it is
            error.args = (*error.args, text)
            raise
        raise UnfinishedBlocks(f"{text}. The cause: {error}", done) from error
