"""Writing to Neptune, which has no histograms."""

from __future__ import annotations

from ignite.handlers.neptune_logger import NeptuneLogger

from ignite_prune.loggers.log_record import LogRecord


def write(logger: NeptuneLogger, record: LogRecord) -> None:
    """Write scalars and images as series."""
    from neptune.types import File

    for tag, value in record.scalars.items():
        logger[tag].append(value, step=record.step)
    for tag, picture in record.pictures.items():
        image = File.as_image(picture.permute(1, 2, 0).numpy(), autoscale=True)
        logger[tag].append(image, step=record.step, description=f"step {record.step}")
