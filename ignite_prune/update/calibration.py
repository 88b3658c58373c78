"""Calibration: data, and how to compute a loss on it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from torch import nn

from ignite_prune._utils.arguments import check_callable, check_is
from ignite_prune._utils.extras import needed
from ignite_prune.saliency import Saliency

if TYPE_CHECKING:
    from ignite_prune.core.batches import Batch, LossFn, PrepareBatch
    from ignite_prune.evidence import Evidence


@dataclass(frozen=True, eq=False)
class Calibration:
    """Calibration batches, the loss, and how a batch is taken apart, as one value.

    Wherever a function of this package takes ``data``, ``loss_fn`` and ``prepare_batch``, it takes ``calibration``
    instead.

    Args:
        data: batches as Ignite's supervised trainer takes them, ``(x, y)``, or ``x`` alone. An ``x`` that is a mapping
            is passed as keyword arguments if the model's ``forward`` takes its keys (``(inputs, labels)`` of
            transformers), and as one argument otherwise. None where evidence is gathered from training.
        loss_fn: ``(output, target) -> scalar``, a mean over the batch; for evidence that is made of gradients.
        prepare_batch: Ignite's ``(batch, device, non_blocking) -> (x, y)``.
        progress: show a progress bar on stderr during each pass over the data (requires tqdm).

    Raises:
        TypeError: ``loss_fn`` or ``prepare_batch`` is not callable, or ``progress`` not a bool.
        ImportError: a progress bar is asked for, and tqdm is not installed.

    Example:
        >>> import torch
        >>> from ignite_prune import prune_model, saliency
        >>> model = nn.Linear(4, 2)
        >>> calibration = Calibration([(torch.randn(3, 4), torch.randn(3, 2))], nn.functional.mse_loss)
        >>> prune_model(model, sparsity=0.5, saliency=saliency.Taylor(), calibration=calibration).sparsity
        0.5
    """

    data: Iterable[Any] | None = None
    loss_fn: LossFn | None = None
    prepare_batch: PrepareBatch | None = None
    progress: bool = False

    def __post_init__(self) -> None:
        if self.progress is not False:
            check_is("progress", self.progress, bool)
            needed("tqdm", "progress=True")
        for name, value in (("loss_fn", self.loss_fn), ("prepare_batch", self.prepare_batch)):
            if value is not None:
                check_callable(name, value)

    def check_repeatable(self) -> None:
        """Raise if the data cannot be iterated over at each update.

        Raises:
            TypeError: it is an iterator, or not an iterable.
        """
        if self.data is not None and (isinstance(self.data, Iterator) or not isinstance(self.data, Iterable)):
            raise TypeError(
                "Argument data should be an iterable that can be gone over at each update (a DataLoader, a list), but "
                f"given {type(self.data)}"
            )

    def repeatable(self) -> Calibration:
        """Return a calibration whose data can be iterated over again: an iterator's as a list."""
        if not isinstance(self.data, Iterator):
            return self
        from ignite_prune.core.endless import warned_if_endless  # slow to import

        return replace(self, data=list(warned_if_endless(self.data, self.data)))

    @property
    def passes(self) -> Iterable[Any] | None:
        """The data, with a progress bar if one is asked for."""
        if not self.progress or self.data is None:
            return self.data
        from ignite_prune.update.shown_batches import ShownBatches  # for progress bars alone

        return ShownBatches(self.data)

    def batches(self, model: nn.Module) -> Iterator[Batch]:
        """Yield the batches on the model's device."""
        device = next(model.parameters()).device
        from ignite_prune.core.batches import batches  # slow to import

        return batches(model, self.passes, self.loss_fn, self.prepare_batch, device)


NO_CALIBRATION = Calibration()
"""Neither data nor loss."""


def as_calibration(
    calibration: Any, data: Iterable[Any] | None, loss_fn: LossFn | None, prepare_batch: PrepareBatch | None
) -> Calibration:
    """Return one value from a ``calibration=`` or the three keywords.

    Raises:
        TypeError: ``calibration`` is not a :class:`Calibration`.
        ValueError: both are given.
    """
    if calibration is None:
        return Calibration(data, loss_fn, prepare_batch)
    if not isinstance(calibration, Calibration):
        raise TypeError(
            "Argument calibration should be an ignite_prune.Calibration(data, loss_fn, prepare_batch), but given "
            f"{type(calibration)}"
        )
    if any(each is not None for each in (data, loss_fn, prepare_batch)):
        raise ValueError("Give calibration=, or data=, loss_fn= and prepare_batch=, not both")
    return calibration


def is_at_init(saliencies: Iterable[Saliency]) -> bool:
    """Return whether all saliencies that need evidence are made for a network whose BatchNorm has no statistics yet."""
    asking = [saliency for saliency in saliencies if saliency.needs]
    return bool(asking) and all(saliency.at_init for saliency in asking)


def calibrate(evidence: Evidence, calibration: Calibration, saliencies: Iterable[Saliency]) -> None:
    """Gather evidence for some saliencies from calibration data."""
    batch_statistics = is_at_init(saliencies)
    evidence.calibrate(calibration.passes or (), calibration.loss_fn, calibration.prepare_batch, batch_statistics)
