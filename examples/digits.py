"""Train on handwritten digits twice from the same initial weights: dense, and pruned to 90 % during training.

Each run writes a new folder (runs/digits/run-01, run-02, ...) with TensorBoard curves and mask pictures, checkpoints,
the sparse model, a plot and a report page. An interrupted run can be resumed from a checkpoint and ends with the same
numbers as an uninterrupted one:

    python examples/digits.py
    python examples/digits.py --resume runs/digits/run-01/checkpoint_12.pt
"""

from __future__ import annotations

import argparse
import pickle
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from command_line import Parser
from digits_report import History, report
from ignite.engine import Engine, Events, create_supervised_evaluator, create_supervised_trainer
from ignite.handlers import Checkpoint, DiskSaver, PiecewiseLinear, ProgressBar, global_step_from_engine
from ignite.handlers.tensorboard_logger import TensorboardLogger
from ignite.metrics import Accuracy, Average
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from ignite_prune import PruneHandler, allocation, saliency, schedule
from ignite_prune.loggers import MaskHandler

TRAINING_DIGITS = 1347  # three quarters of 1797

SCHEDULES: dict[str, Callable[[Settings], schedule.Schedule]] = {
    "polynomial": lambda s: schedule.Polynomial(s.sparsity, s.begin, s.end),
    "linear": lambda s: schedule.Linear(s.sparsity, s.begin, s.end),
    "cosine": lambda s: schedule.Cosine(s.sparsity, s.begin, s.end),
    "exponential": lambda s: schedule.Exponential(s.sparsity, s.begin, s.end),
    "one-cycle": lambda s: schedule.OneCycle(s.sparsity, s.begin, s.end),
    "one-shot": lambda s: schedule.OneShot(s.sparsity, at=s.end),
}
ALLOCATIONS: dict[str, allocation.Allocation] = {
    "global": allocation.Global(),
    "uniform": allocation.Uniform(),
    "erk": allocation.ERK(),
    "lamp": allocation.LAMP(),
}
SALIENCIES: dict[str, saliency.Saliency] = {"magnitude": saliency.Magnitude(), "random": saliency.Random()}


@dataclass(frozen=True)
class Settings:
    """Settings of a run; plain values, so that they can be saved in its checkpoints."""

    sparsity: float
    schedule: str
    begin: int
    end: int
    allocation: str
    saliency: str
    epochs: int
    batch_size: int
    lr: float
    seed: int

    def __post_init__(self) -> None:
        bounds = {"sparsity": (0, 1), "lr": (1e-6, 1), "epochs": (1, 999)}
        bounds |= {"batch_size": (1, TRAINING_DIGITS), "seed": (0, 2**32 - 1)}
        for name, (low, high) in bounds.items():
            value = getattr(self, name)
            if not low <= value <= high:
                raise ValueError(f"--{name.replace('_', '-')} should be from {low} to {high}, but given {value}")
        if not 0 <= self.begin <= self.end <= self.epochs:
            raise ValueError(
                f"--begin, --end and --epochs should rise, but given {self.begin}, {self.end} and {self.epochs}"
            )
        SCHEDULES[self.schedule](self)  # raises if the schedule cannot reach the sparsity


@dataclass(frozen=True)
class Data:
    """Batches in a new order each epoch, and the whole test set as one batch."""

    train: DataLoader
    test: list[tuple[Tensor, Tensor]]


def load_data(settings: Settings) -> Data:
    digits = load_digits()
    images = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1)
    labels = torch.tensor(digits.target)
    train, test = train_test_split(
        range(len(labels)), train_size=TRAINING_DIGITS, stratify=digits.target, random_state=settings.seed
    )
    images = (images - images[train].mean()) / images[train].std()  # statistics of the training digits only
    batches = DataLoader(TensorDataset(images[train], labels[train]), settings.batch_size, shuffle=True, drop_last=True)
    return Data(batches, [(images[test], labels[test])])


def make_model() -> nn.Module:
    """Return a network for 8×8 pixels: three convolutions and two linear layers, 73 thousand parameters."""
    layers: dict[str, nn.Module] = {}
    for index, (inputs, outputs, halve) in enumerate([(1, 32, False), (32, 64, True), (64, 64, True)], start=1):
        layers[f"conv{index}"] = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
        layers[f"norm{index}"] = nn.BatchNorm2d(outputs)
        layers[f"relu{index}"] = nn.ReLU()
        if halve:
            layers[f"pool{index}"] = nn.MaxPool2d(2)
    layers |= {"flat": nn.Flatten(), "fc1": nn.Linear(256, 64), "relu": nn.ReLU(), "fc2": nn.Linear(64, 10)}
    model = nn.Sequential()
    for name, layer in layers.items():
        model.add_module(name, layer)
    return model


