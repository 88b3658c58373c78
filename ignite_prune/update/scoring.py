"""Scores of a model's parameters, in one shot."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from ignite_prune._utils.arguments import check_callable, check_generator
from ignite_prune.core.selection import select, unwrap
from ignite_prune.evidence.calibration import LossFn, PrepareBatch
from ignite_prune.saliency import Informed, NonFiniteSaliency, Saliency, as_saliency
from ignite_prune.update.plan import bind
from ignite_prune.update.scores import all_finite


def score(
    model: nn.Module,
    params: Any = None,
    *,
    saliency: Saliency | Callable[[str, Tensor], Tensor],
    data: Iterable[Any] | None = None,
    loss_fn: LossFn | None = None,
    generator: torch.Generator | None = None,
    prepare_batch: PrepareBatch | None = None,
    exclude: Any = (),
) -> dict[str, Tensor]:
    """Return what a model's parameters are worth by a saliency; the model is left as it was.

    Args:
        model: bare, or wrapped in DDP or ``torch.compile``.
        params: None, or rules, see :func:`~ignite_prune.core.selection.select`. With None, saliencies that judge some
            layers alone (``BatchNormScale``, ``HRank``, ``HeadImportance``) leave the others out.
        saliency: the formula, or a callable ``(name, parameter) -> scores``.
        data: batches as Ignite's supervised trainer takes them, for a saliency that needs evidence. The model runs in
            eval mode over them. Under ``torch.distributed`` each rank gives its own, all call together, and get the
            scores of all the data.
        loss_fn: ``(output, target) -> scalar``, a mean over the batch; for evidence that is made of gradients.
        generator: for random saliencies; None draws from torch's default generator.
        prepare_batch: Ignite's ``(batch, device, non_blocking) -> (x, y)``.
        exclude: rules for what to leave out.

    Returns:
        ``{name: scores}``, larger = keep, each in the parameter's shape, or 1-D: one a unit of dim 0, or one a head.

    Raises:
        MissingEvidence: the data is missing, or never reached a parameter, which is named.
        NonFiniteSaliency: a score is NaN or infinite.
        TypeError, ValueError: a bad argument.

    Example:
        >>> from ignite_prune import saliency
        >>> net = nn.Linear(3, 2)
        >>> data = [(torch.randn(4, 3), torch.randn(4, 2))]
        >>> scores = score(net, saliency=saliency.Taylor(), data=data, loss_fn=nn.functional.mse_loss)
        >>> scores["weight"].shape
        torch.Size([2, 3])
    """
    check_generator(generator)
    check_callable("loss_fn", loss_fn)
    check_callable("prepare_batch", prepare_batch)
    model, formula = unwrap(model), as_saliency(saliency)
    parameters = select(model, params, exclude)
    if formula.randomised:
        formula = formula.draw(torch.default_generator if generator is None else generator)
    if formula.needs and isinstance(formula, Informed):
        from ignite_prune.evidence import Evidence  # slow to import

        evidence = Evidence(model, {formula.need: parameters})
        evidence.reset(start=True)
        if data is not None:
            evidence.calibrate(data, loss_fn, prepare_batch, formula.at_init)
        evidence.sum_over_ranks()
        bound = bind(formula, list(parameters), evidence, dict.fromkeys(parameters))
        if formula.some_layers and params is None:
            found = evidence.found(formula.need, dict.fromkeys(parameters))
            parameters = {name: p for name, p in parameters.items() if name in found} or parameters
        formula = bound
    scores = {}
    for name, parameter in parameters.items():
        scores[name] = _checked(name, parameter, formula(name, parameter))
    return scores


def _checked(name: str, parameter: Tensor, scores: Tensor) -> Tensor:
    if not isinstance(scores, Tensor) or scores.is_complex() or scores.layout != torch.strided:
        raise TypeError(f"The saliency of parameter {name!r} should be a real dense Tensor, but given {scores!r:.80}")
    units = parameter.shape[0] if parameter.ndim else 0
    by_unit = scores.ndim == 1 and (len(scores) == units or (len(scores) and units % len(scores) == 0))
    if scores.shape != parameter.shape and not by_unit:
        raise ValueError(
            f"The saliency of parameter {name!r} should have its shape {tuple(parameter.shape)}, or be 1-D with one a "
            f"unit of dim 0, but given {tuple(scores.shape)}"
        )
    if not all_finite(scores):
        raise NonFiniteSaliency(f"The saliency of parameter {name!r} has values that are NaN or infinite")
    return scores.detach()
