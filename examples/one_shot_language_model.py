"""Prune a language model in one shot, block by block, and train on with the zeros kept.

A small transformer is trained on Python's standard library, character by character. Then, from the same weights:

- magnitude: the smallest weights of each layer are pruned
- Wanda, SparseGPT: pruned by 128 sequences of calibration, each block on what the pruned blocks before it give out
- (dense): the same with each block calibrated on what the dense blocks give out
- fine-tuned: SparseGPT's masks are passed to a PruneHandler, and the model trains on

The table shows perplexities on held-out text (under three minutes on two cores):

    python examples/one_shot_language_model.py
    python examples/one_shot_language_model.py --quick
    python examples/one_shot_language_model.py --sparsity 0.7
    python examples/one_shot_language_model.py --pattern 2:4
    python examples/one_shot_language_model.py --checkpoint     # also through files, as a model larger than memory
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from command_line import Parser
from ignite.engine import Engine, Events
from language_model import LanguageModel, perplexity, sequences, trained, trainer_of
from rich.console import Console
from rich.table import Table

from ignite_prune import MaskStore, PruneHandler, prune_blocks, prune_checkpoint, repair, saliency
from ignite_prune.pattern import NofM, Pattern, Unstructured

SPARSEGPT = {"saliency": saliency.SparseGPT(), "repair": repair.SparseGPT()}
METHODS: dict[str, dict[str, Any]] = {
    "magnitude": {"saliency": saliency.Magnitude()},
    "Wanda (dense)": {"saliency": saliency.Wanda(), "sequential": False},
    "Wanda": {"saliency": saliency.Wanda()},
    "SparseGPT (dense)": {**SPARSEGPT, "sequential": False},
    "SparseGPT": SPARSEGPT,
}
PATTERNS: dict[str, Pattern] = {"unstructured": Unstructured(), "2:4": NofM(keep=2, of=4)}


QUICK = {"steps": 20, "more": 5, "sequences": 16, "held_out": 16}


@dataclass(frozen=True)
class Settings:
    """Settings of the example."""

    sparsity: float = 0.6
    pattern: str = "unstructured"
    steps: int = 1000
    more: int = 150
    sequences: int = 128
    held_out: int = 400
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.sparsity < 1:
            raise ValueError(f"--sparsity should be between 0 and 1, but given {self.sparsity:g}")
        for name in ("steps", "more", "sequences"):
            if getattr(self, name) < 1:
                raise ValueError(f"--{name} should be at least 1, but given {getattr(self, name)}")

    @property
    def target(self) -> dict[str, Any]:
        """What is pruned: 2:4 is half of the weights."""
        pattern = PATTERNS[self.pattern]
        return {"pattern": pattern, "sparsity": min(self.sparsity, pattern.share)}


def calibration(settings: Settings) -> list[torch.Tensor]:
    """Return batches of calibration text."""
    generator = torch.Generator().manual_seed(settings.seed + 1000)
    return list(sequences(settings.sequences, generator)[:, :-1].split(8))


def compare(dense: LanguageModel, settings: Settings) -> tuple[Table, LanguageModel, MaskStore]:
    """Prune copies of a model by each method; return a table, and the last model with its masks."""
    table = Table("method", "sparsity", "perplexity", title="One shot")
    evaluate = partial(perplexity, pieces=settings.held_out)
    table.add_row("dense", "0", f"{evaluate(dense):.2f}")
    for name, method in METHODS.items():
        model = copy.deepcopy(dense)
        data = calibration(settings)
        masks = prune_blocks(model, "blocks.*", data=data, evaluate=evaluate, **settings.target, **method)
        table.add_row(name, f"{masks.sparsity:.3f}", f"{masks.report.after:.2f}")
    return table, model, masks


def fine_tune(model: LanguageModel, masks: MaskStore, settings: Settings) -> float:
    """Train on with the zeros kept; return the perplexity."""
    optimizer = torch.optim.AdamW(model.train().parameters(), lr=5e-4)
    trainer = trainer_of(model, optimizer)
    pruner = PruneHandler(model, optimizer, list(masks), masks=masks)
    pruner.attach(trainer, Events.COMPLETED)  # no schedule: masks stay as they are

    @trainer.on(Events.COMPLETED)
    def check(engine: Engine) -> None:
        if pruner.sparsity != masks.sparsity:
            raise RuntimeError(f"The sparsity was {masks.sparsity}, and is {pruner.sparsity} now")

    generator = torch.Generator().manual_seed(settings.seed + 2000)
    pieces = (sequences(16, generator) for _ in range(settings.more))
    trainer.run(((each[:, :-1], each[:, 1:]) for each in pieces), epoch_length=settings.more)
    return perplexity(model.eval(), settings.held_out)


def through_files(dense: LanguageModel, folder: Path, settings: Settings) -> float:
    """Prune a checkpoint block by block, as for a model that is larger than memory; return the perplexity."""
    from safetensors.torch import load_file, save_file

    source, out = folder / "dense.safetensors", folder / "sparse.safetensors"
    out.unlink(missing_ok=True)
    save_file(dense.state_dict(), source)
    build: Callable[[], LanguageModel] = LanguageModel
    prune_checkpoint(
        source, out, build=build, blocks="blocks.*", data=calibration(settings), **settings.target, **SPARSEGPT
    )
    model = LanguageModel()
    model.load_state_dict(load_file(out))
    return perplexity(model.eval(), settings.held_out)


def main() -> None:
    parser = Parser(description=__doc__.split("\n\n")[0] if __doc__ else None)
    parser.add_argument("--sparsity", type=float, help="of the blocks' weights (default 0.6)")
    parser.add_argument("--pattern", choices=PATTERNS, help="which weights are pruned together (default unstructured)")
    parser.add_argument("--steps", type=int, help="training steps of the dense model (default 1000)")
    parser.add_argument("--more", type=int, help="training steps after pruning (default 150)")
    parser.add_argument("--sequences", type=int, help="of calibration text (default 128)")
    parser.add_argument("--quick", action="store_true", help="little training and few sequences: not worth comparing")
    parser.add_argument("--seed", type=int, help="default 0")
    parser.add_argument("--checkpoint", action="store_true", help="also prune a checkpoint, one block in memory")
    parser.add_argument("--output", type=Path, default=Path("runs/one_shot"), help="folder of the checkpoints")
    options = vars(parser.parse_args())
    folder, files = options.pop("output"), options.pop("checkpoint")
    start = Settings(**QUICK) if options.pop("quick") else Settings()
    settings = parser.settle(start, options, folder)
    console = Console()
    with console.status("training the dense model ..."):
        dense = trained(settings.seed, settings.steps)
    table, model, masks = compare(dense, settings)
    if files:
        table.add_row(
            "SparseGPT, through files", f"{masks.sparsity:.3f}", f"{through_files(dense, folder, settings):.2f}"
        )
    with console.status("training on ..."):
        tuned = fine_tune(model, masks, settings)
    table.add_row("SparseGPT, fine-tuned", f"{masks.sparsity:.3f}", f"{tuned:.2f}")
    console.print(table)


if __name__ == "__main__":
    main()
