"""Writing to MLflow, which has no histograms."""

from __future__ import annotations

import re

from ignite.handlers.mlflow_logger import MLflowLogger

from ignite_prune.loggers.log_record import LogRecord, as_bytes

_REFUSED = re.compile(r"[^\w\-. /]")  # in names of metrics and images


def write(logger: MLflowLogger, record: LogRecord) -> None:
    """Write scalars as metrics, and images with their step."""
    logger.log_metrics({_REFUSED.sub("_", tag): value for tag, value in record.scalars.items()}, step=record.step)
    for tag, picture in record.pictures.items():
        logger.log_image(as_bytes(picture).numpy(), key=_REFUSED.sub("_", tag), step=record.step)
