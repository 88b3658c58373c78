"""Writing to ClearML, which shows the series of one title together."""

from __future__ import annotations

from ignite.handlers.clearml_logger import ClearMLLogger

from ignite_prune.loggers.log_record import LogRecord, as_bytes


def write(logger: ClearMLLogger, record: LogRecord) -> None:
    """Write scalars, images and histograms; the title is a tag's part before the parameter's name."""
    reports, step = logger.clearml_logger, record.step
    for tag, value in record.scalars.items():
        title, _, series = tag.rpartition("/")
        reports.report_scalar(title=title, series=series, value=value, iteration=step)
    for tag, picture in record.pictures.items():
        title, _, series = tag.rpartition("/")
        reports.report_image(title=title, series=series, iteration=step, image=as_bytes(picture).numpy())
    for tag, values in record.histograms.items():
        title, _, series = tag.rpartition("/")
        logger.grad_helper.add_histogram(title=title, series=series, step=step, hist_data=values.numpy())
