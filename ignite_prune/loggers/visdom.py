"""Writing to Visdom, in one window a tag."""

from __future__ import annotations

from ignite.handlers.visdom_logger import VisdomLogger

from ignite_prune.loggers.log_record import LogRecord


def write(logger: VisdomLogger, record: LogRecord) -> None:
    """Write scalars as lines, images with a history, and the last histograms."""
    vis, submit = logger.vis, logger.executor.submit
    for tag, value in record.scalars.items():
        opts = {"title": tag, "xlabel": "step", "ylabel": tag.partition("/")[0]}
        submit(vis.line, X=[record.step], Y=[value], win=tag, name=tag, update="append", opts=opts)
    for tag, picture in record.pictures.items():
        image = {"title": tag, "caption": f"step {record.step}", "store_history": True}
        submit(vis.image, img=picture.numpy(), win=tag, opts=image)
    for tag, values in record.histograms.items():
        submit(vis.histogram, X=values.numpy(), win=tag, opts={"title": f"{tag}, step {record.step}"})
    submit(vis.save, envs=[vis.env])
