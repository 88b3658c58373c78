"""Logging of masks, sparsity and saliency to TensorBoard."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from ignite.engine import Engine
from ignite.handlers.tensorboard_logger import TensorboardLogger
from torch import Tensor

from ignite_prune._utils.arguments import near
from ignite_prune.handlers import PruneHandler
from ignite_prune.handlers.sparse_training.base import MaskedHandler
from ignite_prune.loggers.picture import mask_picture
from ignite_prune.saliency import NonFiniteSaliency


class MaskHandler:
    """Logs a pruner's masks to TensorBoard, with the interface of Ignite's log handlers.

    For each parameter it logs ``sparsity/<name>`` (and ``sparsity/global``), ``flips/<name>`` (mask entries changed by
    the last update), the image ``masks/<name>`` (yellow = kept, blue = pruned), and histograms ``saliency/<name>`` and
    ``weights/<name>`` of the kept entries.

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
        >>> # tb_logger = TensorboardLogger(log_dir="runs/demo")
        >>> # tb_logger.attach(trainer, log_handler=MaskHandler(pruner), event_name=Events.EPOCH_COMPLETED)
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

    def __call__(self, engine: Engine, logger: TensorboardLogger, event_name: Any) -> None:
        """Log everything at the step of the event."""
        if not isinstance(logger, TensorboardLogger):
            raise RuntimeError(f"Handler 'MaskHandler' works only with TensorboardLogger, but given {type(logger)}")
        step = self._step(engine, event_name) if self._step else engine.state.get_event_attrib_value(event_name)
        writer, masks = logger.writer, self._pruner.masks
        sparsities = masks.sparsities()
        writer.add_scalar(f"{self._prefix}sparsity/global", masks.sparsity, step)
        for name in self._names:
            writer.add_scalar(f"{self._prefix}sparsity/{name}", sparsities[name], step)
            writer.add_scalar(f"{self._prefix}flips/{name}", masks.flips[name], step)
            if self._pictures:
                writer.add_image(f"{self._prefix}masks/{name}", mask_picture(masks[name], self._max_pixels), step)
        if self._histograms:
            self._log_histograms(writer, step)

    def _scores(self) -> dict[str, Tensor]:
        """Return the saliencies; empty if they are not finite, because logging should not stop a run."""
        try:
            return self._pruner.scores()
        except NonFiniteSaliency:
            return {}

    def _log_histograms(self, writer: Any, step: int) -> None:
        masks, scores = self._pruner.masks, self._scores()
        for name in self._names:
            mask = masks[name]
            weights = masks.parameters[name].detach()[mask]
            shown = {"weights": weights.abs() if weights.is_complex() else weights}
            if name in scores:
                shown["saliency"] = scores[name][mask] if scores[name].shape == mask.shape else scores[name]
            for kind, values in shown.items():
                if values.isfinite().all() and values.numel():
                    writer.add_histogram(f"{self._prefix}{kind}/{name}", values.float().cpu().numpy(), step)
