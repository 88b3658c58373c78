"""The folder in which a checkpoint is pruned: a copy of its files, outputs of blocks, and the journal."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ignite_prune._utils.arguments import check_generator_state
from ignite_prune.update.blocks.block_masks import BlockReport, BlocksReport
from ignite_prune.update.blocks.block_pruner import BlockPruner
from ignite_prune.update.blocks.checkpoint_weights import CheckpointWeights
from ignite_prune.update.blocks.journal import Journal, digest
from ignite_prune.update.blocks.safetensors_files import SafetensorsFiles
from ignite_prune.update.blocks.survey import Route
from ignite_prune.update.blocks.unfinished_blocks import UnfinishedBlocks
from ignite_prune.update.param_group import ParamGroup

_WEIGHTS = {".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack", ".onnx", ".gguf", ".safetensors"}
_SMALL = 64 * 2**20  # bytes of the largest file that is copied next to the weights


class CheckpointWork:
    """The work on a checkpoint, which goes on after a kill.

    Args:
        files: of the dense checkpoint.
        out: where the pruned one will be.
        settings: what the result depends on.

    Attributes:
        outputs: folder of the blocks' outputs.
        copy: the files that are pruned.

    Raises:
        ValueError: the folder holds work with other settings.
        OSError: there is not enough space for a copy of the files.
    """

    def __init__(self, files: SafetensorsFiles, out: Path, settings: Mapping[str, Any]) -> None:
        self._files, self._out = files, out
        self._folder = out.parent / f".{out.name}.partial"
        self.outputs, self.copy = self._folder / "outputs", files.at(self._folder / "files")
        self._digest, self._data = hashlib.sha256(), ""
        self._begun = False
        if not self._folder.exists():
            self._check_space()
        self._journal = Journal(self._folder, settings)
        self.outputs.mkdir(parents=True, exist_ok=True)
        self.copy.folder.mkdir(exist_ok=True)

    def _check_space(self) -> None:
        free = shutil.disk_usage(self._out.parent).free
        if free < self._files.size:
            raise OSError(
                errno.ENOSPC,
                f"The copy of the checkpoint needs {self._files.size:,} bytes, but {free:,} are free; nothing was "
                "written",
                str(self._out),
            )

    @contextmanager
    def explained(self) -> Iterator[None]:
        """Say what is there when an error ends the work; remove the folder if no block is done."""
        try:
            yield
        except BaseException as error:
            done = [each["name"] for each in self._journal.state["done"]]
            if not done:
                shutil.rmtree(self._folder, ignore_errors=True)
            left = f"{len(done)} blocks are done" if done else "no block is done"
            text = f"nothing is at {str(self._out)!r}, and {left}"
            if done:
                text += f"; the same call goes on from {str(self._folder)!r}"
            if isinstance(error, OSError) and error.errno is not None:
                raise OSError(error.errno, f"{error.strerror}: {text}", error.filename) from error
            if isinstance(error, Exception) and done and self._begun:
                raise UnfinishedBlocks(f"{error} ({text})", done) from error
            raise

    def see(self, x: Any) -> None:
        """Add a batch to the digest of the data."""
        self._data = digest(x, self._digest)

    def route(self, model: nn.Module, weights: CheckpointWeights) -> Route | None:
        """Return the route that an interrupted run found, None if there is none; called when all batches were seen.

        Args:
            model: unwrapped.
            weights: of it; they are completed if that run's were.

        Raises:
            ValueError: that run had other data.
        """
        state = self._journal.state
        if state.get("data", self._data) != self._data:
            raise ValueError(
                f"An interrupted run with other calibration data is unfinished; call with the same data to go on, or "
                f"delete the folder {str(self._folder)!r} to start again"
            )
        found = state.get("route")
        if found is None:
            return None
        if found["completed"]:
            weights.complete()
        nodes = {name: model.get_submodule(name) for name in found["nodes"]}
        return Route(nodes, found["first"], tuple(map(frozenset, found["needed"])), found["input_use"])

    def begin(self, route: Route, weights: CheckpointWeights) -> None:
        """Write the route to the journal and copy the files, unless an interrupted run has."""
        held = {
            "nodes": list(route.nodes),
            "first": route.first,
            "needed": [sorted(each) for each in route.needed],
            "input_use": route.input_use,
            "completed": weights.completed,
        }
        self._begun = True
        self._journal.write(route=held, data=self._data)
        for path in self._to_copy():
            if path.name not in self._journal.state["copied"]:
                shutil.copyfile(path, self.copy.folder / path.name)
                self._journal.write(copied=[*self._journal.state["copied"], path.name])

    def _to_copy(self) -> list[Path]:
        weights = [self._files.folder / name for name in self._files.files]
        if self._files.single:
            return weights
        others = [path for path in sorted(self._files.folder.iterdir()) if path.is_file()]
        small = [p for p in others if p.suffix not in _WEIGHTS and p.stat().st_size <= _SMALL]
        return weights + small

    def restore(self, pruner: BlockPruner) -> int:
        """Bring a pruner to where an interrupted run ended; return the number of nodes that are done."""
        state = self._journal.state
        if not state["done"]:
            return 0
        finished = int(state["done"][-1]["place"]) + 1
        pruner.targets = dict(state["targets"])
        for place in range(pruner.route.first, finished):
            for batch, form in self._journal.forms(place).items():
                pruner.forms[int(batch), place] = form
        for generator in {group["generator"] for group in pruner.groups.values()}:
            assert generator is not None
            held = torch.tensor(list(bytes.fromhex(state["generator"])), dtype=torch.uint8)
            check_generator_state(generator, held)
            generator.set_state(held)
        return finished

    def done(self, pruner: BlockPruner, place: int, report: BlockReport) -> None:
        """Write to the journal that a node is done."""
        if place < pruner.route.first:
            return
        forms = {str(batch): form for (batch, node), form in pruner.forms.items() if node == place}
        self._journal.put_forms(place, forms)
        generator = next(iter(pruner.groups.values()))["generator"]
        assert generator is not None
        entry = {"place": place, **vars(report)}
        self._journal.write(
            done=[*self._journal.state["done"], entry],
            targets=pruner.targets,
            generator=bytes(generator.get_state().tolist()).hex(),
        )

    def report(self, groups: Mapping[str, ParamGroup]) -> BlocksReport:
        """Return the report of all blocks, those of interrupted runs too."""
        fields = ("name", "kept", "numel", "seconds")
        reports = [BlockReport(*(each[name] for name in fields)) for each in self._journal.state["done"]]
        seconds = sum(report.seconds for report in reports)
        return BlocksReport(tuple(report for report in reports if report.name in groups), seconds)

    def finish(self) -> None:
        """Move the pruned files to their place, and remove the folder."""
        if self._out.suffix == ".safetensors":
            os.replace(self.copy.folder / self._files.files[0], self._out)
        else:
            os.replace(self.copy.folder, self._out)
        shutil.rmtree(self._folder, ignore_errors=True)
