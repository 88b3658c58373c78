"""Writing to TensorBoard."""

from __future__ import annotations

from ignite.handlers.tensorboard_logger import TensorboardLogger

from ignite_prune.loggers.log_record import LogRecord


def write(logger: TensorboardLogger, record: LogRecord) -> None:
    """Write scalars, images and histograms."""
    writer = logger.writer
    for tag, value in record.scalars.items():
        writer.add_scalar(tag, value, record.step)
    for tag, picture in record.pictures.items():
        writer.add_image(tag, picture, record.step)
    for tag, values in record.histograms.items():
        writer.add_histogram(tag, values.numpy(), record.step)
