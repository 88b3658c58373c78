"""Logging of masks, sparsity and saliency to any of Ignite's loggers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from ignite.engine import Engine, Events, EventsList
from ignite.handlers.clearml_logger import ClearMLLogger
from ignite.handlers.fbresearch_logger import FBResearchLogger
from ignite.handlers.mlflow_logger import MLflowLogger
from ignite.handlers.neptune_logger import NeptuneLogger
from ignite.handlers.polyaxon_logger import PolyaxonLogger
from ignite.handlers.tensorboard_logger import TensorboardLogger
from ignite.handlers.tqdm_logger import ProgressBar
from ignite.handlers.visdom_logger import VisdomLogger
from ignite.handlers.wandb_logger import WandBLogger
from torch import Tensor

from ignite_prune._utils.arguments import near
from ignite_prune.handlers import PruneHandler
from ignite_prune.handlers.sparse_training.base import MaskedHandler
from ignite_prune.loggers import clearml, mlflow, neptune, polyaxon, tensorboard, text, visdom, wandb
from ignite_prune.loggers.log_record import LogRecord
from ignite_prune.loggers.picture import mask_picture
from ignite_prune.saliency import NonFiniteSaliency

_WRITERS: dict[type, Callable[[Any, LogRecord], None]] = {
    TensorboardLogger: tensorboard.write,
    WandBLogger: wandb.write,
    MLflowLogger: mlflow.write,
    ClearMLLogger: clearml.write,
    NeptuneLogger: neptune.write,
    VisdomLogger: visdom.write,
    PolyaxonLogger: polyaxon.write,
    FBResearchLogger: text.write_log,
    ProgressBar: text.write_above_bar,
}
_TEXT = (FBResearchLogger, ProgressBar)


class MaskHandler:
    """Logs a pruner's masks to any of Ignite's loggers, with the interface of Ignite's log handlers.

    For each parameter it logs ``sparsity/<name>`` (and ``sparsity/global``), ``flips/<name>`` (mask entries changed by
    the last update), the image ``masks/<name>`` (yellow = kept, blue = pruned), and histograms ``saliency/<name>`` and
    ``weights/<name>`` of the kept entries. MLflow and Neptune have no histograms. ``FBResearchLogger`` and
    ``ProgressBar`` get the sparsities as a line of text; as they attach no log handlers, use :meth:`attach`.

    Args:
        pruner: the handler whose masks are logged.
        tag: prefix of all tags, as in ``tag/sparsity/...``.
        pictures: log images, with at most ``max_pixels`` per side.
        histograms: log histograms.
        whitelist: names of the parameters to log in detail; None logs all. The global sparsity is always logged.
        max_pixels: size to which larger masks are pooled.
        global_step_transform: ``(engine, event_name) -> int``; None uses the count of the event.

    Raises:
        TypeError: ``pruner`` is not a PruneHandler, or ``global_step_transform`` is not a function.
        ValueError: ``max_pixels`` is below 8, or a name in ``whitelist`` is not pruned.

    Example:
        >>> import logging, sys, torch
        >>> model = torch.nn.Linear(4, 2)
        >>> pruner = PruneHandler(model)
        >>> _ = pruner.step(0.5)
        >>> log = logging.Logger("run")
        >>> log.addHandler(logging.StreamHandler(sys.stdout))
        >>> trainer = Engine(lambda engine, batch: None)
        >>> MaskHandler(pruner).attach(trainer, FBResearchLogger(log))
        >>> _ = trainer.run([1, 2], max_epochs=1)
        sparsity 0.5000 at step 1 (weight 0.5000)
    """

    def __init__(
        self,
        pruner: PruneHandler | MaskedHandler,
        tag: str | None = None,
        *,
        pictures: bool = True,
        histograms: bool = True,
        whitelist: Sequence[str] | None = None,
        max_pixels: int = 512,
        global_step_transform: Callable[[Engine, Any], int] | None = None,
    ) -> None:
        if not isinstance(pruner, PruneHandler | MaskedHandler):
            raise TypeError(f"Argument pruner should be a PruneHandler, but given {type(pruner)}")
        for name in whitelist or ():
            if name not in pruner.masks:
                raise ValueError(
                    f"Argument whitelist: no parameter {name!r} is pruned; {near(name, list(pruner.masks))}"
                )
        self._pruner = pruner
        self._prefix = f"{tag}/" if tag else ""
        self._pictures, self._histograms = pictures, histograms
        self._names = list(pruner.masks) if whitelist is None else list(whitelist)
        if type(max_pixels) is not int or max_pixels < 8:
            raise ValueError(f"Argument max_pixels should be a whole number of at least 8, but given {max_pixels!r}")
        if global_step_transform is not None and not callable(global_step_transform):
            raise TypeError(f"Argument global_step_transform should be a function, but given {global_step_transform!r}")
        self._max_pixels = max_pixels
        self._step = global_step_transform

    def attach(self, engine: Engine, logger: Any, event: Any = Events.EPOCH_COMPLETED) -> None:
        """Log on an event of an engine; as ``logger.attach(engine, self, event)``, for every logger.

        Args:
            engine: the trainer.
            logger: one of Ignite's loggers.
            event: any event, filtered too.

        Raises:
            RuntimeError: another logger.
        """
        _writer(logger)
        for each in event if isinstance(event, EventsList) else [event]:
            engine.add_event_handler(each, self, logger, each)

    def __call__(self, engine: Engine, logger: Any, event_name: Any) -> None:
        """Log everything at the step of the event.

        Raises:
            RuntimeError: not one of Ignite's loggers.
        """
        write = _writer(logger)
        step = self._step(engine, event_name) if self._step else engine.state.get_event_attrib_value(event_name)
        write(logger, self._record(step, isinstance(logger, _TEXT)))

    def _record(self, step: int, text: bool) -> LogRecord:
        """Return what is logged at a step; of text, no pictures and histograms."""
        masks, prefix = self._pruner.masks, self._prefix
        found = masks.sparsities()
        sparsities = {"global": masks.sparsity, **{name: found[name] for name in self._names}}
        scalars = {f"{prefix}sparsity/global": sparsities["global"]}
        for name in self._names:
            scalars[f"{prefix}sparsity/{name}"] = sparsities[name]
            scalars[f"{prefix}flips/{name}"] = masks.flips[name]
        names = self._names if self._pictures and not text else []
        pictures = {f"{prefix}masks/{name}": mask_picture(masks[name], self._max_pixels) for name in names}
        histograms = self._values() if self._histograms and not text else {}
        return LogRecord(step, scalars, pictures, histograms, sparsities)

    def _scores(self) -> dict[str, Tensor]:
        """Return the saliencies; empty if they are not finite, because logging should not stop a run."""
        try:
            return self._pruner.scores()
        except NonFiniteSaliency:
            return {}

    def _values(self) -> dict[str, Tensor]:
        """Return the surviving weights and their saliencies, where they are finite."""
        masks, scores, found = self._pruner.masks, self._scores(), dict[str, Tensor]()
        for name in self._names:
            mask = masks[name]
            weights = masks.parameters[name].detach()[mask]
            shown = {"weights": weights.abs() if weights.is_complex() else weights}
            if name in scores:
                shown["saliency"] = scores[name][mask] if scores[name].shape == mask.shape else scores[name]
            for kind, values in shown.items():
                if values.isfinite().all() and values.numel():
                    found[f"{self._prefix}{kind}/{name}"] = values.float().flatten().cpu()
        return found


def _writer(logger: Any) -> Callable[[Any, LogRecord], None]:
    for kind, write in _WRITERS.items():
        if isinstance(logger, kind):
            return write
    names = ", ".join(kind.__name__ for kind in _WRITERS)
    raise RuntimeError(f"Handler 'MaskHandler' works only with {names}, but given {type(logger)}")
