"""Writing one line of text: to a ``logging.Logger`` by way of FBResearchLogger, and above a progress bar."""

from __future__ import annotations

from ignite.handlers.fbresearch_logger import FBResearchLogger
from ignite.handlers.tqdm_logger import ProgressBar

from ignite_prune.loggers.log_record import LogRecord


def write_log(logger: FBResearchLogger, record: LogRecord) -> None:
    """Log the sparsities with level INFO."""
    logger.logger.info(record.text())


def write_above_bar(logger: ProgressBar, record: LogRecord) -> None:
    """Write the sparsities above the bar."""
    logger.log_message(record.text())
