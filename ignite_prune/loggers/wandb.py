"""Writing to Weights & Biases."""

from __future__ import annotations

from typing import Any

from ignite.handlers.wandb_logger import WandBLogger

from ignite_prune.loggers.log_record import LogRecord, as_bytes


def write(logger: WandBLogger, record: LogRecord) -> None:
    """Write scalars, images and histograms in one call, which is one step of the run."""
    values: dict[str, Any] = dict(record.scalars)
    values |= {tag: logger.Image(as_bytes(each).numpy()) for tag, each in record.pictures.items()}
    values |= {tag: logger.Histogram(each.numpy()) for tag, each in record.histograms.items()}
    logger.log(values, step=record.step)
