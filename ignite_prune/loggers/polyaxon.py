"""Writing to Polyaxon; its client of version 0 takes scalars alone."""

from __future__ import annotations

from ignite.handlers.polyaxon_logger import PolyaxonLogger

from ignite_prune.loggers.log_record import LogRecord, as_bytes

_BINS = 64


def write(logger: PolyaxonLogger, record: LogRecord) -> None:
    """Write scalars, images and histograms."""
    logger.log_metrics(step=record.step, **record.scalars)
    if type(logger.experiment).__name__ == "Experiment":  # of version 0
        return
    for tag, picture in record.pictures.items():
        logger.log_image(as_bytes(picture).numpy(), name=tag, step=record.step, dataformats="HWC")
    for tag, values in record.histograms.items():
        logger.log_histogram(tag, values.numpy(), bins=_BINS, step=record.step)
