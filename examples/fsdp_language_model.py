"""Train a language model under fully_shard (FSDP2) and prune it to 90 % while it trains, on any number of processes.

    torchrun --nproc-per-node 2 examples/fsdp_language_model.py
    torchrun --nproc-per-node 3 examples/fsdp_language_model.py --resume        # goes on, on other ranks

A character-level transformer learns the source of Python's standard library. Every block is a unit of fully_shard, so
parameters, gradients, AdamW's moments and masks lie on the ranks in parts, and none is ever collected. The sparsity
rises step by step to its target; after each epoch model, optimizer, masks and trainer are written by
torch.distributed.checkpoint, from which another number of processes can go on. Rank 0 writes TensorBoard curves.

gloo is used on CPUs and nccl on GPUs. Without torchrun there is one process, whose shards are whole.
"""

from __future__ import annotations

import math
import os
import sysconfig
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ignite.distributed as idist
import torch
import torch.distributed.checkpoint as dcp
from command_line import Parser
from ignite.engine import Engine, Events
from ignite.handlers.tensorboard_logger import TensorboardLogger
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.fsdp import fully_shard

from ignite_prune import PruneHandler, allocation, schedule

WINDOW = 64  # characters


@dataclass(frozen=True)
class Settings:
    """Settings of the run; all ranks have the same."""

    epochs: int = 6
    iterations: int = 40
    batch: int = 12
    width: int = 96
    blocks: int = 3
    sparsity: float = 0.9
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("epochs", "iterations", "batch", "width", "blocks"):
            if getattr(self, name) < 1:
                raise ValueError(f"--{name} should be at least 1, but given {getattr(self, name)}")
        if not 0 <= self.sparsity < 1:
            raise ValueError(f"--sparsity should be in [0, 1), but given {self.sparsity}")
        if self.width % 4:
            raise ValueError(f"--width should be a multiple of 4, the number of heads, but given {self.width}")


class Block(nn.Module):
    """A transformer block with causal attention."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.before, self.after = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = nn.MultiheadAttention(width, num_heads=4, batch_first=True)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        causal = nn.Transformer.generate_square_subsequent_mask(x.shape[1], device=x.device, dtype=x.dtype)
        seen = self.before(x)
        x = x + self.attention(seen, seen, seen, attn_mask=causal, is_causal=True, need_weights=False)[0]
        return x + self.mlp(self.after(x))


class LanguageModel(nn.Module):
    """Predicts the next byte at each position."""

    def __init__(self, width: int, blocks: int) -> None:
        super().__init__()
        self.embedding, self.position = nn.Embedding(256, width), nn.Embedding(WINDOW, width)
        self.blocks = nn.ModuleList(Block(width) for _ in range(blocks))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 256)

    def forward(self, text: Tensor) -> Tensor:
        x = self.embedding(text) + self.position(torch.arange(text.shape[1], device=text.device))
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x)).clone()  # fully_shard warns of a view as the output


def library_text(limit: int = 400_000) -> Tensor:
    """Return some of the standard library's source as bytes."""
    files = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))
    text = b"".join(path.read_bytes() for path in files)[:limit]
    return torch.frombuffer(bytearray(text), dtype=torch.uint8)


def batch_of(text: Tensor, settings: Settings, step: int) -> tuple[Tensor, Tensor]:
    """Return this rank's share of a step's batch, which is the same for any number of ranks."""
    generator = torch.Generator().manual_seed(settings.seed * 1_000_003 + step)
    starts = torch.randint(len(text) - WINDOW - 1, (settings.batch,), generator=generator)
    own = starts[idist.get_rank() :: idist.get_world_size()]
    rows = torch.stack([text[start : start + WINDOW + 1] for start in own.tolist()]).long().to(idist.device())
    return rows[:, :-1], rows[:, 1:]