def make_training(settings: Settings, data: Data) -> dict[str, Any]:
    """Return model, optimizer, learning-rate scheduler and trainer: the objects of a checkpoint, by key."""
    torch.manual_seed(settings.seed)
    model = make_model()
    optimizer = torch.optim.Adam(model.parameters(), lr=settings.lr)
    # Label smoothing keeps gradients from vanishing once the training digits are learnt; recovery needs them.
    trainer = create_supervised_trainer(model, optimizer, nn.CrossEntropyLoss(label_smoothing=0.1))
    # The order of the digits depends only on seed and epoch, so dense, sparse and resumed runs use the same batches.
    trainer.add_event_handler(
        Events.EPOCH_STARTED, lambda engine: torch.manual_seed(1000 * settings.seed + engine.state.epoch)
    )
    steps = settings.epochs * len(data.train)
    warm_up = [(0, settings.lr / 10), (max(1, steps // 5), settings.lr), (max(2, steps), settings.lr / 1000)]
    lr_scheduler = PiecewiseLinear(optimizer, "lr", warm_up)
    trainer.add_event_handler(Events.ITERATION_STARTED, lr_scheduler)
    Average().attach(trainer, "loss")
    return {"model": model, "optimizer": optimizer, "lr_scheduler": lr_scheduler, "trainer": trainer}


def record_history(trainer: Engine, model: nn.Module, data: Data) -> None:
    """Evaluate after each epoch and append the results to ``trainer.state.history``."""
    evaluator = create_supervised_evaluator(model, {"accuracy": Accuracy()})
    trainer.state.history = []

    @trainer.on(Events.EPOCH_COMPLETED)
    def record(engine: Engine) -> None:
        accuracy = evaluator.run(data.test).metrics["accuracy"]
        engine.state.metrics["accuracy"] = accuracy  # read by the progress bar and TensorBoard
        entry = {"accuracy": accuracy, "loss": float(engine.state.metrics["loss"])}
        if "sparsity" in engine.state.metrics:
            entry["sparsity"] = dict(engine.state.sparsity)
        engine.state.history.append(entry)


def show(trainer: Engine, title: str, names: list[str]) -> None:
    bar = ProgressBar(persist=True, desc=f"{title:>6}", bar_format="{desc} {bar:24} epoch {n_fmt}/{total_fmt}{postfix}")
    bar.attach(trainer, names, event_name=Events.EPOCH_COMPLETED, closing_event_name=Events.COMPLETED)


def log(trainer: Engine, folder: Path, pruner: PruneHandler | None) -> None:
    # Hides what an interrupted run logged after its last checkpoint, so that curves do not overlap.
    logger = TensorboardLogger(log_dir=str(folder), purge_step=trainer.state.epoch + 1)
    logger.attach_output_handler(trainer, Events.EPOCH_COMPLETED, tag="epoch", metric_names=["accuracy", "loss"])
    if pruner is not None:
        logger.attach(trainer, MaskHandler(pruner), Events.EPOCH_COMPLETED)
    # Flushed before the epoch's checkpoint is written, so that curves of an interrupted run have no gap.
    trainer.add_event_handler(Events.EPOCH_COMPLETED, lambda _: logger.writer.flush())
    trainer.add_event_handler(Events.COMPLETED, lambda _: logger.close())


def train_dense(settings: Settings, data: Data, folder: Path) -> History:
    training = make_training(settings, data)
    trainer = training["trainer"]
    record_history(trainer, training["model"], data)
    show(trainer, "dense", ["loss", "accuracy"])
    log(trainer, folder / "dense", None)
    return trainer.run(data.train, max_epochs=settings.epochs).history


def train_sparse(
    settings: Settings, data: Data, folder: Path, dense: History, checkpoint: dict[str, Any] | None
) -> tuple[nn.Module, PruneHandler, History]:
    training = make_training(settings, data)
    model, trainer = training["model"], training["trainer"]
    pruner = training["pruner"] = PruneHandler(
        model,
        training["optimizer"],
        schedule=SCHEDULES[settings.schedule](settings),
        saliency=SALIENCIES[settings.saliency],
        allocation=ALLOCATIONS[settings.allocation],
    )
    # At the start of an epoch, so that the evaluation at its end uses weights trained under the new masks.
    pruner.attach(trainer, Events.EPOCH_STARTED)
    record_history(trainer, model, data)
    trainer.state.settings, trainer.state.dense = asdict(settings), dense
    trainer.state_dict_user_keys.extend(["history", "settings", "dense"])
    if checkpoint is not None:
        Checkpoint.load_objects(to_load=training, checkpoint=checkpoint)
    show(trainer, "sparse", ["loss", "sparsity", "accuracy"])
    log(trainer, folder / "sparse", pruner)
    disk = DiskSaver(str(folder), require_empty=False)
    saver = Checkpoint(training, disk, n_saved=2, global_step_transform=global_step_from_engine(trainer))
    trainer.add_event_handler(Events.EPOCH_COMPLETED, saver)
    if trainer.state.epoch < settings.epochs:  # run() would start a finished run again from epoch 1
        trainer.run(data.train, max_epochs=settings.epochs)
    pruner.finalize()
    return model, pruner, trainer.state.history


def make_parser() -> Parser:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--sparsity", type=float, default=0.9, help="fraction of the weights to prune, 0 to 1 (0.9)")
    add("--schedule", choices=SCHEDULES, default="polynomial", help="how the sparsity increases (polynomial)")
    add("--begin", type=int, help="last dense epoch (a tenth of the epochs)")
    add(
        "--end", type=int, help="epoch at which the final sparsity is reached; one-shot prunes here (2/3 of the epochs)"
    )
    add(
        "--allocation",
        choices=ALLOCATIONS,
        default="global",
        help="how the sparsity is divided over the layers (global)",
    )
    add(
        "--saliency",
        choices=SALIENCIES,
        default="magnitude",
        help="which weights are kept: the largest or random ones (magnitude)",
    )
    add("--epochs", type=int, default=30, help="number of epochs of each of the two trainings (30)")
    add("--batch-size", type=int, default=64, help=f"batch size, at most {TRAINING_DIGITS} (64)")
    add("--lr", type=float, default=1e-2, help="peak learning rate of Adam, after the warm-up (0.01)")
    add("--seed", type=int, default=0, help="seed of weights, split, data order and random saliency (0)")
    add("--output", type=Path, default=Path("runs/digits"), help="parent of the run's folder (runs/digits)")
    add(
        "--resume",
        type=Path,
        metavar="CHECKPOINT",
        help="checkpoint of an interrupted run to resume, with its settings and folder",
    )
    return parser


def start_new(options: argparse.Namespace) -> tuple[Settings, Path]:
    values = {name: value for name, value in vars(options).items() if name not in ("output", "resume")}
    if options.begin is None:
        values["begin"] = options.epochs // 10
    if options.end is None:
        values["end"] = max(values["begin"], options.epochs * 2 // 3, 1)
    settings = Settings(**values)
    numbers = [int(path.name[4:]) for path in options.output.glob("run-*") if path.name[4:].isdigit()]
    folder = options.output / f"run-{max(numbers, default=0) + 1:02}"
    folder.mkdir(parents=True)
    return settings, folder


def read_checkpoint(path: Path) -> tuple[Settings, dict[str, Any]]:
    try:
        checkpoint = torch.load(path, weights_only=True)
        return Settings(**checkpoint["trainer"]["settings"]), checkpoint
    except OSError as error:
        raise ValueError(f"--resume: {path}: {error.strerror}") from None
    except (pickle.UnpicklingError, EOFError, RuntimeError, LookupError, TypeError):
        raise ValueError(f"--resume: {path} is not a checkpoint of this example") from None


def main() -> None:
    parser = make_parser()
    options = parser.parse_args()
    torch.set_num_threads(1)  # as fast for a small network, and the same numbers for any number of cores
    checkpoint = None
    try:
        if options.resume is None:
            settings, folder = start_new(options)
        elif options != parser.parse_args(["--resume", str(options.resume)]):
            parser.error("--resume cannot be combined with other options: a run is resumed with its own settings")
        else:
            (settings, checkpoint), folder = read_checkpoint(options.resume), options.resume.parent
    except (OSError, ValueError, TypeError) as error:
        parser.error(str(error))
    data = load_data(settings)
    dense = train_dense(settings, data, folder) if checkpoint is None else checkpoint["trainer"]["dense"]
    model, pruner, sparse = train_sparse(settings, data, folder, dense, checkpoint)
    torch.save(model.state_dict(), folder / "model.pt")
    report(model, pruner, dense, sparse, folder)


if __name__ == "__main__":
    main()
