"""Pruning a checkpoint that is larger than memory: :func:`prune_checkpoint`."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ignite_prune._utils.arguments import check_callable
from ignite_prune.allocation import Allocation, Uniform
from ignite_prune.core.batches import PrepareBatch
from ignite_prune.core.selection import named_parameters
from ignite_prune.pattern import Pattern, Unstructured
from ignite_prune.repair.base import Repair
from ignite_prune.saliency import Saliency, Wanda
from ignite_prune.update.blocks.activation_store import DiskActivationStore
from ignite_prune.update.blocks.block_groups import block_groups, check_model
from ignite_prune.update.blocks.block_list import find_blocks
from ignite_prune.update.blocks.block_masks import BlocksReport
from ignite_prune.update.blocks.block_pruner import BlockPruner
from ignite_prune.update.blocks.calibration_batches import prepared
from ignite_prune.update.blocks.checkpoint_weights import CheckpointWeights, built_empty
from ignite_prune.update.blocks.checkpoint_work import CheckpointWork
from ignite_prune.update.blocks.journal import setting_text
from ignite_prune.update.blocks.progress import check_progress, shown
from ignite_prune.update.blocks.safetensors_files import SafetensorsFiles
from ignite_prune.update.calibration import Calibration, as_calibration
from ignite_prune.update.param_group import ParamGroup
from ignite_prune.update.plan import UpdatePlan


def prune_checkpoint(
    source: str | Path,
    out: str | Path,
    *,
    build: Callable[[], nn.Module],
    blocks: Any,
    data: Iterable[Any] | None = None,
    sparsity: float | None = None,
    saliency: Saliency | Callable[[str, Tensor], Tensor] = Wanda(),
    repair: Repair | Sequence[Repair] | None = None,
    pattern: Pattern = Unstructured(),
    allocation: Allocation = Uniform(),
    params: Any = None,
    exclude: Any = (),
    sequential: bool = True,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
    rename: Callable[[str], str] = str,
    prepare_batch: PrepareBatch | None = None,
    calibration: Calibration | None = None,
    generator: torch.Generator | None = None,
    progress: bool = False,
) -> BlocksReport:
    """Prune a safetensors checkpoint block by block, for a model that is larger than memory.

    The order is that of :func:`~ignite_prune.prune_blocks`. Blocks are read, pruned and written one at a time; their
    outputs are kept on disk. Memory: what is outside of the blocks and called ahead of the last one (embeddings), one
    block, its evidence, and one batch.

    ``out`` appears when all is done: files, names, shapes and types of tensors are those of ``source``. Until then the
    work is in the folder ``.{name of out}.partial`` next to it. After a kill, the same call goes on at the block that
    was not finished, and gives the same bytes as an uninterrupted one.

    Args:
        source: a ``.safetensors`` file, a ``.safetensors.index.json``, or a folder with either. Other small files of a
            folder (configurations, tokenizers) are copied.
        out: a folder that is not there yet; with a file as source, it may be a ``.safetensors`` file.
        build: returns the model, without weights; parameters that it makes take no memory.
        blocks: as :func:`~ignite_prune.prune_blocks` takes them, by name.
        data: calibration batches; the same ones when an interrupted run goes on.
        sparsity: of the selected parameters of each block, in [0, 1].
        saliency: scores the entries, larger = kept.
        repair: one of ``ignite_prune.repair``, or several in order, of those that work on single layers.
        pattern: which entries are pruned together.
        allocation: divides the sparsity over the parameters of a block; ``OWL()`` over the blocks, by a pass ahead.
        params: None, or rules for parameters, of which those in blocks are pruned.
        exclude: rules for parameters to leave out.
        sequential: whether a block is calibrated on what the pruned blocks before it give out.
        device: where blocks run, one at a time.
        dtype: type in which weights are held while they run; None: that of the checkpoint. What is written has the
            checkpoint's type.
        rename: returns the checkpoint's name of a tensor from the model's.
        prepare_batch: Ignite's ``(batch, device, non_blocking) -> (x, y)``.
        calibration: ``data`` and ``prepare_batch`` as one value.
        generator: for random saliencies.
        progress: show a bar with the time left (tqdm).

    Returns:
        The report. Masks are the nonzero weights: ``MaskStore.from_nonzero(model)`` of a model that loaded ``out``.

    Raises:
        TypeError, ValueError: see :func:`~ignite_prune.prune_blocks`; the checkpoint does not fit the model, or an
            interrupted run had other arguments.
        FileExistsError: ``out`` is there already.
        FileNotFoundError: ``source`` is not, or ``out`` has no parent folder.
        UnfinishedBlocks: pruning failed after some blocks were done; the same call goes on there.
        OSError: the disk is full; nothing is at ``out`` then, and the same call goes on once there is space.
    """
    check_progress(progress)
    check_callable("build", build)
    check_callable("rename", rename)
    calibration = as_calibration(calibration, data, None, prepare_batch)
    files = SafetensorsFiles.find(source)
    target = _checked_out(Path(out), files.single)
    where = torch.device(device)
    model = built_empty(build)
    check_model(model)
    modules = find_blocks(model, blocks)
    weights = CheckpointWeights(model, modules, files, rename, where, dtype)
    settings = {
        "sparsity": sparsity,
        "saliency": saliency,
        "pattern": pattern,
        "allocation": allocation,
        "repair": repair,
    }
    with weights.hollow():
        groups = block_groups(model, modules, params, exclude, generator=_own_generator(generator), **settings)
    told = {
        **{name: setting_text(value) for name, value in settings.items()},
        "blocks": list(modules),
        "parameters": [name for group in groups.values() for name in group["params"]],
        "sequential": sequential,
        "dtype": str(dtype),
        "checkpoint": hashlib.sha256(setting_text(sorted(files.entries.items())).encode()).hexdigest(),
    }
    work = CheckpointWork(files, target, told)
    with work.explained():
        return _pruned(model, modules, groups, weights, calibration, work, where, sequential, progress)


def _own_generator(generator: torch.Generator | None) -> torch.Generator:
    return torch.Generator().manual_seed(torch.initial_seed() % 2**63) if generator is None else generator


def _checked_out(out: Path, single: bool) -> Path:
    out = Path(os.path.abspath(out))
    if out.suffix == ".safetensors" and not single:
        raise ValueError(f"Argument out should be a folder, as source is not one file, but given {str(out)!r}")
    if out.exists():
        raise FileExistsError(f"Argument out: {str(out)!r} is there already; name a folder that is not, or delete it")
    if not out.parent.is_dir():
        raise FileNotFoundError(f"Argument out: there is no folder {str(out.parent)!r} to write to")
    return out


def _pruned(
    model: nn.Module,
    modules: dict[str, nn.Module],
    groups: dict[str, ParamGroup],
    weights: CheckpointWeights,
    calibration: Calibration,
    work: CheckpointWork,
    device: torch.device,
    sequential: bool,
    progress: bool,
) -> BlocksReport:
    store = DiskActivationStore(work.outputs, device, lasting=True)
    names = {name: weights.keys[parameter] for name, parameter in named_parameters(model).items()}
    number, route = prepared(
        model, modules, groups, calibration, store, weights, device, work.see, lambda: work.route(model, weights)
    )
    work.begin(route, weights)

    def commit(name: str, plan: UpdatePlan) -> None:
        parameters = named_parameters(model)
        work.copy.write({names[each]: parameters[each] for each in {*plan.masks, *plan.values}})

    pruner = BlockPruner(
        model, route, groups, weights, store, number, sequential, lambda plan: None, commit, lambda what: None
    )
    pruner.resumable = True
    finished = work.restore(pruner)
    with shown(progress, pruner.passes, pruner.passes * finished // len(route.nodes)) as pruner.advance:
        pruner.run(lambda place, report: work.done(pruner, place, report), finished)
    work.finish()
    return work.report(groups)