class Run:
    """A training run: model, optimizer, trainer and pruner, and what a checkpoint holds of them."""

    def __init__(self, settings: Settings) -> None:
        self.settings, self.text = settings, library_text()
        torch.manual_seed(settings.seed)
        self.model = LanguageModel(settings.width, settings.blocks).to(idist.device())
        for block in self.model.blocks:
            fully_shard(block)
        fully_shard(self.model)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=3e-3)  # made of the sharded parameters
        self.trainer = Engine(self.step)
        self.pruner = PruneHandler(
            self.model,
            self.optimizer,
            schedule=schedule.Polynomial(final=settings.sparsity, begin=1, end=max(2, settings.epochs - 1)),
            allocation=allocation.Global(min_density=0.02),
        )
        self.pruner.attach(self.trainer, Events.EPOCH_COMPLETED)

    def step(self, engine: Engine, batch: Any) -> float:
        x, y = batch_of(self.text, self.settings, engine.state.iteration)
        loss = nn.functional.cross_entropy(self.model(x).flatten(0, 1), y.flatten())
        self.optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        return float(loss.detach())

    def state(self) -> dict[str, Any]:
        model, optimizer = get_state_dict(self.model, self.optimizer)
        return {"model": model, "optimizer": optimizer, "pruner": self.pruner, "trainer": self.trainer}

    def save(self, folder: Path) -> None:
        dcp.save(self.state(), checkpoint_id=folder / f"epoch-{self.trainer.state.epoch:03}")

    def load(self, folder: Path) -> None:
        state = self.state()
        dcp.load(state, checkpoint_id=folder)
        set_state_dict(self.model, self.optimizer, model_state_dict=state["model"], optim_state_dict=state["optimizer"])


def train(settings: Settings, folder: Path, resume: bool) -> None:
    """Train on this rank, from the last checkpoint of the folder if there is one to go on from."""
    run = Run(settings)
    saved = sorted(folder.glob("epoch-*/.metadata"))
    if resume and saved:
        run.load(saved[-1].parent)
    trainer, first = run.trainer, idist.get_rank() == 0

    @trainer.on(Events.EPOCH_COMPLETED)
    def report() -> None:
        bits = idist.all_reduce(trainer.state.output) / idist.get_world_size() / math.log(2)
        trainer.state.metrics["bits_per_character"] = bits
        if first:
            sent = run.pruner.traffic
            told = f", masks by {sent.messages} messages of {sent.bytes:,} bytes" if sent is not None else ""
            sparsity = trainer.state.sparsity["global"]
            print(f"epoch {trainer.state.epoch}: {bits:.2f} bits per character, {sparsity:.1%} sparse{told}")
        run.save(folder)

    logger = TensorboardLogger(log_dir=str(folder)) if first else None
    if logger is not None:
        logger.attach_output_handler(
            trainer, Events.EPOCH_COMPLETED, tag="training", metric_names=["bits_per_character", "sparsity"]
        )
    steps = range(settings.iterations)
    trainer.run(steps, max_epochs=settings.epochs)
    if logger is not None:
        logger.close()
        print(f"Checkpoints and curves are in {folder}; tensorboard --logdir {folder}")
    run.pruner.finalize()


def main() -> None:
    parser = Parser(description=__doc__.partition("\n")[0])
    for name, value in vars(Settings()).items():
        parser.add_argument(f"--{name}", type=type(value), help=f"default: {value}")
    parser.add_argument("--output", type=Path, default=Path("runs/fsdp"), help="folder of checkpoints and curves")
    parser.add_argument("--resume", action="store_true", help="go on from the last checkpoint, on any number of ranks")
    options = vars(parser.parse_args())
    folder, resume = options.pop("output"), options.pop("resume")
    settings = parser.settle(Settings(), options, folder)
    os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
    for name, value in (("MASTER_PORT", "29517"), ("RANK", "0"), ("LOCAL_RANK", "0"), ("WORLD_SIZE", "1")):
        os.environ.setdefault(name, value)
    idist.initialize("nccl" if torch.cuda.is_available() else "gloo")
    try:
        train(settings, folder, resume)
    finally:
        idist.finalize()


if __name__ == "__main__":
    main()
